"""What a GPU pool gives up when it is short, and where that goes: dropped, swapped out, or nowhere yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from events.facts import BlocksAllocated, CopyEvicted, Fact, TransferStarted
from statecore import ranges
from statecore.commands import Allocate, CancelTransfer, Recycle, Release
from statecore.policy import Policy
from statecore.rejections import PoolExhausted, Rejection
from statecore.tiers import make_room, outgoing_blocks, soon_droppable_blocks, transfers_of
from tests.unit.given import Machine, extend, join, match


def left_the(pool: str, facts: Sequence[Fact]) -> int:
    """Blocks that these facts take from a pool's copies, now or when their transfers are done."""
    dropped = sum(ranges.count(fact.blocks) for fact in facts if isinstance(fact, CopyEvicted) and fact.pool == pool)
    moved = [fact for fact in facts if isinstance(fact, TransferStarted) and fact.source == pool]
    return dropped + sum(ranges.count(fact.source_blocks) for fact in moved)


def given(facts: Sequence[Fact]) -> int:
    return sum(ranges.count(fact.blocks) for fact in facts if isinstance(fact, BlocksAllocated))


# --- the deficit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", range(1, 9))
@pytest.mark.parametrize("clean", [False, True])
def test_the_deficit_goes_and_not_the_need(asked: int, clean: bool) -> None:
    """E-20: a request for eight blocks empties a cache that had six free."""
    machine = Machine(join("a", host=8))
    machine.cache("a", 1, 2, 3)
    machine.cache("a", 5, 6)
    if clean:
        machine.do(Allocate("a", None, 8))
        for transfer in list(machine.state.transfers):
            machine.finish(transfer)
        for request, tokens in (("r", (1, 2, 3)), ("s", (5, 6))):
            machine.fetch("a", request, *tokens)
        for transfer in list(machine.state.transfers):
            machine.finish(transfer)
        machine.do(Release("a", "r"), Release("a", "s"))
    free = machine.pool("a").free.total
    assert free == 3

    facts = machine.do(Allocate("a", None, asked))

    assert left_the("g", facts) == max(0, asked - free)
    assert given(facts) == (asked if clean or asked <= free else 0)
    again = machine.do(Allocate("a", None, asked)) if not given(facts) else []
    assert again == [], "what is leaving counts already"


def test_what_is_leaving_counts_for_a_larger_allocation() -> None:
    """E-20: two requests that wait at the same time evict for each other."""
    machine = Machine(join("a", host=8))
    machine.cache("a", 1, 2, 3, 4)
    machine.cache("a", 5, 6, 7, 8)

    assert left_the("g", machine.do(Allocate("a", None, 3))) == 3
    assert left_the("g", machine.do(Allocate("a", None, 2))) == 0
    assert left_the("g", machine.do(Allocate("a", None, 5))) == 2
    assert outgoing_blocks(machine.state, machine.pool("a")) == 5


def test_what_is_used_again_does_not_count_as_leaving() -> None:
    """E-24: an allocation waits for blocks that a request has rescued, and is never given any."""
    machine = Machine(join("a", host=8))
    machine.cache("a", 1, 2, 3, 4)
    machine.do(Allocate("a", None, 8))
    assert outgoing_blocks(machine.state, machine.pool("a")) == 4

    machine.do(match("a", "r", 1, 2, 3))

    assert outgoing_blocks(machine.state, machine.pool("a")) == 1
    machine.refuses(Allocate("a", None, 6), PoolExhausted, "4 free", "1 evictable")
    assert given(machine.do(Allocate("a", None, 5))) == 0
    machine.finish("a:0")
    assert given(machine.do(Allocate("a", None, 5))) == 5


def test_a_cancelled_transfer_leaves_nothing() -> None:
    """E-24: an allocation waits for blocks that do not leave any more."""
    machine = Machine(join("a", host=8))
    machine.cache("a", 1, 2, 3, 4)
    machine.do(Allocate("a", None, 8))
    machine.do(CancelTransfer("a", "a:0", "no"))

    assert outgoing_blocks(machine.state, machine.pool("a")) == 0
    assert soon_droppable_blocks(machine.state, machine.pool("a")) == 0
    assert left_the("g", machine.do(Allocate("a", None, 8))) == 4


