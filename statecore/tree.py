"""The tree of runs: finding, splitting, pinning, removing.

Owns the shape of the tree and the counts that hang on it (refs, branches, unpinned). `evolve` calls what changes it,
`decide` only what reads. Cost is per node touched, a handful for a prompt of any length; comparing runs is one
`bytes.startswith` each.

A split leaves the id with the lower part: whoever holds a node holds the end of a run, and that never moves.
"""

from __future__ import annotations

from collections.abc import Iterator

from events.errors import CorruptState
from events.facts import BLOCK_HASH_BYTES, BlockRanges
from statecore import ranges
from statecore.state import GPU, ROOT_ID, Copy, Node, Pool, State

# --- reading --------------------------------------------------------------------------------------------------------


def longest_match(root: Node, pool: str, engine: str, hashes: bytes, limit: int) -> tuple[Node, int]:
    """How far `hashes` is held by `pool` in a form `engine` may use: the node that covers the end, and the depth."""
    node, depth = root, 0
    while depth < limit:
        offset = depth * BLOCK_HASH_BYTES
        child = node.children.get(hashes[offset : offset + BLOCK_HASH_BYTES])
        if child is None:
            break
        copy = child.copies.get(pool)
        if copy is None or copy.pending not in (None, engine):
            break
        depth = min(depth + common_blocks(child.hashes, hashes, offset), limit)
        node = child
        if depth < child.end:
            break
    return node, depth


def host_match(node: Node, depth: int, host: str, pool: str, hashes: bytes, limit: int) -> list[tuple[Node, int]]:
    """What follows a match that ended with `node` at `depth` in the host pool and not in `pool`: (node, blocks) in order."""
    found: list[tuple[Node, int]] = []
    while depth == node.end and depth < limit:
        offset = depth * BLOCK_HASH_BYTES
        child = node.children.get(hashes[offset : offset + BLOCK_HASH_BYTES])
        copy = None if child is None else child.copies.get(host)
        if child is None or copy is None or copy.pending is not None or pool in child.copies:
            break
        blocks = min(common_blocks(child.hashes, hashes, offset), limit - depth)
        found.append((child, blocks))
        node, depth = child, depth + blocks
    return found


def common_blocks(run: bytes, hashes: bytes, offset: int) -> int:
    """How many blocks of `run` stand in `hashes` from `offset` (bytes) on. At least the first one does."""
    if hashes.startswith(run, offset):
        return len(run) // BLOCK_HASH_BYTES
    equal, unequal = 1, min(len(run), len(hashes) - offset) // BLOCK_HASH_BYTES + 1
    while unequal - equal > 1:
        middle = (equal + unequal) // 2
        if hashes.startswith(run[: middle * BLOCK_HASH_BYTES], offset):
            equal = middle
        else:
            unequal = middle
    return equal


def path_nodes(leaf: Node) -> Iterator[Node]:
    """From the leaf up, the root excluded."""
    node = leaf
    while node.parent is not None:
        yield node
        node = node.parent


def filling_on(leaf: Node, pool: str) -> str | None:
    """The transfer that still brings a part of the path, if one does."""
    for node in path_nodes(leaf):
        filling = node.copies[pool].filling
        if filling is not None:
            return filling
    return None


def place(state: State, node: Node) -> int:
    """How a fact names this node: its id, or, negative, the number of the fact of this commit that it stands on.

    The latter for nodes the commit made, and for those it brought a copy to: until then only other pools held them, and
    may have dropped them by the time the commit lands.
    """
    fact = state.place_of.get(node.id)
    return node.id if fact is None else -fact


def node_at(state: State, named: int, depth: int) -> Node:
    """The node whose run covers block `depth - 1`, from a place as facts name it."""
    node = state.nodes.get(named) if named >= ROOT_ID else _made_by(state, -named)
    if node is None or not 0 <= depth <= node.end:
        raise CorruptState(f"a fact names the place ({named}, {depth}), and there is none")
    while node.parent is not None and depth <= node.start:
        node = node.parent
    return node


def _made_by(state: State, fact: int) -> Node | None:
    """Where the fact of that number (1-based) in the commit at hand ended its path."""
    return state.places[fact - 1] if fact <= len(state.places) else None


# --- shape ----------------------------------------------------------------------------------------------------------


def ending_at(state: State, node: Node, depth: int) -> Node:
    """The node that ends at `depth`, splitting `node` (which covers it) if it goes on further."""
    return node if depth == node.end else _split(state, node, depth)


