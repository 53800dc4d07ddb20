"""What a state amounts to, in numbers.

Owns the counts an operator asks for: blocks of each pool by use, engines with their hit rates, transfers that are not
over. Pure; `replay` and `inspect` show them.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from ops.cli.transfers import TransferSummary, summarise_transfers
from statecore import ranges
from statecore.sends import Send
from statecore.state import Engine, Pool, State, Transfer, private_ranges


@attrs.frozen
class PoolCounts:
    """Blocks of a pool: `blocks = free + cached + used` and `used = pinned + private + filling + quarantined`.

    Attributes:
        cached: hold a prefix that no request uses.
        pinned: hold a prefix that requests use or transfers read.
        private: belong to one request, or to an engine itself.
        filling: a transfer brings their bytes.
        quarantined: of a cancelled transfer or send; a worker may still write into them.
        leaving: those of the pinned that are being swapped out.
        evicted: dropped from the cache so far.
        arrived: brought here by transfers so far.
        rescued: were to leave, but were used again in time, so far.
    """

    pool: str
    tier: str
    blocks: int
    free: int
    cached: int
    pinned: int
    private: int
    filling: int
    quarantined: int
    used: int
    leaving: int
    evicted: int
    arrived: int
    rescued: int


@attrs.frozen
class Policy:
    """When copies go to the host tier, see `statecore.policy`. `chosen`: it is a fact; else that of the oldest logs."""

    write: str
    free_low: int
    free_high: int
    chosen: bool


@attrs.frozen
class Counters:
    """What was asked and found, over all lives.

    Attributes:
        matched_tokens: prompt tokens that were found, in either tier.
        host_tokens: those of them for which a swap-in was started.
        hit_rate: found tokens by prompt tokens; None before the first.
        transfers: started so far.
    """

    requests_seen: int
    requests_hit: int
    prompt_tokens: int
    matched_tokens: int
    host_tokens: int
    hit_rate: float | None
    transfers: int


@attrs.frozen
class Window:
    """The same since the present window began, see `statecore.state.COUNTING_WINDOW`."""

    requests_seen: int
    requests_hit: int
    prompt_tokens: int
    matched_tokens: int
    host_tokens: int
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
    window: Window


@attrs.frozen
class StateSummary:
    """A whole index at a position.

    Attributes:
        nodes: runs of the tree, the root left out.
        transfers: those that are not over, sends among them.
        sends: how many of them are sends.
        ignored_finishes: results that came for transfers nobody knew any more.
        paused_by, paused_for: the engine that lets no request begin, and why; None while all may.
        clears: how often the cache was cleared.
    """

    index: str
    position: int
    commit: str
    digest: str
    block_size: int
    hash_scheme: str
    policy: Policy
    nodes: int
    requests: int
    counters: Counters
    pools: tuple[PoolCounts, ...]
    engines: tuple[EngineSummary, ...]
    transfers: tuple[TransferSummary, ...]
    sends: int
    ignored_finishes: int
    paused_by: str | None
    paused_for: str | None
    clears: int


def summarise(index: str, state: State, digest: str) -> StateSummary:
    engines = [state.engines[name] for name in sorted(state.engines)]
    return StateSummary(
        index=index,
        position=state.position,
        commit=state.last_commit_id,
        digest=digest,
        block_size=state.block_size,
        hash_scheme=state.hash_scheme,
        policy=Policy(state.write_policy, state.free_low, state.free_high, state.policy_chosen),
        nodes=len(state.nodes) - 1,
        requests=sum(len(engine.requests) for engine in engines),
        counters=count_tokens(engines),
        pools=count_pools(state),
        engines=tuple(map(summarise_engine, engines)),
        transfers=summarise_transfers(state),
        sends=len(state.sends),
        ignored_finishes=state.ignored_finishes,
        paused_by=state.paused_by,
        paused_for=None if state.paused_by is None else state.paused_for,
        clears=state.clears,
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
        window=_window(engine),
    )


def _window(engine: Engine) -> Window:
    seen, hit, prompt, matched, host = (now - then for now, then in zip(engine.counters, engine.window, strict=True))
    return Window(seen, hit, prompt, matched, host, matched / prompt if prompt else None)


def count_tokens(engines: Iterable[Engine]) -> Counters:
    listed = list(engines)
    prompt = sum(engine.prompt_tokens for engine in listed)
    matched = sum(engine.matched_tokens for engine in listed)
    return Counters(
        requests_seen=sum(engine.requests_seen for engine in listed),
        requests_hit=sum(engine.requests_hit for engine in listed),
        prompt_tokens=prompt,
        matched_tokens=matched,
        host_tokens=sum(engine.host_tokens for engine in listed),
        hit_rate=matched / prompt if prompt else None,
        transfers=sum(engine.transfers for engine in listed),
    )


def count_pools(state: State) -> tuple[PoolCounts, ...]:
    """Every pool, by name."""
    return tuple(_count_pool(state, state.pools[name]) for name in sorted(state.pools))


def _count_pool(state: State, pool: Pool) -> PoolCounts:
    pinned = private = filling = leaving = 0
    for node in state.nodes.values():
        copy = node.copies.get(pool.name)
        if copy is None:
            continue
        blocks = node.end - node.start
        if copy.filling is not None:
            filling += blocks
        elif copy.refs:
            pinned += blocks
        if copy.leaving is not None:
            leaving += blocks
    for engine in state.engines.values():
        if pool.name in engine.held:
            private += engine.held[pool.name].total
        if engine.gpu_pool == pool.name:
            private += sum(ranges.count(private_ranges(request)) for request in engine.requests.values())
    moving: list[Transfer | Send] = [*state.transfers.values(), *state.sends.values()]
    quarantined = sum(ranges.count(each.quarantine) for each in moving if each.destination == pool.name)
    return PoolCounts(
        pool=pool.name,
        tier=pool.tier,
        blocks=pool.blocks,
        free=pool.free.total,
        cached=pool.unpinned,
        pinned=pinned,
        private=private,
        filling=filling,
        quarantined=quarantined,
        used=pinned + private + filling + quarantined,
        leaving=leaving,
        evicted=pool.evicted,
        arrived=pool.arrived,
        rescued=pool.rescued,
    )
