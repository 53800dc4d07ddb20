"""Which copies go when a pool is short: the order, the deficit, and what the order costs in memory."""

from __future__ import annotations

from events.facts import CopyEvicted
from statecore import ranges
from statecore.commands import Allocate, Recycle, Release
from statecore.eviction_order import EvictionOrder
from tests.unit.given import Machine, extend, join, match


def evicted(machine: Machine, blocks: int) -> list[tuple[int, ...]]:
    """Blocks that would be dropped, per victim, if so many were asked for beyond what is free."""
    facts = machine.would(Allocate("a", None, machine.state.pools["g"].free.total + blocks))
    return [tuple(ranges.ids(fact.blocks)) for fact in facts if isinstance(fact, CopyEvicted)]


def test_least_recently_used_first() -> None:
    """The prefix everybody uses is dropped, the one nobody used since yesterday stays."""
    machine = Machine(join("a"))
    machine.cache("a", 1, 2)
    machine.cache("a", 3, 4)
    machine.cache("a", 5, 6)
    machine.cache("a", 1, 2)

    assert evicted(machine, 6) == [(2, 3), (4, 5), (0, 1)]


def test_leaf_before_parent_however_old() -> None:
    """E-16: a prefix goes before its suffix, which then holds blocks nobody can reach."""
    machine = Machine(join("a"))
    machine.cache("a", 1, 2)
    machine.cache("a", 1, 2, 3, 4)
    machine.cache("a", 1, 2, 5)

    assert evicted(machine, 5) == [(2, 3), (4,), (0, 1)]


def test_after_any_eviction_children_have_parents() -> None:
    """E-16: children alive, parent gone, at any size of eviction."""
    for blocks in range(1, 9):
        machine = Machine(join("a", blocks=8))
        for tokens in ((1, 2, 3), (1, 2, 4), (1, 5), (6, 7)):
            machine.cache("a", *tokens)
        before = machine.state.pools["g"].evicted
        free = machine.state.pools["g"].free.total
        machine.do(Allocate("a", None, blocks))

        assert machine.state.pools["g"].evicted - before == max(0, blocks - free)  # E-20


def test_deeper_first_among_equals() -> None:
    """Two engines that see the same state drop different blocks."""
    machine = Machine(join("a"))
    machine.serve("a", "short", 1, 2)
    machine.serve("a", "long", 3, 4, 5)
    machine.do(Release("a", "short"), Release("a", "long"))

    assert evicted(machine, 5) == [(2, 3, 4), (0, 1)]
    assert evicted(machine, 4) == [(2, 3, 4), (1,)]


def test_deeper_first_among_equals_after_a_part_is_gone() -> None:
    """What is dropped depends on how the state came about: equal digests, other decisions."""
    machine = Machine(join("a", blocks=8))
    machine.serve("a", "short", 1, 2, 3)
    machine.serve("a", "long", 4, 5, 6, 7)
    machine.do(Release("a", "short"), Release("a", "long"))
    machine.do(Allocate("a", None, 3))
    assert machine.state.nodes[2].end == 2

    assert evicted(machine, 1) == [(2,)]


def test_what_is_asked_for_and_refused_is_still_evictable() -> None:
    """A decision that was only asked for takes candidates out of the order for good."""
    machine = Machine(join("a"))
    machine.cache("a", 1, 2)
    machine.cache("a", 3, 4)

    for _ in range(3):
        assert evicted(machine, 4) == [(0, 1), (2, 3)]
    machine.do(Allocate("a", None, 8))
    assert machine.state.pools["g"].free.total == 0


def test_an_undone_eviction_can_be_decided_again() -> None:
    """After a lost race the engine finds nothing to evict, in a pool full of old prefixes."""
    machine = Machine(join("a"))
    machine.cache("a", 1, 2)
    machine.cache("a", 1, 2, 3)
    machine.cache("a", 7)
    before = machine.replica.digest()

    for _ in range(4):
        machine.replica.propose(match("a", "r", 1, 2, 3))
        machine.replica.propose(Allocate("a", None, 5))
        machine.replica.propose(Release("a", "r"))
        machine.replica.propose(Allocate("a", None, 2))
        machine.replica.undo()
        assert machine.replica.digest() == before
        assert evicted(machine, 4) == [(2,), (0, 1), (3,)]


def test_a_use_that_was_undone_does_not_count() -> None:
    """A step that never happened keeps a prefix alive."""
    machine = Machine(join("a"))
    machine.cache("a", 1, 2)
    machine.cache("a", 3, 4)
    machine.replica.propose(match("a", "r", 1, 2))
    machine.replica.propose(Release("a", "r"))
    machine.replica.undo()

    assert evicted(machine, 2) == [(0, 1)]


def test_pins_and_pending_blocks_stay() -> None:
    """A live request's blocks are given to another."""
    machine = Machine(join("a", blocks=6))
    machine.cache("a", 1, 2)
    machine.do(match("a", "r", 1, 3, 4), Allocate("a", "r", 2), extend("a", "r", 1, 3, 4))

    assert evicted(machine, 1) == [(1,)]
    assert machine.state.pools["g"].unpinned == 1


def test_the_order_stays_small_under_churn() -> None:
    """E-53: memory grows with every request served, not with what is cached."""
    machine = Machine(join("a", blocks=12))
    longest = 0
    for turn in range(1500):
        machine.replica.propose(match("a", "r", 1, 2, 100 + turn % 40))
        request = machine.state.engines["a"].requests["r"]
        machine.replica.propose(Allocate("a", "r", 3 - request.path_blocks + 1))
        machine.replica.propose(extend("a", "r", 1, 2, 100 + turn % 40))
        machine.replica.propose(Release("a", "r"))
        if turn % 3 == 0:
            machine.replica.undo()
            continue
        machine.replica.settle(machine.state.position + 1, "c")
        longest = max(longest, len(heap_of(machine)))
    machine.must_be_sound()

    assert len(machine.state.nodes) <= 13
    assert longest <= 64 + 4 * 13 + 16


def test_the_order_stays_small_for_a_prefix_used_again_and_again() -> None:
    """E-53: a system prompt that every request uses grows a list for ever, though nothing is ever evicted."""
    machine = Machine(join("a"))
    machine.cache("a", 1, 2)
    for _ in range(1000):
        machine.replica.propose(match("a", "r", 1, 2))
        machine.replica.propose(Release("a", "r"))
        machine.replica.settle(machine.state.position + 1, "c")

    assert len(heap_of(machine)) <= 64 + 4 * 2 + 1


def test_nodes_go_to_zero_when_everything_is_evicted() -> None:
    """E-34: nodes without blocks stay for ever."""
    machine = Machine(join("a", blocks=30), join("b", pool="h", blocks=30))
    for first in range(4):
        for second in range(3):
            machine.cache("a", first, 10 + second)
            machine.cache("b", first, 20 + second)
    for engine, pool in (("a", "g"), ("b", "h")):
        machine.do(Allocate(engine, None, 30))
        machine.do(Recycle(engine, None, ((0, 30),)))
        assert not any(pool in node.copies for node in machine.state.nodes.values())

    assert list(machine.state.nodes) == [0]
    assert machine.state.root.children == {}


def heap_of(machine: Machine) -> list[tuple[int, int, int]]:
    order: EvictionOrder = machine.state.pools["g"].eviction_order
    heap: list[tuple[int, int, int]] = order._heap
    return heap
