"""A client of the primary that Sentinels name.

Owns one thing: a server that was the primary and is a replica now says READONLY, and then this client must ask the
Sentinels again instead of saying so for ever. The library does it where the server's answer begins with that word, but
not where it comes from inside a script of Redis 6.2. It is built in `client.py`, without retries (redis-facts C9).
"""

from __future__ import annotations

from typing import Any

import redis
from redis.exceptions import ResponseError
from redis.sentinel import MasterNotFoundError


class PrimaryClient(redis.Redis):
    """`redis.Redis` over a pool that asks Sentinels."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """One attempt."""
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except ResponseError as error:
            if "READONLY" not in str(error):
                raise
            self.connection_pool.disconnect(inuse_connections=False)
            raise MasterNotFoundError(f"the server was the primary and is a replica now ({error})") from error
