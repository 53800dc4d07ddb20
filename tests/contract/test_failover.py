"""A failover to a replica that has everything, to one that lags, and back: engines behind one address, real servers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from events import RolledBack, connect
from events.keys import HEAD_LIFE, HEAD_OPENING, IndexKeys
from events.ports import Appended, Base, Diverged, Renewed
from tests.contract.commits import commit, filled
from tests.contract.lives import (
    BARRIER_S,
    INDEX,
    engine,
    renewed,
    serve,
    shorten_barrier,
    sound,
)
from tests.servers import Proxy, RedisServer


@pytest.fixture(autouse=True)
def short_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_barrier(monkeypatch)


@attrs.frozen
class Pair:
    """A primary and its replica; engines reach the one that `proxy` leads to."""

    primary: RedisServer
    replica: RedisServer
    proxy: Proxy

    def in_step(self) -> None:
        """Wait until the replica has everything."""
        wanted = self.primary.client().info("replication")["master_repl_offset"]
        deadline = time.monotonic() + 10.0
        while self.replica.client().info("replication").get("slave_repl_offset", -1) < wanted:
            assert time.monotonic() < deadline, "the replica does not follow"
            time.sleep(0.01)

    def promote(self, server: RedisServer) -> None:
        server.client().execute_command("REPLICAOF", "NO", "ONE")

    def lead_to(self, server: RedisServer) -> None:
        self.proxy.target = server.address
        self.proxy.cut()


@pytest.fixture
def pair(tmp_path: Path, redis_binary: Path) -> Iterator[Pair]:
    with (
        RedisServer(tmp_path / "one", "--repl-diskless-sync-delay", "0", binary=redis_binary) as primary,
        RedisServer(tmp_path / "two", "--repl-diskless-sync-delay", "0", binary=redis_binary) as replica,
        Proxy(primary.address) as proxy,
    ):
        replica.client().execute_command("REPLICAOF", "127.0.0.1", str(primary.port))
        yield Pair(primary, replica, proxy)


def test_failover_to_a_replica_that_has_everything(pair: Pair) -> None:
    """Otherwise a planned failover would cost every engine its requests.

    Given a replica in step, when it is promoted, then engines wait for the barrier and go on in the same life.
    """
    with connect(pair.proxy.url) as connection:
        one, two = engine(connection, "one"), engine(connection, "two")
        table = serve(one, "r")
        two.refresh()
        pair.in_step()
        pair.primary.kill()
        pair.promote(pair.replica)
        pair.lead_to(pair.replica)

        begun = time.monotonic()
        one.allocate("r", 1)

        assert time.monotonic() - begun > BARRIER_S * 0.7
        assert (one.session, one.table("r")[:3]) == (1, table)
        serve(two, "other")
        sound(one, two)


def test_failover_to_a_replica_that_lags(pair: Pair) -> None:
    """Otherwise two engines would write to one block: who saw the lost commits, and who is given their blocks now.

    Given commits that the replica never saw, when it is promoted, then who made them is told RolledBack, and who did not
    know of them goes on after the barrier, in the same life; the blocks are given once.
    """
    with connect(pair.proxy.url) as connection:
        ahead, low = engine(connection, "ahead"), engine(connection, "low")
        serve(ahead, "kept")
        low.refresh()
        pair.in_step()
        pair.promote(pair.replica)  # from here on it hears nothing of the primary any more
        lost = serve(ahead, "lost")
        pair.primary.kill()
        pair.lead_to(pair.replica)

        begun = time.monotonic()
        mine = serve(low, "mine")
        assert time.monotonic() - begun > BARRIER_S * 0.7
        assert (low.session, bool(set(mine) & set(lost))) == (1, True)
        with pytest.raises(RolledBack):
            ahead.allocate("lost", 1)

        ahead.rejoin()
        assert not set(serve(ahead, "next")) & set(mine)
        sound(ahead, low)


def test_failover_and_back_within_the_barrier(pair: Pair) -> None:
    """Otherwise a server that was let in before would be open at once, with what the other one had lost.

    Given a failover to a replica that lagged, and one back to the first server, which has copied the shorter log meanwhile,
    when an engine appends, then the log is closed there, too.
    """
    with connect(pair.proxy.url) as connection:
        log, names = connection.log(INDEX, follow=False), IndexKeys.of(INDEX)
        base = filled(log, 2)
        pair.in_step()
        pair.promote(pair.replica)
        assert isinstance(log.append(commit("lost"), base), Appended)
        pair.lead_to(pair.replica)
        transport = connection.backend.transport(INDEX)
        assert isinstance(renewed(transport, base), Renewed)
        pair.primary.client().execute_command("REPLICAOF", "127.0.0.1", str(pair.replica.port))
        _until_same(pair, names)
        pair.promote(pair.primary)
        pair.lead_to(pair.primary)

        told = renewed(transport, base)

        assert isinstance(told, Renewed)
        assert told.opens_in_s > BARRIER_S * 0.7
        assert log.append(commit("c3"), base) == Appended(3, ())
        assert log.append(commit("x"), Base(3, "lost")) == Diverged(3, "c3")
        head = pair.primary.client().hgetall(names.head)
        assert head[HEAD_LIFE.encode()] == head[HEAD_OPENING.encode()]


def _until_same(pair: Pair, names: IndexKeys) -> None:
    deadline = time.monotonic() + 10.0
    while pair.primary.client().hgetall(names.head) != pair.replica.client().hgetall(names.head):
        assert time.monotonic() < deadline, "the first server does not follow the second"
        time.sleep(0.02)
