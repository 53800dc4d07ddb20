"""Steps of one engine's index: whole or not at all, and what the caller may count on inside and after.

What several engines do to each other is told in `tests/golden`; here is what a caller must be able to rely on.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest

from events import connect
from events.errors import StateCoreError
from events.log import LogConnection
from events.ports import Entry
from statecore import (
    CacheIndex,
    Extension,
    NeverFits,
    PoolExhausted,
    Rejection,
    SessionOver,
    StepConflict,
    UnknownRequest,
)
from statecore.invariants import violations
from tests.golden.runner import RacedConnection

TOKENS = list(range(12))


@pytest.fixture
def connection() -> Iterator[LogConnection]:
    with connect("memory://") as opened:
        yield opened


def engine(connection: LogConnection, name: str, blocks: int = 12) -> CacheIndex:
    return CacheIndex(connection, name="i", engine=name, gpu_pool="g", gpu_blocks=blocks, block_size=4)


def entries(connection: LogConnection) -> tuple[Entry, ...]:
    return connection.log("i", follow=False).read(0)


def test_a_step_is_one_commit(connection: LogConnection) -> None:
    """A scheduler step of ten calls costs ten round trips."""
    index = engine(connection, "a")

    with index.step() as step:
        index.match("r", TOKENS)
        index.allocate("r", 3)
        index.extend("r", ready=True)
        index.release("r")
    assert (step.position, step.attempts, index.commits) == (2, 1, 2)

    assert [len(entry.facts) for entry in entries(connection)] == [3, 5]


def test_an_error_that_leaves_the_step_undoes_all_of_it(connection: LogConnection) -> None:
    """A crash in the middle of a scheduler step leaves half of it in the index."""
    index = engine(connection, "a")
    index.match("r", TOKENS)
    before = index.digest()

    def crash() -> None:
        with index.step():
            index.allocate("r", 3)
            index.extend("r", [99])
            index.match("s", [7])
            index.release("r")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash()

    assert index.digest() == before
    assert index.requests() == ("r",)
    assert len(entries(connection)) == 2
    index.allocate("r", 3)
    assert index.extend("r").path_blocks == 3, "the tokens of the undone step are remembered"


def test_a_refused_call_can_be_caught_inside(connection: LogConnection) -> None:
    """A scheduler that asks for too much loses the whole step."""
    index = engine(connection, "a")

    with index.step():
        index.match("r", TOKENS)
        index.allocate(None, 4)
        with pytest.raises(PoolExhausted):
            index.allocate("r", 9)
        with pytest.raises(UnknownRequest):
            index.release("nobody")
        index.allocate("r", 3)

    assert index.table("r") == [4, 5, 6]
    assert violations(index.inspect(lambda state: state)) == []


def test_a_step_inside_a_step_is_a_part_of_it(connection: LogConnection) -> None:
    """A helper that opens a step of its own commits half of its caller's."""
    index = engine(connection, "a")

    with index.step(), index.step():
        index.match("r", TOKENS)
        with index.step():
            index.allocate("r", 3)

    assert len(entries(connection)) == 2


def test_a_step_that_does_nothing_is_no_commit(connection: LogConnection) -> None:
    """An idle scheduler fills the log."""
    index = engine(connection, "a")
    with index.step() as step:
        index.can_allocate(3)
        index.would_match(TOKENS)

    assert step.position == 0
    assert len(entries(connection)) == 1


def test_questions_have_no_effect(connection: LogConnection) -> None:
    """A question pins, evicts, or makes a prefix look used."""
    index = engine(connection, "a")
    index.match("r", TOKENS)
    index.allocate("r", 3)
    index.extend("r")
    index.release("r")
    before = index.digest()

    assert index.would_match(TOKENS) == 3
    assert index.can_allocate(12)
    assert not index.can_allocate(13)
    assert (index.free_blocks, index.cached_blocks, index.position) == (9, 3, 5)
    assert index.requests() == ()

    assert index.digest() == before


def test_what_would_match_may_be_gone_before_it_is_matched(connection: LogConnection) -> None:
    """E-08: a lookup says hit, the block is evicted before the pin, and the length is wrong."""
    index = engine(connection, "a")
    index.match("r", TOKENS)
    index.allocate("r", 3)
    index.extend("r")
    index.release("r")
    assert index.would_match(TOKENS) == 3
    index.allocate(None, 10)

    found = index.match("s", TOKENS)

    assert (found.blocks, found.tokens) == ([0, 1], 8)
    assert index.table("s") == found.blocks


@pytest.mark.parametrize("tokens", [[], [1], [1, 2, 3]])
def test_prompts_shorter_than_a_block(connection: LogConnection, tokens: list[int]) -> None:
    """A short prompt is refused, or filed as a block."""
    index = engine(connection, "a")

    found = index.match("r", tokens)
    index.allocate("r", 1)

    assert (found.blocks, found.tokens) == ([], 0)
    assert index.extend("r").path_blocks == 0
    assert index.would_match(tokens) == 0
    assert index.extend("r", [7] * (4 - len(tokens))).path_blocks == 1
    index.release("r")
    assert index.free_blocks == 11


