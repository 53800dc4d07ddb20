"""The rights of `ops/acl/`: with them each role can do its whole job, and nothing beside it.

Real engines, a real worker process and the real command line, each with its user's URL, on a server that loads the file
as it is shipped. A server keeps a list of what it refused; after each job that list has to be empty.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from events import connect, limits
from events.errors import Unavailable
from events.job_ports import Delivery
from events.keys import IndexKeys
from statecore import CacheIndex, restoring
from tests.security.everyday import a_keeper, engines_and_workers, fill, hurried
from tests.security.roles import ROLES, GuardedServer
from tests.servers import binary_of
from tests.workers.fleet import Fleet

KINDS: Final = [kind for kind in ("embedded", "system") if binary_of(kind)]
INDEX: Final = "guarded-index"
KEYS: Final = IndexKeys.of(INDEX)


@pytest.fixture(scope="module", params=KINDS)
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedServer]:
    binary = binary_of(request.param)
    assert binary is not None
    server = GuardedServer(tmp_path_factory.mktemp("guarded"), binary)
    with connect(server.url("engine")) as connection:
        CacheIndex(connection, name=INDEX, engine="engine-0", gpu_blocks=8, block_size=4).leave()
    server.denials()
    yield server
    server.stop()


@pytest.fixture
def fleet(guarded: GuardedServer, tmp_path: Path) -> Iterator[Fleet]:
    """Engines with the engine's rights; workers are launched with the worker's."""
    made = Fleet(guarded.url("engine"), tmp_path)
    yield made
    made.close()


# --- each role's job ------------------------------------------------------------------------------------------------


def test_an_engine_and_its_workers(guarded: GuardedServer, fleet: Fleet) -> None:
    """Otherwise least rights would mean an engine that stops in the middle of its work.

    Given engines and workers with their roles' rights, when a prompt is computed, swapped out, swapped in by a neighbour,
    a life ends and another begins, then all of it works, and the server has refused nothing.
    """
    engines_and_workers(fleet, guarded.url("worker"))

    assert told(guarded) == set()


def test_a_keeper(guarded: GuardedServer, monkeypatch: pytest.MonkeyPatch, index_name: str) -> None:
    """Otherwise a dead engine's blocks would stay lost, and the log would grow for ever, for want of a right.

    Given an engine that died with a job that was lost, when a keeper with its role's rights takes its turns, then it
    declares the engine lost, rings the job again, publishes snapshots and trims the log; an engine joins behind the trim,
    a reader reads it, and the server has refused nothing.
    """
    hurried(monkeypatch)

    totals = a_keeper(guarded.url("engine"), guarded.url("keeper"), guarded.admin(), index_name)

    assert (totals.deposed, totals.rung, totals.published) == (1, 1, 2)
    with connect(guarded.url("keeper")) as connection:
        assert connection.log(index_name, follow=False).head().first > 1
    with connect(guarded.url("engine")) as connection:
        CacheIndex(connection, name=index_name, engine="engine-0", gpu_blocks=4, cpu_blocks=8, block_size=4).leave()
    with connect(guarded.url("reader")) as connection:
        assert restoring.up_to_date(connection.log(index_name, follow=False)).state.position > 0
    assert told(guarded) == set()


def test_after_a_new_life_of_the_server(
    guarded: GuardedServer, monkeypatch: pytest.MonkeyPatch, index_name: str
) -> None:
    """Otherwise engines and workers could not close the log after a restart, for want of a right, and would stop there.

    Given a log last written in another life of its server, when an engine commits and a worker takes a job, then the log
    is closed and opens again, and the server has refused nothing.
    """
    monkeypatch.setattr(limits, "BARRIER_S", 0.3)
    head = IndexKeys.of(index_name).head
    with connect(guarded.url("engine")) as engines, connect(guarded.url("worker")) as workers:
        engine = CacheIndex(engines, name=index_name, engine="engine-0", gpu_blocks=4, cpu_blocks=8, block_size=4)
        fill(engine)
        jobs = workers.jobs(index_name, engine.gpu_pool, 0, 1, "w")
        jobs.enter()
        guarded.admin().hset(head, "life", "another")

        closed = time.monotonic() + 10.0
        delivery = None
        while delivery is None and time.monotonic() < closed:
            with contextlib.suppress(Unavailable):
                delivery = jobs.take(0.1)
        assert isinstance(delivery, Delivery)
        engine.release("b")
        jobs.finish(delivery, ok=True)
        assert guarded.admin().hget(head, "life") != b"another"
    assert told(guarded) == set()


READERS_WORK: Final = (
    ["log"], ["verify"], ["replay", "--digest"], ["inspect", "pools"], ["inspect", "tree"],
    ["inspect", "engine", "engine-0"], ["inspect", "transfers"], ["export", "FOLDER/log.jsonl.gz"],
    ["snapshot", "export", "FOLDER/now.snapshot"], ["migrate", "--dry-run"],
)  # fmt: skip


@pytest.mark.parametrize("command", READERS_WORK, ids=[" ".join(words) for words in READERS_WORK])
def test_a_reader(guarded: GuardedServer, tmp_path: Path, command: list[str]) -> None:
    """Otherwise whoever looks at an index would need the rights to change it.

    Given the reader's rights, when the command line shows, verifies, replays, inspects, exports, or says what it would
    migrate, then it works, and the server has refused nothing.
    """
    guarded.denials()

    done = as_reader(guarded, *[word.replace("FOLDER", str(tmp_path)) for word in command])

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
    assert [path for path in tmp_path.iterdir() if path.suffix] or "FOLDER" not in " ".join(command)
    assert told(guarded) == set()


def test_a_reader_asks_the_doctor(guarded: GuardedServer) -> None:
    """Otherwise a look at an index's health would need an administrator.

    Given the reader's rights, when the doctor looks, then nothing is in error; what he asks to find out which rights there
    are, and what only an administrator may know, is refused, and he goes on.
    """
    guarded.denials()

    done = as_reader(guarded, "doctor")

    assert (done.returncode, done.stderr) == (0, "")
    assert "rights" in done.stdout
    assert {user for user, _, _ in guarded.denials()} == {"statecore-reader"}


def as_reader(guarded: GuardedServer, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ops.cli", *command, "--url", guarded.url("reader"), "--index", INDEX],
        capture_output=True,
        text=True,
        check=False,
    )


def told(guarded: GuardedServer) -> set[tuple[str, str, str]]:
    """What the server refused. Redis 6.2 notes the client library's name card, which it does not know, as a refusal."""
    return {each for each in guarded.denials() if each[2] != "client"}


