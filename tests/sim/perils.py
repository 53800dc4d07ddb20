"""What happens to processes and to the server: stops, deaths, rollbacks, keepers' turns; and what must come right in the
end.

Owns the healing: when all faults have stopped, the keeper, and nobody else, clears up after the dead, within a bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from events import limits
from events.facts import EngineJoined
from tests.sim import known
from tests.sim.accounts import require
from tests.sim.keepers import LONGEST_RECOVERY_S

if TYPE_CHECKING:
    from tests.sim.process import Process
    from tests.sim.story import Story
    from tests.sim.world import Writer

LIVES_MAX = 3
ROUND_S = 1.0


class Perils:
    """Of one story."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._world = story.world

    def act(self) -> None:
        choices, world = self._story.choices, self._world
        match choices.weighted(
            (
                (40, "keeper"),
                (26, "time"),
                (7 if not world.late else 20, "roll back"),
                (4, "restart"),
                (9, "stop"),
                (8, "kill"),
                (7, "rot"),
                (1, "sleep"),
            )
        ):
            case "keeper":
                assert self._story.keepers is not None
                self._story.keepers.act()
            case "time":
                seconds = choices.one_of((0.5, 1.0, 2.0, limits.LEASE_TTL_S, limits.BARRIER_S, 12.0))
                world.tell(f"{seconds} s pass")
                world.clockwork.passes(seconds)
            case "roll back" if world.server.lives < LIVES_MAX:
                if world.server.roll_back():
                    self._the_ended_stay_ended()
                    if not known.SILENT_ACROSS_A_LOSS:
                        self._the_silent_die()
            case "restart" if world.server.lives < LIVES_MAX:
                world.server.restart()
            case "stop":
                self._stop()
            case "kill":
                self._kill()
            case "rot":
                world.shelf.rot()
            case "sleep" if not world.depth:
                world.tell("the machine sleeps for a minute")
                world.marks["the machine sleeps"] += 1
                world.clockwork.passes(60.0, asleep=True)

    def _the_ended_stay_ended(self) -> None:
        """Whose device was ended for a process of the same name, whose beginning is lost: the log calls them alive again."""
        for process in tuple(self._story.zombies):
            if process.device_ended and not process.busy and process.alive_in_log():
                self._world.tell(f"{process.name} was ended for another of its name")
                self._world.marks["who was ended is alive again by the log"] += 1
                process.dead = True
                self._story.zombies.remove(process)

    def _the_silent_die(self) -> None:
        """See `known.SILENT_ACROSS_A_LOSS`."""
        for process in self._world.clockwork.processes:
            if process.dead or process.busy or process.index is None:
                continue
            silent = self._world.clockwork.silent_for(process.engine, process.up.session)
            if silent > limits.LEASE_TTL_S:
                self._world.tell(f"{process.name} was silent for {silent} s and is killed")
                process.dead = True
                process.stream.forget()
                if self._story.current.get(process.engine) is process:
                    del self._story.current[process.engine]
                    if not process.slot.survives:  # a zombie's was gone when the next process of its name began
                        self._world.contents.vanishes(process.pool)
                elif process in self._story.zombies:
                    self._story.zombies.remove(process)

    # --- processes --------------------------------------------------------------------------------------------------

    def _somebody(self) -> Process | None:
        up = [each for each in self._story.current.values() if each.index is not None and not each.busy]
        return self._story.choices.one_of(up) if up else None

    def _stop(self) -> None:
        process = self._somebody()
        if process is not None and not process.paused:
            self._world.tell(f"{process.name} is stopped")
            self._world.marks["an engine is stopped"] += 1
            process.paused = True

    def wake(self, process: Process) -> None:
        self._world.tell(f"{process.name} goes on")
        ended = not process.alive_in_log() and process.goes_on()
        self._world.marks["deposed while stopped"] += ended and not process.has_vanished()
        process.paused = False

    def _kill(self) -> None:
        process = self._somebody()
        if process is None:
            return
        world = self._world
        world.tell(f"{process.name} is killed")
        world.marks["an engine is killed"] += 1
        process.dead = True
        del self._story.current[process.engine]
        if not process.slot.survives:
            process.stream.forget()
            world.contents.vanishes(process.pool)

    def joined(self, writer: Writer, fact: EngineJoined) -> None:
        """Whoever starts a process of a name has made sure that the one before, and its device, have ended."""
        for process in self._world.clockwork.processes:
            if process is writer:
                if not process.slot.survives and not process.has_memory:
                    self._world.contents.vanishes(process.pool)
                process.has_memory = True
                self._world.contents.gone.discard(process.pool)
            elif process.engine == fact.engine:
                process.stream.forget()
                process.device_ended = True

    # --- healing ----------------------------------------------------------------------------------------------------

    def converge(self, *, all_have_left: bool = False) -> None:
        """Everybody alive agrees, no transfer is open, who is dead has been declared lost: within the bound."""
        world, story = self._world, self._story
        assert story.keepers is not None
        for process in world.clockwork.processes:
            process.paused = False
        begun = world.clock
        while left := self._what_is_left(all_have_left):
            require(world.clock - begun <= LONGEST_RECOVERY_S, "all comes right within the bound", left)
            world.clockwork.passes(ROUND_S)
            story.keepers.turn_of_each()
            if story.seats is not None:
                story.seats.work_off()
            for process in [*story.zombies, *story.current.values()] if not all_have_left else ():
                self._carries_on(process)
        world.recoveries.append(world.clock - begun)

    def _carries_on(self, process: Process) -> None:
        """Finds out, begins anew if its life is over, reads on."""
        if process.dead or process.index is None:
            if not process.dead and process in self._story.current.values():
                self._story.start(process.slot)
            return
        if process.doubt is not None:
            process.resolve()
        if process.over and process not in self._story.zombies:
            process.rejoin()
        elif not process.over:
            process.refresh()

    def _what_is_left(self, all_have_left: bool) -> list[str]:
        world, story = self._world, self._story
        left = [f"the log is closed for {world.log.closed_for()} s"] if world.log.closed_for() > 0 else []
        left += [f"transfer {name} is open" for name in world.ledger.moving]
        living = [process for process in story.current.values() if process.index is not None and not all_have_left]
        lives = {
            process.engine
            for process in [*living, *(() if all_have_left else story.zombies)]
            if process.alive_in_log() and process.goes_on()
        }
        left += [
            f"engine {name} is dead and was not declared lost"
            for name, life in world.ledger.engines.items()
            if life.alive and name not in lives
        ]
        left += [
            f"{process.name} is at {process.base()}"
            for process in living
            if process.doubt is not None or (not process.over and process.base().position != world.log.position)
        ]
        return left
