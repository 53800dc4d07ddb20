"""Summaries as tables, for people.

Owns which columns there are and what they are called; the numbers are `summary.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ops.cli.output import count, number, percent, table
from ops.cli.summary import Counters, EngineSummary, PoolCounts, StateSummary, Window
from ops.cli.transfers import TransferSummary
from ops.cli.words import block_words, kind_words, policy_words
from statecore.state import CPU


def pool_table(pools: Sequence[PoolCounts]) -> Table:
    """Columns that only transfers fill are there when there is a host pool, those that sends fill too when there were."""
    tiers = any(pool.tier == CPU for pool in pools)
    sends = tiers or any(pool.quarantined or pool.arrived for pool in pools)
    made = table(
        *("pool", "tier", "blocks#", "free#", "cached#", "pinned#", "private#"),
        *(("filling#",) if tiers else ()),
        *(("quarantined#",) if sends else ()),
        *("used#", "used %#"),
        *(("leaving#",) if tiers else ()),
        "evicted#",
        *(("arrived#",) if sends else ()),
        *(("rescued#",) if tiers else ()),
        title="Pools" if pools else "Pools: none yet",
    )
    made.show_header = bool(pools)
    for pool in pools:
        made.add_row(
            *(pool.pool, pool.tier, *map(number, (pool.blocks, pool.free, pool.cached, pool.pinned, pool.private))),
            *((number(pool.filling),) if tiers else ()),
            *((number(pool.quarantined),) if sends else ()),
            *(number(pool.used), percent(pool.used / pool.blocks)),
            *((number(pool.leaving),) if tiers else ()),
            number(pool.evicted),
            *((number(pool.arrived),) if sends else ()),
            *((number(pool.rescued),) if tiers else ()),
        )
    return made


def transfer_table(transfers: Sequence[TransferSummary]) -> Table:
    """What moves from where to where, and who waits for it."""
    made = table(
        *("transfer", "kind", "state", "blocks#", "from~", "to~", "who waits~", "place", "ranks#"),
        title="Transfers" if transfers else "Transfers: none under way",
    )
    made.show_header = bool(transfers)
    for transfer in transfers:
        made.add_row(
            *(transfer.transfer, kind_words(transfer.kind), transfer.state, number(transfer.blocks)),
            f"{transfer.source} {block_words(transfer.source_blocks)}" if transfer.source_blocks else transfer.source,
            _destination(transfer),
            _who_waits(transfer),
            "-"
            if transfer.start is None
            else f"blocks {block_words(((transfer.start, transfer.blocks),))} to node {transfer.node}",
            number(transfer.ranks),
        )
    return made


def _destination(transfer: TransferSummary) -> str:
    """Where its workers write; of a cancelled send a part may be its receiver's still."""
    words = f"{transfer.destination} {block_words(transfer.destination_blocks)}"
    partly = transfer.receiver is not None and transfer.quarantine not in ((), transfer.destination_blocks)
    return f"{words} (quarantined {block_words(transfer.quarantine)})" if partly else words


def _who_waits(transfer: TransferSummary) -> str:
    requests = ", ".join(transfer.waiting) or "-"
    return requests if transfer.receiver is None or not transfer.waiting else f"{requests} in {transfer.receiver}"


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
    cleared = count(summary.clears, "time")
    return pairs(
        ("index", f"{summary.index} ({place})"),
        ("position", number(summary.position)),
        ("commit", summary.commit or "-"),
        ("digest", summary.digest),
        ("blocks of", f"{summary.block_size} tokens, hashed by {summary.hash_scheme}" if summary.block_size else "-"),
        ("tree", count(summary.nodes, "node")),
        *([("host tier", policy_words(policy.write, policy.free_low, policy.free_high))] if tiers else []),
        *([("transfers", _transfers(summary))] if tiers or counters.transfers else []),
        *(
            [("service", f"paused by {summary.paused_by}: {summary.paused_for}")]
            if summary.paused_by is not None
            else []
        ),
        *([("cache", f"cleared {cleared}")] if summary.clears else []),
        ("requests", f"{number(summary.requests)} live, {number(counters.requests_seen)} so far"),
        ("hit rate", hit_rate_words(counters, tiers=tiers)),
    )


def hit_rate_words(counters: Counters | Window, *, tiers: bool) -> str:
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
    sends = f" ({count(summary.sends, 'send')} among them)" if summary.sends else ""
    return f"{number(len(summary.transfers))} not over{sends}, {number(summary.counters.transfers)} so far{ignored}"


def pairs(*rows: tuple[str, str]) -> Table:
    """A table of names and values without a head."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold cyan", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value)
    return made
