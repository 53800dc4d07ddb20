"""From a long failing run to a short one with the same failure.

Takes out actions in ever smaller groups, then cuts and lowers the numbers inside the actions that are left. Two failures
are the same if they break the same promise, or are the same kind of error raised at the same place.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

from tests.sim.accounts import Violation
from tests.sim.choices import Script
from tests.sim.story import Outcome, run

TRIES_MAX = 3000


def kind_of(failure: BaseException | None) -> str:
    """Name of a failure that stays the same while its numbers change."""
    if failure is None:
        return ""
    if isinstance(failure, Violation):
        return failure.check
    last = traceback.extract_tb(failure.__traceback__)[-1]
    return f"{type(failure).__name__} in {last.filename.rpartition('/')[2]}:{last.name}"


def shrink(outcome: Outcome, tries: int = TRIES_MAX) -> Outcome:
    """The shortest run found that fails in the same way."""
    wanted = kind_of(outcome.failure)
    best = outcome
    left = tries

    def fails(script: Script) -> bool:
        nonlocal best, left
        if left <= 0:
            return False
        left -= 1
        tried = run(outcome.seed, steps=len(script), script=script)
        if kind_of(tried.failure) != wanted:
            return False
        best = tried
        return True

    while left > 0:
        before = best.script
        _without_actions(best.script, fails, lambda: best.script)
        _with_smaller_numbers(fails, lambda: best.script)
        if best.script == before:
            break
    return best


def _without_actions(script: Script, fails: Callable[[Script], bool], best: Callable[[], Script]) -> None:
    group = max(1, len(script) // 2)
    while True:
        at = 1
        while at < len(best()):
            script = best()
            if not fails(script[:at] + script[at + group :]):
                at += group
        if group == 1:
            return
        group //= 2


def _with_smaller_numbers(fails: Callable[[Script], bool], best: Callable[[], Script]) -> None:
    for action in range(len(best())):
        if action >= len(best()):
            return
        size = len(best()[action])
        while size:  # cut the tail: what is cut off is 0
            shorter = [list(numbers) for numbers in best()]
            shorter[action] = shorter[action][: len(shorter[action]) - size]
            if len(shorter[action]) == len(best()[action]) or not fails(shorter):
                size //= 2
            else:
                size = min(size, len(best()[action]))
        at = 0
        while action < len(best()) and at < len(best()[action]):
            number = best()[action][at]
            for smaller in (0, number // 2, number - 1):
                if 0 <= smaller < number:
                    tried = [list(numbers) for numbers in best()]
                    tried[action][at] = smaller
                    if fails(tried):
                        break
            at += 1
