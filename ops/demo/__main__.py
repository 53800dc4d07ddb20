"""`python -m ops.demo`: the demo without the group of commands around it. Engine processes import this file too."""

from __future__ import annotations

if __name__ == "__main__":
    from ops.demo.command import command

    command(prog_name="statecore demo")
