"""The engine process of a chaos run: a scheduler on a `CacheIndex`, with real bytes, through every error there is.

Owns what an engine does when something goes wrong, and nothing of why:

| what the index says              | what the engine does                                                               |
|----------------------------------|------------------------------------------------------------------------------------|
| Unavailable                      | waits a little and asks again: its books are as before                             |
| OutcomeUnknown                   | the scheduler finds out at its next step; what it is told goes into the history    |
| SessionOver, RolledBack          | a new life: the requests of the old one are gone, its blocks too                   |
| anything else                    | a defect: written into the history, and the process ends                           |

It touches bytes only while its life stands (see `slot.py`): after a long sleep they may be somebody else's.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Final, TypeVar

import attrs
import orjson

from events import connect
from events.errors import RolledBack, Unavailable
from ops.chaos.history import Began, Compared, Ended, Failed, HistoryWriter, Looked, Told
from ops.chaos.recorded import RecordedConnection, RecordedLog
from ops.chaos.slot import Order, Slot
from ops.chaos.workload import Conversations
from ops.demo.contents import SharedContents
from ops.demo.drive import drain, drive
from ops.demo.engine import last_words
from ops.demo.scheduler import Scheduler
from ops.demo.tally import Limits
from ops.demo.tiers import HOST_POOL
from statecore import CacheIndex, Policy
from statecore.rejections import SessionOver

PAUSE_S: Final = (0.02, 0.2)
"""Between two tries while the log is out of reach, at random."""

COMPARE_EVERY_S: Final = 1.0

LIMITS: Final = Limits(step_tokens=4096, chunk_tokens=1024, running_max=6)

Answer = TypeVar("Answer")


@attrs.frozen
class EngineSettings:
    """Everything an engine process is told at its start.

    Attributes:
        place, process: which engine it is, and which of its processes.
        folder: for its history and its slot.
        memory_survives: its GPU pool's bytes outlive it; as `CacheIndex`.
    """

    url: str
    index: str
    engine: str
    gpu_pool: str
    gpu_blocks: int
    host_blocks: int
    ranks: int
    block_size: int
    memory_survives: bool
    seed: int
    place: int
    process: int
    step_s: float
    folder: str

    def to_json(self) -> str:
        return orjson.dumps(attrs.asdict(self)).decode()

    @property
    def history(self) -> Path:
        return Path(self.folder) / f"{self.engine}.{self.process}.history"

    @property
    def slot(self) -> Path:
        return Path(self.folder) / f"{self.engine}.{self.process}.slot"


class _GiveWay(Exception):
    """Another process has our name."""


class _Distrusted(Exception):
    """Whether our life stands is not known for sure enough to touch bytes."""


class _GuardedContents:
    """Bytes of the engine's GPU pool that are touched only while its life stands; counts what it saw."""

    def __init__(self, contents: SharedContents, slot: Slot, history: HistoryWriter) -> None:
        self._contents = contents
        self._slot = slot
        self._history = history
        self.log: RecordedLog | None = None
        self.looked = 0

    def fill(self, blocks: Sequence[int], hashes: bytes) -> None:
        with self._slot.device():
            self._require_trust()
            self._contents.fill(blocks, hashes)

    def wrong(self, blocks: Sequence[int], hashes: bytes) -> int:
        with self._slot.device():
            self._require_trust()
            wrong = self._contents.wrong(blocks, hashes)
        self.looked += len(blocks)
        if wrong:
            self._history.write(Looked(0, wrong, f"among blocks {list(blocks)}", monotonic()))
        return wrong

    def _require_trust(self) -> None:
        assert self.log is not None
        try:
            verdict = self.log.standing()
        except Unavailable as error:
            raise _Distrusted from error
        if verdict is not None:
            raise _Distrusted


class _Index(CacheIndex):
    """Writes down what `resolve` tells."""

    log: RecordedLog
    history: HistoryWriter

    def resolve(self) -> bool:
        doubted = self.log.in_doubt
        stands = super().resolve()
        if doubted is not None:
            self.log.in_doubt = None
            self.history.write(Told(doubted, stands, monotonic()))
        return stands


