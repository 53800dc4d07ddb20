"""`python -m tests.sim` and `statecore simulate`: run one seed, or many, and tell the shortest story of a failure.

Owns what is run and what is told. The options are those of `ops/simulate_command.py`, which finds this module where there
is a checkout.
"""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path

import click

from ops.reliability.results import PlantedBug, to_json
from ops.simulate_command import options
from tests.sim.campaign import expected
from tests.sim.planted_tables import plant_all
from tests.sim.record import Record
from tests.sim.shrink import kind_of, shrink
from tests.sim.story import Outcome, run


@click.command("simulate")
@options
def simulate(  # noqa: PLR0917 - click passes them by name
    seed: int,
    count: int,
    minutes: float | None,
    steps: int,
    engines: int | None,
    tiers: int | None,
    perils: bool | None,
    story: bool,
    no_shrink: bool,
    keep_going: bool,
    planted: bool,
    json_path: Path | None,
) -> None:
    """See `ops/simulate_command.py`."""
    record = Record()
    started = time.monotonic()
    while record.runs < count if minutes is None else time.monotonic() - started < minutes * 60:
        outcome = run(seed + record.runs, steps, engines, tiers=tiers, perils=perils)
        record.add(outcome)
        if story:
            click.echo("\n".join(outcome.story))
        if outcome.failure is not None and not keep_going:
            _tell(outcome if no_shrink else shrink(outcome))
            break
    seconds = time.monotonic() - started
    for mark, times in sorted(record.marks.items()):
        click.echo(f"{times:9}  {mark}")
    told = "; ".join(f"{kind}: {', '.join(map(str, seeds))}" for kind, seeds in sorted(record.failures.items()))
    click.echo(
        f"{record.runs} runs from seed {seed}, {record.positions} commits, {seconds:.1f} s, failures: {told or 'none'}"
    )
    wanted = expected(tiers, perils)
    missing = record.missing(wanted) if minutes is not None else ()
    for mark in missing:
        click.echo(f"never occurred: {mark}")
    bugs = _plant() if planted else []
    if json_path is not None:
        json_path.write_bytes(to_json(record.result(seed, steps, seconds, wanted, bugs)))
    sys.exit(1 if record.failures or missing or not all(bug.caught_by for bug in bugs) else 0)


def _plant() -> list[PlantedBug]:
    bugs = []
    for bug in plant_all():
        click.echo(
            f"{bug.bug}: " + (f"caught by '{bug.caught_by}', seed {bug.seed}" if bug.caught_by else "NOT CAUGHT")
        )
        bugs.append(bug)
    return bugs


def _tell(outcome: Outcome) -> None:
    assert outcome.failure is not None
    click.echo("\n".join(outcome.story))
    click.echo("".join(traceback.format_exception(outcome.failure)))
    click.echo(f"seed {outcome.seed}: {kind_of(outcome.failure)}")
    click.echo(f"script: {outcome.script}")
