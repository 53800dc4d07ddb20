"""What the machine decides: for each command the facts it answers with, given a state.

Refusals are in `test_decide_refusals.py`; whole histories are told in `tests/golden`.
"""

from __future__ import annotations

import attrs
import pytest

from events.facts import (
    BlocksAllocated,
    BlocksRecycled,
    CopyEvicted,
    EngineJoined,
    EngineLeft,
    EngineLost,
    IndexCreated,
    PathExtended,
    PathReady,
    PoolAdded,
    PoolDropped,
    PrefixMatched,
    RequestReleased,
)
from statecore.commands import Allocate, Depose, Leave, MarkReady, Match, Recycle, Release
from statecore.hashing import SCHEME
from statecore.state import request_table
from tests.unit.given import Machine, extend, join, match, path

# --- engines --------------------------------------------------------------------------------------------------------


def test_the_first_engine_creates_index_and_pool() -> None:
    """The first process of a deployment cannot start."""
    assert Machine().would(join("a")) == [
        IndexCreated(1, SCHEME),
        PoolAdded("g", "gpu", 8),
        EngineJoined("a", 1, "g", None, 1, True),
    ]


def test_a_second_engine_joins_a_pool_that_is_there() -> None:
    """Engines of one GPU cannot share its pool."""
    machine = Machine(join("a"))

    assert machine.would(join("b", blocks=None)) == [EngineJoined("b", 1, "g", None, 1, True)]
    assert machine.would(join("b", blocks=8)) == [EngineJoined("b", 1, "g", None, 1, True)]


def test_a_second_engine_brings_a_pool_of_its_own() -> None:
    """An engine with a GPU of its own cannot join an index that others made."""
    machine = Machine(join("a"))

    assert machine.would(join("b", pool="h", blocks=3)) == [
        PoolAdded("h", "gpu", 3),
        EngineJoined("b", 1, "h", None, 1, True),
    ]


def test_a_second_life_ends_the_first_in_the_same_commit() -> None:
    """A restarted process waits for a timeout, or two lives write side by side."""
    machine = Machine(join("a"))

    assert machine.would(join("a")) == [
        EngineLost("a", 1, "a new life of the engine began"),
        EngineJoined("a", 2, "g", None, 1, True),
    ]


def test_a_life_after_one_that_ended_in_order() -> None:
    """A clean restart is taken for a crash."""
    machine = Machine(join("a"), Leave("a"))

    assert machine.would(join("a")) == [EngineJoined("a", 2, "g", None, 1, True)]


def test_a_new_life_may_use_another_pool() -> None:
    """An engine that comes back with another GPU is refused, or its old blocks are lost."""
    machine = Machine(join("a"))
    machine.serve("a", "r", 1, 2)
    machine.do(Allocate("a", None, 2))

    machine.do(join("a", pool="h", blocks=4))

    assert machine.state.pools["g"].free.total == 6
    assert machine.state.engines["a"].gpu_pool == "h"
    machine.do(Allocate("a", None, 4))


def test_leaving() -> None:
    """An engine that stops in order keeps its requests pinned for ever."""
    machine = Machine(join("a"))
    machine.serve("a", "r", 1, 2)

    assert machine.do(Leave("a")) == [EngineLeft("a", 1)]
    assert machine.state.pools["g"].unpinned == 2
    assert machine.state.engines["a"].requests == {}


# --- match ----------------------------------------------------------------------------------------------------------


def test_match_of_nothing() -> None:
    """A cold prompt is refused instead of computed."""
    machine = Machine(join("a"))

    assert machine.would(match("a", "r", 1, 2)) == [PrefixMatched("a", "r", 0, 0, 2)]
    assert machine.would(Match("a", "r", b"", 0)) == [PrefixMatched("a", "r", 0, 0, 0)]


def test_match_of_a_whole_run_a_part_and_more() -> None:
    """Cached blocks are not found, or blocks of another prompt are."""
    machine = Machine(join("a"))
    machine.cache("a", 1, 2, 3)

    assert machine.would(match("a", "r", 1, 2, 3)) == [PrefixMatched("a", "r", 1, 3, 3)]
    assert machine.would(match("a", "r", 1, 2)) == [PrefixMatched("a", "r", 1, 2, 2)]
    assert machine.would(match("a", "r", 1, 2, 3, 4)) == [PrefixMatched("a", "r", 1, 3, 4)]
    assert machine.would(match("a", "r", 1, 2, 9, 3)) == [PrefixMatched("a", "r", 1, 2, 4)]
    assert machine.would(match("a", "r", 2, 3)) == [PrefixMatched("a", "r", 0, 0, 2)]


