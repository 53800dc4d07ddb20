"""A worker's `Jobs` made of any `JobTransport`: the order of taking, reports, heartbeats.

Owns what must be right on every backend. Knows no Redis.

**Taking.** Own unfinished jobs first, after the start and after every error: a reply may have been lost, and what it
held is on our list (redis-facts C4). Then, now and then, what a dead worker of this rank left. Then what is new.

**A job is looked up before it is handed out.** A transfer that this rank has reported may be over at any moment, and
its blocks somebody else's; so a job that comes again is only taken off the list. While this rank has not reported, the
transfer is open: its source is pinned and its destination reserved, and copying once more is harmless. (This needs that
one worker of a rank moves bytes at a time; `workers/rank_lock.py` sees to it.)

**Reporting.** The worker makes the bytes of TransferFinished, the script decides whether they are appended. Success
depends on every rank, so a report carries the record of success; when the script answers that some rank failed, the
record is made again with their reasons. A report may be repeated: one that arrived answers "duplicate".
"""

from __future__ import annotations

import functools
import os
import secrets
import socket
import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs
import orjson

from events import codec, keys, limits
from events.errors import InvalidInput, StateCoreError, Unavailable
from events.facts import TransferFinished
from events.job_ports import (
    BEGINNING,
    FINISHED,
    INTERRUPTED,
    Delivery,
    Dropped,
    FinishReply,
    Heartbeat,
    JobTransport,
    OtherOutcome,
    RawJob,
    Report,
    Seat,
)
from events.jobs import TransferJob, decode_job
from events.policy import retrying
from events.ports import BIRTH, Base, Commit, Job, Record

_RECORDS_MAX: Final = 4
"""Records made for one report: for success, then for what the others say. Their first word counts, so it settles."""


_KINDS: Final = tuple(typing.get_type_hints(Heartbeat)[field.name] for field in attrs.fields(Heartbeat))


