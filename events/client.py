"""The one place that builds a Redis client, and the one place that reads its errors.

Owns: no hidden retries, bounded timeouts, an explicit protocol version; what a server must be before we use it; and the
sorting of the client library's errors into ours. A library default of ten silent retries is how other systems append a
fact three times (redis-facts C1-C3).
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from events import limits
from events.errors import CorruptState, InvalidInput, OutcomeUnknown, Unavailable

VERSION_MIN: Final = (6, 2)
_REFUSED: Final = (ConnectionRefusedError, FileNotFoundError, PermissionError)
"""Causes of a failed connect: the request never left this machine."""

_REMEDIES: Final = {
    "OOM": "the server is out of memory: raise maxmemory, or trim logs behind a snapshot",
    "READONLY": "the server is a read-only replica: connect to the primary",
    "NOREPLICAS": "the server has fewer replicas than min-replicas-to-write: bring them back",
    "MISCONF": "the server cannot persist: look at its disk and its log",
    "LOADING": "the server is still loading its data: wait",
    "BUSY": "the server runs a long script: wait, or find who sent it",
    "NOAUTH": "the server wants a password: put it into the URL, redis://:password@host",
    "WRONGPASS": "user name or password are wrong",
    "NOPERM": "this user may not run a command we need: see ops/ for the rights",
    "CLUSTERDOWN": "the cluster has no quorum",
    "MASTERDOWN": "the replica has lost its primary",
    "TRYAGAIN": "the cluster is moving this slot: wait",
}


def build_client(url: str) -> redis.Redis:
    """A client for `redis://`, `rediss://` or `unix://` that tries once and never waits for ever."""
    try:
        return redis.Redis.from_url(
            url,
            decode_responses=False,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
            socket_connect_timeout=limits.CONNECT_TIMEOUT_S,
            socket_timeout=limits.SOCKET_TIMEOUT_S,
            health_check_interval=0,
        )
    except ValueError as error:
        raise InvalidInput(f"{without_password(url)!r} is not a Redis URL: {error}") from None


def without_password(url: str) -> str:
    """The URL as it may be shown and logged."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))


def check_server(client: redis.Redis) -> None:
    """Refuse a server that would lose or reject what we write.

    Raises:
        InvalidInput: the client decodes replies, or the server is too old, evicts keys, or is a replica.
        Unavailable: it cannot be reached.
    """
    if client.get_encoder().decode_responses:
        raise InvalidInput("the client decodes replies (decode_responses=True): entries are binary, build it without")
    try:
        info = client.info()
    except (RedisError, OSError) as error:
        raise unavailable(error) from error
    version = str(info.get("redis_version", "0"))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < VERSION_MIN:
        raise InvalidInput(f"the server is version {version}; 6.2 or newer is needed")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise InvalidInput(
            f"the server evicts keys when memory is short (maxmemory-policy {policy}), and a log must not be evicted: "
            "set maxmemory-policy noeviction"
        )
    if info.get("role", "master") != "master":
        raise InvalidInput("the server is a read-only replica: connect to its primary")


def unavailable(error: Exception) -> Unavailable | CorruptState:
    """Our error for a failed call that cannot have changed anything."""
    return _classified(error) or Unavailable(f"the log's server cannot be reached: {_text(error)}")


def unknown(error: Exception, commit_id: str) -> Unavailable | CorruptState:
    """Our error for a failed append: unknown, unless the error itself says that nothing was written."""
    classified = _classified(error)
    if classified is not None:
        return classified
    if isinstance(_root_cause(error), _REFUSED):
        return Unavailable(f"the log's server cannot be reached: {_text(error)}")
    return OutcomeUnknown(f"no reply to commit {commit_id}: {_text(error)}", commit_id)


def is_missing_script(error: Exception) -> bool:
    return isinstance(error, ResponseError) and str(error).startswith(("NOSCRIPT", "No matching script"))


def _classified(error: Exception) -> Unavailable | CorruptState | None:
    """An error reply of the server. Some arrive as classes, those from inside a script only as text (C7)."""
    text = _text(error)
    for prefix, remedy in _REMEDIES.items():
        if prefix in text.split(":")[0].split() or text.startswith(prefix):
            return Unavailable(f"{remedy} ({text})")
    if isinstance(error, ResponseError):
        return CorruptState(f"the server refused a well-formed request: {text}")
    return None


def _root_cause(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _text(error: BaseException) -> str:
    if isinstance(error, RedisTimeoutError):
        return f"timeout ({error})"
    if isinstance(error, RedisConnectionError | OSError):
        return str(error) or type(error).__name__
    return str(error)
