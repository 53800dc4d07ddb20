"""Block ids: the arithmetic of ranges, and the set of blocks that are free or held.

Both are checked against lists and sets of plain integers, which cannot be wrong in the same way.
"""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from events.errors import CorruptState
from events.facts import BlockRanges
from statecore import ranges
from statecore.blockset import BlockSet

SCATTERED: BlockRanges = ((4, 2), (0, 3), (9, 1))
SCATTERED_IDS = [4, 5, 0, 1, 2, 9]

# --- ranges ---------------------------------------------------------------------------------------------------------


def test_ids_and_back() -> None:
    """A block table comes back from the log in another order."""
    assert ranges.ids(SCATTERED) == SCATTERED_IDS
    assert ranges.of_ids(SCATTERED_IDS) == SCATTERED
    assert ranges.of_ids([]) == () == ranges.NONE
    assert ranges.of_ids([3, 2, 1]) == ((3, 1), (2, 1), (1, 1))
    assert ranges.count(SCATTERED) == 6
    assert ranges.count(()) == 0


def test_join_merges_what_continues() -> None:
    """Equal block lists are written differently, and replicas refuse each other's facts."""
    assert ranges.join(((0, 2),), ((2, 3),)) == ((0, 5),)
    assert ranges.join(((0, 2),), ((3, 3),)) == ((0, 2), (3, 3))
    assert ranges.join(((3, 1),), ((2, 1),)) == ((3, 1), (2, 1))
    assert ranges.join((), SCATTERED) == SCATTERED == ranges.join(SCATTERED, ())


@pytest.mark.parametrize("at", range(7))
def test_split_anywhere(at: int) -> None:
    """A run that is cut in two loses a block or swaps two."""
    head, tail = ranges.split(SCATTERED, at)

    assert (ranges.ids(head), ranges.ids(tail)) == (SCATTERED_IDS[:at], SCATTERED_IDS[at:])
    assert ranges.join(head, tail) == SCATTERED


@pytest.mark.parametrize("at", [-1, 7, 1 << 40])
def test_split_outside_is_a_defect(at: int) -> None:
    """E-18: a negative or too large count silently takes something else, as a slice does."""
    with pytest.raises(AssertionError):
        ranges.split(SCATTERED, at)


def test_merged_and_without() -> None:
    """Freed blocks are not found again, or a block stays that was given back."""
    assert ranges.merged([(4, 2), (0, 3), (3, 1)]) == ((0, 6),)
    assert ranges.merged([]) == ()
    assert ranges.without(SCATTERED, [(5, 1), (1, 1)]) == ((4, 1), (0, 1), (2, 1), (9, 1))
    assert ranges.without(SCATTERED, ()) == SCATTERED
    assert ranges.without(((0, 1 << 40),), [(5, 1 << 50), (3, 4)]) == ((0, 3),), "its cost is per range, not per block"


# --- BlockSet -------------------------------------------------------------------------------------------------------


def test_lowest_first() -> None:
    """E-18: asking for none, or for all, gives something else."""
    free = BlockSet(((2, 2), (7, 3)))

    assert free.lowest(0) == ()
    assert free.lowest(1) == ((2, 1),)
    assert free.lowest(2) == ((2, 2),)
    assert free.lowest(3) == ((2, 2), (7, 1))
    assert free.lowest(5) == ((2, 2), (7, 3))
    assert free.total == 5
    with pytest.raises(AssertionError, match="1 more blocks"):
        free.lowest(6)


def test_less_than_none_is_a_defect() -> None:
    """E-18: a negative size takes blocks that do not exist."""
    with pytest.raises(AssertionError):
        BlockSet(((2, 2),)).lowest(-1)


@pytest.mark.parametrize("twice", [((2, 1),), ((1, 2),), ((3, 2),), ((0, 20),), ((7, 3),), ((5, 1), (5, 1))])
def test_a_block_is_not_added_twice(twice: BlockRanges) -> None:
    """E-01, E-04: a block freed twice is given to two requests."""
    free = BlockSet(((2, 2), (7, 3)))

    with pytest.raises(CorruptState, match="holds some of them"):
        free.add(twice)

    assert list(free) == [(2, 2), (7, 3)]
    assert free.total == 5


@pytest.mark.parametrize("foreign", [((1, 1),), ((3, 2),), ((2, 6),), ((10, 1),), ((2, 1), (2, 1)), ((-1, 1),)])
def test_a_block_that_is_not_there_is_not_taken(foreign: BlockRanges) -> None:
    """A block that is in use is given to a second request."""
    free = BlockSet(((2, 2), (7, 3)))

    with pytest.raises(CorruptState, match="lacks some of them"):
        free.remove(foreign)

    assert list(free) == [(2, 2), (7, 3)]
    assert free.total == 5


@pytest.mark.parametrize("seed", range(8))
def test_against_a_plain_set(seed: int) -> None:
    """E-05: after thousands of requests, count and list of the free blocks disagree."""
    random = Random(seed)
    blocks = BlockSet(((0, 64),))
    plain = set(range(64))
    for _ in range(600):
        start, length = random.randrange(64), random.randint(1, 6)
        span = set(range(start, start + length))
        if random.random() < 0.5:
            expected = not (span & plain) and max(span) < 64
            if expected:
                blocks.add(((start, length),))
                plain |= span
        elif span <= plain:
            blocks.remove(((start, length),))
            plain -= span
        assert ranges.ids(tuple(blocks)) == sorted(plain)
        assert blocks.total == len(plain)
        assert blocks.holds(start, length) == (span <= plain)
        wanted = random.randint(0, len(plain))
        assert ranges.ids(blocks.lowest(wanted)) == sorted(plain)[:wanted]
    spans = list(blocks)
    assert all(first + count < second for (first, count), (second, _) in pairwise(spans))


def test_a_large_pool_is_one_range() -> None:
    """A pool of two billion blocks takes memory before anything is stored."""
    free = BlockSet(((0, 1 << 31),))

    free.remove(((5, 1),))

    assert list(free) == [(0, 5), (6, (1 << 31) - 6)]
