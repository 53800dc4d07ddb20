"""A keeper's other duties: one acts, dead engines are declared lost, lost jobs are rung, a vanished history is left."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

import statecore.index
from events import limits
from events.errors import InvalidInput
from events.facts import EngineLost, HistoryLost, PoolDropped
from events.job_queue import JobDoorbell
from events.keeping import Keeping
from events.log import EventLog, LogConnection
from events.memory import MemoryTransport
from events.memory_jobs import MemoryJobs
from events.snapshots import Snapshots
from statecore import CacheIndex
from statecore.rejections import SessionOver
from tests.keeper.given import BLOCK_SIZE, Clock, engine_of, keeper_of, work
from workers.lease_watch import LeaseWatch


class Place:
    """A log in memory whose leases run out by the test's clock. Implements `events.ports.Connection`."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.log_in_memory = MemoryTransport(self.clock)
        self.logs: list[EventLog] = []

    def log(self, index: str, *, follow: bool = True) -> EventLog:
        log = EventLog(
            index, self.log_in_memory, follow=follow, clock=self.clock, sleep=self.clock.passes, threads=False
        )
        self.logs.append(log)
        return log

    def keeping(self, index: str) -> Keeping:
        jobs = MemoryJobs(self.log_in_memory, self.clock)
        return Keeping(
            self.log(index, follow=False),
            Snapshots(self.log_in_memory.snapshots),
            JobDoorbell(jobs),
            self.log_in_memory,
        )

    def indexes(self) -> tuple[str, ...]:
        return ("x",)

    def close(self) -> None:
        """Nothing to close."""

    def engine(self, name: str, **given: Any) -> CacheIndex:
        return CacheIndex(self, name="x", engine=name, gpu_blocks=16, block_size=BLOCK_SIZE, follow=False, **given)


@pytest.fixture
def place() -> Place:
    return Place()


def test_one_of_several_keepers_acts(connection: LogConnection, index_name: str) -> None:
    """Two authorities on one index work twice and get in each other's way (E-46).

    Given two keepers, when both take turns, then one acts; when it stops, then the other acts after the time to live.
    """
    engine = engine_of(connection, index_name)
    work(engine, 10)
    one, said_one = keeper_of(connection, index_name)
    two, said_two = keeper_of(connection, index_name)

    for _ in range(3):
        one.turn()
        two.turn()

    assert [one.totals.acting, two.totals.acting] == [True, False]
    assert len(said_one.of("published")) == 1
    assert not said_two.of("published")
    assert two.totals.position == one.totals.position, "the one that waits has a warm replica"


def test_the_next_keeper_takes_over(place: Place) -> None:
    """The death of the acting keeper costs nothing but time."""
    engine_of(place, "x")
    one, _ = keeper_of(place, "x", clock=place.clock)
    two, _ = keeper_of(place, "x", clock=place.clock)
    one.turn()
    two.turn()
    before = [one.totals.acting, two.totals.acting]

    place.clock.now += limits.KEEPER_TTL_S + 0.1
    two.turn()
    one.turn()

    assert before == [True, False]
    assert [one.totals.acting, two.totals.acting] == [False, True]


def test_an_engine_without_a_sign_of_life_is_declared_lost(place: Place) -> None:
    """A dead engine would keep its blocks for ever (E-25, E-45).

    Given an engine with a live request that stops renewing, when its lease has been missing for long enough, then it is
    lost, its blocks are free, the memory of its pool forgotten; and what it tries then changes nothing and says why.
    """
    dead, other = place.engine("dead"), place.engine("other")
    dead.match("r", [1, 2, 3, 4] * 3)
    dead.allocate("r", 3)
    dead.extend("r", ready=True)
    other_log = place.logs[-1]
    keeper, said = keeper_of(place, "x", clock=place.clock)

    for _ in range(40):
        place.clock.now += 0.5
        other_log.renew_lease()
        keeper.turn()

    (deposed,) = said.of("deposed")
    assert deposed["engine"] == "dead"
    other.refresh()
    assert other.inspect(lambda state: state.engines["dead"].alive) is False
    assert other.inspect(lambda state: state.pools["gpu:dead"].free.total) == 16
    facts = [fact for entry in place.logs[0].read(0) for fact in entry.facts]
    assert [type(fact) for fact in facts if isinstance(fact, EngineLost | PoolDropped)] == [EngineLost, PoolDropped]
    position = place.logs[0].head().position
    with pytest.raises(SessionOver, match="no sign of life"):
        dead.allocate("r", 1)
    assert place.logs[0].head().position == position


