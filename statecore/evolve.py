"""What each fact does to the state: total, deterministic, without choice.

Owns one function per fact. A fact that does not fit the state (an unknown request, a block that is not free) means that
the history or the code is broken: `CorruptState`, and the caller undoes through the journal what was done so far.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from events.errors import CorruptState
from events.facts import (
    BLOCK_HASH_BYTES,
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
from statecore import ranges, sends, service, transfers, tree
from statecore.blockset import BlockSet
from statecore.state import (
    COUNTING_WINDOW,
    TIERS,
    WRITE_POLICIES,
    Copy,
    Engine,
    Node,
    Pool,
    Request,
    State,
    private_ranges,
)

_SHOWN: Final = 300
"""Characters of a fact in an error: it may hold thousands of block ranges."""


def evolve(state: State, fact: Fact) -> None:
    """Apply one fact.

    Raises:
        CorruptState: the fact does not fit; the state is half changed and must be undone by its journal.
    """
    try:
        place = _EVOLVE[type(fact)](state, fact)
    except (KeyError, AssertionError, AttributeError) as error:
        detail = f"{fact!s:.{_SHOWN}} does not fit the state ({type(error).__name__}: {error!s:.{_SHOWN}})"
        raise CorruptState(detail) from error
    state.places.append(place)


# --- configuration --------------------------------------------------------------------------------------------------


def _index_created(state: State, fact: IndexCreated) -> None:
    if state.created:
        raise CorruptState("the index is created twice")
    if not (fact.block_size > 0):
        raise CorruptState(f"block size {fact.block_size}")
    state.journal.set(state, "block_size", fact.block_size)
    state.journal.set(state, "hash_scheme", fact.hash_scheme)


def _pool_added(state: State, fact: PoolAdded) -> None:
    if fact.pool in state.pools:
        raise CorruptState(f"pool {fact.pool!r} is added twice")
    if not (fact.tier in TIERS and fact.blocks > 0):
        raise CorruptState(f"pool of tier {fact.tier!r} with {fact.blocks} blocks")
    state.journal.put(state.pools, fact.pool, Pool(fact.pool, fact.tier, fact.blocks))


def _policy_chosen(state: State, fact: PolicyChosen) -> None:
    if fact.write not in WRITE_POLICIES:
        raise CorruptState(f"write policy {fact.write!r}")
    if not (0 <= fact.free_low <= fact.free_high <= 100):
        raise CorruptState(f"watermarks {fact.free_low} and {fact.free_high} percent")
    state.journal.set(state, "write_policy", fact.write)
    state.journal.set(state, "free_low", fact.free_low)
    state.journal.set(state, "free_high", fact.free_high)
    state.journal.set(state, "policy_chosen", True)


# --- engines --------------------------------------------------------------------------------------------------------


def _engine_joined(state: State, fact: EngineJoined) -> None:
    journal = state.journal
    engine = state.engines.get(fact.engine)
    if engine is None:
        engine = Engine(fact.engine)
        journal.put(state.engines, fact.engine, engine)
    if engine.alive:
        raise CorruptState(f"engine {fact.engine!r} joins while its session {engine.session} is alive")
    if fact.session != engine.session + 1:
        raise CorruptState(f"session {fact.session} after {engine.session}")
    for pool in (fact.gpu_pool, *([] if fact.cpu_pool is None else [fact.cpu_pool])):
        if pool not in state.pools:
            raise CorruptState(f"engine joins with unknown pool {pool!r}")
    if fact.tensor_parallel_size < 1:
        raise CorruptState(f"engine joins with {fact.tensor_parallel_size} ranks")
    journal.set(engine, "session", fact.session)
    journal.set(engine, "alive", True)
    journal.set(engine, "gpu_pool", fact.gpu_pool)
    journal.set(engine, "cpu_pool", fact.cpu_pool)
    journal.set(engine, "tensor_parallel_size", fact.tensor_parallel_size)
    journal.set(engine, "memory_survives", fact.memory_survives)


def _engine_gone(state: State, fact: EngineLeft | EngineLost) -> None:
    engine = _alive(state, fact.engine)
    if fact.session != engine.session:
        raise CorruptState(f"session {fact.session} ends, {engine.session} is alive")
    for send in state.sends.values():
        if engine.name in (send.engine, send.receiver) and not send.cancelled:
            raise CorruptState(f"a session ends while send {send.id!r} of its goes on")
    for request_id in sorted(engine.requests):
        _end_request(state, engine, engine.requests[request_id])
    for pool, held in engine.held.items():
        blocks = tuple(held)
        sends.give_back(state, state.pools[pool], blocks)
        state.journal.call(held.remove, held.add, blocks)
    state.journal.set(engine, "alive", False)


# --- requests -------------------------------------------------------------------------------------------------------


def _prefix_matched(state: State, fact: PrefixMatched) -> Node:
    engine, journal = _alive(state, fact.engine), state.journal
    if state.paused_by is not None:
        raise CorruptState(f"request {fact.request!r} begins while service is paused")
    if fact.prompt_tokens < fact.depth * state.block_size or not fact.request:
        raise CorruptState(f"request {fact.request!r} of {fact.prompt_tokens} tokens begins with {fact.depth} blocks")
    if fact.request in engine.requests:
        raise CorruptState(f"request {fact.request!r} begins twice")
    pool = state.pools[engine.gpu_pool]
    node = tree.node_at(state, fact.node, fact.depth)
    leaf = tree.ending_at(state, node, fact.depth)
    if leaf is not state.root and leaf.copies[pool.name].pending not in (None, engine.name):
        raise CorruptState(f"request {fact.request!r} begins on blocks another engine is computing")
    tree.pin(state, pool, leaf)
    journal.put(engine.requests, fact.request, Request(fact.request, leaf))
    journal.set(engine, "requests_seen", engine.requests_seen + 1)
    journal.set(engine, "prompt_tokens", engine.prompt_tokens + fact.prompt_tokens)
    if fact.depth:
        journal.set(engine, "requests_hit", engine.requests_hit + 1)
        journal.set(engine, "matched_tokens", engine.matched_tokens + fact.depth * state.block_size)
    if engine.requests_seen % COUNTING_WINDOW == 0:
        journal.set(engine, "window", engine.counters)
    return leaf


def _blocks_allocated(state: State, fact: BlocksAllocated) -> None:
    engine, pool, journal = _alive(state, fact.engine), state.pools[fact.pool], state.journal
    _require_own_pool(engine, fact)
    journal.call(pool.free.remove, pool.free.add, fact.blocks)
    if fact.request is None:
        held = engine.held.get(fact.pool)
        if held is None:
            held = BlockSet()
            journal.put(engine.held, fact.pool, held)
        journal.call(held.add, held.remove, fact.blocks)
    else:
        request = engine.requests[fact.request]
        journal.set(request, "private", ranges.join(request.private, fact.blocks))


def _blocks_recycled(state: State, fact: BlocksRecycled) -> None:
    engine, pool, journal = _alive(state, fact.engine), state.pools[fact.pool], state.journal
    _require_own_pool(engine, fact)
    if fact.request is None:
        held = engine.held[fact.pool]
        journal.call(held.remove, held.add, fact.blocks)
    else:
        request = engine.requests[fact.request]
        left = ranges.without(request.private, fact.blocks)
        gone = ranges.count(request.private) - ranges.count(left)
        if gone != ranges.count(fact.blocks):
            raise CorruptState("blocks are recycled that the request does not have")
        journal.set(request, "private", left)
    sends.give_back(state, pool, fact.blocks)


def _path_extended(state: State, fact: PathExtended) -> Node:
    engine, journal = _alive(state, fact.engine), state.journal
    request, pool = engine.requests[fact.request], state.pools[engine.gpu_pool]
    if state.transfers and tree.filling_on(request.leaf, pool.name) is not None:
        raise CorruptState("a path grows while it is being filled")
    if fact.depth != request.path_blocks:
        raise CorruptState(f"path of {request.path_blocks} blocks is extended at {fact.depth}")
    node, hashes, offset = request.leaf, fact.hashes, 0
    adopted: tuple[tuple[int, int], ...] = ()
    duplicates: tuple[tuple[int, int], ...] = ()
    private, places = request.private, request.duplicates
    while offset < len(hashes):
        child = node.children.get(hashes[offset : offset + BLOCK_HASH_BYTES])
        if child is None:
            child = tree.add_child(state, node, hashes[offset:])
        else:
            child = tree.ending_at(state, child, child.start + tree.common_blocks(child.hashes, hashes, offset))
        blocks = child.end - child.start
        own, private = ranges.split(private, blocks)
        if pool.name in child.copies:
            if not _is_usable(child.copies[pool.name], engine):
                raise CorruptState("a path grows over blocks nobody has filled")
            tree.pin_copy(state, pool, child)
            duplicates = ranges.join(duplicates, own)
            places = (*places, (child.start, own))
        else:
            tree.add_copy(state, child, pool, own, refs=1, pending=engine.name)
            adopted = ranges.join(adopted, own)
        node, offset = child, offset + blocks * BLOCK_HASH_BYTES
    if not (adopted == fact.adopted and duplicates == fact.duplicates):
        raise CorruptState("the tree takes over other blocks than it says")
    journal.set(request, "leaf", node)
    journal.set(request, "private", private)
    journal.set(request, "duplicates", places)
    return node


def _path_ready(state: State, fact: PathReady) -> Node:
    engine = _alive(state, fact.engine)
    request, pool = engine.requests[fact.request], state.pools[engine.gpu_pool]
    node = request.leaf
    if not (0 < fact.depth <= node.end):
        raise CorruptState(f"a path of {node.end} blocks is ready to {fact.depth}")
    while fact.depth <= node.start:
        assert node.parent is not None
        node = node.parent
    node = tree.ending_at(state, node, fact.depth)
    tree.mark_ready(state, pool, node)
    return node


def _request_released(state: State, fact: RequestReleased) -> None:
    engine = _alive(state, fact.engine)
    freed = _end_request(state, engine, engine.requests[fact.request])
    if freed != fact.freed:
        raise CorruptState(f"release frees {freed}, not {fact.freed}")


def _copy_evicted(state: State, fact: CopyEvicted) -> Node:
    pool, blocks = state.pools[fact.pool], ranges.count(fact.blocks)
    node = tree.node_at(state, fact.node, fact.depth)
    if node.end != fact.depth:
        raise CorruptState(f"the place ({fact.node}, {fact.depth}) lies inside a run")
    rest, dropped = tree.drop_tail(state, pool, node, blocks)
    if dropped != fact.blocks:
        raise CorruptState(f"the copy holds {dropped}")
    _free(state, pool, dropped)
    state.journal.set(pool, "evicted", pool.evicted + blocks)
    if rest.parent is not None:
        # A later fact of this commit may name what is left; were the run split meanwhile, the id would be of what is gone.
        state.journal.put(state.place_of, rest.id, len(state.places) + 1)
    return rest


# --- shared ---------------------------------------------------------------------------------------------------------


def _end_request(state: State, engine: Engine, request: Request) -> tuple[tuple[int, int], ...]:
    """Unpin, free what is its own and what it never finished. Returns the ids."""
    pool = state.pools[engine.gpu_pool]
    tree.unpin(state, pool, request.leaf)
    freed = ranges.join(tree.drop_unfinished(state, pool, request.leaf), private_ranges(request))
    sends.give_back(state, pool, freed)
    state.journal.drop(engine.requests, request.id)
    return freed


def _free(state: State, pool: Pool, blocks: tuple[tuple[int, int], ...]) -> None:
    state.journal.call(pool.free.add, pool.free.remove, blocks)


def _require_own_pool(engine: Engine, fact: BlocksAllocated | BlocksRecycled) -> None:
    pools = (engine.gpu_pool,) if fact.request is not None else (engine.gpu_pool, engine.cpu_pool)
    if fact.pool not in pools:
        raise CorruptState(f"engine {engine.name!r} of pools {pools} deals with blocks of {fact.pool!r}")


def _is_usable(copy: Copy, engine: Engine) -> bool:
    return copy.pending in (None, engine.name) and copy.filling is None


def _alive(state: State, name: str) -> Engine:
    engine = state.engines[name]
    if not engine.alive:
        raise CorruptState(f"engine {name!r} acts after its session {engine.session} ended")
    return engine


_EVOLVE: Final[dict[type, Callable[[State, Any], Node | None]]] = {
    IndexCreated: _index_created,
    PoolAdded: _pool_added,
    PoolResized: service.pool_resized,
    PoolDropped: service.pool_dropped,
    PolicyChosen: _policy_chosen,
    EngineJoined: _engine_joined,
    EngineLeft: _engine_gone,
    EngineLost: _engine_gone,
    PrefixMatched: _prefix_matched,
    BlocksAllocated: _blocks_allocated,
    BlocksRecycled: _blocks_recycled,
    PathExtended: _path_extended,
    PathReady: _path_ready,
    RequestReleased: _request_released,
    CopyEvicted: _copy_evicted,
    TransferStarted: transfers.started,
    TransferFinished: transfers.finished,
    TransferCancelled: transfers.cancelled,
    SendStarted: sends.started,
    HistoryLost: service.history_lost,
    ServicePaused: service.paused,
    ServiceResumed: service.resumed,
    CacheCleared: service.cleared,
}
