"""Snapshots by the keeper: a restart is bounded, the log is too, and no death on the way loses anything."""

from __future__ import annotations

import logging
import time
from typing import Any
from unittest import mock

import pytest

from events import connect, limits
from events.errors import CorruptState
from events.job_ports import Delivery
from events.job_queue import JobQueue
from events.keys import IndexKeys
from events.log import EventLog, LogConnection
from events.memory import MemoryTransport
from events.ports import SnapshotPointer
from statecore import CacheIndex, invariants, snapshot
from statecore.replica import Replica
from statecore.restoring import up_to_date
from tests.keeper.given import (
    EVERY,
    MARGIN,
    Clock,
    Dies,
    bounds,
    engine_of,
    keeper_of,
    small_margin,
    with_shelf,
    work,
)
from workers.keeper_totals import KeeperSettings


def fresh(connection: LogConnection, index: str) -> Replica:
    """What a process that starts now comes to."""
    return up_to_date(connection.log(index, follow=False))


def test_a_new_process_starts_from_a_snapshot_when_the_log_before_it_is_gone(
    connection: LogConnection, index_name: str
) -> None:
    """Without it a restart replays for ever longer, or cannot start at all.

    Given snapshots taken and the log trimmed behind them, when a process starts, then it has the state of the others.
    """
    engine = engine_of(connection, index_name)
    keeper, said = keeper_of(connection, index_name)

    with small_margin():
        for turn in range(4):
            work(engine, 12, f"t{turn}-")
            keeper.turn()

    head = connection.log(index_name).head()
    assert len(said.of("published")) == 4
    assert head.first > 1, "the log was trimmed"
    late = engine_of(connection, index_name, "late")
    engine.refresh()
    assert late.digest() == engine.digest()
    assert invariants.violations(fresh(connection, index_name).state) == []


def test_the_log_keeps_what_the_previous_snapshot_needs(connection: LogConnection, index_name: str) -> None:
    """If the newest snapshot turns out unreadable, the previous one and the log must still give the state (E-28, E-29)."""
    engine = engine_of(connection, index_name)
    keeper, _ = keeper_of(connection, index_name)

    with small_margin():
        for turn in range(5):
            work(engine, 8, f"t{turn}-")
            keeper.turn()
            pointers = connection.keeping(index_name).shelf.pointers()
            first = connection.log(index_name).head().first
            lowest = pointers[-1].position + 1 if len(pointers) == 2 else 1
            assert first <= lowest
            assert first <= max(1, pointers[0].position - MARGIN + 1)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", ["upload", "fetch", "publish"])
def test_a_keeper_that_dies_on_the_way_costs_nothing(
    connection: LogConnection, index_name: str, call: str, after: bool
) -> None:
    """A crash between storing, trimming and moving the pointer must not leave a log without a beginning (E-28).

    Given a keeper that dies at each point of its second snapshot, then a process that starts has the whole state, and the
    next keeper publishes.
    """
    engine = engine_of(connection, index_name)
    place = connection.keeping(index_name)
    with small_margin():
        work(engine, 10, "one-")
        keeper_of(connection, index_name, token="first")[0].turn()
        work(engine, 10, "two-")
        mortal, _ = keeper_of(connection, index_name, place=with_shelf(place, call, after), token="first")
        with pytest.raises(Dies):
            mortal.turn()

        assert fresh(connection, index_name).digest() == engine.digest()
        work(engine, 10, "three-")
        successor, said = keeper_of(connection, index_name, token="first")
        successor.turn()

    assert said.of("published")
    assert fresh(connection, index_name).digest() == engine.digest()


