"""Jobs that go out with a commit: in the workers' streams in the same step as its entry, once, or not at all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from events import connect
from events.embedded import EmbeddedRedis
from events.errors import CorruptState, OutcomeUnknown, Unavailable
from events.facts import HistoryLost
from events.keys import IndexKeys
from events.log import EventLog, LogConnection
from events.ports import Appended, Base, Conflicted, Diverged, Fenced
from tests.contract.commits import BIRTH, client_of, commit, dump, dump_keys, filled, ids, job, jobs_in, without_loss
from tests.servers import Fault, Proxy, RedisServer, everything, healthy


def test_jobs_ring_with_their_commit(connection: LogConnection, index_name: str) -> None:
    """Otherwise a transfer would be in the log and no worker would ever hear of it.

    Given commits with jobs for two pools, when appended, then each pool's stream holds its own, in order, byte for byte.
    """
    log = connection.log(index_name)
    every = bytes(range(256))
    first = (job("a:0"), job("b:0", pool="gpu:b", body=every), job("a:1", body=b"\r\n$-1\r\n" + every[::-1]))

    assert log.append(commit("c1", jobs=first), BIRTH) == Appended(1, ())
    assert log.append(commit("c2", jobs=(job("a:2"),)), Base(1, "c1")) == Appended(2, ())

    assert jobs_in(connection, index_name) == [
        ("a:0", b"copy a:0"),
        ("a:1", b"\r\n$-1\r\n" + every[::-1]),
        ("a:2", b"copy a:2"),
    ]
    assert jobs_in(connection, index_name, "gpu:b") == [("b:0", every)]


def test_jobs_are_no_part_of_the_entry(connection: LogConnection, index_name: str) -> None:
    """Otherwise what a log says would depend on who was to be told of it.

    Given two commits, one with jobs and one without, when read back, then their entries have the same facts and links.
    """
    log = connection.log(index_name)
    log.append(commit("c1", jobs=(job("a:0"),)), BIRTH)
    log.append(commit("c2"), Base(1, "c1"))

    rung, silent = log.read(0)

    assert rung.facts == silent.facts
    assert silent.previous == "c1"


def test_without_jobs_there_is_no_stream(stored: LogConnection, index_name: str) -> None:
    """Otherwise every engine without a host tier would leave empty keys.

    Given commits without jobs, when appended, then log, head and (with a join) fence and lease are all the keys there are.
    """
    names = IndexKeys.of(index_name)
    stored.log(index_name).append(commit("c1", fences=(("a", 1),)), BIRTH)

    kept = {key.decode() for key in client_of(stored).keys(f"kv:{{{index_name}}}:*")}

    assert kept == {names.log, names.head, names.fence, names.lease("a")}


def test_a_refused_commit_rings_nobody(connection: LogConnection, index_name: str) -> None:
    """Otherwise a worker would copy over blocks that belong to somebody else.

    Given commits with jobs that are refused (conflict, fence, another history, a base ahead), when appended, then no job
    is anywhere; when decided again and accepted, then its jobs are there once.
    """
    log = connection.log(index_name)
    log.append(commit("k1", engine="keeper", pools=["p"], fences=(("gone", 2),)), BIRTH)
    before = dump(connection, index_name)
    jobs = (job("a:0"), job("b:0", pool="gpu:b"))

    refused = [
        log.append(commit("x1", pools=["p"], jobs=jobs), BIRTH),
        log.append(commit("x2", engine="gone", jobs=jobs), Base(1, "k1")),
        log.append(commit("x3", jobs=jobs), Base(1, "other")),
        log.append(commit("x4", jobs=jobs), Base(7, "c7")),
    ]

    assert [type(reply) for reply in refused] == [Conflicted, Fenced, Diverged, Diverged]
    assert without_loss(dump(connection, index_name)) == before
    told = commit("told", engine="z", facts=[HistoryLost("z", "c7")])
    assert log.append(told, Base(1, "k1")) == Appended(2, ())
    assert log.append(commit("x5", pools=["p"], jobs=jobs), Base(2, "told")) == Appended(3, ())
    assert (len(jobs_in(connection, index_name)), len(jobs_in(connection, index_name, "gpu:b"))) == (1, 1)


def test_the_same_commit_again_rings_once(connection: LogConnection, index_name: str) -> None:
    """Otherwise every repeated step would make its workers copy again.

    Given a commit with a job that landed, when it is appended again from its base, then it is found, and one job is there.
    """
    log = connection.log(index_name)
    again = commit("c1", jobs=(job("a:0"),))

    assert log.append(again, BIRTH) == log.append(again, BIRTH) == Appended(1, ())

    assert jobs_in(connection, index_name) == [("a:0", b"copy a:0")]


def test_thousands_of_jobs_in_one_commit(connection: LogConnection, index_name: str) -> None:
    """Otherwise one step that empties a large pool would leave the log half written.

    Given a commit with 9,000 jobs, when appended, then all are there in order, and the next commit lands.
    """
    log = connection.log(index_name)
    jobs = tuple(job(f"a:{number}") for number in range(9000))

    assert log.append(commit("c1", jobs=jobs), BIRTH) == Appended(1, ())

    assert [transfer for transfer, _ in jobs_in(connection, index_name)] == [rung.transfer for rung in jobs]
    assert log.append(commit("c2"), Base(1, "c1")) == Appended(2, ())


@pytest.mark.parametrize("entries", [0, 3])
@pytest.mark.parametrize("kind", ["string", "hash"])
def test_a_job_stream_of_another_type(stored: LogConnection, index_name: str, entries: int, kind: str) -> None:
    """Otherwise a key collision would leave an entry without its jobs: a transfer that nobody ever makes.

    Given the second of three pools' streams is another kind of key, when a commit with jobs is appended (as the first, or
    later), then CorruptState and nothing was written: no entry, no head, no job of the other pools.
    """
    log = stored.log(index_name)
    base = filled(log, entries)
    client, taken = client_of(stored), IndexKeys.of(index_name).jobs("gpu:b")
    if kind == "string":
        client.set(taken, "not ours")
    else:
        client.hset(taken, "not", "ours")
    before = dump(stored, index_name)
    jobs = (job("a:0"), job("b:0", pool="gpu:b"), job("c:0", pool="gpu:c"))

    with pytest.raises(CorruptState, match=r"wrong kind of value|WRONGTYPE"):
        log.append(commit("x1", engine="x", fences=(("x", 1),), jobs=jobs), base)

    assert dump(stored, index_name) == before
    client.delete(taken)
    assert log.append(commit("x1", engine="x", jobs=jobs), base) == Appended(entries + 1, ())
    assert [len(jobs_in(stored, index_name, pool)) for pool in ("gpu:a", "gpu:b", "gpu:c")] == [1, 1, 1]


def test_a_job_stream_that_workers_use(stored: LogConnection, index_name: str) -> None:
    """Otherwise the first worker would stop the engine, or the engine its workers.

    Given a stream with a consumer group whose job is taken, acknowledged and deleted, when another commit rings, then its
    job is there.
    """
    log = stored.log(index_name)
    client, stream = client_of(stored), IndexKeys.of(index_name).jobs("gpu:a")
    log.append(commit("c1", jobs=(job("a:0"),)), BIRTH)
    client.xgroup_create(stream, "rank-0", id="0")
    [[_, [(entry, _)]]] = client.xreadgroup("rank-0", "w", {stream: ">"})
    client.xack(stream, "rank-0", entry)
    client.xdel(stream, entry)

    assert log.append(commit("c2", jobs=(job("a:1"),)), Base(1, "c1")) == Appended(2, ())

    [[_, [(_, fields)]]] = client.xreadgroup("rank-0", "w", {stream: ">"})
    assert fields[b"transfer"] == b"a:1"


# --- a network and a server that fail -------------------------------------------------------------------------------


@pytest.fixture
def far(proxy: Proxy, index_name: str) -> Iterator[EventLog]:
    """A log over a network that fails on request."""
    with connect(proxy.url) as connection:
        yield connection.log(index_name, follow=False)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.LOSE_REPLY, Fault.HANG, Fault.LATE, Fault.LATE_REPLY])
def test_a_fault_rings_once(
    far: EventLog, embedded_redis: EmbeddedRedis, index_name: str, proxy: Proxy, fault: Fault
) -> None:
    """Otherwise a dropped packet would lose a job, or double it.

    Given a fault on the first copy of a commit with a job, when appended, then the entry and its job are there once, also
    after a late copy has arrived.
    """
    left = [fault]
    proxy.rule = lambda command: left.pop() if left and command == "EVALSHA" else Fault.NONE

    assert far.append(commit("c1", jobs=(job("a:0"),)), BIRTH) == Appended(1, ())

    proxy.deliver()
    with connect(embedded_redis.url) as truth:
        assert ids(truth.log(index_name).read(0)) == ["c1"]
        assert jobs_in(truth, index_name) == [("a:0", b"copy a:0")]


@pytest.mark.usefixtures("impatient")
def test_a_job_of_a_commit_in_doubt(
    far: EventLog, embedded_redis: EmbeddedRedis, index_name: str, proxy: Proxy
) -> None:
    """Otherwise an engine that finds out later that its step stands would ring again.

    Given the reply was lost until the deadline, when the same commit is appended again, then it stands, one job.
    """
    first = [Fault.LOSE_REPLY]
    proxy.rule = lambda command: (first or [Fault.HANG]).pop() if command == "EVALSHA" else Fault.HANG
    with pytest.raises(OutcomeUnknown):
        far.append(commit("c1", jobs=(job("a:0"),)), BIRTH)
    proxy.rule = healthy

    assert far.append(commit("c1", jobs=(job("a:0"),)), BIRTH) == Appended(1, ())

    with connect(embedded_redis.url) as truth:
        assert jobs_in(truth, index_name) == [("a:0", b"copy a:0")]


@pytest.mark.usefixtures("impatient")
def test_nobody_there_rings_nobody(far: EventLog, embedded_redis: EmbeddedRedis, index_name: str, proxy: Proxy) -> None:
    """Otherwise a commit that is given up could make a worker copy for nobody.

    Given no request gets through, when a commit with a job is given up, then there is no entry and no job.
    """
    proxy.rule = everything(Fault.LOSE_REQUEST)

    with pytest.raises(Unavailable):
        far.append(commit("c1", jobs=(job("a:0"),)), BIRTH)

    with connect(embedded_redis.url) as truth:
        assert truth.log(index_name).read(0) == ()
        assert jobs_in(truth, index_name) == []


def test_a_user_without_the_right_to_the_job_streams(server: RedisServer, index_name: str) -> None:
    """Otherwise rights given too tightly would leave entries without their jobs.

    Given a user who may use all keys of a commit but the job streams, when a commit with a job is appended, then
    Unavailable that speaks of rights, and nothing was written.
    """
    names, admin = IndexKeys.of(index_name), server.client()
    rights = [f"~{key}" for key in (names.log, names.head, names.fence, names.closed, names.lease("a"))]
    admin.execute_command("ACL", "SETUSER", "engine", "on", ">pw", "+@all", *rights)

    with connect(server.url.replace("redis://", "redis://engine:pw@")) as connection:
        log = connection.log(index_name)
        assert log.append(commit("c1"), BIRTH) == Appended(1, ())
        before = dump_keys(admin, index_name)
        with pytest.raises(Unavailable, match="may not run") as refused:
            log.append(commit("c2", jobs=(job("a:0"),)), Base(1, "c1"))

    assert refused.value.lasting
    assert dump_keys(admin, index_name) == before
