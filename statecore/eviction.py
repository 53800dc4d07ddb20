"""Which copies to drop when a pool is short: leaf first, least recently used first, no more than the deficit.

Owns the choice, not the dropping, and not whether a victim is dropped or swapped out (`tiers.py`). Reads only:
candidates it takes from the pool's order are given back, because the choice may be rejected or undone.
"""

from __future__ import annotations

import heapq

import attrs

from events.facts import BlockRanges, CopyEvicted
from statecore import ranges
from statecore.state import Node, Pool, State
from statecore.tree import place


@attrs.frozen(slots=True)
class Victim:
    """The last blocks of a node's copy.

    Attributes:
        blocks: their ids, in token order.
        count: their number; less than the run where the deficit ends inside it.
    """

    node: Node
    blocks: BlockRanges
    count: int


def choose_victims(state: State, pool: Pool, deficit: int) -> list[Victim]:
    """Victims of `deficit` blocks together; fewer where what is unpinned lies above copies that cannot go now."""
    order, nodes, name = pool.eviction_order, state.nodes, pool.name
    victims: list[Victim] = []
    popped: list[Node] = []
    seen: set[int] = set()
    gone_below: dict[int, int] = {}
    exposed: list[tuple[int, int, int]] = []

    def next_in_order() -> Node | None:
        while (node := order.pop(nodes)) is not None:
            if node.id not in seen:  # a copy may stand in the order twice; once is enough
                seen.add(node.id)
                popped.append(node)
                return node
        return None

    candidate = next_in_order()
    while deficit > 0:
        if exposed and (candidate is None or exposed[0] < _rank(candidate, name)):
            node = nodes[heapq.heappop(exposed)[2]]
        elif candidate is not None:
            node, candidate = candidate, next_in_order()
        else:
            break
        run = node.end - node.start
        count = min(run, deficit)
        _, tail = ranges.split(node.copies[name].blocks, run - count)
        victims.append(Victim(node, tail, count))
        deficit -= count
        parent = node.parent
        above = None if parent is None else parent.copies.get(name)
        if count == run and parent is not None and above is not None:
            below = gone_below[parent.id] = gone_below.get(parent.id, 0) + 1
            if above.refs == 0 and above.pending is None and above.branches == below:
                heapq.heappush(exposed, _rank(parent, name))
    for node in popped:
        order.offer(node, node.copies[name])
    return victims


def eviction(state: State, pool: Pool, victim: Victim) -> CopyEvicted:
    return CopyEvicted(pool.name, place(state, victim.node), victim.node.end, victim.blocks)


def _rank(node: Node, pool: str) -> tuple[int, int, int]:
    return node.copies[pool].last_used, -node.end, node.id
