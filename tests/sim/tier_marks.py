"""What interesting things happened between the tiers: counted from the facts and the account, as they land.

Owns the marks that a campaign with two tiers must show. Judges nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from events import facts as f
from tests.sim.accounts import listed

if TYPE_CHECKING:
    from tests.sim.accounts import Moving
    from tests.sim.world import World


class TierMarks:
    """Looks at the account before and after each fact."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._makers: dict[bytes, str] = {}
        self._watermark = False
        self._before_clearing: set[str] = set()
        self._ending: Moving | None = None
        self._cancelled = 0
        self._standing: set[bytes] = set()

    def before(self, facts: Sequence[f.Fact], number: int) -> None:
        fact = facts[number]
        self._cancelled = self._count_cancelled()
        match fact:
            case f.PolicyChosen():
                self._watermark = fact.free_low > 0
            case f.TransferStarted():
                self._started(fact, facts[:number])
            case f.CopyEvicted():
                self._evicted(fact)
            case f.TransferFinished():
                self._ends(fact)
            case f.TransferCancelled():
                moving = self._world.ledger.moving.get(fact.transfer)
                known = moving is not None and not moving.cancelled
                self._mark(f"cancelled: {moving.kind}" if moving is not None and known else "cancelled too late")
            case f.CacheCleared():
                self._mark("cleared with blocks in quarantine", bool(self._world.ledger.moving))
                self._before_clearing.update(self._world.ledger.moving)
            case f.EngineLeft() | f.EngineLost():
                if self._of(fact.engine):
                    self._mark("an engine goes with transfers under way")
            case f.EngineJoined():
                if self._of(fact.engine):
                    self._mark("a new life among transfers of the old one")

    def after(self, fact: f.Fact) -> None:
        world = self._world
        match fact:
            case f.PathExtended():
                for at in range(0, len(fact.hashes), f.BLOCK_HASH_BYTES):
                    self._makers.setdefault(fact.hashes[at : at + f.BLOCK_HASH_BYTES], fact.engine)
            case f.PrefixMatched():
                request = world.ledger.requests[fact.engine, fact.request]
                cached = world.ledger.pools[request.pool].cached
                if any(cached[block].filling for block in request.path):
                    self._mark("joined a swap-in under way")
                if any(cached[block].leaving for block in request.path):
                    self._mark("matched what is leaving")
            case f.TransferFinished():
                self._ended(fact)
            case f.TransferCancelled():
                if self._count_cancelled() > self._cancelled + 1:
                    self._mark("a cut cancels another transfer")

    def _started(self, fact: f.TransferStarted, before: Sequence[f.Fact]) -> None:
        self._mark(f"started: {fact.kind}")
        reason = [each for each in before if not isinstance(each, f.CopyEvicted | f.TransferStarted)]
        if fact.kind == "swap_out" and self._watermark and reason and isinstance(reason[-1], f.BlocksAllocated):
            self._mark("watermark swap-out")
        if fact.kind == "swap_in":
            source = self._world.ledger.pools[fact.source].cached
            blocks = set(listed(fact.source_blocks))
            makers = {self._makers[name] for name, cached in source.items() if cached.block in blocks}
            self._mark("fetched what another engine computed", makers != {fact.engine})
            self._mark("fetched into the place of what the host has too", isinstance(before[-1], f.CopyEvicted))

    def _evicted(self, fact: f.CopyEvicted) -> None:
        ledger = self._world.ledger
        pool, blocks = ledger.pools[fact.pool], set(listed(fact.blocks))
        going = {name: cached for name, cached in pool.cached.items() if cached.block in blocks}
        if pool.tier == "cpu":
            self._mark("host eviction")
            left = pool.cached.keys() - going.keys()
            self._mark("host eviction: the leaf goes, its parent stays", any(c.parent in left for c in going.values()))
        elif any(life.host for life in ledger.engines.values() if life.pool == fact.pool):
            hosts = {name for host in ledger.pools.values() if host.tier == "cpu" for name in host.cached}
            self._mark("dropped: the host has it" if going.keys() <= hosts else "dropped: the host has it not")

    def _ends(self, fact: f.TransferFinished) -> None:
        ledger = self._world.ledger
        self._ending = moving = ledger.moving.get(fact.transfer)
        if moving is None:
            return
        self._mark("a transfer outlives its engine", not ledger.engines[moving.engine].alive)
        if moving.cancelled:
            self._mark("quarantine ended")
            self._mark("a late result after a clearing", fact.transfer in self._before_clearing)
            self._mark("a late result after a cancel", fact.ok)
            self._mark("a late failure after a cancel", not fact.ok)
            return
        self._mark(f"{'done' if fact.ok else 'failed'}: {moving.kind}")
        self._standing = {
            name for request in ledger.requests.values() if request.pool == moving.source for name in request.path
        }
        pool = ledger.pools[moving.destination]
        above = ledger.before[moving.hashes[0]][0]
        if fact.ok and moving.kind == "swap_in" and above is not None and pool.cached[above].filling is not None:
            self._mark("filled below what is still coming")

    def _ended(self, fact: f.TransferFinished) -> None:
        moving, ledger = self._ending, self._world.ledger
        if moving is None or moving.cancelled:
            return
        if fact.ok and moving.kind == "swap_out":
            stayed = [name for name in moving.hashes if name in ledger.pools[moving.source].cached]
            self._mark("rescue", not self._standing.isdisjoint(stayed))
            self._mark("left the pool", len(stayed) < len(moving.hashes))
        if self._count_cancelled() > self._cancelled:
            self._mark("a cut cancels another transfer")

    def _count_cancelled(self) -> int:
        return sum(moving.cancelled for moving in self._world.ledger.moving.values())

    def _of(self, engine: str) -> bool:
        return any(moving.engine == engine for moving in self._world.ledger.moving.values())

    def _mark(self, mark: str, holds: bool = True) -> None:
        self._world.marks[mark] += holds
