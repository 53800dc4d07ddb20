"""One run from its first choice to the healed end.

Owns the cast (slots, processes, zombies), the next action, the re-entrant interludes in which others act while one is in
the middle of a call, and what must hold when all faults have stopped and everyone has left.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest import mock

import attrs

from events import job_queue, limits, memory, snapshots
from statecore import Policy, invariants
from statecore.replica import Replica
from statecore.restoring import up_to_date
from tests.sim.accounts import checks_made, require
from tests.sim.actions import Actions
from tests.sim.choices import Choices, Script
from tests.sim.faults import log_over
from tests.sim.keepers import Keepers
from tests.sim.perils import Perils
from tests.sim.process import Process
from tests.sim.seats import Seats
from tests.sim.told import Slot
from tests.sim.world import World

TIERED_POOL_SIZES = (8, 8, 9, 10, 10, 12)
POOL_SIZES = (8, 8, 8, 10, 10, 12, 16, 24, 40, 64)
HOST_SIZES = (8, 8, 12, 16, 24, 40)
POLICIES = (
    Policy("write_back", 30, 60),
    Policy("write_back", 0, 0),
    Policy("write_through", 0, 0),
    Policy(),
    Policy("write_back", 40, 80),
    Policy("write_through", 25, 50),
)
LAYOUTS = ("shared", "own", "pairs", "one alone")
WORKERS_PERCENT = 45
DEPTH_MAX = 2
LATE_LAST = 3
PERILS_PERCENT = 22


@attrs.frozen
class Counts:
    """What was looked at in a run.

    Attributes:
        checks: how often each check was made.
        acknowledged: commits whose writers were told that they stand. vanished: of those, what the server lost, as told.
        recoveries: seconds until all had come right, each time that faults had stopped.
    """

    checks: Counter[str]
    acknowledged: int
    vanished: int
    recoveries: tuple[float, ...]


@attrs.frozen
class Outcome:
    """What a run came to. `failure` is None where every promise held."""

    seed: int
    script: Script
    marks: Counter[str]
    story: list[str]
    failure: Exception | None
    positions: int
    counts: Counts


class Story:
    """The run of one seed or script."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.world = World(choices)
        self.slots: list[Slot] = []
        self.current: dict[str, Process] = {}
        self.zombies: list[Process] = []
        self.started = 0
        self.policy: Policy | None = None
        self.seats: Seats | None = None
        self.keepers: Keepers | None = None
        self.perils = Perils(self)
        self.world.on_join = self.perils.joined

    def begin(self, engines: int | None, tiers: int | None, perils: bool | None) -> None:
        """The first action: who plays, and on which pools."""
        choices = self.choices
        choices.begin_action()
        two = choices.chance(80) if tiers is None else choices.decided(tiers - 1) == 1
        host_blocks = 0
        if two:
            host_blocks = choices.one_of(HOST_SIZES)
            self.policy = choices.one_of(POLICIES)
            self.world.contents.ranks = 1 + choices.draw(2)
        count = 2 + (choices.draw(3) if engines is None else choices.decided(engines - 2))
        layout = choices.one_of(LAYOUTS)
        self.world.perils = choices.chance(50) if perils is None else choices.decided(perils) == 1
        sizes: dict[str, int] = {}
        for number in range(count):
            pool = {"shared": "p", "own": f"p{number}", "pairs": f"p{number // 2}"}.get(layout, f"p{min(number, 1)}")
            if pool not in sizes:
                sizes[pool] = choices.one_of(TIERED_POOL_SIZES if two else POOL_SIZES)
            alone = two and number > 0 and choices.chance(8)
            host = "h" if two and not alone else ""
            survives = layout != "own" or not self.world.perils or choices.chance(30)
            rejoins = self.world.perils and choices.chance(50)
            self.slots.append(
                Slot(f"e{number}", pool, sizes[pool], host, host_blocks if host else 0, survives, rejoins)
            )
        self.world.tell(f"layout {layout}: {[(slot.engine, slot.pool, slot.blocks, slot.host) for slot in self.slots]}")
        if two:
            pools = sorted({slot.pool for slot in self.slots if slot.host})
            self.seats = Seats(self.world, pools, lambda: self.interlude(None))
            self.world.tell(f"host {host_blocks}, {self.policy}, {self.world.contents.ranks} ranks")
        self.world.clockwork.seats = self.seats
        self.keepers = Keepers(self.world, lambda: self.interlude(None))
        for slot in self.slots:
            self.start(slot)

    # --- acting -----------------------------------------------------------------------------------------------------

    def act(self) -> None:
        """One action of one process, of a worker, or of the network."""
        world = self.world
        world.deliver_late()
        if world.perils and self.choices.chance(PERILS_PERCENT):
            self.perils.act()
            return
        if self.seats is not None and self.choices.chance(WORKERS_PERCENT):
            self.seats.act()
            return
        self._act_in(self.choices.one_of(self.slots))

    def _act_in(self, slot: Slot) -> None:  # noqa: PLR0912 - every state a process can be in
        """The engine's present process acts, or one of before, or a new one begins."""
        process = self.current.get(slot.engine)
        if process is not None and process.paused and not process.busy:
            if self.choices.chance(25):
                self.perils.wake(process)
            return
        if process is not None and self.choices.chance(8):
            process.computed(1 + self.choices.draw(3))
        if process is not None and process.busy:
            if self.choices.chance(3):
                self.start(slot)
            return
        if self.zombies and self.choices.chance(5):
            zombie = self.choices.one_of(self.zombies)
            if zombie.paused and not zombie.busy:
                self.perils.wake(zombie)
            if not zombie.busy:
                self._act_as(zombie)
            return
        if process is None or process.index is None:
            self.start(slot)
        elif process.doubt is not None:
            self._in_doubt(process)
        elif process.over:
            if self.choices.chance(30):
                self.start(slot)
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
        much_comes = len(actions.waiting()) > 1 and not self.world.depth
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
                (25 if much_comes else 1, "clear"),
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
                self.start(process_slot)
            case "storm":
                process.storm = True
                actions.one()
                process.storm = False
            case "clear" if much_comes:
                with self._nobody_else_acts():
                    actions.clear()
            case "clear":
                actions.clear()
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

    def start(self, slot: Slot) -> None:
        """A new process; one of that name which still runs becomes a zombie."""
        before = self.current.get(slot.engine)
        if before is not None and before.index is None:
            before.dead = True
        elif before is not None:
            self.zombies.append(before)
            while len(self.zombies) > LATE_LAST:
                self.zombies.pop(0).dead = True
            self.world.marks["a second process of the same name"] += 1
        process = self._new_process(slot)
        self.current[slot.engine] = process
        pools = self.world.ledger.pools
        known = slot.pool in pools and (not slot.host or slot.host in pools) and self.choices.chance(50)
        process.start(
            self.interlude,
            blocks=None if known else slot.blocks,
            host_blocks=None if known else slot.host_blocks,
            policy=None if known else self.policy,
        )

    def _start_wrong(self, slot: Slot) -> None:
        """A join that must be refused; the life that goes on is not disturbed by it. Not after a loss that took the pool
        along, nor with others in between who could bring one about: then there is nothing it contradicts.
        """
        if slot.pool not in self.world.ledger.pools:
            return
        process = self._new_process(slot)
        hosts = slot.host_blocks or None
        match self.choices.draw(5 if slot.host in self.world.ledger.pools else 3):
            case 0:
                process.start(nobody, blocks=None, pool="nowhere", host_blocks=hosts)
            case 1:
                process.start(nobody, blocks=slot.blocks + 1, host_blocks=hosts)
            case 2:
                process.start(nobody, blocks=slot.blocks, block_size=3, host_blocks=hosts)
            case 3:
                process.start(nobody, blocks=slot.blocks, host_blocks=slot.host_blocks + 1)
            case 4:
                process.start(nobody, blocks=slot.blocks, policy=Policy("write_back", 1, 2))
        require(process.index is None, "a wrong join is refused", process.name)
        process.dead = True

    def _new_process(self, slot: Slot) -> Process:
        self.started += 1
        process = Process(self.world, slot, f"n{self.started}")
        self.world.clockwork.processes.append(process)
        return process

    def interlude(self, process: Process | None) -> None:
        """While `process`, or a worker, is in the middle of something, others go on."""
        world = self.world
        if world.healed or world.depth >= DEPTH_MAX:
            return
        world.depth += 1
        if process is not None and process.storm:
            self._disturb(process)
        if self.seats is not None and self.choices.chance(50 if process is not None and process.rush else 8):
            self.seats.get_on()
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
                with self._nobody_else_acts():
                    Actions(self.world, other, self).take_and_give_back()
                return

    @contextmanager
    def _nobody_else_acts(self) -> Iterator[None]:
        """No interludes."""
        depth, self.world.depth = self.world.depth, DEPTH_MAX
        try:
            yield
        finally:
            self.world.depth = depth

    # --- at rest ----------------------------------------------------------------------------------------------------

    def check_at_rest(self) -> None:
        for process in self.current.values():
            process.check_against_log()

    def end(self) -> None:
        """Faults stop; everyone finds out, gets what it asks for, leaves, and nothing is left behind."""
        world = self.world
        world.healed = self.choices.dull = True
        world.tell("--- healed ---")
        world.deliver_late()
        self.perils.converge()
        self._settle()
        for process in [*self.zombies, *self.current.values()]:
            if process.index is not None:
                if process.doubt is not None:
                    process.resolve()
                process.refresh()
                self._served_at_last(process)
                self.check_at_rest()
                process.leave()
        self._settle()
        self.perils.converge(all_have_left=True)
        self._check_end()

    def _settle(self) -> None:
        """Workers end every transfer; what was still on its way arrives."""
        if self.seats is not None:
            self.seats.settle()
        self.world.deliver_late()
        require(not self.world.late, "all that is late arrives", self.world.late)

    def _served_at_last(self, process: Process) -> None:
        """Whoever waits is told, whoever is told to ask again gets an answer, and what did not come can be computed."""
        actions = Actions(self.world, process, self)
        self._settle()
        for name in actions.waiting() if process.usable and process.alive_in_log() else ():
            actions.look_at(name)
            require(name not in actions.waiting(), "who waits is told", (process.name, name))
        for name in list(process.model.requests) if process.usable and process.alive_in_log() else ():
            for _ in range(process.pool_blocks + 2):
                held = process.model.requests[name]
                missing = held.sequence.blocks - len(held.table)
                if missing <= 0 or not actions.asked_again(name, missing):
                    break
                self._settle()
                process.refresh()  # who closed in vain has no follower any more
            else:
                require(False, "asking again comes to an end", (process.name, name))
            if process.usable and name in process.model.requests:
                held = process.model.requests[name]
                if held.path < held.was <= len(held.table):
                    actions.extend(name, blocks=held.was)

    def _check_end(self) -> None:
        world = self.world
        state = world.checker.replica.state
        require(not any(life.alive for life in world.ledger.engines.values()), "everyone has left")
        require(not world.ledger.requests, "no request is left", world.ledger.requests)
        for name, pool in world.ledger.pools.items():
            require(len(pool.free) + len(pool.cached) == pool.blocks, "no block is leaked", name)
            require(all(each.pending is None for each in pool.cached.values()), "nothing stays pending", name)
        require(not world.ledger.moving, "every transfer ends", world.ledger.moving)
        world.contents.check_ready()
        require(invariants.leaked_blocks(state) == 0, "no block is leaked", invariants.leaked_blocks(state))
        replayed = Replica()
        replayed.apply_all(world.entries)
        require(replayed.digest() == world.checker.replica.digest(), "replay gives the same state")
        log = log_over(world, world.log, "check", follow=False)
        require(up_to_date(log).digest() == replayed.digest(), "a snapshot and its tail give the same state")
        stored = log.read(0, 1_000_000)
        positions = [entry.position for entry in stored]
        first = world.log.head().first
        require(positions == list(range(first, world.log.position + 1)), "positions have no gaps", positions)
        require(first > 1 or sorted(world.landed.values()) == positions, "each commit is in the log once")
        require([entry.id for entry in stored] == world.chain[first:], "the log holds what has landed")
        for commit, position in world.acknowledged.items():
            if commit not in world.vanished:
                stands = position < len(world.chain) and world.chain[position] == commit
                require(stands, "what was acknowledged stands where it was said", (commit, position))


