"""The tree of runs: finding, cutting, pinning, dropping, and what each leaves behind."""

from __future__ import annotations

import pytest

from events.errors import CorruptState
from events.facts import BLOCK_HASH_BYTES, PrefixMatched
from statecore import tree
from statecore.commands import Allocate, Leave, Match, Release
from statecore.state import Node, State
from tests.unit.given import Machine, extend, join, match, path


def shape(state: State) -> set[tuple[int, int, int, int]]:
    """(id, parent, first block, last block) of every node but the root."""
    return {(node.id, node.parent.id, node.start, node.end) for node in state.nodes.values() if node.parent is not None}


def run_of(*tokens: int) -> Node:
    return Node(1, Node(0, None, 0, b""), 0, path(*tokens))


# --- finding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", range(1, 9))
@pytest.mark.parametrize("equal", range(1, 9))
def test_common_blocks(run: int, equal: int) -> None:
    """A match is one block too long (foreign tokens) or too short (computed again), at some length."""
    equal = min(run, equal)
    stored = path(*range(1, run + 1))
    tokens = [*range(1, equal + 1), *range(50, 53)]

    assert tree.common_blocks(stored, path(*tokens), 0) == equal
    assert tree.common_blocks(stored, path(*tokens[:equal]), 0) == equal
    assert tree.common_blocks(stored, b"\0" * 32 + path(*tokens), 32) == equal


def test_equal_blocks_after_unequal_ones_do_not_count() -> None:
    """Hashes of other prompts are taken for a continuation."""
    stored = path(1, 2, 3, 4)
    mixed = stored[:16] + b"\0" * 16 + stored[32:]

    assert tree.common_blocks(stored, mixed, 0) == 1


def test_longest_match_in_a_pool_that_holds_less() -> None:
    """An engine is told that blocks in another GPU's memory are its own."""
    machine = Machine(join("a"), join("b", pool="h"))
    machine.cache("a", 1, 2, 3, 4)
    machine.cache("b", 1, 2, 9)

    def found(pool: str, *tokens: int) -> int:
        return tree.longest_match(machine.state.root, pool, "a", path(*tokens), len(tokens))[1]

    assert (found("g", 1, 2, 3, 4), found("h", 1, 2, 3, 4)) == (4, 2)
    assert (found("g", 1, 2, 9), found("h", 1, 2, 9)) == (2, 3)
    assert found("nowhere", 1, 2) == 0


def test_places_are_found_after_splits() -> None:
    """A commit that was decided before a split pins or drops other blocks than it meant."""
    machine = Machine(join("a"))
    machine.cache("a", 1, 2, 3, 4)
    for depth in (3, 1, 2):
        machine.do(Match("a", f"r{depth}", path(*range(1, depth + 1)), depth))

    for depth in range(1, 5):
        node = tree.node_at(machine.state, 1, depth)
        assert (node.start, node.end) == (depth - 1, depth)
    assert tree.node_at(machine.state, 1, 0) is machine.state.root
    for node_id, depth in ((1, 5), (1, -1), (99, 1), (-1, 1), (-99, 0)):
        with pytest.raises(CorruptState, match="there is none"):
            tree.node_at(machine.state, node_id, depth)


# --- cutting --------------------------------------------------------------------------------------------------------


def test_a_split_leaves_the_id_with_the_lower_part() -> None:
    """Whoever holds the end of a run holds something else after it was cut."""
    machine = Machine(join("a"))
    machine.serve("a", "r", 1, 2, 3, 4)
    leaf = machine.state.engines["a"].requests["r"].leaf

    machine.do(match("a", "s", 1, 2))

    assert shape(machine.state) == {(2, 0, 0, 2), (1, 2, 2, 4)}
    assert machine.state.engines["a"].requests["r"].leaf is leaf is machine.state.nodes[1]
    assert leaf.hashes == path(1, 2, 3, 4)[2 * BLOCK_HASH_BYTES :]
    upper, lower = machine.state.nodes[2].copies["g"], machine.state.nodes[1].copies["g"]
    assert (upper.refs, upper.branches, upper.blocks) == (2, 1, ((0, 2),))
    assert (lower.refs, lower.branches, lower.blocks) == (1, 0, ((2, 2),))


def test_a_split_cuts_every_copy() -> None:
    """A split for one engine shifts the blocks of another."""
    machine = Machine(join("a"), join("b", pool="h"))
    machine.cache("a", 1, 2, 3, 4)
    machine.serve("b", "r", 1, 2, 3, 4)

    machine.do(match("a", "s", 1))

    upper, lower = machine.state.nodes[2], machine.state.nodes[1]
    assert (upper.copies["h"].blocks, lower.copies["h"].blocks) == (((0, 1),), ((1, 3),))
    assert (upper.copies["g"].blocks, lower.copies["g"].blocks) == (((0, 1),), ((1, 3),))
    assert (upper.copies["h"].refs, upper.copies["g"].refs) == (1, 1)
    assert (lower.copies["h"].refs, lower.copies["g"].refs) == (1, 0)


