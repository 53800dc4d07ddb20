"""A reply that never came: what the caller may do before it is known whether the step stands.

How the log finds out is the business of the contract suite; here is what the session does with the answer.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from events import connect
from events.errors import OutcomeUnknown, StateCoreError, Unavailable
from events.log import EventLog, LogConnection
from events.ports import AppendReply, Base, Commit
from statecore import CacheIndex, SessionOver
from statecore.invariants import violations

TOKENS = list(range(8))


class LossyLog:
    """A log that loses the next request, or the reply to it."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.lose: str = ""
        self.error: Callable[[str], BaseException] = lambda commit: OutcomeUnknown("no reply", commit)

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def append(self, commit: Commit, base: Base) -> AppendReply:
        lose, self.lose = self.lose, ""
        if lose == "request":
            raise self.error(commit.id)
        reply = self._log.append(commit, base)
        if lose == "reply":
            raise self.error(commit.id)
        return reply


class LossyConnection:
    """A connection whose logs can be told to lose something."""

    def __init__(self, connection: LogConnection) -> None:
        self._connection = connection
        self.last: LossyLog | None = None

    def log(self, index: str, *, follow: bool = True) -> LossyLog:
        self.last = LossyLog(self._connection.log(index, follow=follow))
        return self.last


class Pair:
    """Engine a over a lossy log with request r, its path pending; engine b over the same log."""

    def __init__(self) -> None:
        self.memory = connect("memory://")
        lossy = LossyConnection(self.memory)
        self.a = CacheIndex(lossy, name="i", engine="a", gpu_pool="g", gpu_blocks=12, block_size=4)  # type: ignore[arg-type]
        self.b = CacheIndex(self.memory, name="i", engine="b", gpu_pool="g", block_size=4)
        assert lossy.last is not None
        self.log = lossy.last
        self.a.match("r", TOKENS)
        self.a.allocate("r", 2)
        self.a.extend("r")

    def must_agree(self) -> None:
        self.a.refresh()
        self.b.refresh()
        assert self.a.digest() == self.b.digest()
        assert self.a.inspect(violations) == []


CALLS: dict[str, Callable[[CacheIndex], object]] = {
    "allocate": lambda index: index.allocate("r", 3),
    "match": lambda index: index.match("s", TOKENS),
    "ready": lambda index: index.ready("r"),
    "release": lambda index: index.release("r"),
}


@pytest.fixture
def pair() -> Pair:
    return Pair()


@pytest.mark.parametrize("lose", ["request", "reply"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_in_doubt_then_resolved(pair: Pair, lose: str, call: Callable[[CacheIndex], object]) -> None:
    """A step is told to have failed and stands, or is told to stand and was lost."""
    before = pair.a.digest()
    pair.log.lose = lose

    with pytest.raises(OutcomeUnknown):
        call(pair.a)
    assert pair.a.digest() == before
    pair.b.match("q", TOKENS)

    assert pair.a.resolve() is True
    assert pair.a.resolve() is True
    pair.must_agree()
    assert pair.a.digest() != before


def test_nothing_is_accepted_while_in_doubt(pair: Pair) -> None:
    """A second step is decided on a state that may never have been."""
    pair.log.lose = "reply"
    with pytest.raises(OutcomeUnknown):
        pair.a.release("r")

    for call in CALLS.values():
        with pytest.raises(Unavailable, match="call resolve"):
            call(pair.a)
    assert pair.a.would_match(TOKENS) == 2
    assert pair.a.requests() == ("r",)
    pair.a.resolve()
    assert pair.a.requests() == ()


def test_somebody_was_faster_and_the_request_was_lost(pair: Pair) -> None:
    """A step that never happened is told to stand."""
    pair.log.lose = "request"
    with pytest.raises(OutcomeUnknown):
        pair.a.allocate("r", 3)
    pair.b.allocate(None, 1)

    assert pair.a.resolve() is False
    assert pair.a.table("r") == [0, 1]
    pair.must_agree()
    assert pair.a.allocate("r", 3).blocks == [3, 4, 5]


def test_rejoining_instead(pair: Pair) -> None:
    """A commit that arrives late is taken into the new life."""
    pair.log.lose = "reply"
    with pytest.raises(OutcomeUnknown):
        pair.a.allocate("r", 3)

    pair.a.rejoin()

    assert pair.a.session == 2
    assert pair.a.requests() == ()
    pair.must_agree()


def test_the_life_ended_meanwhile(pair: Pair) -> None:
    """A step of a life that is over is told to stand, or the caller waits for ever."""
    pair.log.lose = "request"
    with pytest.raises(OutcomeUnknown):
        pair.a.allocate("r", 3)
    CacheIndex(pair.memory, name="i", engine="a", gpu_pool="g", block_size=4)

    with pytest.raises(SessionOver):
        pair.a.resolve()
    with pytest.raises(SessionOver):
        pair.a.match("s", TOKENS)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_reading_the_log_while_in_doubt(pair: Pair, call: Callable[[CacheIndex], object]) -> None:
    """A caller who refreshes before it resolves has a replica that holds the step twice, or goes back in time."""
    pair.log.lose = "reply"
    with pytest.raises(OutcomeUnknown):
        call(pair.a)
    pair.b.match("q", TOKENS)

    pair.a.refresh()

    assert pair.a.resolve() is True
    assert pair.a.position == pair.b.refresh()
    pair.must_agree()
    pair.a.match("another", TOKENS)


def test_an_interrupt_while_the_reply_is_under_way(pair: Pair) -> None:
    """Ctrl-C tells the caller that nothing happened; the blocks are the request's all the same, and show up later."""
    pair.log.lose, pair.log.error = "reply", KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        pair.a.allocate("r", 3)

    with pytest.raises(StateCoreError, match="resolve"):
        pair.a.allocate("r", 1)
    assert pair.a.resolve() is True
    assert pair.a.table("r") == [0, 1, 2, 3, 4]
