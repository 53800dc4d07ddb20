"""What a swap worker needs from outside, as protocols, and the records that cross them.

Two layers, as for the log (`events/ports.py`):

- `Jobs` is what one worker calls: the jobs of one rank of one GPU pool, decoded, in the right order, each until it is
  finished. `events/job_queue.py` makes one of any `JobTransport`.
- `JobTransport` is what a backend implements: one attempt each, bytes in, bytes out. `events/memory_jobs.py` is its
  executable definition, `events/redis_jobs.py` the one that production uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, TypeAlias

import attrs

from events.jobs import TransferJob
from events.ports import Base, Job, Record

BEGINNING: Final = "0-0"
"""Entry id below every other; as a cursor: from the start, and, when it comes back, nothing is left."""

# --- what a worker sees ---------------------------------------------------------------------------------------------


@attrs.frozen
class Seat:
    """Whose view of a job stream it is. One worker sits on a rank of a GPU pool; `worker` is its name."""

    pool: str
    rank: int
    worker: str


@attrs.frozen
class Delivery:
    """A job to carry out.

    Attributes:
        entry: its id in the stream.
        deliveries: how often it was handed to workers of this rank, this time included; above 1, somebody tried before.
        reported: this rank has reported the transfer already, or it is over. Do NOT copy: its blocks may belong to
            somebody else by now. Finish it, so that it goes off the list.
        life: of the server, when it was handed out. In another life the log may not know the transfer any more.
    """

    entry: str
    job: TransferJob
    deliveries: int
    reported: bool
    life: str = ""


@attrs.frozen
class Dropped:
    """An entry that held no job for this rank (unreadable, or for fewer ranks); it is off the list."""

    entry: str
    reason: str


FINISHED: Final = "finished"
REPORTED: Final = "reported"
DUPLICATE: Final = "duplicate"
GONE: Final = "gone"
UNSEATED: Final = "unseated"
INTERRUPTED: Final = "interrupted"


@attrs.frozen
class FinishReply:
    """What became of a report.

    Attributes:
        outcome: "finished" (the last rank: it is in the log), "reported" (others are still copying), "duplicate" (it
            was finished before), "gone" (the index does not exist any more), "unseated" (another worker sits there now) or
            "interrupted" (the server began a new life since the job was taken). The last two: nothing was written.
        position: of the finish in the log; 0 where there is none.
        failure: what the log says went wrong, all ranks joined; "" when all went well. Known for "finished" only.
        acked: the job was still on this rank's list.
    """

    outcome: str
    position: int = 0
    failure: str = ""
    acked: bool = True


@attrs.frozen
class Heartbeat:
    """What a worker says of itself. For readiness and suspicion; decides nothing.

    Attributes:
        life: drawn at its start; tells two lives of one name apart.
        host: name of the machine and its boot.
        state: "ready", "copying <transfer>", …
        jobs: how many it has finished.
    """

    worker: str
    life: str
    pid: int
    host: str
    pool: str
    rank: int
    state: str
    jobs: int


class Jobs(Protocol):
    """The jobs of one rank of one GPU pool, as one worker sees them. One caller at a time, but for `beat`.

    Every method may raise `Unavailable`; `take` then begins again with what this worker has not finished.
    """

    @property
    def seat(self) -> Seat: ...

    @property
    def ranks(self) -> int:
        """How many ranks the pool has, by what this worker was told."""
        ...

    @property
    def trimmed(self) -> int:
        """Jobs that were gone from the stream when this worker looked for them on its list or a dead one's."""
        ...

    def take(self, timeout_s: float) -> Delivery | Dropped | None:
        """The next job; None when there was none in time.

        In this order: what this worker took and did not finish; what a dead worker of this rank left; what is new.
        """
        ...

    def finish(self, delivery: Delivery, ok: bool, reason: str = "") -> FinishReply:
        """Report. Repeated after lost replies, which is harmless.

        Raises:
            Unavailable: the server did not answer in time; the job stays on this worker's list.
            InvalidInput: the index is of another release.
        """
        ...

    def again(self) -> None:
        """The job at hand was neither finished nor given up: `take` begins with the list again."""
        ...

    def enter(self, *, takeover: bool = False) -> None:
        """Sit down: from now on `alive` shows this worker.

        Raises:
            InvalidInput: a worker of this rank lives, and `takeover` was not asked for.
        """
        ...

    def beat(self, state: str) -> str | None:
        """Still here; returns the life of the server. None: another worker has taken the seat over; stop after the job at
        hand. Any thread may call."""
        ...

    def alive(self) -> tuple[Heartbeat | None, ...]:
        """Who lives, by rank of this pool."""
        ...

    def leave(self) -> None:
        """Stand up. Unfinished jobs stay on the list for the next worker of this rank."""
        ...


