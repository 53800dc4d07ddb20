"""Which pools and engines a commit depends on, and whose version it moves.

Owns the table that makes per-pool conflicts sound. A commit **checks** a scope when a change there could make one of
its facts wrong, and **touches** it when one of its facts could make another's decision wrong. Giving back never does:
a decision taken without knowing that blocks became free, ready or unpinned still holds. Engines count as pools; every
commit checks and touches its own engine.

| fact                            | checks       | touches      | because                                               |
|---------------------------------|--------------|--------------|-------------------------------------------------------|
| IndexCreated, PoolAdded         | index        | index        | created once                                          |
| EngineJoined, EngineLeft/Lost   | engine, pool | engine, pool | ends requests, may drop unfinished copies             |
| PrefixMatched, a hit            | pool         | pool         | pins copies that another might evict                  |
| PrefixMatched, a miss           |              |              | holds whatever happens                                |
| BlocksAllocated, CopyEvicted    | pool         | pool         | takes                                                 |
| PathExtended                    | pool         | pool         | which blocks are duplicates depends on the copies     |
| BlocksRecycled, PathReady, RequestReleased |   |              | gives back                                            |
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
    PoolAdded,
    PrefixMatched,
    RequestReleased,
)
from events.keys import INDEX_SCOPE, engine_scope, pool_scope
from statecore.state import State


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
                scopes.add(pool_scope(state.engines[fact.engine].gpu_pool))
            case IndexCreated() | PoolAdded():
                scopes.add(INDEX_SCOPE)
    return tuple(sorted(scopes))


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
