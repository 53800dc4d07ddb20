"""What the machine refuses: for each command every reason, with the numbers in the message and no trace in the state.

`Machine.refuses` compares digests, so each of these is also a test of bugs E-13.
"""

from __future__ import annotations

import pytest

from statecore.commands import Allocate, Command, Extend, Join, Leave, MarkReady, Match, Recycle, Release
from statecore.hashing import SCHEME
from statecore.rejections import (
    DifferentIndex,
    ForeignBlocks,
    NeverFits,
    PathDiffers,
    PathInUse,
    PathNotCovered,
    PathShorter,
    PoolExhausted,
    Rejection,
    RequestExists,
    SessionOver,
    UnknownPool,
    UnknownRequest,
)
from statecore.state import Pool
from tests.unit.given import Machine, extend, join, match, path


@pytest.fixture
def machine() -> Machine:
    """Engine a, pool g of 8: request r has a path of 2, 1 private block; request s none; 1 block is a's own."""
    machine = Machine(join("a"))
    machine.serve("a", "r", 1, 2)
    machine.do(Allocate("a", "r", 1), match("a", "s", 7, 8), Allocate("a", None, 1))
    return machine


# --- join, leave ----------------------------------------------------------------------------------------------------


def test_join_with_another_block_size(machine: Machine) -> None:
    """Engines of different block sizes share an index and never hit, or worse."""
    machine.refuses(join("b", block_size=64), DifferentIndex, "block size", 1, 64)


def test_join_with_another_hash_scheme(machine: Machine) -> None:
    """E-40: an engine that hashes otherwise joins, and never hits, silently."""
    refused = machine.refuses(Join("b", 1, "sha1/1", "g", None, 1), DifferentIndex, "hash scheme", SCHEME, "sha1/1")
    assert (refused.recorded, refused.given) == (SCHEME, "sha1/1")


def test_join_a_pool_of_another_size(machine: Machine) -> None:
    """Two engines think differently of how many blocks their GPU has."""
    machine.refuses(join("b", blocks=9), DifferentIndex, "blocks in pool 'g'", 8, 9)


def test_join_a_pool_nobody_made(machine: Machine) -> None:
    """A typing error in a pool's name starts an engine with no memory."""
    machine.refuses(join("b", pool="gg", blocks=None), UnknownPool, "'gg'", "known: g")
    Machine().refuses(join("b", blocks=None), UnknownPool, "'g'", "known: none")


def test_join_a_pool_of_host_memory(machine: Machine) -> None:
    """A GPU serves from blocks that lie in host memory."""
    machine.state.pools["host"] = Pool("host", "cpu", 4)

    machine.refuses(join("b", pool="host", blocks=4), DifferentIndex, "'host'", "cpu", "gpu")


COMMANDS_OF_AN_ENGINE: list[Command] = [
    Leave("x"),
    Match("x", "r", path(1), 1),
    Allocate("x", "r", 1),
    Allocate("x", None, 1),
    Recycle("x", "r", ((0, 1),)),
    Recycle("x", None, ((0, 1),)),
    Extend("x", "r", path(1)),
    MarkReady("x", "r"),
    Release("x", "r"),
]


@pytest.mark.parametrize("command", COMMANDS_OF_AN_ENGINE, ids=lambda command: type(command).__name__)
def test_an_engine_that_never_joined(machine: Machine, command: Command) -> None:
    """A process that skipped joining corrupts the index."""
    machine.refuses(command, SessionOver, "'x'")


@pytest.mark.parametrize("command", COMMANDS_OF_AN_ENGINE, ids=lambda command: type(command).__name__)
def test_an_engine_that_left(machine: Machine, command: Command) -> None:
    """A process that left goes on, and its blocks belong to nobody."""
    machine.do(join("x", blocks=None), match("x", "r", 1), Leave("x"))

    machine.refuses(command, SessionOver, "session 1 of engine 'x'")


# --- requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        Allocate("a", "nobody", 1),
        Recycle("a", "nobody", ((0, 1),)),
        extend("a", "nobody", 1),
        MarkReady("a", "nobody"),
        Release("a", "nobody"),
    ],
    ids=lambda command: type(command).__name__,
)
def test_a_request_nobody_matched(machine: Machine, command: Command) -> None:
    """E-06: a late call about a request that is gone registers blocks that are somebody else's by now."""
    machine.refuses(command, UnknownRequest, "'a'", "'nobody'", "released already")


def test_another_engines_request(machine: Machine) -> None:
    """An engine ends or grows what another serves."""
    machine.do(join("b"))

    machine.refuses(Release("b", "r"), UnknownRequest, "'b'", "'r'")


def test_release_twice(machine: Machine) -> None:
    """E-01: the blocks of a request are recycled twice and given to two others."""
    machine.do(Release("a", "r"))

    machine.refuses(Release("a", "r"), UnknownRequest, "'r'")


def test_a_late_extend_after_release(machine: Machine) -> None:
    """E-06: blocks of an early-removed request are registered later, and hold garbage."""
    machine.do(Allocate("a", "s", 2))
    machine.do(Release("a", "s"))

    machine.refuses(extend("a", "s", 7, 8), UnknownRequest, "'s'")


def test_match_of_a_live_request(machine: Machine) -> None:
    """Two requests under one id: one is never released."""
    machine.refuses(match("a", "r", 1), RequestExists, "'a'", "'r'", "release it first")


# --- allocate, recycle ----------------------------------------------------------------------------------------------


