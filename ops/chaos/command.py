"""`statecore chaos`: its options, its refusals, its exit code.

Owns the meeting of a person and a chaos run. What a person got wrong is one line on standard error and exit code 2; a
violation, a fault that never occurred or a minimum that was missed is exit code 1. Ctrl-C and SIGTERM end everything.
"""

from __future__ import annotations

import secrets
import sys
import time
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from events.embedded import redis_server_binary
from events.errors import StateCoreError
from events.keys import checked_name
from ops.chaos.report import opening, show
from ops.chaos.run import NotRun, run
from ops.chaos.scene import Plan
from ops.demo.command import INTERRUPTED, Failure, Refused, ended_in_order
from ops.reliability.results import to_json

DURATION_S: Final = 190.0
DURATION_LEAST_S: Final = 15.0
FSYNC: Final = ("always", "everysec", "no")


@click.command(name="chaos")
@click.option(
    "--seconds", "duration_s", type=float, default=DURATION_S, show_default=True, help="Of faults, 15 or more."
)
@click.option("--seed", type=int, help="Of the faults and their times. Default: drawn, and told.")
@click.option("--engines", type=click.IntRange(1, 16), default=4, show_default=True, help="The last two share a pool.")
@click.option("--tp", "ranks", type=click.IntRange(1, 8), default=2, show_default=True, help="Ranks: workers per pool.")
@click.option("--keepers", type=click.IntRange(1, 4), default=2, show_default=True, help="Of which one acts.")
@click.option(
    "--binary",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A redis-server. Default: the embedded.",
)
@click.option("--fsync", type=click.Choice(FSYNC), default="always", show_default=True, help="Redis' appendfsync.")
@click.option("--kills", "kills_min", type=int, default=30, show_default=True, help="At least so many.")
@click.option("--network", "network_min", type=int, default=1000, show_default=True, help="Faults of it, at least.")
@click.option("--commits", "commits_min", type=int, default=5000, show_default=True, help="Acknowledged, at least.")
@click.option("--index", help="Its name, for nobody else on this machine. Default: drawn.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the result here, too."
)
def command(json_path: Path | None, **options: object) -> None:
    """Kill, stop, cut off and starve engines, workers, keepers and Redis, and check what is left.

    Every engine writes down what it was told of each commit, every reused block is looked at, somebody reads the log from
    its first entry. In the end everybody leaves, and the histories are held against the log: acknowledged commits in it
    once, where they were said to be, in real-time order; equal digests; bytes; no leaked block, no open transfer.

    A run that has not reached its minimums goes on, up to twice as long. It listens on loopback only.

    Exit code: 0 all promises kept; 1 one is broken, or something that should have occurred did not; 2 wrong options.

    \b
    Examples:
      statecore chaos
      statecore chaos --seconds 30 --kills 3 --network 100 --commits 500 --seed 4711
    """
    drawn = {"seed": secrets.randbelow(1 << 31), "index": f"chaos-{secrets.token_hex(4)}"}
    plan = Plan(**{**options, **{name: value for name, value in drawn.items() if options[name] is None}})  # type: ignore[arg-type]
    checked_name(plan.index, "--index")
    if not plan.duration_s >= DURATION_LEAST_S:
        raise Refused(f"--seconds must be at least {DURATION_LEAST_S:.0f}, not {plan.duration_s:g}")
    console = Console(highlight=False)
    server = str(plan.binary or redis_server_binary().name)
    console.print(opening(plan.seed, plan.duration_s, plan.fsync, server), soft_wrap=True)
    begun = time.monotonic()
    progress = Console(stderr=True, highlight=False)

    def watch(what: str) -> None:
        progress.print(f"{time.monotonic() - begun:6.1f} s  {what}", style="dim", soft_wrap=True)

    try:
        with ended_in_order():
            result = run(plan, watch)
    except (NotRun, StateCoreError, OSError, RuntimeError) as error:
        raise Failure(f"{error} (seed {plan.seed}). All processes are ended.") from None
    except KeyboardInterrupt:
        click.echo("Interrupted: all processes are ended.", err=True)
        sys.exit(INTERRUPTED)
    show(console, result)
    if json_path is not None:
        json_path.write_bytes(to_json(result))
    sys.exit(0 if result.ok else 1)
