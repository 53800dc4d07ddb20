"""`statecore simulate` says what it ran, what never occurred, and which planted bug nobody noticed; its exit code, too."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ops import simulate_command
from ops.reliability.results import CheckResult, SimulatedFault, SimulationResult, read
from tests.sim import planted_tables
from tests.sim.accounts import Violation
from tests.sim.campaign import EXPECTED_OF_PERILS, EXPECTED_OF_TIERS, expected
from tests.sim.command import simulate
from tests.sim.planted import PLANTED
from tests.sim.planted_tables import ONE_TIER
from tests.sim.planting import Bug, Search, patches
from tests.sim.record import EVENTS, FAULTS, Record
from tests.sim.story import run

EASY = "highest ids are given first"


def simulated(*arguments: str) -> Result:
    return CliRunner().invoke(simulate, arguments)


def test_minutes_that_show_too_little_fail() -> None:
    """Given a campaign of minutes in which something never occurred, it is told and is the exit code: nothing was shown
    about it. Given single seeds, nobody expects everything of them."""
    campaign, single = simulated("--minutes", "0.001"), simulated("--count", "1")

    assert campaign.exit_code == 1
    assert "never occurred: " in campaign.output
    assert single.exit_code == 0
    assert "never occurred" not in single.output


def test_what_cannot_occur_is_not_expected() -> None:
    """Given a campaign of one tier, or without perils, then what needs the other tier, or perils, is not missed."""
    assert not set(expected(1, None)) & (set(EXPECTED_OF_TIERS) - set(expected(1, False)))
    assert set(EXPECTED_OF_TIERS) <= set(expected(2, False))
    assert not {"RolledBack", "deposed"} & set(expected(None, False))
    assert set(EXPECTED_OF_PERILS) <= set(expected(None, None))


def test_a_record_holds_what_was_counted(tmp_path: Path) -> None:
    """Given some seeds, then the record says how often each check was made, and how many bytes and commits were compared."""
    assert simulated("--count", "3", "--json", str(tmp_path / "it.json")).exit_code == 0
    result = read(tmp_path / "it.json", SimulationResult)

    assert result.totals["blocks whose bytes were looked at, rank by rank"] > 100
    assert result.totals["commits acknowledged"] > 50
    assert result.recoveries.measured == 6
    assert 0.0 < result.recoveries.slowest_s <= result.recoveries.bound_s
    assert all(check.made > 0 and not check.broken for check in result.checks)
    assert result.planted == ()


def test_a_failure_is_counted_at_its_check() -> None:
    """Given a run that a check ended, then that check is broken once, and none of its faults is survived."""
    record = Record()
    with PLANTED[EASY].plant():
        outcome = run(5_000, 60, tiers=1)
    assert isinstance(outcome.failure, Violation)
    record.add(outcome)
    result = record.result(5_000, 60, 1.0, (), ())

    broken = [each for each in result.checks if each.broken]
    assert [(each.check, each.broken) for each in broken] == [("lowest ids are given first", 1)]
    assert broken[0].made >= 1
    assert all(fault.survived == 0 for fault in result.faults)
    assert isinstance(broken[0], CheckResult)
    assert isinstance(result.faults[0], SimulatedFault)


def test_events_are_no_faults() -> None:
    """Given arrivals and positions, then they are told as what came of faults, not as faults."""
    assert not set(EVENTS) & set(FAULTS)
    assert {"arrivals: all", "positions reused"} <= set(EVENTS)


def test_planted_bugs_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a bug that a check notices and one that nothing does, then both are in the record, and the second fails it."""
    nothing = Bug(patches(), ("lowest ids are given first",))
    search = Search(runs=2, steps=20, tiers=1)
    tables = (({EASY: PLANTED[EASY]}, ONE_TIER), ({"nothing at all": nothing}, search))
    monkeypatch.setattr(planted_tables, "TABLES", tables)

    done = simulated("--planted", "--json", str(tmp_path / "it.json"))
    caught, missed = read(tmp_path / "it.json", SimulationResult).planted

    assert done.exit_code == 1
    assert (caught.bug, caught.caught_by) == (EASY, "lowest ids are given first")
    assert caught.seed is not None
    assert (missed.caught_by, missed.seed) == ("", None)
    assert "nothing at all: NOT CAUGHT" in done.output


def test_the_help_lists_every_option() -> None:
    """Given `statecore simulate --help`, then options and exit codes stand there, and not behind another command."""
    told = CliRunner().invoke(simulate_command.command, ["--help"]).output

    for option in ("--seed", "--count", "--minutes", "--story", "--json", "--planted", "--keep-going", "Exit codes"):
        assert option in told
