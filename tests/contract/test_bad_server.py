"""Servers that cannot or may not hold a log: refused at the door with the remedy, or `Unavailable` with it later on."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import redis

from events import connect, limits
from events.errors import InvalidInput, OutcomeUnknown, Unavailable
from events.keys import IndexKeys
from events.log import EventLog
from events.ports import Appended, Base
from tests.contract.commits import BIRTH, commit, dump_keys, filled, ids, job
from tests.contract.test_read import until
from tests.servers import Fault, Proxy, RedisServer, commits, healthy

pytestmark = pytest.mark.usefixtures("impatient")


# --- refused at the door --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-ttl", "volatile-random"]
)
def test_a_server_that_evicts(server: RedisServer, policy: str) -> None:
    """Otherwise the log would be evicted whole when memory is short.

    Given a maxmemory-policy other than noeviction, when connecting by URL or client, then InvalidInput with the remedy.
    """
    server.client().config_set("maxmemory-policy", policy)

    for arguments in ({"url": server.url}, {"client": server.client()}):
        with pytest.raises(InvalidInput, match=rf"{policy}.*set maxmemory-policy noeviction"):
            connect(**arguments)


def test_a_replica(server: RedisServer, tmp_path: Path, redis_binary: Path) -> None:
    """Otherwise an engine would read from a replica and fail at its first commit.

    Given a real replica, when connecting, then InvalidInput: connect to the primary.
    """
    options = ("--replicaof", "127.0.0.1", str(server.port))
    with (
        RedisServer(tmp_path / "replica", *options, binary=redis_binary) as replica,
        pytest.raises(InvalidInput, match="connect to its primary"),
    ):
        connect(replica.url)


class _Server(fakeredis.FakeRedis):
    """A server that says of itself what a test wants."""

    says: dict[str, Any]

    def info(self, *_arguments: Any, **_settings: Any) -> dict[str, Any]:
        return {"redis_version": "7.0.0", "role": "master", "maxmemory_policy": "noeviction", **self.says}


def server_that_says(**says: Any) -> _Server:
    server = _Server(server=fakeredis.FakeServer())
    server.says = says
    return server


@pytest.mark.parametrize("version", ["6.1.99", "6.0.0", "5.0.14", "2.8.0", "0"])
def test_a_server_that_is_too_old(version: str) -> None:
    """Otherwise the first commit would fail on a command the server does not know.

    Given a version before 6.2, when connecting, then InvalidInput with both versions.
    """
    with pytest.raises(InvalidInput, match=rf"version {version}; 6\.2"):
        connect(client=server_that_says(redis_version=version))


@pytest.mark.parametrize("version", ["6.2.0", "6.10.1", "7.0.15", "8.2.1", "10.0.0", "255.255.255", "7.4.0-rc1"])
def test_a_server_that_is_new_enough(version: str) -> None:
    """Otherwise a later release of Redis or Valkey would be refused.

    Given a version from 6.2 on, when connecting, then it is taken.
    """
    connect(client=server_that_says(redis_version=version)).close()


def test_a_role_that_is_none_of_ours() -> None:
    """Otherwise a sentinel would be taken for a server.

    Given a server whose role is not master, when connecting, then InvalidInput.
    """
    for role in ("slave", "sentinel"):
        with pytest.raises(InvalidInput, match="primary"):
            connect(client=server_that_says(role=role))


# --- passwords and rights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["redis://", "redis://:wrong-secret@", "redis://nobody:wrong-secret@"])
def test_a_server_with_a_password(server: RedisServer, url: str) -> None:
    """Otherwise a missing password would look like a broken server.

    Given a server with a password, when connecting without or with another one, then Unavailable that speaks of the
    password, and does not show it.
    """
    server.client().config_set("requirepass", "right-secret")

    with pytest.raises(Unavailable, match="password") as refused:
        connect(server.url.replace("redis://", url))

    assert "-secret" not in str(refused.value)
    connect(server.url.replace("redis://", "redis://:right-secret@")).close()


def use_everything(url: str, index: str) -> None:
    with connect(url) as connection:
        log = connection.log(index)
        log.read(0)
        log.head()
        log.append(commit("x1", engine="x"), Base(1, "c1"))


@pytest.mark.parametrize("command", ["info", "xrange", "xadd", "evalsha", "hset", "hmget", "hget"])
def test_a_user_without_the_right(server: RedisServer, index_name: str, command: str) -> None:
    """Otherwise a missing right would look like a corrupt log, and engines would drop all they have.

    Given a user who may not run one command we need, when connecting or appending with a neighbour's entry in between,
    then Unavailable that speaks of rights, and nothing was written.
    """
    with connect(server.url) as connection:
        filled(connection.log(index_name), 2)
    admin = server.client()
    admin.execute_command("ACL", "SETUSER", "engine", "on", ">pw", "~*", "+@all", f"-{command}")
    before = dump_keys(admin, index_name)

    with pytest.raises(Unavailable, match=r"may not run|rights") as refused:
        use_everything(server.url.replace("redis://", "redis://engine:pw@"), index_name)

    assert not isinstance(refused.value, OutcomeUnknown)
    assert dump_keys(admin, index_name) == before


def test_a_user_who_may_not_begin_a_log(server: RedisServer, index_name: str) -> None:
    """Otherwise an engine with too few rights would leave an index behind that nobody made.

    Given a user who may write hashes but no streams, when the first commit is appended, then Unavailable, and the index is
    not among those there are.
    """
    server.client().execute_command("ACL", "SETUSER", "engine", "on", ">pw", "~*", "+@all", "-xadd")

    with connect(server.url.replace("redis://", "redis://engine:pw@")) as connection:
        with pytest.raises(Unavailable, match="may not run"):
            connection.log(index_name).append(commit("c1"), BIRTH)

        assert connection.indexes() == ()


# --- later on -------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(server: RedisServer, index_name: str) -> Iterator[EventLog]:
    """A log of 2 entries on a good server, before it goes bad."""
    with connect(server.url) as connection:
        opened = connection.log(index_name)
        filled(opened, 2)
        yield opened


def fill_memory(server: RedisServer) -> None:
    server.client().config_set("maxmemory", "1")


def free_memory(server: RedisServer) -> None:
    server.client().config_set("maxmemory", "0")


def become_replica(server: RedisServer) -> None:
    server.client().replicaof("127.0.0.1", "1")


def become_primary(server: RedisServer) -> None:
    server.client().replicaof("NO", "ONE")


def ask_for_replicas(server: RedisServer) -> None:
    server.client().config_set("min-replicas-to-write", "1")


def ask_for_no_replicas(server: RedisServer) -> None:
    server.client().config_set("min-replicas-to-write", "0")


def fail_to_persist(server: RedisServer) -> None:
    """A directory stands where a background save wants to put its file."""
    client = server.client()
    client.config_set("save", "3600 1")
    (server.folder / "dump.rdb").mkdir()
    (server.folder / "dump.rdb" / "file").touch()
    client.set("changed", "1")
    client.bgsave()
    until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")


def persist_again(server: RedisServer) -> None:
    server.client().config_set("stop-writes-on-bgsave-error", "no")


def want_a_password(server: RedisServer) -> None:
    """Existing connections go on; a new one has to say it."""
    client = server.client()
    client.config_set("requirepass", "new-secret")
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def want_no_password(server: RedisServer) -> None:
    server.client(password="new-secret").config_set("requirepass", "")


Change = Callable[[RedisServer], None]
TROUBLES: dict[str, tuple[Change, Change, str]] = {
    "out of memory": (fill_memory, free_memory, "raise maxmemory"),
    "became a replica": (become_replica, become_primary, "connect to the primary"),
    "too few replicas": (ask_for_replicas, ask_for_no_replicas, "min-replicas-to-write"),
    "cannot persist": (fail_to_persist, persist_again, "disk"),
    "wants a password": (want_a_password, want_no_password, "password"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_server_that_goes_bad(server: RedisServer, log: EventLog, trouble: str) -> None:
    """Otherwise trouble of the server would be taken for a corrupt log, or leave a step in doubt.

    Given an open log, when its server stops taking writes, then Unavailable with the remedy, nothing in doubt, no entry
    and no job written; when it takes writes again, then so does the log.
    """
    begin, end, remedy = TROUBLES[trouble]
    begin(server)

    with pytest.raises(Unavailable, match=remedy) as refused:
        log.append(commit("x1", engine="x", fences=(("x", 1),), jobs=(job("x:0"),)), Base(2, "c2"))

    assert not isinstance(refused.value, OutcomeUnknown)
    end(server)
    assert ids(log.read(0)) == ["c1", "c2"]
    assert server.client().exists(IndexKeys.of(log.index).jobs("gpu:a")) == 0
    assert log.append(commit("x2", engine="x"), Base(2, "c2")) == Appended(3, ())


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_lasts_is_said_at_once(
    server: RedisServer, log: EventLog, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise every step would stall for ten seconds on a server that has said plainly that it will not.

    Given usual deadlines and a server that stops taking writes, when appending, then Unavailable at once, and it says
    that trying again is idle.
    """
    monkeypatch.setattr(limits, "APPEND_DEADLINE_S", 10.0)
    monkeypatch.setattr(limits, "READ_DEADLINE_S", 10.0)
    begin, _, remedy = TROUBLES[trouble]
    begin(server)
    began = time.monotonic()

    with pytest.raises(Unavailable, match=remedy) as refused:
        log.append(commit("x1", engine="x"), Base(2, "c2"))

    assert refused.value.lasting
    assert time.monotonic() - began < 2.0


