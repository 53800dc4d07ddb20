"""Is it the right decision, and is the state what the facts say? Asked of every commit, fact by fact, as it lands.

Owns the replica that evolves fact by fact beside the independent account (`ledger.py`), and the comparison of the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from events.facts import (
    BlocksAllocated,
    CopyEvicted,
    Fact,
    HistoryLost,
    PathExtended,
    PathReady,
    PoolAdded,
    PrefixMatched,
    TransferFinished,
)
from events.ports import Entry
from statecore import invariants, ranges, tree
from statecore.evolve import evolve
from statecore.replica import Replica
from statecore.state import State, request_table
from tests.sim import known
from tests.sim.accounts import Intent, listed, require
from tests.sim.moves import TieredLedger

if TYPE_CHECKING:
    from tests.sim.world import World


class Checker:
    """Sees every commit land. `replica` is at the end of the log."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.replica = Replica()

    def judge(
        self, known: TieredLedger, entry: Entry, asked: list[Intent | None], *, exact: bool, said_ready: frozenset[str]
    ) -> None:
        """Was it the right decision, on what its writer knew?"""
        marks = self._world.marks
        evicted = 0
        for fact, intent in zip(entry.facts, asked, strict=True):
            match fact:
                case PrefixMatched():
                    assert intent is not None
                    depth, foreign = known.longest(fact.engine, intent.hashes, intent.limit)
                    marks["foreign pending stop"] += foreign
                    marks["hit"] += fact.depth > 0
                    require(
                        fact.depth == depth or (fact.depth < depth and not exact),
                        "the longest prefix is found",
                        (fact, depth),
                    )
                case CopyEvicted():
                    pool, blocks = known.pools[fact.pool], listed(fact.blocks)
                    used = {each.used for each in pool.cached.values() if each.block in blocks}
                    require(used == {known.next_to_go(fact.pool)}, "the least recently used goes first", (fact, used))
                    evicted += len(blocks) if pool.tier == "gpu" else 0
                case BlocksAllocated():
                    free = sorted(known.pools[fact.pool].free)
                    given = listed(fact.blocks)
                    require(given == free[: len(given)], "lowest ids are given first", (fact, free))
                    needed = known.moves(fact.pool) or not evicted or len(given) == len(free)
                    require(needed, "no more is evicted than is missing", fact)
                    evicted = 0
                case PathExtended():
                    marks["duplicate extension"] += bool(fact.duplicates)
            known.enter(fact, intent, said_ready)

    def apply(self, entry: Entry, number: int, intent: Intent | None, said_ready: frozenset[str]) -> None:
        """Enter one fact of an entry everywhere, and compare."""
        world, state, fact = self._world, self.replica.state, entry.facts[number]
        marks = world.marks
        nodes = len(state.nodes)
        marks[type(fact).__name__] += 1
        if isinstance(fact, CopyEvicted):
            marks["eviction of a partial run"] += _is_partial(state, fact)
        world.tier_marks.before(entry.facts, number)
        evolve(state, fact)
        marks["split"] += isinstance(fact, PrefixMatched) and len(state.nodes) > nodes
        world.ledger.enter(fact, intent, said_ready)
        if isinstance(fact, PoolAdded):
            world.contents.sizes[fact.pool] = (fact.tier, fact.blocks)
        world.tier_marks.after(fact)
        if isinstance(fact, HistoryLost) and not known.PINS_OF_THE_SILENT:
            world.contents.mend()
        broken = invariants.violations(state)
        require(not broken, "the invariants hold", (fact, broken))
        self._compare(state, fact)
        if isinstance(fact, PathReady | TransferFinished):
            world.contents.check_ready()

    def _compare(self, state: State, fact: Fact) -> None:
        """The machine's state is what the ledger says."""
        ledger = self._world.ledger
        for name, pool in state.pools.items():
            memory = ledger.pools[name]
            require(set(ranges.ids(tuple(pool.free))) == memory.free, "free blocks are as counted", (fact, name))
            require(pool.unpinned == ledger.idle(name), "evictable blocks are as counted", (fact, name))
            ledger.owners(name)
            cached = {}
            for node in state.nodes.values():
                copy = node.copies.get(name)
                if copy is not None:
                    for place, block in enumerate(ranges.ids(copy.blocks)):
                        block_hash = node.hashes[place * 16 : place * 16 + 16]
                        cached[block_hash] = (block, copy.pending, copy.filling, copy.leaving)
            expected = {
                block_hash: (each.block, each.pending, each.filling, each.leaving)
                for block_hash, each in memory.cached.items()
            }
            require(cached == expected, "cached blocks are as counted", (fact, name))
        for engine in state.engines.values():
            told = [engine.requests_seen, engine.requests_hit, engine.prompt_tokens]
            told += [engine.matched_tokens, engine.host_tokens]
            counted = ledger.engines[engine.name].served
            blocks = [counted.found * state.block_size, counted.fetched * state.block_size]
            require(
                told == [counted.requests, counted.hits, counted.asked, *blocks], "counters are as counted", engine.name
            )
            for request in engine.requests.values():
                table = ranges.ids(request_table(request, engine.gpu_pool))
                require(table == ledger.table(engine.name, request.id), "tables are as counted", (fact, request.id))
        live = {(engine.name, name) for engine in state.engines.values() for name in engine.requests}
        require(live == ledger.requests.keys(), "requests are as counted", fact)
        moving = [
            (each.id, each.kind, each.cancelled, ranges.ids(each.quarantine)) for each in state.transfers.values()
        ]
        wanted = [
            (name, each.kind, each.cancelled, list(each.blocks) if each.cancelled else [])
            for name, each in ledger.moving.items()
        ]
        require(moving == wanted, "transfers are as counted", (fact, moving, wanted))
        require(state.ignored_finishes == ledger.ignored, "late results are counted", fact)


def _is_partial(state: State, fact: CopyEvicted) -> bool:
    """Whether only a part of a run goes."""
    node, left = tree.node_at(state, fact.node, fact.depth), ranges.count(fact.blocks)
    while left > 0:
        left -= node.end - node.start
        assert node.parent is not None
        node = node.parent
    return left < 0
