"""What ends a life of an engine, and what it is told, whoever asks and however often."""

from __future__ import annotations

import traceback

import pytest

from events.errors import CorruptState, RolledBack
from events.facts import EngineLost, Fact
from events.ports import Diverged, Entry, Fenced
from statecore.life import Life, why_lost
from statecore.rejections import SessionOver
from statecore.state import Engine, State


def begun(number: int = 2) -> Life:
    life = Life("a")
    life.begin(number)
    return life


def state(session: int, alive: bool) -> State:
    made = State()
    made.position, made.last_commit_id = 7, "c7"
    made.engines["a"] = Engine("a")
    made.engines["a"].session, made.engines["a"].alive = session, alive
    return made


def entry(*facts: Fact) -> Entry:
    return Entry(8, "c8", "c7", "keeper", 0, 0, facts)


LOST = EngineLost("a", 2, "no sign of life")


def test_a_life_that_goes_on_says_nothing() -> None:
    """Otherwise every call would fail."""
    life = begun()

    life.require()
    life.notice(state(2, alive=True), [entry(LOST)])
    life.require()

    assert (life.end, life.corrupt, life.may_follow) == (None, None, False)


@pytest.mark.parametrize(("session", "alive"), [(2, False), (3, True), (3, False)])
def test_others_end_it_in_the_log(session: int, alive: bool) -> None:
    """Otherwise an engine would go on after a second process has taken its name."""
    life = begun()

    life.notice(state(session, alive), [entry(), entry(LOST)])

    with pytest.raises(SessionOver) as over:
        life.require()
    assert (over.value.session, over.value.current, over.value.reason) == (2, session, "no sign of life")


def test_a_life_that_has_not_begun_is_ended_by_nobody() -> None:
    """Otherwise a join would stumble over the end of the life before it."""
    life = Life("a")

    life.notice(State(), [entry(LOST)])

    assert life.end is None


def test_the_first_end_counts() -> None:
    """Otherwise an engine would be told of a fence when its history was rolled back, and look for the wrong cause."""
    life = begun()
    first = life.ended_by(Diverged(7, ""), state(2, alive=True))

    life.notice(state(3, alive=True), [entry(LOST)])

    assert life.end is first


def test_it_is_told_again_and_again_and_does_not_grow() -> None:
    """Otherwise a scheduler that retries for a night would fill the memory with tracebacks."""
    life = begun()
    life.over(reason="x")
    depths = []
    for _ in range(50):
        with pytest.raises(SessionOver) as over:
            life.require()
        assert over.value is life.end
        depths.append(len(traceback.extract_tb(over.value.__traceback__)))

    assert depths[-1] == depths[0]


@pytest.mark.parametrize(
    ("missed", "reason"),
    [
        ((entry(LOST),), "no sign of life"),
        ((), "it was declared lost, or another process began a life of it"),
        ((entry(EngineLost("b", 2, "x")), entry(EngineLost("a", 1, "y"))), "it was declared lost"),
    ],
)
def test_a_fence_ends_it_with_the_reason_that_the_log_gives(missed: tuple[Entry, ...], reason: str) -> None:
    """Otherwise people would search an engine for what its keeper has decided (E-25)."""
    end = begun().ended_by(Fenced(3, missed), state(2, alive=True))

    assert isinstance(end, SessionOver)
    assert end.current == 3
    assert end.reason.startswith(reason)


@pytest.mark.parametrize(("found", "said"), [("", "the log holds nothing"), ("x9", "the log holds commit 'x9'")])
def test_another_history_ends_it(found: str, said: str) -> None:
    """Otherwise nobody could tell a lost end of the log from another one."""
    life = begun()

    end = life.ended_by(Diverged(7, found), state(2, alive=True))

    assert isinstance(end, RolledBack)
    assert life.corrupt is end
    assert "'c7'" in str(end)
    assert said in str(end)
    assert end.position == 7


@pytest.mark.parametrize(
    ("end", "may"),
    [
        (SessionOver("a", 2, 3), True),
        (RolledBack("gone", position=7), True),
        (CorruptState("broken", position=7), False),
        (None, False),
    ],
)
def test_which_ends_may_be_followed_by_a_next_life(end: SessionOver | CorruptState | None, may: bool) -> None:
    """Otherwise an engine would begin life after life on a history that is broken for good; or before it is told once."""
    life = begun()
    life.end = end
    assert not life.may_follow

    life.told = True

    assert life.may_follow is may


def test_the_next_life_begins_clean() -> None:
    """Otherwise the end of the last life would end this one."""
    life = begun()
    life.over()
    life.told = True

    life.begin(3)

    life.require()
    assert (life.number, life.end, life.told, life.may_follow) == (3, None, False, False)


def test_why_is_asked_of_the_life_that_ended() -> None:
    """Otherwise an engine would be told why its neighbour, or its own last life, was ended."""
    entries = [entry(EngineLost("b", 2, "b")), entry(EngineLost("a", 1, "before")), entry(LOST)]

    assert why_lost("a", 2, entries) == "no sign of life"
    assert why_lost("a", 3, entries) == ""
