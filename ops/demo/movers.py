"""The swap workers of the demo: one process for each GPU pool and rank, started and ended with it.

Owns their lives and reads what they logged. They are the workers that anybody uses (`workers.launcher`); nothing here
moves a byte, except one large copy to compare theirs with.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

import attrs
import numpy as np
import orjson

from events.errors import StateCoreError
from ops.demo.tiers import HOST_POOL, Tiers
from workers.interrupts import interrupts_held_back
from workers.launcher import launch_workers, stop_workers
from workers.rank_lock import RankLock
from workers.stores import StoreSettings

STOP_S: Final = 5.0
"""A worker hears within a second that it shall stop; here its copies are a few blocks."""

STARTS_AT_ONCE: Final = 8
MEMCPY_BYTES: Final = 64 << 20
MEMCPY_TIMES: Final = 3


class WorkerDied(Exception):
    """A worker could not be started, or ended before its work was done."""


@attrs.frozen
class Moved:
    """What the workers said of their work, all together.

    Attributes:
        copies: transfers copied, each counted by every rank.
        failed: those they could not copy.
        seconds: spent copying, reports not counted.
    """

    copies: int = 0
    failed: int = 0
    moved_bytes: int = 0
    seconds: float = 0.0

    @property
    def bytes_per_s(self) -> float:
        return self.moved_bytes / self.seconds if self.seconds else 0.0


class Movers:
    """The workers of all GPU pools. Use as a context: entering starts them, leaving ends them."""

    def __init__(self, url: str, index: str, gpu_pools: Sequence[str], tiers: Tiers) -> None:
        self._url = url
        self._index = index
        self._pools = gpu_pools
        self._ranks = tiers.ranks
        self._store = StoreSettings(
            store="numpy", layout=tiers.layout.to_json(), host_pool=HOST_POOL, host_blocks=tiers.host_blocks
        )
        self._workers: dict[str, list[subprocess.Popen[bytes]]] = {}
        self._logs = tempfile.TemporaryDirectory(prefix="statecore-demo-")

    def __enter__(self) -> Movers:
        threads = ThreadPoolExecutor(max_workers=STARTS_AT_ONCE)
        try:
            with interrupts_held_back():  # a thread that is being started is in nobody's list
                launches = [threads.submit(self._launch, pool) for pool in self._pools]
            for launch in launches:
                launch.result()
            threads.shutdown()
        except BaseException as error:
            threads.shutdown(wait=True, cancel_futures=True)  # a launch that was begun is bounded itself
            self._end()
            if isinstance(error, StateCoreError | RuntimeError | OSError):
                raise WorkerDied(f"the workers could not be started: {' '.join(str(error).split())}") from None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def require_life(self) -> None:
        """
        Raises:
            WorkerDied: a worker has ended.
        """
        for pool, workers in self._workers.items():
            for rank, worker in enumerate(workers):
                code = worker.poll()
                if code is not None:
                    raise WorkerDied(
                        f"the worker of rank {rank} of {pool} (process {worker.pid}) ended with code {code}"
                    )

    def stop(self) -> Moved:
        """End them in order; what they did."""
        self._stop()
        return moved([path.read_bytes() for path in sorted(Path(self._logs.name).glob("*.log"))])

    # --- inside -----------------------------------------------------------------------------------------------------

    def _launch(self, pool: str) -> None:
        folder = Path(self._logs.name)
        self._workers[pool] = launch_workers(self._url, self._index, pool, self._ranks, self._store, log_folder=folder)

    def _end(self) -> None:
        self._stop()
        with suppress(OSError):
            self._logs.cleanup()

    def _stop(self) -> None:
        stop_workers([worker for workers in self._workers.values() for worker in workers], timeout_s=STOP_S)
        for pool, workers in self._workers.items():
            for rank, worker in enumerate(workers):
                if worker.returncode:  # it could not take its lock file along
                    with suppress(StateCoreError), RankLock(self._index, pool, rank) as lock:
                        lock.acquire()
        self._workers.clear()


def moved(logs: Sequence[bytes]) -> Moved:
    """Sum up the workers' log lines; what is no line of theirs is skipped."""
    copies, failed, moved_bytes, seconds = 0, 0, 0, 0.0
    for line in b"\n".join(logs).splitlines():
        try:
            said = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        match said:
            case {"event": "copied", "bytes": int(count), "seconds": float(lasted) | int(lasted)}:
                copies += 1
                moved_bytes += count
                seconds += lasted
            case {"event": "failed"}:
                failed += 1
    return Moved(copies, failed, moved_bytes, seconds)


def memcpy_bytes_per_s() -> float:
    """One large copy in this process's memory, the best of a few."""
    source = np.ones(MEMCPY_BYTES, dtype=np.uint8)
    destination = np.zeros_like(source)
    best = float("inf")
    for _ in range(MEMCPY_TIMES):
        began = time.perf_counter()
        np.copyto(destination, source)
        best = min(best, time.perf_counter() - began)
    return MEMCPY_BYTES / best
