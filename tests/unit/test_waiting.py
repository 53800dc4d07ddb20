"""Waiting for a transfer: it ends, or the time does; and nobody else stands still meanwhile (bugs E-12, E-23).

Each test ends by itself: every wait has a bound.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from events import connect
from events.errors import CorruptState, InvalidInput
from events.facts import TransferStarted
from events.log import EventLog, LogConnection
from events.memory import MemoryTransport
from statecore import CacheIndex, SessionOver, TransferState, UnknownTransfer
from tests.golden.workers import Workers

SOON_S = 0.05
LONG_S = 5.0
PROMPT = [1, 2, 3, 4]


class Hooked:
    """A log that lets something happen just before somebody sleeps."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.before_wait: Callable[[], object] | None = None
        self.asleep = threading.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def wait(self, after: int, timeout_s: float) -> None:
        happens, self.before_wait = self.before_wait, None
        if happens is not None:
            happens()
        self.asleep.set()
        self._log.wait(after, timeout_s)


class HookedConnection:
    """A connection whose logs are `Hooked`."""

    def __init__(self, memory: LogConnection) -> None:
        self.memory = memory
        self.last: Hooked | None = None

    def log(self, index: str, *, follow: bool = True) -> Hooked:
        self.last = Hooked(self.memory.log(index, follow=follow))
        return self.last


class Scene:
    """Engine a of a GPU pool of 4, in which a path of 4 is leaving for the host (a:0)."""

    def __init__(self, *, follow: bool = True) -> None:
        self.memory = connect("memory://")
        connection = HookedConnection(self.memory)
        self.index = CacheIndex(
            connection,  # type: ignore[arg-type]  # it lets something happen in between
            name="i",
            engine="a",
            gpu_blocks=4,
            cpu_blocks=4,
            block_size=1,
            follow=follow,
        )
        assert connection.last is not None
        self.log = connection.last
        with self.index.step():
            self.index.match("w", PROMPT)
            self.index.allocate("w", 4)
            self.index.extend("w", ready=True)
            self.index.release("w")
        self.answer = self.index.allocate(None, 4)

    def finish(self, transfer: str = "a:0", *, ok: bool = True, reason: str = "") -> None:
        log = self.memory.log("i", follow=False)
        workers = Workers(log)
        for entry in log.read(0):
            for fact in entry.facts:
                workers.note(fact)
        workers.report(transfer, ok=ok, reason=reason)


@pytest.fixture(params=[True, False], ids=["following", "reading"])
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(follow=request.param)


def test_an_answer_says_what_it_waits_for(scene: Scene) -> None:
    """A caller does not know what to wait for, or takes no blocks for blocks."""
    assert (scene.answer.blocks, scene.answer.evicted, scene.answer.waits_for) == ([], 0, ("a:0",))
    scene.finish()
    assert scene.index.wait("a:0", LONG_S) == TransferState("a:0", "done")

    given = scene.index.allocate(None, 2)
    found = scene.index.match("r", PROMPT)

    assert (given.blocks, given.waits_for) == ([0, 1], ())
    assert (found.blocks, found.tokens, found.host_tokens, found.waits_for) == ([2, 3], 2, 2, ("a:1",))
    scene.finish("a:1")
    assert scene.index.poll("a:1").done
    joined = scene.index.match("s", PROMPT)
    assert (joined.blocks, joined.host_tokens, joined.waits_for) == ([2, 3], 0, ())


def test_would_match_counts_what_match_would_find(scene: Scene) -> None:
    """A router sends the prompt to a neighbour that has to compute it."""
    scene.finish()
    scene.index.refresh()

    asked = scene.index.would_match(PROMPT)

    assert asked == len(scene.index.match("r", PROMPT).blocks)


def test_waiting_ends_with_the_time(scene: Scene) -> None:
    """E-12: a worker that never reports stops an engine."""
    begun = time.monotonic()

    known = scene.index.wait("a:0", SOON_S)

    assert (known.state, known.under_way, known.done) == ("under way", True, False)
    assert SOON_S <= time.monotonic() - begun < LONG_S
    assert scene.index.wait("a:0", 0).under_way
    assert scene.index.poll("a:0") == TransferState("a:0", "under way")


