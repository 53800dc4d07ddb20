"""How fast the numpy store copies blocks from a GPU pool to the host pool, beside one plain memcpy of as many bytes.

Both pools are shared memory in /dev/shm, as between engines and workers. What a store cannot choose is into how many
pieces a transfer falls: a block is one contiguous piece in each tensor, and neighbours on both sides are one piece.

| name                           | block                              | blocks           | pieces            |
|--------------------------------|------------------------------------|------------------|-------------------|
| store_vs_memcpy                | 1 MiB: 4 layers, 8 heads of a rank | one range        | one in each tensor |
| store_vs_memcpy_scattered      | the same                           | no two neighbours | 128 KiB           |
| store_vs_memcpy_scattered_16k  | 128 KiB: 4 layers, 1 head of a rank | no two neighbours | 16 KiB            |

A head is 64 tokens of 128 numbers of two bytes. The reference is `np.copyto` of one large buffer into another, private
memory of the same process. Everything runs in a process of its own that is started as workers are
(`worker_process.py`), because what glibc makes of a copy is decided at the start of a process.
"""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Final

import attrs
import numpy as np
import orjson

from events.errors import InvalidInput
from events.facts import BlockRanges
from ops.bench import worker_process
from ops.bench.figure import Advance, Budget, Group, Measurement, Pair, Settings
from workers.layout import CacheLayout
from workers.numpy_store import NumpyStore
from workers.shared_memory import SHARED_FOLDER

_GPU: Final = "gpu"
_HOST: Final = "cpu:host"
_POOL_FACTOR: Final = 2
"""A pool is so many times what is copied: scattered blocks have a gap each."""


@attrs.frozen
class Case:
    """What is copied: blocks of `heads` heads, in one range or scattered."""

    heads: int
    scattered: bool

    @property
    def block(self) -> CacheLayout:
        return CacheLayout(layers=4, num_blocks=1, block_shape=(self.heads, 64, 128), dtype="bfloat16")


_CASES: Final = {
    "store_vs_memcpy": Case(8, scattered=False),
    "store_vs_memcpy_scattered": Case(8, scattered=True),
    "store_vs_memcpy_scattered_16k": Case(1, scattered=True),
}


def measure(settings: Settings, wanted: frozenset[str], advance: Advance) -> list[Measurement]:
    """
    Raises:
        InvalidInput: /dev/shm has no room, not even for a few blocks.
    """
    copied_bytes, repetitions = _fitting(settings.count(usual=64 << 20, quick=2 << 20)), settings.repetitions(101)
    found = []
    for number, name in enumerate(name for name in _CASES if name in wanted):
        pair = _in_own_process(name, copied_bytes, repetitions, settings.seed)
        block = _CASES[name].block.bytes_per_block
        label = f"np.copyto, worker's environment; {copied_bytes // block} × {block >> 10} KiB"
        found.append(pair.measurement(name, "GB/s", label))
        advance((number + 1) / len(_CASES))
    return found


def _fitting(wanted_bytes: int) -> int:
    """As many bytes as were wanted, or what two pools may have of a small /dev/shm: half of what is free."""
    least = max(case.block.bytes_per_block for case in _CASES.values())
    try:
        free = shutil.disk_usage(SHARED_FOLDER).free
    except OSError as error:
        raise InvalidInput(f"{SHARED_FOLDER} cannot be used: {error.strerror}") from error
    copied = wanted_bytes
    while 2 * _POOL_FACTOR * copied > free // 2 and copied > least:
        copied //= 2
    if 2 * _POOL_FACTOR * copied > free:
        raise InvalidInput(
            f"two pools of {_POOL_FACTOR * copied:,} bytes do not fit into {SHARED_FOLDER}: {free:,} are free"
        )
    return copied


def _in_own_process(name: str, copied_bytes: int, repetitions: int, seed: int) -> Pair:
    words = (name, str(copied_bytes), str(repetitions), str(seed))
    with worker_process.start("ops.bench.store", *words) as process:
        told, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the process that measures {name} ended with code {process.returncode}; see above")
    return Pair(*orjson.loads(told))


# --- in that process ------------------------------------------------------------------------------------------------


def copy(case: Case, copied_bytes: int, repetitions: int, seed: int) -> Pair:
    """GB/s of the store and of the memcpy, in turn."""
    blocks = copied_bytes // case.block.bytes_per_block
    source, destination = np.ones(copied_bytes, dtype=np.uint8), np.zeros(copied_bytes, dtype=np.uint8)
    random = np.random.default_rng(seed)
    pair = Pair()
    with _opened(attrs.evolve(case.block, num_blocks=_POOL_FACTOR * blocks)) as store:
        read, written = (chosen(blocks, random) if case.scattered else ((0, blocks),) for _ in range(2))
        by_store = partial(store.copy, _GPU, _HOST, read, written)
        for _ in range(1 + repetitions):
            pair.add(
                _gb_per_s(by_store, copied_bytes), _gb_per_s(partial(np.copyto, destination, source), copied_bytes)
            )
    return Pair(pair.values[1:], pair.references[1:])


def chosen(blocks: int, random: np.random.Generator) -> BlockRanges:
    """Every other block of the pool, in any order."""
    return tuple((2 * int(block), 1) for block in random.permutation(blocks))


def _gb_per_s(work: Callable[[], object], copied_bytes: int) -> float:
    begin = perf_counter()
    work()
    return copied_bytes / (perf_counter() - begin) / 1e9


@contextmanager
def _opened(layout: CacheLayout) -> Iterator[NumpyStore]:
    """A store with both pools, every byte of them written once; nothing is left in /dev/shm."""
    store, pools = NumpyStore(f"bench-{secrets.token_hex(4)}", rank=0), []
    try:
        for pool, tier in ((_GPU, "gpu"), (_HOST, "cpu")):
            store.create(pool, tier, layout)
            pools.append(pool)
            for layer in range(layout.layers):
                store.tensor(pool, layer, "key")[:] = store.tensor(pool, layer, "value")[:] = 1
        yield store
    finally:
        for pool in pools:
            store.unlink(pool)
        store.close()


GROUP: Final = Group(
    title="store",
    figures=tuple(_CASES),
    seconds=4,
    measure=measure,
    budgets={name: Budget(0.8, of="ratio", at_least=True) for name in _CASES},
)


if __name__ == "__main__":
    found = copy(_CASES[sys.argv[1]], *map(int, sys.argv[2:]))
    sys.stdout.buffer.write(orjson.dumps((found.values, found.references)))
