"""The log in a Redis Cluster: an index lies on one node, and the log holds while slots move and nodes go.

Owns what a cluster adds. That the log keeps its contract on a server is what the rest of this folder shows.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import redis

from events import connect, limits
from events.client import build_client
from events.cluster_client import ClusterClient
from events.errors import InvalidInput, OutcomeUnknown, Unavailable
from events.keys import IndexKeys
from events.log import EventLog, LogConnection
from events.ports import Appended, Base, Commit, Conflicted, Head
from statecore import CacheIndex
from tests.contract.commits import BIRTH, commit, filled, ids
from tests.contract.test_read import Seen
from tests.jobs.given import finishes, index_with, job, taken, worker
from tests.security.everyday import a_keeper, engines_and_workers, hurried
from tests.servers import LOOPBACK, Fault, Proxy, RedisServer, binary_of, commits, healthy
from tests.topologies import Cluster, eventually
from tests.workers.fleet import Fleet

KINDS = [kind for kind in ("embedded", "system") if binary_of(kind)]


@pytest.fixture(scope="module", params=KINDS)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes; every test leaves them as they were."""
    with Cluster(tmp_path_factory.mktemp("cluster"), binary=binary_of(request.param)) as running:
        yield running


@pytest.fixture
def connection(cluster: Cluster) -> Iterator[LogConnection]:
    with connect(cluster.url) as opened:
        yield opened


def index_at(cluster: Cluster, node: RedisServer, name: str) -> str:
    """A name whose index lies on this node."""
    return next(
        candidate
        for candidate in (f"{name}-{number}" for number in range(100))
        if cluster.holder(IndexKeys.of(candidate).log) is node
    )


# --- everything the log does ----------------------------------------------------------------------------------------


def test_a_log(cluster: Cluster, connection: LogConnection, index_name: str) -> None:
    """Otherwise an engine could not use a cluster at all.

    Given a cluster whose nodes know no script, when appending, conflicting, reading, waiting and following, then all is as
    on one server.
    """
    for node in cluster.nodes:
        node.client().script_flush()
    log = connection.log(index_name)
    assert log.head() == Head(0, "", first=0)
    filled(log, 2)
    log.wait(0, 0.1)
    log.follow(0)
    assert log.append(commit("b1", engine="b", pools=["p"]), Base(2, "c2")) == Appended(3, ())

    assert log.append(commit("a3", pools=["p"]), Base(2, "c2")) == Conflicted("pool:p", log.read(2))
    seen = Seen(log)
    eventually(lambda: len(seen.ids()) == 3, "news")
    assert seen.entries == list(log.read(0))
    assert log.head() == Head(3, "b1", first=1)


def test_jobs(connection: LogConnection, index_name: str) -> None:
    """Otherwise no block would ever be swapped in a cluster.

    Given a job, when workers of both ranks take, beat, claim and report it, then the transfer finishes once; and a job can
    be rung again.
    """
    log = index_with(connection, index_name, job(ranks=2))
    first, second = (worker(connection, index_name, rank, 2) for rank in (0, 1))
    first.enter()
    second.enter()
    assert first.beat("ready")
    assert all(second.alive())
    assert connection.doorbell(index_name).ringing("gpu:e0") == {"e0:0"}

    first.finish(taken(first), ok=True)
    second.finish(taken(second), ok=True)

    assert [fact.ok for fact in finishes(log)] == [True]
    assert second.take(0.05) is None
    first.leave()
    assert first.alive()[0] is None


def test_the_life_of_the_right_node(cluster: Cluster, connection: LogConnection, index_name: str) -> None:
    """Otherwise a worker would compare its log's server with another node, and never be believed.

    Given indexes on every node, when workers ask for the life of their server, then it is that of the node which holds the
    index.
    """
    lives = []
    for node in cluster.nodes:
        name = index_at(cluster, node, index_name)
        filled(connection.log(name, follow=False), 1)
        lives.append(worker(connection, name)._transport.life())

    assert lives == [node.client().info("server")["run_id"] for node in cluster.nodes]