def test_a_life_that_is_over_says_so_to_every_call(connection: LogConnection) -> None:
    """E-25: a paused process wakes up and goes on as if its blocks were still its own."""
    old = engine(connection, "a")
    old.match("r", TOKENS)
    new = engine(connection, "a")
    before = new.digest()

    for call in (
        lambda: old.match("s", TOKENS),
        lambda: old.allocate("r", 1),
        lambda: old.extend("r"),
        lambda: old.ready("r"),
        lambda: old.release("r"),
        lambda: old.recycle("r", [0]),
    ):
        with pytest.raises(SessionOver, match="session 1 of engine 'a' is over"):
            call()

    assert new.refresh() == new.position
    assert new.digest() == before
    old.rejoin()
    with pytest.raises(UnknownRequest):
        old.extend("r")
    old.match("r", TOKENS)


def test_closing_twice_and_going_on(connection: LogConnection) -> None:
    """An orderly shutdown ends in an error, or a closed index still serves."""
    index = engine(connection, "a")
    index.close()
    index.close()

    with pytest.raises(SessionOver):
        index.match("r", TOKENS)
    assert len(entries(connection)) == 2


# --- what was wrong once --------------------------------------------------------------------------------------------


def test_counts_told_inside_a_step_hold_or_the_step_does_not_happen(connection: LogConnection) -> None:
    """The caller planned with 3 shared blocks, which `results.py` promises stay 3; after the step there are none."""
    raced = RacedConnection(connection)
    a = CacheIndex(raced, name="i", engine="a", gpu_pool="g", gpu_blocks=12, block_size=4)  # type: ignore[arg-type]
    b = engine(connection, "b")
    b.match("q", TOKENS)
    b.allocate("q", 3)
    a.refresh()
    assert raced.last is not None
    raced.last.before_append = partial(b.extend, "q")
    told: list[Extension] = []

    with suppress(StepConflict), a.step() as step:
        a.match("r", TOKENS)
        a.allocate("r", 3)
        told.append(a.extend("r"))
        assert told[0].path_blocks == 3

    assert step.position == 0 or told[0].path_blocks == 3


def test_blocks_of_this_step_are_not_ready_because_another_request_matched_them(connection: LogConnection) -> None:
    """Another engine reads blocks that the GPU has not written yet."""
    a, b = engine(connection, "a"), engine(connection, "b")
    with a.step():
        a.match("r", TOKENS)
        a.allocate("r", 3)
        a.extend("r")
        a.match("s", [*TOKENS, 1, 2, 3, 4])
        a.allocate("s", 1)
    b.refresh()

    assert b.would_match(TOKENS) == 0


def test_blocks_never_computed_are_not_ready_later(connection: LogConnection) -> None:
    """Every engine is served garbage: the request that was to compute the blocks was given up in the same step."""
    a, b = engine(connection, "a"), engine(connection, "b")
    with a.step():
        a.match("r", TOKENS)
        a.allocate("r", 3)
        a.extend("r")
        a.match("s", TOKENS)
        try:
            a.release("r")
        except Rejection:
            a.release("s")
            a.release("r")
    if "s" in a.requests():
        a.release("s")
    b.refresh()

    assert b.would_match(TOKENS) == 0


def test_room_that_another_engine_made_is_found(connection: LogConnection) -> None:
    """A scheduler preempts, or waits for ever, in a pool that is empty: a refusal makes no commit, so it never learns."""
    a, b = engine(connection, "a"), engine(connection, "b")
    b.match("q", TOKENS)
    b.allocate("q", 12)
    a.refresh()
    a.match("r", TOKENS)
    b.release("q")

    assert a.allocate("r", 3).blocks


def test_what_another_engine_cached_is_found(connection: LogConnection) -> None:
    """The first hit after somebody else's work is missed: the quick start on memory:// shows a hit rate of 0."""
    a, b = engine(connection, "a"), engine(connection, "b")
    a.match("r", TOKENS)
    a.allocate("r", 3)
    a.extend("r", ready=True)

    assert len(b.match("q", TOKENS).blocks) == 3


def test_a_request_that_outgrew_the_pool_is_told_so(connection: LogConnection) -> None:
    """E-24: a scheduler preempts everybody, then itself, for ever, for a request that needs more than the pool."""
    index = engine(connection, "a")
    index.match("r", TOKENS)
    index.allocate("r", 10)

    with pytest.raises(NeverFits):
        index.allocate("r", 3)


def test_an_ended_life_does_not_collect_tracebacks(connection: LogConnection) -> None:
    """E-53: an engine that polls an ended index grows by a traceback per call, with all its frames' variables."""
    old = engine(connection, "a")
    engine(connection, "a")
    lengths = []
    for _ in range(5):
        with pytest.raises(SessionOver) as raised:
            old.match("s", TOKENS)
        lengths.append(len(list(traceback.walk_tb(raised.value.__traceback__))))

    assert max(lengths[1:]) == min(lengths[1:])


def test_refresh_inside_a_step_is_refused(connection: LogConnection) -> None:
    """A caller's mistake ends in an assertion."""
    index = engine(connection, "a")
    with index.step():
        index.match("r", TOKENS)
        with pytest.raises(StateCoreError):
            index.refresh()
        index.allocate("r", 1)

    assert index.table("r") == [0]


def test_rejoin_inside_a_step_is_refused(connection: LogConnection) -> None:
    """A caller's mistake ends in an assertion, and the engine's life with it."""
    index = engine(connection, "a")
    with index.step():
        index.match("r", TOKENS)
        with pytest.raises(StateCoreError):
            index.rejoin()
        index.allocate("r", 1)

    assert index.session == 1
    assert index.table("r") == [0]
