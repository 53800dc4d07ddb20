"""What transfers do to the account: the second tier's half of the ledger.

Owns the same naive truth as `ledger.py`: a transfer is a list of block hashes and of the blocks they go to. A block that is
read is pinned, a block that is written belongs to the transfer until every rank has said that it writes no more.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from events import facts as f
from tests.sim.accounts import Cached, Intent, Live, Memory, Moving, cut, listed, require
from tests.sim.ledger import Ledger

SWAP_IN, SWAP_OUT, WRITE_THROUGH = "swap_in", "swap_out", "write_through"


class TieredLedger(Ledger):
    """The account of an index with two tiers."""

    def enter(self, fact: f.Fact, intent: Intent | None, said_ready: frozenset[str]) -> None:
        match fact:
            case f.TransferStarted():
                self._started(fact)
            case f.TransferFinished():
                self._finished(fact)
            case f.TransferCancelled():
                moving = self.moving.get(fact.transfer)
                if moving is None or moving.cancelled:
                    self.ignored += 1
                else:
                    self._quarantine(fact.transfer)
            case f.ServicePaused() | f.ServiceResumed():
                require(
                    self.paused == isinstance(fact, f.ServiceResumed), "service is paused and resumed in turn", fact
                )
                self.paused = not self.paused
            case f.CacheCleared():
                self._cleared()
            case f.HistoryLost():
                self._history_lost(fact)
            case f.PoolDropped():
                self._dropped(fact)
            case _:
                super().enter(fact, intent, said_ready)

    def moves(self, pool: str) -> bool:
        """Whether a transfer from or to the pool is under way."""
        return any(pool in (moving.source, moving.destination) for moving in self.moving.values())

    def writer_of(self, pool: str, block: int) -> str | None:
        """The open transfer that may write this block."""
        for name, moving in self.moving.items():
            if moving.destination == pool and block in moving.blocks:
                return name
        return None

    def _started(self, fact: f.TransferStarted) -> None:
        life, source, destination = self.engines[fact.engine], self.pools[fact.source], self.pools[fact.destination]
        pools = (life.host, life.pool) if fact.kind == SWAP_IN else (life.pool, life.host)
        require((fact.source, fact.destination) == pools, "bytes move between the tiers of an engine", fact)
        require(life.alive, "who is gone starts nothing", fact)
        require(fact.transfer == f"{fact.engine}:{life.started}", "transfers count up", fact)
        life.started += 1
        by_block = {cached.block: block_hash for block_hash, cached in source.cached.items()}
        read, blocks = listed(fact.source_blocks), listed(fact.destination_blocks)
        require(all(block in by_block for block in read), "only cached blocks are moved", fact)
        hashes = tuple(by_block[block] for block in read)
        require(len(hashes) == len(blocks) == fact.end - fact.start > 0, "as many blocks come as go", fact)
        require(destination.free.issuperset(blocks), "bytes go to free blocks", fact)
        require(len(set(blocks)) == len(blocks), "bytes go to free blocks", fact)
        destination.free.difference_update(blocks)
        for place, (block_hash, block) in enumerate(zip(hashes, blocks, strict=True)):
            before, depth = self.before[block_hash]
            require(depth == fact.start + place, "a transfer moves the blocks it names", fact)
            require(not place or before == hashes[place - 1], "a transfer moves a piece of one path", fact)
            there = source.cached[block_hash]
            require(there.pending is None, "no unfinished block is moved", fact)
            require(there.leaving is None, "no block leaves twice", fact)
            require(block_hash not in destination.cached, "a pool holds a block once", fact)
            if fact.kind == SWAP_OUT:
                source.cached[block_hash] = attrs.evolve(there, leaving=fact.transfer)
            if destination.tier == "gpu":
                require(before is None or before in destination.cached, "parents come before their children", fact)
            destination.cached[block_hash] = Cached(
                block, before, fact.engine, self.commit, self.commit, filling=fact.transfer
            )
        self.moving[fact.transfer] = Moving(
            fact.kind, fact.engine, fact.source, fact.destination, fact.start, hashes, tuple(blocks)
        )
        if fact.kind == SWAP_IN:
            self._use(source, hashes)
            assert fact.request is not None
            self._lengthen(fact, self.requests[fact.engine, fact.request], hashes)

    def _lengthen(self, fact: f.TransferStarted, request: Live, hashes: tuple[bytes, ...]) -> None:
        require(len(request.path) == fact.start, "a path goes on at its end", fact)
        require(not request.private, "a path goes on before blocks of its own", fact)
        require(tuple(cut(request.wanted)[fact.start : fact.end]) == hashes, "what was asked for is brought", fact)
        request.path += hashes
        life = self.engines[fact.engine]
        had = life.served
        life.served = attrs.evolve(
            had, hits=had.hits + (fact.start == 0), found=had.found + len(hashes), fetched=had.fetched + len(hashes)
        )

    def _finished(self, fact: f.TransferFinished) -> None:
        moving = self.moving.get(fact.transfer)
        require(moving is not None, "a transfer finishes once", fact)
        assert moving is not None
        if moving.cancelled:
            del self.moving[fact.transfer]
            self._free(self.pools[moving.destination], moving.blocks)
        elif not fact.ok:
            self._take_back(fact.transfer)
            del self.moving[fact.transfer]
            self._free(self.pools[moving.destination], moving.blocks)
        else:
            del self.moving[fact.transfer]
            self._arrive(moving)

    def _arrive(self, moving: Moving) -> None:
        source, destination = self.pools[moving.source], self.pools[moving.destination]
        for block_hash in moving.hashes:
            destination.cached[block_hash] = attrs.evolve(destination.cached[block_hash], pending=None, filling=None)
        pinned = self.pinned(moving.source)
        for block_hash in reversed(moving.hashes):
            there = source.cached[block_hash]
            if there.leaving is None:
                continue
            source.cached[block_hash] = attrs.evolve(there, leaving=None)
            if block_hash not in pinned and not self._followed(source, block_hash):
                self._drop(source, [block_hash])

    def _cleared(self) -> None:
        """Nothing is cached any more. Blocks that a worker may still write are not free."""
        require(not self.requests, "nothing is cleared under a request", self.requests.keys())
        goes_on = [name for name, moving in self.moving.items() if not moving.cancelled]
        require(not goes_on, "what is under way is cancelled by a clearing", goes_on)
        for pool in self.pools.values():
            self._free(pool, [cached.block for cached in pool.cached.values()])
            pool.cached.clear()

    def _history_lost(self, fact: f.HistoryLost) -> None:
        """Nothing that nobody stands on is trusted any more."""
        goes_on = [name for name, moving in self.moving.items() if not moving.cancelled]
        require(not goes_on, "what is under way is cancelled when history is lost", (fact, goes_on))
        for name, pool in self.pools.items():
            pinned = self.pinned(name)
            while gone := [
                block_hash
                for block_hash, cached in pool.cached.items()
                if cached.pending is None and block_hash not in pinned and not self._followed(pool, block_hash)
            ]:
                self._drop(pool, gone)

    def _dropped(self, fact: f.PoolDropped) -> None:
        """The memory of a pool is gone; nobody works in it, and no bytes of it are on their way."""
        users = [name for name, life in self.engines.items() if life.alive and life.pool == fact.pool]
        require(not users, "no memory goes under a living engine", (fact, users))
        touching = [
            name
            for name, each in self.moving.items()
            if fact.pool in (each.source, each.destination) and not each.cancelled
        ]
        require(not touching, "what is under way is cancelled when its memory goes", touching)
        pool = self.pools[fact.pool]
        self._free(pool, [cached.block for cached in pool.cached.values()])
        pool.cached.clear()

    def _take_back(self, name: str) -> None:
        """Nothing arrives: what was to leave stays, what was to come is not in the pool."""
        moving = self.moving[name]
        source, destination = self.pools[moving.source], self.pools[moving.destination]
        if moving.kind == SWAP_IN:
            self._cut_back(name, moving, destination)
        for block_hash in moving.hashes:
            del destination.cached[block_hash]
            there = source.cached[block_hash]
            if there.leaving == name:
                source.cached[block_hash] = attrs.evolve(there, leaving=None)

    def _quarantine(self, name: str) -> None:
        self._take_back(name)
        self.moving[name] = attrs.evolve(self.moving[name], cancelled=True)

    def _cut_back(self, name: str, moving: Moving, pool: Memory) -> None:
        """Every path over what does not come ends before it; what hangs below goes too."""
        lost = set(moving.hashes)
        life = self.engines[moving.engine]
        had, count = life.served, len(moving.hashes)
        life.served = attrs.evolve(had, found=had.found - count, fetched=had.fetched - count)
        for request in self.requests.values():
            if request.pool == moving.destination and lost.intersection(request.path):
                gone = request.path[moving.start :]
                require(not any(place >= moving.start for place in request.own), "nothing of its own lies there", name)
                del request.path[moving.start :]
                self._use(pool, [block for block in gone if block not in lost])
        below = [block for block in pool.cached if block not in lost and lost.intersection(self._line(block))]
        for other in list(self.moving):
            each = self.moving[other]  # one above it may just have cancelled it
            if other != name and not each.cancelled and self._is_touched(each, moving.destination, below):
                self._quarantine(other)
        below = [block for block in below if block in pool.cached]
        pinned = self.pinned(moving.destination)
        require(not pinned.intersection(below), "nobody stands on what goes", (name, below))
        for block_hash in below:
            pool.free.add(pool.cached.pop(block_hash).block)

    def _is_touched(self, moving: Moving, pool: str, below: Iterable[bytes]) -> bool:
        return pool in (moving.source, moving.destination) and not set(moving.hashes).isdisjoint(below)

    def _line(self, block_hash: bytes) -> Iterable[bytes]:
        """What a block follows, from near to far."""
        before, _ = self.before[block_hash]
        while before is not None:
            yield before
            before, _ = self.before[before]

    def _followed(self, pool: Memory, block_hash: bytes) -> bool:
        return any(each.parent == block_hash for each in pool.cached.values())

    def _free(self, pool: Memory, blocks: Iterable[int]) -> None:
        require(pool.free.isdisjoint(blocks), "no block is freed twice", blocks)
        pool.free.update(blocks)
