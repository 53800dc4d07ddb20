"""When copies go to the host: what may be chosen, that it is one choice for the whole index, and what it does."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from events import connect
from events.errors import InvalidInput
from events.facts import BlocksAllocated, CopyEvicted, Fact, PathReady, PolicyChosen, TransferStarted
from statecore import CacheIndex, DifferentIndex, Policy
from statecore.commands import Allocate, MarkReady, Release
from statecore.tiers import reacts
from tests.unit.given import Machine, extend, join, match

THROUGH = Policy("write_through", 0, 0)


def kinds(facts: list[Fact]) -> list[str]:
    return [fact.kind if isinstance(fact, TransferStarted) else type(fact).__name__ for fact in facts]


# --- the door -------------------------------------------------------------------------------------------------------


def test_what_may_be_chosen() -> None:
    """A policy that is in bounds is refused, or recorded as another."""
    assert Policy().fact == PolicyChosen("write_back", 10, 20)
    assert Policy("write_through", 10, 10).fact == PolicyChosen("write_through", 10, 10)
    assert Policy(free_low=0, free_high=0).fact == PolicyChosen("write_back", 0, 0)
    assert Policy(free_low=0, free_high=100).fact == PolicyChosen("write_back", 0, 100)


@pytest.mark.parametrize("write", ["", "write_around", "WRITE_BACK", None, 5, ["write_back"], b"write_back"])
def test_write_policies(write: object) -> None:
    """A misspelt policy is taken for the default."""
    with pytest.raises(InvalidInput, match="one of write_back, write_through, not"):
        Policy(write)  # type: ignore[arg-type]


@pytest.mark.parametrize("percent", [-1, 101, 0.5, "10", None, True, float("nan"), 10**90])
@pytest.mark.parametrize("name", ["free_low", "free_high"])
def test_watermarks_are_percent(name: str, percent: object) -> None:
    """A share of 0.25 is taken for a quarter of a percent."""
    with pytest.raises(InvalidInput, match=name):
        Policy(**{"free_high": 100, name: percent})  # type: ignore[arg-type]


def test_watermarks_in_order() -> None:
    """Swap-outs begin where they should end."""
    with pytest.raises(InvalidInput, match="free_low 30 percent is above free_high 20 percent"):
        Policy(free_low=30, free_high=20)
    with pytest.raises(InvalidInput, match="above free_high 20"):
        Policy(free_low=21)


def test_watermarks_of_numpy() -> None:
    """A number the door lets in ends in an error that is none of ours, and an index that is in doubt."""
    policy = Policy(free_low=np.int64(10), free_high=np.int64(20))
    CacheIndex(connect("memory://"), name="i", engine="a", gpu_blocks=4, cpu_blocks=4, policy=policy)


@pytest.mark.parametrize("policy", ["write_through", {"write": "write_through"}, 5])
def test_a_policy_is_a_policy(policy: object) -> None:
    """A wrong argument ends in an error that is none of ours."""
    with pytest.raises(InvalidInput, match="policy"):
        CacheIndex(connect("memory://"), name="i", engine="a", gpu_blocks=4, cpu_blocks=4, policy=policy)  # type: ignore[arg-type]


def test_two_tiers_are_two_pools() -> None:
    """One name for both pools ends the life in `CorruptState` before it began."""
    with pytest.raises((InvalidInput, DifferentIndex)):
        CacheIndex(connect("memory://"), name="i", engine="a", gpu_pool="p", gpu_blocks=4, cpu_pool="p", cpu_blocks=4)


@pytest.mark.parametrize("blocks", [0, None])
def test_a_host_pool_of_none_is_one_tier(blocks: int | None) -> None:
    """A host of no blocks is refused, or added, or evictions wait for it."""
    connection = connect("memory://")
    index = CacheIndex(connection, name="i", engine="a", gpu_blocks=4, block_size=1, cpu_blocks=blocks, policy=THROUGH)
    index.match("r", [1, 2, 3])
    index.allocate("r", 3)
    index.extend("r", ready=True)
    index.release("r")

    assert index.cpu_pool is None
    assert index.inspect(lambda state: set(state.pools)) == {"gpu:a"}
    answer = index.allocate(None, 4)
    assert (answer.blocks, answer.evicted, answer.waits_for) == ([0, 1, 2, 3], 3, ())
    named = CacheIndex(connection, name="i", engine="b", gpu_blocks=4, block_size=1, cpu_pool="c", cpu_blocks=0)
    assert named.cpu_pool is None


@pytest.mark.parametrize("blocks", [-1, 1.5, "8", True, 2**31 + 1])
def test_sizes_of_host_pools(blocks: object) -> None:
    """A size in bytes, or none at all, becomes a pool."""
    with pytest.raises(InvalidInput, match="cpu_blocks"):
        CacheIndex(connect("memory://"), name="i", engine="a", gpu_blocks=4, cpu_blocks=blocks)  # type: ignore[arg-type]


# --- one choice -----------------------------------------------------------------------------------------------------


def test_a_policy_is_of_the_index() -> None:
    """Two engines of one index write by different rules, and each wonders about the other's transfers."""
    machine = Machine(join("a", host=4, policy=THROUGH))

    refused = machine.refuses(join("b", pool="h", host=4, policy=Policy()), DifferentIndex, "policy", "write_through")
    assert refused.recorded == THROUGH.fact
    machine.do(join("b", pool="h", host=4, policy=THROUGH))
    machine.do(join("c", pool="h", host=4))
    assert (machine.state.write_policy, machine.state.free_low) == ("write_through", 0)
    assert not reacts(Machine(join("a", host=4)).state)
    assert reacts(machine.state)