def add_child(state: State, parent: Node, hashes: bytes) -> Node:
    """A new node below `parent`, without copies yet."""
    node = Node(_new_id(state), parent, parent.end, hashes)
    state.journal.put(state.nodes, node.id, node)
    state.journal.put(parent.children, node.key, node)
    return node


def _split(state: State, lower: Node, depth: int) -> Node:
    """Cut a run in two at `depth`; returns the upper part, which is new."""
    journal = state.journal
    parent = lower.parent
    assert parent is not None
    assert lower.start < depth < lower.end, "only inside a run is there something to split"
    blocks = depth - lower.start
    upper = Node(_new_id(state), parent, lower.start, lower.hashes[: blocks * BLOCK_HASH_BYTES])
    for pool, copy in lower.copies.items():
        head, tail = ranges.split(copy.blocks, blocks)
        upper.copies[pool] = Copy(
            head, copy.refs, 1, copy.last_used, copy.pending, copy.pending_since, copy.filling, copy.leaving
        )
        upper.copies[pool].unwritable = copy.unwritable
        journal.set(copy, "blocks", tail)
    journal.put(state.nodes, upper.id, upper)
    journal.put(parent.children, upper.key, upper)
    journal.set(lower, "hashes", lower.hashes[blocks * BLOCK_HASH_BYTES :])
    journal.set(lower, "start", depth)
    journal.set(lower, "parent", upper)
    upper.children[lower.key] = lower
    return upper


def _new_id(state: State) -> int:
    node_id = state.next_node
    state.journal.set(state, "next_node", node_id + 1)
    state.journal.put(state.place_of, node_id, len(state.places) + 1)
    return node_id


# --- copies ---------------------------------------------------------------------------------------------------------


def add_copy(
    state: State,
    node: Node,
    pool: Pool,
    blocks: BlockRanges,
    *,
    refs: int,
    pending: str,
    filling: str | None = None,
) -> None:
    """A copy whose bytes are not there yet: `pending` names the engine that computes them or has them brought."""
    branches = 0 if pool.tier == GPU else sum(pool.name in child.copies for child in node.children.values())
    copy = Copy(blocks, refs, branches, state.clock, pending, state.clock, filling)
    state.journal.put(node.copies, pool.name, copy)
    if node.id not in state.place_of:
        state.journal.put(state.place_of, node.id, len(state.places) + 1)
    _count_branch(state, pool, node, +1)


def pin(state: State, pool: Pool, leaf: Node) -> None:
    """One more request covers the path to `leaf`."""
    for node in path_nodes(leaf):
        pin_copy(state, pool, node)


def pin_copy(state: State, pool: Pool, node: Node) -> None:
    """One more request covers this node."""
    copy, journal = node.copies[pool.name], state.journal
    if copy.refs == 0 and copy.pending is None:
        journal.set(pool, "unpinned", pool.unpinned - (node.end - node.start))
    journal.set(copy, "refs", copy.refs + 1)
    journal.set(copy, "last_used", state.clock)


def unpin(state: State, pool: Pool, leaf: Node, above: int = 0) -> None:
    """One request less covers the path from `leaf` up to depth `above`."""
    journal, clock, name = state.journal, state.clock, pool.name
    node = leaf
    while node.parent is not None and node.end > above:
        copy = node.copies[name]
        assert copy.refs > 0, f"node {node.id} is unpinned more often than pinned"
        journal.set(copy, "refs", copy.refs - 1)
        journal.set(copy, "last_used", clock)
        if copy.refs == 0 and copy.pending is None:
            journal.set(pool, "unpinned", pool.unpinned + (node.end - node.start))
            if copy.branches == 0:
                pool.eviction_order.offer(node, copy)
        node = node.parent


def add_ref(state: State, pool: Pool, node: Node, change: int) -> None:
    """A request or a transfer begins (+1) or ends (-1) to use a copy."""
    copy = node.copies[pool.name]
    assert copy.refs + change >= 0, f"node {node.id} is unpinned more often than pinned"
    before = copy.unpinned
    state.journal.set(copy, "refs", copy.refs + change)
    _recount(state, pool, node, copy, before)


def set_ready(state: State, pool: Pool, node: Node) -> None:
    """The bytes of a copy are there."""
    copy, journal = node.copies[pool.name], state.journal
    before = copy.unpinned
    journal.set(copy, "pending", None)
    if copy.filling is not None:
        journal.set(copy, "filling", None)
    _recount(state, pool, node, copy, before)


def _recount(state: State, pool: Pool, node: Node, copy: Copy, before: bool) -> None:
    """Keep what the pool counts as unpinned, and offer what became evictable."""
    after = copy.unpinned
    if after != before:
        blocks = node.end - node.start
        state.journal.set(pool, "unpinned", pool.unpinned + (blocks if after else -blocks))
    if after and copy.branches == 0:
        pool.eviction_order.offer(node, copy)


