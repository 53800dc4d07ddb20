"""What one whole request costs in the core: decide and evolve, no log, no hashing.

Both pools of the design's table: 50,000 blocks, where every request evicts, and 2,000,000, where none does. The
reference serves the same requests in the same chunks, taking turns. Requests are served one after the other, each as
one commit. In the small pool, those that fill it are not timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import thread_time
from typing import Final

from ops.bench.figure import Advance, Budget, Group, Measurement, Pair, Settings, undisturbed
from ops.bench.reference import NaiveCache, keys_of
from ops.bench.workload import Life, new_replica, serve

EVICTING_BLOCKS: Final = 50_000
ROOMY_BLOCKS: Final = 2_000_000
_POOLS: Final = {"request_us_evict": EVICTING_BLOCKS, "request_us_no_evict": ROOMY_BLOCKS}
_CHUNK: Final = 50
"""Requests the machine serves before the reference serves the same: some milliseconds each."""


def measure(settings: Settings, wanted: frozenset[str], advance: Advance) -> list[Measurement]:
    lives = settings.lives(settings.count(usual=4000, quick=800))
    keys = [keys_of(life) for life in lives]
    repetitions = settings.repetitions(5)
    pools = {name: blocks for name, blocks in _POOLS.items() if name in wanted}
    pairs = {name: Pair() for name in pools}
    for repetition in range(repetitions):
        for number, (name, blocks) in enumerate(pools.items()):
            pairs[name].add(*_pass(lives, keys, blocks))
            advance((repetition * len(pools) + number + 1) / (repetitions * len(pools)))
    return [pair.measurement(name, "µs", "naive per-block dict") for name, pair in pairs.items()]


def _pass(lives: Sequence[Life], keys: Sequence[list[bytes]], pool_blocks: int) -> tuple[float, float]:
    """µs per request of the machine and of the reference: of all, or of those after the first eviction if there is one."""
    replica, cache = new_replica(pool_blocks), NaiveCache(pool_blocks)
    (pool,) = replica.state.pools.values()
    spent: dict[bool, list[tuple[float, float, int]]] = {False: [], True: []}
    with undisturbed():
        for first in range(0, len(lives), _CHUNK):
            chunk = range(first, min(first + _CHUNK, len(lives)))
            evicting = pool.evicted > 0
            begin = thread_time()
            for index in chunk:
                serve(replica, lives[index])
            between = thread_time()
            for index in chunk:
                cache.serve(lives[index], keys[index])
            spent[evicting].append((between - begin, thread_time() - between, len(chunk)))
    by_machine, by_reference, requests = (sum(column) for column in zip(*(spent[True] or spent[False]), strict=True))
    return by_machine / requests * 1e6, by_reference / requests * 1e6


GROUP: Final = Group(
    title="core",
    figures=tuple(_POOLS),
    seconds=12,
    measure=measure,
    budgets={"request_us_evict": Budget(150), "request_us_no_evict": Budget(80)},
)
