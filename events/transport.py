"""What a backend of the log implements, as protocols: one attempt a call, bytes in, bytes out.

Owns the doors below `events/log.py` and `events/snapshots.py`, which repeat and decode; the records that cross them are in
`events/ports.py`. `events/memory.py` is the executable definition, `events/redis_log.py` the one that production uses; the
simulator wraps one to lose and repeat messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import attrs

from events.ports import Base, Head, Job, RawReply, Record, RenewReply, SnapshotPointer, StoredRecord

# --- snapshots ------------------------------------------------------------------------------------------------------


@attrs.frozen
class Published:
    """The pointer has moved; the log keeps its entries from `first` on."""

    first: int


@attrs.frozen
class NotPublished:
    """The pointer has not moved, and why: somebody else was faster, the blob is incomplete, the history is another."""

    reason: str


PublishReply: TypeAlias = Published | NotPublished


class SnapshotTransport(Protocol):
    """Where snapshots of one index are. One attempt a call; each may raise `Unavailable`, and repeats are harmless."""

    def pointers(self) -> tuple[SnapshotPointer, ...]:
        """The newest first, at most two."""
        ...

    def piece(self, blob: str, start: int, size: int) -> bytes:
        """At most `size` bytes of a blob from `start` on; fewer at its end or where it is gone."""
        ...

    def store(self, blob: str, start: int, piece: bytes, ttl_s: float) -> None:
        """Write a piece of a blob that nobody uses yet, and that runs out unless it is published."""
        ...

    def discard(self, blob: str) -> None:
        """Delete a blob that was stored and not published."""
        ...

    def publish(self, pointer: SnapshotPointer, seen: tuple[SnapshotPointer, ...], margin: int) -> PublishReply:
        """Make `pointer` the newest and trim the log, if the pointers are still those `seen`."""
        ...

    def plant(self, pointer: SnapshotPointer, fences: tuple[tuple[str, int], ...]) -> PublishReply:
        """Begin an empty index at a stored snapshot, with the lowest session of each engine that may append."""
        ...


# --- the log --------------------------------------------------------------------------------------------------------


class Transport(Protocol):
    """One index's log on one backend: one attempt a call, no retries.

    Every method may raise `Unavailable` (nothing was done) and `append` may raise `OutcomeUnknown`. While the log is closed
    after its server began a new life, an append is `Unavailable`, and passing.
    """

    @property
    def snapshots(self) -> SnapshotTransport: ...

    @property
    def leases_run_out(self) -> bool:
        """Whether an engine has to renew its lease to keep it."""
        ...

    def renew_lease(self, engine: str, session: int, base: Base) -> RenewReply:
        """Keep the lease of a life that still stands; `base` is what its engine knows of the log."""
        ...

    def leases(self, engines: Sequence[str]) -> tuple[bool, ...]:
        """Which of these engines hold their lease."""
        ...

    def note_loss(self, base: Base) -> None:
        """Somebody knew this commit, and the log does not hold it: `HistoryLost` must come before any other commit."""
        ...

    def keep(self, token: str, ttl_s: float) -> bool:
        """Be the keeper that acts for so long, or go on being it; False while another one is."""
        ...

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
