"""Keepers: the real `workers.keeper.Keeper`, several at once, over faulty transports; any of them may die at any point.

Owns their lives. What they do is untouched. What they publish is held against the history the log holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from events import limits
from events.job_queue import JobDoorbell
from events.keeping import Keeping
from events.snapshots import Snapshots
from tests.sim.accounts import Intent
from tests.sim.faults import FaultyTransport, log_over
from tests.sim.job_faults import Died, FaultyJobs
from workers.keeper import Keeper
from workers.keeper_totals import KeeperSettings

if TYPE_CHECKING:
    from tests.sim.world import World

KEEPERS: Final = 2
EVERY: Final = (4, 6, 9)
SNAPSHOT_FAULTS: Final = (
    (86, "none"),
    (2, "lost request"),
    (2, "lost reply"),
    (2, "death before"),
    (2, "death after"),
    (6, "others"),
    (2, "rots"),
)


class KeeperActor:
    """One keeper process. Implements `tests.sim.faults.Sender`."""

    def __init__(self, world: World, nonce: str, every: int, interlude: Callable[[], None]) -> None:
        self.world = world
        self.name = f"keeper {nonce}"
        self.landed: list[str] = []
        self.intents: list[Intent] = []
        self.said_ready: set[str] = set()
        self.redecided = True
        self.explicit = False
        self.faults = 0
        self.dead = False
        self.paused = False
        self.busy = False
        self.in_step = False
        self.doing = "by a keeper"
        self.snapshot_faults: tuple[tuple[int, str], ...] = SNAPSHOT_FAULTS
        self._interlude = interlude
        transport = FaultyTransport(world, self, lambda _: self.others_act())
        place = Keeping(
            log_over(world, transport, nonce, follow=False),
            Snapshots(transport.snapshots, sleep=lambda _: None),
            JobDoorbell(FaultyJobs(world, self.others_act), sleep=lambda _: None),
            transport,
        )
        self.keeper = Keeper(
            place,
            KeeperSettings(every=every),
            self.say,
            clock=world.now,
            wall_ms=lambda: int(world.clock * 1000),
            token=nonce,
        )

    def others_act(self) -> None:
        self._interlude()

    def say(self, event: str, /, **details: object) -> None:
        self.world.tell(f"{self.name}: {event} {details}")
        self.world.marks[f"keeper: {event}"] += 1
        if event == "not_published":
            self.world.marks["a snapshot that reads back wrong is not published"] += "read back" in str(
                details["reason"]
            )

    def turn(self) -> None:
        self.busy = True
        self.faults = 0
        try:
            self.keeper.turn()
        except Died:
            self.dead = True
            self.world.tell(f"{self.name} dies")
        finally:
            self.busy = False


class Keepers:
    """All keepers of one world."""

    def __init__(self, world: World, interlude: Callable[[], None]) -> None:
        self._world = world
        self._interlude = interlude
        self._every = world.choices.one_of(EVERY)
        self._started = 0
        self.actors: list[KeeperActor] = []

    def act(self) -> None:
        """One of them has its turn; one that died is started again, sooner or later."""
        world = self._world
        self.actors = [actor for actor in self.actors if not actor.dead]
        if len(self.actors) < KEEPERS and (not self.actors or world.choices.chance(50)):
            self._started += 1
            self.actors.append(KeeperActor(world, f"k{self._started}", self._every, self._interlude))
        actor = world.choices.one_of(self.actors)
        if world.choices.chance(4) and not actor.busy:
            world.tell(f"{actor.name} dies between two turns")
            actor.dead = True
        elif not actor.busy:
            actor.turn()

    def turn_of_each(self) -> None:
        for _ in range(KEEPERS):
            self.act()
        for actor in self.actors:
            if not actor.busy:
                actor.turn()


LONGEST_RECOVERY_S: Final = (
    limits.BARRIER_S
    + limits.LEASE_TTL_S
    + limits.KEEPER_TTL_S
    + limits.LEASE_GRACE_S
    + limits.RING_EVERY_S
    + limits.JOB_IDLE_S
)
"""P6: when faults stop, so many seconds later all who live agree, no transfer is open, who is dead has been declared lost.
The log opens, leases of the dead run out, a keeper's place becomes free, it waits out its patience, rings; a dead worker's
jobs are claimed. Each begins when the one before has ended, at worst."""
