"""Which job a worker gets next, on every backend: `events/memory_jobs.py` is the definition."""

from __future__ import annotations

import threading
import time

import pytest
import redis

from events import connect, limits
from events.errors import InvalidInput, Unavailable
from events.job_ports import Dropped
from events.jobs import encode_job
from events.log import LogConnection
from events.ports import Base, Job
from tests.jobs.given import (
    POOL,
    commit,
    delete_consumer,
    finishes,
    index_with,
    job,
    lose_stream,
    lossy_worker,
    seated,
    taken,
)


def test_jobs_come_in_the_order_of_their_commits(connection: LogConnection, index_name: str) -> None:
    """Otherwise a block could wait behind a thousand younger swap-outs.

    Given three jobs, when a worker takes until there are none, then it gets them in order, as they were written.
    """
    jobs = [job("e0:0"), job("e0:1"), job("e0:2")]
    index_with(connection, index_name, *jobs)
    mine = seated(connection, index_name)

    deliveries = [taken(mine) for _ in jobs]

    assert [delivery.job for delivery in deliveries] == jobs
    assert [(delivery.deliveries, delivery.reported) for delivery in deliveries] == [(1, False)] * 3
    assert mine.take(0.0) is None


def test_waiting_for_a_job_is_bounded_and_ends_when_one_comes(connection: LogConnection, index_name: str) -> None:
    """Otherwise a worker could not be stopped, or would move bytes a second late.

    Given no job, when a worker waits 0.2 s, then it has none by then. Given one arrives meanwhile, then it has it.
    """
    log = index_with(connection, index_name)
    mine = seated(connection, index_name)
    begun = time.monotonic()
    assert mine.take(0.2) is None
    assert 0.1 < time.monotonic() - begun < 1.0

    rung = commit("c2", jobs=[Job(POOL, "e0:0", encode_job(job()))])
    later = threading.Timer(0.1, lambda: log.append(rung, Base(1, "c1")))
    later.start()
    begun = time.monotonic()
    delivery = taken(mine, timeout_s=5.0)
    later.join()

    assert delivery.job == job()
    assert time.monotonic() - begun < 2.0


def test_every_rank_gets_every_job_and_workers_of_one_rank_share(connection: LogConnection, index_name: str) -> None:
    """Otherwise a shard of a block would not be moved, or moved by two processes at once.

    Given two jobs for two ranks, when two workers of rank 0 and one of rank 1 take, then rank 0's get one each.
    """
    index_with(connection, index_name, job("e0:0", ranks=2), job("e0:1", ranks=2))
    first = seated(connection, index_name, ranks=2, name="a")
    second = seated(connection, index_name, ranks=2, name="b")
    other = seated(connection, index_name, rank=1, ranks=2)

    assert taken(first).job.transfer == "e0:0"
    assert taken(second).job.transfer == "e0:1"
    assert [taken(other).job.transfer for _ in range(2)] == ["e0:0", "e0:1"]
    assert first.take(0.0) is second.take(0.0) is other.take(0.0) is None


def test_a_restarted_worker_gets_its_unfinished_jobs_first(connection: LogConnection, index_name: str) -> None:
    """Otherwise a worker that crashed between taking and reporting would leave a request waiting for ever.

    Given a worker that took two of three jobs and finished the second, when it starts again under its name, then it
    gets the first again, marked as delivered before, and then the third.
    """
    index_with(connection, index_name, job("e0:0"), job("e0:1"), job("e0:2"))
    before = seated(connection, index_name)
    taken(before)
    before.finish(taken(before), ok=True)

    after = seated(connection, index_name)
    again, new = taken(after), taken(after)

    assert (again.job.transfer, again.deliveries) == ("e0:0", 2)
    assert (new.job.transfer, new.deliveries) == ("e0:2", 1)
    assert after.take(0.0) is None


def test_a_job_whose_delivery_was_lost_comes_again(connection: LogConnection, index_name: str) -> None:
    """Otherwise one broken connection would cost a transfer (redis-facts C4).

    Given the reply that held a job was lost, when the worker takes again, then it gets that job, before newer ones.
    """
    index_with(connection, index_name, job("e0:0"), job("e0:1"))
    mine = lossy_worker(connection, index_name, "new")

    with pytest.raises(Unavailable):
        mine.take(1.0)

    assert [taken(mine).job.transfer for _ in range(2)] == ["e0:0", "e0:1"]


