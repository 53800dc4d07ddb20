"""Facts that do not fit the state: each is `CorruptState`, and undone it leaves nothing behind.

A damaged or forged history, or a defect of ours, must stop a replica before it hands out somebody else's blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from events.errors import CorruptState
from events.facts import (
    BlocksAllocated,
    BlocksRecycled,
    CopyEvicted,
    EngineJoined,
    EngineLeft,
    EngineLost,
    Fact,
    IndexCreated,
    PathExtended,
    PathReady,
    PoolAdded,
    PrefixMatched,
    RequestReleased,
)
from events.ports import Entry
from statecore.commands import Allocate, Leave, Release
from statecore.evolve import evolve
from statecore.replica import Replica
from tests.unit.given import Machine, extend, join, match, path


def busy() -> Machine:
    """Engines a and b on pool g of 12, gone is gone. r: path 1 2 ready, 3 4 pending, block 4 private; cached: 7 8 9."""
    machine = Machine(join("a", blocks=12), join("b", blocks=None), join("gone", blocks=None), Leave("gone"))
    machine.serve("a", "r", 1, 2)
    machine.do(Allocate("a", "r", 3), extend("a", "r", 1, 2, 3, 4))
    machine.cache("b", 7, 8, 9)
    machine.do(Allocate("a", None, 1), match("b", "empty", 5))
    return machine


UNFIT: dict[str, Fact] = {
    "index created twice": IndexCreated(1, "x"),
    "pool added twice": PoolAdded("g", "gpu", 8),
    "pool of no tier": PoolAdded("h", "disk", 8),
    "pool of no blocks": PoolAdded("h", "gpu", 0),
    "pool of negative blocks": PoolAdded("h", "gpu", -1),
    "joined while alive": EngineJoined("a", 2, "g", None, 1, True),
    "joined with an old session": EngineJoined("gone", 1, "g", None, 1, True),
    "joined with a session too high": EngineJoined("gone", 3, "g", None, 1, True),
    "joined a pool that is not": EngineJoined("new", 1, "nowhere", None, 1, True),
    "left without joining": EngineLeft("new", 1),
    "left twice": EngineLeft("gone", 1),
    "left in another session": EngineLeft("a", 2),
    "lost twice": EngineLost("gone", 1, "a new life of the engine began"),
    "matched by nobody": PrefixMatched("new", "q", 0, 0, 1),
    "matched by the dead": PrefixMatched("gone", "q", 0, 0, 1),
    "matched while alive": PrefixMatched("a", "r", 0, 0, 1),
    "matched at no node": PrefixMatched("a", "q", 99, 1, 1),
    "matched too deep": PrefixMatched("a", "q", 1, 3, 1),
    "matched above the root": PrefixMatched("a", "q", 1, -1, 1),
    "matched at a place not made": PrefixMatched("a", "q", -1, 1, 1),
    "allocated what is taken": BlocksAllocated("a", "r", "g", ((0, 1),)),
    "allocated what is taken in part": BlocksAllocated("a", "r", "g", ((9, 1), (0, 1))),
    "allocated what is not": BlocksAllocated("a", "r", "g", ((12, 1),)),
    "allocated twice in one fact": BlocksAllocated("a", None, "g", ((9, 1), (9, 1))),
    "allocated in no pool": BlocksAllocated("a", "r", "h", ((0, 1),)),
    "allocated to nobody": BlocksAllocated("a", "q", "g", ((9, 1),)),
    "allocated by the dead": BlocksAllocated("gone", None, "g", ((9, 1),)),
    "recycled a tree's block": BlocksRecycled("a", "r", "g", ((0, 1),)),
    "recycled twice in one fact": BlocksRecycled("a", "r", "g", ((4, 1), (4, 1))),
    "recycled somebody else's": BlocksRecycled("a", None, "g", ((4, 1),)),
    "recycled without holding any": BlocksRecycled("b", None, "g", ((4, 1),)),
    "recycled by no request": BlocksRecycled("a", "q", "g", ((4, 1),)),
    "extended elsewhere": PathExtended("a", "r", 3, path(9), ((4, 1),), ()),
    "extended without blocks": PathExtended("b", "empty", 0, path(5), (), ()),
    "extended with other blocks": PathExtended("a", "r", 4, path(9), ((5, 1),), ()),
    "extended by more than is private": PathExtended("a", "r", 4, path(9, 10), ((4, 2),), ()),
    "extended by no request": PathExtended("a", "q", 0, path(9), ((4, 1),), ()),
    "extended as if it were double": PathExtended("a", "r", 4, path(9), (), ((4, 1),)),
    "ready below its end": PathReady("a", "r", 5),
    "ready to nothing": PathReady("a", "r", 0),
    "ready to less than nothing": PathReady("a", "r", -1),
    "ready of no request": PathReady("a", "q", 1),
    "released twice": RequestReleased("a", "q", ()),
    "released and freed too little": RequestReleased("a", "r", ()),
    "released and freed others": RequestReleased("a", "r", ((9, 1),)),
    "released by the dead": RequestReleased("gone", "r", ()),
    "evicted from no pool": CopyEvicted("h", 3, 3, ((7, 1),)),
    "evicted at no node": CopyEvicted("g", 99, 1, ((7, 1),)),
    "evicted inside a run": CopyEvicted("g", 3, 2, ((6, 1),)),
    "evicted other blocks": CopyEvicted("g", 3, 3, ((6, 1),)),
    "evicted more than there is": CopyEvicted("g", 3, 3, ((5, 4),)),
    "evicted what is pinned": CopyEvicted("g", 1, 2, ((1, 1),)),
    "evicted what is pending": CopyEvicted("g", 2, 4, ((3, 1),)),
    "evicted the root": CopyEvicted("g", 0, 0, ((3, 1),)),
}


@pytest.mark.parametrize("fact", UNFIT.values(), ids=UNFIT.keys())
def test_a_fact_that_does_not_fit(fact: Fact) -> None:
    """A broken history goes on, and two requests write into one block."""
    machine = busy()
    before = machine.replica.digest()

    with pytest.raises(CorruptState):
        evolve(machine.state, fact)
    machine.replica.undo()

    assert machine.replica.digest() == before
    machine.must_be_sound()
    assert machine.do(Release("a", "r"))


@pytest.mark.parametrize("fact", UNFIT.values(), ids=UNFIT.keys())
def test_an_entry_that_does_not_fit_is_named_and_changes_nothing(fact: Fact) -> None:
    """The replica is half changed after a broken entry, or nobody learns which entry it was."""
    machine = busy()
    before = machine.replica.digest()
    base = machine.replica.base
    fits = PrefixMatched("b", "new", 0, 0, 1)
    entry = Entry(base.position + 1, "bad", base.commit_id, "a", 1, 0, (fits, fact))

    with pytest.raises(CorruptState, match=f"at position {base.position + 1}") as raised:
        machine.replica.apply(entry)

    assert raised.value.position == base.position + 1
    assert machine.replica.digest() == before


class Unheard:
    """A fact of another release."""


def test_a_fact_nobody_knows() -> None:
    """A newer release's fact is skipped in silence."""
    with pytest.raises(CorruptState, match="does not fit"):
        evolve(busy().state, Unheard())  # type: ignore[arg-type]


