"""The reference of jobs and workers: messages through a bare Redis stream to other processes, and an answer back.

Owns both ends. The other process blocks in XREADGROUP, one message at a time as a worker does, copies as many bytes as
it was told in one piece, adds an answer to a reply stream where one is wanted, and acknowledges. No check, no log, no
state, no store: what is left is the way itself.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from time import perf_counter
from types import TracebackType
from typing import Any, Final, cast

import numpy as np

from events import limits
from events.client import build_client
from events.keys import IndexKeys, rank_group
from events.ports import Job
from ops.bench import worker_process

_NAME: Final = "bench-bare-worker"
_POOL: Final = "gpu"
_WORKER: Final = "bare"
_ANSWER: Final = "answer"


class BareWorkers:
    """As many processes as there are ranks, each with a group of its own. Use as a context."""

    def __init__(self, url: str, ranks: int, copied_bytes: int) -> None:
        self._url = url
        self._ranks = ranks
        self._copied_bytes = copied_bytes
        self._client = build_client(url)
        self._keys = IndexKeys.of(_NAME)
        self._heard = "0-0"
        self._processes: list[subprocess.Popen[bytes]] = []

    def round_trip_us(self, job: Job) -> float:
        """From the message to the last rank's answer."""
        begin = perf_counter()
        self._client.xadd(self._keys.jobs(_POOL), {"transfer": job.transfer, "body": job.body, _ANSWER: ""})
        self._answers()
        return (perf_counter() - begin) * 1e6

    def jobs_per_s(self, jobs: Sequence[Job]) -> float:
        """All messages at once, as a commit brings them; from the first that was delivered to the last, by the slowest."""
        pipeline = self._client.pipeline(transaction=True)
        for job in jobs[:-1]:
            pipeline.xadd(self._keys.jobs(_POOL), {"transfer": job.transfer, "body": job.body})
        last = jobs[-1]
        pipeline.xadd(self._keys.jobs(_POOL), {"transfer": last.transfer, "body": last.body, _ANSWER: ""})
        pipeline.execute()
        return len(jobs) / max(self._answers())

    def __enter__(self) -> BareWorkers:
        try:
            for rank in range(self._ranks):
                words = (self._url, str(rank), str(self._copied_bytes))
                self._processes.append(worker_process.start("ops.bench.bare_worker", *words))
            self._answers(limits.WORKER_START_TIMEOUT_S)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _answers(self, timeout_s: float = limits.SOCKET_TIMEOUT_S) -> list[float]:
        """One of each rank: seconds since its first message that was not answered."""
        found: list[float] = []
        end = perf_counter() + timeout_s
        while len(found) < self._ranks:
            for process in self._processes:
                if process.poll() is not None:
                    raise RuntimeError("a process of the bench ended; its error is above")
            if perf_counter() > end:
                raise RuntimeError(f"{len(found)} of {self._ranks} processes of the bench answered in {timeout_s:g} s")
            for entry, fields in _entries(self._client.xread({self._keys.log: self._heard}, block=_block_ms())):
                self._heard = entry.decode()
                found.append(float(fields[b"seconds"]))
        return found

    def _end(self) -> None:
        with ExitStack() as ending:
            ending.callback(self._client.close)
            for process in self._processes:
                process.terminate()
                ending.enter_context(process)


def work(url: str, rank: int, copied_bytes: int) -> None:
    """Main function of the process; it is ended from outside."""
    client, keys = build_client(url), IndexKeys.of(_NAME)
    jobs, group = keys.jobs(_POOL), rank_group(rank)
    source = np.ones(copied_bytes, dtype=np.uint8)
    destination = np.zeros_like(source)
    client.xgroup_create(jobs, group, id="0", mkstream=True)
    client.xadd(keys.log, {"seconds": 0})
    begin: float | None = None
    while True:
        for entry, fields in _entries(client.xreadgroup(group, _WORKER, {jobs: ">"}, count=1, block=_block_ms())):
            begin = perf_counter() if begin is None else begin
            np.copyto(destination, source)
            if _ANSWER.encode() in fields:
                client.xadd(keys.log, {"seconds": perf_counter() - begin})
                begin = None
            client.xack(jobs, group, entry)


def _entries(streams: object) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Of the one stream that was read; empty when nothing came in time."""
    return [entry for _, entries in cast("list[Any]", streams or []) for entry in entries]


def _block_ms() -> int:
    return int(limits.JOB_BLOCK_S * 1000)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
