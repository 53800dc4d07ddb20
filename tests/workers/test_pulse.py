"""What a worker's heartbeat vouches for, by a clock that the test moves, and what its thread does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import attrs
import pytest

from events import limits
from events.errors import Unavailable
from events.job_ports import Delivery, Dropped, FinishReply, Heartbeat, Seat
from tests.contract.timed import Clock
from workers.pulse import Pulse


@attrs.define
class Beats:
    """`Jobs` of which only the heartbeat matters: what the server answers to it, in turn; the last answer stays."""

    answers: list[str | Unavailable | None]
    said: list[str] = attrs.Factory(list)
    left: int = 0
    seat: Seat = attrs.Factory(lambda: Seat("p", 0, "w"))
    ranks: int = 1
    trimmed: int = 0

    def beat(self, state: str) -> str | None:
        self.said.append(state)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Unavailable):
            raise answer
        return answer

    def leave(self) -> None:
        self.left += 1

    def take(self, timeout_s: float) -> Delivery | Dropped | None:
        raise AssertionError(timeout_s)

    def finish(self, delivery: Delivery, ok: bool, reason: str = "") -> FinishReply:
        raise AssertionError((delivery, ok, reason))

    def again(self) -> None:
        raise AssertionError

    def enter(self, *, takeover: bool = False) -> None:
        raise AssertionError(takeover)

    def alive(self) -> tuple[Heartbeat | None, ...]:
        return (None,)


def pulse_of(beats: Beats, clock: Callable[[], float] = time.monotonic) -> tuple[Pulse, threading.Event, list[str]]:
    stop, said = threading.Event(), list[str]()
    return Pulse(beats, stop, lambda event, /, **_: said.append(event), clock), stop, said


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 5.0
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_job_of_the_life_last_heard_is_vouched_for() -> None:
    """Otherwise no job could be carried out; and a job of another life might move blocks that are somebody else's.

    Given a server heard in one life, when asked for jobs of it and of others, then only its own are vouched for.
    """
    pulse, _, _ = pulse_of(Beats(["one"]), Clock())
    assert pulse.vouches_for("one"), "before anything is heard, what the job brought is all there is"

    pulse.heard("one", pulse.now())
    assert (pulse.vouches_for("one"), pulse.vouches_for("two")) == (True, False)
    pulse.heard("two", pulse.now())
    assert (pulse.vouches_for("one"), pulse.vouches_for("two")) == (False, True)


def test_a_server_that_is_not_heard_vouches_for_nothing() -> None:
    """Otherwise a worker cut off for a minute would write to blocks that a new life of the log has given away.

    Given the last word of the server, when it is older than a heartbeat is trusted, then no job is vouched for, until it is
    heard again.
    """
    clock = Clock()
    pulse, _, _ = pulse_of(Beats(["one"]), clock)
    pulse.heard("one", pulse.now())
    clock.move(limits.HEARTBEAT_TRUST_S)
    assert pulse.vouches_for("one")

    clock.move(0.1)
    assert not pulse.vouches_for("one")
    pulse.heard("one", pulse.now())
    assert pulse.vouches_for("one")


def test_an_answer_counts_from_when_it_was_asked_for() -> None:
    """Otherwise a worker that was stopped with a job in its hands would take its old news for new, and move blocks that the
    next life of the log has given to somebody else.

    Given an answer that lay about while its worker was stopped, when it is heard at last, then it is as old as its question;
    and news from a later question are not overruled by it.
    """
    clock = Clock()
    pulse, _, _ = pulse_of(Beats(["one"]), clock)
    asked_at = pulse.now()
    clock.move(limits.HEARTBEAT_TRUST_S + 0.1)

    pulse.heard("one", asked_at)
    assert not pulse.vouches_for("one")

    pulse.heard("two", pulse.now())
    pulse.heard("one", asked_at)
    assert (pulse.vouches_for("one"), pulse.vouches_for("two")) == (False, True)


def test_a_worker_that_has_never_heard_is_trusted_no_longer() -> None:
    """Otherwise a worker that started with its server would copy for ever once it is gone."""
    clock = Clock()
    pulse, _, _ = pulse_of(Beats(["one"]), clock)

    clock.move(limits.HEARTBEAT_TRUST_S + 0.1)

    assert not pulse.vouches_for("one")


def test_it_beats_while_it_lasts_and_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a worker in a long copy would count as dead, and a worker that ended as alive.

    Given a pulse, then it says what the worker does, hears the server's life, and stands up at its end.
    """
    monkeypatch.setattr(limits, "HEARTBEAT_EVERY_S", 0.01)
    beats = Beats(["one", "two"])
    pulse, stop, _ = pulse_of(beats)
    with pulse:
        pulse.state = "copying e0:0"
        until(lambda: beats.said.count("copying e0:0") > 2)
        assert pulse.vouches_for("two")
        assert not pulse.vouches_for("one")

    assert (beats.left, stop.is_set()) == (1, False)


def test_a_broken_line_is_said_and_outlived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise one lost request would end the heartbeat, and with it the seat."""
    monkeypatch.setattr(limits, "HEARTBEAT_EVERY_S", 0.01)
    beats = Beats([Unavailable("cut"), Unavailable("cut"), "one"])
    pulse, stop, said = pulse_of(beats)
    with pulse:
        until(lambda: len(beats.said) > 3)

    assert said == ["no_heartbeat"] * 2
    assert not stop.is_set()


def test_who_was_replaced_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise two workers of one rank would go on side by side."""
    monkeypatch.setattr(limits, "HEARTBEAT_EVERY_S", 0.01)
    beats = Beats(["one", None, "one"])
    pulse, stop, said = pulse_of(beats)
    with pulse:
        assert stop.wait(5.0)
        time.sleep(0.05)

    assert (said, len(beats.said)) == (["replaced"], 2)
