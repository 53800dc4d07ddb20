"""Threads of one engine share an index: steps do not mix, and a question never waits for a commit (bugs E-23).

Each test ends by itself: every wait has a bound.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from events import connect
from events.log import EventLog
from events.ports import AppendReply, Base, Commit
from statecore import CacheIndex, PoolExhausted
from statecore.invariants import violations

WAIT_S = 5.0


class SlowLog:
    """A log whose appends wait until they are let through."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.let_through = threading.Event()
        self.let_through.set()
        self.waiting = threading.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def append(self, commit: Commit, base: Base) -> AppendReply:
        self.waiting.set()
        assert self.let_through.wait(WAIT_S)
        return self._log.append(commit, base)


class SlowConnection:
    """A connection with one slow log."""

    def __init__(self) -> None:
        self.slow = SlowLog(connect("memory://").log("i"))

    def log(self, index: str, *, follow: bool = True) -> SlowLog:
        assert (index, follow) == ("i", True)
        return self.slow


def slow_index() -> tuple[CacheIndex, SlowLog]:
    connection = SlowConnection()
    index = CacheIndex(connection, name="i", engine="a", gpu_blocks=12, block_size=4)  # type: ignore[arg-type]
    return index, connection.slow


def at_once(question: Callable[[], object]) -> object:
    """The answer, from another thread, or the test fails: it waited."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(question).result(timeout=1.0)


def test_two_threads_serve_two_hundred_requests_each() -> None:
    """Two threads of one engine corrupt its index."""
    index = CacheIndex(connect("memory://"), name="i", engine="a", gpu_blocks=64, block_size=4)

    def serve(thread: int) -> int:
        served = 0
        for number in range(200):
            name = f"{thread}-{number}"
            prompt = [number % 7] * 8 + [thread] * 4
            if number % 2:
                with index.step():
                    found = index.match(name, prompt)
                    index.allocate(name, 4 - len(found.blocks))
                    index.extend(name)
            else:
                found = index.match(name, prompt)
                index.allocate(name, 4 - len(found.blocks))
                index.extend(name, ready=True)
            assert len(index.table(name)) == 4
            index.release(name)
            served += 1
        return served

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(serve, range(2), timeout=30)) == [200, 200]

    assert index.requests() == ()
    assert index.inspect(violations) == []
    assert index.free_blocks + index.cached_blocks == 64


def test_steps_of_two_threads_do_not_mix() -> None:
    """What one thread undoes takes another thread's request with it."""
    index = CacheIndex(connect("memory://"), name="i", engine="a", gpu_blocks=8, block_size=4)
    inside, go_on = threading.Event(), threading.Event()

    def give_up() -> None:
        with index.step():
            index.match("mine", [1])
            inside.set()
            assert go_on.wait(WAIT_S)
            raise ZeroDivisionError

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(give_up)
        assert inside.wait(WAIT_S)
        second = pool.submit(index.match, "yours", [1])
        go_on.set()
        assert isinstance(first.exception(WAIT_S), ZeroDivisionError)
        second.result(WAIT_S)

    assert index.requests() == ("yours",)


def test_questions_are_answered_while_a_commit_is_under_way() -> None:
    """E-23: the thread that serves HTTP waits for Redis because the scheduler does."""
    index, log = slow_index()
    index.match("r", [1] * 8)
    index.allocate("r", 2)
    index.extend("r")
    log.waiting.clear()
    log.let_through.clear()

    with ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(index.allocate, "r", 3)
        assert log.waiting.wait(WAIT_S)
        try:
            assert at_once(lambda: index.would_match([1] * 8)) == 2
            assert at_once(lambda: index.can_allocate(7)) is True
            assert at_once(index.requests) == ("r",)
            assert at_once(lambda: index.table("r")) == [0, 1, 2, 3, 4]
            assert at_once(lambda: (index.free_blocks, index.cached_blocks)) == (7, 0)
            assert not blocked.done()
        finally:
            log.let_through.set()
        assert blocked.result(WAIT_S).blocks == [2, 3, 4]


def test_a_commit_under_way_keeps_others_out_but_loses_nothing() -> None:
    """A second thread's call is lost, or decided on a state that never was."""
    index, log = slow_index()
    log.waiting.clear()
    log.let_through.clear()

    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(index.allocate, None, 5) for _ in range(3)]
        assert log.waiting.wait(WAIT_S)
        log.let_through.set()
        given = [call.result(WAIT_S).blocks for call in calls if call.exception(WAIT_S) is None]
        refused = [call.exception(WAIT_S) for call in calls if call.exception(WAIT_S) is not None]

    assert sorted(block for blocks in given for block in blocks) == list(range(10))
    assert len(refused) == 1
    assert isinstance(refused[0], PoolExhausted)
