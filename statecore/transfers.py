"""What the facts about transfers do to the state: the second tier's half of evolve.

Owns the life of a transfer:

| fact             | source                                            | destination                                      |
|------------------|---------------------------------------------------|--------------------------------------------------|
| started          | one ref more; leaving, if a swap-out              | filling: usable by nobody but its engine         |
| finished, ok     | one ref less; if leaving and used by nobody, gone | ready                                            |
| finished, failed | one ref less, stays                               | gone, its blocks free; paths over it are cut     |
| cancelled        | one ref less, stays                               | gone, its blocks in quarantine until the finish  |

A finish or cancel for a transfer nobody knows is ignored and counted: it was late, or came twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from events.errors import CorruptState
from events.facts import BlockRanges, TransferCancelled, TransferFinished, TransferStarted
from statecore import ranges, sends, tree
from statecore.state import KINDS, SWAP_IN, SWAP_OUT, Engine, Node, Pool, State, Transfer


def started(state: State, fact: TransferStarted) -> Node:
    engine, journal = state.engines[fact.engine], state.journal
    if not engine.alive:
        raise CorruptState(f"engine {fact.engine!r} starts a transfer after its session ended")
    if fact.kind not in KINDS:
        raise CorruptState(f"transfer of kind {fact.kind!r}")
    if fact.transfer != transfer_id(engine):
        raise CorruptState(f"transfer {fact.transfer!r} is not number {engine.transfers}")
    if fact.source == fact.destination:
        raise CorruptState(f"transfer from {fact.source!r} to itself")
    if not 0 <= fact.start < fact.end:
        raise CorruptState(f"transfer {fact.transfer!r} moves blocks {fact.start} to {fact.end}")
    source, destination = state.pools[fact.source], state.pools[fact.destination]
    node = tree.ending_at(state, tree.node_at(state, fact.node, fact.end), fact.end)
    transfer = Transfer(fact, node, engine.tensor_parallel_size)
    _cut_at(state, node, fact.start)
    journal.set(engine, "transfers", engine.transfers + 1)
    journal.put(state.transfers, transfer.id, transfer)
    journal.call(destination.free.remove, destination.free.add, fact.destination_blocks)
    nodes = list(_segment(transfer))
    left, read = fact.destination_blocks, ranges.NONE
    for part in reversed(nodes):
        copy = part.copies[source.name]
        if not (copy.pending is None and copy.leaving is None):
            raise CorruptState(f"node {part.id} cannot be read now")
        own, left = ranges.split(left, part.end - part.start)
        read = ranges.join(read, copy.blocks)
        if destination.name in part.copies:
            raise CorruptState(f"node {part.id} has a copy in {destination.name!r} already")
        tree.add_ref(state, source, part, +1)
        if fact.kind == SWAP_OUT:
            journal.set(copy, "leaving", transfer.id)
        tree.add_copy(state, part, destination, own, refs=0, pending=engine.name, filling=transfer.id)
    if not (read == fact.source_blocks and (not left)):
        raise CorruptState(f"the source holds {read}")
    if fact.kind == SWAP_IN:
        for part in nodes:
            journal.set(part.copies[source.name], "last_used", state.clock)
        _lengthen(state, engine, fact, node, nodes)
    return node


def finished(state: State, fact: TransferFinished) -> Node | None:
    send = state.sends.get(fact.transfer)
    if send is not None:
        sends.finished(state, send, fact.ok)
        return None
    transfer = state.transfers.get(fact.transfer)
    if transfer is None:
        state.journal.set(state, "ignored_finishes", state.ignored_finishes + 1)
        return None
    state.journal.drop(state.transfers, transfer.id)
    source, destination = state.pools[transfer.source], state.pools[transfer.destination]
    if transfer.cancelled:
        _free(state, destination, transfer.quarantine)
    elif fact.ok:
        _succeed(state, transfer, source, destination)
    else:
        if transfer.kind != SWAP_IN:
            for node in _segment(transfer):
                state.journal.set(node.copies[source.name], "unwritable", True)
        _free(state, destination, _take_back(state, transfer, source, destination))
    return None


def cancelled(state: State, fact: TransferCancelled) -> None:
    transfer, send = state.transfers.get(fact.transfer), state.sends.get(fact.transfer)
    if send is not None and not send.cancelled:
        sends.cancelled(state, send)
    elif transfer is None or transfer.cancelled:  # it finished, or lost its prefix, before this landed
        state.journal.set(state, "ignored_finishes", state.ignored_finishes + 1)
    else:
        _quarantine(state, transfer)


def transfer_id(engine: Engine, ahead: int = 0) -> str:
    """Id of the next transfer this engine starts, or of one `ahead` after it."""
    return f"{engine.name}:{engine.transfers + ahead}"


def covers(request_leaf: Node, pool: str, transfer: str) -> bool:
    """Whether a path ends with blocks that this transfer is filling."""
    return any(node.copies[pool].filling == transfer for node in tree.path_nodes(request_leaf))


# --- inside ---------------------------------------------------------------------------------------------------------


def _succeed(state: State, transfer: Transfer, source: Pool, destination: Pool) -> None:
    journal = state.journal
    for node in list(_segment(transfer)):
        blocks = node.end - node.start
        tree.set_ready(state, destination, node)
        copy = node.copies[source.name]
        tree.add_ref(state, source, node, -1)
        if copy.leaving == transfer.id:
            journal.set(copy, "leaving", None)
            if copy.evictable:
                _free(state, source, tree.remove_copy(state, source, node))
            elif copy.refs:
                journal.set(source, "rescued", source.rescued + blocks)
    journal.set(destination, "arrived", destination.arrived + transfer.blocks)


def _take_back(state: State, transfer: Transfer, source: Pool, destination: Pool) -> BlockRanges:
    """Undo a start: unpin the source, take the destination off the tree. Returns its blocks, in token order."""
    if transfer.kind == SWAP_IN:
        _cut_back(state, transfer, destination)
    taken: BlockRanges = ()
    for node in list(_segment(transfer)):
        copy = node.copies[source.name]
        tree.add_ref(state, source, node, -1)
        if copy.leaving == transfer.id:
            state.journal.set(copy, "leaving", None)
        taken = ranges.join(tree.remove_copy(state, destination, node), taken)
    return taken


def _quarantine(state: State, transfer: Transfer) -> None:
    blocks = _take_back(state, transfer, state.pools[transfer.source], state.pools[transfer.destination])
    state.journal.set(transfer, "quarantine", blocks)
    state.journal.set(transfer, "cancelled", True)


def _cut_back(state: State, transfer: Transfer, pool: Pool) -> None:
    """Bytes that a path counted on will not come: end every path over them before them.

    A path may go on below with blocks another transfer is filling or has filled; without their prefix they go too.
    """
    top = next(node for node in tree.path_nodes(transfer.node) if node.start <= transfer.start)
    assert top.parent is not None
    starter, tokens = state.engines[transfer.engine], transfer.blocks * state.block_size
    state.journal.set(starter, "matched_tokens", starter.matched_tokens - tokens)
    state.journal.set(starter, "host_tokens", starter.host_tokens - tokens)
    for engine in state.engines.values():
        if engine.gpu_pool != pool.name:
            continue
        for request_id in sorted(engine.requests):
            request = engine.requests[request_id]
            if request.leaf.end > transfer.start and covers(request.leaf, pool.name, transfer.id):
                tree.unpin(state, pool, request.leaf, above=transfer.start)
                state.journal.set(request, "leaf", top.parent)
                state.journal.set(request, "matched", top.parent.end)
    below = set(map(id, _below(transfer, pool.name)))
    for other in sorted(state.transfers):
        reader = state.transfers[other]
        if reader.source == pool.name and not reader.cancelled and id(reader.node) in below:
            _quarantine(state, reader)
    fillings = {node.copies[pool.name].filling for node in _below(transfer, pool.name)} - {None}
    for other in sorted(filling for filling in fillings if filling is not None):
        if not state.transfers[other].cancelled:  # by one above it, just now
            _quarantine(state, state.transfers[other])
    for node in _below(transfer, pool.name):
        _free(state, pool, tree.remove_copy(state, pool, node))


def _below(transfer: Transfer, pool: str) -> list[Node]:
    """What hangs in this pool below a transfer's blocks, deepest first."""
    inside = set(map(id, _segment(transfer)))
    below: list[Node] = []
    stack = [child for node in _segment(transfer) for child in node.children.values() if id(child) not in inside]
    while stack:
        node = stack.pop()
        if pool in node.copies:
            below.append(node)
            stack += node.children.values()
    return sorted(below, key=lambda node: (-node.end, node.id))


