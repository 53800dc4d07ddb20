"""Job streams in Redis or Valkey >= 6.2 (and fakeredis): one attempt a call.

Owns the mapping of `JobTransport` to commands: XREADGROUP, XAUTOCLAIM, XACK, SET with a time to live, and the scripts.
One stream per GPU pool, one consumer group per rank, made when it is first needed. Retries nothing and decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, cast

import attrs
from redis.exceptions import RedisError, ResponseError

from events import client as clients
from events import keys, limits
from events.errors import Unavailable
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
from events.redis_values import number, text
from events.script import Script
from events.stream_entry import meta_of

Answer = TypeVar("Answer")

_FINISH: Final = Script("finish_transfer", "server_life", "stored_number")
_LOOK_UP: Final = Script("look_up_job", "server_life")
_RING: Final = Script("ring_job", "continuity", "stored_number")
_SIT: Final = Script("take_seat")
_NO_GROUP: Final = ("NOGROUP", "The XGROUP subcommand requires the key")
"""The second is what fakeredis says where there is no stream either."""

_EARLY_S: Final = 0.005
"""fakeredis answers a blocking read at once; looking again after so long keeps a test from spinning."""


class RedisJobs:
    """Implements `JobTransport` for one index on one server."""

    def __init__(self, client: clients.Client, index: str) -> None:
        self._client = client
        self._keys = keys.IndexKeys.of(index)

    # --- taking -----------------------------------------------------------------------------------------------------

    def own(self, seat: Seat, after: str, limit: int) -> tuple[RawJob, ...]:
        def read() -> tuple[RawJob, ...]:
            return tuple([self._redelivered(seat, *entry) for entry in self._read(seat, after, limit, None)])

        return self._in_group(seat, read)

    def claim(self, seat: Seat, cursor: str, idle_s: float, limit: int) -> Claimed:
        def claim() -> Claimed:
            answer = self._client.xautoclaim(
                self._keys.jobs(seat.pool),
                keys.rank_group(seat.rank),
                seat.worker,
                min_idle_time=int(idle_s * 1000),
                start_id=cursor,
                count=limit,
            )
            # Redis 7 names trimmed entries and forgets them; 6.2 moves them to our list, without id or fields.
            entries, trimmed = answer[1], answer[2] if len(answer) > 2 else ()
            return Claimed(text(answer[0], "XAUTOCLAIM"), len(entries), len(trimmed))

        claimed = self._in_group(seat, claim)
        if claimed.cursor != BEGINNING:
            return claimed
        return attrs.evolve(claimed, jobs=claimed.jobs + self._adopt(seat, limit))

    def _adopt(self, seat: Seat, limit: int) -> int:
        """Put on our list what the rank was given and nobody has on a list: a deleted consumer took its list along (R19)."""
        stream, group = self._keys.jobs(seat.pool), keys.rank_group(seat.rank)

        def unlisted() -> list[tuple[bytes, str]]:
            groups = cast("list[dict[str, bytes]]", self._client.xinfo_groups(stream))
            last = next((each["last-delivered-id"] for each in groups if each["name"] == group.encode()), b"0-0")
            given = cast("list[tuple[bytes, Any]]", self._client.xrange(stream, min="-", max=last, count=limit))
            if not given:
                return []
            first, end = given[0][0], given[-1][0]
            pending = self._client.xpending_range(stream, group, min=first, max=end, count=limit)
            listed = {each["message_id"] for each in cast("list[dict[str, bytes]]", pending)}
            return [
                (entry, fields.get(b"transfer", b"").decode(errors="replace"))
                for entry, fields in given
                if entry not in listed
            ]

        found = self._in_group(seat, unlisted)
        lost: list[Any] = [entry for entry, transfer in found if not self.look_up(transfer, seat.rank).reported]
        if lost:
            _attempt(
                lambda: self._client.xclaim(
                    stream, group, seat.worker, min_idle_time=0, message_ids=lost, force=True, justid=True
                )
            )
        return len(lost)

    def new(self, seat: Seat, timeout_s: float) -> RawJob | None:
        wait_s = min(timeout_s, limits.JOB_BLOCK_S)
        begun = time.monotonic()

        def read() -> RawJob | None:
            for entry, fields in self._read(seat, ">", 1, wait_s):
                return RawJob(entry.decode(), fields.get(b"body", b""), deliveries=1)
            return None

        found = self._in_group(seat, read)
        if found is None and time.monotonic() - begun < wait_s / 2:
            time.sleep(min(_EARLY_S, wait_s))
        return found

    def discard(self, seat: Seat, entry: str, *, everywhere: bool) -> None:
        stream = self._keys.jobs(seat.pool)

        def discard() -> None:
            self._client.xack(stream, keys.rank_group(seat.rank), entry)
            if everywhere:
                self._client.xdel(stream, entry)

        _attempt(discard)

    # --- reporting --------------------------------------------------------------------------------------------------

    def look_up(self, transfer: str, rank: int) -> Looked:
        named = [self._keys.acks(transfer), self._keys.head, self._keys.closed]
        arguments = (keys.LAYOUT, rank, int(limits.BARRIER_S * 1000))
        answer = _attempt(lambda: _LOOK_UP.run(self._client, named, arguments))
        match bytes(answer[0]):
            case b"open":
                return Looked(bytes(answer[2]) == b"1", text(answer[1], "look_up_job.lua"))
            case b"closed":
                raise clients.closed(number(answer[1], self._keys.closed) / 1000)
            case b"lost":
                raise clients.loss_in_the_way(text(answer[1], f"{self._keys.head}, {keys.HEAD_LOST}"))
            case _:
                raise clients.other_layout(bytes(answer[1]), keys.LAYOUT)

    def life(self) -> str:
        return clients.server_life(self._client, self._keys.head)

    def report(self, seat: Seat, report: Report) -> RawReport:
        record = report.record
        named = [
            self._keys.log, self._keys.head, self._keys.acks(report.transfer), self._keys.jobs(seat.pool), self._keys.seats
        ]  # fmt: skip
        arguments = (
            keys.LAYOUT, keys.rank_group(seat.rank), report.entry, seat.rank, report.ranks, report.reason,
            int(limits.ACKS_TTL_S * 1000), "ok" if report.ok else "failed",
            record.commit_id, meta_of(record), record.body, record.hashes,
            keys.seat_field(seat.pool, seat.rank), report.token, report.life, *report.touches,
        )  # fmt: skip
        answer = _attempt(lambda: _FINISH.run(self._client, named, arguments))
        return _reply(cast("Sequence[Any]", answer), self._keys.acks(report.transfer))

    # --- ringing ----------------------------------------------------------------------------------------------------

    def ringing(self, pool: str) -> frozenset[str]:
        found: set[str] = set()
        after = "-"
        while True:
            page = cast("list[tuple[bytes, Any]]", _attempt(lambda: self._page(pool, after)))  # noqa: B023
            found.update(fields.get(b"transfer", b"").decode(errors="replace") for _, fields in page)
            if len(page) < limits.JOBS_PAGE:
                return frozenset(found)
            after = f"({page[-1][0].decode()}"

    def ring(self, job: Job, base: Base) -> bool:
        named = [self._keys.acks(job.transfer), self._keys.jobs(job.pool), self._keys.log, self._keys.head]
        arguments = (job.transfer, job.body, base.position, base.commit_id)
        return int(_attempt(lambda: _RING.run(self._client, named, arguments))) == 1

    # --- heartbeats -------------------------------------------------------------------------------------------------

    def sit(self, seat: Seat, token: str, body: bytes, ttl_s: float, *, only_if_empty: bool) -> bool:
        named = [self._keys.worker(seat.pool, seat.rank), self._keys.seats]
        arguments = (keys.seat_field(seat.pool, seat.rank), token, body, int(ttl_s * 1000), int(only_if_empty))
        return int(_attempt(lambda: _SIT.run(self._client, named, arguments))) == 1

    def occupy(self, seat: Seat, body: bytes, ttl_s: float) -> None:
        key = self._keys.worker(seat.pool, seat.rank)
        _attempt(lambda: self._client.set(key, body, px=int(ttl_s * 1000)))

    def occupants(self, pool: str, ranks: Sequence[int]) -> tuple[bytes | None, ...]:
        named = [self._keys.worker(pool, rank) for rank in ranks]
        return tuple(cast("list[bytes | None]", _attempt(lambda: self._client.mget(named))))

    def vacate(self, seat: Seat) -> None:
        _attempt(lambda: self._client.delete(self._keys.worker(seat.pool, seat.rank)))

    # --- inside -----------------------------------------------------------------------------------------------------

    def _in_group(self, seat: Seat, call: Callable[[], Answer]) -> Answer:
        """A call on the rank's group, which is made where it does not exist: at first, or after the stream was lost."""

        def make_group_and_call() -> Answer:
            try:
                return call()
            except ResponseError as error:
                if not str(error).startswith(_NO_GROUP):
                    raise
            try:
                self._client.xgroup_create(
                    self._keys.jobs(seat.pool), keys.rank_group(seat.rank), id="0", mkstream=True
                )
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
            return call()

        return _attempt(make_group_and_call)

    def _read(self, seat: Seat, after: str, limit: int, wait_s: float | None) -> list[tuple[bytes, Any]]:
        """Wait None or 0: do not (a BLOCK of 0 would be for ever)."""
        streams = self._client.xreadgroup(
            keys.rank_group(seat.rank),
            seat.worker,
            {self._keys.jobs(seat.pool): after},
            count=limit,
            block=max(1, int(wait_s * 1000)) if wait_s else None,
        )
        return _entries_of(streams)

    def _redelivered(self, seat: Seat, entry: bytes, fields: Any) -> RawJob:
        pending = self._client.xpending_range(
            self._keys.jobs(seat.pool), keys.rank_group(seat.rank), min=entry, max=entry, count=1
        )
        deliveries = int(pending[0]["times_delivered"]) if pending else 1
        return RawJob(entry.decode(), fields.get(b"body", b"") if fields else None, deliveries)

    def _page(self, pool: str, after: str) -> Any:
        return self._client.xrange(self._keys.jobs(pool), min=after, max="+", count=limits.JOBS_PAGE)


