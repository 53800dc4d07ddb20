"""The log in Redis or Valkey >= 6.2 (and fakeredis): one attempt a call.

Owns the mapping of `Transport` to commands: EVALSHA of `lua/commit.lua`, XRANGE, HGET. Retries nothing and decides
nothing; `events/log.py` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

from redis.exceptions import RedisError

from events import client as clients
from events import keys, limits
from events.errors import CorruptState, InvalidInput, OutcomeUnknown, Unavailable
from events.follow import RedisFollower
from events.limits import MISSED_ENTRIES_MAX
from events.ports import (
    Base,
    Behind,
    Diverged,
    Fenced,
    Head,
    Job,
    LossInTheWay,
    RawAppended,
    RawConflicted,
    RawReply,
    Record,
    Renewed,
    RenewReply,
    StillAlive,
    StoredRecord,
    Trimmed,
)
from events.redis_jobs import RedisJobs
from events.redis_layout import RedisLayout
from events.redis_snapshots import RedisSnapshots
from events.redis_values import number, text
from events.script import Script
from events.stream_entry import meta_of, position_in, stored_records
from events.transport import Follower

_COMMIT: Final = Script("commit", "server_life", "continuity", "stored_number")
_KEEP: Final = Script("keep")
_RENEW: Final = Script("renew_lease", "server_life", "continuity", "stored_number")


class RedisTransport:
    """One index's log on one server."""

    def __init__(self, client: clients.Client, index: str) -> None:
        self._client = client
        self._keys = keys.IndexKeys.of(index)
        self.snapshots = RedisSnapshots(client, self._keys)
        self.leases_run_out = True

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
        named = [
            self._keys.log, self._keys.head, self._keys.fence, self._keys.closed,
            *(self._keys.lease(name) for name, _ in fences),
            *(self._keys.lease(name) for name in lapsed),
            *(self._keys.jobs(job.pool) for job in jobs),
        ]  # fmt: skip
        arguments: list[str | bytes | int] = [
            keys.LAYOUT, engine, session, base.position, base.commit_id, MISSED_ENTRIES_MAX,
            record.commit_id, meta_of(record), record.body, record.hashes,
            _ms(limits.BARRIER_S), _ms(limits.LEASE_TTL_S), int(forgets),
            len(checks), *checks,
            len(touches), *touches,
            len(fences), *(part for fence in fences for part in fence),
            len(lapsed), *lapsed,
            *(part for job in jobs for part in (job.transfer, job.body)),
        ]  # fmt: skip
        try:
            answer = _COMMIT.run(self._client, named, arguments)
        except (RedisError, OSError) as error:
            raise clients.unknown(error, record.commit_id) from error
        try:
            return self._reply(answer)
        except (InvalidInput, Unavailable):
            raise
        except (TypeError, ValueError, IndexError) as error:
            raise OutcomeUnknown(f"no answer of commit.lua: {answer!r:.80}", record.commit_id) from error

    def renew_lease(self, engine: str, session: int, base: Base) -> RenewReply:
        named = [self._keys.log, self._keys.head, self._keys.fence, self._keys.closed, self._keys.lease(engine)]
        arguments = (
            keys.LAYOUT, engine, session, base.position, base.commit_id, _ms(limits.BARRIER_S), _ms(limits.LEASE_TTL_S)
        )  # fmt: skip
        try:
            answer = _RENEW.run(self._client, named, arguments)
        except (RedisError, OSError) as error:
            raise clients.unavailable(error) from error
        if bytes(answer[0]) == b"renewed":
            opens_in_s = number(answer[2], "renew_lease.lua") / 1000
            return Renewed(text(answer[1], "renew_lease.lua"), opens_in_s, bytes(answer[3]) == b"continued")
        reply = self._reply(answer)
        assert isinstance(reply, Fenced | Diverged), f"renew_lease.lua answers {reply}"
        return reply

    def leases(self, engines: Sequence[str]) -> tuple[bool, ...]:
        try:
            held = self._client.mget([self._keys.lease(name) for name in engines]) if engines else []
        except (RedisError, OSError) as error:
            raise clients.unavailable(error) from error
        return tuple([lease is not None for lease in cast("list[bytes | None]", held)])

    def note_loss(self, base: Base) -> None:
        try:
            self._client.hset(self._keys.head, keys.HEAD_LOST, base.commit_id)
        except (RedisError, OSError) as error:
            raise clients.unavailable(error) from error

    def keep(self, token: str, ttl_s: float) -> bool:
        try:
            return int(_KEEP.run(self._client, [self._keys.keeper], (token, _ms(ttl_s)))) == 1
        except (RedisError, OSError) as error:
            raise clients.unavailable(error) from error

    def read(self, after: int, limit: int) -> tuple[StoredRecord, ...]:
        try:
            entries = self._client.xrange(self._keys.log, min=keys.entry_id(after + 1), max="+", count=limit)
        except (RedisError, OSError) as error:
            raise clients.unavailable(error) from error
        return stored_records(cast("Iterable[tuple[bytes, Any]]", entries))

    def head(self) -> Head:
        try:
            # The log first: an index that is born in between has a head, and not entries without one.
            oldest = cast("list[Any]", self._client.xrange(self._keys.log, count=1))
            known = cast("list[bytes | None]", self._client.hmget(self._keys.head, keys.HEAD_FIELDS))
        except (RedisError, OSError) as error:
            raise clients.unavailable(error) from error
        position, commit_id, layout, life, _, lost, forgot = known
        if layout is not None and layout != keys.LAYOUT.encode():
            raise clients.other_layout(layout, keys.LAYOUT)
        if position is None:
            if oldest:
                raise CorruptState(f"{self._keys.log} has entries but {self._keys.head} is gone")
            return Head(0, "", first=0)
        first = position_in(oldest[0][0]) if oldest else 0
        loss = b"" if lost is None or lost == forgot else lost
        return Head(
            number(position, self._field(keys.HEAD_POSITION)),
            text(commit_id, self._field(keys.HEAD_COMMIT)),
            first,
            (life or b"").decode(errors="replace"),  # one that is no run id is another life, and closes the log as such
            text(loss, self._field(keys.HEAD_LOST)),
        )

    def wait(self, after: int, timeout_s: float) -> None:
        theirs = self._client.get_connection_kwargs().get("socket_timeout") or limits.SOCKET_TIMEOUT_S
        longest = max(1, int(min(timeout_s, limits.FOLLOW_BLOCK_S, theirs / 2) * 1000))  # it must end first (C5)
        try:
            self._client.xread({self._keys.log: keys.entry_id(after)}, count=1, block=longest)
        except (RedisError, OSError) as error:
            raise clients.unavailable(error) from error

    def follow(self, after: int) -> Follower:
        return RedisFollower(self._client, self._keys.log, after)

    def close(self) -> None:
        """Nothing of its own: the client belongs to the connection."""

    def _field(self, name: str) -> str:
        return f"{self._keys.head}, {name}"

    def _reply(self, answer: Sequence[Any]) -> RawReply:
        """The tagged array of commit.lua; its header lists the tags."""
        tag = bytes(answer[0])
        match tag:
            case b"appended":
                return RawAppended(int(answer[1]), stored_records(answer[2:]))
            case b"conflicted":
                return RawConflicted(bytes(answer[1]).decode(), stored_records(answer[2:]))
            case b"behind":
                return Behind(number(answer[1], self._field(keys.HEAD_POSITION)))
            case b"fenced":
                return Fenced(number(answer[1], self._keys.fence))
            case b"trimmed":
                return Trimmed()
            case b"closed":
                raise clients.closed(number(answer[1], self._keys.closed) / 1000)
            case b"lost":
                return LossInTheWay(text(answer[1], self._field(keys.HEAD_LOST)))
            case b"alive":
                return StillAlive(bytes(answer[1]).decode())
            case b"diverged":
                return Diverged(int(answer[1]), text(answer[2], f"{self._keys.log} or {self._field(keys.HEAD_COMMIT)}"))
            case b"layout":
                raise clients.other_layout(bytes(answer[1]), keys.LAYOUT)
            case _:
                raise ValueError(f"an answer this release does not know: {tag!r:.80}")


