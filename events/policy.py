"""Our retry policies, one per kind of operation. The client library retries nothing on its own (redis-facts C1-C4).

- a **read** has no effect, so it is simply repeated until its deadline;
- an **append** is repeated too, but only because `events/log.py` finds out first what became of the last try;
- **deciding again** after a conflict is not a failure: the first retry comes at once, later ones after a jittered wait.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from events import limits
from events.errors import Unavailable


def retrying(deadline_s: float, sleep: Callable[[float], None]) -> Retrying:
    """Repeat while the operation raises `Unavailable` that may pass, by attempts and time; the last error comes out."""
    return Retrying(
        retry=retry_if_exception(_is_passing),
        stop=stop_after_delay(deadline_s) | stop_after_attempt(limits.RETRY_ATTEMPTS_MAX),
        wait=wait_random_exponential(multiplier=limits.RETRY_WAIT_INITIAL_S, max=limits.RETRY_WAIT_MAX_S),
        sleep=sleep,
        reraise=True,
    )


def _is_passing(error: BaseException) -> bool:
    return isinstance(error, Unavailable) and not error.lasting


def conflict_attempts(sleep: Callable[[float], None], most: int) -> Iterator[int]:
    """1, 2, 3 … up to `most`. The second attempt comes at once, because the reply already brought what was missing;
    from the third on after a growing wait with full jitter, so that equals do not collide in step for ever."""
    for attempt in range(1, most + 1):
        if attempt > 2:
            doublings = min(attempt - 2, 16)  # far beyond the longest wait, and no number without end
            longest = min(limits.CONFLICT_WAIT_MAX_S, limits.CONFLICT_WAIT_INITIAL_S * 2**doublings)
            sleep(random.uniform(0, longest))
        yield attempt
