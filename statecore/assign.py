"""Which blocks an engine gets, gives back, or hands over: facts, or a rejection. Reads only.

Owns the choice of block ids (lowest first), how much is evicted for them (the deficit, no more), and the checks of
ownership: nothing is freed, adopted or sent that the caller does not own.
"""

from __future__ import annotations

from collections.abc import Sequence

from events.facts import BlockRanges, BlocksAllocated, BlocksRecycled, CopyEvicted, Fact, SendStarted
from statecore import ranges, sends, tree
from statecore.commands import Adopt, Allocate, AllocateHost, MakeRoom, Recycle, Send
from statecore.decision import Decision, computed_meanwhile, engine_of, pool_of, request_of
from statecore.eviction import choose_victims, eviction
from statecore.rejections import (
    ForeignBlocks,
    NeverFits,
    NotReceivable,
    PathNotFilled,
    PoolExhausted,
    Rejection,
    Sending,
    UnknownRequest,
)
from statecore.state import CPU, GPU, Pool, State, private_ranges, request_table
from statecore.tiers import held_by_transfers, make_room, outgoing_blocks, soon_droppable_blocks, transfers_of


def allocate(state: State, command: Allocate) -> Decision:
    engine = engine_of(state, command.engine)
    if isinstance(engine, Rejection):
        return engine
    facts: list[Fact] = []
    has = 0
    if command.request is not None:
        request = engine.requests.get(command.request)
        if request is None:
            return UnknownRequest(engine.name, command.request)
        has = request.path_blocks + ranges.count(private_ranges(request))
        facts += computed_meanwhile(state, engine, request)
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


def allocate_host(state: State, command: AllocateHost) -> Decision:
    engine = engine_of(state, command.engine)
    pool = engine if isinstance(engine, Rejection) else pool_of(state, engine, CPU)
    if isinstance(pool, Rejection):
        return pool
    if command.blocks > pool.blocks:
        return NeverFits(pool.name, command.blocks, 0, pool.blocks)
    facts: list[Fact] = [*_host_evictions(state, pool, command.blocks)]
    freed = [span for fact in facts if isinstance(fact, CopyEvicted) for span in fact.blocks]
    if command.blocks > pool.free.total + ranges.count(tuple(freed)):
        return PoolExhausted(pool.name, command.blocks, pool.free.total, pool.unpinned, pool.blocks)
    blocks, _ = ranges.split(ranges.merged([*pool.free, *freed]), command.blocks)
    return [*facts, BlocksAllocated(command.engine, None, pool.name, blocks)]


def make_room_for(state: State, command: MakeRoom) -> Decision:
    engine = engine_of(state, command.engine)
    if isinstance(engine, Rejection):
        return engine
    pool = pool_of(state, engine, command.tier)
    if isinstance(pool, Rejection):
        return pool
    if command.tier == GPU:
        coming = outgoing_blocks(state, pool) + soon_droppable_blocks(state, pool)
        return make_room(state, engine, command.blocks - pool.free.total - coming).facts
    return _host_evictions(state, pool, command.blocks)


def adopt(state: State, command: Adopt) -> Decision:
    found = request_of(state, command.engine, command.request)
    if isinstance(found, Rejection):
        return found
    engine, request = found
    pool = state.pools[engine.gpu_pool]
    listed = ranges.ids(command.blocks)
    foreign = _foreign(listed, tuple(engine.held.get(pool.name, ())))
    if foreign:
        return ForeignBlocks(pool.name, f"engine {engine.name!r}", foreign)
    if not listed:
        return []
    if state.sends and (writing := sends.writing(state, pool.name, command.blocks)):
        return PathNotFilled(request.id, writing[0].id)
    if (reading := sends.reading(state, pool.name, command.blocks)) is not None and reading.request != request.id:
        return Sending(reading.id, reading.receiver)  # on another request's path nothing would hold them
    return [
        *computed_meanwhile(state, engine, request),
        BlocksRecycled(engine.name, None, pool.name, ranges.of_ids(sorted(listed))),
        BlocksAllocated(engine.name, request.id, pool.name, command.blocks),
    ]


