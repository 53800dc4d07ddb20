"""What must hold in every state, recounted from scratch rather than trusted.

Owns the checks of design section 4. Each violation is a sentence with the numbers; an empty list means a sound state.
Used by tests after every fact, by the simulator, by `statecore verify`.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from events.facts import BLOCK_HASH_BYTES
from statecore import ranges
from statecore.sends import Send, not_owned
from statecore.state import GPU, ROOT_ID, Copy, Engine, Node, Pool, State, Transfer, private_ranges, request_table


def violations(state: State) -> list[str]:
    """Every broken invariant, in words."""
    found = _tree(state) or _paths(state)
    if found:
        return found  # counts over a broken tree would only repeat it
    refs = _expected_refs(state)
    for node in state.nodes.values():
        for name, copy in node.copies.items():
            found += _copy(state, node, name, copy, refs[node.id, name])
    for pool in state.pools.values():
        found += _pool(state, pool)
    for engine in state.engines.values():
        found += _engine(engine)
    for transfer in state.transfers.values():
        found += _transfer(transfer)
    for send in state.sends.values():
        found += _send(state, send)
    return found


def leaked_blocks(state: State) -> int:
    """Blocks that belong to nobody: neither free, nor cached, nor of a live request or engine. Recounted."""
    refs = _expected_refs(state)
    leaked = 0
    for pool in state.pools.values():
        owned = pool.free.total
        for node in state.nodes.values():
            copy = node.copies.get(pool.name)
            if copy is not None and copy.refs == refs[node.id, pool.name]:
                owned += ranges.count(copy.blocks)
        for engine in state.engines.values():
            if engine.alive and pool.name in engine.held:
                owned += engine.held[pool.name].total
            if engine.alive and engine.gpu_pool == pool.name:
                owned += sum(ranges.count(private_ranges(request)) for request in engine.requests.values())
        owned += sum(
            ranges.count(transfer.quarantine)
            for transfer in state.transfers.values()
            if transfer.destination == pool.name
        )
        owned += sum(ranges.count(send.quarantine) for send in state.sends.values() if send.destination == pool.name)
        leaked += pool.blocks - owned
    return leaked


def _tree(state: State) -> list[str]:
    found = []
    seen = 0
    stack: list[Node] = [state.root]
    while stack:
        node = stack.pop()
        seen += 1
        if state.nodes.get(node.id) is not node:
            found.append(f"node {node.id} hangs in the tree but is not listed")
        if node.end - node.start != len(node.hashes) // BLOCK_HASH_BYTES or (node.end == node.start) != (
            node.id == ROOT_ID
        ):
            found.append(
                f"node {node.id} covers blocks {node.start}…{node.end} with {len(node.hashes)} bytes of hashes"
            )
        if node.id != ROOT_ID and not node.copies and not node.children:
            found.append(f"node {node.id} has neither a copy nor a child")
        for key, child in node.children.items():
            if child.parent is not node or child.start != node.end or child.key != key:
                found.append(f"node {child.id} does not fit below node {node.id}")
            stack.append(child)
    if seen != len(state.nodes):
        found.append(f"{len(state.nodes)} nodes are listed, {seen} hang in the tree")
    return found


def _paths(state: State) -> list[str]:
    """Every request's path hangs in the tree, is held by its pool, and its duplicates lie on it."""
    found = []
    for engine in state.engines.values():
        for request in engine.requests.values():
            where = f"request {request.id!r} of engine {engine.name!r}"
            node = request.leaf
            while node.parent is not None:
                if state.nodes.get(node.id) is not node:
                    found.append(f"{where} stands on node {node.id}, which is not in the tree")
                if engine.gpu_pool not in node.copies:
                    found.append(f"{where} stands on node {node.id}, which has no copy in pool {engine.gpu_pool!r}")
                node = node.parent
            for depth, blocks in request.duplicates:
                if not 0 <= depth <= request.path_blocks - ranges.count(blocks):
                    found.append(f"{where} has duplicates at depth {depth} of a path of {request.path_blocks} blocks")
    return found


def _expected_refs(state: State) -> Counter[tuple[int, str]]:
    refs: Counter[tuple[int, str]] = Counter()
    for engine in state.engines.values():
        for request in engine.requests.values():
            node = request.leaf
            while node.parent is not None:
                refs[node.id, engine.gpu_pool] += 1
                node = node.parent
    for transfer in state.transfers.values():
        if not transfer.cancelled:
            for node in _nodes_of(transfer):
                refs[node.id, transfer.source] += 1
    return refs


def _nodes_of(transfer: Transfer) -> list[Node]:
    nodes = []
    node: Node | None = transfer.node
    while node is not None and node.end > transfer.start:
        nodes.append(node)
        node = node.parent
    return nodes


def _transfer(transfer: Transfer) -> list[str]:
    found: list[str] = []
    where = f"transfer {transfer.id!r}"
    if transfer.cancelled:
        return found if ranges.count(transfer.quarantine) == transfer.blocks else [f"{where} lost quarantined blocks"]
    nodes = _nodes_of(transfer)
    if transfer.node.end != transfer.end or nodes[-1].start != transfer.start:
        found.append(f"{where} does not begin and end with runs")
    for node in nodes:
        source, destination = node.copies.get(transfer.source), node.copies.get(transfer.destination)
        if source is None or source.pending is not None:
            found.append(f"{where} reads node {node.id}, which is not ready")
        if destination is None or destination.filling != transfer.id:
            found.append(f"{where} does not fill node {node.id}")
    return found


