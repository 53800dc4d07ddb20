"""The log's server as something that dies: it comes back with all it had, or with what it had some moments ago.

Owns photographs of everything the server holds: log, versions, fences, leases, job streams and lists, reports, seats,
heartbeats, snapshots and their pointer, who is the acting keeper. A rollback puts one of them back, whole. What is in
memories, and in the heads of processes and workers, does not go back with it.
"""

from __future__ import annotations

import copy
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import attrs

from tests.sim import known
from tests.sim.accounts import require

if TYPE_CHECKING:
    from tests.sim.world import World

PHOTOGRAPHS_MAX: Final = 24
_OF_LOG: Final = (
    "_records",
    "_first",
    "_before_first",
    "_versions",
    "_fences",
    "_leases",
    "_let_in",
    "_keeper",
    "_lost",
    "_forgot",
    "jobs",
)
_OF_JOBS: Final = ("_groups", "_acks", "_deleted", "_heartbeats", "_seats")
_OF_SNAPSHOTS: Final = ("_pointers", "blobs")


@attrs.frozen(eq=False)
class Photograph:
    """What the server held when the log had come to `position`."""

    position: int
    parts: tuple[dict[str, Any], ...]
    reported: frozenset[tuple[str, int]]


class Server:
    """One world's server.

    Attributes:
        lives: how many it has begun after the first.
        rolled_back: whether the present life began with less than was known before.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._photographs: deque[Photograph] = deque(maxlen=PHOTOGRAPHS_MAX)
        self.lives = 0
        self.rolled_back = False
        self._met_open = True
        self._highest = 0

    def photograph(self) -> None:
        world = self._world
        if world.perils and not world.healed:
            parts = tuple([{name: _copied(getattr(of, name)) for name in names} for of, names in self._parts()])
            self._photographs.append(Photograph(world.log.head().position, parts, frozenset(world.contents.reported)))

    def let_in(self) -> None:
        """A commit lands: the log is open."""
        world = self._world
        self.meets_open()
        if world.log.position <= self._highest:
            world.marks["positions reused"] += 1
        self._highest = max(self._highest, world.log.position)

    @property
    def open(self) -> bool:
        """Whether a commit would be let in."""
        log = self._world.log
        return log._let_in == log.life or 0 <= log._opens_at <= self._world.clock

    def meets_open(self) -> None:
        """Somebody is let in: from now on nobody may go by a history that vanished."""
        world = self._world
        if not self._met_open:
            world.marks["the log opened again"] += 1
            world.marks["the log opened again after a rollback"] += self.rolled_back
            self._met_open = True
            if self.rolled_back and not world.log.loss() and not known.LOST_BEFORE_ANYBODY_KNEW:
                world.marks["a loss that nobody knew of"] += 1
                world.contents.mend()

    def restart(self) -> None:
        """Killed and started again with all it had."""
        self._world.tell("the server is restarted, nothing is lost")
        self._world.marks["server restarted"] += 1
        self._begin_life()

    def roll_back(self) -> bool:
        """A failover to a replica that lagged, or a file that lost its end: everything goes back to an earlier moment."""
        world = self._world
        moments = [each for each in self._photographs if each.position > 0]
        if not moments:
            return False
        moment = moments[-1 - world.choices.draw(min(len(moments), PHOTOGRAPHS_MAX))]
        lost = world.log.position - moment.position
        failover = world.choices.chance(50)
        world.tell(
            f"{'failover' if failover else 'the end of the log is cut'}: back to {moment.position}, {lost} commits lost"
        )
        world.marks["failover" if failover else "tail lost"] += lost > 0
        self._highest = max(self._highest, world.log.position)
        for (of, names), part in zip(self._parts(), moment.parts, strict=True):
            for name in names:
                setattr(of, name, _copied(part[name]))
        world.contents.reported = set(moment.reported)
        world.forget_after(moment.position)
        while self._photographs and self._photographs[-1] is not moment:
            self._photographs.pop()
        self.rolled_back = (self.rolled_back and not self._met_open) or lost > 0
        self._begin_life()
        return True

    def _begin_life(self) -> None:
        world = self._world
        self.lives += 1
        world.marks["a new life before the log was open"] += not self._met_open
        self._met_open = False
        world.marks["a late message dies with the server"] += bool(world.late)
        world.late.clear()
        world.log.begin_life(f"life {self.lives}")
        if world.choices.chance(80):
            require(world.log.closed_for() >= 0.0, "a log is open or closed")  # somebody meets it at once

    def _parts(self) -> tuple[tuple[object, tuple[str, ...]], ...]:
        log = self._world.log
        return ((log, _OF_LOG), (self._world.jobs, _OF_JOBS), (log.snapshots, _OF_SNAPSHOTS))


def _copied(part: Any) -> Any:
    """Deep where things change in place; records and pointers never do."""
    match part:
        case list() | tuple():
            return part[:] if part and not isinstance(part[0], list | dict | set) else copy.deepcopy(part)
        case dict():
            changing = part and isinstance(next(iter(part.values())), list | set | bytearray)
            if changing:
                return {key: value[:] if not isinstance(value, set) else set(value) for key, value in part.items()}
            deep = part and type(next(iter(part.values()))).__module__.startswith("events.memory_jobs")
            return copy.deepcopy(part) if deep else dict(part)
    return part
