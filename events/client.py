"""The one place that builds a Redis client, and the one place that reads its errors.

Owns: no hidden retries, bounded timeouts, an explicit protocol version; what a server must be before we use it; and the
sorting of the client library's errors into ours. A library default of ten silent retries is how other systems append a
fact three times (redis-facts C1-C3).
"""

from __future__ import annotations

import re
from typing import Any, Final, TypeAlias, cast

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import ClusterError, RedisClusterException, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from events import limits
from events.cluster_client import ClusterClient
from events.errors import CorruptState, InvalidInput, OutcomeUnknown, Unavailable
from events.sentinel_client import PrimaryClient
from events.server_url import CLUSTER, ServerUrl, server_url, without_password

Client: TypeAlias = redis.Redis | ClusterClient
"""What the transports speak to. Both take the same calls; all keys of an index lie in one slot."""

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
    "NOPERM": "this user may not run a command we need: see ops/acl/ for the rights",
    "CLUSTERDOWN": "the cluster has no quorum",
    "MASTERDOWN": "the replica has lost its primary",
    "TRYAGAIN": "the cluster is moving this slot: wait",
    "MOVED": "the server is one node of a cluster and does not hold this index: connect with redis+cluster://",
    "ASK": "the cluster is moving this slot: wait",
    "DENIED": "the server takes local connections only (protected-mode): give it a password",
}
_PASSING: Final = frozenset({"LOADING", "BUSY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "ASK"})
"""Conditions that end by themselves; the others last until somebody acts."""

_CODE: Final = re.compile(rf"(?:^|: -)({'|'.join(_REMEDIES)})\b")
"""Where an error's code stands in its text: first, or (from inside a script, Redis 6.2) after the script's line."""

_PRIMARY_GONE: Final = frozenset({"The previous master is now a slave"})
"""How the client library words READONLY where Sentinels can name another primary."""

_DAMAGED: Final = "DAMAGED "
"""How our scripts begin to say where something stands that none of us wrote; see `lua/stored_number.lua`."""

_PHRASES: Final = {
    "can't run this command": "NOPERM",
    "unauthenticated": "NOAUTH",
}
"""Errors that Redis words without a code."""


def build_client(url: str) -> Client:
    """A client that tries once and never waits for ever.

    Args:
        url: `redis://`, `rediss://`, `unix://`, or one of `server_url.py`.

    Raises:
        InvalidInput: it is none of them.
        Unavailable: no node of a cluster can be reached; all others are reached when they are used.
    """
    group = server_url(url)
    try:
        if group is None:
            client = redis.Redis.from_url(url, **_settings())
            _check_options(client.connection_pool.connection_class, client.connection_pool.connection_kwargs)
            return client
        for settings in (group.settings, group.sentinel_settings):
            _check_options(redis.SSLConnection if group.tls else redis.Connection, {**_settings(), **settings})
    except (ValueError, TypeError) as error:
        reason = "" if isinstance(error, ValueError) else f": {error}"
        raise InvalidInput(
            f"{without_password(url)!r} is not a Redis URL (scheme://[user[:password]@]host[:port][/db]; special "
            f"characters in a password are written as %XX){reason}"
        ) from None
    return _cluster(group) if group.kind == CLUSTER else _primary(group)


def _check_options(connection_class: type[redis.Connection], settings: dict[str, Any]) -> None:
    """An option of a URL that no connection knows is refused here, and not at its first use; retries are not optional."""
    if not isinstance(settings["retry"], Retry):
        raise TypeError("retry= is no option: whoever knows what a command does repeats it")
    connection_class(**settings)


def _settings() -> dict[str, Any]:
    """No hidden retries, nothing endless, one protocol."""
    return {
        "decode_responses": False,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
        "socket_connect_timeout": limits.CONNECT_TIMEOUT_S,
        "socket_timeout": limits.SOCKET_TIMEOUT_S,
        "health_check_interval": 0,
    }


def _cluster(group: ServerUrl) -> Client:
    """Asks a node for the others at once."""
    settings = {**_settings(), **group.settings, "ssl": group.tls}
    nodes = [ClusterNode(*place) for place in group.places]  # type: ignore[no-untyped-call]
    try:
        return ClusterClient(startup_nodes=nodes, require_full_coverage=False, **settings)
    except RedisClusterException as error:
        cause: BaseException | None = error
        while isinstance(cause, RedisClusterException):
            cause = cause.__cause__ or cause.__context__
        if cause is not None and "cluster support disabled" in str(cause):
            raise InvalidInput(f"{_places(group)} is no node of a cluster: use redis:// for a single server") from error
        raise unavailable(cause if isinstance(cause, RedisError) else RedisConnectionError(str(error))) from error
    except IndexError as error:
        raise Unavailable(f"the cluster at {_places(group)} serves no slot yet") from error


def _primary(group: ServerUrl) -> Client:
    settings = {**_settings(), **group.settings, "db": group.db, "ssl": group.tls}
    theirs = {**_settings(), **group.sentinel_settings, "ssl": group.tls}
    sentinel = Sentinel(group.places, sentinel_kwargs=theirs, **settings)  # type: ignore[no-untyped-call]
    primary = sentinel.master_for(group.service, redis_class=PrimaryClient)  # type: ignore[no-untyped-call]
    return cast("PrimaryClient", primary)


def _places(group: ServerUrl) -> str:
    return ", ".join(f"{host}:{port}" for host, port in group.places)


def check_server(client: Client) -> None:
    """Refuse a server that would lose or reject what we write; of a cluster, every primary.

    Raises:
        InvalidInput: the client decodes replies, or the server is too old, evicts keys, or is a replica.
        Unavailable: it cannot be reached.
    """
    if not isinstance(client, redis.Redis | ClusterClient):
        raise _no_client(client)
    if client.get_encoder().decode_responses:
        raise InvalidInput("the client decodes replies (decode_responses=True): entries are binary, build it without")
    try:
        found = client.info(target_nodes=client.PRIMARIES) if isinstance(client, ClusterClient) else client.info()
    except (RedisError, RedisClusterException, OSError) as error:
        if type(client).__module__.startswith("fakeredis"):
            return
        if isinstance(error, ResponseError) and "SENTINEL" in str(error):
            raise InvalidInput(
                f"the URL's address is that of a server, and of no Sentinel: use redis:// ({error})"
            ) from error
        raise unavailable(error) from error
    # A cluster of one primary answers as a single server does.
    nodes = found if found and all(isinstance(value, dict) for value in found.values()) else {"": found}
    for name, info in nodes.items():
        _check_node(f"the server {name}" if name else "the server", info)


def _no_client(given: object) -> InvalidInput:
    hint = "; for a cluster give its URL, redis+cluster://host:port" if isinstance(given, RedisCluster) else ""
    return InvalidInput(f"client= takes a redis.Redis, not {type(given).__name__}{hint}")


def _check_node(who: str, info: dict[str, Any]) -> None:
    version = str(info.get("redis_version", "0"))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < VERSION_MIN:
        raise InvalidInput(f"{who} is version {version}; 6.2 or newer is needed")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise InvalidInput(
            f"{who} evicts keys when memory is short (maxmemory-policy {policy}), and a log must not be evicted: "
            "set maxmemory-policy noeviction"
        )
    if info.get("role", "master") != "master":
        raise InvalidInput(f"{who} is a read-only replica: connect to its primary")


def unavailable(error: Exception) -> Unavailable | CorruptState:
    """Our error for a failed call that cannot have changed anything."""
    return _classified(error) or Unavailable(f"the log's server cannot be reached: {_text(error)}")


def unknown(error: Exception, commit_id: str) -> Unavailable | CorruptState:
    """Our error for a failed append: unknown, unless the error itself says that nothing was written."""
    classified = _classified(error)
    if classified is not None:
        return classified
    if _NEVER_SENT.match(str(error)) or isinstance(error, MasterNotFoundError):
        return Unavailable(f"the log's server cannot be reached: {_text(error)}")
    return OutcomeUnknown(f"no reply to commit {commit_id}: {_text(error)}", commit_id)


def server_life(client: Client, key: str) -> str:
    """Which life of the server that holds this key it is, as `lua/server_life.lua` says it."""
    try:
        if isinstance(client, ClusterClient):
            node = client.get_node_from_key(key)  # type: ignore[no-untyped-call]
            return str(client.info("server", target_nodes=node).get("run_id", ""))
        return str(client.info("server").get("run_id", ""))
    except (RedisError, RedisClusterException, OSError) as error:
        if type(client).__module__.startswith("fakeredis"):
            return ""
        raise unavailable(error) from error


def closed(opens_in_s: float) -> Unavailable:
    """The server began a new life a moment ago."""
    return Unavailable(
        f"the log's server began a new life and may have lost the end of the log: it is closed for {opens_in_s:.1f} s, "
        "until everybody who knew that end has stopped using it"
    )


def loss_in_the_way(commit: str) -> Unavailable:
    """Somebody knew a commit that the log does not hold, and nobody has dealt with that yet."""
    return Unavailable(
        f"the log has lost its end, up to commit {commit}: no job is handed out until an engine or the keeper has appended "
        "HistoryLost"
    )


def other_layout(found: bytes, speaks: str) -> InvalidInput:
    """The keys of the index are laid out otherwise than this release lays them out."""
    layout = found.decode(errors="replace")
    begun = layout.partition(">")[0]
    newer = not (begun.isdecimal() and int(begun) < int(speaks))
    return InvalidInput(
        f"the index has key layout {layout!r:.80}, this release speaks {speaks!r}: "
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
    if text in _PRIMARY_GONE:
        return Unavailable(f"the primary has changed: wait ({text})")
    if text == "max number of clients reached":
        return Unavailable(f"the server has too many clients: raise maxclients ({text})")
    if isinstance(error, ResponseError) and text.startswith(_DAMAGED):
        return CorruptState(f"{text.removeprefix(_DAMAGED)}; none of us wrote it")
    if isinstance(error, ResponseError) and "WRONGTYPE" in text:
        return CorruptState(f"a key of the index is of another type than ours; statecore doctor says which ({text})")
    if isinstance(error, ResponseError):
        return CorruptState(f"the server refused a well-formed request: {text}")
    return None


def _code(error: Exception) -> str | None:
    """The server's word for what is wrong. The client library takes it off the text of the errors it has classes for."""
    code = getattr(error, "status_code", None)
    if code in _REMEDIES:
        return str(code)
    if type(error) is ClusterError:
        return "TRYAGAIN"  # redirected many times; each time a node said that it did nothing
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
