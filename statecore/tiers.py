"""Deciding across tiers: what a victim becomes, what is fetched from the host, what is written there early.

Owns the policies. Reads only; transfers get their numbers in `decide.py`, when the decision is complete.
A GPU pool that needs room gives up its least recently used copies, leaf first:

| the victim                       | becomes                                                              |
|----------------------------------|----------------------------------------------------------------------|
| has a copy in the host pool too   | dropped at once: it can be fetched back                             |
| has none, the host can make room | swapped out: its blocks are free when the workers are done           |
| has none, the host cannot        | dropped                                                              |
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from events.facts import (
    BlockRanges,
    BlocksAllocated,
    CopyEvicted,
    Fact,
    PathReady,
    TransferStarted,
)
from statecore import ranges, tree
from statecore.eviction import Victim, choose_victims, eviction
from statecore.state import SWAP_IN, SWAP_OUT, WRITE_THROUGH, Engine, Node, Pool, Request, State, Transfer


@attrs.define(slots=True)
class Room:
    """What making room comes to.

    Attributes:
        facts: in order.
        freed: GPU blocks that are free as soon as the facts hold, as ranges.
        leaving: how many more will be when the transfers among the facts are done.
    """

    facts: list[TransferStarted | CopyEvicted] = attrs.Factory(list)
    freed: list[tuple[int, int]] = attrs.Factory(list)
    leaving: int = 0


def make_room(state: State, engine: Engine, deficit: int) -> Room:
    """Give up copies of `deficit` blocks of the engine's GPU pool, or as many as can go now."""
    pool = state.pools[engine.gpu_pool]
    host = _host(state, engine)
    room = Room()
    victims = choose_victims(state, pool, deficit)
    swapped: list[Victim] = []
    if host is not None:
        dirty = [victim for victim in victims if _is_to_be_written(victim.node, pool, host)]
        swapped, room.facts = _swap_out(state, engine, host, dirty, SWAP_OUT)
        room.leaving = sum(victim.count for victim in swapped)
    held: set[int] = set()  # nodes above one that stays for now: they cannot be dropped before it is gone
    for victim in victims:
        if victim in swapped or victim.node.id in held:
            assert victim.node.parent is not None
            held.add(victim.node.parent.id)
        else:
            room.facts.append(eviction(state, pool, victim))
            room.freed += victim.blocks
    return room


def reacts(state: State) -> bool:
    """Whether the index's policy ever adds to a decision."""
    return state.free_low > 0 or state.write_policy == WRITE_THROUGH


def react(state: State, facts: Sequence[Fact]) -> list[Fact]:
    """What the index's policy adds to a decision that has just been evolved. `facts` are the last of the commit so far."""
    added: list[Fact] = []
    first = len(state.places) - len(facts)
    for number, fact in enumerate(facts, first):
        if isinstance(fact, PathReady) and state.write_policy == WRITE_THROUGH:
            added += _write_through(state, state.engines[fact.engine], state.places[number])
            break  # one batch of host blocks a decision; what it leaves out is written at the next
        if isinstance(fact, BlocksAllocated) and state.free_low:
            added += _keep_watermark(state, state.engines[fact.engine])
            break
    return added


