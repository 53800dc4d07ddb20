"""What a match fetches from the host, who may use it meanwhile, and what is left when it does not come."""

from __future__ import annotations

from itertools import permutations

import pytest

from events.facts import CopyEvicted, PathExtended, PrefixMatched, TransferStarted
from statecore.commands import Allocate, CancelTransfer, Leave, MarkReady, Release
from statecore.decide import decide
from statecore.rejections import PathNotFilled, UnknownTransfer
from tests.unit.given import Machine, bring_in, extend, join, match


def hosted(*tokens: int, blocks: int = 8, host: int = 8) -> Machine:
    """The path is in the host pool, the GPU pool is empty."""
    machine = Machine(join("a", blocks=blocks, host=host))
    machine.swap_out("a", *tokens)
    return machine


def prefix_is_whole(machine: Machine, engine: str, request: str) -> bool:
    """Each block of the request's table stands where the tree says, in token order."""
    found = machine.state.engines[engine].requests[request]
    table = machine.table(engine, request)
    node = found.leaf
    expected: list[int] = []
    while node.parent is not None:
        copy = node.copies["g"]
        expected = [*[start + at for start, count in copy.blocks for at in range(count)], *expected]
        node = node.parent
    return table[: len(expected)] == expected


# --- what is fetched ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_gpu", range(6))
def test_gpu_hits_then_host_hits_in_token_order(in_gpu: int) -> None:
    """E-17: device ids first, host ids appended: the table is not in token order."""
    machine = hosted(1, 2, 3, 4, 5)
    machine.do(Allocate("a", None, 2))
    if in_gpu:
        machine.fetch("a", "first", 1, 2, 3, 4, 5, limit=in_gpu)
        machine.finish("a:1")

    facts = machine.fetch("a", "r", 1, 2, 3, 4, 5, 6)

    started = [fact for fact in facts if isinstance(fact, TransferStarted)]
    assert [fact.depth for fact in facts if isinstance(fact, PrefixMatched)] == [in_gpu]
    assert [(fact.start, fact.end) for fact in started] == ([(in_gpu, 5)] if in_gpu < 5 else [])
    assert machine.table("a", "r") == [2, 3, 4, 5, 6]
    for transfer in list(machine.state.transfers):
        machine.finish(transfer)
    assert machine.table("a", "r") == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_parts_that_arrive_in_any_order_make_one_table(order: tuple[int, ...]) -> None:
    """E-17: three transfers of one path, finished in every order."""
    machine = hosted(1, 2, 3, 4, 5, 6)
    for request, limit in (("r1", 2), ("r2", 4), ("r3", 6)):
        machine.fetch("a", request, 1, 2, 3, 4, 5, 6, limit=limit)
    transfers = list(machine.state.transfers)
    assert len(transfers) == 3

    for at in order:
        machine.finish(transfers[at])
        assert machine.table("a", "r3") == [0, 1, 2, 3, 4, 5]

    assert prefix_is_whole(machine, "a", "r3")
    assert machine.do(MarkReady("a", "r3")) == []


@pytest.mark.parametrize("broken", range(3))
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_one_part_that_fails_cuts_every_path_over_it(order: tuple[int, ...], broken: int) -> None:
    """E-12, E-13: a path counts blocks that never came: a table that is too long, or in the wrong order."""
    machine = hosted(1, 2, 3, 4, 5, 6)
    for request, limit in (("r1", 2), ("r2", 4), ("r3", 6)):
        machine.fetch("a", request, 1, 2, 3, 4, 5, 6, limit=limit)
    transfers = list(machine.state.transfers)

    for at in order:
        machine.finish(transfers[at], ok=at != broken)

    left = 2 * broken
    for request, had in (("r1", 2), ("r2", 4), ("r3", 6)):
        assert machine.table("a", request) == list(range(min(left, had)))
    assert machine.state.transfers == {}
    assert machine.pool("a").free.total == 8 - left
    machine.do(Release("a", "r1"), Release("a", "r2"), Release("a", "r3"))
    assert [
        fact.end for fact in machine.fetch("a", "again", 1, 2, 3, 4, 5, 6) if isinstance(fact, TransferStarted)
    ] == [6]


def test_a_limit_is_a_limit_for_both_tiers() -> None:
    """A block that must be computed again, for its logits, is fetched."""
    machine = hosted(1, 2, 3, 4)

    machine.fetch("a", "r", 1, 2, 3, 4, limit=3)

    assert machine.table("a", "r") == [0, 1, 2]
    machine.fetch("a", "none", 1, 2, 3, 4, limit=0)
    assert machine.table("a", "none") == []


