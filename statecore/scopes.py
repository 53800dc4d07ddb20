"""Which pools and engines a commit depends on, and whose version it moves.

Owns the table that makes per-pool conflicts sound. A commit **checks** a scope when a change there could make one of
its facts wrong, and **touches** it when one of its facts could make another's decision wrong. Giving back never does:
a decision taken without knowing that blocks became free, ready or unpinned still holds. Engines count as pools; every
commit checks and touches its own engine.

| fact                                       | checks       | touches      | because                                    |
|--------------------------------------------|--------------|--------------|--------------------------------------------|
| IndexCreated, PoolAdded, PolicyChosen      | index        | index        | created once                               |
| PoolResized, PoolDropped                   | pool         | pool         | takes                                      |
| ServicePaused, ServiceResumed, CacheCleared, | everything | everything | speak for all engines and pools             |
| HistoryLost                                |              |              |                                            |
| EngineJoined                               | index,engine | index,engine | whoever speaks for all must know of it     |
| EngineLeft, EngineLost                     | engine       | engine       | gives back; unfinished copies only it saw  |
| PrefixMatched, a hit                       | pool         | pool         | pins copies that another might evict       |
| PrefixMatched, a miss                      |              |              | holds whatever happens                     |
| BlocksAllocated, CopyEvicted               | pool         | pool         | takes                                      |
| PathExtended                               | pool         | pool         | what is a duplicate depends on the copies  |
| TransferStarted, TransferCancelled         | both pools   | both pools   | takes in one, pins in the other            |
| TransferCancelled                          | engine's ends | engine's ends | it may have ended before this lands      |
| SendStarted                                | receiver     | receiver     | it must not free the destination meanwhile |
| TransferFinished                           |              | `finish_touches` | appended at whatever the head is       |
| a path over a copy that is leaving         | pool's leaving | pool's leaving | the end of a swap-out takes the copy, if  |
|                                            |              |              | it lands before what uses it again         |
| BlocksRecycled, PathReady, RequestReleased |              |              | gives back                                 |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from events.facts import (
    BlocksAllocated,
    BlocksRecycled,
    CacheCleared,
    CopyEvicted,
    EngineJoined,
    EngineLeft,
    EngineLost,
    Fact,
    HistoryLost,
    IndexCreated,
    PathExtended,
    PathReady,
    PolicyChosen,
    PoolAdded,
    PoolDropped,
    PoolResized,
    PrefixMatched,
    RequestReleased,
    SendStarted,
    ServicePaused,
    ServiceResumed,
    TransferCancelled,
    TransferFinished,
    TransferStarted,
)
from events.jobs import TransferJob, encode_job
from events.keys import INDEX_SCOPE, ends_scope, engine_scope, leaving_scope, pool_scope
from events.ports import Job
from statecore import ranges
from statecore.sends import Send
from statecore.state import SEND, SWAP_IN, SWAP_OUT, State
from statecore.tree import path_nodes


def scopes_of(state: State, engine: str, facts: Sequence[Fact]) -> tuple[str, ...]:
    """The scopes a commit of `engine` checks and touches: by the table above the two sets are the same.

    `state` is the one after the facts.
    """
    scopes = {engine_scope(engine)}
    for fact in facts:
        scopes.update(_scopes_of_fact(state, engine, fact))
    writer = state.engines.get(engine)  # None: the keeper, which uses no block
    if state.transfers and writer is not None and _uses_what_is_leaving(state, writer.gpu_pool, facts):
        scopes.add(leaving_scope(writer.gpu_pool))
    return tuple(sorted(scopes))


def _uses_what_is_leaving(state: State, pool: str, facts: Sequence[Fact]) -> bool:
    return any(
        (copy := node.copies.get(pool)) is not None and copy.leaving is not None
        for fact, leaf in zip(facts, state.places, strict=False)
        if isinstance(fact, PrefixMatched | PathExtended) and leaf is not None
        for node in path_nodes(leaf)
    )


def _scopes_of_fact(state: State, engine: str, fact: Fact) -> Iterable[str]:
    match fact:
        case PrefixMatched(depth=0) | RequestReleased() | PathReady() | BlocksRecycled():
            return ()
        case PrefixMatched() | PathExtended():
            return (pool_scope(state.engines[engine].gpu_pool),)
        case BlocksAllocated() | CopyEvicted() | PoolResized() | PoolDropped():
            return (pool_scope(fact.pool),)
        case EngineJoined():
            return engine_scope(fact.engine), INDEX_SCOPE
        case EngineLeft() | EngineLost():
            return (engine_scope(fact.engine),)
        case TransferStarted():
            return pool_scope(fact.source), pool_scope(fact.destination)
        case TransferCancelled():
            transfer = state.transfers.get(fact.transfer)
            if transfer is None:
                return ()
            return pool_scope(transfer.source), pool_scope(transfer.destination), ends_scope(transfer.engine)
        case SendStarted():
            return (engine_scope(fact.receiver),)
        case ServicePaused() | ServiceResumed() | CacheCleared() | HistoryLost():
            return INDEX_SCOPE, *map(pool_scope, state.pools), *map(engine_scope, state.engines)
        case IndexCreated() | PoolAdded() | PolicyChosen():
            return (INDEX_SCOPE,)
        case TransferFinished():
            return ()  # a worker's, appended at whatever the head is


def finish_touches(fact: TransferStarted) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The scopes a worker's finish moves: when it went well, and when it failed. A finish checks none.

    Always the one that whoever cancels the transfer checks: what follows in that commit was decided as if it went on.

    A swap-out that went well takes the source copy, unless somebody uses it again: it moves the scope that only those
    check who do. A swap-in that failed cuts back the paths of its engine. Everything else only gives.
    """
    ends = ends_scope(fact.engine)
    if fact.kind == SWAP_OUT:
        return (leaving_scope(fact.source), ends), (ends,)
    if fact.kind == SWAP_IN:
        return (ends,), (pool_scope(fact.destination), engine_scope(fact.engine), ends)
    return (ends,), (ends,)


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


def fences_at(state: State) -> tuple[tuple[str, int], ...]:
    """Per engine of a state, the lowest session that may append: what all `fences_of` up to here amount to."""
    return tuple((engine.name, engine.session + (not engine.alive)) for engine in state.engines.values())


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
        elif isinstance(fact, SendStarted):
            jobs.append(send_job(state.sends[fact.transfer]))
    return tuple(jobs)


def send_job(send: Send) -> Job:
    """The job of a send, for the workers of the pool it reads. Of one that is cancelled nothing is wanted but the end."""
    job = TransferJob(
        transfer=send.id,
        kind=SEND,
        source=send.source,
        source_blocks=ranges.NONE if send.cancelled else send.source_blocks,
        destination=send.destination,
        destination_blocks=ranges.NONE if send.cancelled else send.destination_blocks,
        ranks=send.ranks,
        touches_ok=(),
        touches_failed=(),
    )
    return Job(send.source, send.id, encode_job(job))
