"""The checker is checked: every way of breaking a sound state must be told, in a sentence with the numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from statecore.commands import Allocate
from statecore.invariants import leaked_blocks, violations
from statecore.state import Copy, Node, Request, State
from tests.unit.given import Machine, extend, join, match, path


def busy() -> State:
    """Pool g of 12: node 2 (1 2) with children 1 (3) and 3 (9, pending); r and s live; t cached (node 4); pool h."""
    machine = Machine(join("a", blocks=12), join("b", pool="h", blocks=6))
    machine.serve("a", "r", 1, 2, 3)
    machine.do(match("a", "s", 1, 2, 9), Allocate("a", "s", 3), extend("a", "s", 1, 2, 9))
    machine.cache("a", 7, 8)
    machine.cache("b", 1, 2)
    machine.do(Allocate("a", None, 1))
    assert (machine.state.nodes[1].start, machine.state.nodes[3].copies["g"].pending) == (2, "a")
    return machine.state


def copy(state: State, node: int) -> Copy:
    return state.nodes[node].copies["g"]


def all_of(*changes: Callable[[State], object]) -> Callable[[State], object]:
    def plant(state: State) -> None:
        for change in changes:
            change(state)

    return plant


def detach(state: State) -> None:
    """A request's leaf is no longer in the tree."""
    node = Node(77, state.nodes[2], 2, path(5))
    node.copies["g"] = Copy(((11, 1),), 1, 0, 1, None, 0)
    state.engines["a"].requests["r"].leaf = node


PLANTED: dict[str, tuple[Callable[[State], object], str]] = {
    "unlisted node": (lambda s: s.nodes.__delitem__(1), "node 1 hangs in the tree but is not listed"),
    "node that hangs nowhere": (
        lambda s: s.nodes.update({9: Node(9, s.root, 0, path(4))}),
        "6 nodes are listed, 5 hang in the tree",
    ),
    "hashes too few": (lambda s: setattr(s.nodes[4], "hashes", path(7)), "node 4 covers blocks 0…2 with 16 bytes"),
    "empty node": (
        all_of(lambda s: setattr(s.nodes[4], "hashes", b""), lambda s: setattr(s.nodes[4], "end", 0)),
        "node 4 covers blocks 0…0",
    ),
    "node without copies": (lambda s: s.nodes[4].copies.clear(), "node 4 has neither a copy nor a child"),
    "wrong parent": (lambda s: setattr(s.nodes[1], "parent", s.root), "node 1 does not fit below node 2"),
    "wrong start": (
        all_of(lambda s: setattr(s.nodes[1], "start", 1), lambda s: setattr(s.nodes[1], "end", 2)),
        "node 1 does not fit below node 2",
    ),
    "wrong key": (
        lambda s: s.nodes[2].children.update({path(6): s.nodes[2].children.pop(s.nodes[1].key)}),
        "node 1 does not fit below node 2",
    ),
    "copy in no pool": (lambda s: s.nodes[4].copies.update(x=copy(s, 4)), "in pool 'x': no such pool"),
    "copy too long": (
        lambda s: setattr(copy(s, 4), "blocks", ((4, 3),)),
        "copy of node 4 in pool 'g' holds 3 blocks for a run of 2",
    ),
    "too many refs": (lambda s: setattr(copy(s, 2), "refs", 3), "node 2 in pool 'g' counts 3 refs, 2 requests cover"),
    "too few refs": (lambda s: setattr(copy(s, 1), "refs", 0), "node 1 in pool 'g' counts 0 refs, 1 requests cover"),
    "too many branches": (lambda s: setattr(copy(s, 4), "branches", 1), "counts 1 branches, there are 0"),
    "too few branches": (lambda s: setattr(copy(s, 2), "branches", 1), "counts 1 branches, there are 2"),
    "ready below pending": (lambda s: setattr(copy(s, 2), "pending", "a"), "node 1 in pool 'g' is ready below one"),
    "pending for nobody": (lambda s: setattr(copy(s, 3), "pending", "x"), "is pending for 'x', who will not finish"),
    "pending for the dead": (lambda s: setattr(s.engines["a"], "alive", False), "is pending for 'a', who will not"),
    "pending without a request": (
        lambda s: setattr(copy(s, 4), "pending", "a"),
        "node 4 in pool 'g' is pending for 'a', who will not finish it",
    ),
    "used in the future": (lambda s: setattr(copy(s, 4), "last_used", 999), "was last used at 999, in the future"),
    "block nowhere": (lambda s: s.pools["g"].free.remove(((11, 1),)), "pool 'g' ends at block 11, it has 12"),
    "block nowhere in the middle": (
        lambda s: s.engines["a"].held["g"].remove(tuple(s.engines["a"].held["g"])),
        "is nowhere",
    ),
    "block in two places": (
        lambda s: setattr(s.engines["a"].requests["r"], "private", ((0, 1),)),
        "block 0 is in two places",
    ),
    "pool too small": (lambda s: setattr(s.pools["g"], "blocks", 11), "ends at block 12, it has 11"),
    "unpinned miscounted": (lambda s: setattr(s.pools["g"], "unpinned", 7), "counts 7 unpinned blocks, there are 2"),
    "requests of the dead": (lambda s: setattr(s.engines["a"], "alive", False), "'a' is gone and still has requests"),
}


