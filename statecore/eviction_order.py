"""In which order the copies of a pool go: least recently used first, deeper first among equals.

Owns the order, not the choice (`eviction.py`) and not the dropping (`tree.py`). A heap whose stale entries are skipped when
they surface, so that pinning and unpinning a copy costs one push and no search.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from statecore.state import Copy, Node


class EvictionOrder:
    """The evictable copies of one pool, least recently used first, deeper first among equals.

    A heap whose stale entries are skipped when they surface: an entry counts only if its node still has an evictable
    copy last used at the entry's position. Entries skipped during an unfinished step come back if the step is undone.
    """

    __slots__ = ("_heap", "_pool", "_skipped")

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._heap: list[tuple[int, int, int]] = []
        self._skipped: list[tuple[int, int, int]] = []

    def offer(self, node: Node, copy: Copy) -> None:
        """A copy became evictable."""
        heapq.heappush(self._heap, (copy.last_used, -node.end, node.id))

    def pop(self, nodes: dict[int, Node]) -> Node | None:
        """The next candidate, or None. Give it back with `offer` unless it is evicted."""
        heap = self._heap
        while heap:
            entry = heapq.heappop(heap)
            node = nodes.get(entry[2])
            if node is not None:
                copy = node.copies.get(self._pool)
                if copy is not None and entry[:2] == (copy.last_used, -node.end) and copy.evictable:
                    return node
            self._skipped.append(entry)
        return None

    def entries(self) -> set[tuple[int, int, int]]:
        """(last used, -end, node id) of everything in the order, what is stale included; for checks."""
        return set(self._heap)

    def settle(self, nodes: dict[int, Node]) -> None:
        """The step stands. Stale entries go for good; a heap that is mostly stale is built anew."""
        self._skipped.clear()
        if len(self._heap) > 64 + 4 * len(nodes):
            self._heap = sorted({entry for entry in self._heap if self._is_current(entry, nodes)})

    def restore(self) -> None:
        """The step is undone: what it skipped counts again."""
        for entry in self._skipped:
            heapq.heappush(self._heap, entry)
        self._skipped.clear()

    def _is_current(self, entry: tuple[int, int, int], nodes: dict[int, Node]) -> bool:
        node = nodes.get(entry[2])
        copy = None if node is None else node.copies.get(self._pool)
        if node is None or copy is None:
            return False
        return entry[:2] == (copy.last_used, -node.end) and copy.evictable
