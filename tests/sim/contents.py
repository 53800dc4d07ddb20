"""The bytes: what every block of every pool holds on every rank, and who may write them.

Owns a model of all memories and the promises about it. The pattern of a block's hash stands for its bytes. A store does
what `workers/store.py` says, one block at a time; an engine's device stream computes blocks in order, some time after it
was told that they are its own.

| always                                                                  | else                                   |
|-------------------------------------------------------------------------|----------------------------------------|
| a cached block that is there holds what its hash says, on every rank     | answers from somebody else's prompt    |
| an engine writes blocks of its own requests only                        | a transfer or another engine loses bytes |
| a worker writes blocks of an open transfer that its rank has not reported | somebody else's bytes are overwritten  |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import attrs

from events import limits
from events.facts import BlockRanges
from events.ports import Base
from statecore.ranges import ids
from tests.sim.accounts import require
from workers.block_moves import plan
from workers.layout import CacheLayout
from workers.pattern import pattern
from workers.store import MemoryGone, PoolMemory

if TYPE_CHECKING:
    from tests.sim.world import World

LAYOUT: Final = CacheLayout(layers=1, num_blocks=1, block_shape=(4,), dtype="float16")
NOTHING: Final = bytes(LAYOUT.bytes_per_block)
_patterns: dict[bytes, bytes] = {}


def bytes_of(block_hash: bytes) -> bytes:
    """What a block of this hash holds."""
    if block_hash not in _patterns:
        if len(_patterns) > 10_000:
            _patterns.clear()
        _patterns[block_hash] = pattern(LAYOUT, block_hash).tobytes()
    return _patterns[block_hash]


def scratch(owner: str) -> bytes:
    """What a half-computed block of an engine holds: nobody's hash."""
    return owner.encode().ljust(len(NOTHING), b"~")[: len(NOTHING)]


@attrs.frozen
class Write:
    """One block that a device has still to compute.

    Attributes:
        due: when it is done at the latest.
        base, session: the history and the life it was given in.
    """

    block: int
    content: bytes
    due: float
    base: Base
    session: int


class Owner(Protocol):
    """Whose device it is."""

    @property
    def pool(self) -> str: ...

    def goes_by(self) -> tuple[Base, int]: ...

    def may_write(self, write: Write) -> bool: ...


class Contents:
    """All memories of one world.

    Attributes:
        reported: (transfer, rank) of reports that the server has.
        sizes: tier and blocks of every pool that ever was.
        gone: pools whose memory ended with the last process that had it, until another one brings new memory.
    """

    def __init__(self, world: World, ranks: int) -> None:
        self.world = world
        self.ranks = ranks
        self.sizes: dict[str, tuple[str, int]] = {}
        self.gone: set[str] = set()
        self.reported: set[tuple[str, int]] = set()
        self._holds: dict[tuple[str, int, int], bytes] = {}

    def read(self, pool: str, rank: int, block: int) -> bytes:
        return self._holds.get((pool, rank, block), NOTHING)

    def put(self, pool: str, rank: int, block: int, content: bytes) -> None:
        self._holds[pool, rank, block] = content

    def store(self, rank: int) -> SimulatedStore:
        return SimulatedStore(self, rank)

    def check_ready(self) -> None:
        """Whatever is cached and there holds what its hash says."""
        for name, pool in self.world.ledger.pools.items():
            for block_hash, cached in pool.cached.items() if name not in self.gone else ():
                if cached.pending is None:
                    self.check(name, cached.block, block_hash, "what is ready holds its bytes")

    def check(self, pool: str, block: int, block_hash: bytes, promise: str) -> None:
        expected = bytes_of(block_hash)
        for rank in range(self.ranks):
            found = self.read(pool, rank, block)
            well = found == expected
            require(well, promise, "" if well else (pool, block, rank, self.told(found)))

    def check_engine_may_write(self, engine: str, pool: str, block: int) -> None:
        """Its own requests' blocks, those it holds, and those of its path that it is computing."""
        ledger = self.world.ledger
        owner = ledger.owner_of(pool, block)
        if owner == "cached":
            (cached,) = [each for each in ledger.pools[pool].cached.values() if each.block == block]
            mine = cached.pending == engine and cached.filling is None
        else:
            mine = owner == f"engine {engine}" or (owner.startswith("request ") and owner.endswith(f" of {engine}"))
        require(mine, "an engine writes its own blocks only", (engine, pool, block, owner))

    def mend(self) -> None:
        """Every cached block holds its bytes again, whoever has overwritten them. See `known.py`."""
        for name, pool in self.world.ledger.pools.items():
            for block_hash, cached in pool.cached.items() if name not in self.gone else ():
                if cached.pending is None:
                    for rank in range(self.ranks):
                        self.put(name, rank, cached.block, bytes_of(block_hash))
        for transfer, rank in self.reported:
            moving = self.world.ledger.moving.get(transfer)
            if moving is not None and not moving.cancelled:
                for block_hash, block in zip(moving.hashes, moving.blocks, strict=True):
                    self.put(moving.destination, rank, block, bytes_of(block_hash))

    def vanishes(self, pool: str) -> None:
        """The last process that had this memory has ended."""
        self.gone.add(pool)
        _, blocks = self.sizes[pool]
        for block in range(blocks):
            for rank in range(self.ranks):
                self.put(pool, rank, block, NOTHING)

    def check_worker_may_write(self, transfer: str, rank: int, pool: str, block: int, life: str) -> None:
        """`life` of the server in which it took its job."""
        if life != self.world.log.life:
            require(
                not self.world.server.open, "who works for a vanished history has stopped when the log opens", transfer
            )
            return
        require((transfer, rank) not in self.reported, "no rank copies after its report", (transfer, rank, block))
        writer = self.world.ledger.writer_of(pool, block)
        require(writer == transfer, "a worker writes blocks of its transfer only", (transfer, rank, block, writer))

    def told(self, content: bytes) -> str:
        """For people: whose bytes these are."""
        for block_hash, known in _patterns.items():
            if known == content:
                return f"the bytes of {block_hash.hex()}"
        return repr(content)


