"""Summaries as tables, for people.

Owns which columns there are and what they are called; the numbers are `summary.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ops.cli.output import count, number, percent, table
from ops.cli.summary import Counters, EngineSummary, PoolCounts, StateSummary
from ops.cli.transfers import TransferSummary
from ops.cli.words import block_words, kind_words, policy_words
from statecore.state import CPU


def pool_table(pools: Sequence[PoolCounts]) -> Table:
    """Columns that only transfers fill are there when there is a host pool."""
    tiers = any(pool.tier == CPU for pool in pools)
    made = table(
        *("pool", "tier", "blocks#", "free#", "cached#", "pinned#", "private#"),
        *(("filling#", "quarantined#") if tiers else ()),
        *("used#", "used %#"),
        *(("leaving#",) if tiers else ()),
        "evicted#",
        *(("arrived#", "rescued#") if tiers else ()),
        title="Pools" if pools else "Pools: none yet",
    )
    made.show_header = bool(pools)
    for pool in pools:
        made.add_row(
            *(pool.pool, pool.tier, *map(number, (pool.blocks, pool.free, pool.cached, pool.pinned, pool.private))),
            *(map(number, (pool.filling, pool.quarantined)) if tiers else ()),
            *(number(pool.used), percent(pool.used / pool.blocks)),
            *((number(pool.leaving),) if tiers else ()),
            number(pool.evicted),
            *(map(number, (pool.arrived, pool.rescued)) if tiers else ()),
        )
    return made


def transfer_table(transfers: Sequence[TransferSummary]) -> Table:
    """What moves from where to where, and who waits for it."""
    made = table(
        *("transfer", "kind", "state", "blocks#", "from", "to", "place", "ranks#", "who waits"),
        title="Transfers" if transfers else "Transfers: none under way",
    )
    made.show_header = bool(transfers)
    for transfer in transfers:
        made.add_row(
            *(transfer.transfer, kind_words(transfer.kind), transfer.state, number(transfer.blocks)),
            f"{transfer.source} {block_words(transfer.source_blocks)}" if transfer.source_blocks else transfer.source,
            f"{transfer.destination} {block_words(transfer.destination_blocks)}",
            f"blocks {block_words(((transfer.start, transfer.blocks),))} to node {transfer.node}",
            number(transfer.ranks),
            ", ".join(transfer.waiting) or "-",
        )
    return made


def engine_table(engines: Sequence[EngineSummary]) -> Table:
    """Who works on the index, and what it found."""
    tiers = any(engine.cpu_pool is not None for engine in engines)
    made = table(
        *("engine", "session#", "state", "pool", "tp#", "live#", "requests#", "hits#"),
        *("prompt tokens#", "reused#", *(("from host#",) if tiers else ()), "hit rate#"),
        title="Engines" if engines else "Engines: none yet",
    )
    made.show_header = bool(engines)
    for engine in engines:
        counters = engine.counters
        made.add_row(
            engine.engine,
            str(engine.session),
            "alive" if engine.alive else "gone",
            engine.gpu_pool if engine.cpu_pool is None else f"{engine.gpu_pool}, {engine.cpu_pool}",
            str(engine.tensor_parallel_size),
            number(engine.requests),
            *map(number, (counters.requests_seen, counters.requests_hit)),
            *map(number, (counters.prompt_tokens, counters.matched_tokens)),
            *((number(counters.host_tokens),) if tiers else ()),
            percent(counters.hit_rate),
        )
    return made


def headline(summary: StateSummary, place: str) -> Table:
    """Name and value, one below the other."""
    counters, policy = summary.counters, summary.policy
    tiers = any(pool.tier == CPU for pool in summary.pools)
    return pairs(
        ("index", f"{summary.index} ({place})"),
        ("position", number(summary.position)),
        ("commit", summary.commit or "-"),
        ("digest", summary.digest),
        ("blocks of", f"{summary.block_size} tokens, hashed by {summary.hash_scheme}" if summary.block_size else "-"),
        ("tree", count(summary.nodes, "node")),
        *([("host tier", policy_words(policy.write, policy.free_low, policy.free_high))] if tiers else []),
        *([("transfers", _transfers(summary))] if tiers else []),
        ("requests", f"{number(summary.requests)} live, {number(counters.requests_seen)} so far"),
        ("hit rate", hit_rate_words(counters, tiers=tiers)),
    )


def hit_rate_words(counters: Counters, *, tiers: bool) -> str:
    """The hit rate, and what it is made of."""
    from_host = f", {number(counters.host_tokens)} from the host" if tiers else ""
    return (
        f"{percent(counters.hit_rate)} ({number(counters.matched_tokens)} of {number(counters.prompt_tokens)} "
        f"prompt tokens reused{from_host}; {number(counters.requests_hit)} of "
        f"{count(counters.requests_seen, 'request')} hit)"
    )


def _transfers(summary: StateSummary) -> str:
    late = summary.ignored_finishes
    ignored = f"; {count(late, 'result')} came too late" if late else ""
    return f"{number(len(summary.transfers))} not over, {number(summary.counters.transfers)} so far{ignored}"


def pairs(*rows: tuple[str, str]) -> Table:
    """A table of names and values without a head."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold cyan", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value)
    return made
