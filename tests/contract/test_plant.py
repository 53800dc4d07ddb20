"""An empty index begun with a snapshot: the log goes on after it, on every backend, and nothing is replaced."""

from __future__ import annotations

import pytest

from events.facts import ServiceResumed
from events.log import LogConnection
from events.ports import Appended, Base, Commit, SnapshotPointer
from events.snapshots import Snapshots
from events.transport import NotPublished, Published

POINTER = SnapshotPointer(41, "far.41", "d" * 32, 2, "", 0, 1_700_000_000_000)
DATA = b"what a state looks like"


def shelf_of(connection: LogConnection, index: str) -> Snapshots:
    return Snapshots(connection.backend.transport(index).snapshots)


def commit(identity: str, engine: str, session: int) -> Commit:
    return Commit(
        identity,
        engine,
        session,
        (ServiceResumed(engine, ""),),
        checks=(f"engine:{engine}",),
        touches=(f"engine:{engine}",),
    )


def test_the_log_goes_on_after_the_snapshot(connection: LogConnection, index_name: str) -> None:
    """An imported index would number its history anew, and its snapshot belong to nothing."""
    shelf, log = shelf_of(connection, index_name), connection.log(index_name, follow=False)

    reply = shelf.plant(DATA, POINTER, (("engine-0", 3),))

    assert reply == Published(42)
    assert (log.head().position, log.head().commit_id) == (41, "far.41")
    [pointer] = shelf.pointers()
    assert (pointer.position, pointer.commit_id, pointer.digest, pointer.size) == (41, "far.41", "d" * 32, len(DATA))
    assert shelf.fetch(pointer) == DATA
    assert log.append(commit("a.1", "engine-0", 3), Base(41, "far.41")) == Appended(42, ())
    [entry] = log.read(41)
    assert (entry.position, entry.previous) == (42, "far.41")


def test_sessions_of_the_past_stay_fenced(connection: LogConnection, index_name: str) -> None:
    """An engine of before the snapshot would write into the copy."""
    shelf_of(connection, index_name).plant(DATA, POINTER, (("engine-0", 3),))

    reply = connection.log(index_name, follow=False).append(commit("a.1", "engine-0", 2), Base(41, "far.41"))

    assert type(reply).__name__ == "Fenced"


def test_an_index_that_has_anything_is_left_alone(connection: LogConnection, index_name: str) -> None:
    """A slip of the finger would replace a living index."""
    shelf, log = shelf_of(connection, index_name), connection.log(index_name, follow=False)
    log.append(commit("a.1", "engine-0", 1), Base(0, ""))

    reply = shelf.plant(DATA, POINTER, ())

    assert isinstance(reply, NotPublished)
    assert "not empty" in reply.reason
    assert (log.head().position, log.head().commit_id, shelf.pointers()) == (1, "a.1", ())


@pytest.mark.parametrize("size", [len(DATA) + 1, 0])
def test_a_blob_that_is_not_all_there_begins_nothing(connection: LogConnection, index_name: str, size: int) -> None:
    """An index would begin with a snapshot that nobody can read."""
    transport = connection.backend.transport(index_name)
    transport.snapshots.store("41-x", 0, DATA, 60.0)
    pointer = SnapshotPointer(41, "far.41", "d" * 32, 2, "41-x", size, 1)

    reply = transport.snapshots.plant(pointer, ())

    assert isinstance(reply, NotPublished)
    assert connection.log(index_name, follow=False).head().position == 0
