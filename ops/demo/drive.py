"""The loop around a scheduler's steps: when to go on at once, when to wait, and when to give up.

Owns time, chance and the bounds; the scheduler has none of them. No loop here is endless: an engine that gets nowhere
for `STARVED_S` seconds, or loses `LOST_MAX` steps in a row, says so and ends.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from ops.demo.scheduler import Outcome, Scheduler

STARVED_S: Final = 60.0
"""Without a block to go on with for so long, something holds them that will never let go."""

LOST_MAX: Final = 200
"""Steps lost in a row. Each loss means that another engine went on, and losing leaves time to it: a jittered wait."""

WAIT_INITIAL_S: Final = 0.001
WAIT_MAX_S: Final = 0.05
"""Waits grow and are drawn at random, so that engines that wait for each other do not do so in step."""


AHEAD_S: Final = 0.05
"""A step of an engine that is ahead of the others lasts at least so long: many thin steps would only take the log's
time from those that are behind. Bounded, because those may wait for its blocks."""


class Starved(Exception):
    """The engine got nowhere for too long."""


def drive(
    scheduler: Scheduler,
    *,
    step_s: float = 0.0,
    after_step: Callable[[], None] = lambda: None,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Step until every request is served. `step_s` is what a model would take for a step, at least.

    Raises:
        Starved: see the module.
        Unavailable, CorruptState, SessionOver: as `Scheduler.step`.
    """
    idle, lost, progressed_at = 0, 0, now()
    while True:
        began = now()
        outcome = scheduler.step()
        after_step()
        lost = lost + 1 if outcome is Outcome.LOST else 0
        idle = idle + 1 if outcome in (Outcome.SHORT, Outcome.AHEAD) else 0
        match outcome:
            case Outcome.DONE:
                return
            case Outcome.PROGRESS:
                progressed_at = now()
                least_s = max(step_s, AHEAD_S) if scheduler.is_ahead else step_s
                sleep(max(0.0, began + least_s - progressed_at))
            case Outcome.LOST:
                if lost >= LOST_MAX:
                    raise Starved(f"lost {lost} steps in a row to other engines of its pool")
                sleep(_wait(lost))
            case Outcome.SHORT:
                if now() - progressed_at > STARVED_S:
                    raise Starved(f"{_needs(scheduler)} and nobody released any for {STARVED_S:.0f} s")
                sleep(_wait(idle))
                scheduler.index.refresh()
            case Outcome.AHEAD:
                progressed_at = now()  # its turn will come: the engine that is behind is bounded itself
                sleep(AHEAD_S)


def _wait(times: int) -> float:
    return random.uniform(0, min(WAIT_MAX_S, WAIT_INITIAL_S * 2 ** min(times, 10)))


def _needs(scheduler: Scheduler) -> str:
    index = scheduler.index
    return (
        f"{len(scheduler.running)} running and {len(scheduler.waiting)} waiting requests need blocks, pool "
        f"{index.gpu_pool!r} has {index.free_blocks} free and {index.cached_blocks} evictable"
    )