def test_extending_over_what_another_engine_computes() -> None:
    """A forged fact pins blocks that nobody may ever fill."""
    machine = busy()
    machine.do(Allocate("b", "empty", 4))

    with pytest.raises(CorruptState, match="nobody has filled"):
        evolve(machine.state, PathExtended("b", "empty", 0, path(1, 2, 3, 4), (), ((9, 3), (0, 1))))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda entry: attrs.evolve(entry, position=entry.position + 1), "entries are missing"),
        (lambda entry: attrs.evolve(entry, position=entry.position - 1), "cannot follow"),
        (lambda entry: attrs.evolve(entry, previous="somebody else's"), "diverged"),
    ],
)
def test_an_entry_out_of_order(change: Callable[[Entry], Entry], reason: str) -> None:
    """A gap in the history, or another history, goes unnoticed."""
    machine = busy()
    base = machine.replica.base
    entry = Entry(base.position + 1, "next", base.commit_id, "a", 1, 0, (PrefixMatched("b", "new", 0, 0, 1),))
    before = machine.replica.digest()

    with pytest.raises(CorruptState, match=reason):
        machine.replica.apply(change(entry))

    assert machine.replica.digest() == before
    machine.replica.apply(entry)
    assert machine.replica.base.commit_id == "next"


def test_entries_seen_before_are_skipped() -> None:
    """A repeated reply of the log stops the replica."""
    machine = busy()
    base = machine.replica.base
    entry = Entry(base.position + 1, "next", base.commit_id, "a", 1, 0, (PrefixMatched("b", "new", 0, 0, 1),))

    machine.replica.apply_all([entry, entry])
    digest = machine.replica.digest()
    machine.replica.apply_all([entry])

    assert machine.replica.digest() == digest


def test_the_first_entry_must_begin_the_history() -> None:
    """A log whose beginning was trimmed is replayed as if it were whole."""
    entry = Entry(2, "x", "y", "a", 1, 0, (IndexCreated(1, "x"),))

    with pytest.raises(CorruptState, match="trimmed"):
        Replica().apply(entry)


# --- what it once did not check -------------------------------------------------------------------------------------


def test_blocks_of_a_foreign_pool_become_private() -> None:
    """A request's table mixes ids of two memories."""
    machine = busy()
    machine.do(join("c", pool="h", blocks=4))

    with pytest.raises(CorruptState):
        evolve(machine.state, BlocksAllocated("a", "r", "h", ((0, 1),)))


def test_matching_what_another_engine_computes() -> None:
    """A forged or buggy match hands out blocks whose bytes are not there."""
    machine = busy()

    with pytest.raises(CorruptState):
        evolve(machine.state, PrefixMatched("b", "q", 2, 4, 4))


def test_the_reason_can_be_read() -> None:
    """One broken entry writes megabytes into the log file of every process."""
    unfit = PathExtended("nobody", "r", 0, bytes(16 * 10_000), ((0, 10_000),), ())

    with pytest.raises(CorruptState) as raised:
        evolve(busy().state, unfit)

    assert len(str(raised.value)) < 1000