def test_a_sound_state_is_sound() -> None:
    """The checker cries wolf."""
    assert violations(busy()) == []
    assert violations(State()) == []
    assert leaked_blocks(busy()) == 0


@pytest.mark.parametrize(("plant", "sentence"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_violation_is_told(plant: Callable[[State], object], sentence: str) -> None:
    """A broken index passes its own check."""
    state = busy()

    plant(state)

    assert any(sentence in told for told in violations(state)), violations(state)


def test_a_free_count_that_disagrees_with_the_list_is_told() -> None:
    """E-05: the counter of free blocks and the list of them disagree; decisions are made on the counter."""
    state = busy()
    state.pools["g"].free.total += 1

    assert violations(state)


def test_a_request_on_a_node_that_is_gone_is_told() -> None:
    """A request serves from blocks that belong to somebody else by now."""
    state = busy()
    copy(state, 1).refs = 0
    state.pools["g"].unpinned += 1
    detach(state)

    assert any("request 'r'" in told for told in violations(state))


STOPS_THE_CHECK: dict[str, tuple[Callable[[State], object], str]] = {
    "copy without one above": (
        lambda s: s.nodes[2].copies.__delitem__("g"),
        "request 'r' of engine 'a' stands on node 2",
    ),
    "duplicates beyond the path": (
        all_of(
            lambda s: setattr(s.engines["a"].requests["r"], "duplicates", ((2, ((10, 2),)),)),
            lambda s: s.pools["g"].free.remove(((10, 2),)),
        ),
        "request 'r'",
    ),
    "path without a copy": (
        lambda s: s.nodes[1].copies.update(h=s.nodes[1].copies.pop("g")),
        "request 'r'",
    ),
}


@pytest.mark.parametrize(("plant", "sentence"), STOPS_THE_CHECK.values(), ids=STOPS_THE_CHECK.keys())
def test_a_violation_does_not_stop_the_check(plant: Callable[[State], object], sentence: str) -> None:
    """`verify` ends in a traceback instead of a sentence, on the very state it is for."""
    state = busy()

    plant(state)

    assert any(sentence in told for told in violations(state)), violations(state)


def test_an_evictable_copy_that_the_order_forgot_is_told() -> None:
    """The pool counts blocks as evictable that eviction will never find: an assertion in the middle of a step."""
    state = busy()
    state.pools["g"].eviction_order._heap.clear()

    assert violations(state)


def test_leaked_blocks_are_counted() -> None:
    """Blocks that belong to nobody are not missed."""
    state = busy()
    state.pools["g"].free.remove(((11, 1),))
    assert leaked_blocks(state) == 1

    state = busy()
    copy(state, 4).refs = 1  # pinned by a request that is not there
    assert leaked_blocks(state) == 2

    state = busy()
    state.engines["b"].requests["x"] = Request("x", state.root)
    assert leaked_blocks(state) == 0
