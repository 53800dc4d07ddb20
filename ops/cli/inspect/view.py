"""What the `inspect` commands share: the options, a state replayed to the position asked for, and how a copy is marked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import click

from ops.cli.replaying import Watch, replay
from ops.cli.source import Where, checked_position, open_source, source_options
from statecore.state import Copy, State


def inspect_options(command: Callable[..., None]) -> Callable[..., None]:
    """`--url`, `--index`, `--file`, `--at`, `--json`."""
    command = click.option("--json", "as_json", is_flag=True, help="One JSON object.")(command)
    command = click.option(
        "--at", type=click.IntRange(min=0), metavar="N", help="The state at this position (default: the end)."
    )(command)
    return source_options(file=True)(command)


@attrs.frozen
class View:
    """A state, and the name of the index it is of."""

    index: str
    state: State

    def title(self, what: str) -> str:
        return f"{what} of index {self.index!r} at position {self.state.position:,}"


@contextmanager
def opened_view(where: Where, at: int | None, watch: Watch | None = None) -> Iterator[View]:
    """The state at `at`; `watch` sees every entry on the way there."""
    with open_source(where) as source:
        until = checked_position(at, "--at", source.head())
        yield View(source.index, replay(source, until, watch=watch).state)


def copy_marks(copy: Copy) -> list[str]:
    """What is going on with a copy: computed or filled by whom, leaving with what; empty where it just is."""
    marks = []
    if copy.filling is not None:
        marks.append(f"filling ({copy.filling})")
    elif copy.pending is not None:
        marks.append(f"pending ({copy.pending})")
    if copy.leaving is not None:
        marks.append(f"leaving ({copy.leaving})")
    return marks
