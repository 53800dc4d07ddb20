"""`statecore inspect`: one part of a state, at any position.

Owns the list of things that can be looked at; each is a module of its own, read-only, over a replayed log.
"""

from __future__ import annotations

from typing import Final

import click

from ops.cli.group import SETTINGS, Lazy, LazyGroup

_COMMANDS: Final = {
    "pools": Lazy("ops.cli.inspect.pools:command", "Blocks of each pool, by use."),
    "tree": Lazy("ops.cli.inspect.tree:command", "The prefix tree: runs, their copies, who uses them."),
    "request": Lazy("ops.cli.inspect.request:command", "A request: its block table and what happened to it."),
    "engine": Lazy("ops.cli.inspect.engine:command", "An engine: its lives, counters and requests."),
    "transfers": Lazy("ops.cli.inspect.transfers:command", "Transfers that are not over, since when, and who waits."),
}


@click.group(
    cls=LazyGroup,
    lazy=_COMMANDS,
    context_settings=SETTINGS,
    short_help="Look into pools, tree, requests, engines, transfers.",
)
def command() -> None:
    """Look into a state: now, or as it was at any position (--at N).

    \b
    Examples:
      statecore inspect pools
      statecore inspect tree --pool gpu:engine-0 --depth 3
      statecore inspect request chat-17 --at 1200
      statecore inspect engine engine-0 --json
    """
