"""The workers of an index, the keeper that rings lost jobs again, and time.

Owns one seat per rank of each GPU pool. A seat has a lock, as `workers/rank_lock.py` promises: who comes second is
refused, or ends the one before first, wherever that one is. So a worker that was stopped never wakes beside another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from events.errors import Unavailable
from events.job_ports import JobTransport, Seat
from events.job_queue import JobDoorbell
from events.limits import ACKS_TTL_S, JOB_CLAIM_EVERY_S, JOB_IDLE_S
from events.log import LogConnection
from events.transport import Transport
from tests.sim.accounts import require
from tests.sim.job_faults import FaultyJobs
from tests.sim.workers import Worker
from workers.rebuild import ring

if TYPE_CHECKING:
    from tests.sim.world import World

NAMES: Final = ("a", "b")


class Bell(LogConnection):
    """Rings what has no job, from the state. Reads the log as it is; the job streams are faulty."""

    def __init__(self, world: World, interlude: Callable[[], None]) -> None:
        super().__init__(BellBackend(world, interlude), "sim")

    def doorbell(self, index: str) -> JobDoorbell:
        return JobDoorbell(self.backend.jobs(index), sleep=lambda _: None)


class BellBackend:
    """Implements `events.log.Backend`."""

    def __init__(self, world: World, interlude: Callable[[], None]) -> None:
        self._world = world
        self._interlude = interlude

    def transport(self, index: str) -> Transport:  # noqa: ARG002 - there is one
        return self._world.log

    def jobs(self, index: str) -> JobTransport:  # noqa: ARG002
        return FaultyJobs(self._world, self._interlude)

    def indexes(self) -> tuple[str, ...]:
        return ("sim",)

    def close(self) -> None:
        """Nothing to end."""


class Seats:
    """Everybody who moves bytes. `lost`: whether a job stream has been lost, so that ringing is needed."""

    def __init__(self, world: World, pools: list[str], interlude: Callable[[], None]) -> None:
        self.world = world
        self.pools = pools
        self.workers: list[Worker] = []
        self.lost = False
        self._interlude = interlude

    def let_go(self) -> bool:
        """Before a second passes, no worker is in the middle of a piece. False: one is, and cannot end it now."""
        for worker in self._alive():
            if worker.turn is not None and worker.turn.in_piece:
                if worker.busy:
                    return False
                worker.finish_piece()
        return True

    def beat(self) -> None:
        for worker in self._alive():
            worker.beat()

    def act(self) -> None:
        """One event among the workers."""
        kind = self.world.choices.weighted(
            (
                (80, "work"),
                (3, "crash"),
                (2, "stop"),
                (6, "second"),
                (3, "lose"),
                (5, "ring"),
                (6, "time"),
            )
        )
        match kind:
            case "work":
                self._work()
            case "crash":
                if worker := self._anyone():
                    worker.die(worker.turn)
            case "stop":
                if worker := self._anyone():
                    worker.stop()
            case "second":
                self._second()
            case "lose":
                self._lose()
            case "ring":
                self.ring()
            case "time":
                self._time_passes()

    def _alive(self) -> list[Worker]:
        for worker in self.workers:
            if worker.replaced and not worker.busy and not worker.dead and worker.turn is None:
                worker.dead = True  # told that somebody else has its seat: it stops
        self.workers = [worker for worker in self.workers if not worker.dead]
        return self.workers

    def _idle(self) -> list[Worker]:
        return [worker for worker in self._alive() if not worker.busy]

    def _anyone(self) -> Worker | None:
        return self.world.choices.one_of(self._idle()) if self._idle() else None

    def get_on(self) -> None:
        """The workers are fast for once."""
        for _ in range(2 + self.world.choices.draw(4)):
            self._work()

    def _work(self) -> None:
        """Somebody goes on; an empty seat is taken."""
        choices = self.world.choices
        empty = self._empty()
        if empty and choices.chance(50 if self._idle() else 95):
            self._start(*choices.one_of(empty))
        elif worker := self._anyone():
            for _ in range(1 + choices.draw(2)):
                if worker.dead or not worker.work():
                    break

    def _empty(self) -> list[tuple[str, int]]:
        taken = {(worker.seat.pool, worker.seat.rank) for worker in self._alive()}
        return [
            (pool, rank)
            for pool in self.pools
            for rank in range(self.world.contents.ranks)
            if (pool, rank) not in taken
        ]

    def _start(self, pool: str, rank: int) -> Worker:
        worker = Worker(self.world, Seat(pool, rank, self.world.choices.one_of(NAMES)), self._interlude)
        self.workers.append(worker)
        worker.start()
        self.world.tell(f"{worker.name} {'could not start' if worker.dead else 'starts'}")
        return worker

    def _second(self) -> None:
        """Somebody starts a worker for a rank that has one: the lock is held."""
        choices, alive = self.world.choices, self._alive()
        if not alive:
            return
        holder = choices.one_of([worker for worker in alive if worker.turn is not None] or alive)
        if choices.chance(50):
            self.world.marks["a second worker is refused"] += 1
            return
        self.world.marks["a takeover in the middle of a turn"] += holder.turn is not None
        self.end(holder)
        self._start(holder.seat.pool, holder.seat.rank)

    def end(self, holder: Worker) -> None:
        """SIGKILL, as `RankLock.acquire(takeover=True)` sends it and waits for the end."""
        holder.die(holder.turn)

    def _lose(self) -> None:
        world = self.world
        pool = world.choices.one_of(self.pools)
        lists = world.choices.chance(50)
        world.tell(f"the job stream of {pool} is lost{', with the lists' if lists else ''}")
        world.jobs.lose(pool, lists=lists)
        world.marks["job stream lost, with the lists" if lists else "job stream lost"] += 1
        self.lost = True
        if world.choices.chance(40):
            self.ring()

    def ring(self) -> None:
        world = self.world
        try:
            rung = ring(Bell(world, self._interlude), "sim")
        except Unavailable:
            world.marks["the keeper could not ring"] += 1
            return
        world.marks["rebuild rang a lost job"] += rung

    def _time_passes(self) -> None:
        world = self.world
        seconds = world.choices.one_of((0.1, JOB_CLAIM_EVERY_S + 1, JOB_IDLE_S + 1, ACKS_TTL_S + 1))
        if seconds > ACKS_TTL_S and not self._may_pass():
            return
        world.marks["ten minutes pass"] += seconds > ACKS_TTL_S
        world.tell(f"{seconds} s pass")
        world.clockwork.passes(seconds, asleep=seconds > ACKS_TTL_S)

    def _may_pass(self) -> bool:
        """Ten minutes: no message is that late, nobody rings from a state that old, as `limits.ACKS_TTL_S` supposes."""
        return not (self.world.depth or self.world.late)

    # --- healing ----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """No faults any more: every transfer ends, within a bounded number of turns."""
        world = self.world
        self._rounds()
        if world.ledger.moving:
            require(self.lost or world.server.lives > 0, "no job gets lost by itself", list(world.ledger.moving))
            world.marks["settled by ringing"] += 1
            self.ring()
            self._rounds()
        require(not world.ledger.moving, "every transfer ends", list(world.ledger.moving))

    def _rounds(self) -> None:
        """Three times, so that what dead workers left is claimed."""
        for _ in range(3):
            self.work_off()
            self.world.clockwork.passes(JOB_IDLE_S + 1)

    def work_off(self) -> None:
        """Everybody works until there is nothing to do."""
        world = self.world
        for pool, rank in self._empty():
            self._start(pool, rank)
        for worker in self._alive():
            turns_max = 2 * len(world.log.jobs.get(worker.seat.pool, ())) + 2
            turns = 0
            while not worker.dead and worker.work():
                turns += 1
                require(turns <= turns_max, "a worker comes to an end of its jobs", (worker.name, turns))
