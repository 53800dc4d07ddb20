"""The page says what was run, sums it up, hides nothing that failed, and claims nothing that was not run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from ops.reliability import command
from ops.reliability.page import TOTALS, page
from ops.reliability.results import (
    CheckResult,
    FaultResult,
    PlantedBug,
    Recoveries,
    SimulatedFault,
    Totals,
    to_json,
)
from ops.reliability.shown_by_tests import TESTS
from tests.reliability.test_results import CHAOS, NOTHING, SIMULATION


def test_every_total_has_words() -> None:
    assert list(TOTALS) == [field.name for field in attrs.fields(Totals)]


def test_runs_are_summed_up() -> None:
    """Given two runs, faults and totals are sums, the slowest recovery is the slowest, and both seeds stand there."""
    other = attrs.evolve(
        CHAOS,
        seed=8,
        faults=(FaultResult("engine killed", 3, 3, 3, 0, 9.25), FaultResult("out of memory", 1, 1)),
        totals=attrs.evolve(NOTHING, commits_acknowledged=5000),
    )
    told = page([attrs.evolve(CHAOS, totals=attrs.evolve(NOTHING, commits_acknowledged=1500)), other], [])

    assert "| engine killed | 15 | 15 | 12 | 0 | 9.2 s |" in told
    assert "| lost request | 400 | 400 | 0 | 0 |  |" in told
    assert "| out of memory | 1 | 1 | 0 | 0 |  |" in told
    assert "| commits acknowledged | 6,500 |" in told
    assert "| 7 |" in told
    assert "| 8 |" in told
    assert "appendfsync" in told
    assert "Redis 7.0.15" in told


def test_campaigns_are_summed_up() -> None:
    """Given two campaigns, what each counted is added up, with the slowest recovery once, and nothing that nobody measured
    is a 0."""
    other = attrs.evolve(
        SIMULATION,
        faults=(SimulatedFault("lost reply", 10, 10),),
        recoveries=Recoveries(100, 31.0, 70.0),
        checks=(CheckResult("one digest per position", 1_000, 1),),
    )
    told = page([], [SIMULATION, other])

    assert "| lost reply | 100 | 98 |\n" in told
    assert "| arrivals: all | 1,400 |" in told
    assert "| one digest per position | 21,000 | 1 |" in told
    assert "| commits acknowledged | 18,000 |" in told
    assert "all came right 400 times, in 31.0 simulated seconds at the slowest; the bound is 70.0" in told
    assert "| no fence check | a session that is over changes nothing | 5003 |" in told
    assert "recoveries measured" not in told


@pytest.mark.parametrize("test", [test for tests in TESTS.values() for test in tests])
def test_what_tests_show_is_shown_by_tests_that_exist(test: str) -> None:
    """Given a test named on the page, it is there, by that name."""
    file, _, name = test.partition("::")
    tree = ast.parse((Path(__file__).parents[2] / file).read_text())

    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert f"`{test}`" in page([], [])


def test_everything_is_run_from_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given no results of earlier runs, a chaos run is made, and minutes of the simulator over many seeds to the end of
    all, then the planted bugs: one seed would show nothing about what did not occur in it."""
    lines: list[list[str]] = []

    def run(line: list[str], *, check: bool) -> None:  # noqa: ARG001
        lines.append(line)
        result = CHAOS if "chaos" in line else SIMULATION
        Path(line[-1]).write_bytes(to_json(result))

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit) as ended:
        command.command.main(["--out", str(tmp_path / "page.md")], standalone_mode=False)

    assert ended.value.code == 0
    assert [line[3:-2] for line in lines] == [["chaos"], ["simulate", "--minutes", "3", "--keep-going", "--planted"]]


def test_what_failed_stands_there() -> None:
    """Given a run with a violation and a campaign with a bug nobody caught, the page says so."""
    told = page(
        [attrs.evolve(CHAOS, violations=("commit 3 is lost",), missing=("29 kills, of 30",))],
        [attrs.evolve(SIMULATION, failures=("seed 4: digest",), planted=(PlantedBug("free | early", "", None),))],
    )

    assert told.count("**not all**") == 2
    for sentence in ("seed 7: commit 3 is lost", "seed 7: 29 kills, of 30", "seed 4: digest", "0 of 1 caught"):
        assert sentence in told
    assert "| free \\| early | **nothing** |  |" in told


def test_what_was_not_run_is_not_claimed() -> None:
    told = page([], [])

    assert told.count("Not run for this page.") == 2
    assert "Not run for this page." in page([], [attrs.evolve(SIMULATION, planted=())])
    assert "all promises" not in told


def test_the_command_takes_results(tmp_path: Path) -> None:
    """Given results of earlier runs, the page is made of them and nothing is run; a failed one is an exit code."""
    (tmp_path / "chaos.json").write_bytes(to_json(CHAOS))
    (tmp_path / "simulation.json").write_bytes(to_json(SIMULATION))
    (tmp_path / "bad.json").write_bytes(to_json(attrs.evolve(CHAOS, seed=99, violations=("wrong",))))

    good, bad = (_command(tmp_path, "chaos.json"), _command(tmp_path, "chaos.json", "bad.json"))

    assert good.returncode == 0, good.stderr
    assert bad.returncode == 1
    assert "seed 99: wrong" in (tmp_path / "page.md").read_text()


def test_a_result_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "simulation.json").write_bytes(to_json(SIMULATION))

    done = _command(tmp_path, "simulation.json")

    assert done.returncode == 2
    assert "kind" in done.stderr
    assert not (tmp_path / "page.md").exists()


def _command(folder: Path, *chaos: str) -> subprocess.CompletedProcess[str]:
    files = [part for name in chaos for part in ("--chaos", str(folder / name))]
    return subprocess.run(
        [
            *(sys.executable, "-m", "ops.cli", "reliability", *files),
            *("--simulation", str(folder / "simulation.json"), "--out", str(folder / "page.md")),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
