"""When an engine may begin something, by its lease: a clock that the test moves, the log in memory, a line that breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from events import RolledBack, Unavailable, limits
from events.lease import Lease
from events.log import EventLog
from events.memory import MemoryTransport
from events.ports import Base, Diverged, Fenced, RenewReply
from statecore import CacheIndex, SessionOver
from tests.contract.commits import filled
from tests.contract.timed import Clock, Timed

HERE = Base(3, "c3")


@attrs.define
class Line:
    """The log in memory behind a line that takes time and may be cut. Counts what was asked."""

    inner: MemoryTransport
    clock: Clock
    cut: bool = False
    takes_s: float = 0.0
    asked: int = 0

    def renew_lease(self, engine: str, session: int, base: Base) -> RenewReply:
        self.asked += 1
        self.clock.move(self.takes_s)
        if self.cut:
            raise Unavailable("the line is cut")
        return self.inner.renew_lease(engine, session, base)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@attrs.define
class Held:
    """A lease of engine a's first life, on a log of three commits."""

    timed: Timed
    clock: Clock
    line: Line
    lease: Lease
    base: Base


@pytest.fixture
def held() -> Held:
    clock = Clock()
    transport = MemoryTransport(clock)
    timed = Timed.over(transport, clock)
    filled(timed.log(), 3)
    line = Line(transport, clock)
    made = Held(timed, clock, line, lease=None, base=HERE)  # type: ignore[arg-type]
    made.lease = Lease(line, "a", 1, lambda: made.base, clock)
    return made


def test_a_lease_that_was_just_renewed_is_trusted(held: Held) -> None:
    """Otherwise every step would cost a request more.

    Given a lease renewed a moment ago, when asked whether the life stands, then yes, without asking anybody.
    """
    held.clock.move(limits.LEASE_TRUST_S)

    assert held.lease.standing() is None

    assert held.line.asked == 0


def test_an_old_one_is_asked_for_once(held: Held) -> None:
    """Otherwise an engine whose thread was starved could never begin anything again.

    Given a lease renewed longer ago than it is trusted, when asked, then the log is; and not again for as long.
    """
    held.clock.move(limits.LEASE_TRUST_S + 0.1)

    assert [held.lease.standing() for _ in range(3)] == [None] * 3

    assert held.line.asked == 1


def test_who_cannot_be_heard_is_not_trusted(held: Held) -> None:
    """E-43: otherwise an engine cut off from the log would go on with blocks that others are given.

    Given a line that is cut, when the lease is too old, then Unavailable at every question, until the line is back.
    """
    held.line.cut = True
    assert held.lease.standing() is None
    held.clock.move(limits.LEASE_TRUST_S + 0.1)

    for _ in range(3):
        with pytest.raises(Unavailable):
            held.lease.standing()

    held.line.cut = False
    assert held.lease.standing() is None


def test_what_counts_is_when_the_question_left(held: Held) -> None:
    """Otherwise a slow line would make a lease look younger than the log thinks it is.

    Given a renewal that takes four seconds, when two more have gone by, then it is asked for again.
    """
    held.line.takes_s = limits.LEASE_TRUST_S - 1.0
    held.lease.renew()
    held.line.takes_s = 0.0
    held.clock.move(2.0)

    held.lease.standing()

    assert held.line.asked == 2


@pytest.mark.parametrize(
    ("base", "session", "verdict"),
    [(HERE, 0, Fenced(1)), (Base(3, "other"), 1, Diverged(3, "c3")), (Base(9, "c9"), 1, Diverged(9, ""))],
)
def test_what_was_said_against_it_is_remembered(
    held: Held, base: Base, session: int, verdict: Fenced | Diverged
) -> None:
    """Otherwise an engine that was told once would be trusted the next time.

    Given a fence, or another history, when renewed, then `standing` says so from then on, and nobody is asked again.
    """
    held.timed.transport._fences["a"] = 1  # type: ignore[attr-defined]
    lease = Lease(held.line, "a", session, lambda: base, held.clock)

    lease.renew()
    held.clock.move(limits.LEASE_TRUST_S * 3)

    assert [lease.standing() for _ in range(2)] == [verdict] * 2
    assert held.line.asked == 1