def test_match_at_most_so_many() -> None:
    """An engine that needs the last block's logits cannot leave it to be computed."""
    machine = Machine(join("a"))
    machine.cache("a", 1, 2, 3)

    assert machine.would(match("a", "r", 1, 2, 3, limit=2)) == [PrefixMatched("a", "r", 1, 2, 3)]
    assert machine.would(match("a", "r", 1, 2, 3, limit=0)) == [PrefixMatched("a", "r", 0, 0, 3)]
    assert machine.would(match("a", "r", 1, 2, 3, limit=99)) == [PrefixMatched("a", "r", 1, 3, 3)]


def test_match_over_several_nodes() -> None:
    """A long conversation, grown turn by turn, is only found to its first turn."""
    machine = Machine(join("a"))
    for end in (2, 4, 6):
        machine.cache("a", *range(1, end + 1))

    (fact,) = machine.would(match("a", "r", *range(1, 8)))

    assert isinstance(fact, PrefixMatched)
    assert fact.depth == 6


def test_match_counts_the_hit() -> None:
    """The hit rate that operators watch is wrong."""
    machine = Machine(join("a"))
    machine.cache("a", 1, 2, 3)
    machine.do(match("a", "r", 1, 2, 3, 4))
    machine.do(match("a", "s", 9))

    engine = machine.state.engines["a"]

    assert (engine.requests_seen, engine.requests_hit) == (3, 1)
    assert (engine.prompt_tokens, engine.matched_tokens) == (3 + 4 + 1, 3)


# --- allocate, recycle ----------------------------------------------------------------------------------------------


def test_allocate_gives_the_lowest_ids() -> None:
    """Two engines that decide the same are given different blocks, and tables fall into fragments."""
    machine = Machine(join("a"))
    machine.do(Allocate("a", None, 5))
    machine.do(Recycle("a", None, ((1, 1), (3, 1))))

    assert machine.would(Allocate("a", None, 4)) == [BlocksAllocated("a", None, "g", ((1, 1), (3, 1), (5, 2)))]


def test_allocate_evicts_the_deficit_only() -> None:
    """E-20: more is thrown away than is missing."""
    machine = Machine(join("a"))
    machine.cache("a", 1, 2, 3, 4, 5, 6)

    assert machine.would(Allocate("a", None, 2)) == [BlocksAllocated("a", None, "g", ((6, 2),))]
    assert machine.would(Allocate("a", None, 3)) == [
        CopyEvicted("g", 1, 6, ((5, 1),)),
        BlocksAllocated("a", None, "g", ((5, 3),)),
    ]


def test_allocate_is_all_or_nothing() -> None:
    """E-50: a part of the blocks is taken and stays taken when the rest is not there."""
    machine = Machine(join("a"))
    machine.serve("a", "r", 1, 2, 3)
    free = machine.state.pools["g"].free.total

    facts = machine.do(Allocate("a", "r", free))

    assert facts == [BlocksAllocated("a", "r", "g", ((3, 5),))]


def test_recycle() -> None:
    """An engine cannot give back what it asked for in advance."""
    machine = Machine(join("a"), match("a", "r", 1))
    machine.do(Allocate("a", "r", 4))

    assert machine.do(Recycle("a", "r", ((2, 2),))) == [BlocksRecycled("a", "r", "g", ((2, 2),))]
    assert machine.state.engines["a"].requests["r"].private == ((0, 2),)
    assert machine.do(Recycle("a", "r", ((1, 1), (0, 1)))) == [BlocksRecycled("a", "r", "g", ((0, 2),))]
    assert machine.state.pools["g"].free.total == 8


# --- extend, ready --------------------------------------------------------------------------------------------------


def test_extend_makes_pending_blocks() -> None:
    """Blocks that are not computed yet look computed."""
    machine = Machine(join("a"), match("a", "r", 1, 2))
    machine.do(Allocate("a", "r", 3))

    facts = machine.do(extend("a", "r", 1, 2))

    assert facts == [PathExtended("a", "r", 0, path(1, 2), ((0, 2),), ())]
    assert machine.state.nodes[1].copies["g"].pending == "a"
    assert machine.state.engines["a"].requests["r"].private == ((2, 1),)


