"""The bytes behind block ids: what an engine computes, and what it finds when it reuses a block.

Owns the stand-in for a model's keys and values: a pattern of the block's hash, in shared memory, where the workers
copy it. A block that holds another's bytes, or those of another rank, is found out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol

from events.facts import BLOCK_HASH_BYTES
from workers.numpy_store import NumpyStore
from workers.shared_memory import SHARED_FOLDER


class Contents(Protocol):
    """Bytes of the blocks of one engine's GPU pool. `hashes` are joined, one for each block."""

    def fill(self, blocks: Sequence[int], hashes: bytes) -> None:
        """A model has computed these blocks."""
        ...

    def wrong(self, blocks: Sequence[int], hashes: bytes) -> int:
        """How many of these blocks hold something else than what was computed."""
        ...


class NoContents:
    """Where no bytes are: nothing is written, nothing looked at."""

    def fill(self, blocks: Sequence[int], hashes: bytes) -> None: ...

    def wrong(self, _blocks: Sequence[int], _hashes: bytes) -> int:
        return 0


class SharedContents:
    """A pool's shared memory, one segment for each tensor-parallel rank, made by somebody else."""

    def __init__(self, index: str, pool: str, ranks: int, folder: Path = SHARED_FOLDER) -> None:
        """MemoryGone: nobody has made it."""
        self._pool = pool
        self._stores = [NumpyStore(index, rank, folder) for rank in range(ranks)]
        for store in self._stores:
            store.attach(pool)

    def fill(self, blocks: Sequence[int], hashes: bytes) -> None:
        for rank, store in enumerate(self._stores):
            for block, block_hash in zip(blocks, _each(hashes), strict=True):
                store.fill(self._pool, block, of_rank(block_hash, rank))

    def wrong(self, blocks: Sequence[int], hashes: bytes) -> int:
        pairs = zip(blocks, _each(hashes), strict=True)
        return sum(not self._matches(block, block_hash) for block, block_hash in pairs)

    def close(self) -> None:
        for store in self._stores:
            store.close()

    def _matches(self, block: int, block_hash: bytes) -> bool:
        stores = enumerate(self._stores)
        return all(store.matches(self._pool, block, of_rank(block_hash, rank)) for rank, store in stores)


NO_CONTENTS: Final = NoContents()


def of_rank(block_hash: bytes, rank: int) -> bytes:
    """What a rank's shard is filled with: another pattern in each, so that a shard of the wrong rank is noticed."""
    return bytes((block_hash[0] ^ (rank & 0xFF), *block_hash[1:]))


def _each(hashes: bytes) -> Iterable[bytes]:
    return (hashes[start : start + BLOCK_HASH_BYTES] for start in range(0, len(hashes), BLOCK_HASH_BYTES))
