"""`statecore bench`: which figures, from which requests, shown how.

Owns the options and the order of the groups. Standard output carries the table, or the JSON alone with `--json`;
progress goes to standard error. The exit code is 0 however slow something was: budgets are shown, not enforced.
"""

from __future__ import annotations

import textwrap
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Final, cast

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from events.errors import StateCoreError
from ops.bench import (
    core,
    fleet,
    follower,
    gpu,
    growth,
    hashing,
    hit_rate,
    jobs,
    latency,
    log,
    memory,
    replay,
    report,
    restart,
    snapshot,
    store,
    transfer_step,
)
from ops.bench.figure import Group, Measurement, Settings
from ops.demo.movers import WorkerDied
from ops.trace import TraceError, read_trace
from statecore import Rejection

GROUPS: Final[tuple[Group, ...]] = (
    core.GROUP,
    growth.GROUP,
    hashing.GROUP,
    follower.GROUP,
    memory.GROUP,
    log.GROUP,
    replay.GROUP,
    snapshot.GROUP,
    transfer_step.GROUP,
    latency.GROUP,
    jobs.GROUP,
    store.GROUP,
    gpu.GROUP,
    hit_rate.GROUP,
    restart.GROUP,
    fleet.GROUP,
)
FIGURES: Final = tuple(name for group in GROUPS for name in group.figures)
_REQUESTS_MIN: Final = 200
"""Requests a trace must hold at least: fewer would not fill anything."""


@click.command(name="bench", short_help="Every figure beside its reference.")
@click.option("--only", "patterns", multiple=True, metavar="NAME", help="Only this figure; repeatable, * and ? work.")
@click.option(
    "--trace",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take the requests from this .jsonl[.gz] file (Mooncake format) instead of the generator.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of everything drawn by chance.")
@click.option("--quick", is_flag=True, help="Small counts, one repetition: shows that it runs, not how fast.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, writable=True, allow_dash=True),
    is_flag=False,
    flag_value="-",
    metavar="[FILE|-]",
    help="Write the figures as JSON to FILE, or instead of the table to standard output.",
)
def command(patterns: tuple[str, ...], trace: Path | None, seed: int, quick: bool, json_file: str | None) -> None:
    """Measure every figure of the design's budgets beside a reference measured in the same run.

    Takes about four minutes on two cores. The machine may drift by a factor of two while it runs, so figure and
    reference take turns, medians are shown, and the ratio is what to compare.

    \b
    Examples:
      statecore bench --only 'hit_rate_*' --only 'transfer_*'
      statecore bench --quick --json -
    """
    wanted = _wanted(patterns)
    settings = Settings(quick=quick, seed=seed, trace=trace)
    with _opened(json_file) as out:
        try:
            if trace is not None:
                _require_enough(trace)
            found = _measured(settings, _measurable(wanted, named=bool(patterns)))
        except (TraceError, StateCoreError, Rejection, WorkerDied) as error:
            raise click.ClickException(str(error)) from error
        if out is not None:
            out.write(report.as_json(each for _, measurements in found for each in measurements))
            out.flush()
    if json_file != "-":
        report.print_table(Console(), found, settings)


def _opened(file: str | None) -> AbstractContextManager[IO[bytes] | None]:
    """Where the JSON goes; opened before anything is measured, so that minutes are not spent for nothing."""
    if file is None:
        return nullcontext()
    try:
        return cast("AbstractContextManager[IO[bytes]]", click.open_file(file, "wb"))
    except OSError as error:
        raise click.FileError(file, hint=str(error.strerror)) from error


def _wanted(patterns: tuple[str, ...]) -> frozenset[str]:
    if not patterns:
        return frozenset(FIGURES)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in FIGURES):
            known = textwrap.fill("  ".join(FIGURES), width=100, break_on_hyphens=False)
            raise click.UsageError(f"no figure is called {pattern!r}. Known are:\n{known}")
    return frozenset(name for name in FIGURES if any(fnmatchcase(name, pattern) for pattern in patterns))


def _require_enough(trace: Path) -> None:
    requests = sum(1 for _ in read_trace(trace, _REQUESTS_MIN))
    if requests < _REQUESTS_MIN:
        raise click.ClickException(f"{trace} holds {requests} requests, a bench needs {_REQUESTS_MIN} at least")


def _measurable(wanted: frozenset[str], *, named: bool) -> frozenset[str]:
    """Without what this machine lacks something for, which is said on standard error; refused if nothing else was named."""
    for group in GROUPS:
        if (left_out := wanted & set(group.figures)) and (reason := group.missing()):
            told = f"{', '.join(sorted(left_out))} cannot be measured: {reason}"
            wanted -= left_out
            if named and not wanted:
                raise click.ClickException(told)
            click.echo(told, err=True)
    return wanted


def _measured(settings: Settings, wanted: frozenset[str]) -> list[tuple[Group, list[Measurement]]]:
    """Group by group, with one bar for all. Figures come in the order of `FIGURES`."""
    groups = [group for group in GROUPS if wanted & set(group.figures)]
    found = []
    columns = (TextColumn("{task.description:18}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=sum(group.seconds for group in groups))
        done = 0.0
        for group in groups:
            progress.update(bar, description=group.title, completed=done)

            def advance(share: float, done: float = done, group: Group = group) -> None:
                progress.update(bar, completed=done + group.seconds * share)

            by_name = {each.name: each for each in group.measure(settings, wanted & set(group.figures), advance)}
            found.append((group, [by_name[name] for name in group.figures if name in wanted]))
            done += group.seconds
    return found
