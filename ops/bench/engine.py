"""One engine process of the fleet: joins an index, waits for the common start, steps until time is up, reports.

Owns the child's side of the conversation with `fleet.py` and what a step is: end the request that is oldest, begin a
new one (match, allocate, extend), commit. The processes live through all runs of the bench, because starting one takes
longer than a run.

| parent sends      | child                                            | answers    |
|-------------------|--------------------------------------------------|------------|
| `Run`             | opens a connection, joins, takes some warm steps | True       |
| the start time    | waits for it, then steps                         | `Outcome`  |
| None              | leaves                                           | True       |
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import cycle
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Final

import attrs

from events import connect
from events.client import build_client
from events.ports import Record
from ops.bench.bare import BareAppends
from ops.bench.workload import BLOCK_TOKENS, Life
from statecore import CacheIndex, Contended, PoolExhausted, StepConflict

_LIVE_REQUESTS: Final = 8
_WARM_STEPS: Final = 10
_SAMPLE_STEPS: Final = 64


@attrs.frozen
class Run:
    """What one engine does in one run.

    Attributes:
        url: of the Redis.
        index: its name; None to append barely instead.
        engine, engines: number of this engine, and of how many.
        pool, pool_blocks: its GPU pool.
        seconds: how long.
        pace_s: begin a step every so often; 0 is at once.
        phase_s: how much later than the common start.
    """

    url: str
    index: str | None
    engine: int
    engines: int
    pool: str
    pool_blocks: int
    seconds: float
    pace_s: float
    phase_s: float


@attrs.frozen
class Outcome:
    """What came of it.

    Attributes:
        commits: that landed between start and end.
        conflicts: refusals of the log, each followed by deciding again.
        commit_us: how long each commit took, all its conflicts included.
    """

    commits: int
    conflicts: int
    commit_us: list[float]


def engine_process(parent: Connection, lives: list[Life]) -> None:
    """Main function of the process."""
    records = sample_records(lives)
    gc.freeze()
    while (run := parent.recv()) is not None:
        if run.index is None:
            _append_barely(run, records, parent)
        else:
            _drive_index(run, lives, parent)
        parent.send(True)


def sample_records(lives: list[Life]) -> list[Record]:
    """What some steps' commits look like in the log: the bytes a bare append carries."""
    with connect("memory://") as connection:
        log = connection.log("sample")
        with CacheIndex(connection, name="sample", engine="engine-0", gpu_blocks=_SAMPLE_STEPS * 200) as index:
            stepper = Stepper(index, cycle(lives))
            for _ in range(_SAMPLE_STEPS):
                stepper.step()
        return [stored.record for stored in log.read_stored(after=1)]


class Stepper:
    """An engine's scheduler at its simplest."""

    def __init__(self, index: CacheIndex, lives: Iterator[Life]) -> None:
        self._index = index
        self._lives = lives
        self._live: deque[str] = deque()
        self._number = 0

    def step(self) -> float:
        """One step; returns µs from the end of its calls to the answer of the log. A step that is refused is skipped."""
        self._number += 1
        request, life = f"r{self._number}", next(self._lives)
        called = perf_counter()
        try:
            with self._index.step():
                if len(self._live) == _LIVE_REQUESTS:
                    self._index.release(self._live[0])
                matched = len(self._index.match(request, hashes=life.prompt, prompt_tokens=life.prompt_tokens).blocks)
                if life.prompt_blocks > matched:
                    self._index.allocate(request, life.prompt_blocks - matched)
                self._index.extend(request, ready=True)
                called = perf_counter()
        except (Contended, PoolExhausted, StepConflict):
            return (perf_counter() - called) * 1e6
        landed = perf_counter()
        if len(self._live) == _LIVE_REQUESTS:
            self._live.popleft()
        self._live.append(request)
        return (landed - called) * 1e6


def _drive_index(run: Run, lives: list[Life], parent: Connection) -> None:
    assert run.index is not None
    own = cycle(lives[run.engine :: run.engines])
    with (
        connect(run.url) as connection,
        CacheIndex(
            connection,
            name=run.index,
            engine=f"engine-{run.engine}",
            gpu_pool=run.pool,
            gpu_blocks=run.pool_blocks,
            block_size=BLOCK_TOKENS,
        ) as index,
    ):
        stepper = Stepper(index, own)
        for _ in range(_WARM_STEPS):
            stepper.step()
        parent.send(True)
        start = parent.recv()
        commits, conflicts = index.commits, index.conflicts
        times = _timed(run, start, stepper.step)
        parent.send(Outcome(index.commits - commits, index.conflicts - conflicts, times))
        parent.recv()


def _append_barely(run: Run, records: list[Record], parent: Connection) -> None:
    client = build_client(run.url)
    appends, payloads = BareAppends(client, f"bare-{run.engine}"), cycle(records)

    def append() -> float:
        record = next(payloads)
        begin = perf_counter()
        appends.append(record)
        return (perf_counter() - begin) * 1e6

    for _ in range(_WARM_STEPS):
        append()
    parent.send(True)
    times = _timed(run, parent.recv(), append)
    parent.send(Outcome(len(times), 0, times))
    parent.recv()
    client.close()


def _timed(run: Run, start: float, step: Callable[[], float]) -> list[float]:
    """Steps from the common start (monotonic clock) until time is up; a paced step that comes late skips its missed ones."""
    due, end = start + run.phase_s, start + run.seconds
    times: list[float] = []
    while True:
        time.sleep(max(0.0, min(due, end) - time.monotonic()))
        if time.monotonic() >= end:
            return times
        times.append(step())
        if run.pace_s:
            missed = max(0.0, time.monotonic() - due) // run.pace_s
            due += (missed + 1) * run.pace_s
