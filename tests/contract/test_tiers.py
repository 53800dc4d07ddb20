"""An engine with a host tier on every backend: its jobs ring, a worker's entry ends its wait, and replicas agree.

The worker here is one line of what a real one reports: its entry, at whatever the head is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import attrs
import pytest

from events import codec
from events.facts import TransferFinished, TransferStarted
from events.jobs import decode_job
from events.log import LogConnection
from events.ports import Base, RawAppended
from statecore import CacheIndex, Policy
from statecore.invariants import leaked_blocks, violations
from statecore.scopes import finish_touches
from tests.contract.commits import commit, jobs_in
from tests.contract.test_wait import LATE_S, PROMPT_S

BLOCK_SIZE = 4


def prompt(number: int, blocks: int = 2) -> list[int]:
    return list(range(number * 1000, number * 1000 + blocks * BLOCK_SIZE))


@attrs.define
class Worker:
    """Says that transfers of an index have ended; moves nothing."""

    connection: LogConnection
    index: str

    def finish(self, transfer: str, reason: str = "") -> None:
        [start] = [
            fact
            for entry in self.connection.log(self.index, follow=False).read(0)
            for fact in entry.facts
            if isinstance(fact, TransferStarted) and fact.transfer == transfer
        ]
        self.report(transfer, finish_touches(start)[bool(reason)], reason)

    def report(self, transfer: str, touches: tuple[str, ...] = (), reason: str = "") -> None:
        """The entry, with scopes it moves: a send moves none."""
        head = self.connection.log(self.index, follow=False).head()
        written = commit(
            f"finish-{transfer}",
            engine="worker:gpu",
            session=0,
            facts=[TransferFinished(transfer, not reason, reason)],
        )
        reply = self.connection.backend.transport(self.index).append(
            codec.encode(written, at_ms=0),
            engine="worker:gpu",
            session=0,
            base=Base(head.position, head.commit_id),
            checks=(),
            touches=touches,
            fences=(),
        )
        assert isinstance(reply, RawAppended)


def joined(connection: LogConnection, index: str, engine: str = "a", *, follow: bool = True) -> CacheIndex:
    return CacheIndex(
        connection, name=index, engine=engine, gpu_pool="gpu", gpu_blocks=4, cpu_blocks=4, block_size=BLOCK_SIZE,
        policy=Policy(free_low=0, free_high=0), follow=follow,
    )  # fmt: skip


@pytest.fixture(params=[True, False], ids=["followed", "alone"])
def engine(request: pytest.FixtureRequest, connection: LogConnection, index_name: str) -> Iterator[CacheIndex]:
    with joined(connection, index_name, follow=request.param) as index:
        yield index


@pytest.fixture
def worker(connection: LogConnection, index_name: str) -> Worker:
    return Worker(connection, index_name)


def cache(index: CacheIndex, request: str, tokens: list[int]) -> None:
    """Leave a prompt behind that nobody uses."""
    with index.step():
        index.match(request, tokens)
        index.allocate(request, len(tokens) // BLOCK_SIZE)
        index.extend(request, ready=True)
        index.release(request)


def empty(index: CacheIndex, worker: Worker) -> None:
    """Push everything out of the GPU pool of four blocks."""
    index.match("large", [9] * 16)
    while not (given := index.allocate("large", 4)).blocks:
        for transfer in given.waits_for:
            worker.finish(transfer)
            assert index.wait(transfer, PROMPT_S).done
    index.release("large")


def test_a_wait_ends_with_the_workers_entry(engine: CacheIndex, worker: Worker) -> None:
    """Otherwise a request whose blocks are there would go on waiting for them.

    Given a prompt on the host and a request that fetches it, when the worker reports, then the wait ends at once, and the
    blocks are the request's.
    """
    cache(engine, "first", prompt(1))
    empty(engine, worker)
    found = engine.match("second", prompt(1))
    [transfer] = found.waits_for
    assert engine.poll(transfer).under_way
    coming = threading.Timer(LATE_S, worker.finish, (transfer,))
    began = time.monotonic()
    coming.start()

    ended = engine.wait(transfer, 10.0)

    coming.join()
    assert ended.done
    assert time.monotonic() - began < PROMPT_S
    assert engine.table("second") == found.blocks
    assert engine.inspect(violations) == []


def test_a_failure_ends_a_wait_too(engine: CacheIndex, worker: Worker) -> None:
    """Otherwise a disk or worker that fails would hang requests.

    Given a request that fetches from the host, when the worker reports a failure, then the wait says why, the path ends
    before, and nothing is leaked.
    """
    cache(engine, "first", prompt(1))
    empty(engine, worker)
    [transfer] = engine.match("second", prompt(1)).waits_for
    worker.finish(transfer, "rank 0: out of sorts")

    ended = engine.wait(transfer, 10.0)

    assert (ended.state, ended.reason) == ("failed", "rank 0: out of sorts")
    assert engine.table("second") == []
    assert engine.inspect(leaked_blocks) == 0


def test_a_wait_that_is_in_vain_ends_in_time(engine: CacheIndex, worker: Worker) -> None:
    """Otherwise an engine would hang where no worker runs.

    Given nobody reports, when waiting for a quarter of a second, or not at all, then "under way", in time.
    """
    cache(engine, "first", prompt(1))
    empty(engine, worker)
    [transfer] = engine.match("second", prompt(1)).waits_for
    began = time.monotonic()

    assert engine.wait(transfer, 0.25).under_way
    assert engine.wait(transfer, 0.0).under_way

    assert time.monotonic() - began < PROMPT_S


def test_every_transfer_rings_once_with_what_it_says(
    engine: CacheIndex, worker: Worker, connection: LogConnection, index_name: str
) -> None:
    """Otherwise a worker would copy other blocks than the log says, or none.

    Given swap-outs and a swap-in, when the stream of the GPU pool is read, then there is one job for each, in order, with
    the pools and blocks of its fact.
    """
    cache(engine, "first", prompt(1))
    cache(engine, "second", prompt(2))
    empty(engine, worker)
    engine.match("third", prompt(2))

    started = [
        fact
        for entry in connection.log(index_name, follow=False).read(0)
        for fact in entry.facts
        if isinstance(fact, TransferStarted)
    ]
    jobs = [decode_job(body) for _, body in jobs_in(connection, index_name, "gpu")]

    assert len(jobs) == 3
    for fact, job in zip(started, jobs, strict=True):
        assert (job.transfer, job.kind) == (fact.transfer, fact.kind)
        assert (job.source, job.source_blocks) == (fact.source, fact.source_blocks)
        assert (job.destination, job.destination_blocks) == (fact.destination, fact.destination_blocks)


def test_a_step_that_conflicts_rings_only_what_stands(connection: LogConnection, index_name: str) -> None:
    """Otherwise a worker would move blocks by a decision that was taken back.

    Given two engines of one pool, one of them behind, when it needs room that the other has made already, then it decides
    again, and there is a job for every transfer of the log and for no other.
    """
    ahead = joined(connection, index_name, "a", follow=False)
    behind = joined(connection, index_name, "b", follow=False)
    cache(ahead, "first", prompt(1))
    cache(ahead, "second", prompt(2))
    behind.match("other", [8] * 4)
    ahead.match("large", [9] * 12)
    ahead.allocate("large", 3)

    behind.allocate("other", 1)

    assert behind.conflicts == 1
    started = [
        fact.transfer
        for entry in connection.log(index_name, follow=False).read(0)
        for fact in entry.facts
        if isinstance(fact, TransferStarted)
    ]
    assert [transfer for transfer, _ in jobs_in(connection, index_name, "gpu")] == started
    assert ahead.refresh() == behind.refresh()
    assert ahead.digest() == behind.digest()
    assert ahead.inspect(violations) == []


@pytest.mark.parametrize("connection", ["memory"], indirect=True)
def test_the_host_keeps_what_was_used_last(connection: LogConnection, index_name: str, worker: Worker) -> None:
    """Otherwise the host tier would forget the prompts that come again and again, and keep those that never do.

    Given two prompts on a full host, the older of which was just fetched, when a third one needs room there, then the one
    that nobody asked for goes.
    """
    with joined(connection, index_name, follow=False) as index:
        cache(index, "wanted", prompt(1))
        cache(index, "unwanted", prompt(2))
        empty(index, worker)
        [transfer] = index.match("wanted again", prompt(1)).waits_for
        worker.finish(transfer)
        assert index.wait(transfer, PROMPT_S).done
        index.release("wanted again")
        cache(index, "new", prompt(3))
        empty(index, worker)

        found = {number: index.match(f"look-{number}", prompt(number)).host_tokens for number in (1, 2)}

    assert found == {1: 8, 2: 0}