def test_extend_over_what_is_there_keeps_own_blocks_as_duplicates() -> None:
    """E-02, E-03: the second to compute a block overwrites the first, or loses its own."""
    machine = Machine(join("a"), match("a", "r", 1, 2, 3), match("a", "s", 1, 2, 4))
    machine.do(Allocate("a", "r", 3), Allocate("a", "s", 3))
    machine.do(extend("a", "r", 1, 2, 3))

    facts = machine.do(extend("a", "s", 1, 2, 4))

    assert facts == [PathExtended("a", "s", 0, path(1, 2, 4), ((5, 1),), ((3, 2),))]
    assert request_table(machine.state.engines["a"].requests["s"], "g") == ((3, 3),)


def test_the_table_is_in_token_order_whatever_it_is_made_of() -> None:
    """E-17: shared, own and private blocks in the wrong order: attention reads the wrong tokens.

    (The bug as reported needs two tiers, which come with transfers; the order is the same promise.)
    """
    machine = Machine(join("a", blocks=12))
    machine.cache("a", 1)
    machine.do(match("a", "r", 1, 2, 3), match("a", "s", 1, 2, 3, 4, 5))
    machine.do(Allocate("a", "r", 2), Allocate("a", "s", 5))
    machine.do(extend("a", "r", 1, 2, 3))
    machine.do(extend("a", "s", 1, 2, 3, 4))
    machine.do(match("a", "t", 1, 2))
    request = machine.state.engines["a"].requests["s"]

    assert request_table(request, "g") == ((0, 1), (3, 5))
    assert (request.duplicates, request.private) == (((1, ((3, 2),)),), ((6, 2),))


def test_extend_to_less_than_the_path_changes_nothing() -> None:
    """An engine that repeats itself after a retry shortens a path."""
    machine = Machine(join("a"))
    machine.serve("a", "r", 1, 2, 3)

    assert list(machine.would(extend("a", "r", 1, 2))) == []
    assert list(machine.would(extend("a", "r", 1, 2, 3))) == []


def test_extend_stops_at_what_another_engine_computes_and_goes_on_when_that_engine_is_gone() -> None:
    """A path is built on blocks that nobody will ever fill; or is stuck for ever behind an engine that died."""
    machine = Machine(join("a"), join("b"))
    machine.serve("a", "r", 1, 2)
    machine.do(Allocate("a", "r", 1))
    machine.do(extend("a", "r", 1, 2, 3))
    machine.do(match("b", "s", 1, 2, 3, 4))
    machine.do(Allocate("b", "s", 2))

    assert machine.do(extend("b", "s", 1, 2, 3, 4)) == []

    machine.do(Leave("a"))

    assert machine.do(extend("b", "s", 1, 2, 3, 4)) == [PathExtended("b", "s", 2, path(1, 2, 3, 4)[32:], ((3, 2),), ())]


def test_a_later_step_about_the_request_makes_it_ready() -> None:
    """Blocks stay invisible to other engines until their request ends."""
    machine = Machine(join("a"), match("a", "r", 1, 2))
    machine.do(Allocate("a", "r", 3), extend("a", "r", 1, 2))

    assert machine.would(Allocate("a", "r", 1))[0] == PathReady("a", "r", 2)
    assert machine.would(extend("a", "r", 1, 2, 3))[0] == PathReady("a", "r", 2)
    assert machine.would(Release("a", "r"))[0] == PathReady("a", "r", 2)


def test_the_same_step_does_not_make_it_ready() -> None:
    """Other engines read blocks before the GPU has written them."""
    machine = Machine(join("a"), match("a", "r", 1, 2))

    facts = machine.do(Allocate("a", "r", 2), extend("a", "r", 1, 2), Allocate("a", "r", 1))

    assert not any(isinstance(fact, PathReady) for fact in facts)


def test_ready_to_a_depth() -> None:
    """An engine that computed half a chunk must hide all of it, or show all of it."""
    machine = Machine(join("a"), match("a", "r", 1, 2, 3))
    machine.do(Allocate("a", "r", 3), extend("a", "r", 1, 2, 3))

    assert list(machine.would(MarkReady("a", "r", 0))) == []
    assert machine.do(MarkReady("a", "r", 2)) == [PathReady("a", "r", 2)]
    assert list(machine.would(MarkReady("a", "r", 1))) == []
    assert machine.do(MarkReady("a", "r")) == [PathReady("a", "r", 3)]
    assert list(machine.would(MarkReady("a", "r"))) == []


