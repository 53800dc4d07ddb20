"""What a chaos run is made of: how many engines, workers and keepers, over which pools, and the bytes behind them.

Owns the sizes and who gets which settings. The first engine takes its GPU memory along when it dies, the others' outlives
them; the last two share a pool; all share the host pool.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

from ops.chaos.cast import Actor, EngineActor, KeeperActor, WorkerActor
from ops.chaos.engine import EngineSettings
from ops.demo.contents import of_rank
from ops.demo.tiers import HOST_POOL, TierMemory, Tiers
from statecore import Policy
from workers.layout import CacheLayout
from workers.numpy_store import NumpyStore
from workers.stores import StoreSettings
from workers.worker_process import WorkerSettings

BLOCK_TOKENS: Final = 512
GPU_BLOCKS: Final = 96
SHARED_GPU_BLOCKS: Final = 160
HOST_BLOCKS: Final = 224
"""Small pools: blocks are evicted, swapped out and fetched all the time."""

LAYOUT: Final = CacheLayout(2, GPU_BLOCKS, (64,), "float16")
SHARED_POOL: Final = "gpu:shared"
ENGINES_OF_THE_SHARED_POOL: Final = 2

SNAPSHOT_EVERY: Final = 1500
SNAPSHOT_AGE_S: Final = 20.0
"""So often that the log is trimmed several times in a run."""


@attrs.frozen
class Plan:
    """What is to run.

    Attributes:
        duration_s: of the part with faults.
        index: its name; of nobody else on this machine, because its shared memory is removed in the end.
        minimums: what must have happened: kills, network faults, acknowledged commits.
    """

    index: str
    seed: int
    duration_s: float
    engines: int = 4
    ranks: int = 2
    keepers: int = 2
    binary: Path | None = None
    fsync: str = "always"
    step_s: float = 0.01
    kills_min: int = 30
    network_min: int = 1000
    commits_min: int = 5000


def pool_of(plan: Plan, place: int) -> str:
    """The last engines share a pool, each other has its own."""
    shared = plan.engines > ENGINES_OF_THE_SHARED_POOL and place >= plan.engines - ENGINES_OF_THE_SHARED_POOL
    return SHARED_POOL if shared else f"gpu:engine-{place}"


def _blocks(pool: str) -> int:
    return SHARED_GPU_BLOCKS if pool == SHARED_POOL else GPU_BLOCKS


def _layout(pool: str) -> CacheLayout:
    return attrs.evolve(LAYOUT, num_blocks=_blocks(pool))


def memory_of(index: str, plan: Plan, pool: str) -> TierMemory:
    """Of one GPU pool; the host pool is made by the first and opened by the others."""
    return TierMemory(index, Tiers(_layout(pool), HOST_BLOCKS, plan.ranks, Policy()), [pool])


def actors_of(plan: Plan, index: str, url: str, pools: list[str], folder: Path) -> list[Actor]:
    keepers: list[Actor] = [
        KeeperActor(url, index, f"keeper-{number}", SNAPSHOT_EVERY, SNAPSHOT_AGE_S, folder)
        for number in range(plan.keepers)
    ]
    workers: list[Actor] = [
        WorkerActor(url, WorkerSettings(index, pool, rank, plan.ranks, _store(pool)), folder)
        for pool in pools
        for rank in range(plan.ranks)
    ]
    engines: list[Actor] = [
        EngineActor(_engine(plan, index, url, place, folder), folder) for place in range(plan.engines)
    ]
    return [*engines, *workers, *keepers]


def _store(pool: str) -> StoreSettings:
    return StoreSettings(layout=_layout(pool).to_json(), host_pool=HOST_POOL, host_blocks=HOST_BLOCKS)


def _engine(plan: Plan, index: str, url: str, place: int, folder: Path) -> EngineSettings:
    pool = pool_of(plan, place)
    return EngineSettings(
        url=url,
        index=index,
        engine=f"engine-{place}",
        gpu_pool=pool,
        gpu_blocks=_blocks(pool),
        host_blocks=HOST_BLOCKS,
        ranks=plan.ranks,
        block_size=BLOCK_TOKENS,
        memory_survives=place != 0,  # one engine takes its memory along when it dies
        seed=plan.seed,
        place=place,
        process=0,
        step_s=plan.step_s,
        folder=str(folder),
    )


def matcher(index: str, ranks: int, pools: list[str]) -> Callable[[str, int, bytes], bool]:
    stores = [NumpyStore(index, rank) for rank in range(ranks)]
    for store in stores:
        for pool in (*pools, HOST_POOL):
            store.attach(pool)

    def matches(pool: str, block: int, block_hash: bytes) -> bool:
        return all(store.matches(pool, block, of_rank(block_hash, rank)) for rank, store in enumerate(stores))

    return matches