def test_a_lease_without_a_thread_is_asked_for(held: Held) -> None:
    """Otherwise an engine that could not leave would work on in a life that may be over.

    Given a lease that is not renewed in the background any more, when it has grown old, then `standing` asks, and hears.
    """
    held.base = Base(3, "other")
    held.lease.close()
    held.clock.move(limits.LEASE_TRUST_S * 2)

    assert held.lease.standing() == Diverged(3, "c3")


def test_the_life_is_the_one_in_which_history_was_seen_to_go_on(held: Held) -> None:
    """Otherwise an engine behind a trim could not tell a restart that lost something from none.

    Given renewals in two lives of the server, then the lease knows the last in which the log vouched for its history;
    for what is trimmed nobody vouches.
    """
    memory = held.line.inner
    memory.begin_life("one")
    held.lease.renew()
    assert held.lease.life == "one"
    memory.begin_life("two")
    memory.trim(3)
    held.base = Base(1, "c1")

    held.lease.renew()
    assert held.lease.life == "one"
    held.base = HERE
    held.lease.renew()
    assert held.lease.life == "two"


# --- an engine ------------------------------------------------------------------------------------------------------


@attrs.define
class Cut:
    """A place whose log is behind a `Line`. Implements `events.ports.Connection`."""

    line: Line

    def log(self, index: str, *, follow: bool = True) -> EventLog:
        return EventLog(index, self.line, follow=follow, sleep=lambda _s: None, clock=self.line.clock, threads=False)

    def indexes(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None: ...


@pytest.fixture
def line() -> Line:
    clock = Clock()
    return Line(MemoryTransport(clock), clock)


def engine(line: Line) -> CacheIndex:
    return CacheIndex(Cut(line), name="i", engine="a", gpu_blocks=8, block_size=4, follow=False)


@pytest.mark.parametrize("call", ["match", "step", "poll", "release"])
def test_nothing_is_begun_on_a_lease_that_nobody_heard_of(line: Line, call: str) -> None:
    """E-43: otherwise an engine cut off for a minute would answer with hits on blocks that are another's by now.

    Given an engine whose renewals have not got through for longer than trusted, when it begins something, then
    Unavailable, and nothing changed; questions are answered; when the line is back, so is the engine.
    """
    index = engine(line)
    index.match("r", [1, 2, 3, 4])
    line.cut = True
    line.clock.move(limits.LEASE_TRUST_S + 0.1)
    position = line.inner.position
    calls: dict[str, Callable[[], object]] = {
        "match": lambda: index.match("s", [1]),
        "step": lambda: index.step().__enter__(),
        "poll": lambda: index.poll("a:0"),
        "release": lambda: index.release("r"),
    }

    with pytest.raises(Unavailable, match="cut"):
        calls[call]()

    assert (index.requests(), index.can_allocate(1)) == (("r",), True)
    assert line.inner.position == position
    line.cut = False
    index.release("r")
    assert index.requests() == ()


def test_an_idle_engine_hears_at_its_next_call(line: Line) -> None:
    """Otherwise its step would be decided, and computed on, before the log refuses it.

    Given an engine fenced, or rolled back, of which its renewal has heard, when it begins something, then it is told
    without an append.
    """
    fenced, rolled = engine(line), CacheIndex(Cut(line), name="i", engine="b", gpu_blocks=8, block_size=4, follow=False)
    line.inner._fences["a"] = 2
    fenced._log.renew_lease()  # type: ignore[attr-defined]
    with pytest.raises(SessionOver):
        fenced.match("r", [1])
    del line.inner._records[-1]
    rolled._log.renew_lease()  # type: ignore[attr-defined]

    with pytest.raises(RolledBack):
        rolled.match("r", [1])