# --- release --------------------------------------------------------------------------------------------------------


def test_release_frees_private_blocks_and_duplicates_in_table_order() -> None:
    """Blocks leak at the end of every request."""
    machine = Machine(join("a"), match("a", "r", 1, 2), match("a", "s", 1, 2))
    machine.do(Allocate("a", "r", 2), Allocate("a", "s", 4))
    machine.do(extend("a", "r", 1, 2))
    machine.do(extend("a", "s", 1, 2))

    facts = machine.do(Release("a", "s"))

    assert facts[-1] == RequestReleased("a", "s", ((2, 4),))


def test_same_prompt_and_output_released_in_both_orders_conserves_blocks() -> None:
    """E-02: two requests produce the same output block; the wrong one is recycled."""
    for first, second in (("r", "s"), ("s", "r")):
        machine = Machine(join("a"), match("a", "r", 1, 2), match("a", "s", 1, 2))
        machine.do(Allocate("a", "r", 3), Allocate("a", "s", 3))
        machine.do(extend("a", "r", 1, 2, 3))
        machine.do(extend("a", "s", 1, 2, 3))
        machine.do(Release("a", first))
        machine.do(Release("a", second))

        pool = machine.state.pools["g"]

        assert (pool.free.total, pool.unpinned) == (5, 3)
        assert machine.would(match("a", "t", 1, 2, 3)) == [PrefixMatched("a", "t", 1, 3, 3)]


def test_evicting_around_a_loser_leaves_the_winner_matchable() -> None:
    """E-03: chunk 1 shared, chunk 2 computed by both; dropping the loser's deletes the winner's entry."""
    machine = Machine(join("a"))
    machine.serve("a", "r", 1, 2)
    machine.do(match("a", "s", 1, 2, 3, 4), Allocate("a", "r", 2), Allocate("a", "s", 2))
    machine.do(extend("a", "r", 1, 2, 3, 4))
    machine.do(extend("a", "s", 1, 2, 3, 4))
    machine.do(Release("a", "s"))
    machine.do(Allocate("a", None, 4))

    assert machine.would(match("a", "t", 1, 2, 3, 4)) == [PrefixMatched("a", "t", 2, 4, 4)]


def test_unfinished_blocks_of_several_requests_go_with_the_last() -> None:
    """Blocks nobody computed are dropped under a request that stands on them, or stay when nobody does."""
    machine = Machine(join("a"), match("a", "r", 1, 2))

    machine.do(
        Allocate("a", "r", 2),
        extend("a", "r", 1, 2),
        match("a", "s", 1, 2),
        Release("a", "s"),
        Release("a", "r"),
    )

    assert list(machine.state.nodes) == [0]
    assert machine.state.pools["g"].free.total == 8


def test_an_engine_that_gives_no_sign_of_life_is_declared_lost() -> None:
    """What a dead engine held is held for ever."""
    machine = Machine(join("a"), join("b", pool="h", blocks=3))

    assert machine.would(Depose("a", 1, "silent")) == [EngineLost("a", 1, "silent")]


def test_memory_that_died_with_its_engine_is_dropped() -> None:
    """Its next life is given the bytes of memory that is not there any more."""
    machine = Machine(attrs.evolve(join("a"), memory_survives=False))
    machine.cache("a", 1, 2)

    assert machine.would(Depose("a", 1, "silent")) == [EngineLost("a", 1, "silent"), PoolDropped("a", "g")]


def test_memory_that_another_engine_works_in_is_not_dropped() -> None:
    """The death of one of two engines in a pool takes the other's blocks away."""
    machine = Machine(attrs.evolve(join("a"), memory_survives=False), join("b"))
    machine.cache("a", 1, 2)

    assert machine.would(Depose("a", 1, "silent")) == [EngineLost("a", 1, "silent")]


@pytest.mark.parametrize("command", [Depose("a", 1, "silent"), Depose("a", 3, "silent"), Depose("nobody", 1, "silent")])
def test_only_the_life_that_was_meant_is_declared_lost(command: Depose) -> None:
    """A keeper that looked away for a moment ends the life that has begun since."""
    machine = Machine(join("a"), join("a"))

    assert machine.would(command) == []


def test_a_life_that_ended_is_not_declared_lost() -> None:
    """An engine that left in order is said to have died."""
    machine = Machine(join("a"), Leave("a"))

    assert machine.would(Depose("a", 1, "silent")) == []
