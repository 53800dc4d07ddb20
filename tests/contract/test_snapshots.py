"""Where snapshots are and what they let the log forget, on every backend (E-28, E-29). What is in them: `tests/keeper`."""

from __future__ import annotations

import time

import attrs
import pytest

from events import limits
from events.errors import InvalidInput
from events.keys import HEAD_LAYOUT, IndexKeys
from events.log import EventLog, LogConnection
from events.ports import SnapshotPointer
from events.snapshots import Snapshots
from events.transport import NotPublished, Published
from tests.contract.commits import client_of, dump, filled, ids

END = 40


@attrs.frozen
class Shelf:
    """A log of 40 commits, and the snapshots beside it."""

    log: EventLog
    snapshots: Snapshots

    def upload(self, position: int, data: bytes = b"state") -> SnapshotPointer:
        """Bytes that a keeper has stored and not published yet."""
        blank = SnapshotPointer(position, f"c{position}", f"digest {position}", 7, "", 0, 1000 + position)
        return self.snapshots.upload(data, blank)

    def publish(self, *positions: int) -> list[SnapshotPointer]:
        """Snapshots of these positions, one after the other."""
        made = []
        for position in positions:
            pointer = self.upload(position, f"state at {position}".encode())
            assert isinstance(self.snapshots.publish(pointer, self.snapshots.pointers()), Published)
            made.append(pointer)
        return made


@pytest.fixture
def shelf(connection: LogConnection, index_name: str) -> Shelf:
    log = connection.log(index_name, follow=False)
    filled(log, END)
    return Shelf(log, Snapshots(connection.backend.transport(index_name).snapshots))