# --- nothing else ---------------------------------------------------------------------------------------------------

FOR_NOBODY: Final[tuple[tuple[object, ...], ...]] = (
    ("FLUSHALL",), ("FLUSHDB",), ("SWAPDB", 0, 1), ("KEYS", "*"), ("RANDOMKEY",), ("DBSIZE",), ("MONITOR",),
    ("CONFIG", "GET", "requirepass"), ("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"), ("CONFIG", "REWRITE"),
    ("SHUTDOWN", "NOSAVE"), ("SAVE",), ("BGREWRITEAOF",), ("REPLICAOF", "127.0.0.1", 1),
    ("ACL", "LIST"), ("ACL", "SETUSER", "statecore-reader", "+@all"), ("CLIENT", "LIST"), ("CLIENT", "KILL", "ID", 1),
    ("SCRIPT", "FLUSH"), ("SCRIPT", "KILL"), ("MODULE", "LIST"), ("SUBSCRIBE", "x"), ("PUBLISH", "x", "y"),
    ("SLOWLOG", "GET"), ("LATENCY", "RESET"), ("MULTI",), ("WAIT", 0, 1), ("OBJECT", "ENCODING", KEYS.log),
    ("DUMP", KEYS.log), ("RESTORE", "kv:{x}:log", 0, "x"), ("MIGRATE", "127.0.0.1", 1, KEYS.log, 0, 1),
    ("RENAME", KEYS.log, "kv:{guarded-index}:log2"), ("COPY", KEYS.log, "kv:{guarded-index}:log2"),
    ("UNLINK", KEYS.log), ("EXPIRE", KEYS.log, 1), ("PEXPIREAT", KEYS.log, 1),
    ("XSETID", KEYS.log, "99-0"), ("XGROUP", "DESTROY", KEYS.jobs("p"), "rank-0"), ("HDEL", KEYS.head, "position"),
    ("HINCRBY", KEYS.head, "position", 1), ("SORT", KEYS.log), ("SINTERSTORE", "kv:a", "kv:b"), ("APPEND", KEYS.log, "x"),
    ("GET", "other:secret"), ("SET", "other:secret", "x"), ("DEL", "other:secret"), ("XADD", "other:log", "*", "a", "b"),
    ("XRANGE", "other:log", "-", "+"), ("HGET", "other:hash", "a"), ("HSET", "other:hash", "a", "b"),
    ("EVAL", "return redis.call('GET', 'other:secret')", 0), ("EVAL", "return redis.call('FLUSHALL')", 0),
    ("EVAL", "return redis.call('KEYS', '*')", 0),
    ("EVAL", "return redis.call('DEL', 'other:secret')", 1, "other:secret"),
)  # fmt: skip