class Doorbell(Protocol):
    """Jobs from the other side: what is in the streams, and putting back what got lost."""

    def ringing(self, pool: str) -> frozenset[str]:
        """Transfers that have a job in this GPU pool's stream."""
        ...

    def ring(self, job: Job, base: Base) -> bool:
        """Put a job into its stream, unless its transfer is finished or was rung again already, or the log does not continue
        the state at `base` that the job was made from. Repeats are harmless."""
        ...


# --- what a backend does --------------------------------------------------------------------------------------------


@attrs.frozen
class RawJob:
    """An entry of a job stream. `body` None: it was trimmed away while on somebody's list (redis-facts R17)."""

    entry: str
    body: bytes | None
    deliveries: int


@attrs.frozen
class Claimed:
    """A page of jobs that were moved to the caller's list. `cursor`: where to go on; `BEGINNING`: that was all."""

    cursor: str
    jobs: int
    trimmed: int


@attrs.frozen
class Report:
    """One rank's report, see `lua/finish_transfer.lua`.

    Attributes:
        reason: "" when it has copied.
        ok: what `record` says.
        touches: scopes that `record` moves.
        token: of the worker's seat.
        life: of the server, when the job was taken.
    """

    entry: str
    transfer: str
    ranks: int
    reason: str
    ok: bool
    record: Record
    touches: tuple[str, ...]
    token: str = ""
    life: str = ""


@attrs.frozen
class RawFinish:
    """`outcome` as in `FinishReply`."""

    outcome: str
    position: int
    acked: bool


@attrs.frozen
class OtherOutcome:
    """Nothing was written: all ranks have reported, and the record says something else. `failures`: (rank, reason)."""

    failures: tuple[tuple[int, str], ...]


RawReport: TypeAlias = RawFinish | OtherOutcome


@attrs.frozen
class Looked:
    """What is known of a job before it is handed out: whether the rank has reported, and the life of the server."""

    reported: bool
    life: str


class JobTransport(Protocol):
    """The job streams of one index on one backend: one attempt a call. Each may raise `Unavailable`."""

    def own(self, seat: Seat, after: str, limit: int) -> tuple[RawJob, ...]:
        """What is on this worker's list, with entry ids above `after`, in order. Counts as a delivery."""
        ...

    def claim(self, seat: Seat, cursor: str, idle_s: float, limit: int) -> Claimed:
        """Move to this worker's list what has been on another's of this rank for `idle_s` without a word; with the last page
        also what this rank was given, has not reported, and nobody has on a list any more (redis-facts R19)."""
        ...

    def new(self, seat: Seat, timeout_s: float) -> RawJob | None:
        """The next entry no worker of this rank has seen, now on this worker's list."""
        ...

    def discard(self, seat: Seat, entry: str, *, everywhere: bool) -> None:
        """Take an entry off this rank's list, or (`everywhere`) out of the stream."""
        ...

    def look_up(self, transfer: str, rank: int) -> Looked:
        """Whether this rank has reported this transfer, or it is finished. `Unavailable` while the log is closed."""
        ...

    def life(self) -> str:
        """The life of the server."""
        ...

    def report(self, seat: Seat, report: Report) -> RawReport: ...

    def ringing(self, pool: str) -> frozenset[str]: ...

    def ring(self, job: Job, base: Base) -> bool: ...

    def sit(self, seat: Seat, token: str, body: bytes, ttl_s: float, *, only_if_empty: bool) -> bool:
        """Take a seat: from now on only reports with this token count. False: it is taken, and `only_if_empty` was asked."""
        ...

    def occupy(self, seat: Seat, body: bytes, ttl_s: float) -> None:
        """Set the heartbeat of a seat."""
        ...

    def occupants(self, pool: str, ranks: Sequence[int]) -> tuple[bytes | None, ...]:
        """Heartbeats that have not run out, by rank."""
        ...

    def vacate(self, seat: Seat) -> None: ...