def _lengthen(state: State, engine: Engine, fact: TransferStarted, node: Node, nodes: list[Node]) -> None:
    """A swap-in for a request: its path goes on over what is being brought."""
    if fact.request is None:
        raise CorruptState("a swap-in belongs to a request")
    assert fact.request is not None
    request, journal = engine.requests[fact.request], state.journal
    if request.path_blocks != fact.start:
        raise CorruptState(f"a path of {request.path_blocks} blocks goes on at {fact.start}")
    if request.private:
        raise CorruptState("a path goes on before blocks of one's own")
    pool = state.pools[fact.destination]
    for part in nodes:
        tree.pin_copy(state, pool, part)
    journal.set(request, "leaf", node)
    journal.set(request, "matched", node.end)
    tokens = (fact.end - fact.start) * state.block_size
    journal.set(engine, "matched_tokens", engine.matched_tokens + tokens)
    journal.set(engine, "host_tokens", engine.host_tokens + tokens)
    if fact.start == 0:
        journal.set(engine, "requests_hit", engine.requests_hit + 1)


def _cut_at(state: State, node: Node, depth: int) -> None:
    """Make `depth` a boundary between nodes on the path to `node`."""
    for part in tree.path_nodes(node):
        if part.start < depth < part.end:
            tree.ending_at(state, part, depth)
            return
        if part.start <= depth:
            return


def _segment(transfer: Transfer) -> Iterator[Node]:
    """The nodes of a transfer, from its lower end up."""
    for node in tree.path_nodes(transfer.node):
        if node.end <= transfer.start:
            return
        yield node


def _free(state: State, pool: Pool, blocks: BlockRanges) -> None:
    state.journal.call(pool.free.add, pool.free.remove, blocks)