WRITES: Final[tuple[tuple[object, ...], ...]] = (
    ("XADD", KEYS.log, "*", "a", "b"), ("XDEL", KEYS.log, "1-0"), ("HSET", KEYS.head, "position", 0),
    ("HSET", KEYS.fence, "engine-0", 0),
    ("SET", KEYS.lease("engine-0"), 9), ("DEL", KEYS.log), ("DEL", KEYS.head), ("XTRIM", KEYS.log, "MAXLEN", 0),
    ("XACK", KEYS.jobs("p"), "rank-0", "1-0"), ("XREADGROUP", "GROUP", "rank-0", "w", "STREAMS", KEYS.jobs("p"), ">"),
    ("SET", KEYS.worker("p", 0), "x"), ("SETRANGE", KEYS.blob("1"), 0, "x"), ("HSET", KEYS.snapshot, "position", 1),
    ("EVAL", "return redis.call('XADD', KEYS[1], '*', 'a', 'b')", 1, KEYS.log), ("EVAL", "return 1", 0),
)  # fmt: skip

BEYOND: Final[dict[str, tuple[tuple[object, ...], ...]]] = {
    "engine": (
        ("XDEL", KEYS.log, "1-0"), ("XTRIM", KEYS.log, "MAXLEN", 0),
        ("XACK", KEYS.jobs("p"), "rank-0", "1-0"), ("SETRANGE", KEYS.blob("1"), 0, "x"),
        ("XREADGROUP", "GROUP", "rank-0", "w", "STREAMS", KEYS.jobs("p"), ">"), ("SCAN", 0),
    ),
    "worker": (
        ("XTRIM", KEYS.log, "MAXLEN", 0), ("GETRANGE", KEYS.blob("1"), 0, 1), ("SCAN", 0),
        ("SETRANGE", KEYS.blob("1"), 0, "x"), ("PERSIST", KEYS.worker("p", 0)),
    ),
    "keeper": (
        ("XDEL", KEYS.log, "1-0"), ("XACK", KEYS.jobs("p"), "rank-0", "1-0"), ("SCAN", 0),
        ("XREADGROUP", "GROUP", "rank-0", "w", "STREAMS", KEYS.jobs("p"), ">"),
    ),
    "reader": WRITES,
}  # fmt: skip
"""On every version."""

BEYOND_MODERN: Final[dict[str, tuple[tuple[object, ...], ...]]] = {
    "engine": (
        ("DEL", KEYS.log), ("SET", KEYS.log, "x"), ("DEL", KEYS.head), ("DEL", KEYS.fence),
        ("SET", KEYS.worker("p", 0), "x"), ("HSET", KEYS.snapshot, "position", 9),
        ("SET", KEYS.blob("1"), "x"), ("HSET", KEYS.seats, "0:p", "x"),
        ("EVAL", "return redis.call('DEL', KEYS[1])", 1, KEYS.log), ("GETRANGE", KEYS.lease("engine-0"), 0, 1),
    ),
    "worker": (
        ("DEL", KEYS.log), ("SET", KEYS.log, "x"), ("XDEL", KEYS.log, "1-0"), ("HSET", KEYS.fence, "engine-0", 9),
        ("XRANGE", KEYS.log, "-", "+"), ("HSET", KEYS.snapshot, "blob", "x"),
        ("SET", KEYS.lease("engine-0"), 9), ("DEL", KEYS.lease("engine-0")), ("DEL", KEYS.jobs("p")),
        ("XADD", KEYS.jobs("p"), "*", "a", "b"), ("EVAL", "return redis.call('DEL', KEYS[1])", 1, KEYS.log),
        ("EVAL", "return redis.call('HSET', KEYS[1], 'engine-0', 9)", 1, KEYS.fence),
    ),
    "keeper": (
        ("DEL", KEYS.log), ("SET", KEYS.log, "x"), ("DEL", KEYS.head), ("DEL", KEYS.fence), ("PEXPIRE", KEYS.log, 1),
        ("SET", KEYS.worker("p", 0), "x"), ("SET", KEYS.blob("1"), "x"), ("DEL", KEYS.snapshot),
    ),
    "reader": (),
}  # fmt: skip
"""Where rights are given per key, from Redis 7 on."""