def run(
    seed: int,
    steps: int = 60,
    engines: int | None = None,
    script: Sequence[Sequence[int]] | None = None,
    tiers: int | None = None,
    perils: bool | None = None,
) -> Outcome:
    """Run a seed for so many actions, or play a script."""
    checks_made.clear()
    choices = Choices(seed, script)
    story = Story(choices)
    failure: Exception | None = None
    with small_bounds():
        try:
            story.begin(engines, tiers, perils)
            while len(choices.made) <= steps and choices.begin_action():
                story.act()
                story.check_at_rest()
            story.end()
        except Exception as error:
            failure = error
    world = story.world
    return Outcome(
        seed,
        choices.made,
        world.marks,
        world.story,
        failure,
        len(world.landed) + len(world.vanished),
        Counts(
            checks_made.copy(),
            len(world.acknowledged),
            len(world.acknowledged.keys() & world.vanished),
            tuple(world.recoveries),
        ),
    )


def nobody(_process: Process) -> None:
    """Acts in between."""


@contextmanager
def small_bounds() -> Iterator[None]:
    """Bounds so small that a short run meets them: pages, missed entries, tries. And ids that repeat themselves."""
    numbers = itertools.count(1)
    secrets = SimpleNamespace(token_hex=lambda size: f"{next(numbers):0{2 * size}x}")
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(job_queue, "secrets", secrets))
        patches.enter_context(mock.patch.object(snapshots, "secrets", secrets))
        for module, name, value in (
            (limits, "RETRY_ATTEMPTS_MAX", 4),
            (limits, "CONFLICT_ATTEMPTS_MAX", 6),
            (limits, "READ_PAGE", 7),
            (limits, "COPY_PIECE_BLOCKS", 2),
            (limits, "SNAPSHOT_MARGIN", 2),
            (limits, "SNAPSHOT_PIECE_BYTES", 1500),
            (memory, "MISSED_ENTRIES_MAX", 9),
        ):
            patches.enter_context(mock.patch.object(module, name, value))
        yield