class RedisBackend:
    """All indexes of one server or cluster. Closes the client only if it built it.

    Attributes:
        client: for who looks at the server itself.
    """

    def __init__(self, client: clients.Client, *, owned: bool) -> None:
        self.client = self._client = client
        self._owned = owned

    def transport(self, index: str) -> RedisTransport:
        return RedisTransport(self._client, index)

    def jobs(self, index: str) -> RedisJobs:
        return RedisJobs(self._client, index)

    def layout(self, index: str) -> RedisLayout:
        """How the keys of an index are laid out; for `statecore migrate`."""
        return RedisLayout(self._client, index)

    def indexes(self) -> tuple[str, ...]:
        """Walks the keyspace page by page: for operators, not for engines."""
        pattern = keys.IndexKeys.of("_").head.replace("_", "*")
        before, after = pattern.split("*")
        try:
            heads = list(self._client.scan_iter(match=pattern, count=1000, _type="hash"))
            found = [key.decode(errors="replace") for key in heads if self._client.hexists(key, keys.HEAD_POSITION)]
        except (RedisError, OSError) as error:
            raise clients.unavailable(error) from error
        names = sorted(key[len(before) : -len(after)] for key in found)
        return tuple(name for name in names if keys.is_name(name))

    def close(self) -> None:
        if self._owned:
            self._client.close()


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
