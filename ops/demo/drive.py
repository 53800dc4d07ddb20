"""The loop around a scheduler's steps: when to go on at once, when to wait, and when to give up.

Owns time, chance and the bounds; the scheduler has none of them. No loop here is endless: an engine that gets nowhere
for `STARVED_S` seconds, or loses `LOST_MAX` steps in a row, says so and ends.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from ops.demo.plan import Outcome
from ops.demo.scheduler import Scheduler
from statecore import CacheIndex

STARVED_S: Final = 60.0
"""Without a block to go on with for so long, something holds them that will never let go."""

LOST_MAX: Final = 200
"""Steps lost in a row. Each loss means that another engine went on, and losing leaves time to it: a jittered wait."""

WAIT_INITIAL_S: Final = 0.001
WAIT_MAX_S: Final = 0.05
"""Waits grow and are drawn at random, so that engines that wait for each other do not do so in step."""

MOVE_S: Final = 0.05
"""How long to wait for one transfer before saying that we are still here; it ends the wait when it ends."""

DRAIN_S: Final = 30.0
"""For the transfers that are under way when the last request is served: a few blocks each."""

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
        idle = idle + 1 if outcome is Outcome.SHORT else 0
        match outcome:
            case Outcome.DONE:
                return
            case Outcome.PROGRESS:
                progressed_at = now()
                least_s = max(step_s, AHEAD_S) if scheduler.is_ahead else step_s
                left_s = began + least_s - progressed_at
                if left_s > 0:
                    sleep(left_s)
            case Outcome.LOST:
                if lost >= LOST_MAX:
                    raise Starved(f"lost {lost} steps in a row to other engines of its pool")
                sleep(_wait(lost))
            case Outcome.MOVING:
                assert scheduler.waits_for is not None
                if now() - progressed_at > STARVED_S:
                    raise Starved(
                        f"waited for transfer {scheduler.waits_for} for {STARVED_S:.0f} s: do its workers work?"
                    )
                scheduler.index.wait(scheduler.waits_for, MOVE_S)
            case Outcome.SHORT:
                if now() - progressed_at > STARVED_S:
                    raise Starved(f"{_needs(scheduler)} and nobody released any for {STARVED_S:.0f} s")
                sleep(_wait(idle))
                scheduler.index.refresh()
            case Outcome.AHEAD:
                progressed_at = now()  # its turn will come: the engine that is behind is bounded itself
                sleep(AHEAD_S)


def drain(index: CacheIndex, timeout_s: float = DRAIN_S, now: Callable[[], float] = time.monotonic) -> int:
    """Wait until the transfers this engine has started have ended; returns how many have not."""
    end = now() + timeout_s
    started = index.inspect(lambda state: [each.id for each in state.transfers.values() if each.engine == index.engine])
    return sum(index.wait(transfer, max(0.0, end - now())).under_way for transfer in started)


def _wait(times: int) -> float:
    return random.uniform(0, min(WAIT_MAX_S, WAIT_INITIAL_S * 2 ** min(times, 10)))


def _needs(scheduler: Scheduler) -> str:
    index = scheduler.index
    return (
        f"{len(scheduler.running)} running and {len(scheduler.waiting)} waiting requests need blocks, pool "
        f"{index.gpu_pool!r} has {index.free_blocks} free and {index.cached_blocks} evictable"
    )