def test_allocate_more_than_the_pool(machine: Machine) -> None:
    """E-24: a scheduler waits for ever for room that cannot come."""
    refused = machine.refuses(Allocate("a", "r", 9), NeverFits, 9, "'g'", "of 8")
    assert (refused.asked, refused.has, refused.blocks) == (9, 3, 8)
    refused = machine.refuses(Allocate("a", "r", 6), NeverFits, "6 blocks beside the 3 it has", "of 8")
    assert (refused.asked, refused.has) == (6, 3)
    refused = machine.refuses(Allocate("a", "s", 9), NeverFits, "9 blocks can never fit")
    assert refused.has == 0


def test_allocate_more_than_free_and_evictable(machine: Machine) -> None:
    """E-50: a part is given, or a number is wrong and the scheduler preempts the wrong request."""
    machine.cache("a", 5, 6, request="old")

    refused = machine.refuses(Allocate("a", "r", 5), PoolExhausted, "5 blocks", "2 free", "2 evictable", "of 8")

    assert (refused.asked, refused.free, refused.evictable, refused.blocks) == (5, 2, 2, 8)
    assert machine.would(Allocate("a", "r", 4))


def test_recycle_what_is_not_private(machine: Machine) -> None:
    """E-01, E-04: a block is freed by somebody who does not own it."""
    table_of_r = {"path": 0, "private": 2}
    own, free = 3, 7

    machine.refuses(Recycle("a", "r", ((table_of_r["path"], 1),)), ForeignBlocks, "blocks 0 ", "'g'", "request 'r'")
    machine.refuses(Recycle("a", "r", ((own, 1),)), ForeignBlocks, "blocks 3 ")
    machine.refuses(Recycle("a", "s", ((table_of_r["private"], 1),)), ForeignBlocks, "blocks 2 ", "request 's'")
    machine.refuses(Recycle("a", None, ((table_of_r["private"], 1),)), ForeignBlocks, "blocks 2 ", "engine 'a'")
    machine.refuses(Recycle("a", None, ((free, 1),)), ForeignBlocks, "blocks 7 ")
    machine.refuses(Recycle("a", None, ((own, 1), (1 << 40, 1))), ForeignBlocks, f"blocks {1 << 40} ")


def test_recycle_twice(machine: Machine) -> None:
    """E-01: double recycle of the same blocks."""
    machine.do(Recycle("a", "r", ((2, 1),)))
    machine.refuses(Recycle("a", "r", ((2, 1),)), ForeignBlocks, "blocks 2 ")

    machine.do(Recycle("a", None, ((3, 1),)))
    machine.refuses(Recycle("a", None, ((3, 1),)), ForeignBlocks, "blocks 3 ")


def test_recycle_one_block_twice_in_one_command(machine: Machine) -> None:
    """E-04: a list with a duplicate frees one block twice."""
    machine.refuses(Recycle("a", "r", ((2, 1), (2, 1))), ForeignBlocks, "blocks 2 ", "named twice")
    machine.refuses(Recycle("a", None, ((3, 1), (3, 1))), ForeignBlocks, "blocks 3 ", "named twice")


def test_many_foreign_blocks_make_a_short_message(machine: Machine) -> None:
    """One wrong call fills the log with a million numbers."""
    refused = machine.refuses(Recycle("a", None, ((100, 5000),)), ForeignBlocks, "100, 101", "…")

    assert len(refused.blocks) == 5000
    assert len(str(refused)) < 200


# --- extend, ready --------------------------------------------------------------------------------------------------


def test_extend_over_more_than_is_there(machine: Machine) -> None:
    """A path covers blocks that do not exist."""
    refused = machine.refuses(
        extend("a", "r", 1, 2, 3, 4), PathNotCovered, "'r'", "4 blocks", "2 on the path", "1 private"
    )
    assert (refused.asked, refused.path, refused.private) == (4, 2, 1)


def test_extend_with_another_prompt(machine: Machine) -> None:
    """A request's blocks are filed under a prompt that they do not hold."""
    machine.refuses(extend("a", "r", 1, 9, 3), PathDiffers, "'r'", "first 2 blocks")
    machine.refuses(extend("a", "r", 9), PathDiffers, "'r'")
    machine.refuses(Extend("a", "r", path(1, 2)[:16] + b"\0" * 16), PathDiffers, "'r'")


def test_ready_below_the_end_of_the_path(machine: Machine) -> None:
    """Blocks that are not in the tree become visible."""
    refused = machine.refuses(MarkReady("a", "r", 3), PathShorter, "'r'", "ready to 3 blocks", "has 2", "extend it")
    assert (refused.asked, refused.path) == (3, 2)
    machine.refuses(MarkReady("a", "s", 1), PathShorter, "'s'", "1 blocks")


def test_release_under_another_request(machine: Machine) -> None:
    """Within one step a request is given up on whose blocks another was matched: nobody computes them, all read them."""
    machine.do(match("a", "t", 5, 6), Allocate("a", "t", 2))
    replica = machine.replica
    for command in (extend("a", "t", 5, 6), match("a", "u", 5, 6)):
        assert not isinstance(replica.propose(command), Rejection)

    refused = replica.propose(Release("a", "t"))

    assert isinstance(refused, PathInUse)
    assert "'t' cannot be released" in str(refused)
    replica.undo()
    machine.do(extend("a", "t", 5, 6), match("a", "u", 5, 6))
    machine.do(Release("a", "t"))
