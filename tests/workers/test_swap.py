"""What a worker does about every job and every error: the table in `workers/swap.py`."""

from __future__ import annotations

import io
import os
import random
import threading
import time
from collections.abc import Callable, Iterator

import attrs
import orjson
import pytest

from events import connect, limits
from events.errors import CorruptState, InvalidInput, Unavailable
from events.facts import BlockRanges
from events.job_ports import Seat
from events.job_queue import JobQueue
from events.jobs import encode_job
from events.log import LogConnection
from events.memory import MemoryBackend, MemoryTransport
from events.ports import Base, Job
from tests.contract.timed import Clock
from tests.jobs.given import POOL, Lossy, commit, finishes, index_with, job, seated, worker
from tests.servers import Fault, Proxy, healthy
from workers.log_lines import LogLines
from workers.swap import CutOff, StepReport, Totals, run, step

INDEX = "swap"
WAIT_S = 10.0


@attrs.define
class Store:
    """A mover that keeps a list of what it was asked, and does what a test says for a transfer's source blocks."""

    copies: list[BlockRanges] = attrs.Factory(list)
    instead: dict[BlockRanges, Callable[[], int]] = attrs.Factory(dict)
    destinations: list[BlockRanges] = attrs.Factory(list)

    def copy(
        self,
        source_pool: str,
        destination_pool: str,
        source_blocks: BlockRanges,
        destination_blocks: BlockRanges,
    ) -> int:
        assert (source_pool, destination_pool) == (POOL, "cpu:host")
        assert destination_blocks
        self.copies.append(source_blocks)
        self.destinations.append(destination_blocks)
        return self.instead.get(source_blocks, lambda: 100)()


class Running:
    """A worker in a thread, its log, and the switch that stops it."""

    def __init__(self, jobs: JobQueue, store: Store) -> None:
        self.stop = threading.Event()
        self.written = io.BytesIO()
        self.totals: Totals | None = None
        self.error: BaseException | None = None
        jobs.enter(takeover=True)
        say = LogLines(self.written, rank=jobs.seat.rank)

        def work() -> None:
            try:
                self.totals = run(jobs, store, stop=self.stop, say=say)
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()

    @property
    def lines(self) -> list[dict[str, object]]:
        return [orjson.loads(line) for line in self.written.getvalue().splitlines()]

    def said(self, event: str) -> list[dict[str, object]]:
        return [line for line in self.lines if line["event"] == event]

    def wait_for(self, event: str, times: int = 1) -> None:
        end = time.monotonic() + WAIT_S
        while len(self.said(event)) < times:
            assert time.monotonic() < end, self.lines
            time.sleep(0.01)

    def end(self) -> Totals:
        self.stop.set()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()
        assert self.totals is not None, self.error
        return self.totals


@pytest.fixture
def connection() -> Iterator[LogConnection]:
    with connect("memory://") as opened:
        yield opened


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JOB_BLOCK_S", 0.05)
    monkeypatch.setattr(limits, "HEARTBEAT_EVERY_S", 0.05)
    monkeypatch.setattr(limits, "RETRY_WAIT_MAX_S", 0.02)


def fail_with(error: BaseException) -> Callable[[], int]:
    def fail() -> int:
        raise error

    return fail


# --- one step -------------------------------------------------------------------------------------------------------


def test_a_step_copies_and_counts() -> None:
    """Otherwise nothing would move.

    Given a job, when stepped, then the store was asked for exactly its blocks, and the bytes are reported.
    """
    store = Store()

    assert step(job(blocks=3), store) == StepReport(moved_bytes=100)
    assert store.copies == [((0, 3),)]


@pytest.mark.parametrize(
    ("error", "reason", "defect"),
    [
        (InvalidInput("7 source blocks, 8 given"), "7 source blocks, 8 given", False),
        (Unavailable(""), "Unavailable", False),
        (MemoryError("no"), "MemoryError: no", True),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero", True),
    ],
)
def test_whatever_the_store_raises_is_the_jobs_failure(error: Exception, reason: str, defect: bool) -> None:
    """Otherwise one bad job would end the worker, and each of its restarts (E-12).

    Given a store that raises, when stepped, then "not copied" with the reason; a traceback where it is a defect.
    """
    report = step(job(), Store(instead={((0, 2),): fail_with(error)}))

    assert (report.ok, report.reason) == (False, reason)
    assert ("Traceback" in report.trace) is defect


