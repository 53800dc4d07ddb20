"""Time, and what happens by itself as it passes: leases are renewed, hearts beat, devices finish what they were given.

Owns the clock. Whoever lets time pass lets all of that happen, in steps of a second, as threads and devices would do it
beside everything else. Chance, and a process that is stopped, may keep renewals and heartbeats from coming through; nothing
keeps a device from going on, for `DEVICE_GRACE_S` at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from events import limits
from events.errors import Unavailable

if TYPE_CHECKING:
    from tests.sim.process import Process
    from tests.sim.seats import Seats
    from tests.sim.world import World

STEP_S: Final = 1.0
NOT_RENEWED_PERCENT: Final = 12
HEARD_AT_LAST_PERCENT: Final = 30


class Clockwork:
    """The clock of one world.

    Attributes:
        processes: every engine process that ever was; the dead ones' devices end, too.
        seats: the workers, where there are any.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.processes: list[Process] = []
        self.seats: Seats | None = None
        self._signs: dict[tuple[str, int], float] = {}

    # --- signs of life ----------------------------------------------------------------------------------------------

    def gives_sign(self, engine: str, session: int) -> None:
        """Its lease was given or renewed."""
        self._signs[engine, session] = self._world.clock

    def silent_for(self, engine: str, session: int) -> float:
        return self._world.clock - self._signs.get((engine, session), 0.0)

    def holds_lease(self, engine: str) -> bool:
        return self._world.log.leases([engine])[0]

    # --- passing ----------------------------------------------------------------------------------------------------

    def passes(self, seconds: float, *, asleep: bool = False) -> None:
        """Let time pass. `asleep`: nobody says anything meanwhile, as on a machine that is suspended."""
        world = self._world
        if self.seats is not None and not self.seats.let_go():
            return  # a piece of a copy lasts less than a second, and one is being copied
        quiet = [process for process in self.processes if process.running and world.choices.chance(NOT_RENEWED_PERCENT)]
        deaf = world.choices.chance(NOT_RENEWED_PERCENT)
        end = world.clock + seconds
        while world.clock < end:
            now = end if asleep else min(end, world.clock + STEP_S)
            for process in self.processes:
                process.stream.run_until(now)
            world.clock = now
            if asleep:
                continue
            for process in self.processes:
                if process.running and process not in quiet:
                    self._renew(process)
            if self.seats is not None and not deaf:
                self.seats.beat()

    def may_be_heard(self, engine: str) -> None:
        """It gave no sign of life for long; in the last moment it may go on, if it was stopped, and renew its lease."""
        for process in self.processes if self._world.choices.chance(HEARD_AT_LAST_PERCENT) else ():
            stopped_in_a_call = process.paused and process.busy
            if process.engine == engine and process.alive_in_log() and not process.dead and not stopped_in_a_call:
                self._world.tell(f"{process.name} is heard at last")
                process.paused = False
                self._renew(process)

    def _renew(self, process: Process) -> None:
        if (
            process.log is None
            or process.lease_is_over()
            or self._world.clock - process.renewed_at < limits.LEASE_EVERY_S
        ):
            return
        process.renewed_at = self._world.clock
        try:
            process.log.renew_lease()
        except Unavailable:
            self._world.marks["a renewal that did not get through"] += 1
