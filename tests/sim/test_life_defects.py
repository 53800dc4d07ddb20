"""What the simulator found in leases and in lives of the server, each by the shortest story.

Owns the stories. What is not mended yet has a switch in `known.py`.
"""

from __future__ import annotations

import pytest

from events import limits
from events.errors import OutcomeUnknown, RolledBack, Unavailable
from events.job_ports import Seat
from events.job_queue import JobQueue
from events.log import EventLog
from events.memory import MemoryTransport
from events.memory_jobs import MemoryJobs
from events.ports import Appended, Base, Diverged, RawReply, Record, RenewReply
from statecore import CacheIndex, SessionOver
from tests.jobs.given import commit
from tests.sim.story import small_bounds


class Server(MemoryTransport):
    """A log whose end can be lost, and whose replies can."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: self.seconds)
        self.seconds = 0.0
        self.silent = self.away = self.deaf = False
        self.takes_s = 0.0

    def clock(self) -> float:
        return self.seconds

    def append(self, record: Record, **arguments: object) -> RawReply:
        self.seconds += self.takes_s
        if self.silent:
            raise OutcomeUnknown("told so", record.commit_id)
        if self.away:
            raise Unavailable("away", lasting=True)
        return super().append(record, **arguments)  # type: ignore[arg-type]

    def renew_lease(self, engine: str, session: int, base: Base) -> RenewReply:
        if self.deaf:
            raise Unavailable("nobody hears")
        return super().renew_lease(engine, session, base)

    def lose_after(self, position: int) -> None:
        del self._records[position:]
        self.begin_life("second")
        self.closed_for()
        self.seconds += limits.BARRIER_S


class Connected:
    def __init__(self, log: Server) -> None:
        self._log = log

    def log(self, index: str, *, follow: bool = True) -> EventLog:  # noqa: ARG002
        return EventLog(index, self._log, sleep=lambda _: None, clock=self._log.clock, threads=False)

    def indexes(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        """Nothing to end."""


def engine(log: Server, name: str) -> CacheIndex:
    return CacheIndex(
        Connected(log), name="i", engine=name, gpu_pool="p", gpu_blocks=8, block_size=1, memory_survives=True
    )


def test_a_doubt_is_not_resolved_on_top_of_a_history_that_is_gone() -> None:
    """Given an engine that reads on while the fate of its commit is unknown, when the server loses what it read and the
    commit lands after all, then it hears that history was rolled back; else it goes on with a state that no log gives (P2).
    """
    server = Server()
    mine, other = engine(server, "e0"), engine(server, "e1")
    mine.refresh()
    server.silent = True
    with small_bounds(), pytest.raises(OutcomeUnknown):
        mine.match("r", [1])
    server.silent = False
    other.match("s", [2])
    mine.refresh()

    server.lose_after(2)
    engine(server, "e2")

    with pytest.raises(RolledBack):
        mine.resolve()


def test_a_worker_whose_seat_was_lost_sits_down_again() -> None:
    """Given a worker, when the server loses its seat and its heartbeat, then after its next heartbeat its reports count
    again; else it copies the same job for ever and nobody is told (E-25)."""
    jobs = MemoryJobs(Server(), lambda: 0.0)
    queue = JobQueue(jobs, Seat("p", 0, "w"), 1, sleep=lambda _: None, clock=lambda: 0.0)
    queue.enter()
    jobs._seats.clear()
    jobs._heartbeats.clear()

    queue.beat("ready")

    assert list(jobs._seats.values()) == [queue._life]


def test_a_life_of_a_lost_history_keeps_nobodys_lease() -> None:
    """Given an engine's life that began in a history that is gone, when the log is trimmed beyond what it knows, then it
    cannot renew the lease of the life that the log calls alive: that one would never be declared lost (E-45)."""
    server = Server()
    engine(server, "e0")
    with server.changed:
        server.trim(2)

    reply = server.renew_lease("e0", 2, Base(0, ""))

    assert isinstance(reply, Diverged)


def test_a_process_that_knows_its_end_drops_its_lease() -> None:
    """Given an engine that was told that its history is gone, then its lease runs out, so that the keeper can end what the
    log still calls alive; else its requests stay as long as its process (E-45)."""
    server = Server()
    mine = engine(server, "e0")
    mine.match("r", [1])
    server.lose_after(1)

    with pytest.raises(RolledBack):
        mine.refresh()

    assert mine._log._lease is None  # type: ignore[attr-defined]


class Overtaking(Server):
    """The first append arrives just before the second one, and somebody tells of a loss in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first: tuple[Record, dict[str, object]] | None = None

    def append(self, record: Record, **arguments: object) -> RawReply:
        if self.first is None:
            self.first = (record, arguments)
            raise OutcomeUnknown("on its way", record.commit_id)
        late, named = self.first
        super().append(late, **named)
        self.note_loss(Base(9, "c9"))
        return super().append(record, **arguments)


def test_what_landed_before_a_loss_was_told_is_found() -> None:
    """Given a commit whose first try arrives late, when somebody tells of a loss before its second try, then it is found;
    else it is decided again, and in the log twice (P1).
    """
    log = EventLog("i", Overtaking(), sleep=lambda _: None, threads=False)

    assert log.append(commit("c1"), Base(0, "")) == Appended(1, ())


def test_a_commit_whose_life_nobody_can_vouch_for_is_not_worked_on() -> None:
    """Given a step whose append takes so long that its lease has run out, when the log cannot be asked about the life, then
    the step's outcome is unknown, until it can; else its kernels may write into blocks that are others' by then (P5).
    """
    server = Server()
    mine = engine(server, "e0")
    server.takes_s, server.deaf = limits.LEASE_TTL_S * 2, True

    with pytest.raises(OutcomeUnknown, match="it is in the log, but whether this life still goes on was not heard"):
        mine.match("r", [1])
    with pytest.raises(OutcomeUnknown):
        mine.resolve()

    server.takes_s, server.deaf = 0.0, False
    assert mine.resolve()
    assert (mine.requests(), server.position) == (("r",), 2)


def test_who_leaves_late_has_left() -> None:
    """Given an engine whose last commit takes longer than its lease, when it has landed, then the engine has left, and
    begins no next life by itself; else it would hear of its own fence, and take it for somebody else's.
    """
    server = Server()
    mine = CacheIndex(Connected(server), name="i", engine="e0", gpu_blocks=8, block_size=1, rejoin_automatically=True)
    server.takes_s = limits.LEASE_TTL_S * 2

    mine.close()

    for _ in range(2):
        with pytest.raises(SessionOver):
            mine.match("r", [1])
    assert server.position == 2


def test_who_closed_in_vain_asks_before_it_works_on() -> None:
    """Given an engine that could not leave because the server was away, when it is used again, and cannot be heard, then it
    begins nothing; else it works on although its lease has run out (P5).
    """
    server = Server()
    mine = engine(server, "e0")
    server.away = server.deaf = True
    with pytest.raises(Unavailable):
        mine.close()
    server.away = False
    server.seconds += limits.LEASE_TTL_S * 2

    with pytest.raises(Unavailable, match="nobody hears"):
        mine.match("r", [1])

    server.deaf = False
    mine.match("r", [1])