def _entries_of(streams: Any) -> list[tuple[bytes, Any]]:
    """Of the one stream that was read: pairs in RESP2, a map in RESP3, once more in a list in its old shape (C6)."""
    pages = list(streams.values()) if isinstance(streams, dict) else [entries for _, entries in streams or ()]
    entries = pages[0] if pages else []
    return entries[0] if entries and isinstance(entries[0], list) else entries


def _attempt(call: Callable[[], Answer]) -> Answer:
    try:
        return call()
    except (RedisError, OSError) as error:
        raise clients.unavailable(error) from error


def _reply(answer: Sequence[Any], acks: str) -> RawReport:
    """The tagged array of finish_transfer.lua; its header lists the tags."""
    tag = bytes(answer[0]).decode()
    match tag:
        case "finished" | "duplicate":
            position = number(answer[1], f"{acks}, {keys.ACKS_DONE}")
            return RawFinish(FINISHED if tag == "finished" else DUPLICATE, position, bool(answer[2]))
        case "reported":
            return RawFinish(REPORTED, 0, bool(answer[2]))
        case "gone":
            return RawFinish(GONE, 0, bool(answer[2]))
        case "unseated" | "interrupted":
            return RawFinish(UNSEATED if tag == "unseated" else INTERRUPTED, 0, False)
        case "outcome":
            pairs = zip(answer[1::2], answer[2::2], strict=True)
            return OtherOutcome(tuple((int(rank), bytes(reason).decode(errors="replace")) for rank, reason in pairs))
        case "layout":
            raise clients.other_layout(bytes(answer[1]), keys.LAYOUT)
        case _:
            raise Unavailable(f"finish_transfer.lua gave an answer this release does not know: {tag!r:.80}")
