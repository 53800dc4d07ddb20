"""A client of a Redis Cluster that tries a command once, and says what is known of it when it fails.

Owns what has to be different from the library's: an index lies in one slot, so the slot of a command is that of the first
key in it, without asking a server; and where the library loses the first error behind a second one, or leaves its own
hierarchy of errors, the first one comes out. Redirections (MOVED, ASK, TRYAGAIN) are followed: with them a server says
that it did nothing. It is built in `client.py`, without retries (redis-facts C9).
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from redis.cluster import RedisCluster
from redis.exceptions import ClusterDownError, RedisClusterException, RedisError, SlotNotCoveredError
from redis.exceptions import ConnectionError as RedisConnectionError

from events.keys import is_key


class ClusterClient(RedisCluster):
    """`redis.RedisCluster` as the log needs it."""

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """One attempt. Every error that comes out is a `RedisError` or an `OSError`."""
        outside = sys.exc_info()[1]
        try:
            return super().execute_command(*args, **kwargs)  # type: ignore[no-untyped-call]
        except SlotNotCoveredError as error:
            # Nothing was sent. The library asks again who serves the slot only after it has sent something.
            with contextlib.suppress(RedisError, RedisClusterException, OSError, IndexError):
                self.nodes_manager.initialize()
            raise ClusterDownError(str(error), status_code="CLUSTERDOWN") from error
        except (RedisClusterException, IndexError) as error:
            # After a failure the library looks at the cluster anew; when that fails too, this is what it raises.
            first = error.__context__
            if first is not outside and isinstance(first, RedisError):
                raise first from error
            raise RedisConnectionError(f"the cluster does not answer: {error}") from error

    def determine_slot(self, *args: Any) -> int | None:
        """The slot of the first key; all keys of one of our commands share it."""
        for word in args[1:]:
            if isinstance(word, str) and is_key(word):
                return int(self.keyslot(word))  # type: ignore[no-untyped-call]
        slot: int | None = super().determine_slot(*args)
        return slot

    def delete(self, *keys: Any) -> int:
        """One command: the library would send a pipeline, which has rules of its own."""
        return int(self.execute_command("DEL", *keys))
