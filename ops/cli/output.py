"""How commands write: tables for people, one JSON object per line for programs, progress on stderr.

Owns the rule that standard output is either readable or machine-readable, never mixed, and that what goes into a pipe
is plain and whole: no colour, no cut-off cells.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

import orjson
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

T = TypeVar("T")

_PIPE_COLUMNS: Final = 10_000  # wide enough that nothing is ever cut or wrapped
_QUIET_S: Final = 0.5  # what ends within this needs no progress bar
_REFRESH_S: Final = 0.1


def show(*parts: RenderableType) -> None:
    """Tables, trees and lines on stdout, an empty line between them: as wide as the terminal, or as needed in a pipe."""
    plain = not sys.stdout.isatty()
    console = Console(width=_PIPE_COLUMNS if plain else None, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        for number_of_part, part in enumerate(parts):
            if number_of_part:
                console.print()
            console.print(part)
    text = captured.get()
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in text.splitlines()) if plain else text)


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table. A column whose name ends with `#` holds numbers and is set right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        number = column.endswith("#")
        made.add_column(
            column.rstrip("#"), justify="right" if number else "left", no_wrap=number, header_style="bold cyan"
        )
    return made


def write_json(value: object) -> None:
    """One line of JSON on stdout."""
    sys.stdout.write(orjson.dumps(value).decode() + "\n")


def number(value: int) -> str:
    return f"{value:,}"


def count(value: int, what: str) -> str:
    """`1 commit`, `1,234 commits`."""
    return f"{value:,} {what}{'' if value == 1 else 's'}"


def percent(rate: float | None) -> str:
    """A rate between 0 and 1; "-" where nothing has been counted."""
    return "-" if rate is None else f"{100 * rate:.1f} %"


def moment(at_ms: int) -> datetime | None:
    """The wall time a commit carries, None where its writer's clock was out of this world."""
    try:
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)
    except OverflowError:
        return None


def iso_time(at_ms: int) -> str | None:
    when = moment(at_ms)
    return None if when is None else when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def progress(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """The items as they are; a bar on stderr when it takes a while and stderr is a terminal."""
    stderr = Console(stderr=True)
    if not stderr.is_terminal:
        yield from items
        return
    bar: Progress | None = None
    due = time.monotonic() + _QUIET_S
    try:
        for done, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if now < due:
                continue
            due = now + _REFRESH_S
            if bar is None:
                columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
                bar = Progress(*columns, console=stderr, transient=True)
                bar.add_task(label, total=total)
                bar.start()
            bar.update(bar.task_ids[0], completed=done)
    finally:
        if bar is not None:
            bar.stop()
