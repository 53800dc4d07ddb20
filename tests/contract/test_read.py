"""Reading: pages, the head, and what follows in the background; on every backend."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from events import connect, limits
from events.errors import InvalidInput
from events.log import EventLog, LogConnection
from events.ports import Base, Entry, Head
from tests.contract.commits import BIRTH, client_of, commit, filled, ids

PATIENCE_S = 10.0


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens in another thread or process; fail if it does not."""
    deadline = time.monotonic() + PATIENCE_S
    ticks = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        ticks.wait(0.002)


def test_pages(connection: LogConnection, index_name: str) -> None:
    """Otherwise a joining engine would skip or repeat entries where pages meet.

    Given 10 entries, when read in pages of 1, 3, 10 and 11, then each page starts where the last ended.
    """
    log = connection.log(index_name)
    filled(log, 10)
    everything = log.read(0)
    assert len(everything) == 10

    for size in (1, 3, 10, 11):
        pages: list[Entry] = []
        while page := log.read(len(pages), size):
            assert len(page) <= size
            pages += page
        assert tuple(pages) == everything


def test_a_page_has_a_default_size(connection: LogConnection, index_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise reading a long log would stop the server for everybody.

    Given 10 entries and pages of 4, when read without a limit, then 4 come.
    """
    monkeypatch.setattr(limits, "READ_PAGE", 4)
    log = connection.log(index_name)
    filled(log, 10)

    assert [entry.position for entry in log.read(3)] == [4, 5, 6, 7]


def test_reading_beyond_the_end(connection: LogConnection, index_name: str) -> None:
    """Otherwise an up-to-date engine would get an error, or old entries again.

    Given 3 entries, when read from the end and from beyond, then nothing.
    """
    log = connection.log(index_name)
    filled(log, 3)

    assert log.read(3) == ()
    assert log.read(99) == ()


@pytest.mark.usefixtures("impatient")
def test_reading_nothing_is_refused_at_once(connection: LogConnection, index_name: str) -> None:
    """Otherwise a wrong page size would look like a server that is down, ten seconds later.

    Given entries, when a page of 0 or -1, or one after position -1, is asked for, then InvalidInput with the number.
    """
    log = connection.log(index_name)
    filled(log, 3)

    for after, size in ((0, 0), (0, -1), (-1, 1)):
        with pytest.raises(InvalidInput, match=str(min(after, size))):
            log.read(after, size)


def test_the_head_moves(connection: LogConnection, index_name: str) -> None:
    """Otherwise an operator could not see how long the log is.

    Given 7 entries, when asked for the head, then position, id and the oldest position kept.
    """
    log = connection.log(index_name)
    filled(log, 7)

    assert log.head() == Head(7, "c7", first=1)


def test_commit_ids_are_never_used_twice(connection: LogConnection, index_name: str) -> None:
    """Otherwise one engine would take another's commit for its own.

    Given two logs of one index, when each makes 100 ids, then 200 different ones.
    """
    one, two = connection.log(index_name), connection.log(index_name)

    made = {log.next_commit_id() for log in (one, two) for _ in range(100)}

    assert len(made) == 200


# --- following ------------------------------------------------------------------------------------------------------


class Seen:
    """All that has arrived at a follower so far, above what its engine knew at the start."""

    def __init__(self, log: EventLog, after: int = 0) -> None:
        self._log = log
        self._after = after
        self.entries: list[Entry] = []

    def ids(self) -> list[str]:
        self.entries += self._log.arrived(self.entries[-1].position if self.entries else self._after)
        return ids(self.entries)


@pytest.mark.usefixtures("impatient")
def test_entries_arrive_in_the_background(connection: LogConnection, index_name: str) -> None:
    """Otherwise every step of an engine with neighbours would need two round trips.

    Given a follower from position 2, when others append, then exactly what comes after 2 arrives, once, in order.
    """
    log, other = connection.log(index_name), connection.log(index_name)
    base = filled(other, 4)
    log.follow(2)
    for number in range(5, 9):
        other.append(commit(f"c{number}"), base)
        base = Base(number, f"c{number}")
    seen = Seen(log, after=2)

    assert log.following
    until(lambda: len(seen.ids()) >= 6)

    assert seen.entries == list(log.read(2))
    assert log.arrived(8) == ()
    log.close()


@pytest.mark.usefixtures("impatient")
def test_what_is_known_does_not_arrive_again(connection: LogConnection, index_name: str) -> None:
    """Otherwise an engine would apply twice what the reply to its own commit had brought already.

    Given a follower that has fetched 1…4 and an engine that knows 1…2 by then, when it takes what arrived, then 3 and 4.
    """
    log, other = connection.log(index_name), connection.log(index_name)
    filled(other, 4)
    log.follow(0)
    seen = Seen(log, after=2)

    until(lambda: len(seen.ids()) >= 2)

    assert seen.ids() == ["c3", "c4"]
    assert log.arrived(0) == ()
    log.close()


@pytest.mark.usefixtures("impatient")
def test_following_again_from_elsewhere(connection: LogConnection, index_name: str) -> None:
    """Otherwise an engine that joins anew, after the log was rolled back, would not hear of its neighbours any more.

    Given a follower far ahead of a log that was rolled back, when told to follow from 2, then what comes after 2 arrives.
    """
    log, other = connection.log(index_name), connection.log(index_name)
    filled(other, 4)
    log.follow(1000)
    log.follow(2)
    seen = Seen(log, after=2)

    until(lambda: len(seen.ids()) >= 2)

    assert seen.ids() == ["c3", "c4"]
    log.close()


def test_following_can_be_declined(connection: LogConnection, index_name: str) -> None:
    """Otherwise a tool that reads once would start threads.

    Given a log opened with follow=False, when told to follow, then no thread runs and nothing arrives.
    """
    log = connection.log(index_name, follow=False)
    threads = threading.active_count()

    log.follow(0)
    log.append(commit("c1"), BIRTH)

    assert not log.following
    assert log.arrived(0) == ()
    assert threading.active_count() <= threads  # one of an earlier test may have ended meanwhile


@pytest.mark.usefixtures("impatient")
def test_a_closed_follower_ends(connection: LogConnection, index_name: str) -> None:
    """Otherwise an engine that opens and closes indexes would collect threads.

    Given a follower that waits, when the log is closed, then its thread ends within a blocking read.
    """
    threads = threading.active_count()
    log = connection.log(index_name)
    log.follow(0)

    log.close()

    until(lambda: threading.active_count() <= threads)


@pytest.mark.usefixtures("impatient")
def test_a_full_queue_loses_nothing(stored: LogConnection, index_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise an engine that slept for an hour would hold an hour of entries, or miss some.

    Given a queue of 5 and pages of 2, when 20 entries wait and the engine takes what arrived again and again, then all
    come, in order, and never many more than 5 at once.
    """
    monkeypatch.setattr(limits, "FOLLOW_QUEUE_MAX", 5)
    monkeypatch.setattr(limits, "READ_PAGE", 2)
    monkeypatch.setattr(limits, "FOLLOW_BLOCK_S", 0.02)
    log, other = stored.log(index_name), stored.log(index_name)
    filled(other, 20)
    log.follow(0)
    seen: list[Entry] = []

    def take() -> bool:
        arrived = log.arrived(len(seen))
        assert len(arrived) <= 5 + 2
        seen.extend(arrived)
        return len(seen) >= 20

    until(take)

    assert ids(seen) == [f"c{number}" for number in range(1, 21)]
    log.close()


def test_an_index_is_born_while_somebody_looks(redis_url: str, index_name: str) -> None:
    """Otherwise engines that are started together would take a birth for a log whose head is gone.

    Given a look at the head between whose two requests the first commit lands, then it is the old state or the new one.
    """
    with connect(redis_url) as looking, connect(redis_url) as writing:
        client = client_of(looking)
        execute = client.execute_command
        begun: list[str] = []

        def execute_and_let_others_in(*words: Any, **options: Any) -> Any:
            answer = execute(*words, **options)
            if not begun and words[0] in ("XRANGE", "HMGET"):
                begun.append(words[0])
                writing.log(index_name).append(commit("c1"), BIRTH)
            return answer

        client.execute_command = execute_and_let_others_in
        head = looking.log(index_name).head()

    assert begun
    assert head.position in (0, 1)
