"""Which copies to drop when a pool is short: leaf first, least recently used first, no more than the deficit.

Owns the choice, not the dropping. Reads only: candidates it takes from the pool's order are given back, because the
choice may be rejected or undone.
"""

from __future__ import annotations

import heapq

from events.facts import CopyEvicted
from statecore import ranges
from statecore.state import Node, Pool, State
from statecore.tree import place


def choose_victims(state: State, pool: Pool, deficit: int) -> list[CopyEvicted]:
    """Facts that free exactly `deficit` blocks. The caller knows that `pool.unpinned` is at least that."""
    order, nodes, name = pool.eviction_order, state.nodes, pool.name
    victims: list[CopyEvicted] = []
    popped: list[Node] = []
    seen: set[int] = set()
    dropped_below: dict[int, int] = {}
    exposed: list[tuple[int, int, int]] = []

    def next_in_order() -> Node | None:
        while (node := order.pop(nodes)) is not None:
            popped.append(node)
            if node.id not in seen:
                seen.add(node.id)
                return node
        return None

    candidate = next_in_order()
    while deficit:
        if exposed and (candidate is None or exposed[0] < _rank(candidate, name)):
            node = nodes[heapq.heappop(exposed)[2]]
        else:
            assert candidate is not None, f"pool {name!r} counts unpinned blocks that no copy holds"
            node, candidate = candidate, next_in_order()
        blocks = min(node.end - node.start, deficit)
        _, tail = ranges.split(node.copies[name].blocks, node.end - node.start - blocks)
        victims.append(CopyEvicted(name, place(state, node), node.end, tail))
        deficit -= blocks
        parent = node.parent
        if blocks == node.end - node.start and parent is not None and parent.parent is not None:
            below = dropped_below[parent.id] = dropped_below.get(parent.id, 0) + 1
            copy = parent.copies[name]
            if copy.refs == 0 and copy.pending is None and copy.branches == below:
                heapq.heappush(exposed, _rank(parent, name))
    for node in popped:
        order.offer(node, node.copies[name])
    return victims


def _rank(node: Node, pool: str) -> tuple[int, int, int]:
    return node.copies[pool].last_used, -node.end, node.id
