"""What the facts about the index as a whole do to the state: pools that change size, service that pauses, a cache cleared.

Owns the end of everything cached at once.
"""

from __future__ import annotations

from events.errors import CorruptState
from events.facts import CacheCleared, HistoryLost, PoolDropped, PoolResized, ServicePaused, ServiceResumed
from statecore import tree
from statecore.state import State


def pool_resized(state: State, fact: PoolResized) -> None:
    pool, journal = state.pools[fact.pool], state.journal
    if fact.blocks < 1:
        raise CorruptState(f"pool {fact.pool!r} is resized to {fact.blocks} blocks")
    if fact.blocks > pool.blocks:
        journal.call(pool.free.add, pool.free.remove, ((pool.blocks, fact.blocks - pool.blocks),))
    elif fact.blocks < pool.blocks:
        journal.call(pool.free.remove, pool.free.add, ((fact.blocks, pool.blocks - fact.blocks),))
    journal.set(pool, "blocks", fact.blocks)


def pool_dropped(state: State, fact: PoolDropped) -> None:
    for engine in state.engines.values():
        if engine.alive and engine.gpu_pool == fact.pool:
            raise CorruptState(f"pool {fact.pool!r} is dropped under engine {engine.name!r}")
    for transfer in state.transfers.values():
        if fact.pool in (transfer.source, transfer.destination) and not transfer.cancelled:
            raise CorruptState(f"pool {fact.pool!r} is dropped while transfer {transfer.id!r} goes on")
    _forget(state, (fact.pool,))


def paused(state: State, fact: ServicePaused) -> None:
    _require_alive(state, fact.engine)
    if state.paused_by is not None:
        raise CorruptState(f"service is paused by {fact.engine!r} and has been by {state.paused_by!r}")
    state.journal.set(state, "paused_by", fact.engine)
    state.journal.set(state, "paused_for", fact.reason)


def resumed(state: State, fact: ServiceResumed) -> None:
    _require_alive(state, fact.engine)
    if state.paused_by is None:
        raise CorruptState(f"service is resumed by {fact.engine!r} and was not paused")
    state.journal.set(state, "paused_by", None)
    state.journal.set(state, "paused_for", "")


def cleared(state: State, fact: CacheCleared) -> None:
    _require_alive(state, fact.engine)
    for engine in state.engines.values():
        if engine.requests:
            raise CorruptState(f"the cache is cleared under {len(engine.requests)} requests of engine {engine.name!r}")
    for transfer in state.transfers.values():
        if not transfer.cancelled:
            raise CorruptState(f"the cache is cleared while transfer {transfer.id!r} goes on")
    _forget(state, tuple(sorted(state.pools)))
    state.journal.set(state, "clears", state.clears + 1)


def history_lost(state: State, fact: HistoryLost) -> None:
    """Bottom-up, so that what hangs below an unpinned copy goes first; what is pinned, or computed right now, stays."""
    for transfer in state.transfers.values():
        if not transfer.cancelled:
            raise CorruptState(f"history is lost ({fact.commit}) while transfer {transfer.id!r} goes on")
    for node in sorted(state.nodes.values(), key=lambda node: (-node.end, node.id)):
        for name in sorted(node.copies):
            if node.copies[name].evictable:
                pool = state.pools[name]
                blocks = tree.remove_copy(state, pool, node)
                state.journal.call(pool.free.add, pool.free.remove, blocks)


def _forget(state: State, pools: tuple[str, ...]) -> None:
    """Every copy in these pools."""
    for node in sorted(state.nodes.values(), key=lambda node: (-node.end, node.id)):
        for name in pools:
            if name in node.copies:
                pool = state.pools[name]
                blocks = tree.remove_copy(state, pool, node)
                state.journal.call(pool.free.add, pool.free.remove, blocks)


def _require_alive(state: State, engine: str) -> None:
    if not state.engines[engine].alive:
        raise CorruptState(f"engine {engine!r} acts after its session {state.engines[engine].session} ended")