def _keep_watermark(state: State, engine: Engine) -> list[TransferStarted | CopyEvicted]:
    """Start swap-outs before the pool is empty."""
    pool, host = state.pools[engine.gpu_pool], _host(state, engine)
    available = pool.free.total + outgoing_blocks(state, pool)
    if host is None or available * 100 >= pool.blocks * state.free_low:
        return []
    wanted = -(-pool.blocks * state.free_high // 100) - available
    dirty = [victim for victim in choose_victims(state, pool, wanted) if _is_to_be_written(victim.node, pool, host)]
    return _swap_out(state, engine, host, dirty, SWAP_OUT)[1]


def _write_through(state: State, engine: Engine, leaf: Node | None) -> list[TransferStarted | CopyEvicted]:
    """Copies for what is ready on the path to `leaf`, where the host has none and can make room."""
    host = _host(state, engine)
    if host is None or leaf is None:
        return []
    fresh = [
        Victim(node, node.copies[engine.gpu_pool].blocks, node.end - node.start)
        for node in reversed(
            list(tree.path_nodes(leaf))
        )  # from the root: a suffix is of no use without what is before it
        if host.name not in node.copies and engine.gpu_pool in node.copies
    ]
    return _swap_out(state, engine, host, fresh, WRITE_THROUGH)[1]


def bring_in(state: State, engine: Engine, request: Request, hashes: bytes, limit: int) -> list[Fact]:
    """Fetch what follows a request's path from the host pool, as far as the GPU pool has room for it without waiting."""
    pool, host = state.pools[engine.gpu_pool], _host(state, engine)
    if host is None:
        return []
    start = end = request.path_blocks
    node, source = request.leaf, ranges.NONE
    for node, count in tree.host_match(request.leaf, start, host.name, pool.name, hashes, limit):
        blocks, _ = ranges.split(node.copies[host.name].blocks, count)
        source, end = ranges.join(source, blocks), end + count
    evicted: list[CopyEvicted] = []
    freed: list[tuple[int, int]] = []
    if end - start > pool.free.total:
        for victim in choose_victims(state, pool, end - start - pool.free.total):
            if not _is_clean(victim.node, host):
                break
            evicted.append(eviction(state, pool, victim))
            freed += victim.blocks
    count = min(end - start, pool.free.total + ranges.count(tuple(freed)))
    if count == 0:
        return []
    source, _ = ranges.split(source, count)
    destination, _ = ranges.split(ranges.merged([*pool.free.lowest(min(count, pool.free.total)), *freed]), count)
    while start + count <= node.start:
        assert node.parent is not None
        node = node.parent
    started = TransferStarted(
        transfer="",
        kind=SWAP_IN,
        engine=engine.name,
        request=request.id,
        node=tree.place(state, node),
        start=start,
        end=start + count,
        source=host.name,
        source_blocks=source,
        destination=pool.name,
        destination_blocks=destination,
    )
    return [*evicted, started]


def outgoing_blocks(state: State, pool: Pool) -> int:
    """Blocks of a GPU pool that will be free when the swap-outs under way are done, if nobody uses them again."""
    blocks = 0
    for transfer in state.transfers.values():
        if transfer.kind == SWAP_OUT and transfer.source == pool.name and not transfer.cancelled:
            blocks += sum(
                node.end - node.start
                for node in tree.path_nodes(transfer.node)
                if (copy := node.copies.get(pool.name)) is not None and copy.leaving == transfer.id and copy.refs == 1
            )
    return blocks


def soon_droppable_blocks(state: State, pool: Pool) -> int:
    """Blocks above copies that are leaving which the host holds too: dropped as soon as those are gone, if needed."""
    blocks = 0
    for transfer in state.transfers.values():
        if transfer.kind != SWAP_OUT or transfer.source != pool.name or transfer.cancelled:
            continue
        for node in tree.path_nodes(transfer.node):
            copy = node.copies.get(pool.name)
            if copy is None or copy.leaving == transfer.id:
                continue
            host = node.copies.get(transfer.destination)
            if not copy.unpinned or copy.branches != 1 or host is None or host.pending is not None:
                break
            blocks += node.end - node.start
    return blocks


def held_by_transfers(state: State, pool: Pool) -> int:
    """Blocks that nobody but a transfer holds: free or evictable when it ends."""
    blocks = 0
    for transfer in transfers_of(state, pool.name):
        if transfer.cancelled:
            blocks += ranges.count(transfer.quarantine) if transfer.destination == pool.name else 0
            continue
        for node in tree.path_nodes(transfer.node):
            if node.end <= transfer.start:
                break
            copy = node.copies[pool.name]
            own = 1 if transfer.source == pool.name else 0
            if copy.leaving is None and copy.refs == own:
                blocks += node.end - node.start
    return blocks


def transfers_of(state: State, pool: str) -> list[Transfer]:
    """Transfers under way from or to a pool, oldest first."""
    return [transfer for transfer in state.transfers.values() if pool in (transfer.source, transfer.destination)]


# --- inside ---------------------------------------------------------------------------------------------------------


def _host(state: State, engine: Engine) -> Pool | None:
    return None if engine.cpu_pool is None else state.pools[engine.cpu_pool]


def _is_clean(node: Node, host: Pool) -> bool:
    """Whether the host pool holds the node's bytes too, or is just getting them from another GPU pool."""
    return host.name in node.copies


def _is_to_be_written(node: Node, pool: Pool, host: Pool) -> bool:
    """Whether a victim goes to the host first. Not if that has failed before: a broken host must not stop the engine."""
    return not _is_clean(node, host) and not node.copies[pool.name].unwritable


def _host_room(state: State, host: Pool, wanted: int) -> tuple[list[CopyEvicted], BlockRanges]:
    """Evictions in the host pool, and `wanted` of its blocks that are free after them, or all that can be had."""
    victims = choose_victims(state, host, wanted - host.free.total)
    evicted = [eviction(state, host, victim) for victim in victims]
    pairs = list(host.free.lowest(min(wanted, host.free.total)))
    for victim in victims:
        pairs += victim.blocks
    return evicted, ranges.merged(pairs)


def _swap_out(
    state: State, engine: Engine, host: Pool, victims: list[Victim], kind: str
) -> tuple[list[Victim], list[TransferStarted | CopyEvicted]]:
    """Transfers to the host for as many of `victims` as it can take, after the evictions there that this needs."""
    left = host.free.total + host.unpinned
    taken = []
    for victim in victims:
        if victim.count <= left:
            taken.append(victim)
            left -= victim.count
    evicted, free = _host_room(state, host, sum(victim.count for victim in taken))
    while ranges.count(free) < sum(victim.count for victim in taken):  # what is unpinned may lie above what is not
        taken.pop()
        evicted, free = _host_room(state, host, sum(victim.count for victim in taken))
    if not taken:
        return [], []
    facts: list[TransferStarted | CopyEvicted] = [*evicted]
    for stretch in _stretches(taken):
        lowest = stretch[0].node
        source = ranges.NONE
        for victim in reversed(stretch):
            source = ranges.join(source, victim.blocks)
        destination, free = ranges.split(free, ranges.count(source))
        facts.append(
            TransferStarted(
                transfer="",
                kind=kind,
                engine=engine.name,
                request=None,
                node=tree.place(state, lowest),
                start=lowest.end - ranges.count(source),
                end=lowest.end,
                source=engine.gpu_pool,
                source_blocks=source,
                destination=host.name,
                destination_blocks=destination,
            )
        )
    return taken, facts


def _stretches(victims: list[Victim]) -> list[list[Victim]]:
    """Victims that follow each other on a path, lowest first: one transfer carries them, and not one each."""
    by_node = {victim.node.id: victim for victim in victims}
    stretches: list[list[Victim]] = []
    gone: set[int] = set()
    for victim in sorted(victims, key=lambda victim: -victim.node.end):
        if victim.node.id in gone:
            continue
        stretch = [victim]
        above: Victim | None = victim
        while above is not None:
            gone.add(above.node.id)
            node, whole = above.node, above.count == above.node.end - above.node.start
            above = by_node.get(node.parent.id) if whole and node.parent is not None else None
            if above is not None and above.node.id in gone:
                above = None
            if above is not None:
                stretch.append(above)
        stretches.append(stretch)
    return stretches
