"""Where faults happen: who is there, who is down, what is still to happen, and the journal of what was done.

Owns the agenda (things that happen after some time) and the attendance (who ended without being killed is started again,
and that is taken down). Knows no fault.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import attrs

from ops.chaos.cast import ENGINE, KEEPER, WORKER, Actor
from ops.chaos.network import Network
from ops.chaos.server import Server

RESTART_S: Final = (0.2, 1.5)
"""From a death to the next process, as a supervisor would."""

TICK_S: Final = 0.02

_NOT_DONE: Final = 2
_MAY_END: Final = frozenset({(WORKER, _NOT_DONE), (KEEPER, _NOT_DONE)})
"""They say so and end when there is no server at their start; whoever supervises them starts them again."""


@attrs.frozen
class Injury:
    """A fault that was made.

    Attributes:
        at, healed_at: by the clock all processes share; from `healed_at` on nothing is in anybody's way.
        engines, pool: who was hit; no engines and no pool: everybody.
        wrong: what it showed at once that must not be, in words; "" if nothing.
    """

    fault: str
    at: float
    healed_at: float
    engines: tuple[str, ...] = ()
    pool: str = ""
    wrong: str = ""


class Stage:
    """See the module.

    Attributes:
        actors: those on stage; a place may get another actor.
        down: names of those something is being done to.
        undone: faults that were begun and came to nothing.
        injuries: in the order in which they were healed.
        kills: SIGKILLs by role.
        oddities: processes that ended although nobody killed them, in words.
    """

    def __init__(self, seed: int, server: Server, network: Network, actors: list[Actor]) -> None:
        self.chance = random.Random(f"{seed}/stage")
        self.server = server
        self.network = network
        self.actors = actors
        self.down: set[str] = set()
        self.undone: list[str] = []
        self.injuries: list[Injury] = []
        self.kills: Counter[str] = Counter()
        self.oddities: list[str] = []
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def between(self, bounds: tuple[float, float]) -> float:
        return self.chance.uniform(*bounds)

    def later(self, seconds: float, then: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (time.monotonic() + seconds, next(self._numbers), then))

    @property
    def quiet(self) -> bool:
        """Nothing is still to happen."""
        return not self._agenda

    def tick(self) -> None:
        """What is due happens; who ended is started again."""
        self.attend()
        now = time.monotonic()
        while self._agenda and self._agenda[0][0] <= now:
            heapq.heappop(self._agenda)[2]()
        time.sleep(TICK_S)

    def one_of(self, role: str) -> Actor | None:
        able = [actor for actor in self.actors if actor.role == role and actor.running and actor.name not in self.down]
        return self.chance.choice(able) if able else None

    def note(self, fault: str, at: float, actor: Actor | None = None, wrong: str = "") -> None:
        """A fault is healed now."""
        engines = (actor.name,) if actor is not None and actor.role == ENGINE else ()
        pool = actor.pool if actor is not None and actor.role == WORKER else ""
        self.injuries.append(Injury(fault, at, time.monotonic(), engines, pool, wrong))

    def kill(self, actor: Actor) -> None:
        actor.kill()
        self.kills[actor.role] += 1

    def restart(self, actor: Actor, then: Callable[[], None] = lambda: None) -> None:
        """After a while."""
        self.down.add(actor.name)

        def again() -> None:
            actor.start()
            self.down.discard(actor.name)
            then()

        self.later(self.between(RESTART_S), again)

    def attend(self) -> None:
        """Start again who ended without being killed, and take it down."""
        for actor in self.actors:
            code = actor.exit_code
            if code is None or actor.name in self.down:
                continue
            if (actor.role, code) not in _MAY_END:
                self.oddities.append(f"{actor.name} ended by itself with code {code}: {actor.last_words()[-600:]}")
            actor.kill()
            self.restart(actor)