def test_what_cannot_be_read_back_is_not_published(connection: LogConnection, index_name: str) -> None:
    """A snapshot that was damaged on its way would be what every later process starts from.

    Given bytes that change while they are stored, when the keeper reads them back, then the pointer stays and nothing is
    trimmed, and it says why.
    """
    engine = engine_of(connection, index_name)
    work(engine, 10)
    keeper, said = keeper_of(connection, index_name)

    encode = snapshot.encode

    def damaged(state: Any) -> bytes:
        data = bytearray(encode(state))
        data[len(data) // 2] ^= 1
        return bytes(data)

    with mock.patch.object(snapshot, "encode", damaged):
        keeper.turn()

    (told,) = said.of("not_published")
    assert "not readable" in told["reason"]
    assert connection.keeping(index_name).shelf.pointers() == ()
    assert connection.log(index_name).head().first == 1


def test_a_state_that_is_broken_stops_the_keeper(connection: LogConnection, index_name: str) -> None:
    """A broken state must not become the beginning of everybody's: the keeper stops instead."""
    engine = engine_of(connection, index_name)
    work(engine, 10)
    keeper, _ = keeper_of(connection, index_name)

    with (
        mock.patch.object(invariants, "violations", return_value=["block 3 is in two places"]),
        pytest.raises(CorruptState, match="block 3 is in two places"),
    ):
        keeper.turn()

    assert connection.keeping(index_name).shelf.pointers() == ()


def test_a_damaged_snapshot_is_passed_over_loudly(
    stored: LogConnection, index_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A flipped bit in Redis must not stop a fleet from starting.

    Given the newest snapshot damaged after it was published, when a process starts, then it starts from the one before, with
    the same state, and an alarm names the position.
    """
    engine = engine_of(stored, index_name)
    keeper, _ = keeper_of(stored, index_name)
    with small_margin():
        for turn in range(3):
            work(engine, 8, f"t{turn}-")
            keeper.turn()
    newest = stored.keeping(index_name).shelf.pointers()[0]
    client: Any = stored.backend._client  # type: ignore[attr-defined]
    client.setrange(IndexKeys.of(index_name).blob(newest.blob), newest.size // 2, b"\x00\xff\x00")

    with caplog.at_level(logging.ERROR, logger="statecore"):
        replica = fresh(stored, index_name)

    assert replica.digest() == engine.digest()
    assert f"snapshot at position {newest.position} is not used" in caplog.text


def test_two_keepers_do_not_undo_each_other(connection: LogConnection, index_name: str) -> None:
    """Two that act by mistake must not move the pointer back or delete the blob that is in use (E-46).

    Given two keepers that both see the same pointers and publish one after the other, then the second is told so.
    """
    engine = engine_of(connection, index_name)
    shelf = connection.keeping(index_name).shelf
    work(engine, 10)

    def snapshot_of(position_of: Replica) -> SnapshotPointer:
        state = position_of.state
        pointer = SnapshotPointer(
            state.position, state.last_commit_id, position_of.digest(), snapshot.SNAPSHOT_SCHEMA, "", 0, 1
        )
        return shelf.upload(snapshot.encode(state), pointer)

    early = fresh(connection, index_name)
    first = snapshot_of(early)
    work(engine, 5, "more-")
    second = snapshot_of(fresh(connection, index_name))

    assert type(shelf.publish(second, ())).__name__ == "Published"
    late = shelf.publish(first, ())
    assert type(late).__name__ == "NotPublished"
    assert [pointer.blob for pointer in shelf.pointers()] == [second.blob]
    assert fresh(connection, index_name).digest() == engine.digest()


def test_publishing_twice_is_publishing_once(connection: LogConnection, index_name: str) -> None:
    """A lost reply to the publishing script is answered by sending it again."""
    engine = engine_of(connection, index_name)
    shelf = connection.keeping(index_name).shelf
    work(engine, 10)
    replica = fresh(connection, index_name)
    state = replica.state
    pointer = SnapshotPointer(state.position, state.last_commit_id, replica.digest(), 2, "", 0, 1)
    pointer = shelf.upload(snapshot.encode(state), pointer)

    assert [type(shelf.publish(pointer, ())).__name__ for _ in range(2)] == ["Published", "Published"]
    assert shelf.pointers() == (pointer,)


def test_a_snapshot_of_another_history_is_refused(connection: LogConnection, index_name: str) -> None:
    """A keeper that was left behind by a rolled-back log would make a vanished history everybody's beginning."""
    engine = engine_of(connection, index_name)
    shelf = connection.keeping(index_name).shelf
    work(engine, 5)
    replica = fresh(connection, index_name)
    pointer = SnapshotPointer(replica.state.position, "another.1", replica.digest(), 2, "", 0, 1)
    pointer = shelf.upload(snapshot.encode(replica.state), pointer)

    refused = shelf.publish(pointer, ())

    assert type(refused).__name__ == "NotPublished"
    assert "does not hold commit 'another.1'" in str(refused)


def test_by_age(index_name: str) -> None:
    """A quiet index must restart fast, too; and one that does nothing needs no new snapshot."""
    connection = connect("memory://")
    engine = engine_of(connection, index_name)
    clock = Clock()
    keeper, said = keeper_of(
        connection,
        index_name,
        settings=KeeperSettings(every=10_000, age_s=60),
        clock=clock,
        wall_ms=lambda: int(clock.now * 1000),
    )
    work(engine, 1)
    keeper.turn()
    assert not said.of("published")

    clock.now += 61
    keeper.turn()
    assert len(said.of("published")) == 1

    clock.now += 61
    keeper.turn()
    assert len(said.of("published")) == 1, "nothing has happened since"

    work(engine, 1, "again")
    keeper.turn()
    assert len(said.of("published")) == 2


def test_a_clock_that_jumps_changes_nothing(index_name: str) -> None:
    """A machine whose clock was put back a day would take no snapshot by age for a day; put forward, one at every turn.

    Given a keeper whose wall clock jumps back and forth, then it goes on taking one each time its steady clock says so.
    """
    connection = connect("memory://")
    engine = engine_of(connection, index_name)
    clock, wall_ms = Clock(), [1_000_000_000]
    settings = KeeperSettings(every=10_000, age_s=60)
    keeper, said = keeper_of(connection, index_name, settings=settings, clock=clock, wall_ms=lambda: wall_ms[0])
    keeper.turn()

    for minute, jump_ms in enumerate((0, -86_400_000, 0, +172_800_000, 0, 0)):
        wall_ms[0] += jump_ms
        for part in range(4):
            work(engine, 1, f"m{minute}-{part}-")
            clock.now += 15
            wall_ms[0] += 15_000
            keeper.turn()

    assert len(said.of("published")) == 6


def test_one_that_is_damaged_is_replaced(connection: LogConnection, index_name: str) -> None:
    """Otherwise every restart of a quiet index would have to pass over it, until the log has grown by thousands.

    Given a keeper whose newest snapshot is damaged later, when the time has come to read it back, then the keeper says so,
    and takes another one with the next commit.
    """
    engine = engine_of(connection, index_name)
    clock = Clock()
    keeper, said = keeper_of(connection, index_name, clock=clock, settings=KeeperSettings(every=EVERY, age_s=60.0))
    work(engine, 10)
    keeper.turn()
    place = connection.keeping(index_name)
    (pointer,) = place.shelf.pointers()
    connection.backend.transport(index_name).snapshots.store(pointer.blob, 40, b"damage", ttl_s=600.0)

    clock.now += 61
    keeper.turn()
    keeper.turn()

    assert [each["position"] for each in said.of("damaged")] == [pointer.position]
    assert (len(said.of("published")), keeper.totals.snapshot_sound) == (1, False)
    work(engine, 1, "later")
    keeper.turn()
    assert (len(said.of("published")), keeper.totals.snapshot_sound) == (2, True)
    assert fresh(connection, index_name).digest() == engine.digest()


def test_one_that_does_not_come_about_fills_no_memory(redis_url: str, index_name: str) -> None:
    """Twenty megabytes at every turn would fill the server within minutes (E-29).

    Given a keeper whose snapshots are never sound, when it takes turn after turn, then it tries seldom, and keeps nothing
    of what it stored; and when they are sound again, it publishes.
    """
    encode = snapshot.encode

    def damaged(state: Any) -> bytes:
        data = bytearray(encode(state))
        data[len(data) // 2] ^= 1
        return bytes(data)

    with connect(redis_url) as connection:
        engine = engine_of(connection, index_name)
        work(engine, 10)
        clock = Clock()
        keeper, said = keeper_of(connection, index_name, clock=clock)
        with mock.patch.object(snapshot, "encode", damaged):
            for _ in range(200):
                keeper.turn()
                clock.now += 0.5

        client: Any = connection.backend._client  # type: ignore[attr-defined]
        assert 2 <= len(said.of("not_published")) <= 5
        assert client.keys(f"kv:{{{index_name}}}:snapshot:*") == []

        clock.now += 100
        keeper.turn()
        assert len(said.of("published")) == 1


def test_a_replica_whose_snapshots_are_replaced_while_it_reads(connection: LogConnection, index_name: str) -> None:
    """A process that was stopped for a moment would take a healthy index for damaged.

    Given a replica behind the trim that has seen where the snapshots are, when both are replaced before it reads them, then
    it reads the new ones, and nobody is alarmed.
    """
    idle = engine_of(connection, index_name, "idle")
    idle.match("kept", [5] * 4)
    busy = engine_of(connection, index_name, "busy")
    keeper, _ = keeper_of(connection, index_name)
    with small_margin():
        for turn in range(4):
            work(busy, 12, f"t{turn}-")
            keeper.turn()
        shelf = type(connection.backend.transport(index_name).snapshots)
        looks = [0]

        def pointers(self: Any, look: Any = shelf.pointers) -> Any:
            found = look(self)
            looks[0] += 1
            if looks[0] == 1:
                for turn in range(2):
                    work(busy, 12, f"u{turn}-")
                    keeper.turn()
            return found

        with mock.patch.object(shelf, "pointers", pointers), mock.patch.object(EventLog, "alarm") as alarm:
            idle.allocate("kept", 1)

    assert looks[0] > 1
    assert not alarm.called
    busy.refresh()
    assert idle.digest() == busy.digest()


def test_a_log_that_grows_while_it_is_read_is_read_to_an_end(connection: LogConnection, index_name: str) -> None:
    """Otherwise no process could join a busy index, and its keeper would do nothing but read.

    Given a log that grows by a commit with every read, when a process reads it to its end, then that comes, and it has all
    that was there at the beginning.
    """
    engine = engine_of(connection, index_name)
    work(engine, 3)
    reader = engine_of(connection, index_name, "reader")
    log = connection.log(index_name, follow=False)
    before = engine.position
    read, reads = EventLog.read_stored, [0]

    def growing(self: EventLog, after: int, limit: int | None = None) -> Any:
        if self is not engine._session._log and reads[0] < 100:
            reads[0] += 1
            engine.match(f"q{reads[0]}", [reads[0]] * 4)
        return read(self, after, limit)

    with mock.patch.object(EventLog, "read_stored", growing):
        assert up_to_date(log).state.position >= before
        assert reader.refresh() >= before

    assert reads[0] < 10


def test_a_replica_behind_the_trim_goes_on_in_the_same_life(connection: LogConnection, index_name: str) -> None:
    """An engine that was idle for hours must not lose its requests because the log has moved on.

    Given an engine with a live request that has not looked while the log was trimmed past it, when it calls, then it goes on
    with its request, at the end of the log, in the same session.
    """
    idle = engine_of(connection, index_name, "idle")
    idle.match("kept", [5, 6, 7, 8] * 2)
    table = idle.allocate("kept", 2).blocks
    behind = idle.position
    busy = engine_of(connection, index_name, "busy")
    keeper, _ = keeper_of(connection, index_name)
    with small_margin():
        for turn in range(4):
            work(busy, 8, f"t{turn}-")
            keeper.turn()
    assert connection.log(index_name).head().first > behind + 1

    idle.allocate("kept", 1)

    assert idle.table("kept")[:2] == list(table)
    assert idle.session == 1
    busy.refresh()
    assert idle.digest() == busy.digest()


def test_a_log_without_its_beginning_and_without_a_snapshot_is_told(stored: LogConnection, index_name: str) -> None:
    """Somebody trimmed by hand: better no state than a wrong one."""
    engine = engine_of(stored, index_name)
    work(engine, 5)
    client: Any = stored.backend._client  # type: ignore[attr-defined]
    client.xtrim(IndexKeys.of(index_name).log, minid="10-0", approximate=False)

    with pytest.raises(CorruptState, match="begins at position 10 and no snapshot covers"):
        fresh(stored, index_name)


def test_memory_in_redis_stays_flat(redis_url: str, index_name: str) -> None:
    """A log that only grows fills the server within days (E-29); so would jobs, reports, seats and names that only grow.

    Given an engine with a host tier and a worker, and engines that come and go under the same few names, when the index runs
    far past several snapshot intervals, then the memory of its keys does not grow.
    """
    with connect(redis_url) as connection, bounds(SNAPSHOT_MARGIN=MARGIN, ACKS_TTL_S=0.05):
        tiers: dict[str, Any] = {"gpu_blocks": 8, "cpu_blocks": 16}
        engine = engine_of(connection, index_name, **tiers)
        keeper, said = keeper_of(connection, index_name)
        client: Any = connection.backend._client  # type: ignore[attr-defined]
        sizes, finished, names = [], 0, []
        for turn in range(14):
            guest = engine_of(connection, index_name, f"guest-{turn % 2}", **tiers)
            for each in (guest, engine):
                moved = connection.jobs(index_name, each.gpu_pool, 0, 1, f"worker-{turn}")
                moved.enter(takeover=True)
                for number in range(EVERY // 4):
                    finished += swapped(each, moved, f"t{turn % 3}-{number}", [number % 3, *([turn % 5] * 11)])
                moved.leave()
            guest.leave()
            keeper.turn()
            time.sleep(0.06)  # reports of what is finished run out
            names = client.keys(f"kv:{{{index_name}}}:*")
            sizes.append(sum(client.memory_usage(name, samples=0) or 0 for name in names))
        kinds = {name.decode().split(":")[2] for name in names}

    assert len(said.of("published")) == 14
    assert finished > 28, "nothing was swapped"
    assert kinds >= {"log", "head", "fence", "snapshot", "jobs", "seats"}
    early, late = max(sizes[3:8]), max(sizes[9:])
    assert late <= early * 1.1, f"memory grew from {early} to {late} bytes: {sizes}"


def swapped(engine: CacheIndex, worker: JobQueue, request: str, tokens: list[int]) -> int:
    """A request that computes what is not there, and the jobs it takes; how many those were."""
    finished = 0
    engine.match(request, tokens)
    for _ in range(2):  # what is swapped in comes first; then room may have to be made
        while isinstance(job := worker.take(0.0), Delivery):
            worker.finish(job, ok=True)
            finished += 1
        engine.refresh()
        if (missing := 3 - len(engine.table(request))) > 0:
            engine.allocate(request, missing)
    engine.extend(request, ready=True)
    engine.release(request)
    return finished


def test_what_nobody_published_runs_out(redis_url: str, index_name: str) -> None:
    """A keeper that dies after storing leaves a blob nobody names: it must not stay for ever."""
    with connect(redis_url) as connection:
        engine = engine_of(connection, index_name)
        work(engine, 10)
        place = with_shelf(connection.keeping(index_name), "upload", after=True)
        mortal, _ = keeper_of(connection, index_name, place=place)
        with pytest.raises(Dies):
            mortal.turn()

        client: Any = connection.backend._client  # type: ignore[attr-defined]
        (orphan,) = client.keys(f"kv:{{{index_name}}}:snapshot:*")
        assert 0 < client.pttl(orphan) <= limits.SNAPSHOT_UPLOAD_TTL_S * 1000


def test_the_pointer_needs_the_whole_blob() -> None:
    """A pointer to half a snapshot would be found out only at the next restart."""
    log = MemoryTransport()
    assert log.snapshots.pointers() == ()
    pointer = SnapshotPointer(0, "", "", 2, "b", 10, 1)
    log.snapshots.store("b", 0, b"12345", 60)

    assert type(log.snapshots.publish(pointer, (), 0)).__name__ == "NotPublished"
    assert log.snapshots.pointers() == ()