class JobQueue:
    """Implements `events.job_ports.Jobs`."""

    def __init__(
        self,
        transport: JobTransport,
        seat: Seat,
        ranks: int,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sleep` and `clock` are for the simulator."""
        keys.checked_name(seat.worker, "worker name")
        keys.checked_name(seat.pool, "pool name")
        if not 0 <= seat.rank < ranks <= limits.RANKS_MAX:
            raise InvalidInput(f"rank {seat.rank} of {ranks}: ranks are 0 to {ranks - 1}, at most {limits.RANKS_MAX}")
        self._transport = transport
        self._seat = seat
        self._ranks = ranks
        self._sleep = sleep
        self._clock = clock
        self._own_after: str | None = BEGINNING
        self._claim_at = clock()
        self._claim_cursor = BEGINNING
        self._life = secrets.token_hex(8)
        self._finished = 0
        self._trimmed = 0

    @property
    def seat(self) -> Seat:
        return self._seat

    @property
    def ranks(self) -> int:
        return self._ranks

    @property
    def trimmed(self) -> int:
        return self._trimmed

    # --- taking -----------------------------------------------------------------------------------------------------

    def take(self, timeout_s: float) -> Delivery | Dropped | None:
        end = self._clock() + timeout_s
        try:
            while True:
                raw = self._unfinished() or self._transport.new(self._seat, max(0.0, end - self._clock()))
                if raw is None:
                    if self._clock() >= end:
                        return None
                elif raw.body is None:
                    self._trimmed += 1
                    self._transport.discard(self._seat, raw.entry, everywhere=False)
                else:
                    return self._delivery(raw.entry, raw.body, raw.deliveries)
        except StateCoreError:
            self._begin_again()
            raise

    def again(self) -> None:
        self._begin_again()

    def _begin_again(self) -> None:
        self._own_after, self._claim_cursor, self._claim_at = BEGINNING, BEGINNING, self._clock()

    def _unfinished(self) -> RawJob | None:
        """From our own list, after adding to it what others have abandoned."""
        while True:
            if self._own_after is not None:
                listed = self._transport.own(self._seat, self._own_after, limit=1)
                if listed:
                    self._own_after = listed[0].entry
                    return listed[0]
                self._own_after = None
            if self._clock() < self._claim_at or not self._claim():
                return None
            self._own_after = BEGINNING

    def _claim(self) -> bool:
        """One page of what dead workers left. Claimed jobs are on our list; that is where we read them."""
        claimed = self._transport.claim(self._seat, self._claim_cursor, limits.JOB_IDLE_S, limits.JOBS_PAGE)
        self._claim_cursor = claimed.cursor
        self._trimmed += claimed.trimmed
        if claimed.cursor == BEGINNING:
            self._claim_at = self._clock() + limits.JOB_CLAIM_EVERY_S
        return claimed.jobs > 0

    def _delivery(self, entry: str, body: bytes, deliveries: int) -> Delivery | Dropped:
        try:
            job = decode_job(body)
        except InvalidInput as error:
            return self._drop(entry, str(error), everywhere=True)  # so that it can be rung again
        if self._seat.rank >= job.ranks:
            return self._drop(entry, f"transfer {job.transfer!r} is for ranks 0 to {job.ranks - 1}", everywhere=False)
        known = self._transport.look_up(job.transfer, self._seat.rank)
        return Delivery(entry, job, deliveries, known.reported, known.life)

    def _drop(self, entry: str, reason: str, *, everywhere: bool) -> Dropped:
        self._transport.discard(self._seat, entry, everywhere=everywhere)
        return Dropped(entry, reason)

    # --- reporting --------------------------------------------------------------------------------------------------

    def finish(self, delivery: Delivery, ok: bool, reason: str = "") -> FinishReply:
        job = delivery.job
        own = "" if ok else (reason or "no reason given")[: limits.REASON_LENGTH_MAX]
        failure = ""
        try:
            for _ in range(_RECORDS_MAX):
                report = Report(
                    entry=delivery.entry,
                    transfer=job.transfer,
                    ranks=job.ranks,
                    reason=own,
                    ok=not failure,
                    record=self._record(job, failure),
                    touches=job.touches_failed if failure else job.touches_ok,
                    token=self._life,
                    life=delivery.life,
                )
                reply = retrying(limits.APPEND_DEADLINE_S, self._sleep)(self._transport.report, self._seat, report)
                if not isinstance(reply, OtherOutcome):
                    if reply.outcome == INTERRUPTED:
                        self._begin_again()
                    self._finished += 1
                    told = failure if reply.outcome == FINISHED else ""
                    return FinishReply(reply.outcome, reply.position, told, reply.acked)
                failure = _joined(reply.failures)
        except StateCoreError:
            self._begin_again()
            raise
        self._begin_again()
        raise Unavailable(
            f"the outcome of transfer {job.transfer!r} changed {_RECORDS_MAX} times while it was reported"
        )

    def _record(self, job: TransferJob, failure: str) -> Record:
        fact = TransferFinished(transfer=job.transfer, ok=not failure, reason=failure)
        commit = Commit(
            id=f"finish:{job.transfer}:{secrets.token_hex(8)}",  # used once: links tell histories apart
            engine=f"worker:{self._seat.pool}",
            session=0,
            facts=(fact,),
            checks=(),
            touches=(),
        )
        return codec.encode(commit, at_ms=time.time_ns() // 1_000_000)

    # --- heartbeats -------------------------------------------------------------------------------------------------

    def enter(self, *, takeover: bool = False) -> None:
        body = self._heartbeat("ready")
        for _ in range(2):  # the one in the way may stand up, or run out, between the two questions
            ttl_s = limits.HEARTBEAT_TTL_S
            if self._transport.sit(self._seat, self._life, body, ttl_s, only_if_empty=not takeover):
                return
            other = self.alive()[self._seat.rank]
            if other is not None:
                raise InvalidInput(
                    f"rank {other.rank} of pool {other.pool!r} has a living worker: {other.worker!r}, pid {other.pid} "
                    f"on {other.host}, {other.state}. Stop it; or take over; if it is dead, its heartbeat runs out "
                    f"within {limits.HEARTBEAT_TTL_S:g} s"
                )
        raise Unavailable(f"the heartbeat of rank {self._seat.rank} of pool {self._seat.pool!r} comes and goes")

    def beat(self, state: str) -> str | None:
        found = self._transport.occupants(self._seat.pool, [self._seat.rank])[0]
        body, ttl_s = self._heartbeat(state), limits.HEARTBEAT_TTL_S
        if found is None:  # it ran out, or the server has lost it, and the seat with it: then no report would count
            if not self._transport.sit(self._seat, self._life, body, ttl_s, only_if_empty=True):
                return None
        elif _heartbeat_of(found).life != self._life:
            return None
        else:
            self._transport.occupy(self._seat, body, ttl_s)
        return self._transport.life()

    def alive(self) -> tuple[Heartbeat | None, ...]:
        found = self._transport.occupants(self._seat.pool, range(self._ranks))
        return tuple(None if body is None else _heartbeat_of(body) for body in found)

    def leave(self) -> None:
        mine = self.alive()[self._seat.rank]
        if mine is not None and mine.life == self._life:
            self._transport.vacate(self._seat)

    def _heartbeat(self, state: str) -> bytes:
        seat = self._seat
        return orjson.dumps(
            attrs.asdict(
                Heartbeat(
                    worker=seat.worker,
                    life=self._life,
                    pid=os.getpid(),
                    host=this_host(),
                    pool=seat.pool,
                    rank=seat.rank,
                    state=state,
                    jobs=self._finished,
                )
            )
        )


class JobDoorbell:
    """Implements `events.job_ports.Doorbell`."""

    def __init__(self, transport: JobTransport, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._transport = transport
        self._sleep = sleep

    def ringing(self, pool: str) -> frozenset[str]:
        return retrying(limits.READ_DEADLINE_S, self._sleep)(self._transport.ringing, pool)

    def ring(self, job: Job, base: Base = BIRTH) -> bool:
        """`base`: what the state that the job was made from had come to."""
        return retrying(limits.APPEND_DEADLINE_S, self._sleep)(self._transport.ring, job, base)


@functools.cache
def this_host() -> str:
    """The machine, and this boot of it: two processes that see the same are on one kernel."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()}/{boot.read_text().strip()[:8] if boot.exists() else ''}"


def _joined(failures: tuple[tuple[int, str], ...]) -> str:
    return "; ".join(f"rank {rank}: {reason}" for rank, reason in failures)[: limits.REASON_LENGTH_MAX]


def _heartbeat_of(body: bytes) -> Heartbeat:
    """InvalidInput: not what a worker of this release says."""
    try:
        found = Heartbeat(**orjson.loads(body))
    except (TypeError, orjson.JSONDecodeError):
        found = None
    if found is None or any(type(value) is not kind for value, kind in zip(attrs.astuple(found), _KINDS, strict=True)):
        raise InvalidInput(f"a worker's heartbeat of another release: {body!r:.200}")
    return found
