"""Snapshots by the keeper: a restart is bounded, the log is too, and no death on the way loses anything."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from events import connect
from events.errors import CorruptState
from events.log import LogConnection
from events.memory import MemoryTransport
from events.ports import SnapshotPointer
from statecore import invariants, snapshot
from statecore.replica import Replica
from tests.keeper.given import (
    EVERY,
    MARGIN,
    Clock,
    Dies,
    engine_of,
    fresh,
    keeper_of,
    small_margin,
    with_shelf,
    work,
)
from workers.keeper_totals import KeeperSettings


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


def test_the_pointer_needs_the_whole_blob() -> None:
    """A pointer to half a snapshot would be found out only at the next restart."""
    log = MemoryTransport()
    assert log.snapshots.pointers() == ()
    pointer = SnapshotPointer(0, "", "", 2, "b", 10, 1)
    log.snapshots.store("b", 0, b"12345", 60)

    assert type(log.snapshots.publish(pointer, (), 0)).__name__ == "NotPublished"
    assert log.snapshots.pointers() == ()
