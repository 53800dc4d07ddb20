"""Servers that cannot or may not hold a log: refused at the door with the remedy, or `Unavailable` with it later on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import redis

from events import connect
from events.errors import InvalidInput, OutcomeUnknown, Unavailable
from events.log import EventLog
from events.ports import Appended, Base
from tests.contract.commits import BIRTH, commit, dump_keys, filled, ids
from tests.contract.test_read import until
from tests.servers import Proxy, RedisServer

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

    Given an open log, when its server stops taking writes, then Unavailable with the remedy, nothing in doubt, nothing
    written; when it takes writes again, then so does the log.
    """
    begin, end, remedy = TROUBLES[trouble]
    begin(server)

    with pytest.raises(Unavailable, match=remedy) as refused:
        log.append(commit("x1", engine="x", fences=(("x", 1),)), Base(2, "c2"))

    assert not isinstance(refused.value, OutcomeUnknown)
    end(server)
    assert ids(log.read(0)) == ["c1", "c2"]
    assert log.append(commit("x2", engine="x"), Base(2, "c2")) == Appended(3, ())


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


@pytest.mark.parametrize(
    "reply",
    [
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-CLUSTERDOWN The cluster is down\r\n",
        b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
        b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
        b"-NOREPLICAS Not enough good replicas to write.\r\n",
        b"-MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.\r\n",
        b"-ERR max number of clients reached\r\n",
        b"-MOVED 1234 10.0.0.7:6379\r\n",
        b"-DENIED Redis is running in protected mode\r\n",
    ],
    ids=lambda reply: reply[1:9].decode(),
)
def test_refusals_of_the_server_are_no_doubt(proxy: Proxy, index_name: str, reply: bytes) -> None:
    """Otherwise a server that says plainly "not now" would leave engines in doubt, or make them drop everything.

    Given a server that answers an append with an error of its own, when the deadline passes, then Unavailable, no doubt.
    """
    with connect(proxy.url) as connection:
        log = connection.log(index_name)
        log.append(commit("c1"), BIRTH)
        proxy.answer = lambda command: reply if command.startswith("EVAL") else None

        with pytest.raises(Unavailable) as refused:
            log.append(commit("c2"), Base(1, "c1"))

        assert not isinstance(refused.value, OutcomeUnknown)
        proxy.answer = lambda _command: None
        assert log.append(commit("c2"), Base(1, "c1")) == Appended(2, ())


@pytest.mark.parametrize(
    "reply",
    [b"+OK\r\n", b":1\r\n", b"*0\r\n", b"*1\r\n$5\r\nhello\r\n", b"$-1\r\n", b"*2\r\n$8\r\nappended\r\n$1\r\nx\r\n"],
)
def test_an_answer_that_is_none(proxy: Proxy, index_name: str, reply: bytes) -> None:
    """Otherwise a proxy that answers nonsense would crash an engine with a traceback.

    Given an append answered by something commit.lua never says, when appended, then one of our errors or, once asked
    again, the truth; never anything else, and at most one copy.
    """
    with connect(proxy.url) as connection:
        log = connection.log(index_name)
        log.append(commit("c1"), BIRTH)
        proxy.answer = lambda command: reply if command.startswith("EVAL") else None

        with pytest.raises(Unavailable):
            log.append(commit("c2"), Base(1, "c1"))

        proxy.answer = lambda _command: None
        assert log.append(commit("c2"), Base(1, "c1")) == Appended(2, ())
