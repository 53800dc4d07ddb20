"""A replica from the newest stored snapshot that is whole.

Owns the order of trying: a snapshot that cannot be read is passed over with an alarm, and the one before it and the log
still give the state. One that a newer release wrote is no damage: it is told, and nothing older is used in its place.
"""

from __future__ import annotations

from events import limits
from events.errors import CorruptState, NewerSchema, RolledBack
from events.ports import Log, SnapshotPointer
from statecore import snapshot
from statecore.replica import Replica


def restored(log: Log) -> Replica | None:
    """The replica of the newest snapshot that is whole; None if there is no such snapshot.

    Raises:
        NewerSchema: a newer release wrote it.
        Unavailable: the log cannot be reached.
    """
    pointers, looks = log.snapshots(), 1
    replica, damage = _newest_whole(log, pointers)
    while damage and looks < limits.SNAPSHOT_LOOKS_MAX and (now := log.snapshots()) != pointers:
        pointers, looks = now, looks + 1  # what we were reading was replaced meanwhile
        replica, damage = _newest_whole(log, pointers)
    for message in damage:
        log.alarm(message)
    return replica


def _newest_whole(log: Log, pointers: tuple[SnapshotPointer, ...]) -> tuple[Replica | None, list[str]]:
    """The replica of the newest whole one of these, and what is wrong with those that are newer."""
    damage: list[str] = []
    for pointer in pointers:
        try:
            return of_snapshot(pointer, log.fetch(pointer)), damage
        except NewerSchema:
            raise
        except CorruptState as error:
            damage.append(f"the snapshot at position {pointer.position} is not used: {error}")
    return None, damage


def of_snapshot(pointer: SnapshotPointer, data: bytes) -> Replica:
    """The replica that a stored snapshot holds.

    Raises:
        CorruptState: it is damaged, or not the one the pointer speaks of.
    """
    replica = Replica(snapshot.decode(data))
    if (replica.base.position, replica.base.commit_id) != (pointer.position, pointer.commit_id):
        raise CorruptState(
            f"the snapshot is of commit {replica.base.commit_id!r} at position {replica.base.position}, its pointer says "
            f"{pointer.commit_id!r} at {pointer.position}"
        )
    return replica


def up_to_date(log: Log, replica: Replica | None = None) -> Replica:
    """A replica at the end of the log: `replica`, read on, or another one where the log has been trimmed meanwhile. What
    is appended while it reads may be missing, so it ends however fast others append.

    Raises:
        CorruptState: the log cannot be read, or neither it nor a snapshot has what is missing.
        RolledBack: the log does not hold the history that `replica` knows.
    """
    known = replica
    if replica is None or not replica.state.position:
        replica = restored(log) or Replica()
    while True:
        entries = log.read(replica.state.position)
        if entries and entries[0].position > replica.state.position + 1:
            newer = restored(log)
            if newer is None or newer.state.position <= replica.state.position:
                if log.head().first <= replica.state.position + 1:
                    continue  # the log went back between the two looks
                raise trimmed(replica, entries[0].position)
            replica = newer
            continue
        replica.apply_all(entries)
        if len(entries) < limits.READ_PAGE:
            if not log.continues(replica.base):
                if known is None:
                    return up_to_date(log, Replica())  # rolled back while we read
                raise rolled_back(replica.base.position, replica.base.commit_id, found="")
            return replica


def trimmed(replica: Replica, first: int) -> CorruptState:
    return CorruptState(
        f"the log begins at position {first} and no snapshot covers what is missing: this replica is at "
        f"{replica.state.position}",
        position=first,
    )


def rolled_back(position: int, known: str, found: str) -> RolledBack:
    """`known`, `found`: ids of the commits that the replica and the log hold at `position`; "" for none."""
    return RolledBack(
        f"history diverged: this replica holds commit {known!r} there, the log holds "
        + (f"commit {found!r}" if found else "nothing"),
        position=position,
    )