# --- bytes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 35])
def test_bytes_come_back_in_pieces(shelf: Shelf, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a large snapshot would hold up everybody else's commits, or come back without its end.

    Given pieces of ten bytes, when some are uploaded, then nobody sees them; when published, every byte is there.
    """
    monkeypatch.setattr(limits, "SNAPSHOT_PIECE_BYTES", 10)
    data = bytes(range(200, 200 + size))

    pointer = shelf.upload(5, data)
    assert shelf.snapshots.pointers() == ()
    assert shelf.snapshots.publish(pointer, ()) == Published(1)

    assert shelf.snapshots.pointers() == (pointer,)
    assert shelf.snapshots.fetch(pointer) == data
    assert pointer.size == size


def test_a_blob_that_is_gone_or_cut_gives_fewer_bytes(shelf: Shelf) -> None:
    """Otherwise a reader would wait for bytes that nobody has, instead of taking the snapshot before."""
    pointer = shelf.upload(5, b"0123456789")

    assert shelf.snapshots.fetch(attrs.evolve(pointer, size=20)) == b"0123456789"
    assert shelf.snapshots.fetch(attrs.evolve(pointer, blob="5-gone")) == b""


def test_too_much_is_refused_at_the_door(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise an upload of half a gigabyte would fail at its end."""
    monkeypatch.setattr(limits, "SNAPSHOT_BYTES_MAX", 9)

    with pytest.raises(InvalidInput, match="10 bytes; at most 9"):
        shelf.upload(5, b"0123456789")


def test_what_nobody_published_runs_out(
    stored: LogConnection, index_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E-28: otherwise each keeper that dies on the way would leave 20 MB for ever.

    Given two uploads of which one is published, when their time is over, then that one is there and the other is gone.
    """
    monkeypatch.setattr(limits, "SNAPSHOT_UPLOAD_TTL_S", 0.2)
    log = stored.log(index_name, follow=False)
    filled(log, END)
    shelf = Shelf(log, Snapshots(stored.backend.transport(index_name).snapshots))
    orphan, kept = shelf.upload(5, b"orphan"), shelf.upload(6, b"kept")
    shelf.snapshots.publish(kept, ())

    time.sleep(0.3)

    assert (shelf.snapshots.fetch(orphan), shelf.snapshots.fetch(kept)) == (b"", b"kept")


# --- the pointer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [5, 20])
def test_the_pointer_moves_forward_only(shelf: Shelf, position: int) -> None:
    """E-28: otherwise a slow keeper would take replicas back to before the trim.

    Given a snapshot at 20, when one at 5, or another at 20, is published, then not, and the newest is what it was.
    """
    (newest,) = shelf.publish(20)

    reply = shelf.snapshots.publish(shelf.upload(position), (newest,))

    assert reply == NotPublished(f"another keeper published {newest.blob!r} meanwhile")
    assert shelf.snapshots.pointers() == (newest,)


def test_a_blob_that_is_not_whole_is_not_published(shelf: Shelf) -> None:
    """E-28: otherwise the pointer would name bytes that are not there, and the log would be trimmed behind them.

    Given an upload of which the last byte is missing, or all, when published, then refused with the numbers.
    """
    before = shelf.publish(10)
    cut = attrs.evolve(shelf.upload(30, b"01234"), size=6)
    gone = attrs.evolve(cut, blob="30-gone")

    assert shelf.snapshots.publish(cut, tuple(before)) == NotPublished("the blob holds 5 of 6 bytes")
    assert shelf.snapshots.publish(gone, tuple(before)) == NotPublished("the blob holds 0 of 6 bytes")

    assert shelf.snapshots.pointers() == tuple(before)
    assert shelf.log.head().first == 1


def test_of_two_keepers_one_publishes(shelf: Shelf) -> None:
    """Otherwise the second would delete the blob that the pointer names.

    Given two keepers that saw the same pointers, when both publish, then the first has, the second hears by whom; what was
    before is kept.
    """
    seen = tuple(shelf.publish(5, 10)[::-1])
    one, two = shelf.upload(20, b"one"), shelf.upload(21, b"two")

    assert isinstance(shelf.snapshots.publish(one, seen), Published)
    assert shelf.snapshots.publish(two, seen) == NotPublished(f"another keeper published {one.blob!r} meanwhile")

    assert shelf.snapshots.pointers() == (one, seen[0])
    assert [shelf.snapshots.fetch(each) for each in shelf.snapshots.pointers()] == [b"one", b"state at 10"]


def test_publishing_again_after_a_lost_reply(shelf: Shelf) -> None:
    """Otherwise a keeper whose reply was lost would think that somebody else was faster."""
    seen = tuple(shelf.publish(5))
    pointer = shelf.upload(10)

    assert isinstance(shelf.snapshots.publish(pointer, seen), Published)
    assert shelf.snapshots.publish(pointer, seen) == Published(0)

    assert shelf.snapshots.pointers() == (pointer, *seen)


def test_the_one_before_the_last_is_kept_and_no_other(shelf: Shelf) -> None:
    """E-29: otherwise memory would grow by every snapshot; with only the newest, one bad blob would be the end."""
    made = shelf.publish(5, 10, 15, 20)

    assert shelf.snapshots.pointers() == (made[3], made[2])
    assert [shelf.snapshots.fetch(pointer) for pointer in made] == [b"", b"", b"state at 15", b"state at 20"]


def test_a_snapshot_of_another_history_is_refused(shelf: Shelf) -> None:
    """Otherwise a keeper that slept through a failover would publish a state that never was."""
    for position, commit_id in ((10, "other"), (END, "other"), (END + 1, f"c{END + 1}")):
        pointer = attrs.evolve(shelf.upload(5), position=position, commit_id=commit_id)

        reply = shelf.snapshots.publish(pointer, ())

        assert reply == NotPublished(f"the log does not hold commit {commit_id!r} at position {position}")
    assert shelf.snapshots.pointers() == ()


def test_an_index_without_a_log_has_no_snapshot(connection: LogConnection, index_name: str) -> None:
    """Otherwise a log that was deleted would come back as a pointer to what it was."""
    shelf = Shelf(connection.log(index_name), Snapshots(connection.backend.transport(index_name).snapshots))

    assert isinstance(shelf.snapshots.publish(shelf.upload(0), ()), NotPublished)
    assert shelf.snapshots.pointers() == ()


def test_another_layout_is_refused(stored: LogConnection, index_name: str) -> None:
    """Otherwise a keeper of an old release would trim a log that it does not understand."""
    log = stored.log(index_name, follow=False)
    filled(log, END)
    shelf = Shelf(log, Snapshots(stored.backend.transport(index_name).snapshots))
    pointer = shelf.upload(5)
    client_of(stored).hset(IndexKeys.of(index_name).head, HEAD_LAYOUT, "77")
    before = dump(stored, index_name)

    with pytest.raises(InvalidInput, match="77"):
        shelf.snapshots.publish(pointer, ())

    assert dump(stored, index_name) == before


# --- what the log forgets -------------------------------------------------------------------------------------------


def test_the_first_snapshot_lets_nothing_be_forgotten(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise one unreadable blob would be the end of the index (E-28)."""
    monkeypatch.setattr(limits, "SNAPSHOT_MARGIN", 0)

    shelf.publish(30)

    assert shelf.log.head().first == 1


@pytest.mark.parametrize(
    ("previous", "newest", "margin", "first"),
    [
        (10, 30, 0, 11),  # the previous one and the log still give the state
        (10, 30, 5, 11),
        (29, 30, 0, 30),
        (29, 30, 5, 26),  # who is a little behind need not restore
        (39, 40, 0, 40),
        (10, 30, 20, 11),
        (10, 30, 21, 10),
        (1, 2, 0, 2),
        (10, 30, 1000, 1),
    ],
)
def test_what_the_log_keeps(
    shelf: Shelf, previous: int, newest: int, margin: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E-29: otherwise the log would grow for ever, or a replica would find a hole behind its snapshot.

    Given two snapshots and a margin, then the first entry kept is the one after the previous snapshot, or the margin below
    the newest, whichever is older; the reply and the head say so.
    """
    monkeypatch.setattr(limits, "SNAPSHOT_MARGIN", margin)
    shelf.publish(previous)
    pointer = shelf.upload(newest)

    reply = shelf.snapshots.publish(pointer, shelf.snapshots.pointers())

    assert reply == Published(first)
    assert shelf.log.head().first == first
    assert ids(shelf.log.read(0)) == [f"c{position}" for position in range(first, END + 1)]
