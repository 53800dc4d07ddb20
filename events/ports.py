"""What the machine needs from outside, as protocols, and the records that cross them.

Owns the shape of every door between the pure machine and the world. Two layers:

- `Log` is what `statecore` calls: facts in, facts out, every call ends in bounded time. It is here, with every record.
- `Transport` is what a backend implements: one attempt each, bytes in, bytes out. It is in `events/transport.py`.

`events/log.py` makes a `Log` of any `Transport`: retries, unknown outcomes, decoding, following. So the protocol that
must be right exists once and every backend, real or simulated, runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Final, Protocol, TypeAlias

import attrs

from events.facts import Fact, HistoryLost

# --- commits and entries --------------------------------------------------------------------------------------------


@attrs.frozen
class Base:
    """The end of the history a decision was made on: a position and the id of the commit there (0 and "" at birth)."""

    position: int
    commit_id: str


BIRTH: Final = Base(0, "")
"""Before the first entry."""


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
        lapsed: engines that this commit declares lost; refused while one of them holds its lease.
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
    lapsed: tuple[str, ...] = ()

    @property
    def forgets(self) -> bool:
        """Whether it deals with a lost end of the history: it is taken while such a loss keeps all others out."""
        return any(type(fact) is HistoryLost for fact in self.facts)


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
    """Not appended: only sessions from `lowest_session` on may write as this engine. `missed`: what the log says of it."""

    lowest_session: int
    missed: tuple[Entry, ...] = attrs.field(default=(), eq=False, repr=False)


@attrs.frozen
class Diverged:
    """Not appended: at the base's position the log holds another commit, or none. History was rolled back."""

    position: int
    found: str


@attrs.frozen
class Trimmed:
    """Not appended: the log does not hold what comes after the base any more. Restore from a snapshot, decide again.

    Attributes:
        in_doubt: an earlier attempt may have been appended, and nobody can find out any more.
    """

    in_doubt: bool = False


@attrs.frozen
class StillAlive:
    """Not appended: this engine was declared lost, and holds its lease."""

    engine: str


@attrs.frozen
class LossInTheWay:
    """Not appended: somebody knew `commit`, and the log does not hold it. `HistoryLost` has to be appended first."""

    commit: str


AppendReply: TypeAlias = Appended | Conflicted | Fenced | Diverged | Trimmed | StillAlive | LossInTheWay


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


RawReply: TypeAlias = RawAppended | RawConflicted | Behind | Fenced | Diverged | Trimmed | StillAlive | LossInTheWay


@attrs.frozen
class Head:
    """The end of the log: `position` 0 and commit id "" before the first entry. `first`: oldest position kept.

    Attributes:
        life: of the server, as the log was last open in it.
        loss: last commit of an end that is lost and was not dealt with yet (`HistoryLost`); "" when there is none.
    """

    position: int
    commit_id: str
    first: int
    life: str = attrs.field(default="", eq=False)
    loss: str = attrs.field(default="", eq=False)


@attrs.frozen
class Renewed:
    """The lease was renewed.

    Attributes:
        life: of the server.
        opens_in_s: the log is closed for so long; 0 when it is open.
        continued: history continues what the engine knows; False if that is too old to tell.
    """

    life: str
    opens_in_s: float = 0.0
    continued: bool = True


RenewReply: TypeAlias = Renewed | Fenced | Diverged


# --- snapshots ------------------------------------------------------------------------------------------------------


@attrs.frozen
class SnapshotPointer:
    """A stored snapshot: which state it holds, and where.

    Attributes:
        position, commit_id: the end of the history it is the outcome of.
        digest: of the state.
        schema: of its bytes.
        blob: name of the key that holds them; `size` bytes.
        at_ms: wall time, for people and for its age.
    """

    position: int
    commit_id: str
    digest: str
    schema: int
    blob: str
    size: int
    at_ms: int


# --- doors ----------------------------------------------------------------------------------------------------------


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
        """Entries above `after`, at most `limit` (default `limits.READ_PAGE`). The first may not be the next: trimmed."""
        ...

    def snapshots(self) -> tuple[SnapshotPointer, ...]:
        """Where the stored snapshots are, the newest first."""
        ...

    def fetch(self, pointer: SnapshotPointer) -> bytes:
        """The bytes of a stored snapshot; fewer than its size if it has been replaced or damaged."""
        ...

    def alarm(self, message: str) -> None:
        """Tell the people who run this that something is wrong that the caller can go on with."""
        ...

    def hold_lease(self, engine: str, session: int) -> None:
        """From now on say that this life is alive, in the background, until `drop_lease`."""
        ...

    def drop_lease(self) -> None: ...

    def at(self, base: Base) -> None:
        """The engine has come to here: what its lease lets the log check."""
        ...

    def standing(self) -> Fenced | Diverged | None:
        """What the log last said against this life. Asks it if that was too long ago.

        Raises:
            Unavailable: it has not been heard for too long; nothing may be begun.
        """
        ...

    def continues(self, base: Base) -> bool:
        """Whether nothing in the log contradicts the history up to `base`; reading on shows what follows it."""
        ...

    def same_life(self) -> bool:
        """Whether the log's server has gone on in one life since this engine's history was last seen to be its own."""
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

    def attempts(self, *, joining: bool) -> Iterator[int]:
        """1, 2, 3 … for deciding again after conflicts: waits with jitter before each, ends when it is enough.

        `joining`: a life begins, whose forerunner may still be at work; then it ends much later.
        """
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
