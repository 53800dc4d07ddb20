"""Transfers that ended while somebody who waits for them was behind the trim, on every backend: what he is told.

How he gets there is `test_trimmed.py`'s. The worker is one line of what a real one reports.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest

from events import limits
from events.log import LogConnection
from statecore import CacheIndex, Policy, TransferState
from tests.contract.test_tiers import BLOCK_SIZE, Worker, cache, empty, prompt
from tests.contract.test_trimmed import engine, falls_behind, sound

Ask = Callable[[CacheIndex, str], TransferState]


@pytest.fixture(autouse=True)
def short_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SNAPSHOT_MARGIN", 5)


@pytest.fixture
def worker(connection: LogConnection, index_name: str) -> Worker:
    return Worker(connection, index_name)


@pytest.fixture
def idle(connection: LogConnection, index_name: str) -> CacheIndex:
    """An engine of four blocks that looks only when it is called."""
    return engine(
        connection,
        index_name,
        "idle",
        gpu_pool="gpu",
        gpu_blocks=4,
        cpu_blocks=8,
        policy=Policy(free_low=0, free_high=0),
    )


@pytest.fixture
def busy(connection: LogConnection, index_name: str, idle: CacheIndex) -> CacheIndex:
    assert idle.session == 1
    return engine(connection, index_name, "busy", gpu_pool="gpu:busy")


@pytest.mark.parametrize(
    "ask", [lambda index, transfer: index.poll(transfer), lambda index, transfer: index.wait(transfer, 5.0)]
)
@pytest.mark.parametrize("reason", ["", "rank 0: gone"], ids=["done", "failed"])
def test_a_swap_in_that_ended_behind_the_trim(
    connection: LogConnection,
    index_name: str,
    idle: CacheIndex,
    busy: CacheIndex,
    worker: Worker,
    reason: str,
    ask: Ask,
) -> None:
    """Otherwise a scheduler would be told that what it waits for never was, and end, or wait for it for ever.

    Given a request that waits for its blocks, when they have come, or failed to, and the log was trimmed past that, then
    the engine is told that it is forgotten, in the same life, and its table holds what is there; it computes the rest.
    """
    cache(idle, "first", prompt(1))
    empty(idle, worker)
    (transfer,) = idle.match("again", prompt(1)).waits_for
    worker.finish(transfer, reason)
    falls_behind(connection, index_name, idle, busy)

    told = ask(idle, transfer)

    assert (told.state, told.done, told.under_way) == ("forgotten", False, False)
    assert "trimmed before it was read here" in told.reason
    assert idle.session == 1
    assert len(idle.table("again")) == idle.path_blocks("again") == (0 if reason else 2)
    if reason:
        assert len(idle.allocate("again", 2).blocks) == 2
    sound(idle, busy)


def test_room_that_came_behind_the_trim(
    connection: LogConnection, index_name: str, idle: CacheIndex, busy: CacheIndex, worker: Worker
) -> None:
    """Otherwise who waits for room would end, or wait for ever.

    Given a request that waits for room, when the swap-out ended behind the trim, then it is forgotten, and there is room.
    """
    cache(idle, "first", prompt(1, blocks=4))
    idle.match("large", [9] * 4 * BLOCK_SIZE)
    (transfer,) = idle.allocate("large", 4).waits_for
    worker.finish(transfer)
    falls_behind(connection, index_name, idle, busy)

    assert idle.poll(transfer).state == "forgotten"
    assert len(idle.allocate("large", 4).blocks) == 4
    sound(idle, busy)


@pytest.mark.parametrize("seen", [True, False], ids=["known before", "sent meanwhile"])
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "under way"])
def test_a_request_that_was_sent(
    connection: LogConnection,
    index_name: str,
    idle: CacheIndex,
    busy: CacheIndex,
    worker: Worker,
    seen: bool,
    ended: bool,
) -> None:
    """Otherwise a decode engine would wait for ever for a request that is under way to it.

    Given a send to an engine that knew of it or not, when it ended or not, and the log was trimmed past that, then what is
    under way is known, and told as done when it ends; what ended is forgotten, or was never heard of.
    """
    sent = send_to(busy, "r", expecting(idle, "r"))
    if seen:
        assert idle.refresh() == busy.refresh()
    if ended:
        worker.report(sent)
    falls_behind(connection, index_name, idle, busy)

    told = idle.arrival("r")
    if not ended:
        assert told == TransferState(sent, "under way")
        worker.report(sent)
        assert idle.refresh() == busy.refresh()
        assert idle.arrival("r") == TransferState(sent, "done")
    else:
        assert told is None if not seen else told is not None and told.state == "forgotten"
    sound(idle, busy)


@pytest.mark.parametrize("explicit", [True, False], ids=["in a step", "alone"])
def test_what_begins_after_the_gap_is_not_forgotten(
    connection: LogConnection, index_name: str, idle: CacheIndex, busy: CacheIndex, worker: Worker, explicit: bool
) -> None:
    """Otherwise a request would be computed on blocks whose bytes have not come.

    Given an engine behind the trim, when its own step starts a swap-in before it hears of that, then the swap-in is under
    way, and done when the worker has reported.
    """
    cache(idle, "first", prompt(1))
    empty(idle, worker)
    falls_behind(connection, index_name, idle, busy)

    with idle.step() if explicit else nullcontext():
        told = idle.match("again", prompt(1))

    (transfer,) = told.waits_for
    under_way_and_then_done(idle, transfer, worker.finish)
    sound(idle, busy)


def test_a_send_that_begins_after_the_gap_is_not_forgotten(
    connection: LogConnection, index_name: str, idle: CacheIndex, busy: CacheIndex, worker: Worker
) -> None:
    """Given an engine behind the trim, when it sends a request before it hears of that, then the send is under way."""
    given = expecting(busy, "r")
    idle.match("r", prompt(7))
    idle.allocate("r", 2)
    idle.extend("r", ready=True)
    falls_behind(connection, index_name, idle, busy)

    sent = idle.send("r", idle.table("r"), "busy", given).transfer

    under_way_and_then_done(idle, sent, worker.report)
    sound(idle, busy)


def test_a_send_to_an_earlier_request_of_that_name(
    connection: LogConnection, index_name: str, idle: CacheIndex, busy: CacheIndex
) -> None:
    """Otherwise a decode engine would give back the blocks of a request to which nothing was sent.

    Given a request that was given up while it was on its way, and another of its name, when the engine goes on from a
    snapshot, then nobody has sent that one.
    """
    given = expecting(idle, "r")
    send_to(busy, "r", given)
    idle.refresh()
    idle.release("r")
    expecting(idle, "r", 8)
    assert idle.arrival("r") is None
    falls_behind(connection, index_name, idle, busy)

    assert idle.arrival("r") is None
    sound(idle, busy)


def test_the_next_life_hears_of_no_send_to_the_one_before(
    connection: LogConnection, index_name: str, idle: CacheIndex, busy: CacheIndex, worker: Worker
) -> None:
    """Otherwise a request would be gone on with in blocks that nobody has written.

    Given an engine that was sent a request and left under another process, and all that behind the trim, when it begins its
    next life and a request of that name, then nobody has sent that one.
    """
    sent = send_to(busy, "r", expecting(idle, "r"))
    idle.refresh()
    worker.report(sent)
    engine(connection, index_name, "idle", gpu_pool="gpu", gpu_blocks=4, cpu_blocks=8).leave()
    falls_behind(connection, index_name, idle, busy)

    idle.rejoin()
    expecting(idle, "r", 9)

    assert idle.arrival("r") is None
    sound(idle, busy)


def under_way_and_then_done(index: CacheIndex, transfer: str, report: Callable[[str], None]) -> None:
    assert index.poll(transfer) == TransferState(transfer, "under way")
    report(transfer)
    index.refresh()
    assert index.poll(transfer) == TransferState(transfer, "done")


def expecting(receiver: CacheIndex, request: str, number: int = 7) -> list[int]:
    """Blocks for a request that is to come."""
    receiver.match(request, prompt(number))
    return receiver.allocate(request, 2).blocks


def send_to(sender: CacheIndex, request: str, blocks: list[int]) -> str:
    """A computed request goes to these blocks of `idle`; the transfer."""
    found = sender.match(request, prompt(7))
    sender.allocate(request, 2 - len(found.blocks))
    sender.extend(request, ready=True)
    return sender.send(request, sender.table(request), "idle", blocks).transfer
