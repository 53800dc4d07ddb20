"""What moves the bytes of blocks: the `BlockStore` protocol, and what it answers with.

Owns the contract that `NumpyStore` and `PaddleStore` keep (and `tests/stores` holds them to). Must not know how either
of them keeps bytes, nor anything of transfers: a store copies what it is told, between pools it has opened.

A store belongs to one index and one tensor-parallel rank; pools are named as in the log. Errors:

| error        | when                                                                        | what still holds           |
|--------------|-----------------------------------------------------------------------------|----------------------------|
| InvalidInput | wrong block, list, pool, layout, rank or incarnation                        | nothing opened or moved    |
| MemoryGone   | (an InvalidInput) the pool's memory does not exist, or no longer             | nothing opened or moved    |
| CopyFailed   | the device refused while a copy ran                                         | the source is as it was    |
"""

from __future__ import annotations

from typing import Final, Protocol

import attrs

from events.errors import InvalidInput, StateCoreError
from events.facts import BlockRanges
from workers.layout import CacheLayout

TIERS: Final = ("gpu", "cpu")


class MemoryGone(InvalidInput):
    """The pool has no memory: not created yet, removed, or its creator took it along. Attach again when there is."""


class CopyFailed(StateCoreError):
    """A device error ended a copy. The destination holds anything; nothing writes to it any more."""


@attrs.frozen(slots=True)
class PoolMemory:
    """The memory of one pool and rank, as a store opened it.

    Attributes:
        pool: its name in the index.
        tier: "gpu" or "cpu".
        layout: what its creator made.
        incarnation: 32 hex digits made at creation; other memory under the same name has another one.
        created: whether this call made it. False: it was there, with whatever bytes it held.
    """

    pool: str
    tier: str
    layout: CacheLayout
    incarnation: str
    created: bool


class BlockStore(Protocol):
    """Bytes of the pools of one index and rank. One caller at a time; several processes may use the same pools."""

    def create(self, pool: str, tier: str, layout: CacheLayout) -> PoolMemory:
        """Make the pool's memory, zeroed, or open what another process made with the same layout."""

    def attach(self, pool: str, layout: CacheLayout | None = None, *, incarnation: str | None = None) -> PoolMemory:
        """Open memory that exists. With `layout` or `incarnation`, refuse any other."""

    def copy(
        self,
        source_pool: str,
        destination_pool: str,
        source_blocks: BlockRanges,
        destination_blocks: BlockRanges,
    ) -> int:
        """Copy blocks pairwise, all layers, keys and values; returns the bytes moved, after they have arrived.

        Refused, before anything moves: lists of different lengths, blocks outside their pool, a destination block
        named twice, a block that is source and destination, layouts that differ in more than their number of blocks.
        """

    def read(self, pool: str, block: int) -> bytes:
        """All bytes of one block, in the tensor order of the layout."""

    def write(self, pool: str, block: int, content: bytes) -> None:
        """Overwrite one block with `bytes_per_block` bytes in the order `read` gives them."""

    def fill(self, pool: str, block: int, block_hash: bytes) -> None:
        """Write the pattern of a 16-byte block hash."""

    def matches(self, pool: str, block: int, block_hash: bytes) -> bool:
        """Whether the block holds exactly the pattern of that hash."""

    def unlink(self, pool: str) -> bool:
        """Close the pool, and remove its memory unless somebody else uses it. Returns whether it was removed."""

    def close(self) -> None:
        """Give back this process' part of every pool. The memory stays for others, and for a warm start."""
