"""`statecore reliability`: runs what there is to run, or reads what was run, and writes the page.

Owns the options and which commands make the results. Each run is a process of its own, so that nothing of one is left in the
next; one that fails is told, and its result, if it left any, is on the page as what it is.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeVar

import click

from ops.cli.failures import say_error
from ops.reliability.page import page
from ops.reliability.results import ChaosResult, SimulationResult, read

PAGE: Final = Path(__file__).resolve().parents[1] / "RELIABILITY.md"
CHAOS: Final = ("chaos",)
SIMULATION: Final = ("simulate", "--minutes", "3", "--keep-going", "--planted")

Result = TypeVar("Result", ChaosResult, SimulationResult)

_FILE: Final = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command(name="reliability")
@click.option(
    "--chaos", "chaos_files", type=_FILE, multiple=True, help="Take this result instead of running; repeatable."
)
@click.option("--simulation", "simulation_files", type=_FILE, multiple=True, help="The same for a campaign's.")
@click.option("--chaos-seed", "seeds", type=int, multiple=True, help="Of a chaos run; repeatable. Default: one, drawn.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), default=PAGE, help="Default: ops/RELIABILITY.md."
)
def command(
    chaos_files: tuple[Path, ...], simulation_files: tuple[Path, ...], seeds: tuple[int, ...], out: Path
) -> None:
    """Write ops/RELIABILITY.md from a chaos run and a campaign of the simulator, which it makes itself.

    Three minutes of each, then the planted bugs: about ten minutes in all. Results of earlier runs
    (`statecore chaos --json`, `statecore simulate --json`) are taken instead where they are given.

    Exit code: 0 all runs kept all promises; 1 one did not, or could not be run. The page is written in any case.

    \b
    Examples:
      statecore reliability
      statecore reliability --chaos-seed 4711 --out page.md
    """
    runs: list[Sequence[str]] = [(*CHAOS, "--seed", str(seed)) for seed in seeds] or [CHAOS]
    chaos, chaos_ok = _results(ChaosResult, chaos_files, runs)
    simulation, simulation_ok = _results(SimulationResult, simulation_files, [SIMULATION])
    out.write_text(page(chaos, simulation))
    click.echo(f"{out} is written from {len(chaos)} chaos runs and {len(simulation)} campaigns.")
    sys.exit(0 if chaos_ok and simulation_ok else 1)


def _results(kind: type[Result], files: Sequence[Path], runs: Sequence[Sequence[str]]) -> tuple[list[Result], bool]:
    """Read, or run and read; and whether all are there and kept what they should."""
    if files:
        found = [read(path, kind) for path in files]
        return found, all(each.ok for each in found)
    with tempfile.TemporaryDirectory(prefix="statecore-reliability-") as folder:
        made: list[Result] = []
        for number, words in enumerate(runs):
            path = Path(folder) / f"{number}.json"
            if _run(words, path):
                made.append(read(path, kind))
        return made, len(made) == len(runs) and all(each.ok for each in made)


def _run(words: Sequence[str], path: Path) -> bool:
    """Whether it left a result."""
    line = " ".join(words)
    click.echo(f"Running: statecore {line}")
    subprocess.run([sys.executable, "-m", "ops.cli", *words, "--json", str(path)], check=False)
    if not path.exists():
        say_error(f"statecore {line} left no result")
    return path.exists()
