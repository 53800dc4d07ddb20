"""Jobs that were lost are rung again; jobs that were not, are not."""

from __future__ import annotations

from events.jobs import encode_job
from events.log import LogConnection
from events.ports import Job
from tests.jobs.given import POOL, index_with, job, lose_stream, seated, taken


def test_what_is_in_a_stream_is_known(connection: LogConnection, index_name: str) -> None:
    """Otherwise every job would be rung again at every look.

    Given 300 jobs (more than a page), when asked, then all are named; nothing for a pool without a stream.
    """
    names = [f"e0:{number}" for number in range(300)]
    index_with(connection, index_name, *map(job, names))
    bell = connection.doorbell(index_name)

    assert bell.ringing(POOL) == set(names)
    assert bell.ringing("gpu:other") == frozenset()


def test_a_lost_job_is_rung_once(connection: LogConnection, index_name: str) -> None:
    """Otherwise two keepers that miss the same job would make it be copied twice.

    Given a lost stream, when a job is rung three times, then it is there once; when it is lost again, it can be rung.
    """
    index_with(connection, index_name, job())
    bell = connection.doorbell(index_name)
    for trimmed in (True, False):
        lose_stream(connection, index_name, trimmed=trimmed)
        assert [bell.ring(Job(POOL, "e0:0", encode_job(job()))) for _ in range(3)] == [True, False, False]
    mine = seated(connection, index_name)

    assert taken(mine).job == job()
    assert mine.take(0.0) is None


def test_a_finished_transfer_is_not_rung(connection: LogConnection, index_name: str) -> None:
    """Otherwise a keeper that is a moment behind would have blocks overwritten that belong to somebody else (E-10).

    Given a transfer that was just finished, when its job is rung, then nothing happens.
    """
    index_with(connection, index_name, job())
    mine = seated(connection, index_name)
    mine.finish(taken(mine), ok=True)
    bell = connection.doorbell(index_name)

    assert bell.ring(Job(POOL, "e0:0", encode_job(job()))) is False
    assert bell.ringing(POOL) == frozenset()
