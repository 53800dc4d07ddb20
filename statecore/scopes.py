"""Which pools and engines a commit depends on, and whose version it moves.

Owns the table that makes per-pool conflicts sound. A commit **checks** a scope when a change there could make one of
its facts wrong, and **touches** it when one of its facts could make another's decision wrong. Giving back never does:
a decision taken without knowing that blocks became free, ready or unpinned still holds. Engines count as pools; every
commit checks and touches its own engine.

| fact                                       | checks       | touches      | because                                    |
|--------------------------------------------|--------------|--------------|--------------------------------------------|
| IndexCreated, PoolAdded, PolicyChosen      | index        | index        | created once                               |
| EngineJoined, EngineLeft, EngineLost       | engine       | engine       | gives back; unfinished copies only it saw  |
| PrefixMatched, a hit                       | pool         | pool         | pins copies that another might evict       |
| PrefixMatched, a miss                      |              |              | holds whatever happens                     |
| BlocksAllocated, CopyEvicted               | pool         | pool         | takes                                      |
| PathExtended                               | pool         | pool         | what is a duplicate depends on the copies  |
| TransferStarted, TransferCancelled         | both pools   | both pools   | takes in one, pins in the other            |
| TransferFinished                           |              | `finish_touches` | appended at whatever the head is       |
| BlocksRecycled, PathReady, RequestReleased |              |              | gives back                                 |
"""

from __future__ import annotations

from collections.abc import Sequence

from events.facts import (
    BlocksAllocated,
    BlocksRecycled,
    CopyEvicted,
    EngineJoined,
    EngineLeft,
    EngineLost,
    Fact,
    IndexCreated,
    PathExtended,
    PathReady,
    PolicyChosen,
    PoolAdded,
    PrefixMatched,
    RequestReleased,
    TransferCancelled,
    TransferStarted,
)
from events.jobs import TransferJob, encode_job
from events.keys import INDEX_SCOPE, engine_scope, pool_scope
from events.ports import Job
from statecore.state import SWAP_IN, SWAP_OUT, State


def scopes_of(state: State, engine: str, facts: Sequence[Fact]) -> tuple[str, ...]:
    """The scopes a commit of `engine` checks and touches: by the table above the two sets are the same.

    `state` is the one after the facts.
    """
    scopes = {engine_scope(engine)}
    own_pool = pool_scope(state.engines[engine].gpu_pool)
    for fact in facts:
        match fact:
            case RequestReleased() | PathReady() | BlocksRecycled():
                pass
            case PrefixMatched():
                if fact.depth:
                    scopes.add(own_pool)
            case PathExtended():
                scopes.add(own_pool)
            case BlocksAllocated() | CopyEvicted():
                scopes.add(pool_scope(fact.pool))
            case EngineJoined() | EngineLeft() | EngineLost():
                scopes.add(engine_scope(fact.engine))
            case TransferStarted():
                scopes.add(pool_scope(fact.source))
                scopes.add(pool_scope(fact.destination))
            case TransferCancelled():
                transfer = state.transfers.get(fact.transfer)
                if transfer is not None:
                    scopes.add(pool_scope(transfer.source))
                    scopes.add(pool_scope(transfer.destination))
            case IndexCreated() | PoolAdded() | PolicyChosen():
                scopes.add(INDEX_SCOPE)
    return tuple(sorted(scopes))


def finish_touches(fact: TransferStarted) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The scopes a worker's finish moves: when it went well, and when it failed. A finish checks none.

    A swap-out that went well takes the source copy, which another may be matching. A swap-in that failed cuts back the
    paths of its engine. Everything else only gives.
    """
    if fact.kind == SWAP_OUT:
        return (pool_scope(fact.source),), ()
    if fact.kind == SWAP_IN:
        return (), (pool_scope(fact.destination), engine_scope(fact.engine))
    return (), ()


def fences_of(facts: Sequence[Fact]) -> tuple[tuple[str, int], ...]:
    """Per engine whose life began or ended here, the lowest session that may append from now on."""
    fences: dict[str, int] = {}
    for fact in facts:
        match fact:
            case EngineJoined():
                fences[fact.engine] = fact.session
            case EngineLeft() | EngineLost():
                fences[fact.engine] = fact.session + 1
    return tuple(fences.items())


def jobs_of(state: State, facts: Sequence[Fact]) -> tuple[Job, ...]:
    """The jobs that go out with a commit: one per transfer it starts."""
    jobs = []
    for fact in facts:
        if isinstance(fact, TransferStarted):
            touches_ok, touches_failed = finish_touches(fact)
            job = TransferJob(
                transfer=fact.transfer,
                kind=fact.kind,
                source=fact.source,
                source_blocks=fact.source_blocks,
                destination=fact.destination,
                destination_blocks=fact.destination_blocks,
                ranks=state.engines[fact.engine].tensor_parallel_size,
                touches_ok=touches_ok,
                touches_failed=touches_failed,
            )
            pool = fact.destination if fact.kind == SWAP_IN else fact.source
            jobs.append(Job(pool, fact.transfer, encode_job(job)))
    return tuple(jobs)
