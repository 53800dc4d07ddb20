"""Block ids as ranges: `((start, count), …)` in token order.

Owns the arithmetic on them. Pure functions; the cost is per range, never per block, except in `ids`, which hands
block ids to an engine. Results are canonical: a range that continues its predecessor is merged into it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from events.facts import BlockRanges

NONE: BlockRanges = ()


def count(ranges: BlockRanges) -> int:
    """Number of blocks."""
    total = 0
    for _, length in ranges:
        total += length
    return total


def ids(ranges: BlockRanges) -> list[int]:
    """The block ids one by one, in token order."""
    listed: list[int] = []
    for start, length in ranges:
        listed.extend(range(start, start + length))
    return listed


def of_ids(block_ids: Iterable[int]) -> BlockRanges:
    """Ranges of ids in the given order."""
    merged: list[tuple[int, int]] = []
    start = length = 0
    for block in block_ids:
        if length and block == start + length:
            length += 1
            continue
        if length:
            merged.append((start, length))
        start, length = block, 1
    if length:
        merged.append((start, length))
    return tuple(merged)


def join(first: BlockRanges, second: BlockRanges) -> BlockRanges:
    """`first` followed by `second`."""
    if not first:
        return second
    if not second:
        return first
    start, length = first[-1]
    following, more = second[0]
    if start + length == following:
        return (*first[:-1], (start, length + more), *second[1:])
    return first + second


def split(ranges: BlockRanges, blocks: int) -> tuple[BlockRanges, BlockRanges]:
    """The first `blocks` blocks and the rest. `blocks` is between 0 and `count(ranges)`."""
    assert blocks >= 0, f"{blocks} blocks asked for"
    left = blocks
    for index, (start, length) in enumerate(ranges):
        if left < length:
            if left == 0:
                return ranges[:index], ranges[index:]
            return (*ranges[:index], (start, left)), ((start + left, length - left), *ranges[index + 1 :])
        left -= length
    assert left == 0, f"{blocks} blocks asked of {count(ranges)}"
    return ranges, NONE


def merged(pairs: Iterable[tuple[int, int]]) -> BlockRanges:
    """Disjoint ranges in any order, as one in order of id."""
    result: list[tuple[int, int]] = []
    for start, length in sorted(pairs):
        if result and result[-1][0] + result[-1][1] == start:
            result[-1] = (result[-1][0], result[-1][1] + length)
        else:
            result.append((start, length))
    return tuple(result)


def without(ranges: BlockRanges, removed: Iterable[tuple[int, int]]) -> BlockRanges:
    """The blocks that are not in `removed`, in their order. `removed` may come in any order, and overlap itself."""
    gaps = _union(removed)
    left: BlockRanges = NONE
    for start, length in ranges:
        at, end = start, start + length
        for gap, gap_end in gaps[max(bisect_right(gaps, (start, start)) - 1, 0) :]:
            if gap >= end:
                break
            if gap > at:
                left = join(left, ((at, gap - at),))
            at = max(at, gap_end)
        if at < end:
            left = join(left, ((at, end - at),))
    return left


def _union(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Disjoint (start, end) in order of id."""
    united: list[tuple[int, int]] = []
    for start, length in sorted(pairs):
        if united and start <= united[-1][1]:
            united[-1] = (united[-1][0], max(united[-1][1], start + length))
        else:
            united.append((start, start + length))
    return united
