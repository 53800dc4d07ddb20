"""Job streams in the memory of one process: the executable definition of what they do.

Owns the reference semantics, in plain Python, in the order in which the scripts check. Streams only grow here, the
entry id of a job is its number; what was deleted is remembered beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs

from events import keys, limits
from events.client import closed, loss_in_the_way
from events.job_ports import (
    BEGINNING,
    DUPLICATE,
    FINISHED,
    GONE,
    INTERRUPTED,
    REPORTED,
    UNSEATED,
    Claimed,
    Looked,
    OtherOutcome,
    RawFinish,
    RawJob,
    RawReport,
    Report,
    Seat,
)
from events.ports import Base, Job

if TYPE_CHECKING:
    from events.memory import MemoryTransport


@attrs.define
class _Pending:
    """A job on a worker's list."""

    worker: str
    since: float
    deliveries: int


@attrs.define
class _Group:
    """What the workers of one rank have seen: up to `last`, of which `pending` is not finished."""

    last: int = 0
    pending: dict[int, _Pending] = attrs.Factory(dict)


@attrs.define
class _Acks:
    """What the ranks have reported of a transfer; "" is success."""

    reports: dict[int, str] = attrs.Factory(dict)
    done: int = 0
    rung: int = 0
    ends: float = float("inf")


