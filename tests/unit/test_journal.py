"""Undo: after it, everything is as it was; and a step leaves nothing behind in memory."""

from __future__ import annotations

from random import Random

import pytest

from events.errors import CorruptState
from statecore.blockset import BlockSet
from statecore.commands import Allocate, Command, Leave, MarkReady, Recycle, Release
from statecore.journal import Journal
from statecore.rejections import Rejection
from tests.unit.given import Machine, extend, join, match


class Thing:
    """Something with an attribute."""

    def __init__(self) -> None:
        self.value = 1


def test_each_change_is_taken_back() -> None:
    """A step that lost a race leaves a part of itself."""
    journal, thing = Journal(), Thing()
    mapping: dict[str, int | None] = {"a": 1, "b": 2}
    blocks = BlockSet(((0, 4),))

    journal.set(thing, "value", 2)
    journal.set(thing, "value", 3)
    journal.put(mapping, "a", 10)
    journal.put(mapping, "c", 3)
    journal.drop(mapping, "b")
    journal.put(mapping, "b", None)
    journal.call(blocks.remove, blocks.add, ((1, 2),))
    assert (thing.value, mapping, list(blocks)) == (3, {"a": 10, "c": 3, "b": None}, [(0, 1), (3, 1)])

    journal.undo()

    assert (thing.value, mapping, list(blocks)) == (1, {"a": 1, "b": 2}, [(0, 4)])
    journal.undo()
    assert thing.value == 1


def test_a_change_that_failed_is_not_taken_back() -> None:
    """Undo after a refused change corrupts what was sound."""
    journal, blocks = Journal(), BlockSet(((0, 4),))

    with pytest.raises(CorruptState):
        journal.call(blocks.add, blocks.remove, ((1, 2),))
    with pytest.raises(KeyError):
        journal.drop({}, "a")
    with pytest.raises(AttributeError):
        journal.set(Thing(), "other", 1)
    journal.undo()

    assert list(blocks) == [(0, 4)]


def test_what_stands_is_not_taken_back() -> None:
    """A conflict undoes commits that are in the log."""
    journal, thing = Journal(), Thing()
    journal.set(thing, "value", 2)
    journal.clear()
    journal.set(thing, "value", 3)

    journal.undo()

    assert thing.value == 2


def some_command(random: Random) -> Command:
    engine, request = random.choice("ab"), random.choice("rst")
    tokens = [random.choice((1, 2)) for _ in range(random.randint(0, 5))]
    commands: list[Command] = [
        match(engine, request, *tokens),
        match(engine, request, *tokens),
        Allocate(engine, random.choice((request, request, None)), random.randint(1, 4)),
        extend(engine, request, *tokens),
        extend(engine, request, *tokens),
        MarkReady(engine, request),
        Release(engine, request),
        Recycle(engine, random.choice((request, None)), ((random.randrange(8), 1),)),
        Leave(engine),
        join(engine, blocks=None),
    ]
    return random.choice(commands)


@pytest.mark.parametrize("seed", range(20))
def test_any_step_can_be_undone(seed: int) -> None:
    """E-13: failure after a partial change; state and digest differ from before."""
    random = Random(seed)
    machine = Machine(join("a"), join("b"))
    for _ in range(60):
        before = machine.replica.digest()
        commands = [some_command(random) for _ in range(random.randint(1, 5))]
        for command in commands:
            machine.replica.propose(command)
        machine.must_be_sound()
        machine.replica.undo()
        assert machine.replica.digest() == before
        machine.must_be_sound()
        facts = [
            decided for command in commands if not isinstance(decided := machine.replica.propose(command), Rejection)
        ]
        if any(facts):
            machine.replica.settle(machine.state.position + 1, "c")
    assert machine.state.position > 10