def test_the_first_host_pool_brings_a_policy_unless_there_is_one() -> None:
    """Nobody chose one, and a full GPU pool has no room for what the host holds."""
    default = Policy().fact

    created = Machine(attrs.evolve(join("a", host=4), first_policy=default))
    assert (created.state.free_low, created.state.policy_chosen) == (10, True)
    later = Machine(join("a"))
    later.do(attrs.evolve(join("b", pool="h", host=4), first_policy=default))
    assert later.state.free_low == 10
    chosen = Machine(join("a", policy=THROUGH))
    chosen.do(attrs.evolve(join("b", pool="h", host=4), first_policy=default))
    assert (chosen.state.write_policy, chosen.state.free_low) == ("write_through", 0)
    assert Machine(attrs.evolve(join("a"), first_policy=default)).state.policy_chosen is False, "there is no host"


def test_host_pools_are_of_one_size_and_tier() -> None:
    """Two engines think differently of how many blocks the host has, or take a GPU for it."""
    machine = Machine(join("a", host=4))

    machine.refuses(join("b", pool="h", host=5), DifferentIndex, "blocks in pool 'c'", 4, 5)
    machine.refuses(join("b", pool="c", blocks=4), DifferentIndex, "pool 'c' in tier", "cpu", "gpu")


# --- write-through --------------------------------------------------------------------------------------------------


def test_ready_is_written_once() -> None:
    """E-04: a block is written again with every call that says ready, or a second transfer reads it."""
    machine = Machine(join("a", host=8, policy=THROUGH))
    machine.do(match("a", "r", 1, 2, 3, 4), Allocate("a", "r", 4))

    assert kinds(machine.do(extend("a", "r", 1, 2), MarkReady("a", "r"))) == [
        "PathExtended",
        "PathReady",
        "write_through",
    ]
    assert kinds(machine.do(extend("a", "r", 1, 2, 3, 4))) == ["PathExtended"]
    assert kinds(machine.do(MarkReady("a", "r"))) == ["PathReady", "write_through"]
    assert machine.do(MarkReady("a", "r")) == []
    assert [(fact.start, fact.end) for fact in machine.started()] == [(0, 2), (2, 4)]
    machine.finish("a:0")
    machine.finish("a:1")
    machine.do(Release("a", "r"))
    assert kinds(machine.do(Allocate("a", None, 8))) == ["CopyEvicted", "CopyEvicted", "BlocksAllocated"]


