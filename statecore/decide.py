"""What to do about a command: facts, or a rejection. Chooses; reads only.

Owns the table of all commands, and what requests do to the tree: which prefix, what is a duplicate, what is refused. Which
blocks is in `assign.py`, lives of engines and the index as a whole in `administer.py`. The facts returned already hold
when applied in order; nothing here changes the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs

from events.facts import (
    BLOCK_HASH_BYTES,
    BlockRanges,
    Fact,
    PathExtended,
    PathReady,
    PrefixMatched,
    RequestReleased,
    SendStarted,
    TransferCancelled,
    TransferStarted,
)
from statecore import administer, assign, ranges, sends, tree
from statecore.commands import (
    Adopt,
    Allocate,
    AllocateHost,
    BringIn,
    CancelTransfer,
    Clear,
    Command,
    Depose,
    Extend,
    Forget,
    Join,
    Leave,
    MakeRoom,
    MarkReady,
    Match,
    Pause,
    Recycle,
    Release,
    Resize,
    Resume,
    Send,
)
from statecore.decision import Decision, computed_meanwhile, engine_of, ready_to, request_of
from statecore.rejections import (
    PathDiffers,
    PathInUse,
    PathNotCovered,
    PathNotFilled,
    PathShorter,
    Paused,
    Rejection,
    RequestExists,
    Sending,
    UnknownTransfer,
)
from statecore.state import Engine, Request, State, private_ranges
from statecore.tiers import bring_in
from statecore.transfers import transfer_id


def decide(state: State, command: Command) -> Decision:
    """Facts that carry the command out (none if there is nothing to do), or why it is refused."""
    decision = _DECIDE[type(command)](state, command)
    return decision if isinstance(decision, Rejection) else numbered(state, decision)


def numbered(state: State, facts: Sequence[Fact]) -> Sequence[Fact]:
    """Give the transfers of a complete decision their ids, in order."""
    if not any(type(fact) in _NUMBERED for fact in facts):
        return facts
    complete: list[Fact] = []
    started = 0
    for fact in facts:
        if isinstance(fact, TransferStarted | SendStarted):
            engine = state.engines[fact.engine]
            complete.append(attrs.evolve(fact, transfer=transfer_id(engine, ahead=started)))
            started += 1
        else:
            complete.append(fact)
    return complete


# --- requests -------------------------------------------------------------------------------------------------------


def _match(state: State, command: Match) -> Decision:
    engine = engine_of(state, command.engine)
    if isinstance(engine, Rejection):
        return engine
    if command.request in engine.requests:
        return RequestExists(engine.name, command.request)
    if state.paused_by is not None:
        return Paused(state.paused_by, state.paused_for)
    limit = len(command.hashes) // BLOCK_HASH_BYTES
    if command.limit is not None:
        limit = min(limit, command.limit)
    node, depth = tree.longest_match(state.root, engine.gpu_pool, engine.name, command.hashes, limit)
    return [PrefixMatched(engine.name, command.request, tree.place(state, node), depth, command.prompt_tokens)]


def _bring_in(state: State, command: BringIn) -> Decision:
    found = request_of(state, command.engine, command.request)
    if isinstance(found, Rejection):
        return found
    engine, request = found
    limit = len(command.hashes) // BLOCK_HASH_BYTES
    if command.limit is not None:
        limit = min(limit, command.limit)
    last = request.leaf.copies.get(engine.gpu_pool)
    if request.private or (last is not None and last.pending is not None and last.filling is None):
        return []  # nothing can be fetched behind blocks of one's own, or behind blocks that may never be computed
    return bring_in(state, engine, request, command.hashes, limit)


def _cancel(state: State, command: CancelTransfer) -> Decision:
    transfer, send = state.transfers.get(command.transfer), state.sends.get(command.transfer)
    if transfer is not None and not transfer.cancelled and transfer.engine == command.engine:
        return [TransferCancelled(transfer.id, command.reason)]
    if send is not None and not send.cancelled and command.engine in (send.engine, send.receiver):
        return [TransferCancelled(send.id, command.reason)]
    return UnknownTransfer(command.transfer)


def _extend(state: State, command: Extend) -> Decision:
    found = request_of(state, command.engine, command.request)
    if isinstance(found, Rejection):
        return found
    engine, request = found
    path, target = request.path_blocks, len(command.hashes) // BLOCK_HASH_BYTES
    known = min(path, target) * BLOCK_HASH_BYTES
    if known and not _ends_with(request, command.hashes[:known]):
        return PathDiffers(request.id, path)
    if state.transfers and (filling := tree.filling_on(request.leaf, engine.gpu_pool)) is not None:
        return PathNotFilled(request.id, filling)
    private = ranges.count(request.private)
    if target > path + private:
        return PathNotCovered(request.id, target, path, private)
    if state.sends and (writing := sends.writing(state, engine.gpu_pool, request.private)):
        return PathNotFilled(request.id, writing[0].id)
    facts = computed_meanwhile(state, engine, request)
    hashes, adopted, duplicates = _adoption(engine, request, command.hashes[path * BLOCK_HASH_BYTES :])
    if hashes:
        facts.append(PathExtended(engine.name, request.id, path, hashes, adopted, duplicates))
    return facts


def _ready(state: State, command: MarkReady) -> Decision:
    found = request_of(state, command.engine, command.request)
    if isinstance(found, Rejection):
        return found
    engine, request = found
    depth = request.path_blocks if command.depth is None else command.depth
    if depth > request.path_blocks:
        return PathShorter(request.id, depth, request.path_blocks)
    return ready_to(engine, request, depth)


def _release(state: State, command: Release) -> Decision:
    found = request_of(state, command.engine, command.request)
    if isinstance(found, Rejection):
        return found
    engine, request = found
    facts = computed_meanwhile(state, engine, request)
    freed = private_ranges(request)
    done = max((fact.depth for fact in facts if isinstance(fact, PathReady)), default=0)
    for node in tree.unfinished(request.leaf, engine.gpu_pool, refs=1, since=0):
        if node.end <= done:
            break
        _, never = ranges.split(node.copies[engine.gpu_pool].blocks, max(0, done - node.start))
        freed = ranges.join(never, freed)
    if _leaves_others_behind(state, engine, request):
        return PathInUse(request.id)
    if state.sends:
        reading = sends.of_request(state, engine.name, request.id) or sends.reading(state, engine.gpu_pool, freed)
        if reading is not None:
            return Sending(reading.id, reading.receiver)
        facts += sends.given_up(state, engine.gpu_pool, freed)
    facts.append(RequestReleased(engine.name, request.id, freed))
    return facts


# --- shared ---------------------------------------------------------------------------------------------------------


def _leaves_others_behind(state: State, engine: Engine, request: Request) -> bool:
    """Whether another request stands on blocks this one brought in this very step, and will now never compute."""
    for node in tree.path_nodes(request.leaf):
        copy = node.copies[engine.gpu_pool]
        if copy.pending is None or copy.filling is not None or copy.pending_since < state.clock:
            return False
        if node.start >= request.matched and copy.refs > 1:
            return True
    return False


def _adoption(engine: Engine, request: Request, hashes: bytes) -> tuple[bytes, BlockRanges, BlockRanges]:
    """Which of the request's private blocks the tree would take over for `hashes`, and which double what it has.

    The path stops where another engine is still computing the same content, or a transfer bringing it: that may fail.
    """
    pool, private = engine.gpu_pool, request.private
    adopted: BlockRanges = ()
    duplicates: BlockRanges = ()
    node, offset = request.leaf, 0
    while offset < len(hashes):
        child = node.children.get(hashes[offset : offset + BLOCK_HASH_BYTES])
        copy = None if child is None else child.copies.get(pool)
        if child is None or copy is None:
            blocks = (len(hashes) - offset) // BLOCK_HASH_BYTES
            own, private = ranges.split(private, blocks)
            return hashes, ranges.join(adopted, own), duplicates
        if copy.pending not in (None, engine.name) or copy.filling is not None:
            return hashes[:offset], adopted, duplicates
        blocks = tree.common_blocks(child.hashes, hashes, offset)
        own, private = ranges.split(private, blocks)
        duplicates = ranges.join(duplicates, own)
        offset += blocks * BLOCK_HASH_BYTES
        node = child
        if blocks < child.end - child.start:
            own, private = ranges.split(private, (len(hashes) - offset) // BLOCK_HASH_BYTES)
            return hashes, ranges.join(adopted, own), duplicates
    return hashes, adopted, duplicates


def _ends_with(request: Request, hashes: bytes) -> bool:
    """Whether the path holds `hashes` from the root on. A hash commits to all before it, so the last one decides."""
    depth = len(hashes) // BLOCK_HASH_BYTES
    node = request.leaf
    while depth <= node.start:
        assert node.parent is not None
        node = node.parent
    end = (depth - node.start) * BLOCK_HASH_BYTES
    return node.hashes[end - BLOCK_HASH_BYTES : end] == hashes[-BLOCK_HASH_BYTES:]


_NUMBERED: Final = (TransferStarted, SendStarted)

_DECIDE: Final[dict[type, Callable[[State, Any], Decision]]] = {
    Join: administer.join,
    Leave: administer.leave,
    Depose: administer.depose,
    Pause: administer.pause,
    Resume: administer.resume,
    Clear: administer.clear,
    Forget: administer.forget,
    Resize: administer.resize,
    Match: _match,
    BringIn: _bring_in,
    CancelTransfer: _cancel,
    Allocate: assign.allocate,
    AllocateHost: assign.allocate_host,
    Adopt: assign.adopt,
    MakeRoom: assign.make_room_for,
    Recycle: assign.recycle,
    Extend: _extend,
    MarkReady: _ready,
    Release: _release,
    Send: assign.send,
}
