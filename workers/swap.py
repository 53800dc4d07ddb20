"""The swap worker: takes transfer jobs of its rank, has the bytes copied, reports. One step, and a thin loop around it.

Owns what a worker does about every job and every error. Must not know what a block's bytes are (a store does) nor how
jobs travel (`events.job_ports.Jobs`).

| what happens                              | what the worker does                                                      |
|-------------------------------------------|---------------------------------------------------------------------------|
| a job                                     | copies, reports "copied"                                                  |
| the store refuses, or breaks in any way   | reports "not copied" with the reason; goes on with the next job           |
| a job this rank has reported before       | does not touch a byte; takes it off its list                              |
| an entry that is no job                   | says so; goes on                                                          |
| Redis does not answer                     | waits, longer each time; begins again with what it has not finished       |
| told to stop                              | ends the copy at hand, reports it, leaves; the rest is for the next worker |
| another worker has taken the seat over    | the same                                                                  |
| the server is not heard any more, or has  | stops between two pieces of the copy and reports nothing: the log may not |
| begun a new life                          | know the job any more; looks at its list again once it is heard           |
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Protocol

import attrs

from events import limits
from events.errors import StateCoreError, Unavailable
from events.facts import BlockRanges
from events.job_ports import INTERRUPTED, UNSEATED, Delivery, Dropped, Jobs
from events.jobs import TransferJob
from statecore.ranges import count, split
from workers.log_lines import Say
from workers.pulse import Pulse


class Mover(Protocol):
    """The one thing a worker wants of a store."""

    def copy(
        self,
        source_pool: str,
        destination_pool: str,
        source_blocks: BlockRanges,
        destination_blocks: BlockRanges,
    ) -> int:
        """Copy blocks pairwise; returns the bytes moved, after they have arrived. Any exception: not copied."""


@attrs.frozen
class StepReport:
    """What came of one job.

    Attributes:
        reason: why it was not copied; "" when it was.
        moved_bytes: this rank's share.
        trace: the traceback of an error that no store should raise.
    """

    reason: str = ""
    moved_bytes: int = 0
    trace: str = ""

    @property
    def ok(self) -> bool:
        return not self.reason


class CutOff(Exception):
    """Nobody vouches for the job at hand any more: not another byte may be moved for it."""


@attrs.define
class Totals:
    """What a worker did in its life."""

    copied: int = 0
    failed: int = 0
    skipped: int = 0
    moved_bytes: int = 0


def step(job: TransferJob, mover: Mover, vouched: Callable[[], bool] = lambda: True) -> StepReport:
    """Carry out one job, in pieces. Whatever goes wrong is this job's failure, and the next one's turn.

    Raises:
        CutOff: `vouched` said no between two pieces.
    """
    moved = 0
    try:
        for source, destination in _pieces(job):
            if not vouched():
                raise CutOff
            moved += mover.copy(job.source, job.destination, source, destination)
    except CutOff:
        raise
    except StateCoreError as error:
        return StepReport(reason=str(error) or type(error).__name__)
    except Exception as error:  # a defect of the store, or of ours: told in full, once, and not fatal
        return StepReport(reason=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
    return StepReport(moved_bytes=moved)


def _pieces(job: TransferJob) -> Iterator[tuple[BlockRanges, BlockRanges]]:
    """The job in copies that end soon. One that does not hold together goes to the mover as it is, to be refused."""
    source, destination = job.source_blocks, job.destination_blocks
    left = count(source)
    while left > limits.COPY_PIECE_BLOCKS and left == count(destination):
        piece, source = split(source, limits.COPY_PIECE_BLOCKS)
        target, destination = split(destination, limits.COPY_PIECE_BLOCKS)
        left -= limits.COPY_PIECE_BLOCKS
        yield piece, target
    yield source, destination


def run(jobs: Jobs, mover: Mover, *, stop: threading.Event, say: Say) -> Totals:
    """Work until told to stop. The worker has entered its seat (`jobs.enter`); at the end it leaves.

    Raises:
        InvalidInput, CorruptState: the index is of another release, or its keys are damaged; nothing to be done here.
    """
    totals = Totals()
    pause_s = limits.RETRY_WAIT_INITIAL_S
    trimmed = 0
    with Pulse(jobs, stop, say) as pulse:
        while not stop.is_set():
            try:
                _work(jobs, mover, pulse, totals, say)
                pause_s = limits.RETRY_WAIT_INITIAL_S
            except Unavailable as error:
                say("unavailable", reason=str(error), pause_s=pause_s)
                time.sleep(pause_s)  # not stop.wait: a signal handler that sets the event would wait for its lock
                pause_s = min(pause_s * 2, limits.RETRY_WAIT_MAX_S)
            except CutOff:
                say("cut_off", reason="the log's server was not heard, or began a new life; nothing reported")
                jobs.again()
                time.sleep(pause_s)
            if jobs.trimmed > trimmed:
                say("trimmed", jobs=jobs.trimmed - trimmed)
                trimmed = jobs.trimmed
    say("stopped", **attrs.asdict(totals))
    return totals


def _work(jobs: Jobs, mover: Mover, pulse: Pulse, totals: Totals, say: Say) -> None:
    """One job at most."""
    asked_at = pulse.now()
    got = jobs.take(limits.JOB_BLOCK_S)
    match got:
        case Delivery():
            pulse.heard(got.life, asked_at)
            pulse.state = f"copying {got.job.transfer}"
            try:
                _carry_out(jobs, got, mover, pulse, totals, say)
            finally:
                pulse.state = "ready"
        case Dropped():
            say("dropped", entry=got.entry, reason=got.reason)
        case None:
            pass


def _carry_out(jobs: Jobs, delivery: Delivery, mover: Mover, pulse: Pulse, totals: Totals, say: Say) -> None:
    job = delivery.job
    begun = time.perf_counter()
    if delivery.reported:
        report = StepReport(reason="reported before, not copied again")
    elif job.ranks != jobs.ranks:
        report = StepReport(reason=f"the engine has {job.ranks} ranks, this worker was started as one of {jobs.ranks}")
    else:
        report = step(job, mover, lambda: pulse.vouches_for(delivery.life))
    seconds = time.perf_counter() - begun
    reply = jobs.finish(delivery, report.ok, report.reason)
    if reply.outcome in (INTERRUPTED, UNSEATED):
        say("not_counted", transfer=job.transfer, outcome=reply.outcome)
        return
    if delivery.reported:
        totals.skipped += 1
    elif report.ok:
        totals.copied += 1
    else:
        totals.failed += 1
    totals.moved_bytes += report.moved_bytes
    details = {} if report.ok else {"reason": report.reason}
    say(
        "skipped" if delivery.reported else "copied" if report.ok else "failed",
        transfer=job.transfer,
        kind=job.kind,
        blocks=count(job.source_blocks),
        bytes=report.moved_bytes,
        seconds=round(seconds, 6),
        deliveries=delivery.deliveries,
        outcome=reply.outcome,
        position=reply.position,
        **details,
    )
    if report.trace:
        say("defect", transfer=job.transfer, trace=report.trace)