def test_a_large_job_is_copied_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a worker could not stop in the middle of 100 GB.

    Given a job of eleven blocks in odd ranges and pieces of four, when stepped, then every block goes to its place, in
    order, four at a time, and all bytes are counted.
    """
    monkeypatch.setattr(limits, "COPY_PIECE_BLOCKS", 4)
    store = Store()
    large = attrs.evolve(job(), source_blocks=((0, 3), (10, 8)), destination_blocks=((40, 6), (20, 5)))

    assert step(large, store) == StepReport(moved_bytes=300)

    assert store.copies == [((0, 3), (10, 1)), ((11, 4),), ((15, 3),)]
    assert store.destinations == [((40, 4),), ((44, 2), (20, 2)), ((22, 3),)]


def test_a_job_whose_sides_differ_is_refused_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the pieces would hide that a job does not hold together, and move its first half."""
    monkeypatch.setattr(limits, "COPY_PIECE_BLOCKS", 4)
    store = Store()

    step(attrs.evolve(job(), source_blocks=((0, 11),), destination_blocks=((0, 12),)), store)

    assert (store.copies, store.destinations) == ([((0, 11),)], [((0, 12),)])


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_copy_is_cut_off_between_two_pieces(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Otherwise a worker would write to blocks that a new life of the log has given to somebody else.

    Given nobody vouches for the job any more after some pieces, then not another byte is moved, and there is no report.
    """
    monkeypatch.setattr(limits, "COPY_PIECE_BLOCKS", 4)
    store = Store()

    with pytest.raises(CutOff):
        step(job(blocks=12), store, lambda: len(store.copies) < after)

    assert len(store.copies) == after


# --- the loop -------------------------------------------------------------------------------------------------------


def test_a_bad_job_does_not_stop_the_worker(connection: LogConnection) -> None:
    """Otherwise every transfer behind it would wait for a restart.

    Given a good job, one the store refuses, garbage, one that breaks the store, one for another number of ranks, and
    a good one, when a worker runs, then each has the outcome it deserves, and it says so in lines of JSON.
    """
    jobs = [job(f"e0:{number}", blocks=number + 1) for number in range(4)]
    log = index_with(connection, INDEX, *jobs[:2])
    rung = [Job(POOL, "x", b"garbage")]
    rung += [Job(POOL, each.transfer, encode_job(each)) for each in (jobs[2], job("e0:9", ranks=3), jobs[3])]
    log.append(commit("c2", jobs=rung), Base(1, "c1"))
    store = Store(instead={((0, 2),): fail_with(InvalidInput("refused")), ((0, 3),): fail_with(KeyError("oh"))})

    working = Running(worker(connection, INDEX), store)
    working.wait_for("copied", 2)
    totals = working.end()

    assert [(fact.transfer, fact.ok, fact.reason) for fact in finishes(log)] == [
        ("e0:0", True, ""),
        ("e0:1", False, "rank 0: refused"),
        ("e0:2", False, "rank 0: KeyError: 'oh'"),
        ("e0:3", True, ""),
    ]
    assert totals == Totals(copied=2, failed=3, skipped=0, moved_bytes=200)
    assert [line["event"] for line in working.lines] == [
        *("copied", "failed", "dropped", "failed", "defect", "failed", "copied", "stopped")
    ]
    first = working.lines[0]
    assert {"event", "at", "rank", "transfer", "kind", "blocks", "bytes", "seconds", "outcome"} <= first.keys()
    assert (first["transfer"], first["kind"], first["blocks"], first["bytes"]) == ("e0:0", "swap_out", 1, 100)
    assert "3 ranks" in str(working.said("failed")[2]["reason"])
    assert "KeyError" in str(working.said("defect")[0]["trace"])


def test_a_job_that_was_reported_is_not_copied_again(connection: LogConnection) -> None:
    """Otherwise a job rung again would overwrite blocks that belong to somebody else by then (E-10).

    Given a job this rank has reported, when it comes again, then no byte is touched, and it is off the list.
    """
    index_with(connection, INDEX, job(ranks=2))
    mine = seated(connection, INDEX, ranks=2)
    mine.finish(mine.take(1.0), ok=True)  # type: ignore[arg-type]
    connection.doorbell(INDEX).ring(Job(POOL, "e0:0", encode_job(job(ranks=2))))
    store = Store()

    working = Running(worker(connection, INDEX, ranks=2), store)
    working.wait_for("skipped")

    assert working.end() == Totals(skipped=1)
    assert store.copies == []


def test_a_worker_that_is_stopped_ends_its_copy_first(connection: LogConnection) -> None:
    """Otherwise a restart would waste a copy, and its engine would wait for the next worker.

    Given a worker in the middle of a copy and another job behind, when told to stop, then the copy is ended and
    reported, the other job is left, and its seat is free.
    """
    log = index_with(connection, INDEX, job("e0:0"), job("e0:1", blocks=3))
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> int:
        begun.set()
        assert go_on.wait(WAIT_S)
        return 1

    working = Running(worker(connection, INDEX), Store(instead={((0, 2),): slow}))
    assert begun.wait(WAIT_S)
    working.stop.set()
    time.sleep(0.05)
    assert working.thread.is_alive()
    go_on.set()

    assert working.end().copied == 1
    assert [fact.transfer for fact in finishes(log)] == ["e0:0"]
    assert worker(connection, INDEX).alive() == (None,)


def test_redis_away_is_waited_out(connection: LogConnection) -> None:
    """Otherwise a restart of Redis would end every worker.

    Given replies that are lost at every step, when a worker runs, then it goes on where it was: each transfer has one
    finish, and nothing that was reported is copied again.
    """
    log = index_with(connection, INDEX, *(job(f"e0:{number}") for number in range(3)))
    losses = ["new", "report", "reported", "own", "new", "discard", "claim", "report", "occupants"]
    transport = Lossy(connection.backend.jobs(INDEX), losses)
    store = Store()

    working = Running(JobQueue(transport, Seat(POOL, 0, "w"), 1), store)  # type: ignore[arg-type]
    end = time.monotonic() + WAIT_S
    while len(finishes(log)) < 3:
        assert time.monotonic() < end, working.lines
        time.sleep(0.01)
    working.end()

    assert [fact.transfer for fact in finishes(log)] == ["e0:0", "e0:1", "e0:2"]
    assert len(store.copies) == 3
    assert working.said("unavailable")


def test_a_worker_that_was_replaced_leaves(connection: LogConnection) -> None:
    """Otherwise two workers of one rank would go on side by side.

    Given a running worker, when another takes its seat over, then it stops by itself and leaves the seat to the other.
    """
    index_with(connection, INDEX)
    working = Running(worker(connection, INDEX, name="old"), Store())
    other = worker(connection, INDEX, name="new")

    other.enter(takeover=True)
    working.wait_for("replaced")
    working.end()

    seen = other.alive()[0]
    assert seen is not None
    assert seen.worker == "new"


def test_a_long_copy_looks_alive(connection: LogConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a worker that moves 100 GB would count as dead.

    Given a copy that takes longer than a heartbeat lives, when looked at, then the worker is there, and says which
    transfer it copies.
    """
    monkeypatch.setattr(limits, "HEARTBEAT_TTL_S", 0.15)
    index_with(connection, INDEX, job())
    go_on = threading.Event()
    working = Running(worker(connection, INDEX), Store(instead={((0, 2),): lambda: int(go_on.wait(WAIT_S))}))
    time.sleep(0.4)

    seen = worker(connection, INDEX).alive()[0]
    go_on.set()
    working.end()

    assert seen is not None
    assert seen.state == "copying e0:0"


def memory_of(connection: LogConnection) -> MemoryTransport:
    transport = connection.backend.transport(INDEX)
    assert isinstance(transport, MemoryTransport)
    return transport


def test_a_new_life_of_the_server_cuts_a_copy_off(connection: LogConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a worker would report a copy that the surviving log may know nothing of, over blocks that it gave away.

    Given a worker in the middle of a copy, when the server begins a new life, then the copy ends between two pieces and
    nothing is reported; the job is looked up again, and carried out where the log still knows it.
    """
    monkeypatch.setattr(limits, "COPY_PIECE_BLOCKS", 4)
    monkeypatch.setattr(limits, "BARRIER_S", 0.0)
    log = index_with(connection, INDEX, job(blocks=12))
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> int:
        begun.set()
        assert go_on.wait(WAIT_S)
        return 1

    store = Store(instead={((0, 4),): slow})
    working = Running(worker(connection, INDEX), store)
    assert begun.wait(WAIT_S)
    memory_of(connection).begin_life("two")
    time.sleep(0.2)  # a heartbeat, or four
    go_on.set()
    working.wait_for("copied")
    totals = working.end()

    assert [line["event"] for line in working.lines] == ["cut_off", "copied", "stopped"]
    assert store.copies == [((0, 4),), *[((start, 4),) for start in (0, 4, 8)]]
    assert (totals.copied, totals.moved_bytes) == (1, 201)
    assert [fact.ok for fact in finishes(log)] == [True]


@pytest.mark.parametrize("why", ["interrupted", "unseated"])
def test_a_report_that_does_not_count(connection: LogConnection, why: str) -> None:
    """Otherwise a transfer would end by the word of a worker whose copy nobody can vouch for.

    Given a copy of one piece during which the server began a new life, or another worker took the seat, when it is
    reported, then it does not count and is no success; after a new life the job is taken again, and done.
    """
    log = index_with(connection, INDEX, job())
    memory = memory_of(connection)
    other = worker(connection, INDEX, name="other")
    copies: list[int] = []

    def meanwhile() -> int:
        copies.append(1)
        if len(copies) == 1 and why == "interrupted":
            memory.begin_life("two")
            memory._opens_at = 0.0  # the barrier is over when the worker reports
        elif len(copies) == 1:
            other.enter(takeover=True)
        return 100

    working = Running(worker(connection, INDEX), Store(instead={((0, 2),): meanwhile}))
    working.wait_for("not_counted")
    if why == "interrupted":
        working.wait_for("copied")
    totals = working.end()

    assert working.said("not_counted")[0]["outcome"] == why
    assert totals.copied == len(finishes(log)) == (1 if why == "interrupted" else 0)
    assert totals.moved_bytes == 100 * totals.copied


def test_while_the_log_is_closed_no_copy_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a worker would write to blocks that another one may still be writing for a transfer that vanished.

    Given a server that began a new life, when a worker looks for jobs, then it says that the log is closed and touches
    nothing; when the log opens, it carries the job out.
    """
    monkeypatch.setattr(limits, "BARRIER_S", 3600.0)
    with connect("memory://") as other:
        clock = Clock()
        transport = MemoryTransport(clock)
        assert isinstance(other.backend, MemoryBackend)
        other.backend._transports[INDEX] = transport
        log = index_with(other, INDEX, job())
        transport.begin_life("two")
        store = Store()
        working = Running(worker(other, INDEX), store)
        working.wait_for("unavailable", 3)
        assert store.copies == []
        assert "closed for 3600.0 s" in str(working.said("unavailable")[0]["reason"])

        clock.move(3600.0)
        working.wait_for("copied")
        working.end()

        assert [fact.ok for fact in finishes(log)] == [True]


def test_damaged_keys_end_the_worker(connection: LogConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would try for ever what can never work, and say nothing.

    Given a server that refuses well-formed requests, when a worker runs, then it ends with the reason and its seat is
    free.
    """
    index_with(connection, INDEX)
    mine = worker(connection, INDEX)
    monkeypatch.setattr(mine, "take", fail_with_any(CorruptState("WRONGTYPE")))

    working = Running(mine, Store())
    working.thread.join(WAIT_S)

    assert isinstance(working.error, CorruptState)
    assert worker(connection, INDEX).alive() == (None,)


@pytest.mark.usefixtures("impatient")
def test_a_bad_network_costs_time_and_nothing_else(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise lost replies would lose transfers, or finish them twice (redis-facts C2, C4).

    Given a network to a real Redis that loses requests and replies of every kind, again and again, when a worker
    carries out 30 jobs, then each transfer has one finish, and few were copied twice.
    """
    monkeypatch.setattr(limits, "JOB_IDLE_S", 0.2)
    names = [f"e0:{number}" for number in range(30)]
    chance = random.Random(7)
    faults = [Fault.NONE] * 6 + [Fault.LOSE_REQUEST, Fault.LOSE_REPLY]
    with connect(proxy.url) as connection:
        log = index_with(connection, f"network-{os.getpid()}", *map(job, names))
        store = Store()
        mine = worker(connection, f"network-{os.getpid()}")
        working = Running(mine, store)
        proxy.rule = lambda _command: chance.choice(faults)
        working.wait_for("copied", 10)
        end = time.monotonic() + 2 * WAIT_S
        while len(working.said("copied")) + len(working.said("skipped")) < 30:
            assert time.monotonic() < end, working.lines
            time.sleep(0.01)
        proxy.rule = healthy
        working.end()

        assert sorted(fact.transfer for fact in finishes(log)) == sorted(names)
        assert len(store.copies) < 60
        assert mine.take(0.0) is None


def test_a_log_that_nobody_reads_stops_nobody() -> None:
    """Otherwise a worker would die with the terminal it was started from.

    Given a closed stream, when something is said, then nothing happens.
    """
    stream = io.BytesIO()
    say = LogLines(stream)
    stream.close()

    say("copied", transfer="e0:0")
    say("copied", transfer="e0:1")


def fail_with_any(error: BaseException) -> Callable[..., object]:
    def fail(*_arguments: object) -> object:
        raise error

    return fail
