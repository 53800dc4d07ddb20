"""What starting transfers costs a scheduler step.

A step begins four requests. In one kind each finds its prompt in the host pool, so the step starts four swap-ins and
rings a worker four times; in the other each finds nothing and is given as many blocks. Both commit eight facts, and
they take turns, in the embedded Redis.

| name                 | from … to the end of the block    | reference                                                |
|----------------------|-----------------------------------|----------------------------------------------------------|
| transfer_step_us     | the beginning of the block        | the step of as many facts without transfers              |
| transfer_commit_us   | the end of the calls in it        | a bare EVALSHA of the same entry (without the four jobs) |

No worker runs: transfers are ended beside the log between two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from time import perf_counter
from typing import Final

from events import codec, connect
from events.client import build_client
from events.embedded import EmbeddedRedis
from ops.bench.bare import BareAppends
from ops.bench.figure import Advance, Budget, Group, Measurement, Pair, Settings, undisturbed, wall_us
from ops.bench.moving import WHEN_NEEDED, prompts
from ops.bench.workload import BLOCK_TOKENS, ENGINE, POOL
from ops.demo.immediate import ImmediateWorkers
from statecore import CacheIndex

_STEP: Final = "transfer_step_us"
_COMMIT: Final = "transfer_commit_us"
_INDEX: Final = "bench-transfer-step"
_REQUESTS: Final = 4
_BLOCKS: Final = 16
_POOL_BLOCKS: Final = _REQUESTS * _BLOCKS
_WARM: Final = 10


def measure(settings: Settings, wanted: frozenset[str], advance: Advance) -> list[Measurement]:
    steps, commits = Pair(), Pair()
    rounds = _WARM + settings.count(usual=500, quick=5)
    fresh = prompts(settings.seed, _BLOCKS)
    with (
        EmbeddedRedis() as server,
        connect(server.url) as connection,
        CacheIndex(
            connection,
            name=_INDEX,
            engine=ENGINE,
            gpu_pool=POOL,
            gpu_blocks=_POOL_BLOCKS,
            cpu_blocks=_POOL_BLOCKS,
            block_size=BLOCK_TOKENS,
            policy=WHEN_NEEDED,
        ) as index,
        build_client(server.url) as client,
        undisturbed(),
    ):
        log = connection.log(_INDEX, follow=False)
        bare, workers = BareAppends(client, "bench-bare"), ImmediateWorkers(log)
        hosted = list(islice(fresh, _REQUESTS))
        _send_to_host(index, workers, hosted)
        for number in range(rounds):
            plain_us, _ = _timed(index, list(islice(fresh, _REQUESTS)), _begin_with_blocks)
            (plain,) = log.read(index.position - 1, 1)
            _release_all(index)
            moving_us, commit_us = _timed(index, hosted, _begin)
            (stored,) = log.read_stored(index.position - 1, 1)
            assert len(codec.decode(stored).facts) == len(plain.facts) == 2 * _REQUESTS
            if number >= _WARM:
                steps.add(moving_us, plain_us)
                commits.add(commit_us, wall_us(bare.append, stored.record))
            workers.work()
            _release_all(index)
            index.recycle(None, index.allocate(None, _POOL_BLOCKS).blocks)  # what the host has, too, is dropped for it
            advance((number + 1) / rounds)
    label = f"a step of as many facts: {_REQUESTS} requests given blocks"
    found = {
        _STEP: steps.measurement(_STEP, "µs", label),
        _COMMIT: commits.measurement(_COMMIT, "µs", "bare EVALSHA of the same entry"),
    }
    return [each for name, each in found.items() if name in wanted]


def _timed(
    index: CacheIndex, contents: Sequence[bytes], begin: Callable[[CacheIndex, str, bytes], object]
) -> tuple[float, float]:
    """One step that begins a request for each content: µs of all of it, and of its commit."""
    started = called = perf_counter()
    with index.step():
        for number, content in enumerate(contents):
            begin(index, f"r{number}", content)
        called = perf_counter()
    landed = perf_counter()
    return (landed - started) * 1e6, (landed - called) * 1e6


def _begin(index: CacheIndex, request: str, content: bytes) -> None:
    assert index.match(request, hashes=content).waits_for


def _begin_with_blocks(index: CacheIndex, request: str, content: bytes) -> None:
    index.match(request, hashes=content)
    index.allocate(request, _BLOCKS)


def _release_all(index: CacheIndex) -> None:
    index.refresh()
    with index.step():
        for request in index.requests():
            index.release(request)


def _send_to_host(index: CacheIndex, workers: ImmediateWorkers, contents: Sequence[bytes]) -> None:
    """Compute them, then want their blocks for something else."""
    with index.step():
        for number, content in enumerate(contents):
            _begin_with_blocks(index, f"r{number}", content)
            index.extend(f"r{number}", ready=True)
    _release_all(index)
    index.allocate(None, _POOL_BLOCKS)
    workers.work()
    index.refresh()


GROUP: Final = Group(
    title="step with transfers",
    figures=(_STEP, _COMMIT),
    seconds=4,
    measure=measure,
    budgets={_COMMIT: Budget(1.5, of="ratio")},
)
