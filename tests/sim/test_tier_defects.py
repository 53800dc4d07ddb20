"""What the simulator found between the tiers, each by the shortest story: the failing seed became a sentence and stays.

Owns the stories. Engines have blocks of one token, so a prompt is its list of block contents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from events import limits
from events.errors import Unavailable
from events.job_ports import Delivery, RawReport, Report, Seat
from events.job_queue import JobDoorbell, JobQueue
from events.log import EventLog
from events.memory import MemoryTransport
from events.memory_jobs import MemoryJobs
from events.ports import RawReply, Record
from statecore import CacheIndex, Policy, StepConflict
from statecore.invariants import violations
from statecore.replica import Replica
from tests.sim.story import small_bounds
from workers.rebuild import missing_jobs
from workers.swap import step

WHEN_NEEDED: Final = Policy("write_back", 0, 0)


class Log(MemoryTransport):
    """A log on which somebody else may be faster: `before` happens when the next append arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[], object] | None = None

    def append(self, record: Record, **arguments: Any) -> RawReply:
        before, self.before = self.before, None
        if before is not None:
            before()
        return super().append(record, **arguments)


class Jobs(MemoryJobs):
    """Job streams on which a report can be late, and time is a number."""

    def __init__(self, log: MemoryTransport) -> None:
        super().__init__(log, lambda: self.seconds)
        self.seconds = 0.0
        self.delaying = False
        self.late: list[Callable[[], RawReport]] = []

    def report(self, seat: Seat, report: Report) -> RawReport:
        if self.delaying:
            self.late.append(lambda: super(Jobs, self).report(seat, report))
            raise Unavailable("told so")
        return super().report(seat, report)


