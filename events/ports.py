"""What the machine needs from outside, as protocols, and the records that cross them.

Owns the shape of every door between the pure machine and the world. Two layers:

- `Log` is what `statecore` calls: facts in, facts out, every call ends in bounded time.
- `Transport` is what a backend implements: one attempt each, bytes in, bytes out. `events/memory.py` is its executable
  definition; `events/redis_log.py` the one that production uses; the simulator wraps one to lose and repeat messages.

`events/log.py` makes a `Log` of any `Transport`: retries, unknown outcomes, decoding, following. So the protocol that
must be right exists once and every backend, real or simulated, runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, TypeAlias

import attrs

from events.facts import Fact

# --- commits and entries --------------------------------------------------------------------------------------------


@attrs.frozen
class Base:
    """The end of the history a decision was made on: a position and the id of the commit there (0 and "" at birth)."""

    position: int
    commit_id: str


@attrs.frozen
class Job:
    """What tells the workers of a GPU pool about a transfer: a doorbell, the record is `TransferStarted`.

    Attributes:
        pool: the GPU pool whose stream it goes to.
        transfer: id.
        body: see `events/jobs.py`.
    """

    pool: str
    transfer: str
    body: bytes


@attrs.frozen
class Commit:
    """Facts to append as one entry, all or nothing.

    Attributes:
        id: never used twice, by nobody: the log's nonce and a counter.
        engine: who writes; with `session`, checked against the fence.
        session: the writer's life.
        facts: in order.
        checks: scopes (`keys.pool_scope`, …) the decision depends on; refused if one was touched after the base.
        touches: scopes whose version this commit moves. Always includes the writer's engine scope, as does `checks`:
            so at most one copy of a commit can ever land.
        fences: (engine, lowest session that may append from now on), raised in the same step.
        jobs: put into the workers' streams in the same step.
    """

    id: str
    engine: str
    session: int
    facts: tuple[Fact, ...]
    checks: tuple[str, ...]
    touches: tuple[str, ...]
    fences: tuple[tuple[str, int], ...] = ()
    jobs: tuple[Job, ...] = ()


@attrs.frozen
class Entry:
    """A commit as the log holds it. `previous` is the id of the commit one position before."""

    position: int
    id: str
    previous: str
    engine: str
    session: int
    at_ms: int
    facts: tuple[Fact, ...]


@attrs.frozen
class Record:
    """A commit's bytes as its writer made them, see `events/codec.py`."""

    commit_id: str
    author: str
    at_ms: int
    schema: int
    body: bytes
    hashes: bytes
    checksum: str


@attrs.frozen
class StoredRecord:
    """A record at its place in the log."""

    position: int
    previous: str
    record: Record


# --- answers to an append -------------------------------------------------------------------------------------------


@attrs.frozen
class Appended:
    """The commit is in the log. `missed`: what others appended between its base and it."""

    position: int
    missed: tuple[Entry, ...]


@attrs.frozen
class Conflicted:
    """Not appended: a scope it checks was touched after its base. `missed`: everything after the base."""

    scope: str
    missed: tuple[Entry, ...]


@attrs.frozen
class Fenced:
    """Not appended: only sessions from `lowest_session` on may write as this engine."""

    lowest_session: int


@attrs.frozen
class Diverged:
    """Not appended: at the base's position the log holds another commit, or none. History was rolled back."""

    position: int
    found: str


AppendReply: TypeAlias = Appended | Conflicted | Fenced | Diverged


# --- the same answers before decoding -------------------------------------------------------------------------------


@attrs.frozen
class RawAppended:
    position: int
    missed: tuple[StoredRecord, ...]


@attrs.frozen
class RawConflicted:
    scope: str
    missed: tuple[StoredRecord, ...]


@attrs.frozen
class Behind:
    """Not appended: the writer has missed more than one reply carries. It reads up to `head`, then tries again."""

    head: int


RawReply: TypeAlias = RawAppended | RawConflicted | Behind | Fenced | Diverged


@attrs.frozen
class Head:
    """The end of the log: `position` 0 and commit id "" before the first entry. `first`: oldest position kept."""

    position: int
    commit_id: str
    first: int


# --- doors ----------------------------------------------------------------------------------------------------------


class Transport(Protocol):
    """One index's log on one backend: one attempt a call, no retries.

    Every method may raise `Unavailable` (nothing was done) and `append` may raise `OutcomeUnknown`.
    """

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
        """Append if fence, base and checks allow; see `events/lua/commit.lua` for the exact order."""
        ...

    def read(self, after: int, limit: int) -> tuple[StoredRecord, ...]:
        """At most `limit` records with positions above `after`, in order."""
        ...

    def head(self) -> Head: ...

    def wait(self, after: int, timeout_s: float) -> None:
        """Return when there is an entry above `after`, or when the time is over (or earlier: the caller looks again)."""
        ...

    def follow(self, after: int) -> Follower | None:
        """Start fetching entries above `after` in the background; None where that has no use."""
        ...

    def close(self) -> None: ...


class Follower(Protocol):
    """Entries fetched ahead of need by somebody else's thread."""

    def arrived(self, after: int) -> tuple[StoredRecord, ...]:
        """What has come since the last call and lies above `after`, in order; never waits. Gaps and repeats are possible."""
        ...

    def wait(self, after: int, timeout_s: float) -> None:
        """Return when `arrived` may have something above `after`, or when the time is over."""
        ...

    def close(self) -> None: ...


class Mutex(Protocol):
    """A re-entrant lock, as a context manager or by hand."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...

    def release(self) -> None: ...

    def __enter__(self) -> bool: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Log(Protocol):
    """One index's log as the machine sees it."""

    @property
    def index(self) -> str:
        """Name of the index."""
        ...

    def next_commit_id(self) -> str:
        """An id nobody has used or will use."""
        ...

    def append(self, commit: Commit, base: Base) -> AppendReply:
        """Append, find out what became of it, and tell.

        Raises:
            Unavailable: nothing was appended.
            OutcomeUnknown: the deadline passed before it could be found out; calling again with the same commit and
                base goes on finding out.
        """
        ...

    def read(self, after: int, limit: int | None = None) -> tuple[Entry, ...]:
        """Entries above `after`, at most `limit` (default `limits.READ_PAGE`)."""
        ...

    def head(self) -> Head: ...

    def follow(self, after: int) -> None:
        """From now on fetch in the background what comes after this position, where the backend can."""
        ...

    @property
    def following(self) -> bool:
        """Whether entries are fetched in the background; if not, `arrived` has nothing and `read` is the way."""
        ...

    def arrived(self, after: int) -> tuple[Entry, ...]:
        """Entries above `after` that the background follower has fetched since the last call; never waits."""
        ...

    def wait(self, after: int, timeout_s: float) -> None:
        """Return when there may be an entry above `after`, at the latest when the time is over."""
        ...

    def until(self, timeout_s: float) -> Iterator[float]:
        """Seconds left, again and again until none are; the first time in any case."""
        ...

    def attempts(self) -> Iterator[int]:
        """1, 2, 3 … for deciding again after conflicts: waits with jitter before each, ends when it is enough."""
        ...

    def mutex(self) -> Mutex:
        """A new re-entrant lock. The machine starts no threads, but its engine may call from several."""
        ...

    def close(self) -> None: ...


class Connection(Protocol):
    """A place where logs are. What `events.connect` returns."""

    def log(self, index: str, *, follow: bool = True) -> Log:
        """The log of one index, created by its first entry."""
        ...

    def indexes(self) -> tuple[str, ...]:
        """Names of the indexes that have a log here, sorted."""
        ...

    def close(self) -> None: ...