def test_clean_blocks_above_leaving_ones_need_no_transfer() -> None:
    """E-20: while the end of a path is leaving, other prefixes are evicted although its beginning can be dropped."""
    machine = Machine(join("a", host=12))
    machine.swap_out("a", 1, 2, 3, 4)
    machine.fetch("a", "r", 1, 2, 3, 4, 5, 6)
    machine.finish("a:1")
    machine.do(Allocate("a", "r", 2), extend("a", "r", 1, 2, 3, 4, 5, 6))
    machine.do(Release("a", "r"))
    machine.cache("a", 7, 8)

    facts = machine.do(Allocate("a", None, 6))

    assert [type(fact) for fact in facts] == [TransferStarted]
    assert left_the("g", facts) == 2
    assert outgoing_blocks(machine.state, machine.pool("a")) == 2
    assert soon_droppable_blocks(machine.state, machine.pool("a")) == 4
    assert machine.do(Allocate("a", None, 6)) == []
    machine.finish("a:2")
    facts = machine.do(Allocate("a", None, 6))
    assert (left_the("g", facts), given(facts)) == (4, 6)
    assert machine.would(match("a", "x", 7, 8)) != machine.would(match("a", "x", 9, 8)), "7 8 is still cached"


# --- what becomes of a victim ---------------------------------------------------------------------------------------


def test_least_recently_used_leaves_first_and_leaf_before_parent() -> None:
    """E-16: a prefix leaves no earlier than its suffix; what follows each other leaves together."""
    machine = Machine(join("a", host=8))
    machine.cache("a", 1, 2)
    machine.cache("a", 1, 2, 3, 4)
    machine.cache("a", 7, 8)
    engine = machine.state.engines["a"]

    room = make_room(machine.state, engine, 5)

    started = [fact for fact in room.facts if isinstance(fact, TransferStarted)]
    assert [(fact.start, fact.end, fact.source_blocks) for fact in started] == [
        (0, 4, ((0, 4),)),
        (1, 2, ((5, 1),)),
    ]
    assert (room.leaving, room.freed) == (5, [])


def test_making_room_for_nothing() -> None:
    """E-18: a deficit of none, or less, evicts something."""
    machine = Machine(join("a", host=8))
    machine.cache("a", 1, 2)
    engine = machine.state.engines["a"]

    for deficit in (0, -1, -100):
        assert make_room(machine.state, engine, deficit).facts == []


def test_host_blocks_never_become_gpu_blocks() -> None:
    """E-15: a small host pool and a large need: the id of one tier ends up among the free blocks of the other."""
    for host in range(1, 7):
        machine = Machine(join("a", blocks=12, host=host))
        for turn in range(6):
            for tokens in ((1, 2, 3, 4), (1, 2, 7), (8, 9, 10, 11, 12)):
                machine.cache("a", *tokens, request=f"w{turn}")
            for attempt in range(9):
                if given(machine.do(Allocate("a", None, 12 - turn))):
                    break
                for transfer in list(machine.state.transfers):
                    machine.finish(transfer, ok=(attempt + turn) % 2 == 0)
            machine.do(Recycle("a", None, tuple(machine.state.engines["a"].held["g"])))
        assert machine.state.pools["c"].blocks == host


def test_a_full_and_pinned_host_makes_eviction_a_drop() -> None:
    """E-14: the host cannot give blocks, and the eviction ends in an assertion with the GPU blocks lost."""
    machine = Machine(join("a", host=4))
    machine.swap_out("a", 1, 2, 3, 4)
    machine.cache("a", 7, 8)
    machine.fetch("a", "r", 1, 2, 3, 4)
    before = machine.state.pools["c"].evicted

    facts = machine.do(Allocate("a", None, 4))

    assert [type(fact) for fact in facts] == [CopyEvicted, BlocksAllocated]
    assert machine.state.pools["c"].evicted == before
    assert transfers_of(machine.state, "g") == transfers_of(machine.state, "c")
    machine.finish("a:1")
    assert machine.table("a", "r") == [2, 3, 4, 5]


def test_the_host_gives_up_as_much_as_it_takes_in() -> None:
    """E-20 in the host: the copies of everybody go for a swap-out of one block."""
    machine = Machine(join("a", blocks=10, host=10))
    machine.swap_out("a", *range(1, 11))
    machine.cache("a", 20)

    facts = machine.do(Allocate("a", None, 10))

    assert (left_the("g", facts), left_the("c", facts)) == (1, 1)