class Connected:
    def __init__(self, log: MemoryTransport) -> None:
        self._log = log

    def log(self, index: str, *, follow: bool = True) -> EventLog:
        return EventLog(index, self._log, follow=follow, sleep=lambda _: None)

    def indexes(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        """Nothing to end."""


class Watching:
    """A store that asks, when a copy is half done, whether its transfer is still open."""

    def __init__(self, is_open: Callable[[], bool]) -> None:
        self._is_open = is_open
        self.wrote_after_the_end = False

    def copy(self, *_: object) -> int:
        self.wrote_after_the_end |= not self._is_open()
        return 0


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def jobs(log: Log) -> Jobs:
    return Jobs(log)


def engine(log: MemoryTransport, name: str = "e0", *, gpu_blocks: int = 4, policy: Policy = WHEN_NEEDED) -> CacheIndex:
    return CacheIndex(
        Connected(log),
        name="i",
        engine=name,
        gpu_pool="p",
        gpu_blocks=gpu_blocks,
        cpu_blocks=16,
        block_size=1,
        policy=policy,
        memory_survives=True,
    )


def served(index: CacheIndex, request: str, prompt: list[int], *, ready: bool = False) -> None:
    found = index.match(request, prompt)
    if len(prompt) > len(found.blocks):
        index.allocate(request, len(prompt) - len(found.blocks))
        index.extend(request, ready=ready)


def worker(jobs: Jobs) -> JobQueue:
    """The next worker of the rank: the one before is dead."""
    queue = JobQueue(jobs, Seat("p", 0, "w"), 1, sleep=lambda _: None, clock=lambda: jobs.seconds)
    queue.enter(takeover=True)
    return queue


def take(queue: JobQueue) -> Delivery:
    got = queue.take(0.0)
    assert isinstance(got, Delivery)
    return got


def all_done(jobs: Jobs) -> None:
    """A worker copies whatever there is."""
    queue = worker(jobs)
    while isinstance(got := queue.take(0.0), Delivery):
        queue.finish(got, ok=True)


def replayed(log: MemoryTransport) -> Replica:
    replica = Replica()
    replica.apply_all(EventLog("i", log).read(0, 1000))
    assert violations(replica.state) == []
    return replica


def swapped_out(log: Log, jobs: Jobs) -> CacheIndex:
    """An engine whose prompt 1, 2 waits in the host pool, with an empty GPU pool otherwise."""
    index = engine(log)
    served(index, "a", [1, 2], ready=True)
    index.release("a")
    index.match("b", [7, 8, 9, 10])
    index.allocate("b", 4)
    all_done(jobs)
    index.refresh()
    index.release("b")
    return index


# --- no block is read before it is filled ---------------------------------------------------------------------------


def test_ready_says_nothing_of_what_another_request_computes(log: Log) -> None:
    """Given a request that has computed a block, when the tree holds the same block of a request that was just
    scheduled, and the first says that it is ready, then nobody else may read the scheduled block: it holds nothing yet."""
    mine, other = engine(log, "e0"), engine(log, "e1")
    mine.match("computed", [1])
    mine.allocate("computed", 1)

    with mine.step():
        served(mine, "scheduled", [1])
        mine.extend("computed", ready=True)
    other.refresh()

    assert mine.table("computed") != mine.table("scheduled")
    assert other.would_match([1]) == 0


def test_nothing_uncomputed_is_written_through(log: Log) -> None:
    """Given the same with a host pool that is written through, then what is scheduled is not copied there yet."""
    mine = engine(log, policy=Policy("write_through", 0, 0))
    mine.match("computed", [1])
    mine.allocate("computed", 1)
    served(mine, "scheduled", [1])
    mine.extend("computed", ready=True)

    (scheduled,) = mine.table("scheduled")
    started = mine.inspect(lambda state: [job.transfer for job in missing_jobs(state, ())])
    assert started == [] or mine.table("computed") == [scheduled]


# --- the log must stay readable -------------------------------------------------------------------------------------


def test_a_step_that_cancels_and_fetches_again_is_readable(log: Log, jobs: Jobs) -> None:
    """Given a step that cancels a swap-in and fetches the same again, when the first one finishes before the step lands,
    then every replica can still read the log; else the index is lost."""
    index = swapped_out(log, jobs)
    (transfer,) = index.match("r", [1, 2]).waits_for
    log.before = lambda: all_done(jobs)

    with pytest.raises(StepConflict), index.step():  # noqa: PT012 - the error comes at its end
        index.cancel(transfer)
        index.release("r")
        index.match("again", [1, 2])

    index.refresh()
    assert replayed(log).digest() == index.digest()


def test_a_step_that_cancels_a_swap_out_and_matches_is_readable(log: Log, jobs: Jobs) -> None:
    """Given a step that cancels a swap-out and matches what was to leave, when it has left before the step lands, then
    every replica can still read the log."""
    index = engine(log)
    served(index, "a", [1, 2], ready=True)
    index.release("a")
    index.match("b", [7, 8, 9, 10])
    (transfer,) = index.allocate("b", 4).waits_for
    log.before = lambda: all_done(jobs)

    with pytest.raises(StepConflict), index.step():  # noqa: PT012 - the error comes at its end
        index.cancel(transfer)
        index.match("r", [1, 2])

    index.refresh()
    assert replayed(log).digest() == index.digest()


# --- nobody writes into what belongs to somebody else ---------------------------------------------------------------


def test_a_late_report_does_not_end_a_transfer_that_is_copied_again(log: Log, jobs: Jobs) -> None:
    """Given a worker whose report is still on its way when it dies, when its successor copies the job again and the
    report arrives meanwhile, then the transfer does not end under its hands: its blocks would be given to others."""
    index = swapped_out(log, jobs)
    (transfer,) = index.match("r", [1, 2]).waits_for
    first = worker(jobs)
    jobs.delaying = True
    with small_bounds(), pytest.raises(Unavailable):
        first.finish(take(first), ok=True)
    jobs.delaying = False

    again = worker(jobs).take(0.0)
    if isinstance(again, Delivery) and not again.reported:
        jobs.late[0]()
        store = Watching(lambda: transfer in replayed(log).state.transfers)
        assert step(again.job, store).ok
        assert not store.wrote_after_the_end
        index.refresh()
        assert index.poll(transfer).under_way


def test_a_job_that_was_rung_again_goes_with_its_transfer(log: Log, jobs: Jobs) -> None:
    """Given a job that was lost from the stream while a worker had it in its hands, and was rung again, when the worker
    finishes the transfer and no worker comes for ten minutes, then the next one does not copy it once more: the blocks
    are somebody else's by then."""
    index = swapped_out(log, jobs)
    index.match("r", [1, 2])
    first = worker(jobs)
    in_hand = take(first)
    jobs.lose("p", lists=False)
    (job,) = index.inspect(lambda state: missing_jobs(state, ()))
    assert JobDoorbell(jobs).ring(job)
    assert first.finish(in_hand, ok=True).outcome == "finished"
    jobs.seconds += limits.ACKS_TTL_S + 1

    left = worker(jobs).take(0.0)

    assert not isinstance(left, Delivery) or left.reported


# --- who is told that bytes are there has them ------------------------------------------------------------------------


def test_a_fetch_that_was_dropped_with_its_prefix_is_not_told_as_done(log: Log, jobs: Jobs) -> None:
    """Given two swap-ins of one path, when the upper one fails and the workers of the lower one report success, then
    nobody is told that the lower one is done: its blocks were dropped with their prefix."""
    index = swapped_out(log, jobs)
    (upper,) = index.match("r", [1]).waits_for
    _, lower = index.match("s", [1, 2]).waits_for
    queue = worker(jobs)
    queue.finish(take(queue), ok=False, reason="told so")
    all_done(jobs)

    assert index.poll(upper).state == "failed"
    assert index.table("s") == []
    assert not index.poll(lower).done
