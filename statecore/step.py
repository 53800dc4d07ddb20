"""A step in progress: the calls that become one commit, what they answered, and what has to go back with them.

Owns the bookkeeping, deciding it again, and what it amounts to as a commit; `session.py` sends and undoes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs

from events.errors import StateCoreError
from events.facts import EngineJoined, Fact
from events.ports import Base, Commit
from statecore import commands
from statecore.rejections import Rejection, StepConflict
from statecore.replica import Replica
from statecore.results import Allocation, Extension, Match
from statecore.scopes import fences_of, jobs_of, scopes_of
from statecore.state import State

Fill: TypeAlias = Callable[[State, Sequence[Fact], Any], None]
"""Writes the answer of a call from the state after its facts."""


@attrs.define(slots=True)
class Operation:
    """A call of the step: what was asked, and the record that holds what was answered."""

    command: commands.Command
    answer: object
    fill: Fill


@attrs.define(slots=True)
class Step:
    """Calls that become one commit.

    Attributes:
        position: where it stands in the log; 0 while it does not, and for a step that changed nothing.
        attempts: how often it was sent.
        failed: why it cannot happen any more, found out before its end.
        explicit: begun by `with index.step()`; the caller sees answers before the commit stands.
        operations, facts: what was called, and what was decided.
    """

    position: int = 0
    attempts: int = 0
    failed: StateCoreError | None = attrs.field(default=None, repr=False)
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


def decide_again(replica: Replica, step: Step) -> None:
    """Decide every call of a step on top of a newer state. What the caller may have computed with must come out the same.

    Raises:
        StepConflict: it does not. For a call that is a step by itself, the refusal it meets now.
    """
    told = step.told()
    step.facts.clear()
    for operation in step.operations:
        command, count = operation.command, told.get(id(operation.answer))
        if count is not None and isinstance(command, commands.Match | commands.BringIn):
            command = attrs.evolve(command, limit=count)
        facts = replica.propose(command)
        if isinstance(facts, Rejection):
            raise StepConflict(type(command).__name__, str(facts)) if step.explicit else facts
        step.facts.extend(facts)
        operation.fill(replica.state, facts, operation.answer)
    for operation in step.operations:
        before, now = told.get(id(operation.answer)), counted(operation.answer)
        if before is not None and now != before:
            raise StepConflict(
                type(operation.command).__name__, f"the caller was told {before} blocks, now it is {now}"
            )


def commit_of(step: Step, state: State, engine: str, session: int, commit_id: str) -> Commit:
    """The commit a step amounts to; `state` is the one after its facts. A step that joins is of the session it begins."""
    scopes = scopes_of(state, engine, step.facts)
    joined = [fact.session for fact in step.facts if isinstance(fact, EngineJoined)]
    return Commit(
        id=commit_id,
        engine=engine,
        session=joined[0] if joined else session,
        facts=tuple(step.facts),
        checks=scopes,
        touches=scopes,
        fences=fences_of(step.facts),
        jobs=jobs_of(state, step.facts),
    )
