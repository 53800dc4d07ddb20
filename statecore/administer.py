"""What to do about commands that concern an engine's life or the index as a whole: facts, or a rejection. Reads only.

Owns joining and leaving, pools that change size, pausing, clearing. Requests are in `decide.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from events.facts import (
    CacheCleared,
    CopyEvicted,
    EngineJoined,
    EngineLeft,
    EngineLost,
    Fact,
    HistoryLost,
    IndexCreated,
    PolicyChosen,
    PoolAdded,
    PoolDropped,
    PoolResized,
    ServicePaused,
    ServiceResumed,
    TransferCancelled,
)
from statecore import ranges, tree
from statecore.commands import Clear, Depose, Forget, Join, Leave, Pause, Resize, Resume
from statecore.decision import Decision, engine_of, pool_of
from statecore.rejections import DifferentIndex, InUse, Rejection, UnknownPool
from statecore.sends import Send
from statecore.state import CPU, GPU, Engine, Pool, State, Transfer, private_ranges


def join(state: State, command: Join) -> Decision:
    facts: list[Fact] = []
    if not state.created:
        facts.append(IndexCreated(command.block_size, command.hash_scheme))
    elif state.block_size != command.block_size:
        return DifferentIndex("block size", state.block_size, command.block_size)
    elif state.hash_scheme != command.hash_scheme:
        return DifferentIndex("hash scheme", state.hash_scheme, command.hash_scheme)
    policy = command.policy
    if policy is None and command.cpu_pool is not None and not (state.policy_chosen or _has_host(state)):
        policy = command.first_policy
    if policy is not None:
        recorded = PolicyChosen(state.write_policy, state.free_low, state.free_high)
        if not state.created or not (state.policy_chosen or _has_host(state)):
            facts.append(policy)
        elif policy != recorded:
            return DifferentIndex("policy", recorded, policy)
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
        facts += _sends_cancelled(state, engine, "a new life of its engine began")
        facts.append(EngineLost(command.engine, session, "a new life of the engine began"))
    same_memory = command.memory_survives or 0 < command.memory_of == session
    if command.history_lost or (engine is not None and not same_memory):
        facts += _dropped(state, command.engine, command.gpu_pool)
    facts.append(
        EngineJoined(
            command.engine,
            session + 1,
            command.gpu_pool,
            command.cpu_pool,
            command.tensor_parallel_size,
            command.memory_survives,
        )
    )
    return facts


def _dropped(state: State, engine: str, name: str) -> list[Fact]:
    """The engine's last life took the bytes of its GPU pool along, unless another engine works in that pool."""
    pool = state.pools.get(name)
    others = [
        other for other in state.engines.values() if other.alive and other.name != engine and other.gpu_pool == name
    ]
    if pool is None or others or not any(name in node.copies for node in state.nodes.values()):
        return []
    return [
        *(
            TransferCancelled(transfer.id, f"the memory of pool {name!r} is gone")
            for transfer in state.transfers.values()
            if name in (transfer.source, transfer.destination) and not transfer.cancelled
        ),
        PoolDropped(engine, name),
    ]


def forget(state: State, command: Forget) -> Decision:
    """Transfers first: they may have ended in the lost part, and their blocks have been given to others."""
    return [
        *(
            TransferCancelled(transfer.id, f"it may have ended in a part of history that is lost ({command.commit})")
            for transfer in state.transfers.values()
            if not transfer.cancelled
        ),
        HistoryLost(command.author, command.commit),
    ]


def _has_host(state: State) -> bool:
    return any(pool.tier == CPU for pool in state.pools.values())


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


def leave(state: State, command: Leave) -> Decision:
    engine = engine_of(state, command.engine)
    if isinstance(engine, Rejection):
        return engine
    return [*_sends_cancelled(state, engine, "its engine left"), EngineLeft(engine.name, engine.session)]


def depose(state: State, command: Depose) -> Decision:
    """The life is over; what its memory held is forgotten if the memory went with it."""
    engine = state.engines.get(command.engine)
    if engine is None or not engine.alive or engine.session != command.session:
        return []
    facts = _sends_cancelled(state, engine, f"engine {engine.name!r} is lost")
    dropped = [] if engine.memory_survives else _dropped(state, engine.name, engine.gpu_pool)
    cancelled = {fact.transfer for fact in facts if isinstance(fact, TransferCancelled)}
    facts += [fact for fact in dropped if isinstance(fact, TransferCancelled) and fact.transfer not in cancelled]
    facts.append(EngineLost(engine.name, engine.session, command.reason))
    return facts + [fact for fact in dropped if isinstance(fact, PoolDropped)]


def _sends_cancelled(state: State, engine: Engine, reason: str) -> list[Fact]:
    """A send ends with either of its two engines."""
    return [
        TransferCancelled(send.id, reason)
        for send in state.sends.values()
        if engine.name in (send.engine, send.receiver) and not send.cancelled
    ]