def test_a_busy_server(server: RedisServer, log: EventLog) -> None:
    """Otherwise somebody's endless script would leave our steps in doubt.

    Given a server that runs a long script, when appending, then Unavailable (BUSY) and, as long as its first reply is
    awaited in vain, never anything worse than doubt; when the script is killed, the log takes the commit once.
    """
    client = server.client(socket_timeout=0.2)
    client.config_set("lua-time-limit", "50")
    with pytest.raises(redis.exceptions.TimeoutError):
        client.execute_command("EVAL", "while true do end", "0")

    with pytest.raises(Unavailable, match="long script"):
        log.append(commit("x1", engine="x"), Base(2, "c2"))

    server.client().script_kill()
    assert log.append(commit("x1", engine="x"), Base(2, "c2")) == Appended(3, ())


PASSING = [
    b"-LOADING Redis is loading the dataset in memory\r\n",
    b"-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.\r\n",
    b"-CLUSTERDOWN The cluster is down\r\n",
    b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
    b"-ASK 1234 10.0.0.7:6379\r\n",
    b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
    b"-ERR max number of clients reached\r\n",
]
LASTING = [
    b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    b"-READONLY You can't write against a read only replica.\r\n",
    b"-NOAUTH Authentication required.\r\n",
    b"-NOPERM this user has no permissions to run the 'evalsha' command\r\n",
    b"-NOREPLICAS Not enough good replicas to write.\r\n",
    b"-MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.\r\n",
    b"-MOVED 1234 10.0.0.7:6379\r\n",
    b"-DENIED Redis is running in protected mode\r\n",
    b"-ERR Error running script (call to f_1): @user_script:91: -OOM command not allowed when used memory.\r\n",
    b"-ERR Error running script (call to f_1): @user_script:91: -READONLY You can't write against a read only replica.\r\n",
]
"""The last two are how Redis 6.2 words what happens inside a script (redis-facts C7)."""


