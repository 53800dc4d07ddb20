"""What the `inspect` commands share: the options, a state replayed to the position asked for, and how a copy is marked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import click

from ops.cli.replaying import Begin, Watch, replay
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
    """A state, and the name of the index it is of.

    Attributes:
        since: position after which the log was read on the way to it; 0 where nothing was trimmed away.
    """

    index: str
    state: State
    since: int = 0

    def title(self, what: str) -> str:
        return f"{what} of index {self.index!r} at position {self.state.position:,}"


@contextmanager
def opened_view(where: Where, at: int | None, watch: Watch | None = None, begin: Begin | None = None) -> Iterator[View]:
    """The state at `at`; `watch` sees every entry on the way there, `begin` the state before the first."""
    since = 0

    def begun(state: State) -> None:
        nonlocal since
        since = state.position
        if begin is not None:
            begin(state)

    with open_source(where) as source:
        until = checked_position(at, "--at", source.head())
        yield View(source.index, replay(source, until, watch=watch, begin=begun).state, since)


def before_words(view: View) -> str:
    """When something happened whose entry is gone."""
    return f"≤ {view.since}"


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
