"""The log behind Sentinels: an engine goes on with the server that has become the primary, or is told why not.

Owns what a failover adds where nothing was lost in it. A failover that loses entries is the business of the chaos tests.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from events import connect, limits
from events.client import build_client
from events.errors import InvalidInput, OutcomeUnknown, Unavailable
from events.ports import Appended, Base, Head
from events.sentinel_client import PrimaryClient
from statecore import CacheIndex
from tests.contract.commits import commit, filled, ids
from tests.servers import LOOPBACK, RedisServer, binary_of
from tests.topologies import SERVICE, Watched, eventually

KINDS = [kind for kind in ("embedded", "system") if binary_of(kind)]


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Stays as it is."""
    with Watched(tmp_path_factory.mktemp("steady"), sentinels=1) as running:
        yield running


@pytest.fixture
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watched]:
    """The test's own; of the oldest version where it does not ask for both."""
    with Watched(tmp_path, binary=binary_of(getattr(request, "param", "embedded")), sentinels=1) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("watched", KINDS, indirect=True)
def test_a_failover(watched: Watched, index_name: str) -> None:
    """Otherwise the death of one server would end every engine, though its replica has all they wrote.

    Given engines that commit, when the primary is killed and Sentinels name the replica, then the engines go on by
    themselves, at the next position, with one digest; and they go on when the old primary has returned as a replica.
    """
    with connect(watched.url) as here, connect(watched.url) as there:
        a = CacheIndex(here, name=index_name, engine="a", gpu_pool="shared", gpu_blocks=64, block_size=4)
        b = CacheIndex(there, name=index_name, engine="b", gpu_pool="shared", gpu_blocks=64, block_size=4)
        compute(a, "before")
        position = a.position
        eventually(watched.is_synced, "the replica has it all")

        watched.primary.kill()
        eventually(lambda: went_on(a, "after"), "the engine goes on")

        assert watched.current() is watched.replica
        assert a.position > position
        watched.primary.start()
        eventually(lambda: watched.follows(watched.primary), "the old one is a replica")
        compute(b, "later")
        a.refresh()
        b.refresh()
        assert a.digest() == b.digest()
        assert b.match("again", tokens("before")).tokens > 0


def tokens(name: str) -> list[int]:
    return [*name.encode(), *range(1000, 1012)]


def compute(engine: CacheIndex, name: str) -> None:
    wanted = -(-len(tokens(name)) // 4)
    found = len(engine.match(name, tokens(name)).blocks)
    engine.allocate(name, wanted - found)
    engine.extend(name, ready=True)
    engine.release(name)


def went_on(engine: CacheIndex, name: str) -> bool:
    try:
        compute(engine, name)
    except OutcomeUnknown:
        eventually(lambda: resolved(engine), "the outcome is found out")
        return False
    except Unavailable:
        return False
    return True


def resolved(engine: CacheIndex) -> bool:
    try:
        engine.resolve()
    except Unavailable:
        return False
    return True


@pytest.mark.slow
def test_the_primary_is_demoted(watched: Watched, index_name: str) -> None:
    """Otherwise a client would stay with a server that can only say READONLY, while another one serves.

    Given a log, when an operator makes the replica the primary, then appends go on by themselves.
    """
    with connect(watched.url) as connection:
        log = connection.log(index_name, follow=False)
        filled(log, 2)
        eventually(watched.is_synced, "the replica has it all")
        eventually(lambda: asked_for_failover(watched), "the replica can take over")
        eventually(lambda: watched.current() is watched.replica, "the Sentinels name the replica")

        assert log.append(commit("c3"), Base(2, "c2")) == Appended(3, ())
        assert ids(log.read(0)) == ["c1", "c2", "c3"]


def asked_for_failover(watched: Watched) -> bool:
    try:
        watched.sentinels[0].client().execute_command("SENTINEL", "FAILOVER", SERVICE)
    except redis.ResponseError:  # it has not looked at the replica yet
        return False
    return True


def test_a_wrong_url(steady: Watched) -> None:
    """Otherwise a typing error would look like an outage.

    Given a service nobody watches, none at all, and a server that is no Sentinel, when connecting, then it is named.
    """
    with pytest.raises(Unavailable, match="'nobody'"):
        connect(steady.url.replace(SERVICE, "nobody"))
    with pytest.raises(InvalidInput, match="service"):
        connect(steady.url.removesuffix(f"/{SERVICE}"))
    with pytest.raises(InvalidInput, match="no Sentinel"):
        connect(f"redis+sentinel://{LOOPBACK}:{steady.primary.port}/{SERVICE}")


def test_everybody_is_gone(watched: Watched, index_name: str) -> None:
    """Otherwise an outage would look like a lost reply, and an engine would wait for an answer to what it never sent.

    Given a log whose primary and Sentinels are gone, when appended to, then Unavailable soon; once its connection is known
    to be broken, that nothing was written.
    """
    with connect(watched.url) as connection:
        log = connection.log(index_name, follow=False)
        filled(log, 1)
        for server in (*watched.sentinels, watched.primary):
            server.kill()
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            log._transport.head()
        with pytest.raises(Unavailable, match=SERVICE) as refused:
            log._append_once(commit("c2"), Base(1, "c1"), log._record_of(commit("c2")))
        assert not isinstance(refused.value, OutcomeUnknown)
        assert time.monotonic() - begun < limits.APPEND_DEADLINE_S


def test_another_database(steady: Watched, index_name: str) -> None:
    """Otherwise `/service/3` would silently be database 0.

    Given a database in the URL, when an index is made there, then it is in that database and in no other.
    """
    with connect(f"{steady.url}/3") as connection:
        filled(connection.log(index_name, follow=False), 1)
        assert connection.indexes() == (index_name,)
    with connect(steady.url) as connection:
        assert connection.log(index_name, follow=False).head() == Head(0, "", first=0)
    assert steady.primary.client(db=3).dbsize() > 0


def test_no_library_default_is_left(steady: Watched) -> None:
    """Otherwise the client library would retry behind our back (redis-facts C9).

    Given a client of Sentinels, then neither its connections nor those to the Sentinels retry or wait for ever.
    """
    client = build_client(steady.url)
    assert isinstance(client, PrimaryClient)
    pool = client.connection_pool
    sentinels = pool.sentinel_manager.sentinels  # type: ignore[attr-defined]
    for settings in (
        pool.connection_kwargs,
        *(each.get_connection_kwargs() for each in sentinels),
    ):
        assert settings["retry"].get_retries() == 0
        assert settings["socket_timeout"] == limits.SOCKET_TIMEOUT_S
        assert settings["socket_connect_timeout"] == limits.CONNECT_TIMEOUT_S
        assert settings["protocol"] == 2
    client.close()


def test_a_replica_by_its_own_url(steady: Watched) -> None:
    """Otherwise an engine would be pointed at a server that refuses every write.

    Given the replica's plain URL, when connecting, then InvalidInput says to connect to its primary.
    """
    assert isinstance(steady.replica, RedisServer)
    with pytest.raises(InvalidInput, match="primary"):
        connect(steady.replica.url)
