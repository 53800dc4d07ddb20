"""Which store a worker uses, and the pools it opens in it, when a job first needs them.

Owns the settings of a store as they travel on a command line, and that a pool is attached late: workers and engines
start in any order, and an engine that comes back may have made its memory anew.

    numpy            POSIX shared memory
    paddle@gpu:0     paddle tensors on a place; `paddle` alone is on the CPU
    module:Class     a class of one's own, called with (index, rank) or (index, rank, place)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol, cast

import attrs

from events.errors import InvalidInput
from events.facts import BlockRanges
from workers.layout import CacheLayout
from workers.store import MemoryGone, PoolMemory

STORES: Final = {
    "numpy": "workers.numpy_store:NumpyStore",
    "paddle": "workers.paddle_store:PaddleStore",
}


class PoolStore(Protocol):
    """What a worker needs of a `workers.store.BlockStore`."""

    def create(self, pool: str, tier: str, layout: CacheLayout) -> PoolMemory: ...

    def attach(self, pool: str) -> PoolMemory: ...

    def copy(
        self, source_pool: str, destination_pool: str, source_blocks: BlockRanges, destination_blocks: BlockRanges
    ) -> int: ...

    def close(self) -> None: ...


def _numbers(devices: Iterable[int]) -> tuple[int, ...]:
    return tuple(devices)


MakeStore = Callable[[str, int], PoolStore]


@attrs.frozen
class StoreSettings:
    """What holds the bytes.

    Attributes:
        store: see the table of this module.
        layout: JSON of the GPU pool's `CacheLayout`, for a worker that makes the pool's memory (or checks it). None:
            open what is there when a job comes.
        host_pool, host_blocks: the host pool to make in the same way, with the same layout; 0: open what is there.
        devices: number of each rank's GPU; its worker sees that one only, as `gpu:0`. Empty: each sees what there is.
    """

    store: str = "numpy"
    layout: str | None = None
    host_pool: str = "cpu:host"
    host_blocks: int = 0
    devices: tuple[int, ...] = attrs.field(default=(), converter=_numbers)

    def maker(self) -> MakeStore:
        """What makes the store of (index, rank). InvalidInput for one that nobody knows or that is not installed."""
        module, name, place = self._path()
        try:
            made = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise InvalidInput(f"store {self.store!r:.80} cannot be used here: {error}") from error
        if not place:
            return cast("MakeStore", made)
        return lambda index, rank: cast("PoolStore", made(index, rank, place))

    def environment(self) -> Mapping[str, str]:
        """What makes the store's copies faster and takes effect only at the start of a process. `maker` refuses a store
        that cannot be used; this does not.
        """
        try:
            module = importlib.import_module(self._path()[0])
        except (ImportError, InvalidInput):
            return {}
        return cast("Mapping[str, str]", getattr(module, "COPY_ENVIRONMENT", {}))

    def visible(self, rank: int) -> Mapping[str, str]:
        """What lets the worker of a rank see its GPU."""
        return {"CUDA_VISIBLE_DEVICES": str(self.devices[rank])} if self.devices else {}

    def pools(self, gpu_pool: str) -> dict[str, tuple[str, CacheLayout]]:
        """The pools a worker makes or checks at its start: tier and layout by name."""
        if self.layout is None:
            if self.host_blocks:
                raise InvalidInput("a host pool of some blocks is made with the layout of the GPU pool: give that too")
            return {}
        layout = CacheLayout.from_json(self.layout)
        pools = {gpu_pool: ("gpu", layout)}
        if self.host_blocks:
            pools[self.host_pool] = ("cpu", attrs.evolve(layout, num_blocks=self.host_blocks))
        return pools

    def _path(self) -> tuple[str, str, str]:
        path, _, place = self.store.partition("@")
        module, mark, name = STORES.get(path, path).partition(":")
        if not mark:
            raise InvalidInput(f"a store is one of {', '.join(STORES)}, or module:Class; not {self.store!r:.80}")
        return module, name, place


class OpenPools:
    """A `Mover` over a store: attaches each pool when it is first needed, and again when its memory was replaced."""

    def __init__(self, make: Callable[[], PoolStore], own: Mapping[str, tuple[str, CacheLayout]]) -> None:
        """`own`: pools to make (or open) at once, by name: their tier and layout."""
        self._make = make
        self._own = own
        self._store = make()
        self._open: set[str] = set()
        self._open_own()

    def copy(
        self,
        source_pool: str,
        destination_pool: str,
        source_blocks: BlockRanges,
        destination_blocks: BlockRanges,
    ) -> int:
        try:
            for pool in (source_pool, destination_pool):
                self._attach(pool)
            return self._store.copy(source_pool, destination_pool, source_blocks, destination_blocks)
        except MemoryGone:
            # This job was about the old bytes, so it fails. The next one shall find what is there now.
            self._begin_again()
            raise

    def close(self) -> None:
        self._store.close()

    def _attach(self, pool: str) -> None:
        if pool not in self._open:
            try:
                self._store.attach(pool)
            except MemoryGone as error:
                raise MemoryGone(f"pool {pool!r}: {error}") from error
            self._open.add(pool)

    def _begin_again(self) -> None:
        self._store.close()
        self._open.clear()
        self._store = self._make()
        self._open_own()

    def _open_own(self) -> None:
        for pool, (tier, layout) in self._own.items():
            self._store.create(pool, tier, layout)
            self._open.add(pool)