def test_one_index_one_slot(cluster: Cluster, connection: LogConnection, index_name: str) -> None:
    """Otherwise a script would meet CROSSSLOT, or all indexes would crowd on one node.

    Given 30 indexes with engines, jobs, acknowledgements and heartbeats, then the keys of each share a slot, every node
    holds some of the indexes, and all are found.
    """
    names = [f"{index_name}-{number}" for number in range(30)]
    for name in names:
        index_with(connection, name, job())
        jobs = worker(connection, name)
        jobs.enter()
        jobs.finish(taken(jobs), ok=True)

    stored = {key.decode() for node in cluster.nodes for key in node.client().keys("*") if index_name.encode() in key}
    by_index = {name: {key for key in stored if f"{{{name}}}" in key} for name in names}

    assert all(len(keys) >= 5 for keys in by_index.values()), "log, head, fence or jobs, acks, worker"
    assert [len({cluster.slot(key) for key in keys}) for keys in by_index.values()] == [1] * len(names)
    assert {cluster.holder(IndexKeys.of(name).log).port for name in names} == {node.port for node in cluster.nodes}
    assert set(connection.indexes()) >= set(names)


def test_two_engines_share_an_index(cluster: Cluster, index_name: str) -> None:
    """Otherwise the cluster would hold a log and no cache.

    Given two engines on connections of their own, when one computes a prompt, then the other's replica has the same digest.
    """
    with connect(cluster.url) as here, connect(cluster.url) as there:
        a = CacheIndex(here, name=index_name, engine="a", gpu_pool="shared", gpu_blocks=64, block_size=4)
        b = CacheIndex(there, name=index_name, engine="b", gpu_pool="shared", gpu_blocks=64, block_size=4)
        a.match("r", list(range(32)))
        a.allocate("r", 8)
        a.extend("r", ready=True)
        a.release("r")

        b.refresh()
        assert b.match("r", list(range(32))).tokens >= 28
        a.refresh()
        assert a.digest() == b.digest()


def test_engines_workers_and_a_keeper(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index_name: str
) -> None:
    """Otherwise the parts would each speak to a cluster, and the whole would not run on one.

    Given real workers, when a prompt is computed, swapped out, swapped in by a neighbour; and when an engine dies under a
    keeper, then every byte is right, the engine is declared lost, its job rung, snapshots published and the log trimmed.
    """
    hurried(monkeypatch)
    fleet = Fleet(cluster.url, tmp_path)
    try:
        engines_and_workers(fleet, cluster.url)
    finally:
        fleet.close()
    with contextlib.closing(build_client(cluster.url)) as admin:
        totals = a_keeper(cluster.url, cluster.url, admin, index_name)
    assert (totals.deposed, totals.rung, totals.published) == (1, 1, 2)


# --- what a cluster can do to us ------------------------------------------------------------------------------------


