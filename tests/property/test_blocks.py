"""Block sets and ranges say the same as plain sets and lists of block ids."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.errors import CorruptState
from events.facts import BlockRanges
from statecore import ranges
from statecore.blockset import BlockSet

IDS = st.integers(0, 24)
LISTS = st.lists(IDS, unique=True, max_size=25)


def pieces(blocks: list[int]) -> BlockRanges:
    return ranges.of_ids(blocks)


def is_canonical(found: BlockRanges) -> bool:
    return all(count > 0 for _, count in found) and all(
        start + count != after for (start, count), (after, _) in pairwise(found)
    )


@given(LISTS)
def test_ranges_name_the_ids_they_were_made_of(blocks: list[int]) -> None:
    """Given ids in any order, when they become ranges and ids again, then they are the same in the same order."""
    assert ranges.ids(pieces(blocks)) == blocks
    assert ranges.count(pieces(blocks)) == len(blocks)
    assert is_canonical(pieces(blocks))


@given(LISTS, st.integers(0, 25))
def test_splitting_cuts_a_list(blocks: list[int], at: int) -> None:
    """Given ranges, when they are split and joined, then they were cut like the list and are whole again."""
    at = min(at, len(blocks))
    head, tail = ranges.split(pieces(blocks), at)

    assert (ranges.ids(head), ranges.ids(tail)) == (blocks[:at], blocks[at:])
    assert is_canonical(head)
    assert is_canonical(tail)
    assert ranges.join(head, tail) == pieces(blocks)


@given(st.lists(LISTS, max_size=4))
def test_joining_is_the_same_from_either_end(lists: list[list[int]]) -> None:
    """Given lists, when they are joined from the left or from the right, then the result is one and canonical."""
    left: BlockRanges = ()
    for blocks in lists:
        left = ranges.join(left, pieces(blocks))
    right: BlockRanges = ()
    for blocks in reversed(lists):
        right = ranges.join(pieces(blocks), right)

    assert ranges.ids(left) == [block for blocks in lists for block in blocks]
    assert left == right
    assert is_canonical(left)


@given(LISTS, st.sets(IDS))
def test_without_keeps_the_order(blocks: list[int], removed: set[int]) -> None:
    """Given ranges, when ids are taken out, then the others stay in their order."""
    left = ranges.without(pieces(blocks), [(block, 1) for block in removed])

    assert ranges.ids(left) == [block for block in blocks if block not in removed]
    assert is_canonical(left)


@given(LISTS)
def test_merging_sorts(blocks: list[int]) -> None:
    """Given disjoint ranges in any order, when they are merged, then they are in order of id."""
    found = ranges.merged(pieces(blocks))

    assert ranges.ids(found) == sorted(blocks)
    assert is_canonical(found)


CHANGES = st.lists(st.tuples(st.sampled_from(["add", "remove", "lowest"]), LISTS, st.booleans()), max_size=30)


@given(CHANGES)
def test_a_block_set_is_a_set(changes: list[tuple[str, list[int], bool]]) -> None:
    """Given any additions and removals, then the set holds what a plain set would, refuses what does not fit, and a
    refusal leaves it as it was."""
    found, plain = BlockSet(), set[int]()
    for kind, blocks, fitting in changes:
        before = tuple(found)
        if kind == "lowest":
            count = min(len(blocks), found.total)
            assert ranges.ids(found.lowest(count)) == sorted(plain)[:count]
            continue
        chosen = [block for block in blocks if (block in plain) == (kind == "remove")] if fitting else blocks
        fits = not plain.intersection(chosen) if kind == "add" else plain.issuperset(chosen)
        change = found.add if kind == "add" else found.remove
        if fits:
            change(pieces(chosen))
            plain.symmetric_difference_update(chosen)
        else:
            with pytest.raises(CorruptState):
                change(pieces(chosen))
            assert tuple(found) == before
        assert ranges.ids(tuple(found)) == sorted(plain)
        assert found.total == len(plain)
        assert is_canonical(tuple(found))


@given(st.sets(IDS), IDS, st.integers(1, 6))
def test_holding_means_holding_all(blocks: set[int], start: int, length: int) -> None:
    """Given a set, when it is asked for a range, then it holds it only if it holds every id of it."""
    found = BlockSet(pieces(sorted(blocks)))

    assert found.holds(start, length) == blocks.issuperset(range(start, start + length))


@given(st.lists(IDS, min_size=2, max_size=2).filter(lambda pair: pair[0] == pair[1]))
def test_the_same_block_twice_in_one_call_is_refused(pair: list[int]) -> None:
    """Given one id named twice in one call (E-04), then neither freeing nor taking it works, and nothing changes."""
    twice = tuple((block, 1) for block in pair)
    empty, full = BlockSet(), BlockSet(((0, 25),))

    with pytest.raises(CorruptState):
        empty.add(twice)
    with pytest.raises(CorruptState):
        full.remove(twice)
    assert (tuple(empty), tuple(full)) == ((), ((0, 25),))