@pytest.mark.parametrize("ok", [True, False])
def test_waiting_ends_with_the_transfer(scene: Scene, ok: bool) -> None:
    """E-12: a waiter is not told that it is over, or not why."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(scene.index.wait, "a:0", LONG_S)
        assert scene.log.asleep.wait(LONG_S)
        scene.finish(ok=ok, reason="" if ok else "rank 1: no space")
        known = waiting.result(timeout=1.0)

    assert known == (TransferState("a:0", "done") if ok else TransferState("a:0", "failed", "rank 1: no space"))
    assert known.done is ok


def test_cancelling_wakes_the_waiter(scene: Scene) -> None:
    """E-12: who cancels leaves another thread waiting for what nobody wants."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(scene.index.wait, "a:0", LONG_S)
        assert scene.log.asleep.wait(LONG_S)
        scene.index.cancel("a:0", "shutting down")
        known = waiting.result(timeout=1.0)

    assert known == TransferState("a:0", "cancelled", "shutting down")
    scene.finish()
    assert scene.index.poll("a:0") == known, "the late result changes nothing"


def test_the_engine_goes_on_while_somebody_waits(scene: Scene) -> None:
    """E-23: the thread that could free memory waits for the one that waits for memory."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(scene.index.wait, "a:0", LONG_S)
        assert scene.log.asleep.wait(LONG_S)
        begun = time.monotonic()
        for number in range(20):
            with scene.index.step():
                scene.index.match(f"r{number}", PROMPT)
                scene.index.release(f"r{number}")
        assert time.monotonic() - begun < 1.0
        assert not waiting.done()
        scene.finish()
        assert waiting.result(timeout=1.0).done


def test_waiting_while_a_step_of_another_thread_goes_on(scene: Scene) -> None:
    """E-23: a waiter and a long step stop each other, or the waiter reads the half-made step."""
    in_step, go_on = threading.Event(), threading.Event()

    def long_step() -> None:
        with scene.index.step():
            scene.index.match("r", PROMPT)
            in_step.set()
            assert go_on.wait(LONG_S)
            scene.index.release("r")

    with ThreadPoolExecutor(2) as pool:
        stepping = pool.submit(long_step)
        assert in_step.wait(LONG_S)
        waiting = pool.submit(scene.index.wait, "a:0", LONG_S)
        scene.finish()
        time.sleep(SOON_S)
        assert scene.index.requests() == ("r",), "questions are answered meanwhile"
        go_on.set()
        stepping.result(timeout=LONG_S)
        assert waiting.result(timeout=1.0).done


def test_polling_does_not_wait_for_a_step_of_another_thread(scene: Scene) -> None:
    """E-23: `poll` and `wait(…, 0.05)` last as long as another thread's step, whatever the timeout."""
    in_step, go_on = threading.Event(), threading.Event()

    def long_step() -> None:
        with scene.index.step():
            in_step.set()
            assert go_on.wait(LONG_S)

    with ThreadPoolExecutor(2) as pool:
        stepping = pool.submit(long_step)
        assert in_step.wait(LONG_S)
        waiting = pool.submit(scene.index.wait, "a:0", SOON_S)
        try:
            assert waiting.result(timeout=10 * SOON_S).under_way
        finally:
            go_on.set()
            stepping.result(timeout=LONG_S)


def test_news_that_another_thread_took_wake_the_waiter_too() -> None:
    """E-12: the finish came between looking and sleeping, another thread's call applied it; the waiter sleeps on."""
    scene = Scene(follow=True)

    def meanwhile() -> None:
        scene.finish()
        with ThreadPoolExecutor(1) as other:
            assert other.submit(scene.index.poll, "a:0").result(timeout=LONG_S).done

    scene.log.before_wait = meanwhile
    begun = time.monotonic()

    known = scene.index.wait("a:0", 20 * SOON_S)

    assert known.done
    assert time.monotonic() - begun < 10 * SOON_S


# --- what cannot be waited for --------------------------------------------------------------------------------------


def test_inside_a_step_nothing_can_end(scene: Scene) -> None:
    """E-23: an engine waits inside a step for a transfer that only the end of the step can start."""
    with scene.index.step():
        scene.index.match("r", PROMPT)
        calls: list[Callable[[], object]] = [
            lambda: scene.index.wait("a:0", LONG_S),
            lambda: scene.index.poll("a:0"),
        ]
        for call in calls:
            with pytest.raises(InvalidInput, match="wait outside of it"):
                call()
        scene.index.release("r")