def code(reply: bytes) -> str:
    return reply.decode().rpartition(": -")[2].lstrip("-").split()[0] + ("-inside" if b"f_1" in reply else "")


@pytest.fixture
def very_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines long enough for a second try, also on a busy machine."""
    monkeypatch.setattr(limits, "APPEND_DEADLINE_S", 0.4)
    monkeypatch.setattr(limits, "READ_DEADLINE_S", 0.4)


@pytest.mark.usefixtures("very_impatient")
@pytest.mark.parametrize("reply", [*PASSING, *LASTING], ids=code)
def test_refusals_of_the_server_are_no_doubt(proxy: Proxy, index_name: str, reply: bytes) -> None:
    """Otherwise a server that says plainly "not now" would leave engines in doubt, or make them drop everything; and one
    that says "no" would be asked fifty times.

    Given a server that answers an append with an error of its own, when it may pass, then the append is tried until the
    deadline, else once; then Unavailable, no doubt.
    """
    with connect(proxy.url) as connection:
        log = connection.log(index_name)
        log.append(commit("c1"), BIRTH)
        proxy.answer = lambda command: reply if command.startswith("EVAL") else None
        proxy.seen.clear()

        with pytest.raises(Unavailable) as refused:
            log.append(commit("c2"), Base(1, "c1"))

        assert not isinstance(refused.value, OutcomeUnknown)
        assert refused.value.lasting == (reply in LASTING)
        assert (proxy.seen.count("EVALSHA") == 1) == (reply in LASTING)
        proxy.answer = lambda _command: None
        assert log.append(commit("c2"), Base(1, "c1")) == Appended(2, ())


def _instead_of(asked: str, reply: bytes, command: str) -> bytes | None:
    return reply if command == asked else None


@pytest.mark.usefixtures("very_impatient")
@pytest.mark.parametrize("reply", [*PASSING, *LASTING], ids=code)
def test_refused_reads_are_repeated_while_it_may_help(proxy: Proxy, index_name: str, reply: bytes) -> None:
    """Otherwise a joining engine would fail while its server loads, or hang on one that will never serve it.

    Given a server that answers reads with an error of its own, when reading and asking for the head, then as with appends.
    """
    with connect(proxy.url) as connection:
        log = connection.log(index_name)
        log.append(commit("c1"), BIRTH)
        asks: dict[str, Callable[[], object]] = {"XRANGE": lambda: log.read(0), "HMGET": log.head}
        for command, ask in asks.items():
            proxy.answer = functools.partial(_instead_of, command, reply)
            proxy.seen.clear()

            with pytest.raises(Unavailable) as refused:
                ask()

            assert refused.value.lasting == (reply in LASTING)
            assert (proxy.seen.count(command) == 1) == (reply in LASTING)
        proxy.answer = lambda _command: None
        assert ids(log.read(0)) == ["c1"]


def test_a_refusal_that_lasts_does_not_end_a_doubt(proxy: Proxy, index_name: str) -> None:
    """Otherwise a step whose copy is still in the network would be taken back, and land after all.

    Given a request that is late and then a server that says it is read-only, when appended, then OutcomeUnknown at once;
    when the copy has arrived, appending again finds it.
    """
    with connect(proxy.url) as connection:
        log = connection.log(index_name)
        log.append(commit("c1"), BIRTH)
        sent: list[str] = []

        def late_then_read_only(command: str) -> bytes | None:
            if not command.startswith("EVAL"):
                return None
            sent.append(command)
            return None if len(sent) == 1 else b"-READONLY You can't write against a read only replica.\r\n"

        proxy.answer = late_then_read_only
        proxy.rule = commits(Fault.LATE)

        with pytest.raises(OutcomeUnknown):
            log.append(commit("c2"), Base(1, "c1"))

        assert len(sent) == 2
        proxy.answer, proxy.rule = lambda _command: None, healthy
        assert proxy.deliver() == 1
        assert log.append(commit("c2"), Base(1, "c1")) == Appended(2, ())
        assert ids(log.read(0)) == ["c1", "c2"]


@pytest.mark.parametrize(
    "reply",
    [b"+OK\r\n", b":1\r\n", b"*0\r\n", b"*1\r\n$5\r\nhello\r\n", b"$-1\r\n", b"*2\r\n$8\r\nappended\r\n$1\r\nx\r\n"],
)
def test_an_answer_that_is_none(proxy: Proxy, index_name: str, reply: bytes) -> None:
    """Otherwise a proxy that answers nonsense would crash an engine with a traceback.

    Given an append answered by something commit.lua never says, when appended, then OutcomeUnknown: it may have landed;
    once asked again, the truth, and at most one copy.
    """
    with connect(proxy.url) as connection:
        log = connection.log(index_name)
        log.append(commit("c1"), BIRTH)
        proxy.answer = lambda command: reply if command.startswith("EVAL") else None

        with pytest.raises(OutcomeUnknown):
            log.append(commit("c2"), Base(1, "c1"))

        proxy.answer = lambda _command: None
        assert log.append(commit("c2"), Base(1, "c1")) == Appended(2, ())
