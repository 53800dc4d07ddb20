"""`statecore simulate`: a campaign of the simulator.

Owns its options and the way to it: a process of its own, for the simulator is a part of the tests, which nothing here
imports. It comes with a checkout, not with the installed package.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from events.errors import InvalidInput

_CHECKOUT: Final = Path(__file__).resolve().parents[1]
_ARGUMENTS: Final = f"{__name__}.arguments"
_OPTIONS: Final = (
    click.option("--seed", default=0, show_default=True, help="First seed."),
    click.option("--count", default=1, show_default=True, help="How many seeds to run."),
    click.option("--minutes", type=float, help="Run seeds for so long instead; then all that must occur has to."),
    click.option("--steps", default=100, show_default=True, help="Actions of a run."),
    click.option("--engines", type=click.IntRange(1, 8), help="Engines; default: 2 to 4, by the seed."),
    click.option("--tiers", type=click.IntRange(1, 2), help="Tiers; default: by the seed."),
    click.option(
        "--perils/--no-perils", default=None, help="Whether servers, engines and keepers die; default: by the seed."
    ),
    click.option("--story", is_flag=True, help="Tell what happened even if all is well."),
    click.option("--no-shrink", is_flag=True, help="Show a failure as it came."),
    click.option("--keep-going", is_flag=True, help="Count failures by kind instead of stopping at the first."),
    click.option("--planted", is_flag=True, help="Then plant every known bug, and look whether it is caught: minutes."),
    click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the record of the campaign here."),
)

Function = TypeVar("Function", bound=Callable[..., Any])


def options(function: Function) -> Function:
    """All options of the command, for the simulator's own, too."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


class Forwarding(click.Command):
    """A command that keeps its arguments as they were given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)


@click.command("simulate", cls=Forwarding)
@options
@click.pass_context
def command(ctx: click.Context, /, json_path: Path | None, **_: object) -> None:
    """Simulate engines, workers, keepers and a server that dies, in one thread, from a seed. Needs a checkout.

    A failure is told by the shortest story that leads to it. With --minutes, every command, refusal, fault and turn that
    the simulator knows must have occurred: what did not is told.

    \b
    Exit codes:
      0  every promise was kept, all that must occur did, every planted bug was caught
      1  a promise was broken; with --minutes, something never occurred; with --planted, a bug was not caught
      2  a wrong option, or no checkout

    \b
    Examples:
      statecore simulate --minutes 10
      statecore simulate --seed 4711 --story
      statecore simulate --minutes 3 --keep-going --planted --json simulation.json
    """
    if not (_CHECKOUT / "tests" / "sim" / "command.py").exists():
        raise InvalidInput(
            "the simulator is in tests/sim of a checkout, and not in the installed package: clone, make setup"
        )
    arguments = [*ctx.meta[_ARGUMENTS], *(("--json", str(json_path.absolute())) if json_path else ())]
    ended = subprocess.run([sys.executable, "-m", "tests.sim", *arguments], cwd=_CHECKOUT, check=False)
    sys.exit(ended.returncode)
