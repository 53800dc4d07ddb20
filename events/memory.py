"""The log in the memory of one process: the executable definition of what a log does.

Owns the reference semantics of append, in plain Python, in the order in which `lua/commit.lua` checks. The contract
suite holds every other backend to this one. Entries are kept encoded, so this backend exercises the codec too. Nothing
survives the process.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Final

from events import keys
from events.limits import MISSED_ENTRIES_MAX
from events.memory_jobs import MemoryJobs
from events.ports import (
    Base,
    Behind,
    Diverged,
    Fenced,
    Head,
    Job,
    RawAppended,
    RawConflicted,
    RawReply,
    Record,
    StoredRecord,
)


class MemoryTransport:
    """One index's log. Shared by every engine of the process that was given the same connection; thread-safe.

    Attributes:
        jobs: every job ever put into the stream of a GPU pool; `events/memory_jobs.py` knows what became of them.
        changed: protects all of it; notified when something was appended.
    """

    def __init__(self) -> None:
        self._records: list[StoredRecord] = []
        self._versions: dict[str, int] = {}
        self._fences: dict[str, int] = {}
        self.jobs: dict[str, list[Job]] = {}
        self._mutex: Final = threading.Condition()
        self.changed: Final = self._mutex

    def append(
        self,
        record: Record,
        *,
        engine: str,
        session: int,
        base: Base,
        checks: tuple[str, ...],
        touches: tuple[str, ...],
        fences: tuple[tuple[str, int], ...],
        jobs: tuple[Job, ...] = (),
    ) -> RawReply:
        with self._mutex:
            position = len(self._records)
            lowest = self._fences.get(engine)
            if lowest is not None and session < lowest:
                return Fenced(lowest)
            if base.position > position:
                return Diverged(base.position, "")
            known = self._commit_id_at(base.position)
            if known != base.commit_id:
                return Diverged(base.position, known)
            if position - base.position > MISSED_ENTRIES_MAX:
                return Behind(position)
            missed = tuple(self._records[base.position :])
            for scope in checks:
                if self._versions.get(scope, 0) > base.position:
                    return RawConflicted(scope, missed)
            stored = StoredRecord(position=position + 1, previous=self._commit_id_at(position), record=record)
            self._records.append(stored)
            self._versions.update(dict.fromkeys(touches, stored.position))
            self._fences.update(fences)
            for job in jobs:
                self.jobs.setdefault(job.pool, []).append(job)
            self._mutex.notify_all()
            return RawAppended(stored.position, missed)

    def append_unchecked(self, record: Record, touches: tuple[str, ...]) -> int:
        """Append at whatever the head is, as a worker's finish does; returns the position. For who holds `changed`."""
        stored = StoredRecord(len(self._records) + 1, self._commit_id_at(len(self._records)), record)
        self._records.append(stored)
        self._versions.update(dict.fromkeys(touches, stored.position))
        self.changed.notify_all()
        return stored.position

    def read(self, after: int, limit: int) -> tuple[StoredRecord, ...]:
        with self._mutex:
            return tuple(self._records[after : min(after + limit, len(self._records))])

    def head(self) -> Head:
        with self._mutex:
            position = len(self._records)
            return Head(position, self._commit_id_at(position), first=min(position, 1))

    def wait(self, after: int, timeout_s: float) -> None:
        with self._mutex:
            self._mutex.wait_for(lambda: len(self._records) > after, timeout_s)

    def follow(self, after: int) -> MemoryFollower:
        return MemoryFollower(self, after)

    def versions(self) -> Mapping[str, int]:
        """Scope -> position of the last commit that touched it."""
        with self._mutex:
            return dict(self._versions)

    def close(self) -> None:
        """Nothing to close: other users of the connection may go on."""

    def _commit_id_at(self, position: int) -> str:
        return self._records[position - 1].record.commit_id if position else ""


class MemoryFollower:
    """Nothing has to be fetched ahead of need here: what has arrived is what the log holds."""

    def __init__(self, transport: MemoryTransport, after: int) -> None:
        self._transport = transport
        self._after = after

    def arrived(self, after: int) -> tuple[StoredRecord, ...]:
        records = self._transport.read(max(after, self._after), limit=sys.maxsize)
        self._after = max(after, self._after) + len(records)
        return records

    def wait(self, after: int, timeout_s: float) -> None:
        self._transport.wait(after, timeout_s)

    def close(self) -> None:
        """Nothing to stop."""


class MemoryBackend:
    """All logs of one `connect("memory://")`."""

    def __init__(self) -> None:
        self._transports: dict[str, MemoryTransport] = {}
        self._jobs: dict[str, MemoryJobs] = {}
        self._mutex = threading.Lock()

    def transport(self, index: str) -> MemoryTransport:
        keys.checked_name(index, "index name")
        with self._mutex:
            return self._transports.setdefault(index, MemoryTransport())

    def jobs(self, index: str) -> MemoryJobs:
        log = self.transport(index)
        with self._mutex:
            return self._jobs.setdefault(index, MemoryJobs(log))

    def indexes(self) -> tuple[str, ...]:
        with self._mutex:
            return tuple(sorted(name for name, log in self._transports.items() if log.head().position))

    def close(self) -> None:
        """Nothing to close; the logs go with the last reference."""