def test_a_slot_moves(cluster: Cluster, index_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise rebalancing a cluster would end every engine of the index that moves.

    Given a log whose slot is on its way to another node, when appending, then it waits, and lands once; when the move
    takes longer than an append may, then Unavailable says so, and nothing is written.
    """
    source, target = cluster.nodes[:2]
    name = index_at(cluster, source, index_name)
    slot = cluster.slot(IndexKeys.of(name).log)
    with connect(cluster.url) as connection, connect(cluster.url) as other:
        log = connection.log(name, follow=False)
        filled(log, 2)
        cluster.begin_move(slot, source, target)
        cluster.move_keys(slot, source, target, most=1)

        with monkeypatch.context() as patched:
            patched.setattr(limits, "APPEND_DEADLINE_S", 0.5)
            with pytest.raises(Unavailable, match="moving this slot") as refused:
                log.append(commit("c3"), Base(2, "c2"))
        assert not isinstance(refused.value, OutcomeUnknown)
        rest = threading.Timer(0.5, lambda: finish_move(cluster, slot, source, target))
        rest.start()
        assert log.append(commit("c3"), Base(2, "c2")) == Appended(3, ())
        rest.join()
        assert log.append(commit("c4"), Base(3, "c3")) == Appended(4, ())

        assert ids(other.log(name, follow=False).read(0)) == ["c1", "c2", "c3", "c4"]
        assert cluster.holder(IndexKeys.of(name).log) is target
    cluster.begin_move(slot, target, source)
    finish_move(cluster, slot, target, source)


def finish_move(cluster: Cluster, slot: int, source: RedisServer, target: RedisServer) -> None:
    cluster.move_keys(slot, source, target)
    cluster.end_move(slot, source, target)


@pytest.mark.usefixtures("impatient")
def test_a_slot_that_nobody_serves_for_a_while(cluster: Cluster, index_name: str) -> None:
    """Otherwise an operator's slip would be for ever: the library looks anew only after it has sent something.

    Given a log whose slot is taken from its node, when appended to, several times, then Unavailable, and nothing unknown;
    when the slot is served again, then the log goes on.
    """
    name = index_at(cluster, cluster.nodes[0], index_name)
    slot = cluster.slot(IndexKeys.of(name).log)
    with connect(cluster.url) as connection:
        log = connection.log(name, follow=False)
        filled(log, 2)
        for node in cluster.nodes:
            node.client().execute_command("CLUSTER", "DELSLOTS", slot)
        try:
            for _ in range(3):
                with pytest.raises(Unavailable, match="quorum") as refused:
                    log._append_once(commit("c3"), Base(2, "c2"), log._record_of(commit("c3")))
                assert not isinstance(refused.value, OutcomeUnknown)
                assert not refused.value.lasting
        finally:
            cluster.nodes[0].client().execute_command("CLUSTER", "ADDSLOTS", slot)
            cluster.end_move(slot, cluster.nodes[0], cluster.nodes[0])
        eventually(lambda: _tried(log, commit("c3"), Base(2, "c2")), "the slot is served again")
        assert ids(log.read(0)) == ["c1", "c2", "c3"]


@pytest.mark.usefixtures("impatient")
def test_a_node_goes_and_comes_back(cluster: Cluster, index_name: str) -> None:
    """Otherwise one dead node would take the indexes of all others with it, or a returning one would stay lost.

    Given indexes on two nodes, when one node is killed, then its index is Unavailable within its deadline and the other
    one goes on; when it is back, then its index goes on at the same position.
    """
    lost, kept = cluster.nodes[0], cluster.nodes[1]
    names = [index_at(cluster, node, index_name) for node in (lost, kept)]
    with connect(cluster.url) as connection:
        there, here = (connection.log(name, follow=False) for name in names)
        filled(there, 2)
        filled(here, 2)
        lost.kill()

        begun = time.monotonic()
        with pytest.raises(Unavailable, match=r"reached|quorum"):
            there.append(commit("c3"), Base(2, "c2"))
        assert time.monotonic() - begun < 5.0
        assert here.append(commit("c3"), Base(2, "c2")) == Appended(3, ())

        lost.start()
        eventually(lambda: _tried(there, commit("c3"), Base(2, "c2")), "the node's index goes on")
        assert ids(there.read(0)) == ["c1", "c2", "c3"]
    eventually(lambda: _answers(cluster, names[0]), "the cluster is whole again")


def _tried(log: EventLog, wanted: Commit, base: Base) -> bool:
    with contextlib.suppress(Unavailable):
        return log.append(wanted, base) == Appended(base.position + 1, ())
    return False


def _answers(cluster: Cluster, name: str) -> bool:
    with contextlib.suppress(Unavailable), connect(cluster.url) as connection:
        return connection.log(name, follow=False).head().position > 0
    return False


def test_nobody_answers(cluster: Cluster) -> None:
    """Otherwise a wrong address would look like a defect of this program.

    Given an address where nobody listens, when connecting, then Unavailable; with a good one beside it, then it works.
    """
    with pytest.raises(Unavailable, match="cannot be reached"):
        connect(f"redis+cluster://{LOOPBACK}:1")
    connect(f"redis+cluster://{LOOPBACK}:1,{LOOPBACK}:{cluster.nodes[2].port}").close()


def test_a_single_server_is_no_cluster(server: RedisServer) -> None:
    """Otherwise the wrong scheme would end in a riddle.

    Given a server without cluster support, when connecting as to a cluster, then InvalidInput names redis://.
    """
    with pytest.raises(InvalidInput, match="use redis://"):
        connect(server.url.replace("redis://", "redis+cluster://"))


def test_a_cluster_client_of_the_librarys(cluster: Cluster) -> None:
    """Otherwise its retries and its errors, which are none of redis-py's own hierarchy, would come in by the side door.

    Given the library's cluster client, when connecting with it, then InvalidInput names the URL to use.
    """
    with (
        contextlib.closing(redis.RedisCluster(*cluster.nodes[0].address)) as client,
        pytest.raises(InvalidInput, match=r"redis\+cluster://"),
    ):
        connect(client=cast("redis.Redis", client))


def test_one_node_that_evicts(cluster: Cluster) -> None:
    """Otherwise the log would vanish from the one node nobody looked at (E-42).

    Given a cluster, one node of which evicts keys, when connecting, then InvalidInput names that node.
    """
    node = cluster.nodes[1]
    node.client().config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(InvalidInput, match=f"{node.port} evicts keys.*noeviction"):
            connect(cluster.url)
    finally:
        node.client().config_set("maxmemory-policy", "noeviction")


def test_a_node_as_a_single_server(cluster: Cluster, index_name: str) -> None:
    """Otherwise MOVED would look like a broken log.

    Given the URL of one node without +cluster, when an index of another node is appended to, then Unavailable names the
    URL to use.
    """
    name = index_at(cluster, cluster.nodes[1], index_name)
    with connect(cluster.nodes[0].url) as connection, pytest.raises(Unavailable, match=r"redis\+cluster://"):
        connection.log(name, follow=False).append(commit("c1"), BIRTH)


# --- one attempt ----------------------------------------------------------------------------------------------------


@pytest.fixture
def behind_proxy(tmp_path: Path) -> Iterator[tuple[Cluster, Proxy]]:
    """A cluster of one node that tells its clients the address of a proxy."""
    with Proxy((LOOPBACK, 1)) as between:
        port = between.url.rpartition(":")[2]
        with Cluster(tmp_path, "--cluster-announce-port", port, nodes=1) as alone:
            between.target = alone.nodes[0].address
            yield alone, between


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.LOSE_REQUEST, Fault.HANG])
def test_a_lost_reply_is_not_sent_again_by_the_library(
    behind_proxy: tuple[Cluster, Proxy], index_name: str, fault: Fault
) -> None:
    """Otherwise a commit would land twice, once for each of the library's ten silent retries (redis-facts C2, C9).

    Given a network that fails every append, when one attempt is made, then one command is sent and the outcome is unknown;
    when it heals, then the log finds out and has it once.
    """
    _, proxy = behind_proxy
    with connect(proxy.url.replace("redis://", "redis+cluster://")) as connection:
        log = connection.log(index_name, follow=False)
        log.append(commit("c1"), BIRTH)
        proxy.rule = commits(fault)
        proxy.seen.clear()

        with pytest.raises(OutcomeUnknown):
            log._append_once(commit("c2"), Base(1, "c1"), log._record_of(commit("c2")))
        assert [name for name in proxy.seen if name.startswith("EVAL")] == ["EVALSHA"]

        proxy.rule = healthy
        assert log.append(commit("c2"), Base(1, "c1")) == Appended(2, ())
        assert ids(log.read(0)) == ["c1", "c2"]


@pytest.mark.usefixtures("impatient")
def test_the_whole_cluster_goes_after_a_reply_was_lost(behind_proxy: tuple[Cluster, Proxy], index_name: str) -> None:
    """Otherwise "the cluster cannot be reached" would be taken for "nothing was written".

    Given an append that was carried out, its reply lost, and no node in reach afterwards, then the outcome is unknown,
    not "nothing happened"; a request that never left is "nothing happened".
    """
    alone, proxy = behind_proxy
    with connect(proxy.url.replace("redis://", "redis+cluster://")) as connection:
        log = connection.log(index_name, follow=False)
        log.append(commit("c1"), BIRTH)
        proxy.rule = lambda command: Fault.LOSE_REPLY if command.startswith("EVAL") else Fault.LOSE_REQUEST
        with pytest.raises(OutcomeUnknown):
            log._append_once(commit("c2"), Base(1, "c1"), log._record_of(commit("c2")))
        assert alone.nodes[0].client().xlen(IndexKeys.of(index_name).log) == 2

        proxy.close()
        other = connection.log(index_name, follow=False)
        with pytest.raises(Unavailable) as refused:
            other._append_once(commit("c3"), Base(2, "c2"), other._record_of(commit("c3")))
        assert not isinstance(refused.value, OutcomeUnknown)


def test_no_library_default_is_left(cluster: Cluster) -> None:
    """Otherwise the next release of the client library would bring its retries back unnoticed.

    Given a client of a cluster, then neither it nor its nodes retry, wait for ever, or speak another protocol; and finding
    the slot of a command asks no server.
    """
    client = build_client(cluster.url)
    assert isinstance(client, ClusterClient)
    assert client.retry.get_retries() == 0
    for node in client.get_nodes():  # type: ignore[no-untyped-call]
        settings = client.get_redis_connection(node).get_connection_kwargs()
        assert settings["retry"].get_retries() == 0
        assert settings["socket_timeout"] == limits.SOCKET_TIMEOUT_S
        assert settings["socket_connect_timeout"] == limits.CONNECT_TIMEOUT_S
        assert settings["protocol"] == 2
    client.close()
    key = IndexKeys.of("i").log
    assert client.determine_slot("XREAD", "COUNT", 1, "BLOCK", 10, "STREAMS", key, "0-0") == cluster.slot(key)
