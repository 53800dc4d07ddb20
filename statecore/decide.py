"""What to do about a command: facts, or a rejection. Chooses; reads only.

Owns every choice the index makes: which prefix, which blocks, which victims, what is refused. The facts it returns
already hold when applied in order; nothing here changes the state. Blocks are chosen lowest id first, victims by
`eviction.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import attrs

from events.facts import (
    BLOCK_HASH_BYTES,
    BlockRanges,
    BlocksAllocated,
    BlocksRecycled,
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
from statecore import ranges, tree
from statecore.commands import (
    Allocate,
    BringIn,
    CancelTransfer,
    Command,
    Extend,
    Join,
    Leave,
    MarkReady,
    Match,
    Recycle,
    Release,
)
from statecore.rejections import (
    DifferentIndex,
    ForeignBlocks,
    NeverFits,
    PathDiffers,
    PathInUse,
    PathNotCovered,
    PathNotFilled,
    PathShorter,
    PoolExhausted,
    Rejection,
    RequestExists,
    SessionOver,
    UnknownPool,
    UnknownRequest,
    UnknownTransfer,
)
from statecore.state import CPU, GPU, Engine, Request, State, private_ranges
from statecore.tiers import bring_in, held_by_transfers, make_room, outgoing_blocks, soon_droppable_blocks, transfers_of
from statecore.transfers import transfer_id

Decision: TypeAlias = Sequence[Fact] | Rejection


def decide(state: State, command: Command) -> Decision:
    """Facts that carry the command out (none if there is nothing to do), or why it is refused."""
    decision = _DECIDE[type(command)](state, command)
    return decision if isinstance(decision, Rejection) else numbered(state, decision)


def numbered(state: State, facts: Sequence[Fact]) -> Sequence[Fact]:
    """Give the transfers of a complete decision their ids, in order."""
    if TransferStarted not in map(type, facts):
        return facts
    complete: list[Fact] = []
    started = 0
    for fact in facts:
        if isinstance(fact, TransferStarted):
            engine = state.engines[fact.engine]
            complete.append(attrs.evolve(fact, transfer=transfer_id(engine, ahead=started)))
            started += 1
        else:
            complete.append(fact)
    return complete


# --- engines --------------------------------------------------------------------------------------------------------


def _join(state: State, command: Join) -> Decision:
    facts: list[Fact] = []
    if not state.created:
        facts.append(IndexCreated(command.block_size, command.hash_scheme))
    elif state.block_size != command.block_size:
        return DifferentIndex("block size", state.block_size, command.block_size)
    elif state.hash_scheme != command.hash_scheme:
        return DifferentIndex("hash scheme", state.hash_scheme, command.hash_scheme)
    if command.policy is not None:
        recorded = PolicyChosen(state.write_policy, state.free_low, state.free_high)
        if not state.created:
            facts.append(command.policy)
        elif command.policy != recorded:
            return DifferentIndex("policy", recorded, command.policy)
    if command.cpu_pool == command.gpu_pool:
        return DifferentIndex(f"pool {command.gpu_pool!r} in tier", GPU, CPU)
    for tier, name, blocks in (
        (GPU, command.gpu_pool, command.gpu_blocks),
        (CPU, command.cpu_pool, command.cpu_blocks),
    ):
        added = [] if name is None else _pool_for(state, tier, name, blocks)
        if isinstance(added, Rejection):
            return added
        facts += added
    engine = state.engines.get(command.engine)
    session = 0 if engine is None else engine.session
    if engine is not None and engine.alive:
        facts.append(EngineLost(command.engine, session))
    facts.append(
        EngineJoined(command.engine, session + 1, command.gpu_pool, command.cpu_pool, command.tensor_parallel_size)
    )
    return facts


def _pool_for(state: State, tier: str, name: str, blocks: int | None) -> list[PoolAdded] | Rejection:
    """Nothing if the pool is as wanted, its addition if there is none."""
    pool = state.pools.get(name)
    if pool is None:
        return UnknownPool(name, tuple(sorted(state.pools))) if blocks is None else [PoolAdded(name, tier, blocks)]
    if pool.tier != tier:
        return DifferentIndex(f"pool {name!r} in tier", pool.tier, tier)
    if blocks is not None and blocks != pool.blocks:
        return DifferentIndex(f"blocks in pool {name!r}", pool.blocks, blocks)
    return []


def _leave(state: State, command: Leave) -> Decision:
    engine = _engine(state, command.engine)
    return engine if isinstance(engine, Rejection) else [EngineLeft(engine.name, engine.session)]


# --- requests -------------------------------------------------------------------------------------------------------


def _match(state: State, command: Match) -> Decision:
    engine = _engine(state, command.engine)
    if isinstance(engine, Rejection):
        return engine
    if command.request in engine.requests:
        return RequestExists(engine.name, command.request)
    limit = len(command.hashes) // BLOCK_HASH_BYTES
    if command.limit is not None:
        limit = min(limit, command.limit)
    node, depth = tree.longest_match(state.root, engine.gpu_pool, engine.name, command.hashes, limit)
    return [PrefixMatched(engine.name, command.request, tree.place(state, node), depth, command.prompt_tokens)]


def _bring_in(state: State, command: BringIn) -> Decision:
    found = _request(state, command.engine, command.request)
    if isinstance(found, Rejection):
        return found
    engine, request = found
    limit = len(command.hashes) // BLOCK_HASH_BYTES
    if command.limit is not None:
        limit = min(limit, command.limit)
    last = request.leaf.copies.get(engine.gpu_pool)
    if request.private or (last is not None and last.pending is not None and last.filling is None):
        return []  # nothing can be fetched behind blocks of one's own, or behind blocks that may never be computed
    return bring_in(state, engine, request, command.hashes, limit)


def _cancel(state: State, command: CancelTransfer) -> Decision:
    transfer = state.transfers.get(command.transfer)
    if transfer is None or transfer.cancelled or transfer.engine != command.engine:
        return UnknownTransfer(command.transfer)
    return [TransferCancelled(transfer.id, command.reason)]


def _allocate(state: State, command: Allocate) -> Decision:
    engine = _engine(state, command.engine)
    if isinstance(engine, Rejection):
        return engine
    facts: list[Fact] = []
    has = 0
    if command.request is not None:
        request = engine.requests.get(command.request)
        if request is None:
            return UnknownRequest(engine.name, command.request)
        has = request.path_blocks + ranges.count(private_ranges(request))
        facts += _computed_meanwhile(state, engine, request)
    pool = state.pools[engine.gpu_pool]
    asked = command.blocks
    if asked + has > pool.blocks:
        return NeverFits(pool.name, asked, has, pool.blocks)
    if asked <= pool.free.total:
        blocks = pool.free.lowest(asked)
    else:
        outgoing = outgoing_blocks(state, pool)
        coming = outgoing + soon_droppable_blocks(state, pool)
        room = make_room(state, engine, asked - pool.free.total - coming)
        freed = ranges.count(tuple(room.freed))
        if asked > pool.free.total + freed:
            later = outgoing + held_by_transfers(state, pool)
            waiting = room.leaving or transfers_of(state, pool.name)
            if asked > pool.free.total + pool.unpinned + later or not waiting:
                return PoolExhausted(pool.name, asked, pool.free.total, pool.unpinned + outgoing, pool.blocks)
            return [*facts, *room.facts]  # not yet: what is leaving has to be gone first
        facts += room.facts
        blocks, _ = ranges.split(ranges.merged([*pool.free, *room.freed]), asked)
    facts.append(BlocksAllocated(engine.name, command.request, pool.name, blocks))
    return facts


def _recycle(state: State, command: Recycle) -> Decision:
    engine = _engine(state, command.engine)
    if isinstance(engine, Rejection):
        return engine
    if command.request is None:
        owner = f"engine {engine.name!r}"
        held = engine.held.get(engine.gpu_pool)
        owned = tuple(held) if held is not None else ()
    else:
        request = engine.requests.get(command.request)
        if request is None:
            return UnknownRequest(engine.name, command.request)
        owner, owned = f"request {request.id!r}", request.private
    given = ranges.ids(command.blocks)
    left = set(ranges.ids(owned))
    foreign = []
    for block in given:
        if block in left:
            left.discard(block)
        else:
            foreign.append(block)
    if foreign:
        return ForeignBlocks(engine.gpu_pool, owner, tuple(foreign))
    if not given:
        return []
    return [BlocksRecycled(engine.name, command.request, engine.gpu_pool, ranges.of_ids(sorted(given)))]


def _extend(state: State, command: Extend) -> Decision:
    found = _request(state, command.engine, command.request)
    if isinstance(found, Rejection):
        return found
    engine, request = found
    path, target = request.path_blocks, len(command.hashes) // BLOCK_HASH_BYTES
    known = min(path, target) * BLOCK_HASH_BYTES
    if known and not _ends_with(request, command.hashes[:known]):
        return PathDiffers(request.id, path)
    if state.transfers and (filling := tree.filling_on(request.leaf, engine.gpu_pool)) is not None:
        return PathNotFilled(request.id, filling)
    private = ranges.count(request.private)
    if target > path + private:
        return PathNotCovered(request.id, target, path, private)
    facts = _computed_meanwhile(state, engine, request)
    hashes, adopted, duplicates = _adoption(engine, request, command.hashes[path * BLOCK_HASH_BYTES :])
    if hashes:
        facts.append(PathExtended(engine.name, request.id, path, hashes, adopted, duplicates))
    return facts


def _ready(state: State, command: MarkReady) -> Decision:
    found = _request(state, command.engine, command.request)
    if isinstance(found, Rejection):
        return found
    engine, request = found
    depth = request.path_blocks if command.depth is None else command.depth
    if depth > request.path_blocks:
        return PathShorter(request.id, depth, request.path_blocks)
    return _ready_to(engine, request, depth)


def _release(state: State, command: Release) -> Decision:
    found = _request(state, command.engine, command.request)
    if isinstance(found, Rejection):
        return found
    engine, request = found
    facts = _computed_meanwhile(state, engine, request)
    freed = private_ranges(request)
    for node in tree.unfinished(request.leaf, engine.gpu_pool, refs=1, since=state.clock):
        freed = ranges.join(node.copies[engine.gpu_pool].blocks, freed)
    if _leaves_others_behind(state, engine, request):
        return PathInUse(request.id)
    facts.append(RequestReleased(engine.name, request.id, freed))
    return facts


# --- shared ---------------------------------------------------------------------------------------------------------


def _engine(state: State, name: str) -> Engine | Rejection:
    engine = state.engines.get(name)
    if engine is None:
        return SessionOver(name, 0, 0)
    return engine if engine.alive else SessionOver(name, engine.session, engine.session)


def _request(state: State, engine_name: str, request_id: str) -> tuple[Engine, Request] | Rejection:
    engine = _engine(state, engine_name)
    if isinstance(engine, Rejection):
        return engine
    request = engine.requests.get(request_id)
    return UnknownRequest(engine_name, request_id) if request is None else (engine, request)


def _computed_meanwhile(state: State, engine: Engine, request: Request) -> list[Fact]:
    """The engine speaks of a request again: what an earlier step put on its path has been computed since."""
    for node in tree.path_nodes(request.leaf):
        copy = node.copies[engine.gpu_pool]
        if copy.pending is None:
            break
        if copy.pending_since < state.clock:
            return _ready_to(engine, request, node.end)
    return []


def _leaves_others_behind(state: State, engine: Engine, request: Request) -> bool:
    """Whether another request stands on blocks this one brought in this very step, and will now never compute."""
    for node in tree.path_nodes(request.leaf):
        copy = node.copies[engine.gpu_pool]
        if copy.pending is None or copy.filling is not None or copy.pending_since < state.clock:
            return False
        if node.start >= request.matched and copy.refs > 1:
            return True
    return False


def _ready_to(engine: Engine, request: Request, depth: int) -> list[Fact]:
    node = request.leaf
    while node.parent is not None and depth <= node.start:
        node = node.parent
    if node.parent is None:
        return []
    copy = node.copies[engine.gpu_pool]
    if copy.pending is None or copy.filling is not None:
        return []
    return [PathReady(engine.name, request.id, depth)]


def _adoption(engine: Engine, request: Request, hashes: bytes) -> tuple[bytes, BlockRanges, BlockRanges]:
    """Which of the request's private blocks the tree would take over for `hashes`, and which double what it has.

    The path stops where another engine is still computing the same content, or a transfer bringing it: that may fail.
    """
    pool, private = engine.gpu_pool, request.private
    adopted: BlockRanges = ()
    duplicates: BlockRanges = ()
    node, offset = request.leaf, 0
    while offset < len(hashes):
        child = node.children.get(hashes[offset : offset + BLOCK_HASH_BYTES])
        copy = None if child is None else child.copies.get(pool)
        if child is None or copy is None:
            blocks = (len(hashes) - offset) // BLOCK_HASH_BYTES
            own, private = ranges.split(private, blocks)
            return hashes, ranges.join(adopted, own), duplicates
        if copy.pending not in (None, engine.name) or copy.filling is not None:
            return hashes[:offset], adopted, duplicates
        blocks = tree.common_blocks(child.hashes, hashes, offset)
        own, private = ranges.split(private, blocks)
        duplicates = ranges.join(duplicates, own)
        offset += blocks * BLOCK_HASH_BYTES
        node = child
        if blocks < child.end - child.start:
            own, private = ranges.split(private, (len(hashes) - offset) // BLOCK_HASH_BYTES)
            return hashes, ranges.join(adopted, own), duplicates
    return hashes, adopted, duplicates


def _ends_with(request: Request, hashes: bytes) -> bool:
    """Whether the path holds `hashes` from the root on. A hash commits to all before it, so the last one decides."""
    depth = len(hashes) // BLOCK_HASH_BYTES
    node = request.leaf
    while depth <= node.start:
        assert node.parent is not None
        node = node.parent
    end = (depth - node.start) * BLOCK_HASH_BYTES
    return node.hashes[end - BLOCK_HASH_BYTES : end] == hashes[-BLOCK_HASH_BYTES:]


_DECIDE: Final[dict[type, Callable[[State, Any], Decision]]] = {
    Join: _join,
    Leave: _leave,
    Match: _match,
    BringIn: _bring_in,
    CancelTransfer: _cancel,
    Allocate: _allocate,
    Recycle: _recycle,
    Extend: _extend,
    MarkReady: _ready,
    Release: _release,
}