def test_the_host_gives_up_no_more_than_it_takes_in() -> None:
    """E-20 in the host: a victim that does not fit empties the host pool all the same."""
    machine = Machine(join("a", blocks=12, host=10))
    machine.swap_out("a", *range(1, 11))
    machine.cache("a", 20)
    machine.cache("a", *range(30, 41))

    facts = machine.do(Allocate("a", None, 12))

    arriving = sum(ranges.count(fact.destination_blocks) for fact in facts if isinstance(fact, TransferStarted))
    assert arriving == 1
    assert left_the("c", facts) <= arriving


# --- waiting or refusing --------------------------------------------------------------------------------------------


def busy_with_nobody(kind: str) -> Machine:
    """No request lives; four of the six blocks of the GPU pool are in the hands of one transfer."""
    policy = Policy("write_through") if kind == "write_through" else None
    machine = Machine(join("a", blocks=6, host=4, policy=policy))
    if policy is not None:
        machine.cache("a", 1, 2, 3, 4)
        return machine
    machine.swap_out("a", 1, 2, 3, 4)
    machine.fetch("a", "r", 1, 2, 3, 4)
    if kind == "cancelled":
        machine.do(CancelTransfer("a", "a:1", "no"))
    machine.do(Release("a", "r"))
    return machine


@pytest.mark.parametrize("kind", ["write_through", "swap_in", "cancelled"])
def test_an_allocation_waits_for_blocks_that_only_a_transfer_holds(kind: str) -> None:
    """E-24: "release or preempt a request", and there is none; the blocks are free as soon as the workers report."""
    machine = busy_with_nobody(kind)
    assert not machine.state.engines["a"].requests

    decided = machine.replica.propose(Allocate("a", None, 6))

    assert not isinstance(decided, Rejection)
    assert not any(isinstance(fact, BlocksAllocated) for fact in decided)


@pytest.mark.parametrize("kind", ["write_through", "swap_in", "cancelled"])
def test_after_the_transfer_there_is_room(kind: str) -> None:
    """E-12: a transfer whose outcome nobody waits for keeps its blocks for ever."""
    for ok in (True, False):
        machine = busy_with_nobody(kind)
        (transfer,) = machine.state.transfers
        machine.finish(transfer, ok=ok)

        facts = machine.do(Allocate("a", None, 6))
        for started in list(machine.state.transfers):
            machine.finish(started)

        assert given(facts) == 6 or given(machine.do(Allocate("a", None, 6))) == 6


def test_more_than_all_that_could_leave_is_refused() -> None:
    """E-24: an allocation waits for room that cannot come."""
    machine = Machine(join("a", host=8))
    machine.serve("a", "r", 1, 2, 3)
    machine.cache("a", 5, 6)

    machine.refuses(Allocate("a", None, 6), PoolExhausted, "3 free", "2 evictable")
    assert given(machine.do(Allocate("a", None, 5))) == 0
    machine.refuses(Allocate("a", None, 6), PoolExhausted, "3 free", "2 evictable")


def given_in_the_end(ok: Callable[[int], bool]) -> bool:
    """Whether an allocation that waits is given after some rounds of waiting for what it was told to wait for."""
    machine = Machine(join("a", host=3))
    for tokens in ((1, 2, 3), (1, 2, 4), (5, 6)):
        machine.cache("a", *tokens)
    for attempt in range(20):
        if given(machine.do(Allocate("a", None, 8))):
            return True
        assert machine.state.transfers, "told to wait for nothing"
        for transfer in list(machine.state.transfers):
            machine.finish(transfer, ok=ok(attempt))
    return False


@pytest.mark.parametrize("ok", [lambda _: True, lambda attempt: attempt > 3, lambda attempt: attempt % 2 == 1])
def test_an_allocation_that_waits_is_given_in_the_end(ok: Callable[[int], bool]) -> None:
    """E-12: after some outcome of what it waited for, an allocation waits for nothing, or for ever."""
    assert given_in_the_end(ok)


def test_a_broken_host_tier_does_not_stop_the_engine() -> None:
    """E-12, E-24: every swap-out fails (no room in /dev/shm, say), and blocks nobody needs keep every request waiting."""
    assert given_in_the_end(lambda _: False)
