"""One engine process: joins the index, serves its requests, leaves, and tells what it saw.

Owns what happens inside the process, order by order (see `messages.py`). It ends by itself in every case: with its work,
with its pipe, or with `Failed` as its last word.
"""

from __future__ import annotations

import signal
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection as Pipe
from typing import Final

from events import StateCoreError, connect
from ops.demo.contents import NO_CONTENTS, Contents, SharedContents
from ops.demo.drive import Starved, drain, drive
from ops.demo.measured import MeasuredConnection
from ops.demo.messages import Compared, EngineSpec, Failed, Joined, Left, Order, Progress, Replicated, Served
from ops.demo.pace import Board, Pace
from ops.demo.private import serve_privately
from ops.demo.scheduler import Scheduler
from ops.demo.tally import Tally
from ops.demo.tiers import HOST_POOL
from statecore import CacheIndex

PROGRESS_EVERY_S: Final = 0.2


def main(spec: EngineSpec, pipe: Pipe, board: Board) -> None:
    """Body of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    try:
        with connect(spec.url) as connection:
            _Engine(spec, pipe, board, MeasuredConnection(connection)).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # nobody is there to hear
    except Exception as error:
        with suppress(OSError):
            pipe.send(Failed(last_words(error)))
        raise SystemExit(1) from None


def last_words(error: Exception) -> str:
    """What went wrong in one line: expected errors explain themselves, others say where they come from."""
    text = " ".join(str(error).split())
    if isinstance(error, StateCoreError | Starved):
        return f"{type(error).__name__}: {text}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text} ({place.filename}:{place.lineno} in {place.name})"


class _Engine:
    """The engine between two orders."""

    def __init__(self, spec: EngineSpec, pipe: Pipe, board: Board, connection: MeasuredConnection) -> None:
        self._spec = spec
        self._pipe = pipe
        self._pace = Pace(board, spec.place)
        self._connection = connection
        self._told_at = 0.0
        self._index = CacheIndex(
            connection,
            name=spec.index,
            engine=spec.engine,
            gpu_blocks=spec.gpu_blocks,
            gpu_pool=spec.gpu_pool,
            block_size=spec.block_size,
            tensor_parallel_size=spec.ranks,
            cpu_pool=HOST_POOL if spec.host_blocks else None,
            cpu_blocks=spec.host_blocks,
            policy=spec.policy if spec.host_blocks else None,
        )
        self._contents: Contents = NO_CONTENTS
        if spec.host_blocks:
            self._contents = SharedContents(spec.index, spec.gpu_pool, spec.ranks)

    def run(self) -> None:
        self._pipe.send(Joined())
        while True:
            try:
                order = self._pipe.recv()
            except EOFError:
                return
            match order:
                case Order.SERVE:
                    self._pipe.send(self._serve())
                case Order.LEAVE:
                    self._pipe.send(self._leave())
                case Order.READ:
                    self._pipe.send(Replicated(self._index.refresh(), self._index.digest()))
                case Order.COMPARE:
                    self._pipe.send(self._compare())

    def _serve(self) -> Served:
        spec = self._spec
        scheduler = Scheduler(self._index, spec.requests, spec.limits, self._pace.is_due, self._contents)

        def after_step() -> None:
            self._pace.publish(scheduler.next_number)
            self._tell(scheduler)

        drive(scheduler, step_s=spec.step_s, after_step=after_step)
        return Served(scheduler.tally, drain(self._index))

    def _leave(self) -> Left:
        """The replica stays readable: its connection is open until the process ends."""
        self._index.close()
        (log,) = self._connection.logs
        return Left(self._index.commits, self._index.conflicts, log.commits_s, log.round_trips_s)

    def _compare(self) -> Compared:
        private = self._privately(self._spec.private_host_blocks)
        return Compared(private, self._privately(0) if self._spec.private_host_blocks else private)

    def _privately(self, host_blocks: int) -> Tally:
        spec = self._spec
        return serve_privately(
            spec.requests,
            gpu_blocks=spec.private_gpu_blocks,
            host_blocks=host_blocks,
            policy=spec.policy,
            block_size=spec.block_size,
            limits=spec.limits,
            after_step=self._tell,
        )

    def _tell(self, scheduler: Scheduler) -> None:
        if time.monotonic() - self._told_at > PROGRESS_EVERY_S:
            self._told_at = time.monotonic()
            self._pipe.send(Progress(scheduler.tally, scheduler.index.commits, scheduler.index.conflicts))
