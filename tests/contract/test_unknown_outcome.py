"""Lost requests, lost replies, late copies: whatever the network does, a commit is in the log once or not at all.

A real Redis behind a proxy that fails on request. The log under test speaks through the proxy; `truth` reads directly.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import pytest

from events import connect, limits
from events.embedded import EmbeddedRedis
from events.errors import OutcomeUnknown, Unavailable
from events.log import EventLog
from events.ports import Appended, Base, Conflicted, Fenced
from tests.contract.commits import BIRTH, commit, ids
from tests.servers import Fault, Proxy, Rule, commits, everything, healthy

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def log(proxy: Proxy, index_name: str) -> Iterator[EventLog]:
    with connect(proxy.url) as connection:
        yield connection.log(index_name, follow=False)


@pytest.fixture
def truth(embedded_redis: EmbeddedRedis, index_name: str) -> Iterator[EventLog]:
    with connect(embedded_redis.url) as connection:
        yield connection.log(index_name, follow=False)


def once(fault: Fault, *, when: Callable[[str], bool] = lambda command: command == "EVALSHA") -> Rule:
    """The first such command meets this fault, all later ones pass."""
    left = [fault]
    return lambda command: left.pop() if left and when(command) else Fault.NONE


@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.LOSE_REPLY, Fault.HANG, Fault.LATE, Fault.LATE_REPLY])
def test_one_fault(log: EventLog, truth: EventLog, proxy: Proxy, fault: Fault) -> None:
    """Otherwise a dropped packet would lose a step, or carry it out twice.

    Given a fault on the first copy, when appended, then Appended at 2, one copy in the log, and the next one at 3.
    """
    log.append(commit("c1"), BIRTH)
    proxy.rule = once(fault)

    assert log.append(commit("c2"), Base(1, "c1")) == Appended(2, ())

    assert proxy.deliver() == (fault is Fault.LATE)
    assert log.append(commit("c3"), Base(2, "c2")) == Appended(3, ())
    assert ids(truth.read(0)) == ["c1", "c2", "c3"]


@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.LOSE_REPLY])
def test_a_fault_while_others_append(log: EventLog, truth: EventLog, proxy: Proxy, fault: Fault) -> None:
    """Otherwise after a fault an engine would not learn what its neighbours did meanwhile.

    Given others appended before and after the copy whose reply was lost, when it is found, then what came before is told.
    """
    truth.append(commit("b1", engine="b"), BIRTH)

    def meanwhile(command: str) -> Fault:
        """The reply (or the request) is lost, and then b appends again."""
        if command == "XRANGE":
            proxy.rule = healthy
            end = truth.head()
            truth.append(commit("b2", engine="b"), Base(end.position, end.commit_id))
        return fault if command == "EVALSHA" else Fault.NONE

    proxy.rule = meanwhile
    reply = log.append(commit("a1"), BIRTH)

    assert isinstance(reply, Appended)
    if fault is Fault.LOSE_REPLY:
        assert ids(truth.read(0)) == ["b1", "a1", "b2"]
        assert (reply.position, ids(reply.missed)) == (2, ["b1"])
    else:
        assert ids(truth.read(0)) == ["b1", "b2", "a1"]
        assert (reply.position, ids(reply.missed)) == (3, ["b1", "b2"])


def test_lost_requests_and_then_a_conflict(log: EventLog, truth: EventLog, proxy: Proxy) -> None:
    """Otherwise a resent step would take blocks that a neighbour has taken meanwhile.

    Given the request was lost and b then touched the same pool, when it is sent again, then Conflicted, not in the log.
    """

    def meanwhile(command: str) -> Fault:
        if command == "XRANGE":
            proxy.rule = healthy
            truth.append(commit("b1", engine="b", pools=["p"]), BIRTH)
        return Fault.LOSE_REQUEST if command == "EVALSHA" else Fault.NONE

    proxy.rule = meanwhile

    reply = log.append(commit("a1", pools=["p"]), BIRTH)

    assert isinstance(reply, Conflicted)
    assert ids(reply.missed) == ids(truth.read(0)) == ["b1"]


@pytest.mark.parametrize("seed", range(3))
def test_many_commits_over_a_bad_network(log: EventLog, truth: EventLog, proxy: Proxy, seed: int) -> None:
    """Otherwise over a day of small faults steps would get lost or doubled.

    Given every fifth command (reads too) meets a random fault, when 250 commits are appended, then all 250 are in the log
    once and in order, and copies that arrive late change nothing.
    """
    chance = random.Random(seed)
    faults = [Fault.LOSE_REQUEST, Fault.LOSE_REPLY, Fault.LATE]

    def rule(command: str) -> Fault:
        late = Fault.NONE if command != "EVALSHA" else Fault.LATE
        fault = chance.choice(faults) if chance.random() < 0.2 else Fault.NONE
        return late if fault is Fault.LATE else fault

    proxy.rule = rule
    base = BIRTH
    for number in range(1, 251):
        try:
            reply = log.append(commit(f"c{number}"), base)
        except OutcomeUnknown:
            reply = log.append(commit(f"c{number}"), base)
        assert reply == Appended(number, ())
        base = Base(number, f"c{number}")
        if chance.random() < 0.05:
            proxy.deliver()

    proxy.deliver()
    assert ids(truth.read(0, 1000)) == [f"c{number}" for number in range(1, 251)]
    assert len([command for command in proxy.seen if command.startswith("EVAL")]) > 270


# --- the deadline passes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.LOSE_REPLY, Fault.HANG, Fault.LATE_REPLY])
def test_the_deadline_passes(log: EventLog, truth: EventLog, proxy: Proxy, fault: Fault) -> None:
    """Otherwise an engine would wait for ever, or be told "no" about a step that stands.

    Given nothing gets through any more, when appending, then OutcomeUnknown within bounded time; when it does again,
    then appending the same commit finds out: once in the log.
    """
    log.append(commit("c1"), BIRTH)
    first = [fault]
    proxy.rule = lambda command: (first or [Fault.HANG]).pop() if command == "EVALSHA" else Fault.HANG
    began = time.monotonic()

    with pytest.raises(OutcomeUnknown) as unknown:
        log.append(commit("c2"), Base(1, "c1"))

    assert time.monotonic() - began < 5.0
    assert unknown.value.commit_id == "c2"
    proxy.rule = healthy
    assert log.append(commit("c2"), Base(1, "c1")) == Appended(2, ())
    assert ids(truth.read(0)) == ["c1", "c2"]


def test_a_dead_connection_after_doubt_is_still_doubt(log: EventLog, truth: EventLog, proxy: Proxy) -> None:
    """Otherwise "cannot be reached" would be taken for "nothing was appended".

    Given the reply was lost and then the server is gone, when the deadline passes, then OutcomeUnknown, not Unavailable.
    """
    log.append(commit("c1"), BIRTH)
    proxy.rule = lambda command: Fault.LOSE_REPLY if command.startswith("EVAL") else Fault.LOSE_REQUEST

    with pytest.raises(OutcomeUnknown):
        log.append(commit("c2"), Base(1, "c1"))

    assert ids(truth.read(0)) == ["c1", "c2"]


def test_doubt_does_not_depend_on_what_the_caller_handles(
    log: EventLog, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a step that stands would be reported as not done, when called from an `except` block.

    Given the caller is handling a refused connection, when a reply and all that follows is lost, then OutcomeUnknown as
    anywhere else.
    """
    first = [Fault.LOSE_REPLY]
    proxy.rule = lambda command: (first or [Fault.LOSE_REQUEST]).pop() if command == "EVALSHA" else Fault.LOSE_REQUEST
    monkeypatch.setattr(limits, "RETRY_ATTEMPTS_MAX", 1)

    def while_handling() -> None:
        try:
            raise ConnectionRefusedError("something else the engine talks to is down")
        except ConnectionRefusedError:
            log.append(commit("c1"), BIRTH)

    with pytest.raises(OutcomeUnknown):
        while_handling()


