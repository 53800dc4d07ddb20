"""The simulator as a test: hundreds of seeds keep every promise, everything interesting occurs, and planted bugs are
found."""

from __future__ import annotations

import traceback

import attrs
import pytest

from statecore.replica import Replica
from tests.sim.campaign import EXPECTED, EXPECTED_OF_PERILS, EXPECTED_OF_TIERS, Campaign, campaign
from tests.sim.planted import PLANTED
from tests.sim.planted_lives import PLANTED_LIVES
from tests.sim.planted_tables import ONE_TIER, PERILS, TWO_TIERS
from tests.sim.planted_tiers import PLANTED_TIERS
from tests.sim.planting import FIRST, Bug, Plant, Search, catch, patches
from tests.sim.shrink import kind_of, shrink
from tests.sim.story import Outcome, run

SEEDS, STEPS = range(120), 60
TIER_SEEDS, TIER_STEPS = range(200), 100
PERILS_SEEDS, PERILS_STEPS = range(160), 100


@pytest.fixture(scope="module")
def one_tier() -> Campaign:
    return campaign(SEEDS, STEPS, tiers=1)


@pytest.fixture(scope="module")
def two_tiers() -> Campaign:
    return campaign(TIER_SEEDS, TIER_STEPS, tiers=2)


@pytest.fixture(scope="module")
def perils() -> Campaign:
    return campaign(PERILS_SEEDS, PERILS_STEPS, tiers=2, perils=True)


def test_every_promise_holds(one_tier: Campaign) -> None:
    """Given engines on a log that loses, delays and repeats, then no promise of `reliability.md` is broken."""
    _holds(one_tier)


def test_every_promise_holds_between_the_tiers(two_tiers: Campaign) -> None:
    """Given a host pool and workers that die, are late, and come twice, then no block is read before it is filled, none
    given away while it is written, every transfer ends, and nothing is leaked."""
    _holds(two_tiers)


def test_every_promise_holds_whoever_dies(perils: Campaign) -> None:
    """Given a server that comes back with less than it had, engines that are killed and stopped, keepers that die at any
    point and snapshots that rot (E-25, E-27, E-28, E-45), then no promise is broken, and when all that has stopped, the
    keeper alone clears up within the bound: everybody agrees, no transfer is open, no block is leaked (E-33, E-34)."""
    _holds(perils)


@pytest.mark.parametrize("mark", EXPECTED)
def test_it_occurred(mark: str, one_tier: Campaign) -> None:
    """Given the campaign, then each command, refusal, fault and turn happened: else it shows nothing about it."""
    _occurred(mark, one_tier)


@pytest.mark.parametrize("mark", EXPECTED_OF_TIERS)
def test_it_occurred_between_the_tiers(mark: str, two_tiers: Campaign) -> None:
    """Given the campaign with two tiers, then each end of a transfer and each death of a worker happened."""
    _occurred(mark, two_tiers)


@pytest.mark.parametrize("mark", EXPECTED_OF_PERILS)
def test_it_occurred_among_perils(mark: str, perils: Campaign) -> None:
    """Given the campaign with perils, then each death, loss and rescue happened."""
    _occurred(mark, perils)


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found(bug: str) -> None:
    """Given a machine with a bug, when a campaign runs, then a check ends it that is named beside the bug."""
    assert catch(PLANTED[bug], ONE_TIER) is not None


@pytest.mark.parametrize("bug", PLANTED_TIERS)
def test_a_planted_bug_of_the_tiers_is_found(bug: str) -> None:
    """Given a machine, a worker or a job stream with a bug, when a campaign with two tiers runs, then such a check ends
    it."""
    assert catch(PLANTED_TIERS[bug], TWO_TIERS) is not None


@pytest.mark.parametrize("bug", PLANTED_LIVES)
def test_a_planted_bug_of_lives_and_snapshots_is_found(bug: str) -> None:
    """Given a log, a keeper, a lease or a worker's pulse with a bug, when a campaign with perils runs, then such a check
    ends it."""
    assert catch(PLANTED_LIVES[bug], PERILS) is not None


def test_an_error_that_is_no_check_catches_nothing() -> None:
    """Given a bug by which the machine raises a TypeError at once, then no run has caught it; and only the check that is
    named beside a bug does."""
    broken = patches((Replica, "undo", None))
    search = attrs.evolve(ONE_TIER, runs=5)

    assert any(outcome.failure for outcome in _runs(broken, search))
    assert catch(Bug(broken, tuple(check for bug in PLANTED.values() for check in bug.checks)), search) is None
    assert (
        catch(attrs.evolve(PLANTED["release forgets duplicates"], checks=("resolve tells the truth",)), search) is None
    )


def _runs(plant: Plant, search: Search) -> list[Outcome]:
    with plant():
        return [run(FIRST + number, search.steps, tiers=search.tiers) for number in range(search.runs)]


@pytest.mark.parametrize("tiers", [1, 2])
def test_a_seed_repeats_itself(tiers: int) -> None:
    """Given a seed, when it runs twice, then it tells the same story; and so does the script it recorded."""
    first, again = run(7, STEPS, tiers=tiers), run(7, STEPS, tiers=tiers)
    played = run(7, STEPS, script=first.script)

    assert first.story == again.story
    assert first.story == played.story


def test_a_failure_shrinks() -> None:
    """Given a failing run, when it is shrunk, then it is shorter and fails in the same way."""
    with PLANTED["release forgets duplicates"].plant():
        failing = campaign(range(FIRST, FIRST + ONE_TIER.runs), STEPS, tiers=1).failure
        assert failing is not None
        shortest = shrink(failing, tries=300)

        assert kind_of(shortest.failure) == kind_of(failing.failure)
        assert sum(map(len, shortest.script)) < sum(map(len, failing.script))
        assert run(0, len(shortest.script), script=shortest.script).failure is not None


def _holds(found: Campaign) -> None:
    if found.failure is not None:
        shortest = shrink(found.failure)
        story = "\n".join(shortest.story)
        error = "".join(traceback.format_exception(shortest.failure))
        pytest.fail(f"seed {shortest.seed}: {kind_of(shortest.failure)}\n{story}\n{error}", pytrace=False)


def _occurred(mark: str, found: Campaign) -> None:
    if found.failure is not None:
        pytest.skip("the campaign ended early")
    assert found.marks[mark] > 0