class _Engine:
    """One process, from its first try to join to its last word."""

    def __init__(self, settings: EngineSettings, slot: Slot, history: HistoryWriter) -> None:
        self._settings = settings
        self._slot = slot
        self._history = history
        self._chance = random.Random(f"{settings.seed}/{settings.engine}/{settings.process}/pauses")
        self._conversations = Conversations(settings.seed, settings.place, settings.process)
        self._compared_at = 0.0
        self._requests = 0
        contents = SharedContents(settings.index, settings.gpu_pool, settings.ranks)
        self._contents = _GuardedContents(contents, slot, history)
        connection = self._insistently(lambda: connect(settings.url))
        self._connection = RecordedConnection(connection, history)
        self._index = self._insistently(self._join)
        self._began("start")
        self._scheduler = self._next_scheduler()

    def run(self) -> None:
        while self._slot.order is not Order.FINISH or self._scheduler.running:
            try:
                drive(self._scheduler, step_s=self._settings.step_s, after_step=self._after_step)
                self._requests += self._scheduler.tally.requests
                self._scheduler = self._next_scheduler()
            except Unavailable:  # of an unknown outcome, too: the scheduler finds out first thing
                self._pause()
            except (SessionOver, RolledBack, _Distrusted) as error:
                self._new_life(error)
        self._finish()

    # --- serving ----------------------------------------------------------------------------------------------------

    def _after_step(self) -> None:
        if self._slot.order is Order.FINISH:
            self._scheduler.waiting.clear()
        if monotonic() - self._compared_at > COMPARE_EVERY_S:
            self._compare()

    def _compare(self) -> None:
        self._compared_at = monotonic()
        self._history.write(Compared(self._index.position, self._index.digest(), monotonic()))
        self._history.write(Looked(self._contents.looked, 0, "", monotonic()))
        self._contents.looked = 0

    def _next_scheduler(self) -> Scheduler:
        requests = [] if self._slot.order is Order.FINISH else self._conversations.batch()
        return Scheduler(self._index, requests, LIMITS, contents=self._contents)

    # --- lives ------------------------------------------------------------------------------------------------------

    def _join(self) -> _Index:
        settings = self._settings
        index = _Index(
            self._connection,
            name=settings.index,
            engine=settings.engine,
            gpu_pool=settings.gpu_pool,
            gpu_blocks=settings.gpu_blocks,
            block_size=settings.block_size,
            tensor_parallel_size=settings.ranks,
            cpu_pool=HOST_POOL,
            cpu_blocks=settings.host_blocks,
            policy=Policy(free_low=10, free_high=20),
            memory_survives=settings.memory_survives,
        )
        index.log, index.history = self._connection.last, self._history
        return index

    def _began(self, why: str) -> None:
        self._contents.log = self._index.log
        self._history.write(Began(self._index.session, why, monotonic()))

    def _new_life(self, error: Exception) -> None:
        self._give_way_if_told()
        self._insistently(self._index.rejoin)
        self._began(f"{type(error).__name__}: {error}"[:300])
        self._requests += self._scheduler.tally.requests
        self._scheduler = self._next_scheduler()

    def _finish(self) -> None:
        """Transfers end, the last digest is told, the engine leaves."""
        try:
            while self._insistently(lambda: drain(self._index)):
                self._pause()
            self._insistently(self._index.refresh)
            self._compare()
            self._insistently(self._index.leave)
        except (SessionOver, RolledBack):
            self._give_way_if_told()
            self._insistently(self._index.rejoin)
            self._began("to leave")
            self._insistently(self._index.leave)
        self._index.close()
        self._history.write(Ended(self._requests, monotonic()))

    # --- patience ---------------------------------------------------------------------------------------------------

    def _insistently(self, call: Callable[[], Answer]) -> Answer:
        while True:
            try:
                return call()
            except Unavailable:
                self._give_way_if_told()
                self._pause()

    def _give_way_if_told(self) -> None:
        if self._slot.order is Order.GIVE_WAY:
            raise _GiveWay

    def _pause(self) -> None:
        time.sleep(self._chance.uniform(*PAUSE_S))


def main(settings: EngineSettings) -> int:
    """Body of the process; its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    history, slot = HistoryWriter(settings.history), Slot(settings.slot)
    try:
        _Engine(settings, slot, history).run()
    except _GiveWay:
        return 0
    except Exception as error:
        history.write(Failed(last_words(error), monotonic()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(EngineSettings(**orjson.loads(sys.argv[1]))))
