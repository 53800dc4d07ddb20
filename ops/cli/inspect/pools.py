"""`statecore inspect pools`: the blocks of each pool, by use."""

from __future__ import annotations

import attrs
import click

from ops.cli.inspect.view import inspect_options, opened_view
from ops.cli.output import show, write_json
from ops.cli.report import pairs, pool_table
from ops.cli.source import Where
from ops.cli.summary import count_pools
from ops.cli.words import block_words
from statecore.state import State


@click.command(short_help="Blocks of each pool, by use.")
@inspect_options
def command(where: Where, at: int | None, as_json: bool) -> None:
    """Blocks of each pool, by use, which of them are free, and who works in the pool.

    \b
    blocks = free + cached + used
    used   = pinned + private + filling + quarantined
      cached       hold a prefix that no request uses
      pinned       hold a prefix in use, or one that a transfer reads
      private      belong to one request, or to an engine itself
      filling      a transfer brings their bytes
      quarantined  of a cancelled transfer or send: a worker may still write into them
    leaving        those of the pinned that a swap-out takes away, unless they are used again
    evicted, arrived, rescued    dropped, brought by transfers, used again before they had left: so far

    \b
    Examples:
      statecore inspect pools
      statecore inspect pools --at 1200 --json
    """
    with opened_view(where, at) as view:
        counts = count_pools(view.state)
        free = {name: tuple(pool.free) for name, pool in view.state.pools.items()}
        if as_json:
            write_json(
                {
                    "index": view.index,
                    "position": view.state.position,
                    "pools": [
                        {
                            **attrs.asdict(pool),
                            "free_blocks": free[pool.pool],
                            "engines": _engines(view.state, pool.pool),
                        }
                        for pool in counts
                    ],
                }
            )
            return
        shown = pool_table(counts)
        shown.title = view.title("Pools" if counts else "No pools")
        rows = []
        for pool in counts:
            rows.append((f"{pool.pool} engines", ", ".join(_engines(view.state, pool.pool)) or "none alive"))
            rows.append((f"{pool.pool} free", block_words(free[pool.pool])))
        show(shown, *([pairs(*rows)] if rows else []))


def _engines(state: State, pool: str) -> list[str]:
    return sorted(
        engine.name for engine in state.engines.values() if engine.alive and pool in (engine.gpu_pool, engine.cpu_pool)
    )
