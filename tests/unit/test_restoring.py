"""From which snapshot a replica starts, and what happens when it cannot be read: the log in memory, damaged by hand."""

from __future__ import annotations

import logging
from hashlib import blake2b
from unittest import mock

import attrs
import orjson
import pytest

from events import CorruptState, NewerSchema, RolledBack, connect, limits
from events.log import EventLog, LogConnection
from events.memory import MemoryTransport
from events.ports import Entry
from statecore import CacheIndex
from statecore.replica import Replica
from statecore.restoring import of_snapshot, restored, up_to_date
from statecore.snapshot import SNAPSHOT_SCHEMA, encode
from tests.keeper.given import engine_of, keeper_of, work
from workers.keeper import Keeper

INDEX = "restoring"


@attrs.frozen
class Given:
    """An engine's log with snapshots beside it, and what they are of, the newest first."""

    connection: LogConnection
    engine: CacheIndex
    keeper: Keeper
    transport: MemoryTransport

    @property
    def log(self) -> EventLog:
        return self.connection.log(INDEX, follow=False)

    @property
    def positions(self) -> list[int]:
        return [pointer.position for pointer in self.transport.snapshots.pointers()]

    def blob(self, number: int) -> bytearray:
        return self.transport.snapshots.blobs[self.transport.snapshots.pointers()[number].blob]

    def damage(self, *numbers: int) -> None:
        for number in numbers:
            blob = self.blob(number)
            blob[len(blob) // 2] ^= 1


def given(monkeypatch: pytest.MonkeyPatch, snapshots: int, margin: int) -> Given:
    monkeypatch.setattr(limits, "SNAPSHOT_MARGIN", margin)
    connection = connect("memory://")
    engine = engine_of(connection, INDEX)
    keeper, _ = keeper_of(connection, INDEX)
    for turn in range(snapshots):
        work(engine, 16, f"t{turn}-")
        keeper.turn()
    work(engine, 2, "tail-")
    transport = connection.backend.transport(INDEX)
    assert isinstance(transport, MemoryTransport)
    return Given(connection, engine, keeper, transport)


@pytest.fixture
def trimmed(monkeypatch: pytest.MonkeyPatch) -> Given:
    """Two snapshots, a log that begins behind the first of them, and a tail."""
    made = given(monkeypatch, snapshots=3, margin=0)
    assert made.log.head().first == made.positions[1] + 1 < made.positions[0] < made.engine.position
    return made


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Given:
    """Two snapshots beside a log that still has its beginning."""
    made = given(monkeypatch, snapshots=2, margin=100_000)
    assert (len(made.positions), made.log.head().first) == (2, 1)
    return made


def test_the_newest_one_is_taken(trimmed: Given, caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise a restart would replay what a snapshot holds already."""
    replica = restored(trimmed.log)

    assert replica is not None
    assert replica.state.position == trimmed.positions[0]
    assert caplog.records == []
    assert up_to_date(trimmed.log).digest() == trimmed.engine.digest()


def test_without_one_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise an index without a keeper could not be read."""
    made = given(monkeypatch, snapshots=0, margin=0)

    assert restored(made.log) is None
    assert up_to_date(made.log).digest() == made.engine.digest()


@pytest.mark.parametrize("how", ["a flipped bit", "cut", "gone", "another state"])
def test_a_damaged_one_is_passed_over_with_an_alarm(trimmed: Given, how: str, caplog: pytest.LogCaptureFixture) -> None:
    """E-28: otherwise one flipped bit would be the end of an index.

    Given the newest snapshot damaged, cut, gone, or holding another state than its pointer says, when a replica starts, then
    from the one before, with the same state, and people are told.
    """
    if how == "a flipped bit":
        trimmed.damage(0)
    elif how == "cut":
        del trimmed.blob(0)[-40:]
    elif how == "gone":
        trimmed.blob(0).clear()
    else:
        trimmed.blob(0)[:] = trimmed.blob(1)
        pointers = trimmed.transport.snapshots.pointers()
        same_size = attrs.evolve(pointers[0], size=len(trimmed.blob(0)))
        trimmed.transport.snapshots._pointers = (same_size, pointers[1])

    replica = restored(trimmed.log)

    assert replica is not None
    assert replica.state.position == trimmed.positions[1]
    [alarm] = caplog.records
    assert (alarm.name, alarm.levelno) == ("statecore", logging.ERROR)
    assert f"index {INDEX}: the snapshot at position {trimmed.positions[0]} is not used" in alarm.message
    assert up_to_date(trimmed.log).digest() == trimmed.engine.digest()


def test_two_damaged_ones_and_a_whole_log(whole: Given, caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise damage beside a good log would cost the index."""
    whole.damage(0, 1)

    assert up_to_date(whole.log).digest() == whole.engine.digest()

    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


def test_two_damaged_ones_and_a_trimmed_log(trimmed: Given) -> None:
    """Otherwise a replica would begin in the middle, with a state that never was.

    Given nothing that holds what is trimmed, when a replica starts, or an engine joins, then CorruptState with the position.
    """
    trimmed.damage(0, 1)
    first = trimmed.log.head().first

    with pytest.raises(CorruptState, match=f"begins at position {first} and no snapshot covers") as refused:
        up_to_date(trimmed.log)

    assert refused.value.position == first
    with pytest.raises(CorruptState, match="no snapshot covers"):
        engine_of(trimmed.connection, INDEX, "b")


def test_a_newer_release_wrote_it(trimmed: Given, caplog: pytest.LogCaptureFixture) -> None:
    """E-30: otherwise an old release would start from an older snapshot, and write behind the new one's facts.

    Given a snapshot of the next schema, when a replica starts, then NewerSchema; nothing older is taken in its place, and it
    is no damage.
    """
    trimmed.blob(0)[:] = of_schema(bytes(trimmed.blob(0)), SNAPSHOT_SCHEMA + 1)

    with pytest.raises(NewerSchema, match=str(SNAPSHOT_SCHEMA + 1)):
        restored(trimmed.log)
    with pytest.raises(NewerSchema):
        engine_of(trimmed.connection, INDEX, "b")

    assert caplog.records == []


def of_schema(data: bytes, schema: int) -> bytes:
    """The same snapshot, as a release of another schema would have marked it."""
    marked = data[:-16].replace(b'"schema":%d' % SNAPSHOT_SCHEMA, b'"schema":%d' % schema, 1)
    assert marked != data[:-16]
    return marked + blake2b(marked, digest_size=16).digest()


def test_a_pointer_that_names_another_commit(trimmed: Given) -> None:
    """Otherwise a snapshot of a vanished history would pass for one of this."""
    pointer = trimmed.transport.snapshots.pointers()[0]
    data = bytes(trimmed.blob(0))

    with pytest.raises(CorruptState, match=rf"commit '{pointer.commit_id}' at position {pointer.position}.*'other'"):
        of_snapshot(attrs.evolve(pointer, commit_id="other"), data)
    with pytest.raises(CorruptState, match=f"its pointer says .* at {pointer.position + 1}"):
        of_snapshot(attrs.evolve(pointer, position=pointer.position + 1), data)


# --- reading on -----------------------------------------------------------------------------------------------------


def test_a_replica_behind_the_trim_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a keeper that was away for an hour would have to be started again by hand."""
    made = given(monkeypatch, snapshots=1, margin=0)
    behind = up_to_date(made.log)
    for turn in range(3):
        work(made.engine, 16, f"later-{turn}-")
        made.keeper.turn()
    assert made.log.head().first > behind.state.position + 1

    replaced = up_to_date(made.log, behind)

    assert replaced is not behind
    assert replaced.digest() == made.engine.digest()


def test_a_replica_of_another_history_is_told(whole: Given) -> None:
    """Otherwise a keeper would publish snapshots of a history that is gone.

    Given a replica ahead of the log, or beside it at its end, when it reads on, then RolledBack, with both commits' names or
    that there is none; one that starts anew is not.
    """
    ahead = up_to_date(whole.log)
    last = whole.transport._records.pop()

    with pytest.raises(RolledBack, match=f"{last.record.commit_id}.*holds nothing"):
        up_to_date(whole.log, ahead)
    work(engine_of(whole.connection, INDEX, "b"), 1, "other-")
    with pytest.raises(RolledBack):
        up_to_date(whole.log, ahead)

    up_to_date(whole.log)


def test_a_snapshot_says_which_schema_it_is() -> None:
    """Otherwise `of_schema` above would mark nothing, and its test could not fail."""
    made = encode(Replica().state)

    assert orjson.loads(made[22 : 22 + int.from_bytes(made[18:22], "little")])["schema"] == SNAPSHOT_SCHEMA


def test_a_log_that_goes_back_between_two_looks_is_no_damage(whole: Given) -> None:
    """Otherwise a keeper would stop for good because a failover came while it read.

    Given a log that begins beyond the replica when it is read, and has its beginning, and no snapshot, a moment later, then
    it is read again.
    """
    log = whole.log
    reads = [0]

    def trimmed_at_first(after: int, limit: int | None = None) -> tuple[Entry, ...]:
        reads[0] += 1
        return EventLog.read(log, after + 10 if reads[0] == 1 else after, limit)

    with mock.patch.object(log, "read", trimmed_at_first), mock.patch.object(log, "snapshots", tuple):
        assert up_to_date(log).state.position == whole.engine.position

    assert reads[0] > 1