@pytest.mark.usefixtures("eager")
def test_jobs_of_a_dead_worker_are_taken_by_the_next(connection: LogConnection, index_name: str) -> None:
    """Otherwise blocks of a crashed worker's transfers would stay pinned for ever.

    Given a worker that took a job and died, when another of its rank has waited long enough, then it gets that job.
    """
    index_with(connection, index_name, job("e0:0"), job("e0:1"))
    dead = seated(connection, index_name, name="dead")
    taken(dead)
    sibling = seated(connection, index_name, name="sibling")
    assert taken(sibling).job.transfer == "e0:1"  # too early for the other

    time.sleep(limits.JOB_IDLE_S * 1.5)
    delivery = taken(sibling)

    assert delivery.job == job("e0:0")
    assert delivery.deliveries > 1


@pytest.mark.usefixtures("eager")
def test_many_abandoned_jobs_are_claimed_page_by_page(
    connection: LogConnection, index_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise all but the first page of a dead worker's jobs would be forgotten (redis-facts R18).

    Given seven jobs on a dead worker's list and pages of two, when a sibling takes, then it gets all seven in order.
    """
    monkeypatch.setattr(limits, "JOBS_PAGE", 2)
    names = [f"e0:{number}" for number in range(7)]
    index_with(connection, index_name, *map(job, names))
    dead = seated(connection, index_name, name="dead")
    for _ in names:
        taken(dead)
    time.sleep(limits.JOB_IDLE_S * 1.5)

    sibling = seated(connection, index_name, name="sibling")
    got: list[str] = []
    while len(got) < len(names):
        delivery = taken(sibling)
        sibling.finish(delivery, ok=True)
        got.append(delivery.job.transfer)

    assert sorted(set(got)) == names


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"{}", b'["a"]', encode_job(job()).replace(b'"ranks":1', b'"ranks":0')]
)
def test_an_unreadable_job_stops_nobody(connection: LogConnection, index_name: str, body: bytes) -> None:
    """Otherwise one bad message would hold up every transfer behind it, after each restart.

    Given garbage before a good job, when the workers of two ranks take, then they are told, it is gone from the
    stream (so that it can be rung again), and the good job follows.
    """
    log = index_with(connection, index_name)
    rung = [Job(POOL, "e0:0", body), Job(POOL, "e0:1", encode_job(job("e0:1", ranks=2)))]
    log.append(commit("c2", jobs=rung), Base(1, "c1"))
    mine, other = (seated(connection, index_name, rank=rank, ranks=2) for rank in (0, 1))

    dropped = mine.take(1.0)

    assert isinstance(dropped, Dropped)
    assert "job" in dropped.reason
    assert taken(mine).job.transfer == taken(other).job.transfer == "e0:1"
    assert connection.doorbell(index_name).ringing(POOL) == {"e0:1"}


def test_a_job_that_was_trimmed_while_on_a_list_is_dropped(connection: LogConnection, index_name: str) -> None:
    """Otherwise a worker would carry out an empty job, or get it again for ever (redis-facts R17).

    Given a job on a worker's list that was trimmed from the stream, when it starts again, then it has counted that, and
    there is nothing to do; nor at the next start.
    """
    index_with(connection, index_name, job())
    taken(seated(connection, index_name))
    lose_stream(connection, index_name, trimmed=True)

    after = seated(connection, index_name)

    assert after.take(0.0) is None
    assert after.trimmed == 1
    again = seated(connection, index_name)
    assert again.take(0.0) is None
    assert again.trimmed == 0


@pytest.mark.usefixtures("eager")
def test_a_trimmed_job_on_a_dead_workers_list_is_dropped(connection: LogConnection, index_name: str) -> None:
    """Otherwise it would be claimed again and again (Redis 6.2 keeps it on the list, 7 does not).

    Given a dead worker with a trimmed and a rung job, when a sibling takes, then it gets the good one, and only that.
    """
    index_with(connection, index_name, job("e0:0"))
    dead = seated(connection, index_name, name="dead")
    taken(dead)
    lose_stream(connection, index_name, trimmed=True)
    assert connection.doorbell(index_name).ring(Job(POOL, "e0:0", encode_job(job("e0:0"))))
    taken(dead)
    time.sleep(limits.JOB_IDLE_S * 1.5)

    sibling = seated(connection, index_name, name="sibling")

    assert taken(sibling).job.transfer == "e0:0"
    assert dead.trimmed + sibling.trimmed == 1
    assert sibling.take(0.0) is None


def test_a_lost_stream_is_read_again_from_its_beginning(connection: LogConnection, index_name: str) -> None:
    """Otherwise a worker that is running would be deaf after the stream was deleted, and so its groups.

    Given a worker that has read, and a deleted stream, when a job is rung, then the worker gets it.
    """
    index_with(connection, index_name, job("e0:0"))
    mine = seated(connection, index_name)
    taken(mine)
    lose_stream(connection, index_name, trimmed=False)
    connection.doorbell(index_name).ring(Job(POOL, "e0:0", encode_job(job("e0:0"))))

    assert taken(mine).job == job("e0:0")


@pytest.mark.usefixtures("eager")
def test_a_job_on_a_deleted_list_is_not_lost(connection: LogConnection, index_name: str) -> None:
    """Otherwise a transfer would never end: its job is in the stream, so it is not rung, and on no list, so nobody has it
    (redis-facts R19; found by a chaos run).

    Given two ranks, of which one has reported and the other has the job on its list when both consumers are deleted, when
    they take, then the one gets the job and the other does not; and once it is finished nobody does.
    """
    log = index_with(connection, index_name, job(ranks=2))
    done, other = (seated(connection, index_name, rank=rank, ranks=2) for rank in (0, 1))
    done.finish(taken(done), ok=True)
    taken(other)
    for rank in (0, 1):
        delete_consumer(connection, index_name, "w", rank)

    assert done.take(0.0) is None
    again = taken(other)
    assert (again.job, again.reported) == (job(ranks=2), False)
    assert other.finish(again, ok=True).outcome == "finished"
    assert other.take(0.0) is None
    assert len(finishes(log)) == 1


def test_a_job_for_fewer_ranks_is_not_for_the_others(connection: LogConnection, index_name: str) -> None:
    """Otherwise a rank that holds no shard would report a transfer of others.

    Given a job for one rank in a pool of two, when rank 1 takes, then it is told that the job is not for it; rank 0
    gets it.
    """
    index_with(connection, index_name, job(ranks=1))

    dropped = seated(connection, index_name, rank=1, ranks=2).take(1.0)

    assert isinstance(dropped, Dropped)
    assert "ranks 0 to 0" in dropped.reason
    assert taken(seated(connection, index_name, rank=0, ranks=2)).job == job(ranks=1)


def test_a_job_that_this_rank_has_reported_is_marked(connection: LogConnection, index_name: str) -> None:
    """Otherwise a job rung again would be copied when the transfer is over and its blocks hold something else (E-10).

    Given rank 0 has reported a job of two ranks, when the job is rung again, then rank 0 is told not to copy; rank 1
    is to copy; and once the transfer is over nobody is.
    """
    index_with(connection, index_name, job(ranks=2))
    first = seated(connection, index_name, rank=0, ranks=2)
    second = seated(connection, index_name, rank=1, ranks=2)
    first.finish(taken(first), ok=True)
    lose_stream(connection, index_name, trimmed=False)
    assert connection.doorbell(index_name).ring(Job(POOL, "e0:0", encode_job(job(ranks=2))))

    again, fresh = taken(first), taken(second)

    assert (again.reported, fresh.reported) == (True, False)
    assert first.finish(again, ok=True).outcome == "reported"
    assert second.finish(fresh, ok=True).outcome == "finished"
    assert first.take(0.0) is None


@pytest.mark.parametrize(("rank", "ranks"), [(-1, 1), (1, 1), (0, 0), (0, 1025)])
def test_a_seat_that_does_not_exist_is_refused(
    connection: LogConnection, index_name: str, rank: int, ranks: int
) -> None:
    """Otherwise a worker with a wrong rank would wait for jobs that never come.

    Given ranks that do not exist, when a worker is made, then it is refused with the numbers.
    """
    with pytest.raises(InvalidInput, match=f"rank {rank} of {ranks}"):
        seated(connection, index_name, rank, ranks)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("protocol", [2, 3])
def test_every_shape_of_replies_is_read(redis_url: str, index_name: str, protocol: int, legacy: bool) -> None:
    """Otherwise workers would break with the next major release of the client library (redis-facts C6).

    Given clients of RESP2 and RESP3, with the library's old and new shapes, when jobs are taken new, again, and from a
    dead worker, and finished, then all is as with ours.
    """
    settings = {"protocol": protocol, "legacy_responses": legacy}
    with redis.Redis.from_url(redis_url, **settings) as client, connect(client=client) as connection:
        log = index_with(connection, index_name, job("e0:0"), job("e0:1"))
        dead = seated(connection, index_name, name="dead")
        assert [taken(dead).job.transfer for _ in range(2)] == ["e0:0", "e0:1"]
        assert taken(seated(connection, index_name, name="dead")).job == job("e0:0")
        time.sleep(limits.JOB_IDLE_S * 1.5)
        sibling = seated(connection, index_name, name="sibling")
        for name in ("e0:0", "e0:1"):
            assert sibling.finish(taken(sibling), ok=True).outcome == "finished", name
        assert sibling.alive()[0] is not None

        assert sibling.take(0.0) is None
        assert len(finishes(log)) == 2
        assert connection.doorbell(index_name).ringing(POOL) == frozenset()
