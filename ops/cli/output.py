"""How commands write: tables for people, one JSON object per line for programs, progress on stderr.

Owns the rule that standard output is either readable or machine-readable, never mixed, that what goes into a pipe is
plain and whole: no colour, no cut-off cells, and that a table too wide for the terminal goes on below, not off the edge.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

import orjson
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

T = TypeVar("T")

_PIPE_COLUMNS: Final = 10_000  # wide enough that nothing is ever cut or wrapped
_PROSE_COLUMNS: Final = 24  # narrower than this, wrapped text is no pleasure to read
_GAP: Final = 2  # columns between those of a table
_QUIET_S: Final = 0.5  # what ends within this needs no progress bar
_REFRESH_S: Final = 0.1


def show(*parts: RenderableType) -> None:
    """Tables, trees and lines on stdout, an empty line between them: as wide as the terminal, or as needed in a pipe."""
    plain = not sys.stdout.isatty()
    console = Console(width=_PIPE_COLUMNS if plain else None, highlight=False, markup=False, emoji=False)
    pieces = [piece for part in parts for piece in ([part] if plain else _fitted(part, console.width))]
    with console.capture() as captured:
        for number_of_piece, piece in enumerate(pieces):
            if number_of_piece:
                console.print()
            console.print(piece)
    text = captured.get()
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in text.splitlines()) if plain else text)


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table. A column whose name ends with `#` holds numbers and is set right; with `~`, text that may wrap."""
    made = _bare(title)
    for column in columns:
        made.add_column(
            column.rstrip("#~"),
            justify="right" if column.endswith("#") else "left",
            no_wrap=not column.endswith("~"),
            overflow="fold",
            header_style="bold cyan",
        )
    return made


def _bare(title: str | None) -> Table:
    return Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, _GAP, 0, 0))


def _fitted(part: RenderableType, width: int) -> list[RenderableType]:
    """A table that is too wide, as several with some of its columns each; all begin with its first column."""
    if not isinstance(part, Table) or not part.show_header:
        return [part]
    needs = [_needs(column, width) for column in part.columns]
    groups = [[0]]
    for place in range(1, len(needs)):
        taken = sum(needs[other] + _GAP for other in groups[-1])
        if taken + needs[place] > width and len(groups[-1]) > 1:
            groups.append([0])
        groups[-1].append(place)
    return [part] if len(groups) == 1 else [_piece(part, group) for group in groups]


def _needs(column: Column, width: int) -> int:
    """How wide a column must be to be read; one that would take half the terminal is wrapped, whatever it holds."""
    widest = max(cell_len(str(cell)) for cell in (column.header, *column.cells))
    column.no_wrap = column.no_wrap and widest <= width // 2
    return widest if column.no_wrap else min(widest, _PROSE_COLUMNS)


def _piece(whole: Table, places: list[int]) -> Table:
    """Some columns of a table; its title stands above the first of the pieces."""
    made = _bare(str(whole.title) if 1 in places and whole.title else None)
    columns = [whole.columns[place] for place in places]
    for column in columns:
        made.add_column(
            column.header,
            justify=column.justify,
            no_wrap=column.no_wrap,
            overflow=column.overflow,
            header_style=column.header_style,
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        made.add_row(*row)
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
