"""A healthy index on a real server, copies of it to make ill, and what the doctor says of them.

Owns what "healthy" takes: leases, heartbeats and a keeper's sign of life, given in the way their owners give them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import attrs
import redis

from events import connect, limits
from events.job_queue import JobQueue
from events.keys import IndexKeys
from events.log import LogConnection
from tests.cli import trimmed
from tests.cli.scenario import answer, statecore

ORIGIN = "healthy"
RANKS = 2


@attrs.frozen
class Findings:
    """What the doctor said, and with which exit code."""

    exit_code: int
    found: tuple[dict[str, str], ...]

    def of(self, what: str) -> dict[str, str]:
        """The only finding about a thing."""
        [finding] = [each for each in self.found if each["what"] == what]
        return finding

    def graded(self, severity: str) -> set[str]:
        return {each["what"] for each in self.found if each["severity"] == severity}


def examined(url: str, *options: str) -> Findings:
    result = statecore("doctor", "--url", url, "--json", *options)
    said = answer(result)
    findings = cast("list[dict[str, str]]", said["findings"])
    assert all(each["remedy"] for each in findings if each["severity"] in ("warning", "error")), (
        "told what, not what to do"
    )
    assert said["healthy"] is (result.exit_code == 0)
    return Findings(result.exit_code, tuple(findings))


def tell(url: str, client: redis.Redis) -> trimmed.TrimmedStory:
    """The story with two snapshots; what its workers have finished by hand is taken off the stream."""
    story = trimmed.tell_trimmed(url, ORIGIN)
    keys = IndexKeys.of(ORIGIN)
    for entry, fields in cast("list[Any]", client.xrange(keys.jobs("gpu"))):
        if fields[b"transfer"] not in (b"engine-0:4", b"engine-0:5"):
            client.xdel(keys.jobs("gpu"), entry)
    client.hset(keys.snapshot, mapping={"at_ms": _now_ms(), "previous_at_ms": _now_ms()})
    return story


@contextmanager
def copied(client: redis.Redis, connection: LogConnection, name: str) -> Iterator[IndexKeys]:
    """The index under another name, with everybody alive."""
    old, new = IndexKeys.of(ORIGIN), IndexKeys.of(name)
    blobs = [cast("bytes", blob).decode() for blob in client.hmget(old.snapshot, ["blob", "previous_blob"])]
    pairs = [(getattr(old, key), getattr(new, key)) for key in ("log", "head", "fence", "snapshot")]
    pairs += [(old.jobs("gpu"), new.jobs("gpu")), *((old.blob(blob), new.blob(blob)) for blob in blobs)]
    for source, target in pairs:
        client.copy(source, target)
    revive(client, connection, new)
    workers = [sit(connection, name, rank) for rank in range(RANKS)]
    yield new
    for worker in workers:
        worker.leave()
    client.delete(*(target for _, target in pairs), new.lease("engine-0"), new.keeper, new.seats, new.closed)


def revive(client: redis.Redis, connection: LogConnection, keys: IndexKeys) -> None:
    """Signs of life of its engine and of a keeper."""
    transport = connection.backend.transport(keys.name)
    transport.keep("a keeper", limits.KEEPER_TTL_S)
    client.set(keys.lease("engine-0"), "1", px=int(limits.LEASE_TTL_S * 1000))


def sit(connection: LogConnection, name: str, rank: int) -> JobQueue:
    worker = connection.jobs(name, "gpu", rank, RANKS, f"worker-{rank}")
    worker.enter(takeover=True)
    return worker


def blobs_of(client: redis.Redis, keys: IndexKeys) -> tuple[str, str]:
    """Names of the newer and the older blob."""
    newer, older = client.hmget(keys.snapshot, ["blob", "previous_blob"])
    return cast("bytes", newer).decode(), cast("bytes", older).decode()


def opened(url: str) -> LogConnection:
    return connect(url, any_server=True)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