def test_a_split_keeps_pending_and_last_use() -> None:
    """The upper part of a run that is being computed looks computed, or old."""
    machine = Machine(join("a"), match("a", "r", 1, 2, 3))
    machine.do(Allocate("a", "r", 3), extend("a", "r", 1, 2, 3))
    used = machine.state.nodes[1].copies["g"].last_used

    machine.do(match("a", "s", 1))

    upper, lower = machine.state.nodes[2].copies["g"], machine.state.nodes[1].copies["g"]
    assert (upper.pending, lower.pending) == ("a", "a")
    assert lower.last_used == used
    assert upper.last_used == machine.state.position


def test_undo_of_a_split_with_everything_that_hung_on_it() -> None:
    """A lost race leaves a tree cut where nobody cut it."""
    machine = Machine(join("a"), join("b", pool="h"))
    machine.serve("a", "r", 1, 2, 3, 4)
    machine.cache("b", 1, 2, 3, 4)
    before, nodes = machine.replica.digest(), shape(machine.state)
    children = {key: child.id for key, child in machine.state.root.children.items()}

    for command in (
        match("a", "s", 1, 2, 7),
        Allocate("a", "s", 1),
        extend("a", "s", 1, 2, 7),
        Release("a", "r"),
        match("b", "t", 1),
        Allocate("b", None, 6),
        Leave("a"),
    ):
        machine.replica.propose(command)
        machine.must_be_sound()
    machine.replica.undo()

    assert machine.replica.digest() == before
    assert shape(machine.state) == nodes
    assert {key: child.id for key, child in machine.state.root.children.items()} == children


# --- dropping -------------------------------------------------------------------------------------------------------


def test_dropping_a_part_of_a_run_only_one_pool_holds_shortens_the_node() -> None:
    """A match finds blocks that were dropped."""
    machine = Machine(join("a"))
    machine.cache("a", 1, 2, 3, 4)
    machine.do(Allocate("a", None, 6))

    node = machine.state.nodes[1]

    assert shape(machine.state) == {(1, 0, 0, 2)}
    assert node.hashes == path(1, 2)
    assert node.copies["g"].blocks == ((0, 2),)


def test_dropping_a_part_of_a_run_two_pools_hold_cuts_it() -> None:
    """What one pool drops, the other loses."""
    machine = Machine(join("a"), join("b", pool="h"))
    machine.cache("a", 1, 2, 3, 4)
    machine.cache("b", 1, 2, 3, 4)
    machine.do(Allocate("a", None, 6))

    assert set(machine.state.nodes[2].copies) == {"g", "h"}
    assert set(machine.state.nodes[1].copies) == {"h"}
    assert machine.would(match("b", "r", 1, 2, 3, 4)) == [PrefixMatched("b", "r", 1, 4, 4)]
    assert machine.would(match("a", "r", 1, 2, 3, 4)) == [PrefixMatched("a", "r", 2, 2, 4)]


def test_a_node_goes_with_its_last_copy() -> None:
    """E-34: nodes nobody can reach stay for ever."""
    machine = Machine(join("a"), join("b", pool="h"))
    machine.cache("a", 1, 2)
    machine.cache("b", 1, 2)
    machine.do(Allocate("a", None, 8))
    assert list(machine.state.nodes) == [0, 1]

    machine.do(Allocate("b", None, 8))

    assert list(machine.state.nodes) == [0]
    assert machine.state.root.children == {}


def test_nothing_pinned_is_dropped() -> None:
    """An eviction takes blocks from under a request."""
    machine = Machine(join("a"))
    machine.serve("a", "r", 1, 2)
    pool, node = machine.state.pools["g"], machine.state.nodes[1]

    with pytest.raises(CorruptState, match="no copy in pool 'g' that could be dropped"):
        tree.drop_tail(machine.state, pool, node, 1)


def test_pin_and_unpin_are_balanced() -> None:
    """A pin is counted twice: the blocks can never be evicted again."""
    machine = Machine(join("a"))
    machine.cache("a", 1, 2, 3)
    pool, leaf = machine.state.pools["g"], machine.state.nodes[1]

    tree.pin(machine.state, pool, leaf)
    tree.pin(machine.state, pool, leaf)
    assert (leaf.copies["g"].refs, pool.unpinned) == (2, 0)
    tree.unpin(machine.state, pool, leaf)
    assert (leaf.copies["g"].refs, pool.unpinned) == (1, 0)
    tree.unpin(machine.state, pool, leaf)
    assert (leaf.copies["g"].refs, pool.unpinned) == (0, 3)
    with pytest.raises(AssertionError, match="more often than pinned"):
        tree.unpin(machine.state, pool, leaf)


def test_a_run_of_another_length_is_a_run() -> None:
    """The end of a node is not where its hashes end."""
    assert run_of(1, 2, 3).end == 3
    assert run_of(1, 2, 3).key == path(1)
