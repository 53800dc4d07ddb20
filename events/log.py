"""A `Log` made of any `Transport`: the protocol above one attempt.

Owns what must be right on every backend: encoding and decoding, repeating reads, and above all the fate of an append
whose reply did not come. Knows no Redis.

**Unknown outcomes.** Every commit names its own engine's scope among those it checks and touches, so at most one copy
of it can ever land. After a lost reply we therefore read from the base: the commit's id is there -> appended. If not,
we send the same bytes again and find out from the reply: a conflict whose entries hold the id means that the first
copy had landed. When the deadline passes first, the caller hears `OutcomeUnknown`, and calling again continues here.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, Protocol

from events import codec, limits
from events.errors import CorruptState, InvalidInput, OutcomeUnknown, StateCoreError, Unavailable
from events.job_ports import JobTransport, Seat
from events.job_queue import JobDoorbell, JobQueue
from events.keeping import Keeping
from events.lease import Lease
from events.policy import conflict_attempts, retrying
from events.ports import (
    BIRTH,
    Appended,
    AppendReply,
    Base,
    Behind,
    Commit,
    Conflicted,
    Diverged,
    Entry,
    Fenced,
    Head,
    Mutex,
    RawAppended,
    RawConflicted,
    RawReply,
    Record,
    SnapshotPointer,
    StoredRecord,
    Trimmed,
)
from events.snapshots import Snapshots
from events.transport import Follower, Transport

_NONCE_BYTES: Final = 8


_LOGGER: Final = logging.getLogger("statecore")


class _Gap(Exception):
    """The log does not hold what comes after a position."""


class EventLog:
    """The log of one index over a transport. Implements `events.ports.Log`."""

    def __init__(
        self,
        index: str,
        transport: Transport,
        *,
        follow: bool = False,
        nonce: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        threads: bool = True,
    ) -> None:
        """`nonce`, `sleep`, `clock` and `threads` are for the simulator, which repeats itself and has its own time."""
        self._index = index
        self._transport = transport
        self._follow_wanted = follow
        self._follower: Follower | None = None
        self._nonce = nonce or secrets.token_hex(_NONCE_BYTES)
        self._sleep = sleep
        self._commits = 0
        self._doubt: tuple[str, Record] | None = None
        self._clock = clock
        self._threads = threads
        self._lease: Lease | None = None
        self._base = BIRTH

    @property
    def index(self) -> str:
        return self._index

    def next_commit_id(self) -> str:
        self._commits += 1
        return f"{self._nonce}.{self._commits}"

    # --- append -----------------------------------------------------------------------------------------------------

    def append(self, commit: Commit, base: Base) -> AppendReply:
        record = self._record_of(commit)
        try:
            return self._append_once(commit, base, record)  # the usual case, without the cost of a retry policy
        except Unavailable as failure:
            if failure.lasting:
                raise
            self._sleep(limits.RETRY_WAIT_INITIAL_S)
        try:
            for attempt in retrying(limits.APPEND_DEADLINE_S, self._sleep):
                with attempt:
                    return self._append_once(commit, base, record)
        except Unavailable as failure:
            if self._doubt is None or isinstance(failure, OutcomeUnknown):
                raise
            raise OutcomeUnknown(str(failure), commit.id) from failure
        raise AssertionError("retrying either returns or raises")

    def _record_of(self, commit: Commit) -> Record:
        """The same bytes for the same commit, however often it is sent."""
        if self._doubt is not None and self._doubt[0] == commit.id:
            return self._doubt[1]
        self._doubt = None
        return codec.encode(commit, at_ms=time.time_ns() // 1_000_000)

    def _append_once(self, commit: Commit, base: Base, record: Record) -> AppendReply:
        if self._doubt is not None:
            try:
                found = self._find(commit, self._read_after(base.position))
            except _Gap:
                self._doubt = None
                return Trimmed(in_doubt=True)
            if found is not None:
                self._doubt = None
                return found
        try:
            raw = self._transport.append(
                record,
                engine=commit.engine,
                session=commit.session,
                base=base,
                checks=commit.checks,
                touches=commit.touches,
                fences=commit.fences,
                jobs=commit.jobs,
                lapsed=commit.lapsed,
                forgets=commit.forgets,
            )
        except OutcomeUnknown:
            self._doubt = (commit.id, record)
            raise
        reply = self._reply(commit, base, raw)
        self._doubt = None
        return reply

    def _reply(self, commit: Commit, base: Base, raw: RawReply) -> AppendReply:
        if isinstance(raw, RawAppended):
            return Appended(raw.position, codec.decode_all(raw.missed))
        if isinstance(raw, RawConflicted):
            missed = codec.decode_all(raw.missed)
            return self._find(commit, missed) or Conflicted(raw.scope, missed)
        if isinstance(raw, Trimmed):
            head = self.head()
            if not head.first:
                raise CorruptState(f"the log holds no entry any more, and {base.position} is not its end: deleted")
            if head.first <= base.position + 1:
                raise CorruptState(
                    f"an entry is missing, and the head is at {head.position}", position=base.position + 1
                )
            return Trimmed(in_doubt=self._doubt is not None)
        try:
            missed = self._read_after(base.position)
        except _Gap:
            return Trimmed() if isinstance(raw, Behind) else raw
        # An earlier try, or a client that repeats on its own, may have landed it before it was fenced, or before history
        # went on, or before somebody told of a loss.
        if (found := self._find(commit, missed)) is not None:
            return found
        if isinstance(raw, Behind):
            if not missed:
                raise CorruptState(
                    f"the log ends at {raw.head} and holds no entry after {base.position}: deleted or trimmed"
                )
            return Conflicted("", missed)
        return Fenced(raw.lowest_session, missed) if isinstance(raw, Fenced) else raw

    def _find(self, commit: Commit, entries: tuple[Entry, ...]) -> Appended | None:
        for index, entry in enumerate(entries):
            if entry.id == commit.id:
                return Appended(entry.position, entries[:index])
        return None

    def _read_after(self, position: int) -> tuple[Entry, ...]:
        """Everything above `position` at this moment; raises `_Gap` when its beginning is trimmed."""
        entries: list[Entry] = []
        while page := self._transport.read(position, limits.READ_PAGE):
            if page[0].position != position + 1:
                raise _Gap
            entries += codec.decode_all(page)
            position = entries[-1].position
            if len(page) < limits.READ_PAGE:
                break
        return tuple(entries)

    # --- read -------------------------------------------------------------------------------------------------------

    def read(self, after: int, limit: int | None = None) -> tuple[Entry, ...]:
        return codec.decode_all(self.read_stored(after, limit))

    def read_stored(self, after: int, limit: int | None = None) -> tuple[StoredRecord, ...]:
        """The same as bytes, for those who copy logs."""
        count = limits.READ_PAGE if limit is None else limit
        if after < 0 or count < 1:
            raise InvalidInput(
                f"read takes a position of at least 0 and a limit of at least 1, not {after} and {count}"
            )
        return retrying(limits.READ_DEADLINE_S, self._sleep)(self._transport.read, after, count)

    def snapshots(self) -> tuple[SnapshotPointer, ...]:
        return Snapshots(self._transport.snapshots, sleep=self._sleep).pointers()

    def fetch(self, pointer: SnapshotPointer) -> bytes:
        return Snapshots(self._transport.snapshots, sleep=self._sleep).fetch(pointer)

    def alarm(self, message: str) -> None:
        _LOGGER.error("index %s: %s", self._index, message)

    # --- this life --------------------------------------------------------------------------------------------------

    def hold_lease(self, engine: str, session: int) -> None:
        self.drop_lease()
        if self._transport.leases_run_out:
            self._lease = Lease(self._transport, engine, session, lambda: self._base, self._clock)
            with suppress(Unavailable):  # it holds its lease since it joined; this hears in which life of the server
                self._lease.renew()
            if self._threads:
                self._lease.renew_in_background(self._index)

    def drop_lease(self) -> None:
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    def at(self, base: Base) -> None:
        self._base = base

    def standing(self) -> Fenced | Diverged | None:
        verdict = None if self._lease is None else self._lease.standing()
        return self._with_reason(verdict) if isinstance(verdict, Fenced) else verdict

    def _with_reason(self, fenced: Fenced) -> Fenced:
        """What the log says of it, where it can be read; that the life is over holds in any case."""
        try:
            return Fenced(fenced.lowest_session, self._read_after(self._base.position))
        except (_Gap, StateCoreError):
            return fenced

    def same_life(self) -> bool:
        return self._lease is None or self._lease.life == self.head().life

    def renew_lease(self) -> None:
        """Once, now; for who has no thread for it."""
        if self._lease is not None:
            self._lease.renew()

    def continues(self, base: Base) -> bool:
        head = self.head()
        if head.position == base.position:
            return head.commit_id == base.commit_id
        return head.position > base.position

    def head(self) -> Head:
        return retrying(limits.READ_DEADLINE_S, self._sleep)(self._transport.head)

    @property
    def following(self) -> bool:
        return self._follower is not None

    def arrived(self, after: int) -> tuple[Entry, ...]:
        if self._follower is None:
            return ()
        return codec.decode_all(self._follower.arrived(after))

    def wait(self, after: int, timeout_s: float) -> None:
        if self._follower is not None:
            self._follower.wait(after, timeout_s)
        else:
            self._transport.wait(after, timeout_s)

    def follow(self, after: int) -> None:
        """Start fetching in the background what comes after this position, if that was asked for."""
        if not self._follow_wanted:
            return
        if self._follower is not None:
            self._follower.close()
        self._follower = self._transport.follow(after)

    # --- what the machine may not make itself -----------------------------------------------------------------------

    def until(self, timeout_s: float) -> Iterator[float]:
        end = time.monotonic() + timeout_s
        left = timeout_s
        while True:
            yield max(left, 0.0)
            left = end - time.monotonic()
            if left <= 0:
                return

    def attempts(self, *, joining: bool) -> Iterator[int]:
        most = limits.JOIN_ATTEMPTS_MAX if joining else limits.CONFLICT_ATTEMPTS_MAX
        return conflict_attempts(self._sleep, most)

    def mutex(self) -> Mutex:
        return threading.RLock()

    def close(self) -> None:
        if self._lease is not None:
            self._lease.close()
        if self._follower is not None:
            self._follower.close()
            self._follower = None
        self._transport.close()


class Backend(Protocol):
    """A place that holds the logs of many indexes."""

    def transport(self, index: str) -> Transport: ...

    def jobs(self, index: str) -> JobTransport: ...

    def indexes(self) -> tuple[str, ...]: ...

    def close(self) -> None: ...


class LogConnection:
    """What `connect` returns. Implements `events.ports.Connection`; usable as a context manager."""

    def __init__(self, backend: Backend, url: str) -> None:
        self.backend = backend
        self.url = url
        self._logs: list[EventLog] = []

    def log(self, index: str, *, follow: bool = True) -> EventLog:
        log = EventLog(index, self.backend.transport(index), follow=follow)
        self._logs.append(log)
        return log

    def jobs(self, index: str, pool: str, rank: int, ranks: int, worker: str) -> JobQueue:
        """The jobs of a rank of a GPU pool as one worker sees them."""
        return JobQueue(self.backend.jobs(index), Seat(pool, rank, worker), ranks)

    def doorbell(self, index: str) -> JobDoorbell:
        """The job streams of an index from the other side: to see what is there and put back what got lost."""
        return JobDoorbell(self.backend.jobs(index))

    def keeping(self, index: str) -> Keeping:
        """An index as its keeper sees it."""
        log = self.log(index, follow=False)
        transport = self.backend.transport(index)
        return Keeping(log, Snapshots(transport.snapshots), self.doorbell(index), transport)

    def indexes(self) -> tuple[str, ...]:
        return self.backend.indexes()

    def close(self) -> None:
        for log in self._logs:
            log.close()
        self._logs.clear()
        self.backend.close()

    def __enter__(self) -> LogConnection:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LogConnection({self.url!r})"