def test_a_chain_of_runs_is_written_whole() -> None:
    """A path that other paths have cut goes in one transfer."""
    machine = Machine(join("a", host=8, policy=THROUGH))
    machine.do(match("a", "r", 1, 2, 3), Allocate("a", "r", 3), extend("a", "r", 1, 2, 3))
    machine.do(match("a", "s", 1), match("a", "t", 1, 2))

    facts = machine.do(Release("a", "r"))

    assert [(fact.start, fact.end) for fact in facts if isinstance(fact, TransferStarted)] == [(0, 3)]


def test_a_full_host_makes_room_for_what_is_written() -> None:
    """E-14: the host is full and write-through ends, or ends in an assertion."""
    machine = Machine(join("a", blocks=16, host=4, policy=THROUGH))
    machine.cache("a", 1, 2, 3)
    machine.finish("a:0")
    machine.cache("a", 5, 6)
    assert machine.state.pools["c"].evicted == 1
    machine.cache("a", 7, 8, 9)
    assert len(machine.started()) == 2, "a:1 holds two blocks, and no three are left"
    machine.finish("a:1")

    machine.cache("a", 10)
    assert len(machine.started()) == 3


def test_a_small_host_holds_beginnings() -> None:
    """E-16: the host holds the end of a path whose beginning it does not: nobody can fetch it."""
    machine = Machine(join("a", host=2, policy=THROUGH))
    machine.do(match("a", "r", 1, 2, 3, 4), Allocate("a", "r", 4), extend("a", "r", 1, 2, 3, 4))
    machine.do(match("a", "s", 1, 2))

    machine.do(Release("a", "r"))

    assert [(fact.start, fact.end) for fact in machine.started()] == [(0, 2)]


# --- watermarks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(25, 50), (50, 50), (10, 100), (100, 100)])
def test_watermarks(low: int, high: int) -> None:
    """E-20: swap-outs begin too early, go on for ever, or take more than is asked for."""
    machine = Machine(join("a", blocks=16, host=16, policy=Policy(free_low=low, free_high=high)))
    machine.cache("a", *range(1, 13))
    for transfer in list(machine.state.transfers):
        machine.finish(transfer)

    for _ in range(4):
        facts = machine.do(Allocate("a", None, 1))
        leaving = sum(len(range(fact.start, fact.end)) for fact in facts if isinstance(fact, TransferStarted))
        available = machine.pool("a").free.total + leaving
        assert isinstance(facts[0], BlocksAllocated), "there was room, nobody waits"
        if leaving:
            assert (available - leaving) * 100 < 16 * low
        assert available * 100 >= 16 * low or machine.pool("a").unpinned == 0
        assert available * 100 <= max(16 * high + 99, (available - leaving) * 100)
        for transfer in list(machine.state.transfers):
            machine.finish(transfer)


def test_clean_copies_are_not_written_again_by_a_watermark() -> None:
    """E-04: what the host has is written to it again, for ever."""
    machine = Machine(join("a", host=8, policy=Policy("write_through", 50, 100)))
    machine.cache("a", 1, 2, 3, 4)
    machine.finish("a:0")

    facts = machine.do(Allocate("a", None, 2))

    assert kinds(facts) == ["BlocksAllocated"]


def test_an_engine_without_a_host_has_no_watermarks() -> None:
    """An engine of one tier in an index of two starts transfers to nowhere."""
    machine = Machine(join("a", host=8, policy=Policy("write_through", 50, 100)), join("b", pool="h", blocks=4))
    machine.cache("b", 1, 2, 3)

    facts = machine.do(Allocate("b", None, 2))

    assert kinds(facts) == [CopyEvicted.__name__, BlocksAllocated.__name__]
    assert PathReady.__name__ not in kinds(facts)
