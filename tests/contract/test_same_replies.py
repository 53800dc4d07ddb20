"""Every backend answers every append exactly as the memory does, over long random histories.

The seed of a case is in its name: the same seed gives the same history.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TypeAlias

import attrs
import pytest

from events import codec, keys
from events.log import LogConnection
from events.memory import MemoryTransport
from events.ports import Base, Behind, Diverged, Fenced, Job, RawAppended, RawConflicted, RawReply, Record
from events.transport import Transport
from tests.contract.commits import client_of, commit, fact, hashed_fact, job, jobs_in

STEPS = 250
ENGINES = ("a", "b", "c")
POOLS = ("p", "q", "position", "engine:a")
JOB_POOLS = ("p", "q")

Answer: TypeAlias = tuple[RawReply, object]


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

    def on(self, transport: Transport) -> RawReply:
        return transport.append(
            self.record,
            engine=self.engine,
            session=self.session,
            base=self.base,
            checks=self.checks,
            touches=self.touches,
            fences=self.fences,
            jobs=self.jobs,
        )


def attempts(chance: random.Random, known: list[str]) -> Iterator[Attempt]:
    """Appends by callers who are up to date, behind, beside or ahead of the history; some are sent twice.

    `known` are the commit ids in the log so far; the caller of this generator keeps it.
    """
    last: Attempt | None = None
    for number in range(STEPS):
        if last is not None and chance.random() < 0.1:
            yield last
            continue
        engine = chance.choice(ENGINES)
        session = chance.choice((1, 1, 1, 2, 3))
        end = len(known)
        position = chance.choice((end, end, end, max(0, end - chance.randrange(8)), end + chance.choice((0, 0, 1))))
        base = Base(position, known[position - 1] if 0 < position <= end else "")
        if chance.random() < 0.05:
            base = attrs.evolve(base, commit_id=chance.choice(["lost", *known[:1]]))
        scopes = [keys.engine_scope(engine), *map(keys.pool_scope, chance.sample(POOLS, chance.randrange(3)))]
        fences = ((chance.choice(ENGINES), chance.choice((1, 2, 2))),) if chance.random() < 0.05 else ()
        facts = [fact(f"request-{number}"), hashed_fact(chance.randbytes(16 * chance.randrange(4)))]
        made = commit(f"{engine}.{number}", engine=engine, session=session, facts=facts)
        last = Attempt(
            record=codec.encode(made, at_ms=number),
            engine=engine,
            session=session,
            base=base,
            checks=tuple(scopes),
            touches=tuple(scopes if chance.random() < 0.7 else scopes[:1]),
            fences=fences,
            jobs=tuple(
                job(f"{engine}:{number}.{each}", pool=chance.choice(JOB_POOLS), body=chance.randbytes(9))
                for each in range(chance.choice((0, 0, 0, 1, 3)))
            ),
        )
        yield last


def held(transport: Transport, connection: LogConnection, index: str) -> object:
    """Versions, fences and jobs, for comparison across backends."""
    if isinstance(transport, MemoryTransport):
        jobs = [[(rung.transfer, rung.body) for rung in transport.jobs.get(pool, [])] for pool in JOB_POOLS]
        return dict(transport.versions()), dict(transport._fences), jobs
    names = keys.IndexKeys.of(index)
    client = client_of(connection)
    head = {name.decode(): value for name, value in client.hgetall(names.head).items()}
    versions = {scope: int(head[scope]) for scope in head if scope not in {"position", "commit", "layout"}}
    fences = {name.decode(): int(lowest) for name, lowest in client.hgetall(names.fence).items()}
    return versions, fences, [jobs_in(connection, index, pool) for pool in JOB_POOLS]


@pytest.mark.parametrize("seed", range(4))
def test_every_reply_is_that_of_the_definition(
    connection: LogConnection, index_name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise what the simulator proves in memory would not hold in production.

    Given a random history, when memory and the backend get the same appends, then every reply, page, version
    and job is equal.
    """
    monkeypatch.setattr("events.redis_log.MISSED_ENTRIES_MAX", 5)
    monkeypatch.setattr("events.memory.MISSED_ENTRIES_MAX", 5)
    definition, backend = MemoryTransport(), connection.backend.transport(index_name)
    chance = random.Random(seed)
    known: list[str] = []
    kinds = set()

    for attempt in attempts(chance, known):
        expected = attempt.on(definition)
        assert attempt.on(backend) == expected, f"seed {seed}, after {len(known)} commits: {attempt}"
        kinds.add(type(expected))
        if isinstance(expected, RawAppended):
            known.append(attempt.record.commit_id)
        assert backend.head() == definition.head()

    assert kinds == {RawAppended, RawConflicted, Behind, Fenced, Diverged}
    for after in (0, 1, len(known) - 1, len(known), len(known) + 5):
        for limit in (1, 7, 1000):
            assert backend.read(after, limit) == definition.read(after, limit)
    assert held(backend, connection, index_name) == held(definition, connection, index_name)
