"""A transport that loses, delays, repeats and refuses, and lets the others act in between.

Owns the faults of `reliability.md` that a log can show: lost request, lost reply, late request, duplicate request,
unavailable, failing reads, and a background follower whose entries come late, twice, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from events.errors import OutcomeUnknown, Unavailable
from events.log import EventLog
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
    Renewed,
    RenewReply,
    SnapshotPointer,
    StoredRecord,
)
from events.transport import Follower, PublishReply, SnapshotTransport, Transport
from tests.sim.accounts import Intent, require
from tests.sim.job_faults import Died
from tests.sim.world import Message, World, Writer

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
STALL_PERCENT = 2
SNAPSHOT_FAULTS = ((97, "none"), (2, "lost request"), (1, "lost reply"))

T = TypeVar("T")


class Sender(Writer, Protocol):
    """Whose transport it is; what the call at hand is about, for the judge.

    Attributes:
        dead, paused: its process is.
        doing: when it reads the log: at join, in mid-life, …
        snapshot_faults: what may happen to its requests about snapshots.
    """

    intents: list[Intent]
    said_ready: set[str]
    redecided: bool
    explicit: bool
    faults: int
    dead: bool
    paused: bool
    snapshot_faults: tuple[tuple[int, str], ...]

    @property
    def in_step(self) -> bool: ...

    @property
    def doing(self) -> str: ...

    def others_act(self) -> None: ...


class FaultyTransport:
    """Implements `events.transport.Transport` for one process."""

    def __init__(self, world: World, process: Sender, interlude: Callable[[Any], None]) -> None:
        self._world = world
        self._process = process
        self._interlude = interlude

    @property
    def snapshots(self) -> SnapshotTransport:
        return FaultySnapshots(self._world, self._process)

    @property
    def leases_run_out(self) -> bool:
        return True

    def renew_lease(self, engine: str, session: int, base: Base) -> RenewReply:
        world, process = self._world, self._process
        self._may_be_lost()
        reply = world.log.renew_lease(engine, session, base)
        match reply:
            case Renewed():
                world.clockwork.gives_sign(engine, session)
                world.marks["closed log met at renewal"] += reply.opens_in_s > 0
                world.marks["renewed, too old to tell"] += not reply.continued
            case Diverged():
                world.tell(f"{process.name}: its lease hears that it is of another history")
                require(not world.stands(base), "who stands on the log's history is not turned away", reply)
                world.marks["diverged at renewal"] += 1
            case Fenced():
                world.tell(f"{process.name}: its lease hears of session {reply.lowest_session}")
                world.marks["fenced at renewal"] += 1
        return reply

    def leases(self, engines: Sequence[str]) -> tuple[bool, ...]:
        self._may_be_lost()
        return self._world.log.leases(engines)

    def keep(self, token: str, ttl_s: float) -> bool:
        self._may_be_lost()
        return self._world.log.keep(token, ttl_s)

    def note_loss(self, base: Base) -> None:
        self._may_be_lost()
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
        if world.perils and world.choices.chance(STALL_PERCENT):
            self._stall()
        for silent in lapsed:
            world.clockwork.may_be_heard(silent)
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
        try:
            reply = world.deliver(message)
        except Unavailable:
            world.tell(f"{process.name}: the log is closed for {world.log.closed_for():.1f} s")
            world.marks["closed log met"] += 1
            if message in world.late:
                world.late.remove(message)  # no connection delivers a request twice; who repeats it is told the same
            raise
        if fault == LOST_REPLY:
            raise OutcomeUnknown("simulated: lost reply", record.commit_id)
        if isinstance(reply, RawAppended):
            world.acknowledged[record.commit_id] = reply.position
        if isinstance(reply, RawConflicted | Behind) and process.explicit:
            process.redecided = True
        return reply

    def read(self, after: int, limit: int) -> tuple[StoredRecord, ...]:
        self._read_may_fail()
        self._process.redecided |= self._process.in_step  # a full pool is looked at again, and the step with it
        found = self._world.log.read(after, limit)
        if found and found[0].position > after + 1:
            self._world.tell(f"{self._process.name}: {after + 1} is trimmed, the log begins at {found[0].position}")
            self._world.marks[f"behind the trim {self._process.doing}"] += 1
        return found

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

    def _stall(self) -> None:
        """The whole process is stopped while its request is on its way, and others go on."""
        world, process = self._world, self._process
        world.tell(f"{process.name} is stopped in the middle of a call")
        world.marks["stopped in the middle of a call"] += 1
        before, process.paused = process.paused, True
        world.clockwork.passes(world.choices.one_of((2.0, 4.0, 7.0, 11.0)))
        self._interlude(process)
        process.paused = before

    def _may_be_lost(self) -> None:
        """A request that changes nothing that matters, or a question: it may not get through."""
        if self._world.healed or self._process.dead:
            return
        self._world.marks["lost question"] += (lost := self._world.choices.chance(READ_FAILURE_PERCENT))
        if lost:
            raise Unavailable("simulated: lost question")

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


class FaultySnapshots:
    """Implements `events.transport.SnapshotTransport`. Its caller may die at any point."""

    def __init__(self, world: World, process: Sender) -> None:
        self._world = world
        self._process = process

    def pointers(self) -> tuple[SnapshotPointer, ...]:
        return self._call("asking for pointers", self._world.log.snapshots.pointers)

    def piece(self, blob: str, start: int, size: int) -> bytes:
        def read() -> bytes:
            self._world.shelf.reads(blob)
            return self._world.log.snapshots.piece(blob, start, size)

        return self._call("reading a blob", read)

    def store(self, blob: str, start: int, piece: bytes, ttl_s: float) -> None:
        def write() -> None:
            self._world.log.snapshots.store(blob, start, piece, ttl_s)
            self._world.shelf.writes(blob, start, len(piece))

        self._call("storing a blob", write)

    def discard(self, blob: str) -> None:
        self._call("discarding a blob", lambda: self._world.log.snapshots.discard(blob))

    def publish(self, pointer: SnapshotPointer, seen: tuple[SnapshotPointer, ...], margin: int) -> PublishReply:
        return self._call("publishing", lambda: self._world.shelf.publish(pointer, seen, margin))

    def plant(self, pointer: SnapshotPointer, fences: tuple[tuple[str, int], ...]) -> PublishReply:
        return self._call("planting", lambda: self._world.log.snapshots.plant(pointer, fences))

    def _call(self, what: str, call: Callable[[], T]) -> T:
        world = self._world
        fault = "none" if world.healed else world.choices.weighted(self._process.snapshot_faults)
        if fault != "none":
            world.tell(f"{self._process.name}: {fault} while {what}")
            world.marks[f"snapshot: {fault}"] += 1
        if fault == "lost request":
            raise Unavailable("simulated: lost request")
        if fault == "death before":
            world.marks[f"keeper died before {what}"] += 1
            raise Died
        if fault == "others":
            self._process.others_act()
        answer = call()
        if fault == "rots":
            world.shelf.rot()
        if fault == "death after":
            world.marks[f"keeper died after {what}"] += 1
            raise Died
        if fault == "lost reply":
            raise Unavailable("simulated: lost reply")
        return answer


class SimulatedLog(EventLog):
    """An `EventLog` whose alarms are counted."""

    world: World

    def alarm(self, message: str) -> None:
        self.world.tell(f"ALARM: {message}")
        self.world.marks["corrupt snapshot passed over"] += "is not used" in message
        self.world.marks["alarm: rolled back"] += "rolled back" in message


def log_over(world: World, transport: Transport, nonce: str, *, follow: bool) -> SimulatedLog:
    log = SimulatedLog(
        "sim", transport, follow=follow, nonce=nonce, sleep=lambda _: None, clock=world.now, threads=False
    )
    log.world = world
    return log


class Connected:
    """What a process is given instead of `events.connect(…)`. `made`: the log it asked for."""

    def __init__(self, world: World, transport: FaultyTransport, nonce: str) -> None:
        self._world = world
        self._transport = transport
        self._nonce = nonce
        self.made: EventLog | None = None

    def log(self, index: str, *, follow: bool = True) -> EventLog:  # noqa: ARG002 - there is one
        self.made = log_over(self._world, self._transport, self._nonce, follow=follow)
        return self.made

    def indexes(self) -> tuple[str, ...]:
        return ("sim",)

    def close(self) -> None:
        """Nothing to end."""
