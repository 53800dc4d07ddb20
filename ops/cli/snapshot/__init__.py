"""`statecore snapshot`: a whole state as a file, for debugging elsewhere.

Owns the list of what can be done with one; each is a module of its own. The file holds exactly what the keeper stores, see
`statecore/snapshot.py`.
"""

from __future__ import annotations

from typing import Final

import click

from ops.cli.group import SETTINGS, Lazy, LazyGroup

_COMMANDS: Final = {
    "export": Lazy("ops.cli.snapshot.take:command", "Write the state at a position into a file."),
    "show": Lazy("ops.cli.snapshot.show:command", "Say what a snapshot file holds."),
    "import": Lazy("ops.cli.snapshot.begin:command", "Begin an empty index with a snapshot file."),
}


@click.group(
    cls=LazyGroup,
    lazy=_COMMANDS,
    context_settings=SETTINGS,
    short_help="Copy a state into a file, show one, begin an index with one.",
)
def command() -> None:
    """Copy a whole state into a file, look at it, and begin an index elsewhere with it.

    The keeper's own snapshots are beside the log and need none of this: every command uses them by itself.

    \b
    Examples:
      statecore snapshot export now.snapshot
      statecore snapshot export then.snapshot --at 41200
      statecore snapshot show then.snapshot
      statecore snapshot import then.snapshot --url embedded:///var/tmp/incident --index incident
    """
