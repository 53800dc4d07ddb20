"""Opening the place where logs are: one function, seven kinds of URL.

| URL                            | log                                                                           |
|--------------------------------|-------------------------------------------------------------------------------|
| redis://  rediss://  unix://   | a Redis or Valkey >= 6.2 that somebody runs                                    |
| redis+cluster://host,host      | a Redis Cluster; an index lies on one of its nodes (`server_url.py`)           |
| redis+sentinel://host/service  | the primary that Sentinels name, whichever it is at the moment                 |
| embedded://                    | a redis-server of this process's own, in a temporary folder                   |
| embedded:///some/folder        | the same over a folder that stays; other processes may open it too            |
| memory://                      | the memory of this process; share the returned connection between its engines |
"""

from __future__ import annotations

import redis

from events.client import build_client, check_server
from events.embedded import EmbeddedRedis
from events.errors import InvalidInput
from events.log import LogConnection
from events.memory import MemoryBackend
from events.redis_log import RedisBackend
from events.server_url import without_password

_REDIS_SCHEMES = (
    *("redis", "rediss", "unix"),
    *("redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel"),
)


def connect(url: str | None = None, *, client: redis.Redis | None = None, any_server: bool = False) -> LogConnection:
    """Open the place where logs are. Give a URL, or a client you built (fakeredis, special TLS).

    `any_server`: also one that may not hold a log, for who looks into what is wrong with it.

    Raises:
        InvalidInput: the URL is none of the table above, or the server may not hold a log (too old, evicts, replica).
        Unavailable: the server cannot be reached.
    """
    if (url is None) == (client is None):
        raise InvalidInput("connect takes a URL or client=, exactly one of them")
    if client is not None:
        if not any_server:
            check_server(client)
        return LogConnection(RedisBackend(client, owned=False), url=f"client={type(client).__name__}")
    if not isinstance(url, str):
        raise InvalidInput(f"the URL must be a string, not {type(url).__name__}")
    scheme, mark, rest = url.partition("://")
    if not mark:
        scheme = ""
    if scheme == "memory":
        if url.rstrip("/") != "memory:":
            raise InvalidInput(
                f"memory:// takes no path, got {without_password(url)!r}: share the connection object instead"
            )
        return LogConnection(MemoryBackend(), url=url)
    if scheme == "embedded":
        server = EmbeddedRedis(_embedded_folder(url))
        return LogConnection(_EmbeddedBackend(server), url=server.url)
    if scheme in _REDIS_SCHEMES and rest:
        built = build_client(url)
        if not any_server:
            check_server(built)
        return LogConnection(RedisBackend(built, owned=True), url=without_password(url))
    raise InvalidInput(
        f"{without_password(url)!r} is no log: use redis://, rediss://, unix://, redis+cluster://, "
        "redis+sentinel://, embedded://[folder] or memory://"
    )


def _embedded_folder(url: str) -> str | None:
    return url.removeprefix("embedded://") or None


class _EmbeddedBackend(RedisBackend):
    """A Redis backend that ends its server with itself."""

    def __init__(self, server: EmbeddedRedis) -> None:
        super().__init__(build_client(server.url), owned=True)
        self.server = server

    def close(self) -> None:
        super().close()
        self.server.stop()
