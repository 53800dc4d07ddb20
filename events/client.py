"""The one place that builds a Redis client, and the one place that reads its errors.

Owns: no hidden retries, bounded timeouts, an explicit protocol version; what a server must be before we use it; and the
sorting of the client library's errors into ours. A library default of ten silent retries is how other systems append a
fact three times (redis-facts C1-C3).
"""

from __future__ import annotations

import re
from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from events import limits
from events.errors import CorruptState, InvalidInput, OutcomeUnknown, Unavailable

VERSION_MIN: Final = (6, 2)
_NEVER_SENT: Final = re.compile(r"(?:Error .*|Timeout) connecting to ")
"""How the client library words a failed connect: the request never left this machine. Its exceptions' context says
less: it may be one that the caller is handling."""

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
    "MOVED": "the server is one node of a cluster and does not hold this index: connect with a cluster client",
    "ASK": "the cluster is moving this slot: wait",
    "DENIED": "the server takes local connections only (protected-mode): give it a password",
}
_PASSING: Final = frozenset({"LOADING", "BUSY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "ASK"})
"""Conditions that end by themselves; the others last until somebody acts."""

_CODE: Final = re.compile(rf"(?:^|: -)({'|'.join(_REMEDIES)})\b")
"""Where an error's code stands in its text: first, or (from inside a script, Redis 6.2) after the script's line."""

_PHRASES: Final = {
    "can't run this command": "NOPERM",
    "unauthenticated": "NOAUTH",
}
"""Errors that Redis words without a code."""


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
    except ValueError:
        raise InvalidInput(
            f"{without_password(url)!r} is not a Redis URL (scheme://[user[:password]@]host[:port][/db]; special "
            "characters in a password are written as %XX)"
        ) from None


def without_password(url: str) -> str:
    """The URL as it may be shown and logged."""
    scheme, _, rest = url.rpartition("://") if "://" in url else ("", "", url)
    credentials, at, place = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    shown = f"{scheme}://" if scheme else ""
    shown += f"{user}{':***' if colon else ''}{at}{place}"
    return re.sub(r"(?i)\b(password=)[^&#]*", r"\1***", shown)


def check_server(client: redis.Redis) -> None:
    """Refuse a server that would lose or reject what we write.

    Raises:
        InvalidInput: the client decodes replies, or the server is too old, evicts keys, or is a replica.
        Unavailable: it cannot be reached.
    """
    if not isinstance(client, redis.Redis):
        raise InvalidInput(f"client= takes a redis.Redis, not {type(client).__name__}")
    if client.get_encoder().decode_responses:
        raise InvalidInput("the client decodes replies (decode_responses=True): entries are binary, build it without")
    try:
        info = client.info()
    except (RedisError, OSError) as error:
        if type(client).__module__.startswith("fakeredis"):
            return
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
    if _NEVER_SENT.match(str(error)):
        return Unavailable(f"the log's server cannot be reached: {_text(error)}")
    return OutcomeUnknown(f"no reply to commit {commit_id}: {_text(error)}", commit_id)


def server_life(client: redis.Redis) -> str:
    """Which life of the server this is, as `lua/server_life.lua` says it."""
    try:
        return str(client.info("server").get("run_id", ""))
    except (RedisError, OSError) as error:
        if type(client).__module__.startswith("fakeredis"):
            return ""
        raise unavailable(error) from error


def closed(opens_in_s: float) -> Unavailable:
    """The server began a new life a moment ago."""
    return Unavailable(
        f"the log's server began a new life and may have lost the end of the log: it is closed for {opens_in_s:.1f} s, "
        "until everybody who knew that end has stopped using it"
    )


def other_layout(found: bytes, speaks: str) -> InvalidInput:
    """The keys of the index are laid out otherwise than this release lays them out."""
    layout = found.decode(errors="replace")
    begun = layout.partition(">")[0]
    newer = not (begun.isdecimal() and int(begun) < int(speaks))
    return InvalidInput(
        f"the index has key layout {layout!r}, this release speaks {speaks!r}: "
        + ("upgrade statecore" if newer else "stop what still runs of the old release, then run: statecore migrate")
    )


def is_missing_script(error: Exception) -> bool:
    return isinstance(error, ResponseError) and str(error).startswith(("NOSCRIPT", "No matching script"))


def _classified(error: Exception) -> Unavailable | CorruptState | None:
    """An error reply of the server. Some arrive as classes, those from inside a script only as text (C7)."""
    text = _text(error)
    code = _code(error)
    if code is not None:
        return Unavailable(f"{_REMEDIES[code]} ({code}: {text})", lasting=code not in _PASSING)
    if text == "max number of clients reached":
        return Unavailable(f"the server has too many clients: raise maxclients ({text})")
    if isinstance(error, ResponseError):
        return CorruptState(f"the server refused a well-formed request: {text}")
    return None


def _code(error: Exception) -> str | None:
    """The server's word for what is wrong. The client library takes it off the text of the errors it has classes for."""
    code = getattr(error, "status_code", None)
    if code in _REMEDIES:
        return str(code)
    if not isinstance(error, ResponseError):
        return None
    found = _CODE.search(str(error))
    if found is not None:
        return found[1]
    return next((code for phrase, code in _PHRASES.items() if phrase in str(error)), None)


def _text(error: BaseException) -> str:
    if isinstance(error, RedisTimeoutError):
        return f"timeout ({error})"
    if isinstance(error, RedisConnectionError | OSError):
        return str(error) or type(error).__name__
    return str(error)
