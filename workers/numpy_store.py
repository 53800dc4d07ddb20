"""The default store: blocks in shared memory, copied by numpy. No GPU, no framework.

Owns the arrays over the segments, and nothing of how segments come and go (`shared_pools.py`) or which copies are
allowed (`block_moves.py`). GPU pools are host memory here too, so that everything above runs on any machine.

A pool is one array `[2 * layers, num_blocks, bytes_per_block_per_tensor]`. A merged range is one assignment to a slice
of it, for which numpy calls memmove once for each tensor, without the GIL.

**Speed.** glibc's memmove writes past the caches only from a size on that it derives from the shared cache, which can
be hundreds of megabytes; below it, every byte written is read first. `COPY_ENVIRONMENT` lowers that size for a process
whose copies nobody reads back soon. It takes effect at the start of a process: the launcher starts workers with it, and
`statecore worker` begins itself again with it (`worker_process.restart_with`). Who sets it otherwise keeps that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from events.errors import InvalidInput
from events.facts import BlockRanges
from workers.block_moves import check_ranges, plan
from workers.layout import CacheLayout
from workers.pattern import pattern
from workers.segment_header import HEADER_BYTES, HOST
from workers.shared_memory import SHARED_FOLDER
from workers.shared_pools import SharedPools
from workers.store import PoolMemory

COPY_ENVIRONMENT: Final = {"GLIBC_TUNABLES": "glibc.cpu.x86_non_temporal_threshold=0x10000"}
"""Measured on a virtual Xeon whose default is 190 MB: pieces of 64 KB and more are moved 1.4 to 1.9 times as fast,
smaller ones as before. On a virtual EPYC whose default is 300 MB, 64 and 256 MiB in pieces of 128 KiB to 4 MiB are moved
0.94 to 1.15 times as fast. Processors of other kinds ignore it."""

_ELEMENT: Final = {"float16": "float16", "bfloat16": "uint16", "int8": "int8", "fp8": "uint8"}
"""numpy's type for each dtype; it has no bfloat16 and no fp8, so those come as their bits."""


class NumpyStore:
    """A `BlockStore` over POSIX shared memory."""

    def __init__(self, index: str, rank: int, folder: Path = SHARED_FOLDER) -> None:
        """`folder` is for tests; engines and workers of one index use the same."""
        self._pools = SharedPools(index, rank, folder)
        self._arrays: dict[str, npt.NDArray[np.uint8]] = {}

    def create(self, pool: str, tier: str, layout: CacheLayout) -> PoolMemory:
        return self._map(self._pools.create(pool, tier, layout))

    def attach(self, pool: str, layout: CacheLayout | None = None, *, incarnation: str | None = None) -> PoolMemory:
        return self._map(self._pools.attach(pool, layout, incarnation))

    def copy(
        self,
        source_pool: str,
        destination_pool: str,
        source_blocks: BlockRanges,
        destination_blocks: BlockRanges,
    ) -> int:
        source, destination = self._pools[source_pool], self._pools[destination_pool]
        layout = source.header.layout
        moves = plan(
            layout,
            destination.header.layout,
            source_blocks,
            destination_blocks,
            same_pool=source_pool == destination_pool,
        )
        source.check_in_place()
        destination.check_in_place()
        read, written = self._arrays[source_pool], self._arrays[destination_pool]
        moved = 0
        for source_block, destination_block, blocks in moves:
            written[:, destination_block : destination_block + blocks] = read[:, source_block : source_block + blocks]
            moved += blocks
        return moved * layout.bytes_per_block

    def read(self, pool: str, block: int) -> bytes:
        return self._block(pool, block).tobytes()

    def write(self, pool: str, block: int, content: bytes) -> None:
        there = self._block(pool, block)
        if len(content) != there.size:
            raise InvalidInput(f"a block of pool {pool!r} has {there.size} bytes, not {len(content)}")
        there[:] = np.frombuffer(content, dtype=np.uint8).reshape(there.shape)

    def fill(self, pool: str, block: int, block_hash: bytes) -> None:
        there = self._block(pool, block)
        there[:] = pattern(self._pools[pool].header.layout, block_hash)

    def matches(self, pool: str, block: int, block_hash: bytes) -> bool:
        there = self._block(pool, block)
        return np.array_equal(there, pattern(self._pools[pool].header.layout, block_hash))

    def tensor(self, pool: str, layer: int, part: str) -> npt.NDArray[np.generic]:
        """The keys or values ("key", "value") of one layer, `[num_blocks, *block_shape]`, without a copy.

        The pool stays mapped, and counts as used, until the array is gone.
        """
        layout = self._pools[pool].header.layout
        parts = ("key", "value") if layout.values else ("key",)
        if part not in parts or not 0 <= layer < layout.layers:
            raise InvalidInput(
                f"pool {pool!r} has {' and '.join(parts)} of layers 0 to {layout.layers - 1}, not {part} {layer}"
            )
        flat = self._arrays[pool][len(parts) * layer + parts.index(part)].reshape(-1)
        typed: npt.NDArray[np.generic] = flat.view(_ELEMENT[layout.dtype])
        return typed.reshape(layout.num_blocks, *layout.block_shape)

    def unlink(self, pool: str) -> bool:
        self._arrays.pop(pool, None)
        return self._pools.unlink(pool)

    def close(self) -> None:
        self._arrays.clear()
        self._pools.close_all()

    def _map(self, memory: PoolMemory) -> PoolMemory:
        segment, layout = self._pools[memory.pool], memory.layout
        if segment.header.memory != HOST:
            self._pools.close(memory.pool)
            raise InvalidInput(
                f"pool {memory.pool!r} is {segment.header.memory} memory: the numpy store cannot open it"
            )
        flat = np.frombuffer(segment.buffer, dtype=np.uint8, count=layout.total_bytes, offset=HEADER_BYTES)
        self._arrays[memory.pool] = flat.reshape(layout.tensors, layout.num_blocks, layout.bytes_per_block_per_tensor)
        return memory

    def _block(self, pool: str, block: int) -> npt.NDArray[np.uint8]:
        """`[2 * layers, bytes_per_block_per_tensor]`, a view."""
        check_ranges(((block, 1),), self._pools[pool].header.layout.num_blocks, "pool")
        return self._arrays[pool][:, block]
