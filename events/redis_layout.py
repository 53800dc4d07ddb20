"""The layout of one index's keys in Redis: which it is, and one move towards another.

Owns the mapping of a `Move` to `lua/move_layout.lua`, and what is said of an index of another layout. Which moves there are
is `migrations/layouts.py`'s; their order and when they are done, `ops/migrating.py`'s.
"""

from __future__ import annotations

from typing import Final, cast

from redis.exceptions import RedisError

from events import client as clients
from events import keys, limits
from events.errors import CorruptState
from events.redis_values import number, text
from events.script import Script
from migrations import layouts
from migrations.move import Move

_MOVE: Final = Script("move_layout")

assert layouts.LAYOUT == keys.LAYOUT, f"moves lead to layout {layouts.LAYOUT}, this release speaks {keys.LAYOUT}"


class RedisLayout:
    """One index on one server. One attempt a call; each may raise `Unavailable`, and repeats are harmless."""

    def __init__(self, client: clients.Client, index: str) -> None:
        self._client = client
        self._keys = keys.IndexKeys.of(index)

    def found(self) -> str:
        """The layout in the head."""
        try:
            layout = cast("bytes | None", self._client.hget(self._keys.head, keys.HEAD_LAYOUT))
        except (RedisError, OSError) as error:
            raise clients.unavailable(error) from error
        if layout is None:
            raise CorruptState(f"{self._keys.head} names no layout")
        return layout.decode(errors="replace")

    def engines(self) -> dict[str, int]:
        """Every engine there was, with the lowest session that may write."""
        try:
            fence = cast("dict[bytes, bytes]", self._client.hgetall(self._keys.fence))
        except (RedisError, OSError) as error:
            raise clients.unavailable(error) from error
        where = self._keys.fence
        return {
            text(engine, where): number(session, f"{where}, {engine!r}") for engine, session in sorted(fence.items())
        }

    def carry_out(self, move: Move) -> str:
        """Do one move if the index is where it starts; the layout after it, or the one found instead."""
        leases = self.engines() if move.leases else {}
        named = [self._keys.head, *(self._keys.lease(engine) for engine in leases)]
        try:
            answer = _MOVE.run(
                self._client, named, (move.start, move.end, int(limits.LEASE_TTL_S * 1000), *leases.values())
            )
        except (RedisError, OSError) as error:
            raise clients.unavailable(error) from error
        return bytes(answer[1]).decode(errors="replace")
