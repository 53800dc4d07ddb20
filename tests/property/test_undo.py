"""What is undone never was: the digest is the same, and so is every decision afterwards."""

from __future__ import annotations

from typing import Any

from hypothesis import given

from events.errors import CorruptState
from events.facts import Fact
from statecore import invariants
from statecore.commands import Allocate, Match, Release
from statecore.decide import decide
from statecore.digest import digest
from statecore.state import State
from tests.property.histories import (
    BLOCKS,
    ENGINES,
    KINDS,
    OPERATIONS,
    POOLS,
    Machine,
    Operation,
    hashes_of,
    many,
    operations,
    thorough,
)
from tests.property.test_codec import FACTS

STEP = many(operations(tuple(kind for kind in KINDS if kind != "commit")), 1, 12)


def decisions(state: State) -> list[object]:
    """What the machine would decide now, over a spread of commands; evictions of every size above all."""
    asked: list[Any] = [
        decide(state, Allocate(engine, None, blocks))
        for engine in ENGINES
        for blocks in range(1, BLOCKS[POOLS[engine]] + 1)
    ]
    for engine in ENGINES:
        asked += [decide(state, Match(engine, "new", hashes_of(symbols), 4)) for symbols in ([0, 0, 0], [0, 1, 0, 1])]
        asked += [decide(state, Release(engine, name)) for name in ("r0", "r1", "r2")]
    return [str(each) for each in asked]


@thorough
@given(OPERATIONS, STEP)
def test_undo_restores_everything(history: list[Operation], step: list[Operation]) -> None:
    """Given any history and any step on top of it, when the step is undone, then digest and decisions are as before."""
    machine = Machine()
    for operation in history:
        machine.run(operation)
    machine.commit()
    state = machine.replica.state
    before = digest(state), decisions(state)
    for operation in step:
        machine.run(operation)

    machine.replica.undo()

    assert digest(state) == before[0]
    assert invariants.violations(state) == []
    assert decisions(state) == before[1]


@thorough
@given(OPERATIONS, STEP)
def test_a_step_redone_is_the_step(history: list[Operation], step: list[Operation]) -> None:
    """Given a step that was undone, when its facts are applied again, then the state is the one it had led to."""
    machine = Machine()
    for operation in history:
        machine.run(operation)
    machine.commit()
    replica = machine.replica
    machine.decided.clear()
    for operation in step:
        machine.run(operation)
    after = digest(replica.state)

    replica.undo()
    replica.redo(machine.decided)

    assert digest(replica.state) == after
    assert invariants.violations(replica.state) == []


@thorough
@given(OPERATIONS, FACTS)
def test_a_fact_that_does_not_fit_changes_nothing(history: list[Operation], facts: list[Fact]) -> None:
    """Given facts of any other history (P8), then they either fit, and keep the state sound, or are refused as
    `CorruptState` and leave it as it was."""
    machine = Machine()
    for operation in history:
        machine.run(operation)
    machine.commit()
    replica = machine.replica
    before = digest(replica.state)
    try:
        replica.redo(facts)
    except CorruptState:
        assert digest(replica.state) == before
    else:
        replica.undo()
        assert digest(replica.state) == before