def test_clean_copies_make_room_for_a_swap_in() -> None:
    """A swap-in into a pool full of copies that the host holds too brings nothing."""
    machine = hosted(1, 2, 3, 4, blocks=4)
    machine.fetch("a", "r", 1, 2, 3, 4)
    machine.finish("a:1")
    machine.do(Release("a", "r"))
    machine.do(join("b", pool="h", blocks=4, host=8))
    machine.swap_out("b", 6, 7, 8)

    facts = machine.fetch("a", "s", 6, 7, 8)

    assert [type(fact) for fact in facts] == [PrefixMatched, CopyEvicted, TransferStarted]
    assert machine.table("a", "s") == [1, 2, 3]
    assert machine.pool("a").evicted == 3, "no more than was needed"


def test_a_swap_in_does_not_drop_what_is_not_in_the_host() -> None:
    """To fetch one prefix another is lost."""
    machine = hosted(1, 2, 3, 4, blocks=4)
    machine.cache("a", 6, 7, 8)

    machine.fetch("a", "r", 1, 2, 3, 4)

    assert len(machine.table("a", "r")) == 1
    assert len(machine.would(match("a", "s", 6, 7, 8))) == 1
    assert machine.pool("a").evicted == 0


def test_only_what_continues_the_path_is_fetched() -> None:
    """E-16: a suffix whose beginning is in no tier is fetched, and nobody can reach it."""
    machine = hosted(1, 2, 3, 4, host=4)
    machine.do(join("b", pool="h", blocks=4, host=4))
    machine.cache("b", 9)
    machine.do(Allocate("b", None, 4))  # the host gives up block 4 of the path
    machine.finish("b:0")

    machine.fetch("a", "r", 1, 2, 3, 4)
    machine.fetch("a", "s", 2, 3)

    assert len(machine.table("a", "r")) == 3
    assert machine.table("a", "s") == []


def test_nothing_is_fetched_behind_blocks_that_are_being_computed() -> None:
    """A transfer fills blocks behind some that may never be."""
    machine = hosted(1, 2, 3, 4)
    machine.fetch("a", "r", 1, 2, 3, 4, limit=0)
    machine.do(Allocate("a", "r", 2), extend("a", "r", 1, 2))
    assert machine.state.nodes

    facts = machine.fetch("a", "s", 1, 2, 3, 4)

    assert [type(fact) for fact in facts] == [PrefixMatched]
    assert len(machine.table("a", "s")) == 2


def test_what_is_on_its_way_out_is_not_fetched() -> None:
    """E-31: a host copy that is still being written is read."""
    machine = Machine(join("a", host=8), join("b", pool="h", blocks=8, host=8))
    machine.cache("a", 1, 2, 3)
    machine.do(Allocate("a", None, 8))

    machine.fetch("b", "r", 1, 2, 3)
    assert machine.table("b", "r") == []
    machine.finish("a:0", ok=False)
    machine.fetch("b", "s", 1, 2, 3)
    assert machine.table("b", "s") == []


# --- who may use it -------------------------------------------------------------------------------------------------


def test_filling_copies_are_for_their_engine_only() -> None:
    """E-31: an engine that shares the GPU pool computes with blocks that have not arrived."""
    machine = hosted(1, 2, 3, 4)
    machine.do(join("b", blocks=None, host=8), join("c", blocks=None))
    machine.fetch("a", "r", 1, 2, 3, 4)

    for engine in ("b", "c"):
        machine.fetch(engine, "s", 1, 2, 3, 4)
        assert machine.table(engine, "s") == []
        machine.do(Release(engine, "s"))
    machine.finish("a:1")
    for engine in ("b", "c"):
        machine.fetch(engine, "s", 1, 2, 3, 4)
        assert len(machine.table(engine, "s")) == 4


def test_a_path_that_is_being_filled_does_not_grow() -> None:
    """E-31: blocks are computed behind bytes that have not arrived."""
    machine = hosted(1, 2, 3, 4)
    machine.fetch("a", "r", 1, 2, 3, 4)
    machine.do(Allocate("a", "r", 1))

    refused = machine.refuses(extend("a", "r", 1, 2, 3, 4, 5), PathNotFilled, "'r'", "'a:1'")
    assert (refused.request, refused.transfer) == ("r", "a:1")
    machine.refuses(extend("a", "r", 1, 2), PathNotFilled)
    machine.finish("a:1")
    assert len(machine.do(extend("a", "r", 1, 2, 3, 4, 5))) == 1


