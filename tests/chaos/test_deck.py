"""Which faults a run deals: all of them, in an order that a seed decides, Redis' deaths apart from each other."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from ops.chaos.moves import MOVES, REDIS_ASLEEP, REDIS_KILLED
from ops.chaos.tormentor import DECK, DECK_S, dealt, deck


@pytest.mark.parametrize("seed", range(20))
def test_every_fault_is_dealt(seed: int) -> None:
    """Given a run of the full length, each fault comes as often as planned, and more than 30 of them kill."""
    cards = deck(seed, DECK_S)

    assert Counter(cards) == DECK
    assert DECK.keys() == MOVES.keys()
    assert sum("killed" in card for card in cards) >= 30


def test_a_short_run_deals_each_once() -> None:
    """Given a run of seconds, each fault comes once, but for what would fill it."""
    assert Counter(deck(3, 20.0)) == {fault: 1 for fault in DECK if fault != REDIS_ASLEEP}
    assert set(dealt(20.0)) == DECK.keys() - {REDIS_ASLEEP}
    assert set(dealt(DECK_S)) == DECK.keys()


def test_the_seed_decides_the_order() -> None:
    assert deck(1, DECK_S) == deck(1, DECK_S)
    assert deck(1, DECK_S) != deck(2, DECK_S)


@pytest.mark.parametrize("seed", range(20))
def test_redis_has_time_between_its_deaths(seed: int) -> None:
    """Otherwise the log would be closed most of the time, and nothing would be there to be hit."""
    cards = deck(seed, DECK_S)
    at = [place for place, card in enumerate(cards) if card == REDIS_KILLED]

    assert min(later - earlier for earlier, later in itertools.pairwise(at)) >= len(cards) // 6
