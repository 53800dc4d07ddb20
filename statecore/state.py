"""The state of one index, and nothing that happens to it.

Owns the records evolve changes and decide reads. All identities are small integers or names given by facts; the clock is
the position. Nothing here iterates in an order the outside could influence, except through `sorted`.

    State ── pools {name -> Pool}        free blocks, evictable copies in order of last use
          ├─ engines {name -> Engine}    session, requests {id -> Request}, counters
          └─ root ── Node ── Node …      a run of blocks; per pool one Copy of it

**Life of a copy** (per node and pool):

| is        | means                                   | may be matched by   | may be evicted                |
|-----------|-----------------------------------------|---------------------|-------------------------------|
| pending   | its bytes are being computed            | its engine          | no                            |
| ready     | its bytes are there                     | engines of its pool | when no ref, no branch below  |
"""

from __future__ import annotations

import heapq
from typing import Final

from events.facts import BLOCK_HASH_BYTES, BlockRanges
from statecore import ranges
from statecore.blockset import BlockSet
from statecore.journal import Journal

ROOT_ID: Final = 0
GPU: Final = "gpu"
CPU: Final = "cpu"
TIERS: Final = (GPU, CPU)


class Copy:
    """A node's blocks in one pool.

    Attributes:
        blocks: ids of the run, in token order.
        refs: live requests of that pool whose path covers it.
        branches: child nodes that have a copy in the same pool.
        last_used: position of the commit that last matched or released it.
        pending: the engine that is computing it, or None when the bytes are there.
    """

    __slots__ = ("blocks", "branches", "last_used", "pending", "refs")

    def __init__(self, blocks: BlockRanges, refs: int, branches: int, last_used: int, pending: str | None) -> None:
        self.blocks = blocks
        self.refs = refs
        self.branches = branches
        self.last_used = last_used
        self.pending = pending

    @property
    def evictable(self) -> bool:
        return self.refs == 0 and self.branches == 0 and self.pending is None


class Node:
    """A run: blocks `start` … `end`-1 of a path. `children` by the first block hash of their run."""

    __slots__ = ("children", "copies", "end", "hashes", "id", "parent", "start")

    def __init__(self, node_id: int, parent: Node | None, start: int, hashes: bytes) -> None:
        self.id = node_id
        self.parent = parent
        self.start = start
        self.end = start + len(hashes) // BLOCK_HASH_BYTES
        self.hashes = hashes
        self.children: dict[bytes, Node] = {}
        self.copies: dict[str, Copy] = {}

    @property
    def key(self) -> bytes:
        """Under which the parent knows it."""
        return self.hashes[:BLOCK_HASH_BYTES]


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
            self._skipped.append(entry)
            node = nodes.get(entry[2])
            if node is not None:
                copy = node.copies.get(self._pool)
                if copy is not None and copy.last_used == entry[0] and copy.evictable:
                    return node
        return None

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
        return copy is not None and copy.last_used == entry[0] and copy.evictable


class Pool:
    """The blocks of one memory.

    Attributes:
        blocks: their number.
        free: those that belong to nobody.
        unpinned: blocks of copies no request pins: what eviction could free.
        evicted: blocks dropped from copies so far.
    """

    __slots__ = ("blocks", "evicted", "eviction_order", "free", "name", "tier", "unpinned")

    def __init__(self, name: str, tier: str, blocks: int) -> None:
        self.name = name
        self.tier = tier
        self.blocks = blocks
        self.free = BlockSet(((0, blocks),))
        self.unpinned = 0
        self.evicted = 0
        self.eviction_order = EvictionOrder(name)


class Request:
    """One sequence being served.

    Attributes:
        leaf: the node its path ends with; the path covers the whole run of that node.
        private: blocks of its own that follow the path, in table order.
        duplicates: (depth, blocks) where its own blocks stand in its table instead of the tree's.
        extended_at: position of the commit that last extended its path; a later call about it means "computed".
    """

    __slots__ = ("duplicates", "extended_at", "id", "leaf", "private")

    def __init__(self, request_id: str, leaf: Node) -> None:
        self.id = request_id
        self.leaf = leaf
        self.private: BlockRanges = ()
        self.duplicates: tuple[tuple[int, BlockRanges], ...] = ()
        self.extended_at = 0

    @property
    def path_blocks(self) -> int:
        return self.leaf.end


class Engine:
    """One engine through all its lives.

    Attributes:
        session: number of its present or last life; 0 before the first.
        alive: whether that life goes on.
        held: blocks that are its own without a request, per pool.
        requests_seen, requests_hit, prompt_tokens, matched_tokens: counters over all lives.
    """

    __slots__ = (
        "alive",
        "cpu_pool",
        "gpu_pool",
        "held",
        "matched_tokens",
        "name",
        "prompt_tokens",
        "requests",
        "requests_hit",
        "requests_seen",
        "session",
        "tensor_parallel_size",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.session = 0
        self.alive = False
        self.gpu_pool = ""
        self.cpu_pool: str | None = None
        self.tensor_parallel_size = 1
        self.requests: dict[str, Request] = {}
        self.held: dict[str, BlockSet] = {}
        self.requests_seen = 0
        self.requests_hit = 0
        self.prompt_tokens = 0
        self.matched_tokens = 0


class State:
    """Everything. `position` and `last_commit_id` name the end of the history it is the outcome of.

    Attributes:
        clock: position of the commit being applied or decided; what "last used" is measured in.
        nodes: every node by id, the root (id 0, no blocks) included.
        next_node: id the next node gets.
        committed_nodes: `next_node` when the commit at hand began: lower ids are the same in every replica.
        places: where each fact of the commit at hand ended its path (see `events/facts.py`, Places).
        place_of: id of a node made in this commit -> number (1-based) of the fact that made it.
    """

    __slots__ = (
        "block_size",
        "clock",
        "committed_nodes",
        "engines",
        "hash_scheme",
        "journal",
        "last_commit_id",
        "next_node",
        "nodes",
        "place_of",
        "places",
        "pools",
        "position",
        "root",
    )

    def __init__(self) -> None:
        self.block_size = 0
        self.hash_scheme = ""
        self.position = 0
        self.last_commit_id = ""
        self.clock = 1
        self.pools: dict[str, Pool] = {}
        self.engines: dict[str, Engine] = {}
        self.root = Node(ROOT_ID, None, 0, b"")
        self.nodes: dict[int, Node] = {ROOT_ID: self.root}
        self.next_node = 1
        self.committed_nodes = 1
        self.places: list[Node | None] = []
        self.place_of: dict[int, int] = {}
        self.journal = Journal()

    @property
    def created(self) -> bool:
        return self.block_size > 0


def request_table(request: Request, pool: str) -> BlockRanges:
    """The request's block table, in token order: path, with its duplicates in their places, then private blocks."""
    runs: list[BlockRanges] = []
    node = request.leaf
    while node.parent is not None:
        runs.append(node.copies[pool].blocks)
        node = node.parent
    table: BlockRanges = ()
    for run in reversed(runs):
        table = ranges.join(table, run)
    for depth, own in request.duplicates:
        before, rest = ranges.split(table, depth)
        _, after = ranges.split(rest, ranges.count(own))
        table = ranges.join(ranges.join(before, own), after)
    return ranges.join(table, request.private)


def private_ranges(request: Request) -> BlockRanges:
    """Every block that is the request's own: duplicates, then private blocks."""
    own: BlockRanges = ()
    for _, blocks in request.duplicates:
        own = ranges.join(own, blocks)
    return ranges.join(own, request.private)