def _send(state: State, send: Send) -> list[str]:
    """Nobody else may get what it reads while it counts, nor what it writes until it has ended."""
    found = []
    where = f"send {send.id!r}"
    for owner, blocks, matters in (
        (send.engine, send.source_blocks, not send.cancelled),
        (send.receiver, ranges.without(send.destination_blocks, send.quarantine), True),
    ):
        engine = state.engines.get(owner)
        if matters and (engine is None or (lost := not_owned(engine, blocks))):
            found.append(f"{where}: blocks {blocks if engine is None else lost} are not engine {owner!r}'s")
    return found


def _copy(state: State, node: Node, pool: str, copy: Copy, refs: int) -> list[str]:
    found = []
    where = f"copy of node {node.id} in pool {pool!r}"
    if pool not in state.pools:
        return [f"{where}: no such pool"]
    if ranges.count(copy.blocks) != node.end - node.start:
        found.append(f"{where} holds {ranges.count(copy.blocks)} blocks for a run of {node.end - node.start}")
    if copy.refs != refs:
        found.append(f"{where} counts {copy.refs} refs, {refs} requests cover it")
    branches = sum(pool in child.copies for child in node.children.values())
    if copy.branches != branches:
        found.append(f"{where} counts {copy.branches} branches, there are {branches}")
    parent = node.parent
    if parent is not None and parent.parent is not None and state.pools[pool].tier == GPU:
        above = parent.copies.get(pool)
        if above is None:
            found.append(f"{where} has no copy above it: the copies of a pool form a prefix")
        elif above.pending is not None and above.filling is None and copy.pending != above.pending:
            found.append(f"{where} is ready below one that is pending")
    found += _promises(state, pool, copy, where)
    if copy.last_used > state.clock:
        found.append(f"{where} was last used at {copy.last_used}, in the future of {state.clock}")
    return found


def _promises(state: State, pool: str, copy: Copy, where: str) -> list[str]:
    """Somebody will finish what is pending, filling or leaving."""
    found = []
    if copy.filling is not None:
        transfer = state.transfers.get(copy.filling)
        if transfer is None or transfer.cancelled or transfer.destination != pool or copy.pending is None:
            found.append(f"{where} is filled by {copy.filling!r}, which does not fill it")
    elif copy.pending is not None:
        engine = state.engines.get(copy.pending)
        if engine is None or not engine.alive or copy.refs == 0:
            found.append(f"{where} is pending for {copy.pending!r}, who will not finish it")
    if copy.leaving is not None:
        transfer = state.transfers.get(copy.leaving)
        if transfer is None or transfer.cancelled or transfer.source != pool:
            found.append(f"{where} leaves by {copy.leaving!r}, which does not take it")
    return found


def _order(state: State, pool: Pool) -> list[str]:
    entries = pool.eviction_order.entries()
    return [
        f"copy of node {node.id} in pool {pool.name!r} could be evicted, but stands in no order"
        for node in state.nodes.values()
        if (copy := node.copies.get(pool.name)) is not None
        and copy.evictable
        and (copy.last_used, -node.end, node.id) not in entries
    ]


def _pool(state: State, pool: Pool) -> list[str]:
    """Every block id is in exactly one place, and the counts agree."""
    found = _order(state, pool)
    owners = _owners(state, pool)
    copies = [(node, node.copies[pool.name]) for node in state.nodes.values() if pool.name in node.copies]
    unpinned = sum(node.end - node.start for node, copy in copies if copy.unpinned)
    spans = sorted((start, length, owner) for owner, spans in owners.items() for start, length in spans)
    expected = 0
    for start, length, owner in spans:
        if start != expected:
            fault = f"block {expected} is nowhere" if start > expected else f"block {start} is in two places"
            found.append(f"pool {pool.name!r}: {fault} (next: {owner} from {start})")
        expected = start + length
    if expected != pool.blocks:
        found.append(f"pool {pool.name!r} ends at block {expected}, it has {pool.blocks}")
    free = sum(length for _, length in pool.free)
    if free != pool.free.total:
        found.append(f"pool {pool.name!r} counts {pool.free.total} free blocks, there are {free}")
    if unpinned != pool.unpinned:
        found.append(f"pool {pool.name!r} counts {pool.unpinned} unpinned blocks, there are {unpinned}")
    return found


def _owners(state: State, pool: Pool) -> dict[str, list[tuple[int, int]]]:
    owners: dict[str, list[tuple[int, int]]] = defaultdict(list)
    owners["free"] += pool.free
    for node in state.nodes.values():
        if pool.name in node.copies:
            owners[f"node {node.id}"] += node.copies[pool.name].blocks
    for engine in state.engines.values():
        if pool.name in engine.held:
            owners[f"engine {engine.name!r}"] += engine.held[pool.name]
        if engine.gpu_pool == pool.name:
            for request in engine.requests.values():
                owners[f"request {request.id!r}"] += private_ranges(request)
    for transfer in state.transfers.values():
        if transfer.destination == pool.name:
            owners[f"transfer {transfer.id!r}"] += transfer.quarantine
    for send in state.sends.values():
        if send.destination == pool.name:
            owners[f"send {send.id!r}"] += send.quarantine
    return owners


def _engine(engine: Engine) -> list[str]:
    found = []
    if not engine.alive and (engine.requests or any(held.total for held in engine.held.values())):
        found.append(f"engine {engine.name!r} is gone and still has requests or blocks")
    for request in engine.requests.values():
        table = ranges.count(request_table(request, engine.gpu_pool))
        expected = request.path_blocks + ranges.count(request.private)
        if table != expected:
            found.append(f"request {request.id!r} has a table of {table} blocks, path and private are {expected}")
    return found
