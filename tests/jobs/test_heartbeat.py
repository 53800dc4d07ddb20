"""Who sits on a rank: one worker at a time, seen by those who wait for it."""

from __future__ import annotations

import os
import time

import pytest

from events import limits
from events.errors import InvalidInput
from events.log import LogConnection
from tests.jobs.given import POOL, worker


def test_a_worker_is_seen_by_its_heartbeat(connection: LogConnection, index_name: str) -> None:
    """Otherwise a launcher could not know when its workers are ready.

    Given two ranks, when one enters and beats, then it is seen on its rank with pid, state and name; the other is not.
    """
    mine = worker(connection, index_name, rank=1, ranks=2, name="w1")
    mine.enter()
    assert mine.beat("copying e0:0") is not None

    empty, seen = worker(connection, index_name, ranks=2).alive()

    assert empty is None
    assert seen is not None
    assert (seen.worker, seen.pid, seen.pool, seen.rank) == ("w1", os.getpid(), POOL, 1)
    assert (seen.state, seen.jobs) == ("copying e0:0", 0)


def test_a_second_worker_of_a_living_rank_is_refused(connection: LogConnection, index_name: str) -> None:
    """Otherwise two processes would write the same blocks.

    Given a living worker, when another of the same name and rank enters, then it is refused and told who is there;
    the first goes on.
    """
    first = worker(connection, index_name)
    first.enter()

    with pytest.raises(InvalidInput, match=rf"'w', pid {os.getpid()}"):
        worker(connection, index_name).enter()

    assert first.beat("ready") is not None


def test_a_takeover_is_noticed_by_the_one_before(connection: LogConnection, index_name: str) -> None:
    """Otherwise the old worker would go on beside the new one.

    Given a worker whose seat is taken over, when it beats, then it hears that, and the new one stays.
    """
    first, second = worker(connection, index_name, name="a"), worker(connection, index_name, name="b")
    first.enter()
    second.enter(takeover=True)

    assert first.beat("ready") is None
    assert second.beat("ready") is not None
    first.leave()
    seen = second.alive()[0]
    assert seen is not None
    assert seen.worker == "b"


def test_leaving_makes_room_at_once(connection: LogConnection, index_name: str) -> None:
    """Otherwise a restart would have to wait for a heartbeat to run out.

    Given a worker that left, when the next enters, then it may.
    """
    first = worker(connection, index_name)
    first.enter()
    first.leave()
    first.leave()

    worker(connection, index_name).enter()


def test_a_dead_workers_heartbeat_runs_out(
    connection: LogConnection, index_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a crashed worker could never be replaced without takeover.

    Given a worker that stopped beating, when its time is over, then it is not seen, and another may enter; and when it
    wakes up, it hears that it was replaced.
    """
    monkeypatch.setattr(limits, "HEARTBEAT_TTL_S", 0.1)
    first, second = worker(connection, index_name), worker(connection, index_name)
    first.enter()
    time.sleep(0.15)

    assert second.alive() == (None,)
    monkeypatch.setattr(limits, "HEARTBEAT_TTL_S", 10.0)
    second.enter()
    assert first.beat("ready") is None