class MemoryJobs:
    """Implements `JobTransport` over the log of one index. Thread-safe."""

    def __init__(self, log: MemoryTransport, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._groups: dict[tuple[str, int], _Group] = {}
        self._acks: dict[str, _Acks] = {}
        self._deleted: dict[str, set[int]] = {}
        self._heartbeats: dict[tuple[str, int], tuple[bytes, float]] = {}
        self._seats: dict[tuple[str, int], str] = {}

    # --- taking -----------------------------------------------------------------------------------------------------

    def own(self, seat: Seat, after: str, limit: int) -> tuple[RawJob, ...]:
        with self._log.changed:
            pending = self._group(seat).pending
            listed = sorted(n for n, held in pending.items() if held.worker == seat.worker and n > _number(after))
            return tuple([self._delivered(seat, number) for number in listed[:limit]])

    def claim(self, seat: Seat, cursor: str, idle_s: float, limit: int) -> Claimed:
        with self._log.changed:
            pending = self._group(seat).pending
            now = self._clock()
            found = sorted(n for n, held in pending.items() if n >= _number(cursor) and now - held.since >= idle_s)
            page, rest = found[:limit], found[limit:]
            trimmed = [number for number in page if number in self._deleted.get(seat.pool, ())]
            for number in trimmed:
                del pending[number]
            for number in set(page) - set(trimmed):
                pending[number] = _Pending(seat.worker, now, pending[number].deliveries + 1)
            adopted = [] if rest else self._unlisted(seat)[:limit]
            for number in adopted:
                pending[number] = _Pending(seat.worker, now, 1)
            return Claimed(
                _entry(rest[0]) if rest else BEGINNING, len(page) - len(trimmed) + len(adopted), len(trimmed)
            )

    def _unlisted(self, seat: Seat) -> list[int]:
        """What the rank was given, has not reported, and nobody has on a list: a deleted consumer took its list along."""
        group = self._group(seat)
        return [
            number
            for number, job in self._stream(seat.pool)
            if number <= group.last
            and number not in group.pending
            and not self.look_up(job.transfer, seat.rank).reported
        ]

    def new(self, seat: Seat, timeout_s: float) -> RawJob | None:
        with self._log.changed:
            self._log.changed.wait_for(lambda: self._next(seat) is not None, min(timeout_s, limits.JOB_BLOCK_S))
            number = self._next(seat)
            if number is None:
                return None
            group = self._group(seat)
            group.last = number
            group.pending[number] = _Pending(seat.worker, self._clock(), 0)
            return self._delivered(seat, number)

    def discard(self, seat: Seat, entry: str, *, everywhere: bool) -> None:
        with self._log.changed:
            self._group(seat).pending.pop(_number(entry), None)
            if everywhere:
                self._deleted.setdefault(seat.pool, set()).add(_number(entry))

    def lose(self, pool: str, *, lists: bool) -> None:
        """Lose every job of a stream; with `lists`, also what its workers have on theirs. For tests."""
        with self._log.changed:
            self._deleted[pool] = set(range(1, len(self._log.jobs.get(pool, ())) + 1))
            if lists:
                self._groups = {key: group for key, group in self._groups.items() if key[0] != pool}

    def delete_consumer(self, seat: Seat) -> None:
        """Its list goes with it. For tests."""
        with self._log.changed:
            pending = self._group(seat).pending
            for number in [number for number, held in pending.items() if held.worker == seat.worker]:
                del pending[number]

    # --- reporting --------------------------------------------------------------------------------------------------

    def look_up(self, transfer: str, rank: int) -> Looked:
        with self._log.changed:
            if (left := self._log.closed_for()) > 0:
                raise closed(left)
            if loss := self._log.loss():
                raise loss_in_the_way(loss)
            acks = self._acks_of(transfer)
            return Looked(bool(acks.done) or rank in acks.reports, self._log.life)

    def life(self) -> str:
        return self._log.life

    def report(self, seat: Seat, report: Report) -> RawReport:
        with self._log.changed:
            if report.life != self._log.life or self._log.loss():
                return RawFinish(INTERRUPTED, 0, False)
            if self._seats.get((seat.pool, seat.rank)) != report.token:
                return RawFinish(UNSEATED, 0, False)
            acks, number = self._acks_of(report.transfer), _number(report.entry)
            if acks.done:
                self._deleted.setdefault(seat.pool, set()).add(number)
                return RawFinish(DUPLICATE, acks.done, self._dismiss(seat, number))
            if not self._log.head().position:
                self._deleted.setdefault(seat.pool, set()).add(number)
                return RawFinish(GONE, 0, self._dismiss(seat, number))
            reports = {seat.rank: report.reason, **acks.reports}
            if any(rank not in reports for rank in range(report.ranks)):
                acks.reports = reports
                return RawFinish(REPORTED, 0, self._dismiss(seat, number))
            failures = tuple([(rank, reports[rank]) for rank in range(report.ranks) if reports[rank]])
            if report.ok is bool(failures):
                return OtherOutcome(failures)
            acks.done = self._log.append_unchecked(report.record, report.touches)
            acks.ends = self._clock() + limits.ACKS_TTL_S
            self._deleted.setdefault(seat.pool, set()).update({number, acks.rung})
            return RawFinish(FINISHED, acks.done, self._dismiss(seat, number))

    # --- ringing ----------------------------------------------------------------------------------------------------

    def ringing(self, pool: str) -> frozenset[str]:
        with self._log.changed:
            return frozenset(job.transfer for _, job in self._stream(pool))

    def ring(self, job: Job, base: Base) -> bool:
        with self._log.changed:
            if not self._log.continues(base) or self._log.trimmed_after(base):
                return False
            acks = self._acks_of(job.transfer)
            if acks.done or any(number == acks.rung for number, _ in self._stream(job.pool)):
                return False
            self._log.jobs.setdefault(job.pool, []).append(job)
            acks.rung = len(self._log.jobs[job.pool])
            self._log.changed.notify_all()
            return True

    # --- heartbeats -------------------------------------------------------------------------------------------------

    def sit(self, seat: Seat, token: str, body: bytes, ttl_s: float, *, only_if_empty: bool) -> bool:
        with self._log.changed:
            if only_if_empty and self.occupants(seat.pool, [seat.rank])[0] is not None:
                return False
            self._seats[seat.pool, seat.rank] = token
            self.occupy(seat, body, ttl_s)
            return True

    def occupy(self, seat: Seat, body: bytes, ttl_s: float) -> None:
        with self._log.changed:
            self._heartbeats[seat.pool, seat.rank] = (body, self._clock() + ttl_s)

    def occupants(self, pool: str, ranks: Sequence[int]) -> tuple[bytes | None, ...]:
        with self._log.changed:
            found = [self._heartbeats.get((pool, rank)) for rank in ranks]
            return tuple([None if beat is None or beat[1] <= self._clock() else beat[0] for beat in found])

    def vacate(self, seat: Seat) -> None:
        with self._log.changed:
            self._heartbeats.pop((seat.pool, seat.rank), None)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _group(self, seat: Seat) -> _Group:
        return self._groups.setdefault((seat.pool, seat.rank), _Group())

    def _acks_of(self, transfer: str) -> _Acks:
        acks = self._acks.setdefault(transfer, _Acks())
        if acks.ends <= self._clock():
            acks = self._acks[transfer] = _Acks()
        return acks

    def _stream(self, pool: str, after: int = 0) -> list[tuple[int, Job]]:
        deleted = self._deleted.get(pool, ())
        jobs = enumerate(self._log.jobs.get(pool, [])[after:], after + 1)
        return [(number, job) for number, job in jobs if number not in deleted]

    def _next(self, seat: Seat) -> int | None:
        return next((number for number, _ in self._stream(seat.pool, self._group(seat).last)), None)

    def _delivered(self, seat: Seat, number: int) -> RawJob:
        held = self._group(seat).pending[number]
        held.deliveries += 1
        held.since = self._clock()
        gone = number in self._deleted.get(seat.pool, ())
        return RawJob(_entry(number), None if gone else self._log.jobs[seat.pool][number - 1].body, held.deliveries)

    def _dismiss(self, seat: Seat, number: int) -> bool:
        return self._group(seat).pending.pop(number, None) is not None


def _entry(number: int) -> str:
    return keys.entry_id(number)


def _number(entry: str) -> int:
    return keys.position_of(entry)
