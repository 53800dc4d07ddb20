"""The loop around the steps: it ends, whatever happens."""

from __future__ import annotations

import pytest

from events import connect
from ops.demo import drive as driving
from ops.demo.drive import Starved, drive
from ops.demo.measured import MeasuredConnection
from ops.demo.plan import Outcome
from ops.demo.private import serve_privately
from ops.demo.scheduler import Scheduler
from ops.demo.tally import Limits
from ops.trace import generate
from statecore import CacheIndex
from tests.demo.trace_requests import BLOCK, numbered, request


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def now(self) -> float:
        return self.now_s


def test_an_engine_without_blocks_gives_up_and_says_what_there_was() -> None:
    """The demo would hang for ever, silently, when something holds the blocks.

    Given a pool whose blocks another engine holds and never gives back
    Then the loop ends after its bound, with the numbers.
    """
    clock = Clock()
    with connect("memory://") as connection:
        other = CacheIndex(connection, name="i", engine="other", gpu_blocks=4, gpu_pool="gpu:shared", block_size=BLOCK)
        index = CacheIndex(connection, name="i", engine="engine", gpu_pool="gpu:shared", block_size=BLOCK)
        other.allocate(None, 4)

        with pytest.raises(Starved, match=r"1 waiting.* 0 free and 0 evictable"):
            drive(Scheduler(index, numbered(request([1]))), sleep=clock.sleep, now=clock.now)

    assert driving.STARVED_S < clock.now_s < driving.STARVED_S + 1


def test_an_engine_that_loses_every_race_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo would spin for ever."""
    clock = Clock()
    with connect("memory://") as connection:
        index = CacheIndex(connection, name="i", engine="engine", gpu_blocks=4, block_size=BLOCK)
        scheduler = Scheduler(index, numbered(request([1])))
        monkeypatch.setattr(scheduler, "step", lambda: Outcome.LOST)

        with pytest.raises(Starved, match=f"lost {driving.LOST_MAX} steps"):
            drive(scheduler, sleep=clock.sleep, now=clock.now)


def test_a_step_lasts_as_long_as_a_model_would_take() -> None:
    """`--step-ms` would promise a pace that nobody keeps."""
    clock = Clock()
    with connect("memory://") as connection:
        index = CacheIndex(connection, name="i", engine="engine", gpu_blocks=9, block_size=BLOCK)
        scheduler = Scheduler(index, numbered(request([1, 2], 3)))

        drive(scheduler, step_s=0.5, sleep=clock.sleep, now=clock.now)

    assert clock.now_s == pytest.approx(0.5 * scheduler.tally.steps)


def test_every_commit_is_measured_once() -> None:
    """The latencies of the report would be those of something else than its commits."""
    with connect("memory://") as connection:
        measured = MeasuredConnection(connection)
        index = CacheIndex(measured, name="i", engine="engine", gpu_blocks=9, block_size=BLOCK)
        drive(Scheduler(index, numbered(request([1, 2]), request([1, 3]))))
        index.close()

    (log,) = measured.logs
    assert len(log.commits_s) == index.commits
    assert len(log.round_trips_s) == index.commits + index.conflicts
    assert all(duration > 0 for duration in log.commits_s)


def test_a_private_pool_of_a_quarter_reuses_less() -> None:
    """The comparison would flatter sharing, or hide it: it must come from the same scheduler and the same requests.

    Given one trace, served by one engine over the whole pool and in four shares by four engines over a quarter each
    Then the whole reuses more, and serving privately twice gives the same.
    """
    requests = numbered(*generate(300, seed=1))

    def reused(share: int) -> int:
        tallies = [
            serve_privately(requests[place::share], gpu_blocks=16_000 // share, block_size=64, limits=Limits())
            for place in range(share)
        ]
        return sum(tally.reused_tokens for tally in tallies)

    assert reused(1) > reused(4) == reused(4)
