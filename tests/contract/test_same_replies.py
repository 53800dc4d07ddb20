"""Every backend answers everything exactly as the memory does, over long random histories: appends, renewals of leases,
snapshots that are published and trim the log.

The seed of a case is in its name: the same seed gives the same history.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Protocol, TypeAlias

import attrs
import pytest

from events import codec, keys, limits
from events.log import LogConnection
from events.memory import MemoryTransport
from events.ports import (
    Base,
    Behind,
    Diverged,
    Fenced,
    Job,
    LossInTheWay,
    RawAppended,
    RawConflicted,
    RawReply,
    Record,
    Renewed,
    RenewReply,
    SnapshotPointer,
    StillAlive,
    Trimmed,
)
from events.transport import NotPublished, Published, PublishReply, Transport
from tests.contract.commits import client_of, commit, fact, hashed_fact, job, jobs_in

STEPS = 400
ENGINES = ("a", "b", "c")
POOLS = ("p", "q", "position", "engine:a")
JOB_POOLS = ("p", "q")
MARGIN = 12

Reply: TypeAlias = RawReply | RenewReply | PublishReply


class Call(Protocol):
    """One thing that is asked of a transport."""

    def on(self, transport: Transport) -> Reply: ...


@attrs.frozen
class Attempt:
    """One append as a transport gets it."""

    record: Record
    engine: str
    session: int
    base: Base
    checks: tuple[str, ...]
    touches: tuple[str, ...]
    fences: tuple[tuple[str, int], ...]
    jobs: tuple[Job, ...]
    lapsed: tuple[str, ...]
    forgets: bool

    def on(self, transport: Transport) -> Reply:
        return transport.append(
            self.record,
            engine=self.engine,
            session=self.session,
            base=self.base,
            checks=self.checks,
            touches=self.touches,
            fences=self.fences,
            jobs=self.jobs,
            lapsed=self.lapsed,
            forgets=self.forgets,
        )


@attrs.frozen
class Renewal:
    """An engine says that it is alive."""

    engine: str
    session: int
    base: Base

    def on(self, transport: Transport) -> Reply:
        reply = transport.renew_lease(self.engine, self.session, self.base)
        return attrs.evolve(reply, life="") if isinstance(reply, Renewed) else reply


@attrs.frozen
class Publication:
    """A keeper stores a snapshot and publishes it; `whole` false: its last byte did not get there."""

    pointer: SnapshotPointer
    whole: bool
    late: bool

    def on(self, transport: Transport) -> Reply:
        shelf = transport.snapshots
        seen = shelf.pointers()
        shelf.store(self.pointer.blob, 0, b"#" * (self.pointer.size - (not self.whole)), 60.0)
        return shelf.publish(self.pointer, seen[: len(seen) - self.late], MARGIN)


class History:
    """Calls by those who are up to date, behind, beside or ahead of the history; some are sent twice.

    `known` are the commit ids in the log so far; whoever reads `calls` keeps it.
    """

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self.known: list[str] = []

    def calls(self) -> Iterator[Call]:
        last: Call | None = None
        for number in range(STEPS):
            if last is not None and self._chance.random() < 0.1:
                yield last
                continue
            kind = self._chance.random()
            last = (
                self._publication(number) if kind < 0.08 else self._renewal() if kind < 0.2 else self._attempt(number)
            )
            yield last

    def _base(self) -> Base:
        chance, end = self._chance, len(self.known)
        if not end:
            return Base(0, "")  # whoever knows more than an empty log closes it, where a server has lives
        back = max(0, end - chance.randrange(8))
        position = chance.choice((end, end, end, back, back, chance.randrange(end + 1), end + chance.choice((0, 1))))
        base = Base(position, self.known[position - 1] if 0 < position <= end else "")
        if chance.random() < 0.05:
            return attrs.evolve(base, commit_id=chance.choice(["lost", *self.known[:1]]))
        return base

    def _attempt(self, number: int) -> Attempt:
        chance = self._chance
        engine, session = chance.choice(ENGINES), chance.choice((1, 1, 1, 2, 3))
        scopes = [keys.engine_scope(engine), *map(keys.pool_scope, chance.sample(POOLS, chance.randrange(3)))]
        fences = ((chance.choice(ENGINES), chance.choice((1, 2, 2))),) if chance.random() < 0.08 else ()
        facts = [fact(f"request-{number}"), hashed_fact(chance.randbytes(16 * chance.randrange(4)))]
        made = commit(f"{engine}.{number}", engine=engine, session=session, facts=facts)
        return Attempt(
            record=codec.encode(made, at_ms=number),
            engine=engine,
            session=session,
            base=self._base(),
            checks=tuple(scopes),
            touches=tuple(scopes if chance.random() < 0.7 else scopes[:1]),
            fences=fences,
            jobs=tuple(
                job(f"{engine}:{number}.{each}", pool=chance.choice(JOB_POOLS), body=chance.randbytes(9))
                for each in range(chance.choice((0, 0, 0, 1, 3)))
            ),
            lapsed=tuple(chance.sample(ENGINES, chance.choice((1, 1, 2)))) if chance.random() < 0.1 else (),
            forgets=chance.random() < 0.5,
        )

    def _renewal(self) -> Renewal:
        return Renewal(self._chance.choice(ENGINES), self._chance.choice((1, 1, 2, 3)), self._base())

    def _publication(self, number: int) -> Publication:
        chance, base = self._chance, self._base()
        pointer = SnapshotPointer(
            base.position,
            base.commit_id,
            f"digest {number}",
            1,
            f"{base.position}-{number}",
            chance.randrange(1, 9),
            number,
        )
        return Publication(pointer, whole=chance.random() < 0.8, late=chance.random() < 0.1)


def held(transport: Transport, connection: LogConnection, index: str) -> object:
    """Versions, fences, leases, jobs and what is stored of snapshots, for comparison across backends."""
    leases = transport.leases(ENGINES)
    pointers = transport.snapshots.pointers()
    blobs = [transport.snapshots.piece(pointer.blob, 0, 100) for pointer in pointers]
    if isinstance(transport, MemoryTransport):
        jobs = [[(rung.transfer, rung.body) for rung in transport.jobs.get(pool, [])] for pool in JOB_POOLS]
        return dict(transport.versions()), dict(transport._fences), leases, pointers, blobs, jobs
    names = keys.IndexKeys.of(index)
    client = client_of(connection)
    head = {name.decode(): value for name, value in client.hgetall(names.head).items()}
    versions = {scope: int(head[scope]) for scope in head if scope not in keys.HEAD_FIELDS}
    fences = {name.decode(): int(lowest) for name, lowest in client.hgetall(names.fence).items()}
    return versions, fences, leases, pointers, blobs, [jobs_in(connection, index, pool) for pool in JOB_POOLS]


@pytest.mark.parametrize("seed", range(6))
def test_every_reply_is_that_of_the_definition(
    connection: LogConnection, index_name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise what the simulator proves in memory would not hold in production.

    Given a random history, when memory and the backend get the same calls, then every reply, page, version, lease,
    pointer and job is equal.
    """
    monkeypatch.setattr("events.redis_log.MISSED_ENTRIES_MAX", 5)
    monkeypatch.setattr("events.memory.MISSED_ENTRIES_MAX", 5)
    monkeypatch.setattr(limits, "LEASE_TTL_S", 600.0)
    definition, backend = MemoryTransport(), connection.backend.transport(index_name)
    history = History(seed)
    kinds = set()

    for call in history.calls():
        expected = call.on(definition)
        assert call.on(backend) == expected, f"seed {seed}, after {len(history.known)} commits: {call}"
        kinds.add(type(expected))
        if isinstance(expected, RawAppended):
            assert isinstance(call, Attempt)
            history.known.append(call.record.commit_id)
        assert backend.head() == definition.head()

    assert kinds == {
        *(RawAppended, RawConflicted, Behind, Fenced, Diverged, Trimmed, StillAlive, LossInTheWay),
        *(Renewed, Published, NotPublished),
    }
    end = len(history.known)
    for after in (0, 1, end - 1, end, end + 5):
        for limit in (1, 7, 1000):
            assert backend.read(after, limit) == definition.read(after, limit)
    assert held(backend, connection, index_name) == held(definition, connection, index_name)
