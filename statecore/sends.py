"""Handing a request over: what the facts about sends do to the state.

Owns the record of a send under way. A send moves bytes between two GPU pools and changes nobody's ownership: the sender's
blocks stay the sender's, the receiver's stay the receiver's. What it owes is that no block is given to somebody else
while a worker may still write it:

| a block leaves its owner                 | then                                                             |
|------------------------------------------|------------------------------------------------------------------|
| source, the send goes on                 | refused by decide: the receiver would get somebody else's bytes  |
| destination, before every rank reported  | the send is cancelled, the block waits in quarantine for the end |
"""

from __future__ import annotations

from events.errors import CorruptState
from events.facts import BlockRanges, SendStarted, TransferCancelled
from statecore import ranges
from statecore.state import Engine, Pool, State, request_table


class Send:
    """A request's bytes on their way to another engine.

    Attributes:
        cancelled: nobody wants the outcome.
        quarantine: destination blocks whose owner has gone; free when every rank has reported.
    """

    __slots__ = (
        "cancelled",
        "destination",
        "destination_blocks",
        "engine",
        "id",
        "quarantine",
        "ranks",
        "receiver",
        "request",
        "source",
        "source_blocks",
    )

    def __init__(self, started: SendStarted, ranks: int) -> None:
        self.id = started.transfer
        self.engine = started.engine
        self.request = started.request
        self.receiver = started.receiver
        self.source = started.source
        self.source_blocks = started.source_blocks
        self.destination = started.destination
        self.destination_blocks = started.destination_blocks
        self.ranks = ranks
        self.cancelled = False
        self.quarantine: BlockRanges = ()

    @property
    def blocks(self) -> int:
        return ranges.count(self.source_blocks)


def started(state: State, fact: SendStarted) -> None:
    engine, receiver = state.engines[fact.engine], state.engines[fact.receiver]
    if not (engine.alive and receiver.alive):
        raise CorruptState(f"a send between {fact.engine!r} and {fact.receiver!r}, one of which is gone")
    if fact.transfer != f"{engine.name}:{engine.transfers}":
        raise CorruptState(f"transfer {fact.transfer!r} is not number {engine.transfers}")
    if fact.source == fact.destination or (fact.source, fact.destination) != (engine.gpu_pool, receiver.gpu_pool):
        raise CorruptState(f"a send from pool {fact.source!r} to {fact.destination!r}")
    if ranges.count(fact.source_blocks) != ranges.count(fact.destination_blocks) or not fact.source_blocks:
        raise CorruptState(f"a send of {fact.source_blocks} to {fact.destination_blocks}")
    for owner, blocks in ((engine, fact.source_blocks), (receiver, fact.destination_blocks)):
        if lost := not_owned(owner, blocks):
            raise CorruptState(f"a send of blocks {lost[:8]}, which are not engine {owner.name!r}'s")
    if writing(state, fact.destination, fact.destination_blocks):
        raise CorruptState(f"two sends write to {fact.destination_blocks}")
    state.journal.set(engine, "transfers", engine.transfers + 1)
    state.journal.put(state.sends, fact.transfer, Send(fact, engine.tensor_parallel_size))


def finished(state: State, send: Send, ok: bool) -> None:
    state.journal.drop(state.sends, send.id)
    pool = state.pools[send.destination]
    state.journal.call(pool.free.add, pool.free.remove, send.quarantine)
    if ok and not send.cancelled:
        state.journal.set(pool, "arrived", pool.arrived + send.blocks)


def cancelled(state: State, send: Send) -> None:
    state.journal.set(send, "cancelled", True)


def give_back(state: State, pool: Pool, blocks: BlockRanges) -> None:
    """Blocks that have lost their owner become free; those a worker may still write, when it has reported."""
    for send in state.sends.values():
        if send.destination == pool.name:
            written = overlap(blocks, send.destination_blocks)
            if written:
                state.journal.set(send, "quarantine", ranges.join(send.quarantine, written))
                blocks = ranges.without(blocks, written)
    state.journal.call(pool.free.add, pool.free.remove, blocks)


def writing(state: State, pool: str, blocks: BlockRanges) -> list[Send]:
    """Sends whose workers may still write some of `blocks`, in the order they began."""
    return [
        send for send in state.sends.values() if send.destination == pool and overlap(blocks, send.destination_blocks)
    ]


def reading(state: State, pool: str, blocks: BlockRanges) -> Send | None:
    """A send that somebody counts on and that still reads some of `blocks`."""
    for send in state.sends.values():
        if send.source == pool and not send.cancelled and overlap(blocks, send.source_blocks):
            return send
    return None


def of_request(state: State, engine: str, request: str) -> Send | None:
    """A send of a request that somebody counts on."""
    for send in state.sends.values():
        if (send.engine, send.request) == (engine, request) and not send.cancelled:
            return send
    return None


def given_up(state: State, pool: str, blocks: BlockRanges) -> list[TransferCancelled]:
    """The sends that end with their receiver's giving these blocks back."""
    return [
        TransferCancelled(send.id, "its receiver gave the blocks back")
        for send in writing(state, pool, blocks)
        if not send.cancelled
    ]


def overlap(first: BlockRanges, second: BlockRanges) -> BlockRanges:
    """Blocks that are in both, in the order of the first."""
    return ranges.without(first, ranges.without(first, second))


def not_owned(engine: Engine, blocks: BlockRanges) -> BlockRanges:
    """Those of `blocks` that are neither in a table of the engine's requests nor held by itself."""
    held = engine.held.get(engine.gpu_pool)
    left = blocks if held is None else ranges.without(blocks, held)
    for request in engine.requests.values():
        if not left:
            break
        left = ranges.without(left, request_table(request, engine.gpu_pool))
    return left
