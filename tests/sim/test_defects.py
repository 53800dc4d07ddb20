"""What the simulator found, each by the shortest story: the failing seed became a sentence and stays here.

Owns a log that does as it is told: per append one turn, "ok", "lost reply", "lost request", "interrupted", or a function
that lets others act first. Engines in the stories have blocks of one token, so a prompt is its list of block contents.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

import pytest

from events.errors import CorruptState, InvalidInput, OutcomeUnknown, Unavailable
from events.log import EventLog
from events.memory import MemoryTransport
from events.ports import RawReply, Record, StoredRecord
from statecore import CacheIndex, ExtraKey, HashedTokens, Match, Rejection, SessionOver, StepConflict, invariants
from statecore.replica import Replica
from tests.sim.story import small_bounds

Turn: TypeAlias = str | Callable[[], object]


class Told(MemoryTransport):
    """A log in memory with a script: one turn per append, then "ok" for ever.

    A lost message is the first of an outage: `down` is true from then on, and every call fails.
    """

    def __init__(self) -> None:
        super().__init__()
        self.turns: list[Turn] = []
        self.down = False

    def append(self, record: Record, **arguments: Any) -> RawReply:
        if self.down:
            raise Unavailable("told so")
        turn = self.turns.pop(0) if self.turns else "ok"
        if callable(turn):
            turn()
        reply = None if turn == "lost request" else super().append(record, **arguments)
        if turn in ("lost request", "lost reply"):
            self.down = True
            raise OutcomeUnknown("told so", record.commit_id)
        if turn == "interrupted":
            raise KeyboardInterrupt
        assert reply is not None
        return reply

    def read(self, after: int, limit: int) -> tuple[StoredRecord, ...]:
        if self.down:
            raise Unavailable("told so")
        return super().read(after, limit)


class Connected:
    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport

    def log(self, index: str, *, follow: bool = True) -> EventLog:
        return EventLog(index, self.transport, follow=follow, sleep=lambda _: None)

    def indexes(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        """Nothing to end."""


def engine(log: MemoryTransport, name: str, pool: str, blocks: int = 8) -> CacheIndex:
    return CacheIndex(Connected(log), name="i", engine=name, gpu_pool=pool, gpu_blocks=blocks, block_size=1)


def served(index: CacheIndex, request: str, prompt: list[int], *, ready: bool = False) -> None:
    found = index.match(request, prompt)
    if len(prompt) > len(found.blocks):
        index.allocate(request, len(prompt) - len(found.blocks))
        index.extend(request, ready=ready)


def replayed(log: MemoryTransport) -> Replica:
    replica = Replica()
    replica.apply_all(EventLog("i", log).read(0, 1000))
    assert invariants.violations(replica.state) == []
    return replica


@pytest.fixture
def log() -> Told:
    return Told()


# --- the log must stay readable -------------------------------------------------------------------------------------


def test_a_place_is_found_when_another_pool_drops_the_node_meanwhile(log: Told) -> None:
    """Given a node that only another pool held, when a step brings its own copy of it and names it, and the other pool
    drops its copy before the step lands, then every replica still finds the place; else the log can be read by nobody."""
    other, mine = engine(log, "e0", "p"), engine(log, "e1", "q")
    served(other, "r", [1])
    mine.refresh()
    log.turns = [other.close]

    with mine.step():
        served(mine, "a", [1, 2])
        found = mine.match("b", [1, 3])

    assert found.blocks == mine.table("a")[:1]
    assert replayed(log).digest() == mine.digest()


def test_a_place_is_found_after_an_eviction_when_another_pool_splits_the_run_meanwhile(log: Told) -> None:
    """Given a step that evicts a run's tail twice, when another pool comes to hold the first part of the run before the
    step lands, then every replica still finds what the first eviction left."""
    mine, other = engine(log, "e0", "p", blocks=5), engine(log, "e1", "q")
    served(mine, "r", [1, 2, 3, 4, 5], ready=True)
    mine.release("r")
    other.refresh()
    log.turns = [lambda: served(other, "b", [1, 2, 3, 4])]

    with mine.step():
        first, second = mine.allocate(None, 1), mine.allocate(None, 1)

    assert (first.blocks, second.blocks) == ([4], [3])
    assert replayed(log).digest() == mine.digest()


# --- no block is read before it is filled ---------------------------------------------------------------------------


def test_a_second_request_does_not_make_scheduled_blocks_ready(log: Told) -> None:
    """Given a step that schedules a block and matches it by a second request, when the step speaks of the second one
    again, then other engines may still not match the block: nobody has computed it."""
    mine, other = engine(log, "e0", "p"), engine(log, "e1", "p")

    with mine.step():
        served(mine, "a", [1, 2])
        served(mine, "b", [1, 2, 3])
    other.refresh()

    assert other.would_match([1, 2, 3]) == 0


def test_blocks_that_nobody_will_compute_are_given_to_nobody(log: Told) -> None:
    """Given a request that gives up in the step that scheduled it, when a second one has matched its blocks, then they
    do not become ready without anybody having computed them."""
    mine, other = engine(log, "e0", "p"), engine(log, "e1", "p")
    with suppress(Rejection):
        with mine.step():
            served(mine, "a", [1, 2])
            mine.match("b", [1, 2])
            mine.release("a")
        mine.allocate("b", 1)
    other.refresh()

    assert other.would_match([1, 2]) == 0


# --- unknown outcomes -----------------------------------------------------------------------------------------------


def in_doubt(log: Told, act: Callable[[], object], turn: str) -> None:
    """One call whose append comes to `turn`, and whose outcome stays unknown."""
    log.turns = [turn]
    with small_bounds(), pytest.raises(OutcomeUnknown):
        act()
    log.down = False


def test_reading_on_before_resolving_is_harmless(log: Told) -> None:
    """Given an unknown outcome that is in the log, when the engine reads on and then resolves, then the step stands
    once and the engine goes on."""
    index = engine(log, "e0", "p")
    in_doubt(log, lambda: index.match("r", [1]), "lost reply")

    index.refresh()

    assert index.resolve()
    assert index.requests() == ("r",)
    index.release("r")
    assert replayed(log).digest() == index.digest()


def test_a_step_that_landed_before_the_fence_is_told_as_done(log: Told) -> None:
    """Given a step that landed, when its reply is lost and another process then takes over the name, then the step is
    not told as refused: it is in the log."""
    index = engine(log, "e0", "p")
    late: list[Callable[[], object]] = []

    append = log.append

    def first(record: Record, **arguments: Any) -> RawReply:
        late.append(lambda: append(record, **arguments))
        log.append = second  # type: ignore[method-assign]
        raise OutcomeUnknown("told so", record.commit_id)

    def second(record: Record, **arguments: Any) -> RawReply:
        log.append = append  # type: ignore[method-assign]
        late[0]()
        engine(log, "e0", "p")
        return append(record, **arguments)

    log.append = first  # type: ignore[method-assign]
    landed = len(log.read(0, 100))
    try:
        index.match("r", [1])
    except SessionOver:
        assert len(log.read(0, 100)) == landed + 1, "told that nothing happened, but the log holds it"


def test_an_interrupted_append_is_in_doubt(log: Told) -> None:
    """Given Ctrl-C while the reply was awaited, when the commit had landed, then the engine does not go on as if it had
    not: it is asked to resolve first."""
    index = engine(log, "e0", "p")
    log.turns = ["interrupted"]
    with pytest.raises(KeyboardInterrupt):
        index.match("r", [1])

    with pytest.raises(Unavailable, match="resolve"):
        index.match("other", [1])
    assert index.resolve()
    assert index.requests() == ("r",)


def test_who_failed_to_rejoin_is_not_told_that_the_step_stands(log: Told) -> None:
    """Given an unknown outcome and a failed attempt to rejoin, when the engine resolves, then it is not told True for a
    step that is not in the log."""
    index = engine(log, "e0", "p")
    in_doubt(log, lambda: index.match("r", [1]), "lost request")
    log.down = True
    with small_bounds(), pytest.raises(Unavailable):
        index.rejoin()
    log.down = False

    try:
        stands = index.resolve()
    except SessionOver:
        stands = False
    assert not stands
    assert not replayed(log).state.engines["e0"].requests


def test_who_failed_to_rejoin_acts_for_nobody(log: Told) -> None:
    """Given a process that neither has its old life nor a new one, when it calls, then it is refused at once and is not
    answered from the life of the process that took over."""
    index = engine(log, "e0", "p")
    successor = engine(log, "e0", "p")
    served(successor, "theirs", [1], ready=True)
    in_doubt(log, index.rejoin, "lost request")
    successor.allocate(None, 1)
    assert not index.resolve()

    with pytest.raises(SessionOver), index.step():
        assert index.match("mine", [1]) == Match("mine"), "answered from the life of another process"


def test_a_rejoin_that_was_unknown_begins_with_nothing(log: Told) -> None:
    """Given a rejoin whose outcome was unknown, when it turns out to stand, then the old life's requests are forgotten
    as after any rejoin."""
    index = engine(log, "e0", "p")
    index.match("r", [1])
    in_doubt(log, index.rejoin, "lost reply")
    assert index.resolve()

    with pytest.raises(Exception, match="never matched"):
        index.extend("r", blocks=2)


def test_leaving_in_doubt_leaves(log: Told) -> None:
    """Given an unknown outcome, when the index is closed, then either the engine has left, or the caller is told that
    it has not: its blocks stay pinned otherwise, and nobody knows."""
    index = engine(log, "e0", "p")
    in_doubt(log, lambda: index.match("r", [1]), "lost reply")
    try:
        index.close()
    except (Unavailable, SessionOver):
        return
    assert not replayed(log).state.engines["e0"].alive


# --- steps ----------------------------------------------------------------------------------------------------------


def test_a_path_told_in_a_step_has_that_length_at_its_end(log: Told) -> None:
    """Given a step that was told how far a path reaches, when another engine of the pool schedules the same content
    first, then the step stands with that length or does not stand."""
    mine, other = engine(log, "e0", "p"), engine(log, "e1", "p")
    mine.match("a", [1, 2])
    mine.allocate("a", 2)
    log.turns = [lambda: served(other, "b", [1, 2])]
    try:
        with mine.step():
            answer = mine.extend("a")
            told = answer.path_blocks
    except StepConflict:
        assert mine.path_blocks("a") == 0
    else:
        assert (answer.path_blocks, mine.path_blocks("a")) == (told, told)


def test_a_path_told_in_a_step_does_not_grow_either(log: Told) -> None:
    """Given a step that was told that a path stops short, when what stopped it is gone meanwhile, then the path still
    has the length told."""
    mine, other = engine(log, "e0", "p"), engine(log, "e1", "p")
    mine.match("a", [1, 2])
    mine.allocate("a", 2)
    served(other, "b", [1])
    mine.refresh()

    def away() -> None:
        other.release("b")
        other.allocate(None, 1)

    log.turns = [away]
    try:
        with mine.step():
            mine.allocate(None, 1)
            answer = mine.extend("a")
            told = answer.path_blocks
    except StepConflict:
        assert mine.path_blocks("a") == 0
    else:
        assert (answer.path_blocks, mine.path_blocks("a")) == (told, told)


@pytest.mark.parametrize("call", ["refresh", "rejoin"])
def test_what_cannot_be_done_inside_a_step_is_refused(log: Told, call: str) -> None:
    """Given a step, when the engine refreshes or rejoins inside it, then that is refused in words, and its life goes
    on."""
    index = engine(log, "e0", "p")

    with pytest.raises(InvalidInput, match="step"), index.step():
        getattr(index, call)()

    index.match("r", [1])
    assert index.requests() == ("r",)


# --- the door -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [None, 5, iter([1])], ids=["none", "a number", "an iterator"])
def test_extending_by_what_is_no_list_is_refused(log: Told, tokens: Any) -> None:
    """Given something that is not a list of tokens, then the error is ours and says so."""
    index = engine(log, "e0", "p")
    index.match("r", [1])

    with pytest.raises(InvalidInput):
        index.extend("r", tokens)


@pytest.mark.parametrize("extra", [(b"x", 0, 2**70), (b"x", 0, 1.5), (b"x", "0", 1), b"x", None], ids=repr)
def test_extra_keys_that_are_none_are_refused(log: Told, extra: Any) -> None:
    """Given an extra key out of bounds or of another type, then the error is ours and says so."""
    with pytest.raises(InvalidInput):
        engine(log, "e0", "p").match("r", [1], extra=[ExtraKey(*extra) if isinstance(extra, tuple) else extra])


@pytest.mark.parametrize("block_size", [0, -1, 2**40, 1.5], ids=repr)
def test_a_block_size_that_is_none_is_refused(block_size: Any) -> None:
    """Given a size that no block has, then hashing refuses it: the class is public."""
    with pytest.raises(InvalidInput):
        HashedTokens.begin(block_size).extend([1, 2])


def test_history_that_is_broken_stays_broken(log: Told) -> None:
    """Given a log that was rolled back, when the engine calls again and again, then it is told so each time, until it
    rejoins; and then it goes on."""
    index = engine(log, "e0", "p")
    other = engine(log, "e1", "q")
    index.match("r", [1])
    del log._records[2:]
    log._versions = {scope: min(version, 2) for scope, version in log._versions.items()}
    other.match("r", [1])

    for _ in range(2):
        with pytest.raises(CorruptState, match="diverged"):
            index.release("r")
    index.rejoin()

    assert index.requests() == ()
    other.refresh()
    assert index.digest() == other.digest()
