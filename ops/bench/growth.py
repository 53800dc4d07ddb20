"""What one request costs against the size of the index: 10,000, 100,000 and 1,000,000 cached blocks. It must stay flat.

Each index is filled from the trace until its pool is full, so it stays at its size: whatever comes, evicts. The requests
that are timed are the same for all three and find the same everywhere: a shared beginning that is always cached, then
blocks nobody has. The three take turns; the reference of each is the smallest.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Final

import attrs
import numpy as np

from events.facts import BLOCK_HASH_BYTES
from ops.bench.figure import Advance, Budget, Group, Measurement, Pair, Settings, computing_us, undisturbed
from ops.bench.workload import Life, blocks_in, new_replica, serve, serve_all, tenants
from statecore.replica import Replica

_SIZES: Final = {"request_us_at_10k": 10_000, "request_us_at_100k": 100_000, "request_us_at_1m": 1_000_000}
_SHARED_BLOCKS: Final = 16
_FRESH_BLOCKS: Final = 100
_OUTPUT_BLOCKS: Final = 5
_BLOCKS_MAX: Final = 1000
"""Requests that fill the index are cut here, so that they fit the smallest pool many times."""


def measure(settings: Settings, wanted: frozenset[str], advance: Advance) -> list[Measurement]:
    smallest = next(iter(_SIZES))
    names = [name for name in _SIZES if name in wanted or name == smallest]
    fill = settings.lives(settings.count(usual=16_000, quick=500), blocks_max=_BLOCKS_MAX)
    replicas = {}
    for number, name in enumerate(names):
        replicas[name] = _filled(_SIZES[name], fill)
        advance(0.5 * (number + 1) / len(names))
    probes = _probes(np.random.default_rng(settings.seed))
    for replica in replicas.values():
        serve(replica, next(probes))  # caches the shared beginning
    times: dict[str, list[float]] = {name: [] for name in names}
    turns = settings.count(usual=60, quick=5)
    per_turn = 20
    with undisturbed():
        for turn in range(turns):
            batch = [next(probes) for _ in range(per_turn)]
            for name, replica in replicas.items():
                times[name].append(computing_us(serve_all, replica, batch) / per_turn)
            advance(0.5 + 0.5 * (turn + 1) / turns)
    label = f"at {_SIZES[smallest]:,} cached blocks"
    return [Pair(times[name], times[smallest]).measurement(name, "µs", label) for name in names]


def _filled(blocks: int, lives: list[Life]) -> Replica:
    """A replica with a full pool of this size."""
    replica = new_replica(blocks)
    (pool,) = replica.state.pools.values()
    for number, life in enumerate(tenants(lambda: lives)):
        serve(replica, attrs.evolve(life, request=f"fill-{number}"))
        if pool.evicted:
            break
    return replica


def _probes(random: np.random.Generator) -> Iterator[Life]:
    shared = random.bytes(_SHARED_BLOCKS * BLOCK_HASH_BYTES)
    for number in count():
        path = shared + random.bytes((_FRESH_BLOCKS + _OUTPUT_BLOCKS) * BLOCK_HASH_BYTES)
        prompt = path[: (_SHARED_BLOCKS + _FRESH_BLOCKS) * BLOCK_HASH_BYTES]
        yield Life(
            request=f"probe-{number}",
            prompt_tokens=blocks_in(prompt) * 64,
            prompt=prompt,
            path=path,
            prompt_blocks=blocks_in(prompt) + 1,
            blocks=blocks_in(path) + 1,
        )


GROUP: Final = Group(
    title="size of the index",
    figures=tuple(_SIZES),
    seconds=8,
    measure=measure,
    budgets={name: Budget(1.5, of="ratio") for name in _SIZES},
)
