"""Job streams that lose, delay, repeat and refuse, and let the others act in between.

Owns the faults of `reliability.md` that a worker can meet: a lost request, a lost reply, a report that arrives late or
twice, and the worker's own death between its report and the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from events.errors import Unavailable
from events.job_ports import Claimed, Looked, RawJob, RawReport, Report, Seat
from events.jobs import decode_job
from events.ports import Base, Job
from tests.sim.world import LateReport, World

Answer = TypeVar("Answer")

REPORTS = (
    (84, "none"),
    (3, "lost report"),
    (3, "lost reply to a report"),
    (4, "late report"),
    (3, "duplicate report"),
    (3, "death after the report"),
)
CALLS = ((96, "none"), (2, "lost job request"), (2, "lost job reply"))


class Died(BaseException):
    """The worker's process has ended. Nothing in the worker's code may catch it."""


class FaultyJobs:
    """Implements `events.job_ports.JobTransport` over the world's job streams, for one worker or for the doorbell."""

    def __init__(self, world: World, interlude: Callable[[], None]) -> None:
        self._world = world
        self._interlude = interlude

    def own(self, seat: Seat, after: str, limit: int) -> tuple[RawJob, ...]:
        return self._call(lambda: self._world.jobs.own(seat, after, limit))

    def claim(self, seat: Seat, cursor: str, idle_s: float, limit: int) -> Claimed:
        claimed = self._call(lambda: self._world.jobs.claim(seat, cursor, idle_s, limit))
        self._world.marks["claimed what another worker left"] += claimed.jobs > 0
        self._world.marks["a lost job on a list"] += claimed.trimmed > 0
        return claimed

    def new(self, seat: Seat, timeout_s: float) -> RawJob | None:
        """Who waits for a job finds that the time is over."""
        found = self._call(lambda: self._world.jobs.new(seat, 0.0))
        if found is None:
            self._world.clockwork.passes(timeout_s)
        return found

    def discard(self, seat: Seat, entry: str, *, everywhere: bool) -> None:
        self._call(lambda: self._world.jobs.discard(seat, entry, everywhere=everywhere))

    def look_up(self, transfer: str, rank: int) -> Looked:
        looked = self._call(lambda: self._world.jobs.look_up(transfer, rank))
        self._world.server.meets_open()
        return looked

    def life(self) -> str:
        return self._call(self._world.jobs.life)

    def report(self, seat: Seat, report: Report) -> RawReport:
        world = self._world
        self._interlude()
        fault = "none" if world.healed else world.choices.weighted(REPORTS)
        world.marks[fault] += fault != "none"
        if fault in ("late report", "duplicate report"):
            world.late.append(LateReport(seat, report))
        if fault in ("lost report", "late report"):
            raise Unavailable(f"simulated: {fault}")
        reply = world.report(seat, report)
        if fault == "death after the report":
            raise Died
        if fault == "lost reply to a report":
            raise Unavailable("simulated: lost reply")
        return reply

    def ringing(self, pool: str) -> frozenset[str]:
        ringing = self._call(lambda: self._world.jobs.ringing(pool))
        self._interlude()
        return ringing

    def ring(self, job: Job, base: Base) -> bool:
        rung = self._call(lambda: self._world.jobs.ring(job, base))
        self._world.tell(f"job of {job.transfer} {'rung' if rung else 'not rung'}")
        marks = self._world.marks
        marks["a job was rung again" if rung else "a job was not needed"] += 1
        marks["rang the job of a cancelled transfer"] += rung and not decode_job(job.body).source_blocks
        marks["rang a job that is in a worker's hands"] += rung and job.transfer in dict(self._world.copying)
        return rung

    def sit(self, seat: Seat, token: str, body: bytes, ttl_s: float, *, only_if_empty: bool) -> bool:
        return self._call(lambda: self._world.jobs.sit(seat, token, body, ttl_s, only_if_empty=only_if_empty))

    def occupy(self, seat: Seat, body: bytes, ttl_s: float) -> None:
        self._call(lambda: self._world.jobs.occupy(seat, body, ttl_s))

    def occupants(self, pool: str, ranks: Sequence[int]) -> tuple[bytes | None, ...]:
        return self._call(lambda: self._world.jobs.occupants(pool, ranks))

    def vacate(self, seat: Seat) -> None:
        self._call(lambda: self._world.jobs.vacate(seat))

    def _call(self, call: Callable[[], Answer]) -> Answer:
        """One attempt, which may be lost on its way there or back."""
        world = self._world
        world.deliver_late()
        fault = "none" if world.healed else world.choices.weighted(CALLS)
        world.marks[fault] += fault != "none"
        if fault == "lost job request":
            raise Unavailable("simulated: lost job request")
        answer = call()
        if fault == "lost job reply":
            raise Unavailable("simulated: lost job reply")
        return answer
