"""What a state amounts to, in numbers.

Owns the counts an operator asks for: blocks of each pool by use, engines with their hit rates. Pure; `replay` and
`inspect` show them.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from statecore import ranges
from statecore.state import Engine, Pool, State, private_ranges


@attrs.frozen
class PoolCounts:
    """Blocks of a pool: `blocks = free + cached + used` and `used = pinned + private`.

    Attributes:
        cached: hold a prefix that no request uses.
        pinned: hold a prefix that requests use.
        private: belong to one request, or to an engine itself.
        evicted: dropped from the cache so far.
    """

    pool: str
    tier: str
    blocks: int
    free: int
    cached: int
    pinned: int
    private: int
    used: int
    evicted: int


@attrs.frozen
class Counters:
    """What was asked and found, over all lives. `hit_rate` is reused tokens by prompt tokens; None before the first."""

    requests_seen: int
    requests_hit: int
    prompt_tokens: int
    matched_tokens: int
    hit_rate: float | None


@attrs.frozen
class EngineSummary:
    """An engine in its present or last life; `requests` are those it serves now."""

    engine: str
    session: int
    alive: bool
    gpu_pool: str
    cpu_pool: str | None
    tensor_parallel_size: int
    requests: int
    counters: Counters


@attrs.frozen
class StateSummary:
    """A whole index at a position. `nodes` counts runs of the tree, the root left out."""

    index: str
    position: int
    commit: str
    digest: str
    block_size: int
    hash_scheme: str
    nodes: int
    requests: int
    counters: Counters
    pools: tuple[PoolCounts, ...]
    engines: tuple[EngineSummary, ...]


def summarise(index: str, state: State, digest: str) -> StateSummary:
    engines = [state.engines[name] for name in sorted(state.engines)]
    return StateSummary(
        index=index,
        position=state.position,
        commit=state.last_commit_id,
        digest=digest,
        block_size=state.block_size,
        hash_scheme=state.hash_scheme,
        nodes=len(state.nodes) - 1,
        requests=sum(len(engine.requests) for engine in engines),
        counters=count_tokens(engines),
        pools=count_pools(state),
        engines=tuple(map(summarise_engine, engines)),
    )


def summarise_engine(engine: Engine) -> EngineSummary:
    return EngineSummary(
        engine=engine.name,
        session=engine.session,
        alive=engine.alive,
        gpu_pool=engine.gpu_pool,
        cpu_pool=engine.cpu_pool,
        tensor_parallel_size=engine.tensor_parallel_size,
        requests=len(engine.requests),
        counters=count_tokens([engine]),
    )


def count_tokens(engines: Iterable[Engine]) -> Counters:
    listed = list(engines)
    prompt = sum(engine.prompt_tokens for engine in listed)
    matched = sum(engine.matched_tokens for engine in listed)
    return Counters(
        requests_seen=sum(engine.requests_seen for engine in listed),
        requests_hit=sum(engine.requests_hit for engine in listed),
        prompt_tokens=prompt,
        matched_tokens=matched,
        hit_rate=matched / prompt if prompt else None,
    )


def count_pools(state: State) -> tuple[PoolCounts, ...]:
    """Every pool, by name."""
    return tuple(_count_pool(state, state.pools[name]) for name in sorted(state.pools))


def _count_pool(state: State, pool: Pool) -> PoolCounts:
    pinned = private = 0
    for node in state.nodes.values():
        copy = node.copies.get(pool.name)
        if copy is not None and copy.refs:
            pinned += node.end - node.start
    for engine in state.engines.values():
        if pool.name in engine.held:
            private += engine.held[pool.name].total
        if engine.gpu_pool == pool.name:
            private += sum(ranges.count(private_ranges(request)) for request in engine.requests.values())
    return PoolCounts(
        pool=pool.name,
        tier=pool.tier,
        blocks=pool.blocks,
        free=pool.free.total,
        cached=pool.unpinned,
        pinned=pinned,
        private=private,
        used=pinned + private,
        evicted=pool.evicted,
    )
