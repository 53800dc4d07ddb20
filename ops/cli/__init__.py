"""The command `statecore`: what an operator types.

Owns the entry point. `group.py` lists the commands and loads the one that is used, `failures.py` turns errors into a
line and an exit code, `source.py` opens the log a command reads; every command is a module of its own.
"""

from ops.cli.group import statecore

main = statecore

__all__ = ["main"]
