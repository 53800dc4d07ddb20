"""What decisions have in common: who is asking, and what follows from their asking at all.

Owns the type of a decision, and the rule that an engine which speaks of a request again has computed what it put on the
request's path in an earlier step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from events.facts import Fact, PathReady
from statecore import ranges, tree
from statecore.rejections import Rejection, SessionOver, UnknownPool, UnknownRequest
from statecore.state import GPU, Engine, Pool, Request, State

Decision: TypeAlias = Sequence[Fact] | Rejection


def engine_of(state: State, name: str) -> Engine | Rejection:
    """The engine, if its session goes on."""
    engine = state.engines.get(name)
    if engine is None:
        return SessionOver(name, 0, 0)
    return engine if engine.alive else SessionOver(name, engine.session, engine.session)


def pool_of(state: State, engine: Engine, tier: str) -> Pool | Rejection:
    """The engine's pool of a tier."""
    name = engine.gpu_pool if tier == GPU else engine.cpu_pool
    return UnknownPool(f"of tier {tier}", tuple(sorted(state.pools))) if name is None else state.pools[name]


def request_of(state: State, engine_name: str, request_id: str) -> tuple[Engine, Request] | Rejection:
    engine = engine_of(state, engine_name)
    if isinstance(engine, Rejection):
        return engine
    request = engine.requests.get(request_id)
    return UnknownRequest(engine_name, request_id) if request is None else (engine, request)


def computed_meanwhile(state: State, engine: Engine, request: Request) -> list[Fact]:
    """The engine speaks of a request again: what an earlier step put on its path has been computed since."""
    for node in tree.path_nodes(request.leaf):
        copy = node.copies[engine.gpu_pool]
        if copy.pending is None:
            break
        if copy.pending_since < state.clock:
            return ready_to(engine, request, node.end)
    return []


def ready_to(engine: Engine, request: Request, depth: int) -> list[Fact]:
    """The request's path is computed down to `depth` blocks, as far as the request can tell.

    Where its own block stands beside one of the tree that is still being computed, it cannot: that one is another request's.
    """
    depth = min(depth, _first_foreign(engine, request))
    node = request.leaf
    while node.parent is not None and depth <= node.start:
        node = node.parent
    if node.parent is None:
        return []
    copy = node.copies[engine.gpu_pool]
    if copy.pending is None or copy.filling is not None:
        return []
    return [PathReady(engine.name, request.id, depth)]


def _first_foreign(engine: Engine, request: Request) -> int:
    """Blocks of the path before the first one that is pending and that the request has a duplicate of."""
    first = request.path_blocks
    if request.duplicates:
        for node in tree.path_nodes(request.leaf):
            if node.copies[engine.gpu_pool].pending is not None:
                for depth, own in request.duplicates:
                    if depth < node.end and depth + ranges.count(own) > node.start:
                        first = min(first, max(depth, node.start))
    return first
