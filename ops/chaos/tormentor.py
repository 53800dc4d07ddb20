"""Which fault comes when, from a seed.

Owns the deck and the order in which it is dealt. A fault that finds nobody to hit is dealt again later; one that never
found anybody is missing in the report, and fails the run.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from ops.chaos.moves import ASLEEP, MOVES, REDIS_ASLEEP, REDIS_KILLED, TWIN
from ops.chaos.stage import Stage

DECK_S: Final = 180.0
DECK: Final[dict[str, int]] = {
    REDIS_KILLED: 4,
    "engine killed": 10,
    "engine killed, its last commit late": 3,
    "worker killed": 12,
    "keeper killed": 5,
    "engine stopped for a moment": 4,
    ASLEEP: 2,
    TWIN: 2,
    "worker stopped for a moment": 3,
    "worker stopped, another in its place": 2,
    "keeper stopped": 2,
    "Redis stopped for a moment": 3,
    REDIS_ASLEEP: 1,
    "every connection cut": 4,
    "scripts flushed": 6,
    "out of memory": 3,
    "job stream deleted": 3,
    "consumer deleted": 3,
}
"""How often each is dealt in `DECK_S`; at least once in a shorter run, but for what would fill a short one."""

ONLY_IN_LONG_RUNS: Final = frozenset({REDIS_ASLEEP})
SHORT_S: Final = 60.0

JITTER: Final = 0.4
"""Share of the time between two faults by which each is moved."""

LONGER: Final = 2.0
"""A run that is not done in its time goes on for so many times of it at most."""

assert DECK.keys() == MOVES.keys(), "every fault is dealt"


def dealt(duration_s: float) -> tuple[str, ...]:
    """The faults that a run of this length deals."""
    return tuple(name for name in DECK if duration_s >= SHORT_S or name not in ONLY_IN_LONG_RUNS)


def deck(seed: int, duration_s: float) -> list[str]:
    """Names of faults in the order in which they are dealt.

    Redis dies at even distances: each time the log is closed for seconds afterwards, and two in a row would leave nothing to
    be hit. What takes long is dealt in the first half.
    """
    counts = {name: max(1, round(DECK[name] * duration_s / DECK_S)) for name in dealt(duration_s)}
    redis = counts.pop(REDIS_KILLED)
    cards = [name for name, count in counts.items() if name not in {ASLEEP, TWIN} for _ in range(count)]
    random.Random(f"{seed}/deck").shuffle(cards)
    long = [name for name in (ASLEEP, TWIN) for _ in range(counts[name])]
    for number, name in enumerate(long):
        cards.insert(number * len(cards) // (2 * len(long)), name)
    for number in range(redis):
        cards.insert((2 * number + 1) * len(cards) // (2 * redis), REDIS_KILLED)
    return cards


def torment(
    stage: Stage, seed: int, duration_s: float, watch: Callable[[str], None], enough: Callable[[], bool]
) -> None:
    """Make faults for so long, and `LONGER` until all are dealt and there are `enough`; return when all are healed.

    `watch` is told each fault.
    """
    chance = random.Random(f"{seed}/times")
    cards = deque(deck(seed, duration_s))
    distance_s = duration_s / (len(cards) + 1)
    begun = time.monotonic()
    due = begun + distance_s

    def goes_on() -> bool:
        cards.extend(stage.undone)
        stage.undone.clear()
        lasted_s = time.monotonic() - begun
        return lasted_s < duration_s or (lasted_s < LONGER * duration_s and (bool(cards) or not enough()))

    while goes_on() or not stage.quiet:
        stage.tick()
        if cards and due <= time.monotonic() and goes_on():
            due += distance_s * chance.uniform(1 - JITTER, 1 + JITTER)
            card = cards.popleft()
            if MOVES[card](stage, card):
                watch(card)
            else:
                cards.append(card)
