"""One simulated swap worker: the real `workers.swap`, left at any point and taken up again, or dead.

Owns the life of a worker process in one thread. What the worker does is `swap._work`, untouched, over the real `JobQueue`.
A turn can be left between any two of its effects (`Later`): it is then run again from its start, and what it has done is
told to it again, not done again, up to where it was. So many workers are in the middle of a copy at once, and any of
them goes on first. Death (`Died`) comes at the same points.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from events import limits
from events.errors import InvalidInput, Unavailable
from events.facts import BlockRanges
from events.job_ports import Delivery, Dropped, FinishReply, Heartbeat, Seat
from events.job_queue import JobQueue
from events.jobs import TransferJob
from statecore.ranges import count as ranges_count
from statecore.ranges import ids
from statecore.state import SWAP_IN
from tests.sim.job_faults import Died, FaultyJobs
from workers import swap
from workers.pulse import Pulse
from workers.store import CopyFailed

if TYPE_CHECKING:
    from tests.sim.world import World

Answer = TypeVar("Answer")

GO_ON, LATER, INTERLUDE, DIES = "go on", "later", "interlude", "dies"
POINTS: Final = ((68, GO_ON), (20, LATER), (8, INTERLUDE), (4, DIES))
COPY_FAILS_PERCENT: Final = 4
FETCH_FAILS_PERCENT: Final = 25


class Later(BaseException):
    """The worker goes on another time."""


class Broken(BaseException):
    """A promise is broken in the middle of a copy, where the worker takes every `Exception` for a failed copy."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class StoreBroke(RuntimeError):
    """What no store should raise."""


class Worker:
    """One worker process.

    Attributes:
        busy: in the middle of something, and others act meanwhile.
        dead: it does nothing any more.
        turn: what it is in the middle of, left for later.
    """

    def __init__(self, world: World, seat: Seat, interlude: Callable[[], None]) -> None:
        self.world = world
        self.seat = seat
        self.interlude = interlude
        self.busy = False
        self.dead = False
        self.replaced = False
        self.turn: Turn | None = None
        self._beat_at = 0.0
        self.totals = swap.Totals()
        self.queue = JobQueue(
            FaultyJobs(world, self._others_act), seat, world.contents.ranks, sleep=lambda _: None, clock=world.now
        )
        self.pulse = Pulse(self.queue, threading.Event(), self.say, clock=world.now)

    @property
    def name(self) -> str:
        return f"worker {self.seat.worker} of rank {self.seat.rank} of {self.seat.pool}"

    def say(self, event: str, /, **_details: object) -> None:
        self.world.marks[f"worker: {event}"] += 1

    def start(self) -> None:
        """Sit down. It has the rank's lock, so whoever sat here is dead."""
        try:
            self.queue.enter(takeover=True)
        except Unavailable:
            self.dead = True

    def work(self) -> bool:
        """Go on with the turn at hand, or begin one; returns whether there was a job."""
        turn = self.turn = self.turn or Turn(self)
        turn.at = 0
        self.busy = True
        try:
            swap._work(turn, turn, Remembered(self, turn), self.totals, self.say)
        except Later:
            return True
        except Died:
            if not self.dead:
                self.die(turn)
            return True
        except Broken as broken:
            raise broken.error from broken
        except Unavailable:
            self.world.marks["worker: unavailable"] += 1
        except swap.CutOff:
            self.world.tell(f"{self.name} is cut off, {turn.moved} of {turn.blocks} blocks copied")
            self.world.marks["worker cut off in mid-copy" if turn.moved else "worker cut off before the copy"] += 1
            self.queue.again()
        finally:
            self.busy = False
        self._end(turn)
        return turn.delivery is not None

    def finish_piece(self) -> None:
        """A piece of a copy does not take a second: before one has passed, it is done."""
        assert self.turn is not None
        self.turn.hurries = True
        self.work()
        if self.turn is not None:
            self.turn.hurries = False

    def beat(self) -> None:
        """What `Pulse` does in its thread."""
        if self.dead or self.world.clock - self._beat_at < limits.HEARTBEAT_EVERY_S:
            return
        self._beat_at = asked_at = self.pulse.now()
        try:
            life = self.queue.beat(self.pulse.state)
        except Unavailable:
            return
        if life is None:
            self.world.tell(f"{self.name} has been replaced")
            self.world.marks["worker: replaced"] += 1
            self.replaced = True
        else:
            self.pulse.heard(life, asked_at)

    def die(self, turn: Turn | None) -> None:
        """The process ends where it is; what it copied stays copied."""
        self.dead = True
        self.world.tell(f"{self.name} dies {turn.stage if turn else 'idle'}")
        if turn is not None and turn.delivery is not None:
            self.world.marks[f"worker died {turn.stage}"] += 1
            self.world.marks["half-copied"] += 0 < turn.moved < turn.blocks
        if turn is not None:
            self._end(turn)

    def stop(self) -> None:
        """In order: it ends the copy at hand first."""
        for _ in range(100):
            if self.turn is None or self.dead:
                break
            self.work()
        if not self.dead:
            self.world.marks["worker stopped in order"] += 1
            try:
                self.queue.leave()
            except Unavailable:
                self.world.marks["worker: unavailable"] += 1
            self.dead = True

    def _end(self, turn: Turn) -> None:
        self.turn = None
        if turn.delivery is not None:
            self.world.copying.discard((turn.delivery.job.transfer, self.seat.rank))

    def _others_act(self) -> None:
        self.interlude()
        if self.dead:
            raise Died  # somebody took the seat over meanwhile


