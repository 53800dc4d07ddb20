"""`python -m tests.sim`: see `command.py`."""

from __future__ import annotations

from tests.sim.command import simulate

if __name__ == "__main__":
    simulate()
