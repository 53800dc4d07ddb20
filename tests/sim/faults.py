"""A transport that loses, delays, repeats and refuses, and lets the others act in between.

Owns the faults of `reliability.md` that a log can show: lost request, lost reply, late request, duplicate request,
unavailable, failing reads, and a background follower whose entries come late, twice, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from events.errors import OutcomeUnknown, Unavailable
from events.log import EventLog
from events.ports import Base, Behind, Head, Job, RawConflicted, RawReply, Record, RenewReply, StoredRecord
from events.transport import Follower, SnapshotTransport
from tests.sim.world import Message, World

if TYPE_CHECKING:
    from tests.sim.process import Process

NONE, LOST_REPLY, LOST_REQUEST, LATE_REQUEST, DUPLICATE_REQUEST, UNAVAILABLE = (
    "none",
    "lost reply",
    "lost request",
    "late request",
    "duplicate request",
    "unavailable",
)
FIRST = ((86, NONE), (3, LOST_REPLY), (3, LOST_REQUEST), (3, LATE_REQUEST), (3, DUPLICATE_REQUEST), (2, UNAVAILABLE))
AFTER_ONE = (
    (40, NONE),
    (12, LOST_REPLY),
    (18, LOST_REQUEST),
    (12, LATE_REQUEST),
    (3, DUPLICATE_REQUEST),
    (15, UNAVAILABLE),
)
READ_FAILURE_PERCENT = 3
READ_FAILURE_AGAIN_PERCENT = 50


class FaultyTransport:
    """Implements `events.transport.Transport` for one process."""

    def __init__(self, world: World, process: Process, interlude: Callable[[Process], None]) -> None:
        self._world = world
        self._process = process
        self._interlude = interlude

    @property
    def snapshots(self) -> SnapshotTransport:
        return self._world.log.snapshots

    @property
    def leases_run_out(self) -> bool:
        return True

    def renew_lease(self, engine: str, session: int, base: Base) -> RenewReply:
        return self._world.log.renew_lease(engine, session, base)

    def leases(self, engines: Sequence[str]) -> tuple[bool, ...]:
        return self._world.log.leases(engines)

    def keep(self, token: str, ttl_s: float) -> bool:
        return self._world.log.keep(token, ttl_s)

    def note_loss(self, base: Base) -> None:
        self._world.log.note_loss(base)

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
        lapsed: tuple[str, ...] = (),
        forgets: bool = False,
    ) -> RawReply:
        world, process = self._world, self._process
        message = Message(
            process,
            record,
            engine,
            session,
            base,
            checks,
            touches,
            fences,
            jobs,
            lapsed,
            forgets,
            tuple(process.intents),
            frozenset(process.said_ready),
            process.redecided,
        )
        world.deliver_late()
        self._interlude(process)
        fault = self._fault()
        if fault != NONE:
            world.tell(f"{process.name}: {fault}, commit {record.commit_id}")
        match fault:
            case "unavailable":
                raise Unavailable("simulated: refused")
            case "lost request":
                raise OutcomeUnknown("simulated: lost request", record.commit_id)
            case "late request":
                world.late.append(message)
                raise OutcomeUnknown("simulated: late request", record.commit_id)
            case "duplicate request":
                world.late.append(message)
        reply = world.deliver(message)
        if fault == LOST_REPLY:
            raise OutcomeUnknown("simulated: lost reply", record.commit_id)
        if isinstance(reply, RawConflicted | Behind) and process.explicit:
            process.redecided = True
        return reply

    def read(self, after: int, limit: int) -> tuple[StoredRecord, ...]:
        self._read_may_fail()
        self._process.redecided |= self._process.in_step  # a full pool is looked at again, and the step with it
        return self._world.log.read(after, limit)

    def head(self) -> Head:
        self._read_may_fail()
        return self._world.log.head()

    def follow(self, after: int) -> Follower | None:
        return FaultyFollower(self._world, after, lambda: self._interlude(self._process))

    def wait(self, after: int, timeout_s: float) -> None:  # noqa: ARG002 - there is no time here
        """While somebody waits, others act; then the time is over."""
        self._interlude(self._process)

    def close(self) -> None:
        """The log in memory goes on for the others."""

    def _fault(self) -> str:
        world, process = self._world, self._process
        if world.healed:
            return NONE
        fault = world.choices.weighted(AFTER_ONE if process.faults else FIRST)
        if fault != NONE:
            process.faults += 1
            world.marks[fault] += 1
        return fault

    def _read_may_fail(self) -> None:
        world, process = self._world, self._process
        world.deliver_late()
        if world.healed:
            return
        if world.choices.chance(READ_FAILURE_AGAIN_PERCENT if process.faults else READ_FAILURE_PERCENT):
            process.faults += 1
            world.marks["read failure"] += 1
            raise Unavailable("simulated: read failed")


class FaultyFollower:
    """Fetches ahead, badly. Implements `events.transport.Follower`."""

    def __init__(self, world: World, after: int, interlude: Callable[[], None]) -> None:
        self._world = world
        self._after = after
        self._interlude = interlude

    def arrived(self, after: int) -> tuple[StoredRecord, ...]:
        return tuple(record for record in self._fetched() if record.position > after)

    def wait(self, after: int, timeout_s: float) -> None:  # noqa: ARG002 - there is no time here
        """While somebody waits, others act; then the time is over."""
        self._interlude()

    def _fetched(self) -> tuple[StoredRecord, ...]:
        world = self._world
        behaviour = (
            "all"
            if world.healed
            else world.choices.weighted(((50, "nothing"), (30, "all"), (8, "some"), (6, "repeated"), (6, "a gap")))
        )
        waiting = world.log.read(self._after, 1000)
        if behaviour == "nothing" or not waiting:
            return ()
        world.marks[f"arrivals: {behaviour}"] += 1
        match behaviour:
            case "some":
                waiting = waiting[: 1 + world.choices.draw(len(waiting))]
            case "repeated":
                waiting = waiting + waiting
            case "a gap":
                waiting = waiting[world.choices.draw(len(waiting)) :]
        self._after = waiting[-1].position
        return waiting

    def close(self) -> None:
        """Nothing to end."""


class Connected:
    """What a process is given instead of `events.connect(…)`."""

    def __init__(self, transport: FaultyTransport, nonce: str, clock: Callable[[], float]) -> None:
        self._transport = transport
        self._nonce = nonce
        self._clock = clock

    def log(self, index: str, *, follow: bool = True) -> EventLog:
        return EventLog(
            index,
            self._transport,
            follow=follow,
            nonce=self._nonce,
            sleep=lambda _: None,
            clock=self._clock,
            threads=False,
        )

    def indexes(self) -> tuple[str, ...]:
        return ("sim",)

    def close(self) -> None:
        """Nothing to end."""
