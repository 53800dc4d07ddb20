"""URLs of Redis servers: taken apart, and as they may be shown.

Owns the forms beyond what the client library reads itself, and the hiding of passwords. Opens nothing.

| URL                                                     | is                                            |
|---------------------------------------------------------|-----------------------------------------------|
| redis+cluster://[user:pass@]host:port[,host:port…]      | a Redis Cluster; one node finds the others    |
| redis+sentinel://[user:pass@]host:port[,…]/service[/db] | the primary that these Sentinels name         |
| rediss+cluster://, rediss+sentinel://                   | the same, every connection over TLS           |

User and password are those of the servers; Sentinels that want some themselves get them from the options
`sentinel_username=` and `sentinel_password=`. Options follow after `?`, as in the library's own URLs (`ssl_ca_certs=…`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

import attrs
from redis.connection import parse_url

from events.errors import InvalidInput

CLUSTER: Final = "cluster"
SENTINEL: Final = "sentinel"

_SCHEME: Final = re.compile(r"(rediss?)\+(cluster|sentinel)\Z")
_PORTS: Final = {CLUSTER: 6379, SENTINEL: 26379}
_ESCAPED: Final = "special characters in a password are written as %XX"
_FORMS: Final = {
    CLUSTER: "redis+cluster://[user:password@]host:port[,host:port]",
    SENTINEL: "redis+sentinel://[user:password@]host:port[,host:port]/service[/db]",
}
_PASSWORD_OPTION: Final = re.compile(r"(?i)(password=).*?(?=&[a-z_]+=|\Z)")


@attrs.frozen
class ServerUrl:
    """A group of servers to find one's own in.

    Attributes:
        kind: `CLUSTER` or `SENTINEL`.
        places: host and port of nodes, or of Sentinels.
        tls: whether every connection is encrypted.
        settings: keyword arguments of a connection: user, password, options.
        sentinel_settings: the same for connections to Sentinels.
        service, db: of Sentinels; "" and 0 in a cluster.
    """

    kind: str
    places: tuple[tuple[str, int], ...]
    tls: bool
    settings: Mapping[str, Any] = attrs.field(repr=False)
    sentinel_settings: Mapping[str, Any] = attrs.field(repr=False)
    service: str = ""
    db: int = 0


def server_url(url: str) -> ServerUrl | None:
    """The parts of a URL of the table above; None when it is of another kind.

    Raises:
        InvalidInput: it begins like one of them, and is none.
    """
    scheme, _, rest = url.partition("://")
    found = _SCHEME.match(scheme)
    if found is None:
        return None
    plain, kind = found[1], found[2]
    head, _, query = rest.partition("?")
    credentials, at, place = head.rpartition("@")
    hosts, _, path = place.partition("/")
    try:
        parsed = [parse_url(f"{plain}://{credentials}{at}{host}?{query}") for host in hosts.split(",")]  # type: ignore[no-untyped-call]
        places = tuple((options["host"], options.get("port", _PORTS[kind])) for options in parsed)
    except (ValueError, KeyError):
        raise InvalidInput(f"{without_password(url)!r} is not of the form {_FORMS[kind]} ({_ESCAPED})") from None
    settings = {name: value for name, value in parsed[0].items() if name not in ("host", "port", "connection_class")}
    own = {
        name.removeprefix("sentinel_"): settings.pop(name) for name in list(settings) if name.startswith("sentinel_")
    }
    service, db = _service(url, kind, path, settings.pop("db", 0))
    tls_options = {name: value for name, value in settings.items() if name.startswith("ssl_")}
    return ServerUrl(kind, places, plain == "rediss", settings, {**tls_options, **own}, service, db)


def _service(url: str, kind: str, path: str, db: int) -> tuple[str, int]:
    """The service's name and the database, from what stands after the hosts."""
    name, _, number = path.rstrip("/").partition("/") if kind == SENTINEL else ("", "", path.rstrip("/"))
    if (kind == SENTINEL and not name) or (number and not (number.isascii() and number.isdecimal())):
        raise InvalidInput(f"{without_password(url)!r} is not of the form {_FORMS[kind]}")
    db = int(number) if number else db
    if kind == CLUSTER and db != 0:
        raise InvalidInput(f"{without_password(url)!r}: a cluster has database 0 only, not {db}")
    return unquote(name), db


def without_password(url: str) -> str:
    """The URL as it may be shown and logged, also when it is none."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        scheme, rest = "", url
    credentials, at, place = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    shown = f"{scheme}{mark}{user}{':***' if colon else ''}{at}{place}"
    return _PASSWORD_OPTION.sub(r"\1***", shown)
