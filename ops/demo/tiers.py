"""The two tiers of the demo: how large, by which policy, and what of /dev/shm they take.

Owns the choice of a block's bytes, the refusal of what does not fit, and the life of the shared memory: made before the
first process that uses it, gone after the last.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import attrs

from events.errors import InvalidInput
from ops.demo.workload import Workload, WorkloadError
from statecore import Policy
from workers.layout import CacheLayout
from workers.numpy_store import NumpyStore
from workers.segment_header import HEADER_BYTES, index_prefix
from workers.shared_memory import SHARED_FOLDER

HOST_POOL: Final = "cpu:host"
SHARED_GPU_POOL: Final = "gpu:shared"

BLOCK_BYTES_MAX: Final = 1 << 20
BLOCK_BYTES_DEFAULT: Final = 4096
BLOCK_BYTES_LEAST: Final = 256
MEMORY_DEFAULT: Final = 512 << 20
"""Nobody asked for more: a container's /dev/shm may be 64 MB, and then blocks are smaller (real ones have megabytes)."""

_LAYERS: Final = 2
_DTYPE: Final = "float16"
BLOCK_BYTES_STEP: Final = 2 * _LAYERS * 2
"""Keys and values of each layer, two bytes an element."""


@attrs.frozen
class Tiers:
    """Memory behind the pools: each engine's own on the GPU, and the host's for all.

    Attributes:
        layout: of one GPU pool, as one rank holds it.
        host_blocks: of the host pool.
        ranks: tensor-parallel ranks; each holds a shard of every block, and has a worker.
    """

    layout: CacheLayout
    host_blocks: int
    ranks: int
    policy: Policy

    @property
    def block_bytes(self) -> int:
        """Of one block, all ranks together."""
        return self.layout.bytes_per_block * self.ranks

    @property
    def host_layout(self) -> CacheLayout:
        return attrs.evolve(self.layout, num_blocks=self.host_blocks)

    def memory_bytes(self, engines: int) -> int:
        """What all pools and ranks take of /dev/shm."""
        pools = engines * self.layout.total_bytes + self.host_layout.total_bytes
        return self.ranks * (pools + (engines + 1) * HEADER_BYTES)


def gpu_pool(place: int) -> str:
    """The pool of the engine at this place, from 0."""
    return f"gpu:engine-{place}"


def tiers(work: Workload, *, engines: int, ranks: int, block_bytes: int | None, policy: Policy) -> Tiers:
    """What the workload needs, with the largest blocks that are reasonable unless it was said how large.

    Raises:
        WorkloadError: it does not fit into /dev/shm.
    """
    free = free_bytes()
    wanted = BLOCK_BYTES_DEFAULT if block_bytes is None else block_bytes
    while True:
        layout = CacheLayout(_LAYERS, work.gpu_blocks // engines, (wanted // BLOCK_BYTES_STEP,), _DTYPE)
        chosen = Tiers(layout, work.host_blocks, ranks, policy)
        needed = chosen.memory_bytes(engines)
        if block_bytes is not None or wanted <= BLOCK_BYTES_LEAST or needed <= min(free // 2, MEMORY_DEFAULT):
            break
        wanted //= 2
    if needed > free:
        raise WorkloadError(
            f"{work.gpu_blocks:,} GPU and {work.host_blocks:,} host blocks of {chosen.block_bytes:,} bytes need "
            f"{in_units(needed)} of {SHARED_FOLDER}, which has {in_units(free)} free: use smaller --block-bytes, or fewer "
            "blocks with --host-blocks (0: one tier, no bytes) and --gpu-blocks"
        )
    return chosen


def free_bytes(folder: Path = SHARED_FOLDER) -> int:
    try:
        space = os.statvfs(folder)
    except OSError as error:
        raise WorkloadError(f"{folder} cannot be used: {error.strerror}; --host-blocks 0 runs without it") from None
    return space.f_bavail * space.f_frsize


def in_units(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.1f} {unit}" if count < 100 and unit != "B" else f"{count:.0f} {unit}"


class TierMemory:
    """The shared memory of a run. Use as a context, around everybody who uses the memory."""

    def __init__(self, index: str, tiers: Tiers, gpu_pools: Sequence[str]) -> None:
        self._tiers = tiers
        self._pools = gpu_pools
        self._stores = [NumpyStore(index, rank) for rank in range(tiers.ranks)]

    def __enter__(self) -> TierMemory:
        try:
            for store in self._stores:
                for pool in self._pools:
                    store.create(pool, "gpu", self._tiers.layout)
                store.create(HOST_POOL, "cpu", self._tiers.host_layout)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        for store in self._stores:
            for pool in (*self._pools, HOST_POOL):
                try:
                    store.unlink(pool)
                except InvalidInput:
                    continue  # it was never made


def left_behind(index: str) -> list[str]:
    """Names in /dev/shm that belong to this index."""
    return sorted(path.name for path in SHARED_FOLDER.glob(f"{index_prefix(index)}*"))