def test_the_keepers_name_is_no_engines(place: Place) -> None:
    """An engine's session under that name would fence the keeper off: nobody would be declared lost any more.

    Given an engine that wants to be called "keeper", then it is refused; and if one of an older release has joined all the
    same, the keeper says that it can do nothing.
    """
    with pytest.raises(InvalidInput, match="'keeper' is the keeper's"):
        place.engine("keeper")
    with mock.patch.object(statecore.index, "checked_engine", lambda name: name):
        place.engine("keeper")
    place.engine("dead")
    keeper, said = keeper_of(place, "x", clock=place.clock)

    for _ in range(30):
        place.clock.now += 0.5
        keeper.turn()

    assert keeper.totals.deposed == 0
    assert "joined under the keeper's name" in str(said.of("refused")[0]["reason"])


def test_memory_that_survives_is_not_forgotten(place: Place) -> None:
    """What another process still holds in its memory would be computed again for nothing."""
    dead = place.engine("dead", memory_survives=True)
    dead.match("r", [1, 2, 3, 4])
    dead.allocate("r", 1)
    dead.extend("r", ready=True)
    keeper, _ = keeper_of(place, "x", clock=place.clock)
    for _ in range(40):
        place.clock.now += 0.5
        keeper.turn()

    again = place.engine("dead", memory_survives=True)

    assert keeper.totals.deposed == 1
    assert len(again.match("s", [1, 2, 3, 4]).blocks) == 1


def test_an_engine_that_renews_in_time_is_spared(place: Place) -> None:
    """A keeper that looked a moment too early must not end a life that goes on: the log has the last word.

    Given a lease that is renewed between the keeper's look and its commit, then the commit is refused.
    """
    engine = place.engine("slow")
    lease = place.logs[0]
    keeper, said = keeper_of(place, "x", clock=place.clock)
    place.clock.now += limits.LEASE_TTL_S + 1
    keeper.turn()
    place.clock.now += limits.LEASE_GRACE_S + 1

    look = place.log_in_memory.leases

    def renewed_just_now(engines: list[str]) -> tuple[bool, ...]:
        held = look(engines)
        lease.renew_lease()
        return held

    place.log_in_memory.leases = renewed_just_now  # type: ignore[method-assign, assignment]
    keeper.turn()

    assert (keeper.totals.deposed, keeper.totals.spared) == (0, 1)
    assert not said.of("deposed")
    assert engine.allocate(None, 1).blocks == [0]


def test_a_server_that_was_away_makes_nobody_suspect() -> None:
    """A restart of Redis takes all leases along; deposing everybody then would throw a fleet's work away."""
    watch = LeaseWatch(patience_s=3.0)
    gone = [("a", 1, False)]

    assert watch.look(gone, 10.0) == []
    watch.lost_contact()
    assert watch.look(gone, 14.0) == []
    assert watch.look(gone, 17.0) == [("a", 1, 3.0)]
    assert watch.look([("a", 2, False)], 30.0) == [], "another life, another beginning"


def test_a_rolled_back_log_is_noticed_and_left(place: Place) -> None:
    """A keeper that goes on with a vanished history would publish it; and if nobody else commits, workers would wait for
    ever for the lost end to be dealt with.

    Given a log that has lost its end, when the keeper takes its turn, then it begins anew on what is there, says so once,
    and appends HistoryLost when the log opens.
    """
    engine = place.engine("a")
    work(engine, 3)
    keeper, said = keeper_of(place, "x", clock=place.clock)
    keeper.turn()
    position = keeper.totals.position
    log = place.log("x", follow=False)
    known = log.head().commit_id
    del place.log_in_memory._records[5:]
    place.log_in_memory._versions = {scope: min(at, 5) for scope, at in place.log_in_memory._versions.items()}
    place.log_in_memory.begin_life("next")

    keeper.turn()

    assert len(said.of("rolled_back")) == 1
    assert said.of("history_lost") == [{"commit": known, "position": 6}]
    assert log.read(5, 10)[0].facts == (HistoryLost("keeper", known),)
    assert log.head().loss == ""
    keeper.turn()
    assert (len(said.of("history_lost")), keeper.totals.position) == (1, 6)
    assert position > 6
