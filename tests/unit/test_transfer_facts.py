"""What facts about transfers do to the state, and those that do not fit it: `CorruptState`, and undone without a trace.

Stories in `tests/golden` tell the lives of copies; here are the edges an engine never sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from events.errors import CorruptState
from events.facts import (
    BlockRanges,
    BlocksAllocated,
    EngineJoined,
    Fact,
    PathExtended,
    PathReady,
    PolicyChosen,
    PrefixMatched,
    TransferCancelled,
    TransferFinished,
    TransferStarted,
)
from events.ports import Entry
from statecore.commands import Allocate, CancelTransfer, Leave, MarkReady, Release
from statecore.evolve import evolve
from statecore.invariants import violations
from tests.unit.given import Machine, extend, join, match, path

OUT = TransferStarted("a:0", "swap_out", "a", None, 1, 0, 4, "g", ((0, 4),), "c", ((0, 4),))
"""The path 1 2 3 4, cached in pool g as node 1, leaves for the host."""


def cached() -> Machine:
    """Pools g of 8 and c of 6. Cached in g: 1 2 3 4 (node 1); request r of a has 7 (ready) and 8 (pending)."""
    machine = Machine(
        join("a", host=6), join("gone", blocks=None, host=6), Leave("gone"), join("b", pool="h", blocks=4)
    )
    machine.cache("a", 1, 2, 3, 4)
    machine.serve("a", "r", 7)
    machine.do(Allocate("a", "r", 1), extend("a", "r", 7, 8))
    return machine


def moving() -> Machine:
    """The path 1 2 3 4 is in the host only; request s of a has blocks 1 … 3 on their way back (a:1)."""
    machine = Machine(join("a", host=6))
    machine.swap_out("a", 1, 2, 3, 4)
    machine.fetch("a", "s", 1, 2, 3, 4, limit=3)
    return machine


def test_a_start_pins_the_source_and_takes_the_destination() -> None:
    """E-09, E-10: a block is read or written by a worker while it is given to somebody else."""
    machine = cached()

    machine.apply(OUT)

    node = machine.state.nodes[1]
    source, destination = node.copies["g"], node.copies["c"]
    assert (source.refs, source.leaving, source.pending) == (1, "a:0", None)
    assert (destination.refs, destination.filling, destination.pending) == (0, "a:0", "a")
    assert list(machine.state.pools["c"].free) == [(4, 2)]
    assert machine.state.pools["g"].unpinned == 0
    assert machine.state.engines["a"].transfers == 1


def test_what_is_being_written_is_never_given_away() -> None:
    """E-10: the destination of a transfer is allocated again before the copy is done."""
    machine = moving()
    machine.do(Allocate("a", None, 5))

    given = machine.state.engines["a"].held["g"]
    assert list(given) == [(3, 5)]
    machine.do(CancelTransfer("a", "a:1", "changed my mind"))
    assert machine.state.pools["g"].free.total == 0, "a worker may still write blocks 0 … 2"
    machine.finish("a:1")
    assert list(machine.state.pools["g"].free) == [(0, 3)]


@pytest.mark.parametrize("ok", [True, False])
def test_a_split_in_flight_ends_like_the_whole(ok: bool) -> None:
    """E-09: a run is split while it moves, and half of it stays locked, or is freed twice."""
    whole, cut = cached(), cached()
    for machine in (whole, cut):
        machine.apply(OUT)
    cut.do(match("a", "x", 1, 2))
    cut.do(Release("a", "x"))
    assert len(cut.state.nodes) == len(whole.state.nodes) + 1

    for machine in (whole, cut):
        machine.finish("a:0", ok=ok)

    for name in ("g", "c"):
        one, other = whole.state.pools[name], cut.state.pools[name]
        assert (list(one.free), one.unpinned, one.arrived) == (list(other.free), other.unpinned, other.arrived)
    assert whole.state.transfers == cut.state.transfers == {}


def test_a_finish_nobody_knows_is_counted() -> None:
    """E-11, E-32: a late or second result frees blocks again, or stops the replica."""
    machine = moving()
    machine.finish("a:1")
    before = [(pool.name, list(pool.free), pool.unpinned, pool.arrived) for pool in machine.state.pools.values()]

    machine.finish("a:1")
    machine.finish("a:1", ok=False)
    machine.finish("nobody:7")
    machine.apply(TransferCancelled("a:1", "too late"))

    assert machine.state.ignored_finishes == 4
    after = [(pool.name, list(pool.free), pool.unpinned, pool.arrived) for pool in machine.state.pools.values()]
    assert after == before


def test_an_old_result_is_not_taken_for_a_new_transfer() -> None:
    """E-11: the same blocks leave again while the old result is outstanding (ABA)."""
    machine = cached()
    machine.apply(OUT)
    machine.do(CancelTransfer("a", "a:0", "changed my mind"))
    machine.do(Allocate("a", None, 4))
    assert set(machine.state.transfers) == {"a:0", "a:1"}

    machine.finish("a:0")

    assert set(machine.state.transfers) == {"a:1"}
    copies = [node.copies["g"] for node in machine.state.nodes.values() if "c" in node.copies]
    assert [copy.leaving for copy in copies] == ["a:1"]


def test_a_cancel_that_lost_the_race_is_counted() -> None:
    """E-13: the engine cancels what a worker has just finished, and the replica stops."""
    machine = cached()
    machine.apply(OUT)
    machine.do(CancelTransfer("a", "a:0", "one"))

    machine.apply(TransferCancelled("a:0", "two"))

    assert machine.state.ignored_finishes == 1
    assert machine.state.transfers["a:0"].quarantine == ((0, 4),)


@pytest.mark.parametrize("ok", [True, False])
def test_a_finish_that_is_undone_leaves_no_trace(ok: bool) -> None:
    """A replica that undoes a finish (another entry of the reply was broken) goes on with a state nobody else has."""
    for make in (cached, moving):
        machine = make()
        if make is cached:
            machine.apply(OUT)
        (transfer,) = machine.state.transfers
        before = machine.replica.digest()

        for fact in (TransferFinished(transfer, ok, ""), TransferCancelled(transfer, "")):
            machine.replica.redo([fact])
            assert violations(machine.state) == []
            machine.replica.undo()

            assert machine.replica.digest() == before
            machine.must_be_sound()


def test_undone_starts_leave_no_trace() -> None:
    """E-51: a step that lost its race keeps blocks reserved for transfers nobody will make."""
    machine = cached()
    before = machine.replica.digest()

    for _ in range(3):
        machine.replica.propose(Allocate("a", None, 5))
        assert machine.state.transfers
        machine.replica.undo()

        assert machine.replica.digest() == before
        machine.must_be_sound()


# --- what does not fit ----------------------------------------------------------------------------------------------


def out(
    source_blocks: BlockRanges = ((0, 4),), destination_blocks: BlockRanges = ((0, 4),), **changes: Any
) -> TransferStarted:
    return attrs.evolve(OUT, source_blocks=source_blocks, destination_blocks=destination_blocks, **changes)


UNFIT: dict[str, Fact] = {
    "of no kind": out(kind="send"),
    "of another number": out(transfer="a:1"),
    "of another engine's number": out(transfer="b:0"),
    "by nobody": out(engine="new", transfer="new:0"),
    "by the dead": out(engine="gone", transfer="gone:0"),
    "from no pool": out(source="nowhere"),
    "to no pool": out(destination="nowhere"),
    "to itself": out(destination="g"),
    "from a pool that does not hold it": out(source="h"),
    "at no node": out(node=99),
    "at a place not made": out(node=-1),
    "too deep": out(end=5),
    "of other blocks": out(source_blocks=((1, 4),)),
    "of blocks in another order": out(source_blocks=((2, 2), (0, 2))),
    "of more blocks": out(source_blocks=((0, 5),)),
    "to fewer blocks": out(destination_blocks=((0, 3),)),
    "to more blocks": out(destination_blocks=((0, 5),)),
    "to blocks that are not there": out(destination_blocks=((3, 4),)),
    "to a block twice": out(destination_blocks=((0, 3), (0, 1))),
    "of what is pending": out(node=3, start=0, end=2, source_blocks=((4, 2),), destination_blocks=((0, 2),)),
    "of nothing": out(start=4, end=4, source_blocks=(), destination_blocks=()),
    "from above the root": out(start=-1),
    "a swap-in for nobody": out(kind="swap_in"),
    "a swap-in behind private blocks": out(kind="swap_in", request="r"),
    "joined a host pool that is not": EngineJoined("new", 1, "g", "nowhere", 1, True),
    "joined with no ranks": EngineJoined("new", 1, "g", "c", 0, True),
    "a policy of no name": PolicyChosen("write_back_later", 0, 0),
    "a policy above 100 %": PolicyChosen("write_back", 50, 101),
    "a policy upside down": PolicyChosen("write_back", 50, 40),
    "a policy below nothing": PolicyChosen("write_back", -1, 40),
    "host blocks for a request": BlocksAllocated("a", "r", "c", ((0, 1),)),
}


@pytest.mark.parametrize("fact", UNFIT.values(), ids=UNFIT.keys())
def test_an_entry_that_does_not_fit_is_named_and_changes_nothing(fact: Fact) -> None:
    """A forged or damaged history moves blocks nobody gave, and every replica follows."""
    machine = cached()
    before = machine.replica.digest()
    base = machine.replica.base
    fits = PrefixMatched("b", "new", 0, 0, 1)

    with pytest.raises(CorruptState, match=f"at position {base.position + 1}"):
        machine.replica.apply(Entry(base.position + 1, "bad", base.commit_id, "a", 1, 0, (fits, fact)))

    assert machine.replica.digest() == before


UNFIT_IN_FLIGHT: dict[str, Callable[[Machine], Fact]] = {
    "leaving twice": lambda _: attrs.evolve(OUT, transfer="a:1", destination_blocks=((4, 2), (0, 2))),
    "starting twice": lambda _: OUT,
}


@pytest.mark.parametrize("make", UNFIT_IN_FLIGHT.values(), ids=UNFIT_IN_FLIGHT.keys())
def test_a_second_transfer_of_the_same_copy_does_not_fit(make: Callable[[Machine], Fact]) -> None:
    """E-07, E-32: two transfers read one block and each drops it."""
    machine = cached()
    machine.apply(OUT)
    before = machine.replica.digest()

    with pytest.raises(CorruptState):
        machine.replica.redo([make(machine)])

    assert machine.replica.digest() == before


def test_growing_a_path_that_is_being_filled_does_not_fit() -> None:
    """E-31: blocks are computed, and published, behind bytes that have not arrived."""
    machine = moving()
    machine.do(Allocate("a", "s", 1))

    with pytest.raises(CorruptState, match="being filled"):
        evolve(machine.state, PathExtended("a", "s", 3, path(1, 2, 3, 9)[48:], ((3, 1),), ()))


def test_readiness_of_a_path_that_is_being_filled_does_not_fit() -> None:
    """E-31: a forged or buggy fact publishes bytes that have not arrived."""
    machine = moving()
    assert machine.replica.propose(MarkReady("a", "s")) == []

    with pytest.raises(CorruptState):
        evolve(machine.state, PathReady("a", "s", 3))
