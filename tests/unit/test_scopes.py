"""Which commits exclude each other: a scope too few and two engines are given one block; one too many and all wait."""

from __future__ import annotations

import pytest

from events.facts import EngineJoined, EngineLeft, EngineLost, Fact, IndexCreated, PathReady
from statecore.commands import Allocate, Command, Leave, MarkReady, Recycle, Release
from statecore.scopes import fences_of, scopes_of
from tests.unit.given import Machine, extend, join, match


@pytest.fixture
def machine() -> Machine:
    """Cached: 1 2. Request r of engine a has a path of one block and a private one; one block is a's own."""
    machine = Machine(join("a"))
    machine.cache("a", 1, 2)
    machine.serve("a", "r", 5)
    machine.do(Allocate("a", "r", 1), Allocate("a", None, 1))
    return machine


def scopes(machine: Machine, engine: str, *commands: Command) -> tuple[str, ...]:
    return scopes_of(machine.state, engine, machine.do(*commands))


def test_what_takes_depends_on_the_pool(machine: Machine) -> None:
    """Two engines of one pool are given the same block, or one pins what the other drops."""
    both = ("engine:a", "pool:g")

    assert scopes(machine, "a", match("a", "hit", 1, 2)) == both
    assert scopes(machine, "a", Allocate("a", None, 1)) == both
    assert scopes(machine, "a", Allocate("a", "r", 1)) == both
    assert scopes(machine, "a", extend("a", "r", 5, 6)) == both


def test_what_gives_back_depends_on_nothing(machine: Machine) -> None:
    """Every end of a request makes all engines of the pool decide again."""
    assert scopes(machine, "a", match("a", "miss", 9)) == ("engine:a",)
    assert scopes(machine, "a", Recycle("a", "r", ((3, 1),))) == ("engine:a",)
    machine.do(extend("a", "r", 5), match("a", "s", 7), Allocate("a", "s", 1), extend("a", "s", 7))
    assert scopes(machine, "a", MarkReady("a", "s")) == ("engine:a",)
    assert scopes(machine, "a", Release("a", "s")) == ("engine:a",)


def test_beginnings_and_ends_of_lives(machine: Machine) -> None:
    """Two processes create one index, or one life goes on beside the next."""
    first = Machine()
    assert scopes(first, "a", join("a")) == ("engine:a", "index")
    assert scopes(machine, "b", join("b", blocks=None)) == ("engine:b", "index"), "who speaks for all must know of it"
    assert scopes(machine, "c", join("c", pool="h")) == ("engine:c", "index")
    assert scopes(machine, "b", Leave("b")) == ("engine:b",)


def test_a_new_life_in_another_pool_only_gives_back_in_the_old_one(machine: Machine) -> None:
    """A restart makes every engine of the pool decide again."""
    assert scopes(machine, "a", join("a", pool="h")) == ("engine:a", "index")


def test_a_commit_that_ends_somebody_elses_life(machine: Machine) -> None:
    """The keeper declares an engine lost while that engine appends."""
    machine.do(join("k", pool="none"))
    facts: list[Fact] = [EngineLost("a", 1, "a new life of the engine began")]
    machine.apply(*facts)

    assert scopes_of(machine.state, "k", facts) == ("engine:a", "engine:k")


def test_fences() -> None:
    """An old life can append after its end."""
    assert fences_of(
        [EngineLost("a", 1, "a new life of the engine began"), EngineJoined("a", 2, "g", None, 1, True)]
    ) == (("a", 2),)
    assert fences_of([EngineLeft("a", 4)]) == (("a", 5),)
    assert fences_of(
        [EngineLost("a", 4, "a new life of the engine began"), EngineLost("b", 1, "a new life of the engine began")]
    ) == (("a", 5), ("b", 2))
    assert fences_of([IndexCreated(1, "x"), PathReady("a", "r", 1)]) == ()
