"""`statecore simulate`: a campaign of the simulator.

Owns the way to it: a process of its own, for the simulator is a part of the tests, which nothing here imports. It comes
with a checkout, not with the installed package.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from events.errors import InvalidInput

_CHECKOUT = Path(__file__).resolve().parents[1]
_OPTIONS = {"ignore_unknown_options": True, "allow_extra_args": True}


@click.command("simulate", context_settings=_OPTIONS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Simulate engines, workers, keepers and a server that dies, in one thread, from a seed. Needs a checkout.

    \b
    Examples:
      statecore simulate --minutes 10
      statecore simulate --seed 4711 --story
    Every option: python -m tests.sim --help
    """
    if not (_CHECKOUT / "tests" / "sim" / "command.py").exists():
        raise InvalidInput(
            "the simulator is in tests/sim of a checkout, and not in the installed package: clone, make setup"
        )
    ended = subprocess.run([sys.executable, "-m", "tests.sim", *arguments], cwd=_CHECKOUT, check=False)
    sys.exit(ended.returncode)
