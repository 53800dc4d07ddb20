"""The Redis of a chaos run: what is done to it past the failing network.

Owns the process and a client of its own, which never waits long: a request that does not get through says so, and whoever
asked tries again or does something else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar, cast

from redis.exceptions import RedisError

from events.client import build_client
from events.keys import IndexKeys
from ops.chaos.redis_process import RedisProcess

STALE: Final = 2
"""maxmemory is set to one part in so many of what is used: every script that wants to write is refused."""

Answer = TypeVar("Answer")


class Server:
    """Attributes:
    away: killed or stopped at present.
    version: of the server.
    """

    def __init__(self, folder: Path, index: str, *, binary: Path | None, fsync: str) -> None:
        self._process = RedisProcess(
            folder, "--maxmemory-policy", "noeviction", binary=binary, fsync=fsync, tether=True
        )
        self._keys = IndexKeys.of(index)
        self._client = build_client(self._process.url)
        self.away = False
        self.version = str(self._client.info("server")["redis_version"])

    @property
    def url(self) -> str:
        """Past the failing network."""
        return self._process.url

    @property
    def address(self) -> tuple[str, int]:
        return self._process.address

    # --- its process ----------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        self.away = True
        self._process.kill()

    def start(self) -> None:
        self._process.start()
        self.away = False

    def suspend(self) -> None:
        self.away = True
        self._process.suspend()

    def resume(self) -> None:
        self._process.resume()
        self.away = False

    def close(self) -> None:
        self._client.close()
        self._process.kill()

    # --- what it holds --------------------------------------------------------------------------------------------------

    def session_of(self, engine: str) -> int | None:
        """The lowest session that may write as this engine; None when nobody can tell now."""
        found = self._tried(lambda: self._client.hget(self._keys.fence, engine))
        return None if found is None else int(cast("bytes", found))

    def flush_scripts(self) -> bool:
        return self._tried(lambda: self._client.script_flush("SYNC")) is not None

    def take_memory(self) -> bool:
        """From now on every write is refused with OOM."""

        def take() -> object:
            used = int(self._client.info("memory")["used_memory"])
            return self._client.config_set("maxmemory", used // STALE)

        return self._tried(take) is not None

    def give_memory(self) -> bool:
        return self._tried(lambda: self._client.config_set("maxmemory", 0)) is not None

    def delete_jobs(self, pool: str) -> bool:
        """The job stream of a pool goes, with all lists. False when there was none, or nobody can tell."""
        return bool(self._tried(lambda: self._client.delete(self._keys.jobs(pool))))

    def delete_consumers(self, pool: str) -> bool:
        """Every consumer of a pool's job stream goes, with its list: what was on it will never be delivered again."""
        stream = self._keys.jobs(pool)

        def delete() -> int:
            deleted = 0
            for group in cast("list[dict[str, bytes]]", self._client.xinfo_groups(stream)):
                for consumer in cast("list[dict[str, bytes]]", self._client.xinfo_consumers(stream, group["name"])):
                    self._client.xgroup_delconsumer(stream, group["name"], consumer["name"])
                    deleted += 1
            return deleted

        return bool(self._tried(delete))

    def _tried(self, call: Callable[[], Answer]) -> Answer | None:
        if self.away:
            return None
        try:
            return call()
        except (RedisError, OSError):
            return None
