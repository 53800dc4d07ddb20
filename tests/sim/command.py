"""`python -m tests.sim` and `statecore simulate`: run one seed, or many, and tell the shortest story of a failure.

Owns the options and what is told; `ops/simulate_command.py` finds this module where there is a checkout.
"""

from __future__ import annotations

import datetime
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import click

from ops.reliability.results import FaultResult, SimulationResult, Totals, Versions, to_json
from tests.sim.campaign import EXPECTED, EXPECTED_OF_PERILS, EXPECTED_OF_TIERS, FAULTS, LIVES, SERVER
from tests.sim.shrink import kind_of, shrink
from tests.sim.story import Outcome, run

_FAULTS = (*FAULTS, *SERVER[:4], *LIVES[:5], "a stored snapshot rots", "worker died during the copy", "late report")


@click.command("simulate")
@click.option("--seed", default=0, show_default=True, help="First seed.")
@click.option("--count", default=1, show_default=True, help="How many seeds to run.")
@click.option("--minutes", type=float, help="Run seeds for so long instead.")
@click.option("--steps", default=100, show_default=True, help="Actions of a run.")
@click.option("--engines", type=click.IntRange(1, 8), help="Engines; default: 2 to 4, by the seed.")
@click.option("--tiers", type=click.IntRange(1, 2), help="Tiers; default: by the seed.")
@click.option(
    "--perils/--no-perils", default=None, help="Whether servers, engines and keepers die; default: by the seed."
)
@click.option("--story", is_flag=True, help="Tell what happened even if all is well.")
@click.option("--no-shrink", is_flag=True, help="Show a failure as it came.")
@click.option("--keep-going", is_flag=True, help="Count failures by kind instead of stopping at the first.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the record of the campaign here.")
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
    json_path: Path | None,
) -> None:
    """Simulate engines, workers, keepers and a server that dies, in one thread. Exit code 1 if a promise was broken."""
    marks: Counter[str] = Counter()
    failures: dict[str, list[int]] = {}
    runs = positions = 0
    slowest = 0.0
    started = time.monotonic()
    while runs < count if minutes is None else time.monotonic() - started < minutes * 60:
        outcome = run(seed + runs, steps, engines, tiers=tiers, perils=perils)
        runs += 1
        marks += outcome.marks
        positions += outcome.positions
        slowest = max(slowest, outcome.slowest_recovery_s)
        if story:
            click.echo("\n".join(outcome.story))
        if outcome.failure is not None:
            failures.setdefault(kind_of(outcome.failure), []).append(outcome.seed)
            if not keep_going:
                _tell(outcome if no_shrink else shrink(outcome))
                break
    for mark, times in sorted(marks.items()):
        click.echo(f"{times:9}  {mark}")
    seconds = time.monotonic() - started
    told = "; ".join(f"{kind}: {', '.join(map(str, seeds))}" for kind, seeds in sorted(failures.items()))
    click.echo(f"{runs} runs from seed {seed}, {positions} commits, {seconds:.1f} s, failures: {told or 'none'}")
    if json_path is not None:
        json_path.write_bytes(to_json(_result(seed, runs, steps, seconds, positions, marks, failures, slowest)))
    sys.exit(1 if failures else 0)


def _tell(outcome: Outcome) -> None:
    assert outcome.failure is not None
    click.echo("\n".join(outcome.story))
    click.echo("".join(traceback.format_exception(outcome.failure)))
    click.echo(f"seed {outcome.seed}: {kind_of(outcome.failure)}")
    click.echo(f"script: {outcome.script}")


def _result(
    seed: int,
    runs: int,
    steps: int,
    seconds: float,
    positions: int,
    marks: Counter[str],
    failures: dict[str, list[int]],
    slowest: float,
) -> SimulationResult:
    """Every check of a run stops it: what a run that went through has counted is 0 wherever something would be wrong."""
    expected = dict.fromkeys((*EXPECTED, *EXPECTED_OF_TIERS, *EXPECTED_OF_PERILS))
    broken = sum(map(len, failures.values()))
    return SimulationResult(
        first_seed=seed,
        seeds=runs,
        steps=steps,
        at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        duration_s=round(seconds, 1),
        versions=Versions.here(),
        positions=positions,
        marks=dict(sorted(marks.items())),
        faults=tuple(
            [
                FaultResult(fault, marks[fault], marks[fault] if not broken else 0, slowest_recovery_s=slowest or None)
                for fault in dict.fromkeys(_FAULTS)
            ]
        ),
        totals=Totals(
            commits_acknowledged=positions,
            lost=0,
            duplicated=0,
            out_of_order=0,
            ambiguous_landed=marks["unknown -> landed"],
            ambiguous_not_landed=marks["unknown -> not landed"],
            ambiguous_wrong=len(failures.get("resolve tells the truth", ())),
            fenced_refused=marks["fenced"],
            transfers_finished=marks["TransferFinished"],
            effects_doubled=len(failures.get("a commit lands once", ())),
            replicas_compared=positions,
            digests_different=len(failures.get("one digest per position", ())),
            blocks_verified=0,
            blocks_wrong=len(failures.get("who uses a block finds its bytes in it", ()))
            + len(failures.get("what is ready holds its bytes", ())),
            blocks_leaked=len(failures.get("no block is leaked", ())),
            transfers_open=len(failures.get("every transfer ends", ())),
            invariants_broken=len(failures.get("the invariants hold", ())),
        ),
        planted=(),
        failures=tuple([f"{kind}: seeds {seeds}" for kind, seeds in sorted(failures.items())]),
        missing=tuple([mark for mark in expected if not marks[mark]]),
    )
