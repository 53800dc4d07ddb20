"""Summaries as tables, for people.

Owns which columns there are and what they are called; the numbers are `summary.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ops.cli.output import count, number, percent, table
from ops.cli.summary import EngineSummary, PoolCounts, StateSummary


def pool_table(pools: Sequence[PoolCounts]) -> Table:
    made = table(
        *("pool", "tier", "blocks#", "free#", "cached#", "pinned#", "private#", "used#", "used %#", "evicted#"),
        title="Pools" if pools else "Pools: none yet",
    )
    made.show_header = bool(pools)
    for pool in pools:
        counts = (pool.blocks, pool.free, pool.cached, pool.pinned, pool.private, pool.used)
        used = percent(pool.used / pool.blocks)
        made.add_row(pool.pool, pool.tier, *map(number, counts), used, number(pool.evicted))
    return made


def engine_table(engines: Sequence[EngineSummary]) -> Table:
    made = table(
        *("engine", "session#", "state", "pool", "tp#", "live#", "requests#", "hits#"),
        *("prompt tokens#", "reused#", "hit rate#"),
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
            percent(counters.hit_rate),
        )
    return made


def headline(summary: StateSummary, place: str) -> Table:
    """Name and value, one below the other."""
    counters = summary.counters
    return pairs(
        ("index", f"{summary.index} ({place})"),
        ("position", number(summary.position)),
        ("commit", summary.commit or "-"),
        ("digest", summary.digest),
        ("blocks of", f"{summary.block_size} tokens, hashed by {summary.hash_scheme}" if summary.block_size else "-"),
        ("tree", count(summary.nodes, "node")),
        ("requests", f"{number(summary.requests)} live, {number(counters.requests_seen)} so far"),
        (
            "hit rate",
            f"{percent(counters.hit_rate)} ({number(counters.matched_tokens)} of {number(counters.prompt_tokens)} "
            f"prompt tokens reused; {number(counters.requests_hit)} of {count(counters.requests_seen, 'request')} hit)",
        ),
    )


def pairs(*rows: tuple[str, str]) -> Table:
    """A table of names and values without a head."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold cyan", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value)
    return made
