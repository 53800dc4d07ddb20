"""A step in progress: the calls that become one commit, what they answered, and what has to go back with them.

Owns the bookkeeping only; `session.py` decides, sends and undoes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs

from events.facts import Fact
from events.ports import Base, Commit
from statecore.commands import Command
from statecore.results import Allocation, Extension, Match
from statecore.state import State

Fill: TypeAlias = Callable[[State, Sequence[Fact], Any], None]
"""Writes the answer of a call from the state after its facts."""


@attrs.define(slots=True)
class Operation:
    """A call of the step: what was asked, and the record that holds what was answered."""

    command: Command
    answer: object
    fill: Fill


@attrs.define(slots=True)
class Step:
    """Calls that become one commit.

    Attributes:
        position: where it stands in the log; 0 while it does not, and for a step that changed nothing.
        attempts: how often it was sent.
        explicit: begun by `with index.step()`; the caller sees answers before the commit stands.
        operations, facts: what was called, and what was decided.
    """

    position: int = 0
    attempts: int = 0
    explicit: bool = attrs.field(default=True, repr=False)
    operations: list[Operation] = attrs.field(factory=list, repr=False)
    facts: list[Fact] = attrs.field(factory=list, repr=False)
    _then: list[Callable[[], None]] = attrs.field(factory=list, repr=False)
    _memos: list[tuple[Callable[[], None], Callable[[], None]]] = attrs.field(factory=list, repr=False)

    def memo(self, redo: Callable[[], None], undo: Callable[[], None]) -> None:
        """Change something the caller keeps beside the state; it goes back if the step does."""
        redo()
        self._memos.append((redo, undo))

    def when_it_stands(self, then: Callable[[], None]) -> None:
        """Call this once the step is in the log, and never if it is not."""
        self._then.append(then)

    def stands(self, position: int) -> None:
        self.position = position
        for then in self._then:
            then()

    def undo_memos(self) -> None:
        for _, undo in reversed(self._memos):
            undo()

    def redo_memos(self) -> None:
        for redo, _ in self._memos:
            redo()

    def told(self) -> dict[int, int]:
        """Per answer, by identity of its record, the count the caller may have computed with; none for a single call."""
        if not self.explicit:
            return {}
        counts = {id(operation.answer): counted(operation.answer) for operation in self.operations}
        return {answer: count for answer, count in counts.items() if count is not None}


def counted(answer: object) -> int | None:
    """The number of blocks an answer speaks of."""
    match answer:
        case Match() | Allocation():
            return len(answer.blocks)
        case Extension():
            return answer.path_blocks
        case _:
            return None


@attrs.frozen
class Doubt:
    """A step that was sent and may or may not have arrived."""

    commit: Commit
    base: Base
    step: Step
