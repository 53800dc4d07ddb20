"""Commits for the contract: short to write, every field under control, and a picture of all that a log holds.

Owns builders and the `dump` that shows whether a refusal has written anything. Facts in them mean nothing to the log:
it stores what it is given.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from events import keys
from events.facts import BlocksAllocated, Fact, PathExtended
from events.log import EventLog, LogConnection
from events.memory import MemoryTransport
from events.ports import Appended, Base, Commit, Entry, Job
from events.redis_log import RedisBackend

BIRTH: Final = Base(0, "")


def fact(request: str = "request-1", *, engine: str = "a", start: int = 0) -> Fact:
    return BlocksAllocated(engine, request, "gpu:a", ((start, 1),))


def hashed_fact(hashes: bytes, *, request: str = "request-1", engine: str = "a") -> Fact:
    return PathExtended(engine, request, 0, hashes, ((0, len(hashes) // 16),) if hashes else (), ())


def commit(
    id: str,
    *,
    engine: str = "a",
    session: int = 1,
    facts: Iterable[Fact] | None = None,
    pools: Iterable[str] = (),
    fences: tuple[tuple[str, int], ...] = (),
    jobs: tuple[Job, ...] = (),
) -> Commit:
    """A commit of `engine` that checks and touches its own engine and these pools."""
    scopes = (keys.engine_scope(engine), *(keys.pool_scope(pool) for pool in pools))
    return Commit(
        id=id,
        engine=engine,
        session=session,
        facts=tuple(facts) if facts is not None else (fact(engine=engine),),
        checks=scopes,
        touches=scopes,
        fences=fences,
        jobs=jobs,
    )


def base_of(position: int, commit_id: str) -> Base:
    return Base(position, commit_id)


def filled(log: EventLog, count: int, *, engine: str = "a", prefix: str = "c") -> Base:
    """Append `count` commits of one engine to an empty log; returns its end."""
    base = BIRTH
    for number in range(1, count + 1):
        reply = log.append(commit(f"{prefix}{number}", engine=engine, facts=[fact(engine=engine, start=number)]), base)
        assert reply == Appended(number, ())
        base = Base(number, f"{prefix}{number}")
    return base


def ids(entries: Iterable[Entry]) -> list[str]:
    return [entry.id for entry in entries]


def job(transfer: str, *, pool: str = "gpu:a", body: bytes = b"") -> Job:
    return Job(pool, transfer, body or b"copy " + transfer.encode())


def jobs_in(connection: LogConnection, index: str, pool: str = "gpu:a") -> list[tuple[str, bytes]]:
    """Transfer and body of every job in the stream of a pool, in order."""
    transport = connection.backend.transport(index)
    if isinstance(transport, MemoryTransport):
        return [(rung.transfer, rung.body) for rung in transport.jobs.get(pool, [])]
    entries = client_of(connection).xrange(keys.IndexKeys.of(index).jobs(pool))
    assert all(fields.keys() == {b"transfer", b"body"} for _, fields in entries)
    return [(fields[b"transfer"].decode(), fields[b"body"]) for _, fields in entries]


def client_of(connection: LogConnection) -> Any:
    """The Redis client of a connection, to look at or damage what is stored."""
    assert isinstance(connection.backend, RedisBackend)
    return connection.backend._client


def dump(connection: LogConnection, index: str) -> object:
    """Everything the backend holds for an index: entries, head with versions, fences, jobs."""
    transport = connection.backend.transport(index)
    if isinstance(transport, MemoryTransport):
        jobs = {pool: tuple(rung) for pool, rung in transport.jobs.items()}
        return (transport.read(0, 1 << 30), transport.versions(), dict(transport._fences), jobs)
    return dump_keys(client_of(connection), index)


def dump_keys(client: Any, index: str) -> dict[bytes, Any]:
    """All keys of an index with what is in them, whatever their type."""
    held: dict[bytes, Any] = {}
    for key in sorted(client.keys(f"kv:{{{index}}}:*")):
        kind = client.type(key)
        if kind == b"stream":
            held[key] = (client.xrange(key), client.xinfo_stream(key)["last-generated-id"])
        elif kind == b"hash":
            held[key] = client.hgetall(key)
        else:
            held[key] = client.dump(key)
    return held


def without_loss(held: object) -> object:
    """The keys of an index without the one field that says what was lost."""
    if isinstance(held, dict):
        for value in held.values():
            if isinstance(value, dict):
                value.pop(b"lost", None)
    return held
