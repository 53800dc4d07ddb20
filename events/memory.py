"""The log in the memory of one process: the executable definition of what a log does.

Owns the reference semantics of append, in plain Python, in the order in which `lua/commit.lua` checks. The contract
suite holds every other backend to this one. Entries are kept encoded, so this backend exercises the codec too. Nothing
survives the process.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from events import keys, limits
from events.client import closed
from events.limits import MISSED_ENTRIES_MAX
from events.memory_jobs import MemoryJobs
from events.memory_snapshots import MemorySnapshots
from events.ports import (
    Base,
    Behind,
    Diverged,
    Fenced,
    Head,
    Job,
    LossInTheWay,
    RawAppended,
    RawConflicted,
    RawReply,
    Record,
    Renewed,
    RenewReply,
    StillAlive,
    StoredRecord,
    Trimmed,
)


class MemoryTransport:
    """One index's log. Shared by every engine of the process that was given the same connection; thread-safe.

    Attributes:
        jobs: every job ever put into the stream of a GPU pool; `events/memory_jobs.py` knows what became of them.
        changed: protects all of it; notified when something was appended.
        snapshots: stored beside it.
        life: of the "server"; `begin_life` gives it another.
        leases_run_out: with a clock only; without one an engine lives until it leaves.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._records: list[StoredRecord] = []
        self._first = 1
        self._before_first = ""
        self._versions: dict[str, int] = {}
        self._fences: dict[str, int] = {}
        self._leases: dict[str, float] = {}
        self._clock = clock or (lambda: 0.0)
        self._let_in = self.life = ""
        self._opens_at = 0.0
        self._keeper = ("", 0.0)
        self._lost = self._forgot = ""
        self.leases_run_out = clock is not None
        self.jobs: dict[str, list[Job]] = {}
        self._mutex: Final = threading.Condition()
        self.changed: Final = self._mutex
        self.snapshots = MemorySnapshots(self)

    @property
    def position(self) -> int:
        return self._first - 1 + len(self._records)

    def append(  # noqa: PLR0913 - each is checked or written by itself
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
        lapsed: tuple[str, ...] = (),
        forgets: bool = False,
    ) -> RawReply:
        with self._mutex:
            refused = self._out_of_place(engine, session, base, forgets)
            if refused is not None:
                return refused
            if self.position - base.position > MISSED_ENTRIES_MAX:
                return Behind(self.position)
            missed = tuple(self._records[base.position - self._first + 1 :])
            for scope in checks:
                if self._versions.get(scope, 0) > base.position:
                    return RawConflicted(scope, missed)
            for name in lapsed:
                if self.leases([name])[0]:
                    return StillAlive(name)
            self._add(record, touches)
            self._let_in, self._opens_at = self.life, 0.0
            if forgets:
                self._forgot = self._lost
            for name, lowest in fences:
                self._fences[name] = lowest
                self._leases.pop(name, None)
                if name == engine and lowest == session:
                    self._leases[name] = self._clock() + limits.LEASE_TTL_S
            for job in jobs:
                self.jobs.setdefault(job.pool, []).append(job)
            self._mutex.notify_all()
            return RawAppended(self.position, missed)

    def _out_of_place(
        self, engine: str, session: int, base: Base, forgets: bool
    ) -> Fenced | Diverged | Trimmed | LossInTheWay | None:
        """Why this writer may not append here at all, whatever it wants to write."""
        lowest = self._fences.get(engine)
        if lowest is not None and session < lowest:
            return Fenced(lowest)
        diverged = self._diverged(base)
        if diverged is not None:
            self.note_loss(base)
            return diverged
        if (left := self.closed_for()) > 0:
            raise closed(left)
        if self.trimmed_after(base):
            return Trimmed()
        if (loss := self.loss()) and not forgets:
            return LossInTheWay(loss)
        return None

    def append_unchecked(self, record: Record, touches: tuple[str, ...]) -> int:
        """Append at whatever the head is, as a worker's finish does; returns the position. For who holds `changed`."""
        self._add(record, touches)
        self.changed.notify_all()
        return self.position

    def _add(self, record: Record, touches: tuple[str, ...]) -> None:
        position = self.position + 1
        self._records.append(StoredRecord(position, self._commit_id_at(position - 1), record))
        self._versions.update(dict.fromkeys(touches, position))

    def renew_lease(self, engine: str, session: int, base: Base) -> RenewReply:
        with self._mutex:
            left = self.closed_for()
            lowest = self._fences.get(engine)
            if lowest is not None and session < lowest:
                return Fenced(lowest)
            diverged = self._diverged(base)
            if diverged is None and lowest is not None and session > lowest:
                diverged = Diverged(base.position, "")  # a life that began in a history that is gone
            if diverged is not None:
                self.note_loss(base)
                return diverged
            self._leases[engine] = self._clock() + limits.LEASE_TTL_S
            return Renewed(self.life, left, not self.trimmed_after(base))

    def leases(self, engines: Sequence[str]) -> tuple[bool, ...]:
        with self._mutex:
            return tuple([name in self._leases and self._clock() < self._leases[name] for name in engines])

    def loss(self) -> str:
        """See `Head.loss`. For who holds `changed`."""
        return "" if self._lost == self._forgot else self._lost

    def note_loss(self, base: Base) -> None:
        with self._mutex:
            if base.commit_id:
                self._lost = base.commit_id

    def keep(self, token: str, ttl_s: float) -> bool:
        with self._mutex:
            acting, until = self._keeper
            if acting not in ("", token) and self._clock() < until:
                return False
            self._keeper = (token, self._clock() + ttl_s)
            return True

    # --- lives of the server ----------------------------------------------------------------------------------------

    def begin_life(self, life: str) -> None:
        """Restart, failover: whoever asks first closes the log. For tests; what was lost, they take away themselves."""
        with self._mutex:
            self.life, self._opens_at = life, -1.0

    def closed_for(self) -> float:
        """Seconds until the log is open in this life of the server. For who holds `changed`."""
        if not (self.position or self._lost) or (self._let_in == self.life and self._opens_at >= 0):
            return 0.0
        if self._opens_at < 0:
            self._opens_at = self._clock() + limits.BARRIER_S
        return max(0.0, self._opens_at - self._clock())

    # --- reading ----------------------------------------------------------------------------------------------------

    def read(self, after: int, limit: int) -> tuple[StoredRecord, ...]:
        with self._mutex:
            start = max(0, after - self._first + 1)
            return tuple(self._records[start : min(start + limit, len(self._records))])

    def head(self) -> Head:
        with self._mutex:
            first = self._first if self._records else 0
            return Head(self.position, self._commit_id_at(self.position), first, self._let_in, self.loss())

    def wait(self, after: int, timeout_s: float) -> None:
        with self._mutex:
            self._mutex.wait_for(lambda: self.position > after, timeout_s)

    def follow(self, after: int) -> MemoryFollower:
        return MemoryFollower(self, after)

    def versions(self) -> Mapping[str, int]:
        """Scope -> position of the last commit that touched it."""
        with self._mutex:
            return dict(self._versions)

    def trim(self, first: int) -> None:
        """Forget what lies below `first`. For who holds `changed`."""
        count = min(first - self._first, len(self._records))
        if count > 0:
            self._before_first = self._records[count - 1].record.commit_id
            del self._records[:count]
            self._first += count

    def begin_at(self, base: Base, fences: Mapping[str, int]) -> None:
        """An empty log goes on after `base`. For who holds `changed`."""
        self._first, self._before_first = base.position + 1, base.commit_id
        self._fences.update(fences)
        self._let_in = self.life

    def close(self) -> None:
        """Nothing to close: other users of the connection may go on."""

    def continues(self, base: Base) -> bool:
        """Whether the history after `base` continues it, as far as can be told. For who holds `changed`."""
        return self._diverged(base) is None

    def trimmed_after(self, base: Base) -> bool:
        """Whether the log has forgotten what comes after `base`. For who holds `changed`."""
        return base.position + 1 < self._first

    def _diverged(self, base: Base) -> Diverged | None:
        if base.position > self.position:
            return Diverged(base.position, "")
        if self.trimmed_after(base):
            return None
        known = self._commit_id_at(base.position)
        return None if known == base.commit_id else Diverged(base.position, known)

    def _commit_id_at(self, position: int) -> str:
        if position < self._first:
            return self._before_first
        return self._records[position - self._first].record.commit_id


class MemoryFollower:
    """Nothing has to be fetched ahead of need here: what has arrived is what the log holds."""

    def __init__(self, transport: MemoryTransport, after: int) -> None:
        self._transport = transport
        self._after = after

    def arrived(self, after: int) -> tuple[StoredRecord, ...]:
        records = self._transport.read(max(after, self._after), limit=sys.maxsize)
        self._after = records[-1].position if records else max(after, self._after)
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
