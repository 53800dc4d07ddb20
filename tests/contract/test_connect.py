"""What `connect` takes and refuses: URLs of all sorts, clients of all sorts, and no password ever in a message."""

from __future__ import annotations

import itertools
import traceback
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import fakeredis
import pytest
import redis

from events import connect
from events.errors import InvalidInput, StateCoreError, Unavailable
from events.ports import Appended, Base, Conflicted, Head
from tests.contract.commits import BIRTH, commit, filled
from tests.contract.test_read import Seen, until
from tests.servers import RedisServer

pytestmark = pytest.mark.usefixtures("impatient")

SECRET = "hunter2"
WRONG = [
    "",
    " ",
    "localhost",
    "localhost:6379",
    "http://localhost",
    "redis:/localhost",
    "redis//localhost",
    "mongodb://localhost",
    "redis://localhost:99999",
    "redis://localhost:port",
    "redis://localhost:-1",
    "redis://[::1",
    "memory://x",
    "memory:///a",
    "memory",
    "embedded",
    "embedded:/tmp",
    "REDIS",
    "unix:",
    "unix://",
]


@pytest.mark.parametrize("url", WRONG)
def test_no_url_of_ours(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a slip in a URL would give a traceback, or silently another log.

    Given something that is no URL of ours, when connecting, then InvalidInput that shows it, and no folder is made.
    """
    monkeypatch.chdir(tmp_path)

    with pytest.raises(InvalidInput) as refused:
        connect(url).close()

    assert url.strip() in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", [5, b"redis://localhost", ["redis://localhost"], True])
def test_no_string(url: object) -> None:
    """Otherwise a URL of the wrong type would fail deep inside the client library.

    Given no string, when connecting, then InvalidInput names the type.
    """
    with pytest.raises(InvalidInput, match=type(url).__name__):
        connect(cast("str", url))


def test_exactly_one_of_url_and_client() -> None:
    """Otherwise it would be open which of two servers holds the log.

    Given both or neither, when connecting, then InvalidInput.
    """
    client = fakeredis.FakeRedis()
    for arguments in ({}, {"url": "memory://", "client": client}):
        with pytest.raises(InvalidInput, match="exactly one"):
            connect(**cast("dict[str, Any]", arguments))


@pytest.mark.parametrize("client", [5, "redis://localhost", object(), redis.Redis])
def test_no_client(client: object) -> None:
    """Otherwise a wrong argument would fail at the first commit.

    Given something that is no Redis client, when connecting, then InvalidInput names its type.
    """
    with pytest.raises(InvalidInput, match=type(client).__name__):
        connect(client=cast("redis.Redis", client))


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@127.0.0.1:1/0",
        f"redis://user:{SECRET}@127.0.0.1:1",
        f"rediss://user:{SECRET}@127.0.0.1:1",
        f"unix://user:{SECRET}@/nowhere/redis.sock",
        f"redis://127.0.0.1:1?password={SECRET}",
        f"redis://127.0.0.1:1?username=u&password={SECRET}&db=1",
        f"redis://user:{SECRET}@127.0.0.1:99999",
        f"redis://user:{SECRET}@127.0.0.1:port",
        f"redis://user:a/{SECRET}@127.0.0.1:1",
        f"redis://user:{SECRET}/a@127.0.0.1:1",
        f"redis://user:a#{SECRET}@127.0.0.1:1",
        f"redis://user:a?{SECRET}@127.0.0.1:1",
        f"redis://user:{SECRET}[@127.0.0.1:1",
        f"http://user:{SECRET}@127.0.0.1:1",
        f"redis+cluster://user:{SECRET}@127.0.0.1:1,127.0.0.1:2",
        f"redis+cluster://user:{SECRET}@127.0.0.1:port",
        f"redis+cluster://user:{SECRET}@127.0.0.1:1/3",
        f"redis+cluster://user:a?{SECRET}@127.0.0.1:1",
        f"rediss+cluster://127.0.0.1:1?password={SECRET}&ssl_password={SECRET}",
        f"redis+sentinel://user:{SECRET}@127.0.0.1:1,127.0.0.1:2/service/3",
        f"redis+sentinel://user:{SECRET}@127.0.0.1:1",
        f"rediss+sentinel://user:{SECRET}@127.0.0.1:1/service/x",
        f"redis+sentinel://127.0.0.1:1/service?sentinel_password={SECRET}",
        f"redis+sentinel://127.0.0.1:1/service?sentinel_password=a&{SECRET}",
        f"redis+nothing://user:{SECRET}@127.0.0.1:1",
        f"redis://user:a://{SECRET}@127.0.0.1:1",
        f"redis://127.0.0.1:1?password=a#{SECRET}",
        f"redis://user:{SECRET}@127.0.0.1:1?nonsense=1",
        f"user:{SECRET}@127.0.0.1:1",
        f"memory://user:{SECRET}@x",
    ],
)
def test_a_password_is_never_shown(url: str) -> None:
    """Otherwise passwords would end up in logs and bug reports.

    Given a URL with a password, also one that was not escaped as it should, when connecting fails, then no line of the
    traceback's messages holds it.
    """
    with pytest.raises(StateCoreError) as failed:
        connect(url)

    messages = [str(error) for error in _chain(failed.value)]
    assert not [message for message in messages if SECRET in message]
    assert not [message for message in traceback.format_exception_only(failed.value) if SECRET in message]


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and all that a traceback would show above it."""
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return chain


@pytest.mark.parametrize("form", ["redis://:{}@{}", "redis://default:{}@{}", "redis://{1}?password={0}"])
def test_a_connection_does_not_show_its_password(server: RedisServer, form: str) -> None:
    """Otherwise printing a connection would print its password.

    Given a server with a password full of special characters, when connected with it, then it works, and repr is silent.
    """
    password = f"{SECRET}/#?@:%&="
    server.client().config_set("requirepass", password)

    with connect(form.format(quote(password, safe=""), f"127.0.0.1:{server.port}")) as connection:
        assert connection.log("i").head() == Head(0, "", first=0)
        assert SECRET not in repr(connection)
        assert SECRET not in connection.url


@pytest.mark.parametrize("scheme", ["redis://{}", "rediss://{}", "redis+cluster://{}", "redis+sentinel://{}/service"])
@pytest.mark.parametrize("option", ["nonsense=1", "retry=5", "socket_timeout=soon", "protocol=two"])
def test_an_option_that_is_none(scheme: str, option: str) -> None:
    """Otherwise a typing error in a URL would end in a traceback, at the first use of a connection.

    Given a URL with an option that does not exist, or a value that is none, when connecting, then InvalidInput.
    """
    with pytest.raises(InvalidInput, match=r"is not a Redis URL|is not of the form"):
        connect(f"{scheme.format('127.0.0.1:1')}?{option}")


# --- clients the user built -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_client_that_decodes_is_refused(redis_url: str, protocol: int) -> None:
    """Otherwise hashes would be read as text, and fail at the first byte above 127.

    Given decode_responses=True, by argument or by URL, when connecting, then InvalidInput names the setting.
    """
    with (
        redis.Redis.from_url(redis_url, decode_responses=True, protocol=protocol) as client,
        pytest.raises(InvalidInput, match="decode_responses"),
    ):
        connect(client=client)
    with pytest.raises(InvalidInput, match="decode_responses"):
        connect(f"{redis_url}?decode_responses=true")


SHAPES = [
    {"protocol": protocol, "legacy_responses": legacy} for protocol, legacy in itertools.product((2, 3), (True, False))
]


@pytest.mark.parametrize("settings", SHAPES, ids=str)
def test_every_shape_of_replies(redis_url: str, index_name: str, settings: dict[str, Any]) -> None:
    """Otherwise the log would break with the next major release of the client library.

    Given clients of RESP2 and RESP3, with the library's old and new reply shapes, when appending, reading and following,
    then all is as with ours.
    """
    with redis.Redis.from_url(redis_url, **settings) as client, connect(client=client) as connection:
        log = connection.log(index_name)
        filled(log, 1)
        log.follow(0)
        seen = Seen(log)
        until(lambda: seen.ids() == ["c1"])
        log.append(commit("b1", engine="b", pools=["p"], fences=(("z", 2),)), Base(1, "c1"))
        log.append(commit("b2", engine="b"), Base(2, "b1"))
        until(lambda: len(seen.ids()) >= 3)

        assert seen.entries == list(log.read(0))
        assert log.head() == Head(3, "b2", first=1)
        assert log.append(commit("a2", pools=["p"]), Base(1, "c1")) == Conflicted("pool:p", log.read(1))
        assert log.append(commit("a3"), Base(1, "c1")) == Appended(4, log.read(1)[:2])
        assert index_name in connection.indexes()


def test_a_users_client_stays_open(redis_url: str) -> None:
    """Otherwise closing the index would break whatever else the application does with its client.

    Given the user's own client, when our connection is closed, then the client still works.
    """
    with redis.Redis.from_url(redis_url, protocol=2, single_connection_client=False) as client:
        connect(client=client).close()

        assert client.ping()


# --- servers that are not there -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:1", "unix:///nowhere/redis.sock", "redis://nobody.invalid", "rediss://127.0.0.1:1"]
)
def test_nobody_there(url: str) -> None:
    """Otherwise a wrong address would give a traceback of the client library.

    Given an address where nobody listens, when connecting, then Unavailable that says so.
    """
    with pytest.raises(Unavailable, match="cannot be reached"):
        connect(url)


def test_memory_is_shared_by_the_connection_only() -> None:
    """Otherwise tests of one process would see each other's logs.

    Given two memory connections, when one appends, then the other does not see it.
    """
    with connect("memory://") as one, connect("memory://") as two:
        one.log("i").append(commit("c1"), BIRTH)

        assert one.log("i").head().position == 1
        assert two.log("i").head().position == 0