def test_fenced_while_in_doubt(log: EventLog, truth: EventLog, proxy: Proxy) -> None:
    """Otherwise a declared-lost engine would hear that its last step stands, or the step would land after its end.

    Given the request was lost and a's fence was raised meanwhile, when it is sent again, then Fenced, not in the log.
    """

    def meanwhile(command: str) -> Fault:
        if command == "XRANGE":
            proxy.rule = healthy
            truth.append(commit("k1", engine="keeper", fences=(("a", 2),)), BIRTH)
        return Fault.LOSE_REQUEST if command == "EVALSHA" else Fault.NONE

    proxy.rule = meanwhile

    assert log.append(commit("a1"), BIRTH) == Fenced(2)
    assert ids(truth.read(0)) == ["k1"]


def test_a_late_copy_after_the_next_life_began(log: EventLog, truth: EventLog, proxy: Proxy) -> None:
    """Otherwise a step of a past life would take effect in the middle of the next one.

    Given a's step hangs in the network and a gave up and joined anew, when the copy arrives, then nothing is appended.
    """
    proxy.rule = commits(Fault.LATE)
    with pytest.raises(OutcomeUnknown):
        log.append(commit("a1", session=1), BIRTH)
    truth.append(commit("a2", session=2, fences=(("a", 2),)), BIRTH)

    assert proxy.deliver() >= 1

    assert ids(truth.read(0)) == ["a2"]


def test_reads_are_repeated(log: EventLog, truth: EventLog, proxy: Proxy) -> None:
    """Otherwise one dropped packet would fail the start of an engine.

    Given faults on reads and on the head, when asked, then the answer comes all the same.
    """
    truth.append(commit("c1"), BIRTH)
    for fault in (Fault.LOSE_REQUEST, Fault.LOSE_REPLY, Fault.HANG):
        proxy.rule = once(fault, when=lambda command: command == "XRANGE")
        assert ids(log.read(0)) == ["c1"]
        proxy.rule = once(fault, when=lambda command: command == "HMGET")
        assert log.head().position == 1


def test_reads_end_in_bounded_time(log: EventLog, proxy: Proxy) -> None:
    """Otherwise an engine would hang on a server that hangs.

    Given no answer to anything, when reading, then Unavailable within bounded time.
    """
    proxy.rule = everything(Fault.HANG)
    began = time.monotonic()

    with pytest.raises(Unavailable):
        log.read(0)

    assert time.monotonic() - began < 5.0
