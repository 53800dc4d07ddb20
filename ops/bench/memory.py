"""What a cached block costs in a replica: a million of them, grown from the trace, in a process of their own.

`bytes_per_block` is what the interpreter allocated for the replica (tracemalloc: exact, and the same in every run);
`rss_bytes_per_block` is by how much the process grew, with all that the allocator keeps beside it. The reference is
what a block cannot do without: 16 bytes of hash and 4 of id. The replica holds no live request, only what is cached.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import tracemalloc
from pathlib import Path
from statistics import median
from typing import Final

from ops.bench.figure import Advance, Budget, Group, Measurement, Settings
from ops.bench.workload import lives_of, new_replica, serve, tenants
from statecore.replica import Replica

_TRACED: Final = "bytes_per_block"
_RESIDENT: Final = "rss_bytes_per_block"
_BARE_BYTES: Final = 20
_POOL_BLOCKS: Final = 4_000_000


def measure(settings: Settings, wanted: frozenset[str], advance: Advance) -> list[Measurement]:
    blocks = settings.count(usual=1_000_000, quick=50_000)
    found = []
    for number, name in enumerate((_TRACED, _RESIDENT)):
        if name in wanted:
            repetitions = settings.repetitions(3) if name == _RESIDENT else 1  # the traced number repeats itself
            values = [_in_own_process(settings, blocks, traced=name == _TRACED) for _ in range(repetitions)]
            found.append(Measurement(name, median(values), "B", "16 B of hash and 4 B of id", _BARE_BYTES))
        advance((number + 1) / 2)
    return found


def _in_own_process(settings: Settings, blocks: int, *, traced: bool) -> float:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_bytes_per_block, (settings.trace, settings.seed, blocks, traced))


def _bytes_per_block(trace: Path | None, seed: int, blocks: int, traced: bool) -> float:
    """Grow a replica to so many cached blocks and see what it holds."""
    grown(trace, seed, blocks // 100)  # imports, caches and free lists are there before we look
    before = _traced_bytes() if traced else _resident_bytes()
    replica = grown(trace, seed, blocks)
    after = _traced_bytes() if traced else _resident_bytes()
    (pool,) = replica.state.pools.values()
    return (after - before) / pool.unpinned


def grown(trace: Path | None, seed: int, blocks: int) -> Replica:
    replica = new_replica(_POOL_BLOCKS)
    (pool,) = replica.state.pools.values()
    for life in tenants(lambda: lives_of(trace, 20_000, seed)):
        serve(replica, life)
        if pool.unpinned >= blocks:
            break
    return replica


def _traced_bytes() -> int:
    gc.collect()
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    return tracemalloc.get_traced_memory()[0]


def _resident_bytes() -> int:
    """After giving back what the allocator keeps without need, where it can be told to."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE")


GROUP: Final = Group(
    title="memory",
    figures=(_TRACED, _RESIDENT),
    seconds=10,
    measure=measure,
    budgets={_TRACED: Budget(64), _RESIDENT: Budget(64)},
)