class Turn:
    """One `_work`, as often as it is left and taken up again. Implements `Jobs` and `Mover`.

    Attributes:
        at: how far this run has come; what lies before the end of what was done is not done again.
        stage: where a death would find it.
        moved, blocks: of the copy.
        in_piece: between two blocks of one piece. hurries: it goes on to the end of the piece and no further.
    """

    def __init__(self, worker: Worker) -> None:
        self.at = 0
        self.stage = "idle"
        self.delivery: Delivery | None = None
        self.moved = 0
        self.blocks = 0
        self.in_piece = False
        self.hurries = False
        self._worker = worker
        self._world = worker.world
        self._done: list[Any] = []

    # --- what the worker calls --------------------------------------------------------------------------------------

    def take(self, timeout_s: float) -> Delivery | Dropped | None:
        got = self.once(lambda: self._taken(self._worker.queue.take(timeout_s)))
        if isinstance(got, Delivery):
            self._point("before the copy")
        return got

    def copy(
        self,
        source_pool: str,
        destination_pool: str,
        source_blocks: BlockRanges,
        destination_blocks: BlockRanges,
    ) -> int:
        assert self.delivery is not None
        job = self.delivery.job
        pairs = list(zip(ids(source_blocks), ids(destination_blocks), strict=True))
        self.blocks = ranges_count(job.source_blocks)
        moved = 0
        try:
            for number, (source, destination) in enumerate(pairs):
                if number:
                    self._point("during the copy")
                moved += self.once(
                    functools.partial(self._move, job, source_pool, destination_pool, source, destination)
                )
                self.in_piece = number + 1 < len(pairs)
        except (CopyFailed, InvalidInput, StoreBroke):
            self.in_piece = False
            self._point("after a failed copy")
            raise
        except Exception as error:
            raise Broken(error) from error
        self._point("after the copy")
        return moved

    def finish(self, delivery: Delivery, ok: bool, reason: str = "") -> FinishReply:
        self._point("before the report")
        self.stage = "after the report"
        return self.once(lambda: self._worker.queue.finish(delivery, ok, reason))

    # --- once each --------------------------------------------------------------------------------------------------

    def _taken(self, got: Delivery | Dropped | None) -> Delivery | Dropped | None:
        if isinstance(got, Delivery):
            world, job = self._world, got.job
            self.delivery = got
            world.tell(f"{self._worker.name} takes {job.transfer}, delivery {got.deliveries}, reported {got.reported}")
            world.marks["a job again, after its report"] += got.reported
            world.marks["a job again, before its report"] += got.deliveries > 1 and not got.reported
            if not got.reported:
                world.copying.add((job.transfer, self._worker.seat.rank))
        return got

    def _move(self, job: TransferJob, source_pool: str, destination_pool: str, source: int, destination: int) -> int:
        world, rank = self._world, self._worker.seat.rank
        percent = FETCH_FAILS_PERCENT if job.kind == SWAP_IN else COPY_FAILS_PERCENT
        if not world.contents.gone.isdisjoint((source_pool, destination_pool)):
            world.marks["no memory to copy from or to"] += 1
            raise CopyFailed("the memory went with its process")
        if not world.healed and world.choices.chance(percent):
            world.tell(f"{self._worker.name}: block {source} of {source_pool} cannot be copied")
            world.marks["copy failed"] += 1
            raise (CopyFailed("simulated"), InvalidInput("simulated"), StoreBroke("simulated"))[world.choices.draw(3)]
        assert self.delivery is not None
        world.contents.check_worker_may_write(job.transfer, rank, destination_pool, destination, self.delivery.life)
        store = world.contents.store(rank)
        bytes_moved = store.copy(source_pool, destination_pool, ((source, 1),), ((destination, 1),))
        self.moved += 1
        world.tell(f"{self._worker.name}: {source_pool} {source} -> {destination_pool} {destination}")
        return bytes_moved

    def _point(self, stage: str) -> None:
        """Here it may be left, others may act, or it may die."""
        if self.at < len(self._done):
            self.at += 1
            return
        if self.hurries and stage != "during the copy":
            raise Later
        self.stage = stage
        self._done.append(None)
        self.at += 1
        world = self._world
        if self.hurries:
            return
        what = GO_ON if world.healed else world.choices.weighted(POINTS)
        if what == LATER:
            raise Later
        if what == INTERLUDE:
            self._worker._others_act()
        if what == DIES:
            raise Died

    def once(self, do: Callable[[], Answer]) -> Answer:
        if self.at < len(self._done):
            result = self._done[self.at]
            self.at += 1
            if isinstance(result, Exception):
                raise result
            return result  # type: ignore[no-any-return]
        try:
            answer = do()
        except Exception as error:
            self._done.append(error)
            self.at += 1
            raise
        self._done.append(answer)
        self.at += 1
        return answer

    # --- the rest of `Jobs`: nothing a turn needs ---------------------------------------------------------------------

    @property
    def seat(self) -> Seat:
        return self._worker.seat

    @property
    def ranks(self) -> int:
        return self._worker.queue.ranks

    @property
    def trimmed(self) -> int:
        return self._worker.queue.trimmed

    def enter(self, *, takeover: bool = False) -> None:
        self._worker.queue.enter(takeover=takeover)

    def again(self) -> None:
        self._worker.queue.again()

    def beat(self, state: str) -> str | None:
        return self._worker.queue.beat(state)

    def alive(self) -> tuple[Heartbeat | None, ...]:
        return self._worker.queue.alive()

    def leave(self) -> None:
        self._worker.queue.leave()


class Remembered(Pulse):
    """The worker's pulse as one turn asks it: what it was told, it is told again."""

    def __init__(self, worker: Worker, turn: Turn) -> None:
        super().__init__(worker.queue, threading.Event(), worker.say, clock=worker.world.now)
        self._pulse = worker.pulse
        self._turn = turn

    def now(self) -> float:
        return self._turn.once(self._pulse.now)

    def heard(self, life: str, asked_at: float) -> None:
        self._turn.once(lambda: self._pulse.heard(life, asked_at))

    def vouches_for(self, life: str) -> bool:
        return self._turn.once(lambda: self._pulse.vouches_for(life))
