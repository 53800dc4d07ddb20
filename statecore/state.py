"""The state of one index, and nothing that happens to it.

Owns the records evolve changes and decide reads. All identities are small integers or names given by facts; the clock is
the position. Nothing here iterates in an order the outside could influence, except through `sorted`.

    State ── pools {name -> Pool}        free blocks, evictable copies in order of last use
          ├─ engines {name -> Engine}    session, requests {id -> Request}, counters
          └─ root ── Node ── Node …      a run of blocks; per pool one Copy of it

**Life of a copy** (per node and pool):

| is       | means                                                   | may be matched by   | may be evicted               |
|----------|---------------------------------------------------------|---------------------|------------------------------|
| pending  | its bytes are being computed, by the engine named       | its engine          | no                           |
| filling  | pending, and a transfer brings the bytes                | its engine          | no                           |
| ready    | its bytes are there                                     | engines of its pool | when no ref, no branch below |
| leaving  | ready, and being swapped out; dropped when that is done | engines of its pool | no: the transfer is a ref    |
|          | unless a request uses it by then (*rescue*)             |                     |                              |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from events.facts import BLOCK_HASH_BYTES, BlockRanges, TransferStarted
from statecore import ranges
from statecore.blockset import BlockSet
from statecore.eviction_order import EvictionOrder
from statecore.journal import Journal

if TYPE_CHECKING:
    from statecore.sends import Send  # it stands on the records of this file

ROOT_ID: Final = 0
GPU: Final = "gpu"
CPU: Final = "cpu"
TIERS: Final = (GPU, CPU)

WRITE_BACK: Final = "write_back"
WRITE_THROUGH: Final = "write_through"
WRITE_POLICIES: Final = (WRITE_BACK, WRITE_THROUGH)

SWAP_OUT: Final = "swap_out"
SWAP_IN: Final = "swap_in"
KINDS: Final = (SWAP_OUT, WRITE_THROUGH, SWAP_IN)
SEND: Final = "send"

COUNTING_WINDOW: Final = 10_000
"""Requests after which an engine's hit rates begin anew, as FastDeploy's do."""


class Copy:
    """A node's blocks in one pool.

    Attributes:
        blocks: ids of the run, in token order.
        refs: live requests of that pool whose path covers it, and transfers reading it.
        branches: child nodes that have a copy in the same pool.
        last_used: position of the commit that last matched or released it.
        pending: the engine that sees to its bytes, or None when they are there.
        pending_since: position of the commit that made it pending; a call in a later step means "computed".
        filling: the transfer that brings the bytes, or None.
        leaving: the swap-out at whose end it is dropped, or None.
        unwritable: a swap-out of it has failed; next time it is dropped.
    """

    __slots__ = (
        "blocks",
        "branches",
        "filling",
        "last_used",
        "leaving",
        "pending",
        "pending_since",
        "refs",
        "unwritable",
    )

    def __init__(
        self,
        blocks: BlockRanges,
        refs: int,
        branches: int,
        last_used: int,
        pending: str | None,
        pending_since: int,
        filling: str | None = None,
        leaving: str | None = None,
    ) -> None:
        self.blocks = blocks
        self.refs = refs
        self.branches = branches
        self.last_used = last_used
        self.pending = pending
        self.pending_since = pending_since
        self.filling = filling
        self.leaving = leaving
        self.unwritable = False

    @property
    def unpinned(self) -> bool:
        return self.refs == 0 and self.pending is None

    @property
    def evictable(self) -> bool:
        return self.refs == 0 and self.pending is None and self.branches == 0


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


class Pool:
    """The blocks of one memory.

    Attributes:
        blocks: their number.
        free: those that belong to nobody.
        unpinned: blocks of ready copies nobody pins: what eviction could free, now or after what is below them.
        evicted: blocks dropped from copies so far.
        arrived, rescued: blocks that transfers brought here so far; that were to leave but were used again in time.
    """

    __slots__ = (
        "arrived",
        "blocks",
        "evicted",
        "eviction_order",
        "free",
        "name",
        "rescued",
        "tier",
        "unpinned",
    )

    def __init__(self, name: str, tier: str, blocks: int) -> None:
        self.name = name
        self.tier = tier
        self.blocks = blocks
        self.free = BlockSet(((0, blocks),))
        self.unpinned = 0
        self.evicted = 0
        self.arrived = 0
        self.rescued = 0
        self.eviction_order = EvictionOrder(name)


class Request:
    """One sequence being served.

    Attributes:
        leaf: the node its path ends with; the path covers the whole run of that node.
        private: blocks of its own that follow the path, in table order.
        duplicates: (depth, blocks) where its own blocks stand in its table instead of the tree's.
        matched: blocks its path began with; what follows on the path it brought itself.
    """

    __slots__ = ("duplicates", "id", "leaf", "matched", "private")

    def __init__(self, request_id: str, leaf: Node) -> None:
        self.id = request_id
        self.leaf = leaf
        self.private: BlockRanges = ()
        self.duplicates: tuple[tuple[int, BlockRanges], ...] = ()
        self.matched = leaf.end

    @property
    def path_blocks(self) -> int:
        return self.leaf.end


class Engine:
    """One engine through all its lives.

    Attributes:
        session: number of its present or last life; 0 before the first.
        alive: whether that life goes on.
        memory_survives: the bytes of its GPU pool outlive the process of that life.
        held: blocks that are its own without a request, per pool.
        transfers: how many it has started; the next one's number.
        requests_seen, requests_hit, prompt_tokens, matched_tokens: counters over all lives.
        host_tokens: those of the matched tokens that came from the host tier.
        window: these five as they were when the present window of `COUNTING_WINDOW` requests began.
    """

    __slots__ = (
        "alive",
        "cpu_pool",
        "gpu_pool",
        "held",
        "host_tokens",
        "matched_tokens",
        "memory_survives",
        "name",
        "prompt_tokens",
        "requests",
        "requests_hit",
        "requests_seen",
        "session",
        "tensor_parallel_size",
        "transfers",
        "window",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.session = 0
        self.alive = False
        self.gpu_pool = ""
        self.cpu_pool: str | None = None
        self.tensor_parallel_size = 1
        self.memory_survives = False
        self.requests: dict[str, Request] = {}
        self.held: dict[str, BlockSet] = {}
        self.requests_seen = 0
        self.requests_hit = 0
        self.prompt_tokens = 0
        self.matched_tokens = 0
        self.host_tokens = 0
        self.transfers = 0
        self.window = (0, 0, 0, 0, 0)

    @property
    def counters(self) -> tuple[int, int, int, int, int]:
        """Requests, requests that hit, prompt tokens, matched tokens, those from the host tier; over all lives."""
        return self.requests_seen, self.requests_hit, self.prompt_tokens, self.matched_tokens, self.host_tokens


class Transfer:
    """A movement of bytes that is under way.

    Attributes:
        node, start, end: the blocks `start` … `end`-1 of the path that ends at `node` (whose lower end never moves).
        cancelled: nobody wants the outcome; `quarantine` holds destination blocks a worker may still write.
    """

    __slots__ = (
        "cancelled",
        "destination",
        "end",
        "engine",
        "id",
        "kind",
        "node",
        "quarantine",
        "ranks",
        "source",
        "start",
    )

    def __init__(self, started: TransferStarted, node: Node, ranks: int) -> None:
        self.id = started.transfer
        self.kind = started.kind
        self.engine = started.engine
        self.node = node
        self.start = started.start
        self.end = started.end
        self.source = started.source
        self.destination = started.destination
        self.ranks = ranks
        self.cancelled = False
        self.quarantine: BlockRanges = ()

    @property
    def blocks(self) -> int:
        return self.end - self.start


class State:
    """Everything. `position` and `last_commit_id` name the end of the history it is the outcome of.

    Attributes:
        transfers, sends: those under way, by id.
        policy_chosen: whether somebody chose the write policy and the watermarks.
        paused_by, paused_for: the engine that let no request begin, and why; None and "" while all may.
        clears: how often the cache was cleared.
        ignored_finishes: results that came for transfers nobody knows any more.
        clock: position of the commit being applied or decided; what "last used" is measured in.
        nodes: every node by id, the root (id 0, no blocks) included.
        next_node: id the next node gets.
        places: where each fact of the commit at hand ended its path (see `events/facts.py`, Places).
        place_of: id of a node that this commit made, or brought a copy to -> number (1-based) of the fact that did.
    """

    __slots__ = (
        "block_size",
        "clears",
        "clock",
        "engines",
        "free_high",
        "free_low",
        "hash_scheme",
        "ignored_finishes",
        "journal",
        "last_commit_id",
        "next_node",
        "nodes",
        "paused_by",
        "paused_for",
        "place_of",
        "places",
        "policy_chosen",
        "pools",
        "position",
        "root",
        "sends",
        "transfers",
        "write_policy",
    )

    def __init__(self) -> None:
        self.block_size = 0
        self.hash_scheme = ""
        self.position = 0
        self.last_commit_id = ""
        self.clock = 1
        self.write_policy = WRITE_BACK
        self.free_low = 0
        self.free_high = 0
        self.policy_chosen = False
        self.paused_by: str | None = None
        self.paused_for = ""
        self.clears = 0
        self.transfers: dict[str, Transfer] = {}
        self.sends: dict[str, Send] = {}
        self.ignored_finishes = 0
        self.pools: dict[str, Pool] = {}
        self.engines: dict[str, Engine] = {}
        self.root = Node(ROOT_ID, None, 0, b"")
        self.nodes: dict[int, Node] = {ROOT_ID: self.root}
        self.next_node = 1
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
