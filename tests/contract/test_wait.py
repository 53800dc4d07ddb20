"""Waiting for news: it ends when there is some, and in time when there is none; on every backend, followed or not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import redis

from events import connect
from events.errors import Unavailable
from events.log import EventLog, LogConnection
from events.ports import Base
from tests.contract.commits import BIRTH, commit, filled
from tests.contract.test_read import PATIENCE_S
from tests.servers import RedisServer

LATE_S = 0.15
"""When the news comes that somebody waits for."""

PROMPT_S = 2.0
"""What counts as "at once" on a busy machine."""


@pytest.fixture(autouse=True)
def long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single blocking read may take 4 s: a wait that ends earlier was woken."""
    monkeypatch.setattr("events.limits.FOLLOW_BLOCK_S", 4.0)


@pytest.fixture(params=["alone", "followed"])
def log(request: pytest.FixtureRequest, connection: LogConnection, index_name: str) -> Iterator[EventLog]:
    """A log of three entries; one that fetches in the background, and one that does not."""
    opened = connection.log(index_name)
    filled(opened, 3)
    if request.param == "followed":
        opened.follow(3)
    yield opened
    opened.close()


def wait_for_news(log: EventLog, after: int) -> float:
    """Wait as a session does, again and again, until there is an entry; returns for how long."""
    began = time.monotonic()
    while not log.read(after):
        left = began + PATIENCE_S - time.monotonic()
        assert left > 0, "nothing came"
        log.wait(after, left)
    return time.monotonic() - began


def test_news_end_a_wait(log: EventLog, connection: LogConnection) -> None:
    """Otherwise a request would wait for its swap-in long after the bytes are there.

    Given somebody waits at the end of the log, when another appends, then the wait is over at once.
    """
    other = connection.log(log.index, follow=False)
    coming = threading.Timer(LATE_S, other.append, (commit("late", engine="b"), Base(3, "c3")))
    coming.start()

    waited = wait_for_news(log, 3)

    coming.join()
    assert waited < PROMPT_S
    assert [entry.id for entry in log.read(3)] == ["late"]


def test_what_is_there_already_ends_a_wait(log: EventLog, connection: LogConnection) -> None:
    """Otherwise news that came just before the question would be waited for.

    Given an entry above the position, when waiting for it, then the wait is over at once.
    """
    connection.log(log.index, follow=False).append(commit("b1", engine="b"), Base(3, "c3"))
    began = time.monotonic()

    log.wait(3, PATIENCE_S)

    assert time.monotonic() - began < PROMPT_S


@pytest.mark.parametrize("seconds", [0.0, 0.0004, 0.3])
def test_a_wait_without_news_ends_in_time(log: EventLog, seconds: float) -> None:
    """Otherwise a poll would block its scheduler: to Redis, waiting for 0 ms means for ever.

    Given nothing comes, when waiting, then it ends when the time is over (or before).
    """
    began = time.monotonic()

    log.wait(3, seconds)

    assert time.monotonic() - began < seconds + 1.0


def test_the_first_entry_ends_a_wait(connection: LogConnection, index_name: str) -> None:
    """Otherwise whoever waits for an index to appear would sleep through it.

    Given no log yet, when the first entry comes, then the wait is over at once.
    """
    log, other = connection.log(index_name), connection.log(index_name)
    coming = threading.Timer(LATE_S, other.append, (commit("c1"), BIRTH))
    coming.start()

    assert wait_for_news(log, 0) < PROMPT_S
    coming.join()


def test_several_wait_at_once(connection: LogConnection, index_name: str) -> None:
    """Otherwise the news would wake one engine and leave its neighbours asleep.

    Given four who wait on one connection, when an entry comes, then all four are woken.
    """
    logs = [connection.log(index_name, follow=False) for _ in range(4)]
    filled(logs[0], 1)
    waited: list[float] = []
    threads = [threading.Thread(target=lambda log=log: waited.append(wait_for_news(log, 1))) for log in logs]
    for thread in threads:
        thread.start()

    logs[0].append(commit("b1", engine="b"), Base(1, "c1"))

    for thread in threads:
        thread.join()
    assert len(waited) == 4
    assert max(waited) < PROMPT_S


def test_waiting_for_a_server_that_is_gone(server: RedisServer, index_name: str) -> None:
    """Otherwise an engine would wait in vain for a server that cannot tell it anything.

    Given the server is gone, when waiting without a follower, then Unavailable at once; with one, the wait ends in time.
    """
    with connect(server.url) as connection:
        alone, followed = connection.log(index_name, follow=False), connection.log(index_name)
        filled(alone, 3)
        followed.follow(3)
        server.kill()
        began = time.monotonic()

        with pytest.raises(Unavailable):
            alone.wait(3, PATIENCE_S)
        followed.wait(3, 0.2)

        assert time.monotonic() - began < PROMPT_S


def test_a_client_with_a_short_timeout(redis_url: str, index_name: str) -> None:
    """Otherwise an engine with a client of its own would be told that a healthy server cannot be reached.

    Given a client whose socket timeout is shorter than one of our blocking reads, when nothing comes, then the wait ends
    without an error (or such a client is refused at the door).
    """
    with redis.Redis.from_url(redis_url, socket_timeout=0.3) as client, connect(client=client) as connection:
        log = connection.log(index_name, follow=False)
        filled(log, 3)

        log.wait(3, 0.6)