def recycle(state: State, command: Recycle) -> Decision:
    engine = engine_of(state, command.engine)
    if isinstance(engine, Rejection):
        return engine
    pool = pool_of(state, engine, command.tier)
    if isinstance(pool, Rejection):
        return pool
    if command.request is None:
        owner, owned = f"engine {engine.name!r}", tuple(engine.held.get(pool.name, ()))
    else:
        request = engine.requests.get(command.request)
        if request is None:
            return UnknownRequest(engine.name, command.request)
        owner, owned = f"request {request.id!r}", request.private if command.tier == GPU else ranges.NONE
    given = ranges.ids(command.blocks)
    foreign = _foreign(given, owned)
    if foreign:
        return ForeignBlocks(pool.name, owner, foreign)
    if not given:
        return []
    ended: list[Fact] = []
    if state.sends:
        if (reading := sends.reading(state, pool.name, command.blocks)) is not None:
            return Sending(reading.id, reading.receiver)
        ended += sends.given_up(state, pool.name, command.blocks)
    return [*ended, BlocksRecycled(engine.name, command.request, pool.name, ranges.of_ids(sorted(given)))]


def send(state: State, command: Send) -> Decision:
    engine = engine_of(state, command.engine)
    if isinstance(engine, Rejection):
        return engine
    receiver = state.engines.get(command.receiver)
    if receiver is None or not receiver.alive:
        return NotReceivable(command.receiver, "it is not there")
    if receiver.gpu_pool == engine.gpu_pool:
        return NotReceivable(receiver.name, f"it has the same pool {engine.gpu_pool!r}, nothing needs to be copied")
    if receiver.tensor_parallel_size != engine.tensor_parallel_size:
        ranks = f"{receiver.tensor_parallel_size} ranks, the sender {engine.tensor_parallel_size}"
        return NotReceivable(receiver.name, f"its blocks are split over {ranks}")
    sent = engine.requests.get(command.request)
    readable = ranges.NONE if sent is None else request_table(sent, engine.gpu_pool)
    if sent is not None and (filling := tree.filling_on(sent.leaf, engine.gpu_pool)) is not None:
        return PathNotFilled(sent.id, filling)  # should that fail, its blocks go
    writable = tuple(span for request in receiver.requests.values() for span in private_ranges(request))
    for owner, owned, blocks in ((engine, readable, command.source), (receiver, writable, command.destination)):
        held = tuple(owner.held.get(owner.gpu_pool, ()))
        if foreign := _foreign(ranges.ids(blocks), (*owned, *held)):
            whose = f"request {command.request!r} or engine {owner.name!r} itself"
            return ForeignBlocks(owner.gpu_pool, whose, foreign)
    if writing := sends.writing(state, receiver.gpu_pool, command.destination):
        return NotReceivable(receiver.name, f"transfer {writing[0].id!r} is writing some of these blocks")
    return [
        SendStarted(
            "", engine.name, command.request, receiver.name,
            engine.gpu_pool, command.source, receiver.gpu_pool, command.destination,
        )
    ]  # fmt: skip


# --- inside ---------------------------------------------------------------------------------------------------------


def _foreign(given: Sequence[int], owned: BlockRanges) -> tuple[int, ...]:
    """Those of `given` that are not in `owned`, or are named twice."""
    left = set(ranges.ids(owned))
    foreign = []
    for block in given:
        if block in left:
            left.discard(block)
        else:
            foreign.append(block)
    return tuple(foreign)


def _host_evictions(state: State, pool: Pool, wanted: int) -> list[CopyEvicted]:
    return [eviction(state, pool, victim) for victim in choose_victims(state, pool, wanted - pool.free.total)]
