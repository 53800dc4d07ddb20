"""A set of block ids kept as sorted, merged ranges: the free blocks of a pool, the blocks an engine holds.

Owns lowest-id-first choice and the check that no block is added or removed twice. Taking from and returning to the
set costs a binary search per range; a pool whose blocks are all free is one range, however large.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from events.errors import CorruptState
from events.facts import BlockRanges


class BlockSet:
    """Disjoint, sorted, merged ranges. `total` is the number of blocks in it."""

    __slots__ = ("_ends", "_starts", "total")

    def __init__(self, ranges: BlockRanges = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.total = 0
        self.add(ranges)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """`(start, count)` pairs, lowest first."""
        return ((start, end - start) for start, end in zip(self._starts, self._ends, strict=True))

    def lowest(self, blocks: int) -> BlockRanges:
        """The `blocks` lowest ids, without taking them. At most `total` may be asked for."""
        assert blocks >= 0, f"{blocks} blocks asked for"
        chosen = []
        for start, end in zip(self._starts, self._ends, strict=True):
            if blocks <= end - start:
                if blocks:
                    chosen.append((start, blocks))
                return tuple(chosen)
            chosen.append((start, end - start))
            blocks -= end - start
        assert blocks == 0, f"{blocks} more blocks asked than there are"
        return tuple(chosen)

    def holds(self, start: int, length: int) -> bool:
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and start + length <= self._ends[index]

    def add(self, ranges: BlockRanges) -> None:
        """Put blocks in. `CorruptState` if one is in already; the set is unchanged then."""
        for done, (start, length) in enumerate(ranges):
            if not self._add(start, start + length):
                self.remove(ranges[:done])
                raise CorruptState(f"blocks {start}…{start + length - 1} are added to a set that holds some of them")

    def remove(self, ranges: BlockRanges) -> None:
        """Take blocks out. `CorruptState` if one is not in; the set is unchanged then."""
        for done, (start, length) in enumerate(ranges):
            if not self._remove(start, start + length):
                self.add(ranges[:done])
                raise CorruptState(f"blocks {start}…{start + length - 1} are taken from a set that lacks some of them")

    def _add(self, start: int, end: int) -> bool:
        starts, ends = self._starts, self._ends
        index = bisect_left(starts, start)
        if (index and ends[index - 1] > start) or (index < len(starts) and starts[index] < end):
            return False
        joins_left = index > 0 and ends[index - 1] == start
        joins_right = index < len(starts) and starts[index] == end
        if joins_left and joins_right:
            ends[index - 1] = ends[index]
            del starts[index], ends[index]
        elif joins_left:
            ends[index - 1] = end
        elif joins_right:
            starts[index] = start
        else:
            starts.insert(index, start)
            ends.insert(index, end)
        self.total += end - start
        return True

    def _remove(self, start: int, end: int) -> bool:
        starts, ends = self._starts, self._ends
        index = bisect_right(starts, start) - 1
        if index < 0 or ends[index] < end:
            return False
        if starts[index] == start:
            if ends[index] == end:
                del starts[index], ends[index]
            else:
                starts[index] = end
        elif ends[index] == end:
            ends[index] = start
        else:
            starts.insert(index + 1, end)
            ends.insert(index + 1, ends[index])
            ends[index] = start
        self.total -= end - start
        return True
