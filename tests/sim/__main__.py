"""`python -m tests.sim`: run one seed, or many, and tell the shortest story of a failure."""

from __future__ import annotations

import sys
import time
import traceback
from collections import Counter

import click

from tests.sim.shrink import kind_of, shrink
from tests.sim.story import Outcome, run


@click.command()
@click.option("--seed", default=0, show_default=True, help="First seed.")
@click.option("--count", default=1, show_default=True, help="How many seeds to run.")
@click.option("--minutes", type=float, help="Run seeds for so long instead.")
@click.option("--steps", default=60, show_default=True, help="Actions of a run.")
@click.option("--engines", type=click.IntRange(1, 8), help="Engines; default: 2 to 4, by the seed.")
@click.option("--tiers", type=click.IntRange(1, 2), help="Tiers; default: by the seed.")
@click.option("--story", is_flag=True, help="Tell what happened even if all is well.")
@click.option("--no-shrink", is_flag=True, help="Show a failure as it came.")
@click.option("--keep-going", is_flag=True, help="Count failures by kind instead of stopping at the first.")
def main(  # noqa: PLR0917 - click passes them by name
    seed: int,
    count: int,
    minutes: float | None,
    steps: int,
    engines: int | None,
    tiers: int | None,
    story: bool,
    no_shrink: bool,
    keep_going: bool,
) -> None:
    """Simulate engines over a faulty log. Exit code 1 if a promise was broken."""
    marks: Counter[str] = Counter()
    failures: dict[str, list[int]] = {}
    runs = positions = 0
    started = time.monotonic()
    while runs < count if minutes is None else time.monotonic() - started < minutes * 60:
        outcome = run(seed + runs, steps, engines, tiers=tiers)
        runs += 1
        marks += outcome.marks
        positions += outcome.positions
        if story:
            click.echo("\n".join(outcome.story))
        if outcome.failure is not None:
            failures.setdefault(kind_of(outcome.failure), []).append(outcome.seed)
            if not keep_going:
                _tell(outcome if no_shrink else shrink(outcome))
                sys.exit(1)
    for mark, times in sorted(marks.items()):
        click.echo(f"{times:9}  {mark}")
    seconds = time.monotonic() - started
    click.echo(f"{runs} runs from seed {seed}, {positions} commits, {seconds:.1f} s, failures: {failures or 'none'}")
    sys.exit(1 if failures else 0)


def _tell(outcome: Outcome) -> None:
    assert outcome.failure is not None
    click.echo("\n".join(outcome.story))
    click.echo("".join(traceback.format_exception(outcome.failure)))
    click.echo(f"seed {outcome.seed}: {kind_of(outcome.failure)}")
    click.echo(f"script: {outcome.script}")


if __name__ == "__main__":
    main()