class SimulatedStore:
    """Implements `workers.store.BlockStore` for one rank over the modelled memory; the pools are always there."""

    def __init__(self, contents: Contents, rank: int) -> None:
        self._contents = contents
        self._rank = rank

    def create(self, pool: str, tier: str, layout: CacheLayout) -> PoolMemory:
        return PoolMemory(pool, tier, layout, incarnation="0" * 32, created=False)

    def attach(self, pool: str, layout: CacheLayout | None = None, *, incarnation: str | None = None) -> PoolMemory:
        return PoolMemory(pool, self._tier(pool), layout or self._layout(pool), incarnation or "0" * 32, created=False)

    def copy(
        self,
        source_pool: str,
        destination_pool: str,
        source_blocks: BlockRanges,
        destination_blocks: BlockRanges,
    ) -> int:
        source, destination = self._layout(source_pool), self._layout(destination_pool)
        same = source_pool == destination_pool
        plan(source, destination, source_blocks, destination_blocks, same_pool=same)
        pairs = list(zip(ids(source_blocks), ids(destination_blocks), strict=True))
        for from_, to in pairs:
            self.write(destination_pool, to, self.read(source_pool, from_))
        return len(pairs) * LAYOUT.bytes_per_block

    def read(self, pool: str, block: int) -> bytes:
        return self._contents.read(pool, self._rank, block)

    def write(self, pool: str, block: int, content: bytes) -> None:
        self._contents.put(pool, self._rank, block, content)

    def fill(self, pool: str, block: int, block_hash: bytes) -> None:
        self.write(pool, block, bytes_of(block_hash))

    def matches(self, pool: str, block: int, block_hash: bytes) -> bool:
        return self.read(pool, block) == bytes_of(block_hash)

    def unlink(self, pool: str) -> bool:
        raise AssertionError(f"nobody removes {pool} here")

    def close(self) -> None:
        """The memory stays."""

    def _layout(self, pool: str) -> CacheLayout:
        if pool not in self._contents.sizes:
            raise MemoryGone(f"pool {pool!r} has no memory")
        return CacheLayout(LAYOUT.layers, self._contents.sizes[pool][1], LAYOUT.block_shape, LAYOUT.dtype)

    def _tier(self, pool: str) -> str:
        return self._contents.sizes[pool][0]


class DeviceStream:
    """The order in which one engine's device computes: blocks it was told are its own, filled some time later.

    What was given to a device cannot be called back; it is done `DEVICE_GRACE_S` after it was given, at the latest.

    Attributes:
        queue: writes to come, in order.
        written: what it has put, or will have put, into blocks that are its own.
    """

    def __init__(self, contents: Contents, owner: Owner) -> None:
        self._contents = contents
        self._owner = owner
        self.queue: list[Write] = []
        self.written: dict[int, bytes] = {}

    def keep_only(self, blocks: set[int]) -> None:
        """These are its own; of others it knows nothing any more."""
        self.written = {block: content for block, content in self.written.items() if block in blocks}
        self.queue = [write for write in self.queue if write.block in blocks]

    def compute(self, block: int, content: bytes) -> None:
        if self.written.get(block) != content:
            due = self._contents.world.clock + limits.DEVICE_GRACE_S
            self.queue.append(Write(block, content, due, *self._owner.goes_by()))
            self.written[block] = content

    def run(self, writes: int | None = None) -> None:
        """The device gets on with it: so many writes, or all."""
        due, self.queue = self.queue[:writes], [] if writes is None else self.queue[writes:]
        for write in due:
            for rank in range(self._contents.ranks if self._owner.may_write(write) else 0):
                self._contents.put(self._owner.pool, rank, write.block, write.content)

    def run_until(self, clock: float) -> None:
        """It will be that late: what is due by then is done."""
        self.run(sum(write.due <= clock for write in self.queue))

    def forget(self) -> None:
        self.queue.clear()
        self.written.clear()

    def holds(self, rank: int, block: int) -> bytes:
        """What a kernel started now would read: the memory, after everything in the queue."""
        for write in reversed(self.queue):
            if write.block == block:
                return write.content
        return self._contents.read(self._owner.pool, rank, block)
