"""The simulator as a test: hundreds of seeds keep every promise, everything interesting occurs, and planted bugs are
found."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest

from tests.sim.campaign import EXPECTED, Campaign, campaign
from tests.sim.planted import PLANTED
from tests.sim.shrink import kind_of, shrink
from tests.sim.story import run

SEEDS = range(200)
STEPS = 60
PLANTED_SEEDS = range(5_000, 5_060)


@pytest.fixture(scope="module")
def found() -> Campaign:
    return campaign(SEEDS, STEPS)


def test_every_promise_holds(found: Campaign) -> None:
    """Given engines on a log that loses, delays and repeats, then no promise of `reliability.md` is broken."""
    if found.failure is not None:
        shortest = shrink(found.failure)
        story = "\n".join(shortest.story)
        error = "".join(traceback.format_exception(shortest.failure))
        pytest.fail(f"seed {shortest.seed}: {kind_of(shortest.failure)}\n{story}\n{error}", pytrace=False)


@pytest.mark.parametrize("mark", EXPECTED)
def test_it_occurred(mark: str, found: Campaign) -> None:
    """Given the campaign, then each command, refusal, fault and turn happened: else it shows nothing about it."""
    if found.failure is not None:
        pytest.skip("the campaign ended early")
    assert found.marks[mark] > 0


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_bug_is_found(plant: Callable[[], Any]) -> None:
    """Given a machine with a bug, when a campaign runs, then it fails."""
    with plant():
        assert campaign(PLANTED_SEEDS, STEPS).failure is not None


def test_a_seed_repeats_itself() -> None:
    """Given a seed, when it runs twice, then it tells the same story; and so does the script it recorded."""
    first, again = run(7, STEPS), run(7, STEPS)
    played = run(7, STEPS, script=first.script)

    assert first.story == again.story
    assert first.story == played.story


def test_a_failure_shrinks() -> None:
    """Given a failing run, when it is shrunk, then it is shorter and fails in the same way."""
    with PLANTED["release forgets duplicates"]():
        failing = campaign(PLANTED_SEEDS, STEPS).failure
        assert failing is not None
        shortest = shrink(failing, tries=300)

        assert kind_of(shortest.failure) == kind_of(failing.failure)
        assert sum(map(len, shortest.script)) < sum(map(len, failing.script))
        assert run(0, len(shortest.script), script=shortest.script).failure is not None