def drop_unfinished(state: State, pool: Pool, leaf: Node) -> BlockRanges:
    """Drop the pending copies at the end of a path that no request covers any more; their bytes never came."""
    dropped: BlockRanges = ()
    for node in unfinished(leaf, pool.name, refs=0, since=0):
        dropped = ranges.join(remove_copy(state, pool, node), dropped)
    return dropped


def unfinished(leaf: Node, pool: str, *, refs: int, since: int) -> list[Node]:
    """From `leaf` up, the nodes pending at least `since`, with `refs` refs and nothing below but the nodes before."""
    nodes: list[Node] = []
    for node in path_nodes(leaf):
        copy = node.copies[pool]
        if copy.pending is None or copy.filling is not None or copy.pending_since < since:
            break
        if copy.refs != refs or copy.branches != (1 if nodes else 0):
            break
        nodes.append(node)
    return nodes


def mark_ready(state: State, pool: Pool, node: Node) -> None:
    """The bytes from the root to the end of `node` are there. Pending copies are always the lower end of a path."""
    for covered in path_nodes(node):
        copy = covered.copies[pool.name]
        if copy.pending is None:
            return
        if copy.filling is not None:
            raise CorruptState(f"node {covered.id} is being filled by {copy.filling!r}, nobody else makes it ready")
        set_ready(state, pool, covered)


def drop_tail(state: State, pool: Pool, node: Node, blocks: int) -> tuple[Node, BlockRanges]:
    """Drop the last `blocks` blocks of the copies that end with `node`, climbing as far as that takes.

    Returns the node where the remaining path ends, and the ids in token order. They are not put anywhere yet.
    """
    dropped: BlockRanges = ()
    while blocks:
        copy = node.copies.get(pool.name)
        if copy is None or not copy.evictable:
            raise CorruptState(f"node {node.id} has no copy in pool {pool.name!r} that could be dropped")
        run = node.end - node.start
        if blocks < run:
            node, ids = _drop_part(state, pool, node, run - blocks)
            blocks = 0
        else:
            assert node.parent is not None
            ids, node = remove_copy(state, pool, node), node.parent
            blocks -= run
        dropped = ranges.join(ids, dropped)
    return node, dropped


def _drop_part(state: State, pool: Pool, node: Node, kept: int) -> tuple[Node, BlockRanges]:
    """Keep the first `kept` blocks of a copy. Returns the node that ends there, and the ids that went."""
    if len(node.copies) > 1 or node.children:
        upper = _split(state, node, node.start + kept)
        return upper, remove_copy(state, pool, node)
    journal, copy = state.journal, node.copies[pool.name]
    head, tail = ranges.split(copy.blocks, kept)
    journal.set(pool, "unpinned", pool.unpinned - (node.end - node.start - kept))
    journal.set(copy, "blocks", head)
    journal.set(node, "hashes", node.hashes[: kept * BLOCK_HASH_BYTES])
    journal.set(node, "end", node.start + kept)
    pool.eviction_order.offer(node, copy)
    return node, tail


def remove_copy(state: State, pool: Pool, node: Node) -> BlockRanges:
    """Take a copy nobody uses off its node; the node goes with its last copy. Returns the ids."""
    journal, copy = state.journal, node.copies[pool.name]
    assert copy.refs == 0, f"node {node.id} is dropped from pool {pool.name!r} with {copy.refs} refs"
    journal.drop(node.copies, pool.name)
    if copy.unpinned:
        journal.set(pool, "unpinned", pool.unpinned - (node.end - node.start))
    _count_branch(state, pool, node, -1)
    _remove_empty(state, node)
    return copy.blocks


def _remove_empty(state: State, node: Node) -> None:
    """A node goes when it has neither copies nor children; then its parent may have to go too."""
    while not node.copies and not node.children and node.parent is not None:
        parent = node.parent
        state.journal.drop(parent.children, node.key)
        state.journal.drop(state.nodes, node.id)
        node = parent


def _count_branch(state: State, pool: Pool, node: Node, change: int) -> None:
    """A child's copy came or went: its parent may not, or may now, be evicted."""
    parent = node.parent
    assert parent is not None
    if parent.parent is None:
        return
    copy = parent.copies.get(pool.name)
    if copy is None:
        assert pool.tier != GPU, "the copies of a GPU pool form a prefix"
        return
    state.journal.set(copy, "branches", copy.branches + change)
    if copy.evictable:
        pool.eviction_order.offer(parent, copy)
