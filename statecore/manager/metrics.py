"""The metrics of the reference, computed from the state: two replicas at one position have the same.

Owns their names and how they follow from counters. An engine's hit rates begin anew every `COUNTING_WINDOW` requests, as
in the reference; the facts of the requests themselves say when.
"""

from __future__ import annotations

import attrs

from statecore.manager.surroundings import MetricsSink
from statecore.state import State


@attrs.frozen
class CacheMetrics:
    """Hits of one engine's requests, in the present window.

    Attributes:
        req_count, hit_req_count: requests that began, and those of them that found a cached prefix.
        total_token_num: tokens of their prompts.
        matched_token_num: those that were cached; of these
        total_gpu_matched_token_num, total_cpu_matched_token_num: in the GPU pool, in the host pool.
    """

    req_count: int
    hit_req_count: int
    total_token_num: int
    matched_token_num: int
    total_cpu_matched_token_num: int

    @classmethod
    def of(cls, state: State, engine: str) -> CacheMetrics:
        found = state.engines[engine]
        # a swap-in that failed takes its tokens back, perhaps after the window they were counted in
        counts = [max(0, now - begin) for now, begin in zip(found.counters, found.window, strict=True)]
        return cls(*counts)

    @property
    def total_gpu_matched_token_num(self) -> int:
        return max(0, self.matched_token_num - self.total_cpu_matched_token_num)

    @property
    def hit_req_ratio(self) -> float:
        return _ratio(self.hit_req_count, self.req_count)

    @property
    def hit_token_ratio(self) -> float:
        return _ratio(self.matched_token_num, self.total_token_num)

    @property
    def gpu_hit_token_ratio(self) -> float:
        return _ratio(self.total_gpu_matched_token_num, self.total_token_num)

    @property
    def cpu_hit_token_ratio(self) -> float:
        return _ratio(self.total_cpu_matched_token_num, self.total_token_num)


def publish_pool(sink: MetricsSink, state: State, pool_name: str) -> None:
    """How full a GPU pool is."""
    pool = state.pools[pool_name]
    sink.max_gpu_block_num.set(pool.blocks)
    sink.free_gpu_block_num.set(pool.free.total)
    sink.available_gpu_block_num.set(pool.free.total + pool.unpinned)
    sink.available_gpu_resource.set(pool.free.total / pool.blocks)
    sink.gpu_cache_usage_perc.set(1 - (pool.free.total + pool.unpinned) / pool.blocks)


def publish_hits(sink: MetricsSink, metrics: CacheMetrics, gpu_tokens: int, cpu_tokens: int) -> None:
    """The rates after a match, and what that match adds to the totals."""
    sink.hit_req_rate.set(metrics.hit_req_ratio)
    sink.hit_token_rate.set(metrics.hit_token_ratio)
    sink.gpu_hit_token_rate.set(metrics.gpu_hit_token_ratio)
    sink.cpu_hit_token_rate.set(metrics.cpu_hit_token_ratio)
    sink.prefix_cache_token_num.inc(gpu_tokens + cpu_tokens)
    sink.prefix_gpu_cache_token_num.inc(gpu_tokens)
    sink.prefix_cpu_cache_token_num.inc(cpu_tokens)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
