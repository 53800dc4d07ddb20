"""One run from its first choice to the healed end.

Owns the cast (slots, processes, zombies), the next action, the re-entrant interludes in which others act while one is in
the middle of a call, and what must hold when all faults have stopped and everyone has left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest import mock

import attrs

from events import limits, memory
from events.log import EventLog
from statecore import invariants
from statecore.replica import Replica
from tests.sim.actions import Actions, Slot
from tests.sim.choices import Choices, Script
from tests.sim.ledger import require
from tests.sim.process import Process
from tests.sim.world import World

POOL_SIZES = (8, 8, 8, 10, 10, 12, 16, 24, 40, 64)
LAYOUTS = ("shared", "own", "pairs", "one alone")
DEPTH_MAX = 2
LATE_LAST = 3


@attrs.frozen
class Outcome:
    """What a run came to. `failure` is None where every promise held."""

    seed: int
    script: Script
    marks: Counter[str]
    story: list[str]
    failure: Exception | None
    positions: int


class Story:
    """The run of one seed or script."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.world = World(choices)
        self.slots: list[Slot] = []
        self.current: dict[str, Process] = {}
        self.zombies: list[Process] = []
        self.started = 0

    def begin(self, engines: int | None) -> None:
        """The first action: who plays, and on which pools."""
        choices = self.choices
        choices.begin_action()
        count = 2 + choices.draw(3) if engines is None else engines
        layout = choices.one_of(LAYOUTS)
        sizes: dict[str, int] = {}
        for number in range(count):
            pool = {"shared": "p", "own": f"p{number}", "pairs": f"p{number // 2}"}.get(layout, f"p{min(number, 1)}")
            if pool not in sizes:
                sizes[pool] = choices.one_of(POOL_SIZES)
            self.slots.append(Slot(f"e{number}", pool, sizes[pool]))
        self.world.tell(f"layout {layout}: {[(slot.engine, slot.pool, slot.blocks) for slot in self.slots]}")
        for slot in self.slots:
            self._start(slot)

    # --- acting -----------------------------------------------------------------------------------------------------

    def act(self) -> None:
        """One action of one process, or of the network."""
        world = self.world
        world.deliver_late()
        slot = self.choices.one_of(self.slots)
        process = self.current.get(slot.engine)
        if process is not None and process.busy:
            if self.choices.chance(3):
                self._start(slot)
            return
        if self.zombies and self.choices.chance(5):
            zombie = self.choices.one_of(self.zombies)
            if not zombie.busy:
                self._act_as(zombie)
            return
        if process is None or process.index is None:
            self._start(slot)
        elif process.doubt is not None:
            self._in_doubt(process)
        elif process.over:
            if self.choices.chance(30):
                self._start(slot)
            elif self.choices.chance(30):
                self._act_as(process)
            else:
                process.rejoin()
        else:
            self._act_as(process)

    def _act_as(self, process: Process) -> None:
        actions = Actions(self.world, process, self)
        if process.doubt is not None:
            self._in_doubt(process)
            return
        process_slot = next(slot for slot in self.slots if slot.engine == process.engine)
        kind = self.choices.weighted(
            (
                (62, "one"),
                (26, "step"),
                (3, "refresh"),
                (2, "leave"),
                (1, "rejoin"),
                (1, "restart"),
                (1, "storm"),
                (1, "wrong join"),
            )
        )
        match kind:
            case "one":
                actions.one()
            case "step":
                actions.step()
            case "refresh":
                process.refresh()
            case "leave":
                process.leave()
            case "rejoin" if process not in self.zombies:
                process.rejoin()
            case "restart":
                self._start(process_slot)
            case "storm":
                process.storm = True
                actions.one()
                process.storm = False
            case "wrong join":
                self._start_wrong(process_slot)

    def _in_doubt(self, process: Process) -> None:
        """The last outcome is unknown: find out, begin anew, or try what must be refused."""
        match self.choices.weighted(((60, "resolve"), (14, "rejoin"), (10, "act"), (10, "refresh"), (3, "leave"))):
            case "resolve":
                process.resolve()
            case "rejoin" if process not in self.zombies:
                process.rejoin()
            case "act":
                Actions(self.world, process, self).one()
            case "refresh":
                process.refresh()
            case "leave":
                process.leave()

    def _start(self, slot: Slot) -> None:
        """A new process; one of that name which still runs becomes a zombie."""
        before = self.current.get(slot.engine)
        if before is not None and before.index is not None:
            self.zombies.append(before)
            del self.zombies[:-LATE_LAST]
            self.world.marks["a second process of the same name"] += 1
        process = self._new_process(slot)
        self.current[slot.engine] = process
        exists = slot.pool in self.world.ledger.pools
        process.start(self.interlude, blocks=None if exists and self.choices.chance(50) else slot.blocks)

    def _start_wrong(self, slot: Slot) -> None:
        """A join that must be refused; the life that goes on is not disturbed by it."""
        process = self._new_process(slot)
        match self.choices.draw(3):
            case 0:
                process.start(self.interlude, blocks=None, pool="nowhere")
            case 1:
                process.start(self.interlude, blocks=slot.blocks + 1)
            case 2:
                process.start(self.interlude, blocks=slot.blocks, block_size=3)
        require(process.index is None, "a wrong join is refused", process.name)

    def _new_process(self, slot: Slot) -> Process:
        self.started += 1
        return Process(self.world, slot.engine, slot.pool, slot.blocks, f"n{self.started}")

    def interlude(self, process: Process) -> None:
        """While `process` is in the middle of a call, others go on."""
        world = self.world
        if world.healed or world.depth >= DEPTH_MAX:
            return
        world.depth += 1
        if process.storm:
            self._disturb(process)
        for _ in range(self.choices.weighted(((70, 0), (18, 1), (8, 2), (4, 4)))):
            self.act()
        world.depth -= 1

    def _disturb(self, process: Process) -> None:
        """Somebody else takes a block of the same pool and gives it back, so that `process` conflicts."""
        for slot in self.slots:
            other = self.current.get(slot.engine)
            if (
                slot.pool == process.pool
                and other is not None
                and other.usable
                and not other.busy
                and other is not process
            ):
                depth, self.world.depth = self.world.depth, DEPTH_MAX
                Actions(self.world, other, self).take_and_give_back()
                self.world.depth = depth
                return

    # --- at rest ----------------------------------------------------------------------------------------------------

    def check_at_rest(self) -> None:
        for process in self.current.values():
            process.check_against_log()

    def end(self) -> None:
        """Faults stop; everyone finds out, leaves, and nothing is left behind."""
        world = self.world
        world.healed = self.choices.dull = True
        world.tell("--- healed ---")
        world.deliver_late()
        for process in [*self.zombies, *self.current.values()]:
            if process.index is not None:
                if process.doubt is not None:
                    process.resolve()
                process.refresh()
                self.check_at_rest()
                process.leave()
        for slot in self.slots:
            life = world.ledger.engines.get(slot.engine)
            if life is not None and life.alive:
                self._start(slot)
                self.current[slot.engine].leave()
        state = world.checker.state
        require(not any(life.alive for life in world.ledger.engines.values()), "everyone has left")
        require(not world.ledger.requests, "no request is left", world.ledger.requests)
        for name, pool in world.ledger.pools.items():
            require(len(pool.free) + len(pool.cached) == pool.blocks, "no block is leaked", name)
            require(all(each.pending is None for each in pool.cached.values()), "nothing stays pending", name)
        require(invariants.leaked_blocks(state) == 0, "no block is leaked", invariants.leaked_blocks(state))
        replayed = Replica()
        log = EventLog("sim", world.log)
        while entries := log.read(replayed.state.position):
            replayed.apply_all(entries)
        require(replayed.digest() == world.checker.digest(), "replay gives the same state")
        positions = [entry.position for entry in log.read(0, 1_000_000)]
        require(positions == list(range(1, len(positions) + 1)), "positions have no gaps", positions)
        require(sorted(world.landed.values()) == positions, "each commit is in the log once")


def run(
    seed: int, steps: int = 60, engines: int | None = None, script: Sequence[Sequence[int]] | None = None
) -> Outcome:
    """Run a seed for so many actions, or play a script."""
    choices = Choices(seed, script)
    story = Story(choices)
    failure: Exception | None = None
    with small_bounds():
        try:
            story.begin(engines)
            while len(choices.made) <= steps and choices.begin_action():
                story.act()
                story.check_at_rest()
            story.end()
        except Exception as error:
            failure = error
    world = story.world
    return Outcome(seed, choices.made, world.marks, world.story, failure, len(world.landed))


@contextmanager
def small_bounds() -> Iterator[None]:
    """Bounds so small that a short run meets them: pages, missed entries, tries."""
    with ExitStack() as patches:
        for module, name, value in (
            (limits, "RETRY_ATTEMPTS_MAX", 4),
            (limits, "CONFLICT_ATTEMPTS_MAX", 6),
            (limits, "READ_PAGE", 7),
            (memory, "MISSED_ENTRIES_MAX", 9),
        ):
            patches.enter_context(mock.patch.object(module, name, value))
        yield