@pytest.mark.parametrize("role", ROLES)
def test_nothing_else(guarded: GuardedServer, role: str) -> None:
    """Otherwise a hijacked engine could empty the server, read its neighbours' data, or rewrite history.

    Given a role, when it sends what its job does not need, then the server refuses each for want of a right, and no key
    has changed.
    """
    admin, client = guarded.admin(), guarded.client(role)
    admin.set("other:secret", "s")
    before = fingerprint(admin)
    wanted = [*FOR_NOBODY, *BEYOND[role], *(BEYOND_MODERN[role] if guarded.modern else ())]

    answers = {" ".join(map(str, words)): refused(client, words) for words in wanted}

    assert [words for words, answer in answers.items() if not answer] == []
    assert fingerprint(admin) == before
    guarded.denials()


def refused(client: Any, words: tuple[object, ...]) -> bool:
    """Whether the server answered that the right is missing."""
    try:
        client.execute_command(*words)
    except redis.exceptions.NoPermissionError:
        return True
    except redis.ResponseError as error:  # inside a script, in the words of the version
        return "can't" in str(error) or "NOPERM" in str(error) or "No permissions" in str(error)
    return False


def fingerprint(admin: Any) -> dict[bytes, bytes]:
    """Every key that stays, and its value; leases and heartbeats of earlier tests run out."""
    return {key: admin.dump(key) for key in admin.keys("*") if admin.ttl(key) == -1}


def test_rights_for_one_index_only(guarded: GuardedServer) -> None:
    """Otherwise engines of two models could not be kept apart on one server.

    Given the engine's rights with this index's name in place of the star, when it opens that index, then it works; another
    index is refused.
    """
    words = [word.decode() for word in role_words(guarded, "statecore-engine")]
    rights = [word.replace("kv:*:", f"kv:{{{INDEX}}}:").replace("kv:*", f"kv:{{{INDEX}}}:*") for word in words]
    guarded.admin().execute_command("ACL", "SETUSER", "one-index", "reset", "on", ">one-secret", *rights)
    url = guarded.url("engine").replace("statecore-engine:engine-secret", "one-index:one-secret")

    with connect(url) as connection:
        CacheIndex(connection, name=INDEX, engine="engine-1", gpu_blocks=8, block_size=4).leave()
        with pytest.raises(Unavailable, match=r"may not run"):
            CacheIndex(connection, name="another-index", engine="engine-1", gpu_blocks=8, block_size=4)
    guarded.denials()


def role_words(guarded: GuardedServer, user: str) -> list[bytes]:
    """The rules of a user, selectors whole, as ACL SETUSER takes them."""
    line = next(line for line in guarded.admin().execute_command("ACL", "LIST") if f"user {user} ".encode() in line)
    words: list[bytes] = []
    for word in line.split()[2:]:
        if words and words[-1].startswith(b"(") and not words[-1].endswith(b")"):
            words[-1] += b" " + word
        elif not word.startswith((b"#", b"sanitize")) and word != b"on":
            words.append(word)
    return words


def test_nobody_gets_in_without_a_password(guarded: GuardedServer, tmp_path: Path) -> None:
    """Otherwise the shipped file would open a server to everybody who can read the project.

    Given the file as it is, when its users log in with any password, then they cannot: the operator sets passwords.
    """
    fresh = GuardedServer(tmp_path, guarded.server._binary)
    try:
        for role in ROLES:
            fresh.admin().execute_command("ACL", "LOAD")
            for password in ("", role, f"{role}-secret", f"statecore-{role}"):
                with pytest.raises((redis.exceptions.AuthenticationError, redis.exceptions.ResponseError)):
                    fresh.server.client(username=f"statecore-{role}", password=password).ping()
    finally:
        fresh.stop()
