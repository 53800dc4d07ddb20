"""An independent account of one index, block by block, kept from the facts alone.

Owns the naive truth that the machine is compared with: no runs, no nodes, no refs, no eviction order. A pool is a
dictionary from block hash to block id; a hash commits to everything before it, so the dictionary is the prefix tree.
Shares no code with `statecore`. What a fact may not do is asserted here in the plainest words. What transfers do is in
`moves.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

import attrs

from events import facts as f
from tests.sim.accounts import Cached, Intent, Life, Live, Memory, Moving, Served, cut, listed, require


class Ledger:
    """The account.

    Attributes:
        commit: the number of the commit being entered.
        moving: transfers under way, oldest first.
        before: block hash -> the one before it, and its depth; true for ever, so shared by all copies.
        paused: whether no request may begin.
        ignored: results and cancellations that came for transfers that were over.
    """

    def __init__(self) -> None:
        self.commit = 1
        self.pools: dict[str, Memory] = {}
        self.engines: dict[str, Life] = {}
        self.requests: dict[tuple[str, str], Live] = {}
        self.moving: dict[str, Moving] = {}
        self.before: dict[bytes, tuple[bytes | None, int]] = {}
        self.ignored = 0
        self.paused = False

    def copy(self) -> Self:
        new = type(self)()
        new.commit, new.ignored, new.before = self.commit, self.ignored, self.before
        new.moving, new.paused = dict(self.moving), self.paused
        new.pools = {name: pool.copy() for name, pool in self.pools.items()}
        new.engines = {name: life.copy() for name, life in self.engines.items()}
        new.requests = {key: request.copy() for key, request in self.requests.items()}
        return new

    # --- asking -----------------------------------------------------------------------------------------------------

    def longest(self, engine: str, hashes: bytes, limit: int | None) -> tuple[int, bool]:
        """How many blocks `engine` may use, and whether it was somebody else's unfinished block that ended it."""
        pool = self.pools[self.engines[engine].pool]
        wanted = cut(hashes)
        for depth, block in enumerate(wanted if limit is None else wanted[:limit]):
            found = pool.cached.get(block)
            if found is None:
                return depth, False
            if found.pending not in (None, engine):
                return depth, True
        return len(wanted) if limit is None else min(limit, len(wanted)), False

    def table(self, engine: str, request: str) -> list[int]:
        found = self.requests[engine, request]
        pool = self.pools[found.pool]
        path = [found.own.get(place, pool.cached[block].block) for place, block in enumerate(found.path)]
        return path + found.private

    def fetchable(self, engine: str, hashes: bytes, depth: int) -> int:
        """How many blocks after `depth` the engine's host has, and its own pool has not."""
        life = self.engines[engine]
        if life.host is None:
            return 0
        cached, host = self.pools[life.pool].cached, self.pools[life.host].cached
        wanted = cut(hashes)[depth:]
        for count, block in enumerate(wanted):
            if block in cached or block not in host or host[block].pending is not None:
                return count
        return len(wanted)

    def pinned(self, pool: str) -> set[bytes]:
        """What requests stand on, and what transfers read."""
        used = {block for request in self.requests.values() if request.pool == pool for block in request.path}
        for moving in self.moving.values():
            if moving.source == pool and not moving.cancelled:
                used.update(moving.hashes)
        return used

    def idle(self, pool: str) -> int:
        """Cached blocks that are there and that nobody pins."""
        pinned = self.pinned(pool)
        return sum(each.pending is None and name not in pinned for name, each in self.pools[pool].cached.items())

    def next_to_go(self, pool: str) -> int:
        """When what may be evicted first was last used: it is there, nobody pins it, nothing cached follows it."""
        cached, pinned = self.pools[pool].cached, self.pinned(pool)
        parents = {each.parent for each in cached.values()}
        return min(
            each.used
            for name, each in cached.items()
            if name not in pinned and name not in parents and each.pending is None
        )

    def owner_of(self, pool: str, block: int) -> str:
        return self.owners(pool)[block]

    def owners(self, pool: str) -> dict[int, str]:
        """Every block id of the pool and what it belongs to; a block in two places is a violation."""
        places: dict[int, str] = {}

        def put(blocks: Iterable[int], owner: str) -> None:
            for block in blocks:
                require(block not in places, "block in one place", f"{block}: {places.get(block)} and {owner}")
                places[block] = owner

        memory = self.pools[pool]
        put(memory.free, "free")
        put((cached.block for cached in memory.cached.values()), "cached")
        for name, life in self.engines.items():
            if life.pool == pool:
                put(life.held, f"engine {name}")
        for (engine, name), request in self.requests.items():
            if request.pool == pool:
                put([*request.own.values(), *request.private], f"request {name} of {engine}")
        for name, moving in self.moving.items():
            if moving.cancelled and moving.destination == pool:
                put(moving.blocks, f"quarantine {name}")
        require(places.keys() == set(range(memory.blocks)), "no block is lost", f"{memory.blocks}: {sorted(places)}")
        return places

    # --- entering ---------------------------------------------------------------------------------------------------

    def enter(self, fact: f.Fact, intent: Intent | None, said_ready: frozenset[str]) -> None:
        """Enter one fact.

        Args:
            intent: for a `PrefixMatched`, what the writer asked.
            said_ready: requests the writer itself declared ready in this commit.
        """
        match fact:
            case f.IndexCreated():
                require(not self.pools, "an index is created once")
            case f.PoolAdded():
                self.pools[fact.pool] = Memory(fact.tier, fact.blocks, set(range(fact.blocks)), {})
            case f.EngineJoined():
                before = self.engines.get(fact.engine)
                require(before is None or not before.alive, "a life ends before the next begins")
                require(fact.session == (before.session if before else 0) + 1, "sessions count up")
                life = Life(fact.session, True, fact.gpu_pool, fact.cpu_pool, fact.tensor_parallel_size)
                if before is not None:
                    life.started, life.served = before.started, before.served
                self.engines[fact.engine] = life
            case f.EngineLeft() | f.EngineLost():
                self._gone(fact.engine, fact.session)
            case f.PrefixMatched():
                assert intent is not None
                self._matched(fact, intent)
            case f.BlocksAllocated() | f.BlocksRecycled():
                self._moved(fact)
            case f.PathExtended():
                self._extended(fact)
            case f.PathReady():
                self._ready(fact, said_ready)
            case f.RequestReleased():
                freed = self._ended(fact.engine, fact.request)
                require(sorted(listed(fact.freed)) == sorted(freed), "release frees what is its own", (fact, freed))
            case f.CopyEvicted():
                self._evicted(fact)

    def _matched(self, fact: f.PrefixMatched, intent: Intent) -> None:
        require(not self.paused, "no request begins while service is paused", fact)
        path = cut(intent.hashes)[: fact.depth]
        require(len(path) == fact.depth, "a match is no longer than its prompt", fact)
        usable, _ = self.longest(fact.engine, intent.hashes, fact.depth)
        require(usable == fact.depth, "matched blocks are there and filled", (fact, usable))
        require((fact.engine, fact.request) not in self.requests, "a request begins once", fact)
        life = self.engines[fact.engine]
        had = life.served
        life.served = Served(
            had.requests + 1,
            had.hits + bool(path),
            had.asked + fact.prompt_tokens,
            had.found + len(path),
            had.fetched,
        )
        self.requests[fact.engine, fact.request] = Live(life.pool, path, intent.hashes)
        self._use(self.pools[life.pool], path)

    def _use(self, pool: Memory, path: Iterable[bytes]) -> None:
        for block_hash in path:
            pool.cached[block_hash] = attrs.evolve(pool.cached[block_hash], used=self.commit)

    def _moved(self, fact: f.BlocksAllocated | f.BlocksRecycled) -> None:
        free, blocks = self.pools[fact.pool].free, listed(fact.blocks)
        taken = isinstance(fact, f.BlocksAllocated)
        if taken:
            require(free.issuperset(blocks), "only free blocks are given", fact)
            free.difference_update(blocks)
        else:
            require(not free.intersection(blocks), "no block is freed twice", fact)
            free.update(blocks)
        if fact.request is None:
            held = self.engines[fact.engine].held
            require(taken or held.issuperset(blocks), "only the owner gives back", fact)
            held ^= set(blocks)
        else:
            request = self.requests[fact.engine, fact.request]
            if taken:
                request.private += blocks
            else:
                require(set(request.private).issuperset(blocks), "only the owner gives back", fact)
                request.private = [block for block in request.private if block not in blocks]

    def _extended(self, fact: f.PathExtended) -> None:
        request = self.requests[fact.engine, fact.request]
        pool = self.pools[request.pool]
        require(fact.depth == len(request.path), "a path grows at its end", fact)
        unfilled = [block for block in request.path if pool.cached[block].filling is not None]
        require(not unfilled, "no path grows over what is being brought", fact)
        adopted, duplicates = [], []
        for block_hash in cut(fact.hashes):
            own = request.private.pop(0)
            there = pool.cached.get(block_hash)
            parent = request.path[-1] if request.path else None
            self.before[block_hash] = (parent, len(request.path))
            if there is None:
                pool.cached[block_hash] = Cached(own, parent, fact.engine, self.commit, self.commit)
                adopted.append(own)
            else:
                require(there.pending in (None, fact.engine), "no path over another's unfinished block", fact)
                require(there.filling is None, "no path grows over what is being brought", fact)
                request.own[len(request.path)] = own
                self._use(pool, [block_hash])
                duplicates.append(own)
            request.path.append(block_hash)
        require(
            (listed(fact.adopted), listed(fact.duplicates)) == (adopted, duplicates), "the fact says what went", fact
        )

    def _ready(self, fact: f.PathReady, said_ready: frozenset[str]) -> None:
        request = self.requests[fact.engine, fact.request]
        pool = self.pools[request.pool]
        require(fact.depth <= len(request.path), "ready no further than the path", fact)
        for block_hash in request.path[: fact.depth]:
            cached = pool.cached[block_hash]
            if cached.pending is not None:
                require(cached.pending == fact.engine, "only its engine makes a block ready", fact)
                require(cached.filling is None, "only its transfer makes a block ready that is being brought", fact)
                require(
                    cached.commit < self.commit or fact.request in said_ready,
                    "no block is ready in the step that schedules it",
                    fact,
                )
                pool.cached[block_hash] = attrs.evolve(cached, pending=None)

    def _evicted(self, fact: f.CopyEvicted) -> None:
        pool = self.pools[fact.pool]
        by_block = {cached.block: block_hash for block_hash, cached in pool.cached.items()}
        gone = []
        pinned = self.pinned(fact.pool)
        for block in listed(fact.blocks):
            block_hash = by_block.get(block)
            require(block_hash is not None, "only cached blocks are evicted", fact)
            assert block_hash is not None
            require(block_hash not in pinned, "no block is evicted that somebody stands on or reads", fact)
            require(pool.cached[block_hash].pending is None, "no unfinished block is evicted", fact)
            gone.append(block_hash)
        self._drop(pool, gone)

    def _drop(self, pool: Memory, gone: Sequence[bytes]) -> None:
        for block_hash in gone:
            block = pool.cached.pop(block_hash).block
            require(block not in pool.free, "no block is freed twice", block)
            pool.free.add(block)
        orphans = [cached for cached in pool.cached.values() if cached.parent in gone]
        require(not orphans, "children go before their parents", orphans)

    def _gone(self, engine: str, session: int) -> None:
        life = self.engines[engine]
        require(life.alive and life.session == session, "the life that ends is the present one", (engine, session))
        for owner, request in sorted(self.requests):
            if owner == engine:
                self._ended(engine, request)
        self.pools[life.pool].free.update(life.held)
        life.alive = False
        life.held.clear()

    def _ended(self, engine: str, name: str) -> list[int]:
        request = self.requests.pop((engine, name))
        pool = self.pools[request.pool]
        self._use(pool, request.path)
        own = [*request.own.values(), *request.private]
        require(not pool.free.intersection(own), "no block is freed twice", (engine, name))
        pool.free.update(own)
        pinned = self.pinned(request.pool)
        unfinished = [
            block_hash
            for block_hash in request.path
            if block_hash not in pinned
            and pool.cached[block_hash].pending is not None
            and pool.cached[block_hash].filling is None
        ]
        freed = own + [pool.cached[block_hash].block for block_hash in unfinished]
        self._drop(pool, unfinished)
        return freed
