"""The bench of two tiers: its hit rates repeat themselves and agree with a count of another kind; nothing is left behind.

No figure is judged here, except what holds on every machine because no time is in it.
"""

from __future__ import annotations

import shutil
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from events.errors import InvalidInput
from ops.bench import store, worker_process
from ops.bench.figure import Settings
from ops.bench.hit_rate import Memory, repeating_share, reused_share
from ops.bench.moving import moving, prompts
from ops.bench.reference import NaiveCache, keys_of
from ops.bench.workload import BLOCK_TOKENS, Life, lives_of
from ops.demo.tiers import left_behind
from workers.layout import CacheLayout
from workers.numpy_store import COPY_ENVIRONMENT

ENGINES = 4
LIVES = list(lives_of(None, 400, 7, blocks_max=200))
LAYOUT = CacheLayout(layers=1, num_blocks=4, block_shape=(32,), dtype="float16")


def share_of(lives: list[Life], blocks_found: int) -> float:
    return blocks_found * BLOCK_TOKENS / sum(life.prompt_tokens for life in lives)


def test_hit_rates_repeat_themselves() -> None:
    """Given the same requests and memory, the figures are equal to the last digit: they compare releases, not runs."""
    memory = Memory(gpu_blocks=1000, host_pools=1, host_blocks=8000)

    assert reused_share(LIVES, memory) == reused_share(LIVES, memory)


def test_one_tier_reuses_what_a_naive_cache_does() -> None:
    """Given engines of one tier, they reuse what an LRU cache for each of them does; ties are broken differently."""
    caches = [NaiveCache(1000) for _ in range(ENGINES)]
    found = sum(caches[number % ENGINES].serve(life, keys_of(life)) for number, life in enumerate(LIVES))

    assert reused_share(LIVES, Memory(gpu_blocks=1000)) == pytest.approx(share_of(LIVES, found), rel=0.05)


def test_all_that_repeats_is_what_endless_memory_reuses() -> None:
    """Given a cache for all that forgets nothing, the ceiling the figures stand beside is what it finds.

    It differs by prompts that end with a block: their last one is computed again.
    """
    cache = NaiveCache(1_000_000)
    found = sum(cache.serve(life, keys_of(life)) for life in LIVES)

    assert repeating_share(LIVES) == pytest.approx(share_of(LIVES, found), rel=0.01)


def test_more_memory_and_sharing_reuse_more() -> None:
    """Given the trace, a host tier adds to one tier, one for all adds to one for each, and none passes the ceiling."""
    one, private, shared = (
        reused_share(LIVES, memory)
        for memory in (Memory(1000), Memory(1000, ENGINES, 3000), Memory(1000, 1, ENGINES * 3000))
    )

    assert 0 < one < private < shared < repeating_share(LIVES)


def test_workers_of_the_bench_leave_nothing() -> None:
    """Given a bench of transfers that is over, its shared memory and its processes are gone."""
    with moving(LAYOUT, host_blocks=8) as there:
        name = there.index.name
        before = there.index.position
        there.cache(next(prompts(0, LAYOUT.num_blocks)), "r0")
        (transfer,) = there.index.allocate(None, LAYOUT.num_blocks).waits_for
        there.wait(transfer)
        jobs = there.jobs_since(before)
        assert left_behind(name)

    assert [job.transfer for job in jobs] == [transfer]
    assert not left_behind(name)


def test_what_is_compared_with_workers_starts_as_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a process of the bench that copies, it has what glibc reads at the start of a worker, unless we set it."""
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda _command, **how: started.append(how))
    (variable,) = COPY_ENVIRONMENT

    monkeypatch.delenv(variable, raising=False)
    worker_process.start("any.module")
    monkeypatch.setenv(variable, "ours")
    worker_process.start("any.module")

    assert [how["env"][variable] for how in started] == [COPY_ENVIRONMENT[variable], "ours"]


def test_store_takes_less_of_a_small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a shared memory folder of a container's 64 MB, fewer bytes are copied, and the figure says how many."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=64 << 20))

    (found,) = store.measure(Settings(quick=True), frozenset(["store_vs_memcpy"]), lambda _share: None)

    assert "2 × 1024 KiB" in found.reference


def test_store_without_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a shared memory folder that is full, one line says how much was wanted and how much there is."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=5))

    with pytest.raises(InvalidInput, match="5 are free"):
        store.measure(Settings(quick=True), frozenset(["store_vs_memcpy"]), lambda _share: None)