# --- service --------------------------------------------------------------------------------------------------------


def pause(state: State, command: Pause) -> Decision:
    engine = engine_of(state, command.engine)
    if isinstance(engine, Rejection):
        return engine
    return [] if state.paused_by is not None else [ServicePaused(engine.name, command.reason)]


def resume(state: State, command: Resume) -> Decision:
    engine = engine_of(state, command.engine)
    if isinstance(engine, Rejection):
        return engine
    return [] if state.paused_by is None else [ServiceResumed(engine.name, command.reason)]


def clear(state: State, command: Clear) -> Decision:
    engine = engine_of(state, command.engine)
    if isinstance(engine, Rejection):
        return engine
    holders = [
        f"engine {other.name!r} ({_counted(len(other.requests), 'request')})"
        for _, other in sorted(state.engines.items())
        if other.requests
    ]
    if holders:
        return InUse("the cache", tuple(holders))
    under_way: list[Transfer | Send] = [*state.transfers.values(), *state.sends.values()]
    reason = f"the cache was cleared: {command.reason}"
    return [
        *(TransferCancelled(transfer.id, reason) for transfer in under_way if not transfer.cancelled),
        CacheCleared(engine.name, command.reason),
    ]


# --- sizes ----------------------------------------------------------------------------------------------------------


def resize(state: State, command: Resize) -> Decision:
    engine = engine_of(state, command.engine)
    pool = engine if isinstance(engine, Rejection) else pool_of(state, engine, command.tier)
    if isinstance(pool, Rejection):
        return pool
    if command.blocks == pool.blocks:
        return []
    facts: list[Fact] = []
    if command.blocks < pool.blocks:
        holders = _holders_above(state, pool, command.blocks)
        if holders:
            return InUse(f"what pool {pool.name!r} holds above block {command.blocks - 1}", tuple(holders))
        facts += _evictions_above(state, pool, command.blocks)
    return [*facts, PoolResized(pool.name, command.blocks)]


def _holders_above(state: State, pool: Pool, size: int) -> list[str]:
    """Who uses blocks that a pool of `size` blocks would not have."""
    used: Counter[str] = Counter()
    for who, blocks in _uses(state, pool):
        used[who] += sum(max(0, start + count - max(start, size)) for start, count in blocks)
    kept = _kept(state, pool, size)
    for transfer in state.transfers.values():  # one may use what hangs below a block that would go
        if not transfer.cancelled and pool.name in (transfer.source, transfer.destination):
            for node in tree.path_nodes(transfer.node):
                if node.end > transfer.start and node.id in kept:
                    used[f"transfer {transfer.id!r}"] += node.end - node.start - kept[node.id]
    return [f"{who} ({_counted(blocks, 'block')})" for who, blocks in used.items() if blocks]


def _uses(state: State, pool: Pool) -> Iterator[tuple[str, Iterable[tuple[int, int]]]]:
    """Whoever uses blocks of a pool, and which."""
    for engine in state.engines.values():
        if pool.name in engine.held:
            yield f"engine {engine.name!r}", engine.held[pool.name]
        for request in engine.requests.values() if engine.gpu_pool == pool.name else ():
            # the path, and not the table: where the request uses duplicates, the tree's blocks are pinned as well
            path = tuple(span for node in tree.path_nodes(request.leaf) for span in node.copies[pool.name].blocks)
            yield f"request {request.id!r} of engine {engine.name!r}", (*path, *private_ranges(request))
    for transfer in state.transfers.values():
        if transfer.destination == pool.name:
            yield f"transfer {transfer.id!r}", transfer.quarantine
    for send in state.sends.values():
        if send.destination == pool.name:
            yield f"send {send.id!r}", send.quarantine


def _evictions_above(state: State, pool: Pool, size: int) -> list[CopyEvicted]:
    """Evictions, leaf first, of everything that lies on or hangs below a block that a pool of `size` would not have."""
    kept = _kept(state, pool, size)
    losing = sorted((state.nodes[node_id] for node_id in kept), key=lambda node: (-node.end, node.id))
    return [
        CopyEvicted(
            pool.name, tree.place(state, node), node.end, ranges.split(node.copies[pool.name].blocks, kept[node.id])[1]
        )
        for node in losing
    ]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _kept(state: State, pool: Pool, size: int) -> dict[int, int]:
    """Per node that would lose blocks to a pool of `size`, because of its own ids or of those above it: what it keeps."""
    kept: dict[int, int] = {}
    for node in sorted(state.nodes.values(), key=lambda node: (node.start, node.id)):
        copy = node.copies.get(pool.name)
        if copy is None:
            continue
        if node.parent is not None and node.parent.id in kept:
            kept[node.id] = 0
            continue
        below = 0
        for start, count in copy.blocks:
            if start + count > size:
                kept[node.id] = below + max(0, size - start)
                break
            below += count
    return kept