def test_who_computes_what_is_being_fetched_keeps_it_private() -> None:
    """Two requests, one computes what the other fetches: the path of the first counts blocks that may not come."""
    machine = hosted(1, 2, 3)
    machine.fetch("a", "computes", 1, 2, 3, limit=0)
    machine.do(Allocate("a", "computes", 3))
    machine.fetch("a", "fetches", 1, 2, 3)
    machine.do(match("a", "later", 9))

    assert machine.do(extend("a", "computes", 1, 2, 3)) == []
    machine.finish("a:1")
    facts = machine.do(extend("a", "computes", 1, 2, 3))

    assert [fact.duplicates for fact in facts if isinstance(fact, PathExtended)] == [((0, 3),)]
    assert machine.table("a", "computes") == [0, 1, 2]
    assert machine.table("a", "fetches") == [3, 4, 5]


def test_a_released_request_lets_its_swap_in_arrive() -> None:
    """E-25: the blocks of a swap-in belong to nobody after its request ended."""
    machine = hosted(1, 2, 3, 4)
    machine.fetch("a", "r", 1, 2, 3, 4)
    machine.do(Release("a", "r"))
    assert machine.pool("a").free.total == 4

    machine.finish("a:1")

    assert machine.pool("a").unpinned == 4
    machine.fetch("a", "s", 1, 2, 3, 4)
    assert machine.table("a", "s") == [0, 1, 2, 3]


@pytest.mark.parametrize("ok", [True, False])
def test_an_engine_that_ends_while_blocks_are_on_their_way(ok: bool) -> None:
    """E-25: an engine dies and its transfers keep blocks of both pools for ever."""
    machine = hosted(1, 2, 3, 4)
    machine.cache("a", 7, 8)
    machine.fetch("a", "r", 1, 2, 3, 4)
    machine.do(Allocate("a", None, 4))
    assert len(machine.state.transfers) == 2
    machine.do(Leave("a"))
    for transfer in list(machine.state.transfers):
        machine.finish(transfer, ok=ok)

    machine.do(join("a", host=8))
    assert machine.pool("a").free.total + machine.pool("a").unpinned == 8
    assert machine.state.pools["c"].free.total + machine.state.pools["c"].unpinned == 8
    machine.refuses(CancelTransfer("a", "a:1", "mine once"), UnknownTransfer)


# --- what is wrong --------------------------------------------------------------------------------------------------


def test_a_swap_in_fails_above_a_copy_that_is_being_swapped_out() -> None:
    """E-09, E-13: the finish does not fit the state: `CorruptState` in every replica, at the same position, for ever."""
    machine = Machine(join("a", blocks=8, host=4), join("b", pool="h", blocks=2, host=4))
    machine.swap_out("a", 1, 2, 3, 4)
    machine.fetch("a", "r1", 1, 2, 3, 4, limit=2)  # a:1 brings 1 2
    machine.fetch("a", "r2", 1, 2, 3, 4)  # a:2 brings 3 4
    machine.finish("a:2")
    machine.do(Release("a", "r1"), Release("a", "r2"))
    machine.swap_out("b", 7, 8)  # the host gives up its copy of 3 4
    machine.do(Allocate("a", None, 6))
    assert [fact.transfer for fact in machine.started() if fact.kind == "swap_out"][-1] in machine.state.transfers

    machine.finish("a:1", ok=False)


@pytest.mark.parametrize("ok", [True, False])
def test_a_next_life_without_a_host_pool_waits_for_the_transfers_of_the_last(ok: bool) -> None:
    """E-31: blocks are computed behind bytes that have not arrived, and published; if they never come: `CorruptState`."""
    machine = hosted(1, 2, 3, 4)
    machine.fetch("a", "old", 1, 2, 3, 4)
    machine.do(join("a"))
    machine.do(match("a", "r", 1, 2, 3, 4, 5), Allocate("a", "r", 1))
    if machine.table("a", "r")[:4] == [0, 1, 2, 3]:
        machine.refuses(extend("a", "r", 1, 2, 3, 4, 5), PathNotFilled)

    machine.finish("a:1", ok=ok)
    machine.must_be_sound()


def test_commands_of_an_engine_without_a_host_fetch_nothing() -> None:
    """A host pool of none: everything still works."""
    machine = Machine(join("a"))
    machine.cache("a", 1, 2)
    machine.do(match("a", "r", 1, 2, 3))

    assert decide(machine.state, bring_in("a", "r", 1, 2, 3)) == []