@pytest.mark.parametrize("transfer", ["a:7", "b:0", "x"])
def test_transfers_nobody_started(scene: Scene, transfer: str) -> None:
    """A misspelt id is waited for until the time is over."""
    before = scene.index.digest()
    calls: list[Callable[[], object]] = [
        lambda: scene.index.wait(transfer, LONG_S),
        lambda: scene.index.poll(transfer),
        lambda: scene.index.cancel(transfer),
    ]
    for call in calls:
        with pytest.raises(UnknownTransfer, match=repr(transfer)):
            call()
    assert scene.index.digest() == before


@pytest.mark.parametrize("timeout", [-1, -0.1, float("nan"), float("inf"), None, "1", True, 86_401])
def test_timeouts_are_seconds(scene: Scene, timeout: object) -> None:
    """A timeout in milliseconds, or none at all, waits for days."""
    with pytest.raises(InvalidInput, match="timeout is a number of seconds"):
        scene.index.wait("a:0", timeout)  # type: ignore[arg-type]


@pytest.mark.parametrize("transfer", ["", None, 0, b"a:0", "x" * 257, ("a:0",)])
def test_ids_are_strings(scene: Scene, transfer: object) -> None:
    """A tuple of transfers is taken for one that is unknown."""
    calls: list[Callable[..., object]] = [lambda id_: scene.index.wait(id_, 1), scene.index.poll, scene.index.cancel]
    for call in calls:
        with pytest.raises(InvalidInput, match="named by the string"):
            call(transfer)


def test_a_life_that_is_over_waits_for_nothing(scene: Scene) -> None:
    """E-25: a paused engine wakes up and waits for transfers of a life that is over."""
    CacheIndex(scene.memory, name="i", engine="a", block_size=1, cpu_blocks=4)
    calls: list[Callable[[], object]] = [
        lambda: scene.index.wait("a:0", LONG_S),
        lambda: scene.index.poll("a:0"),
        lambda: scene.index.cancel("a:0"),
    ]
    for call in calls:
        with pytest.raises(SessionOver):
            call()


def test_another_engine_may_wait_and_may_not_cancel(scene: Scene) -> None:
    """An engine that shares the pool has to guess when there is room, or takes a transfer away from its owner."""
    b = CacheIndex(scene.memory, name="i", engine="b", gpu_pool="gpu:a", block_size=1, cpu_blocks=4)
    assert b.allocate(None, 4).waits_for == ("a:0",)
    with pytest.raises(UnknownTransfer):
        b.cancel("a:0")
    scene.finish()

    assert b.wait("a:0", LONG_S).done
    assert b.allocate(None, 4).blocks == [0, 1, 2, 3]


def test_a_reason_that_cannot_be_written_is_refused_at_the_door(scene: Scene) -> None:
    """A lone surrogate in a reason leaves the index in doubt about a commit that was never sent; only `rejoin` helps."""
    with pytest.raises(InvalidInput):
        scene.index.cancel("a:0", "\ud800")
    assert scene.index.poll("a:0").under_way


def test_outcomes_of_a_history_that_was_lost_are_forgotten(scene: Scene) -> None:
    """E-11, E-31: the log was rolled back, ids begin again, and a transfer that has just begun is told to be done."""
    transport = scene.memory.backend.transport("i")
    assert isinstance(transport, MemoryTransport)
    scene.finish()
    assert scene.index.poll("a:0").done
    started = [entry.position for entry in scene.memory.log("i").read(0) if isinstance(entry.facts[0], TransferStarted)]
    roll_back(transport, started[0] - 1)
    with pytest.raises(CorruptState, match="diverged"):
        scene.index.match("r", [9])
    scene.index.rejoin()  # what it wrote in the lost part is in its pool now, so the pool begins empty
    scene.index.match("again", [1, 2, 3, 4])
    scene.index.allocate("again", 4)
    scene.index.extend("again", ready=True)
    scene.index.release("again")

    again = scene.index.allocate(None, 4)

    assert again.waits_for == ("a:0",)
    assert scene.index.poll("a:0").under_way


def roll_back(transport: MemoryTransport, position: int) -> None:
    """A server that was restored from a backup."""
    del transport._records[position:]
    transport._versions.clear()
