"""Transfers, sends among them, and the workers that end them, as the log tells of them.

Owns what a command that reads a log has to know beyond single facts: whose transfer an id names, what a worker may
write, and the transfers of a state with the blocks they move. Pure.
"""

from __future__ import annotations

from typing import Final

import attrs

from events.errors import CorruptState
from events.facts import BlockRanges, Fact, SendStarted, TransferCancelled, TransferFinished, TransferStarted
from events.ports import Entry
from statecore import ranges
from statecore.results import CANCELLED, UNDER_WAY
from statecore.sends import Send, overlap
from statecore.state import GPU, SEND, State, Transfer
from statecore.transfers import covers
from statecore.tree import path_nodes

WORKER: Final = "worker:"
"""A worker writes as `worker:<gpu pool>`, in session 0: it has no life that could be fenced."""


@attrs.frozen
class TransferSummary:
    """A transfer of a state: not finished, or cancelled and not reported by every rank yet.

    Attributes:
        state: "under way", or "cancelled" (a worker may still write its destination until all ranks have reported).
        source_blocks: empty when cancelled: they may have moved on since.
        quarantine: those of the destination's blocks that belong to nobody until then.
        node, start, end: blocks `start` … `end`-1 of the path that ends at `node`; None for a send.
        waiting: requests whose path ends on what it brings, or the one it hands over.
        request, receiver: of a send, what the sender calls the request, and the engine that goes on with it.
    """

    transfer: str
    kind: str
    state: str
    engine: str
    blocks: int
    source: str
    source_blocks: BlockRanges
    destination: str
    destination_blocks: BlockRanges
    quarantine: BlockRanges
    node: int | None
    start: int | None
    end: int | None
    ranks: int
    waiting: tuple[str, ...]
    request: str | None = None
    receiver: str | None = None


def summarise_transfers(state: State) -> tuple[TransferSummary, ...]:
    """Every transfer of a state, those between the tiers first, then the sends; oldest first."""
    return (
        *(_summarise(state, transfer) for transfer in state.transfers.values()),
        *map(_summarise_send, state.sends.values()),
    )


def _summarise(state: State, transfer: Transfer) -> TransferSummary:
    open_ = not transfer.cancelled
    return TransferSummary(
        transfer=transfer.id,
        kind=transfer.kind,
        state=UNDER_WAY if open_ else CANCELLED,
        engine=transfer.engine,
        blocks=transfer.blocks,
        source=transfer.source,
        source_blocks=_blocks(transfer, transfer.source) if open_ else (),
        destination=transfer.destination,
        destination_blocks=_blocks(transfer, transfer.destination) if open_ else transfer.quarantine,
        quarantine=transfer.quarantine,
        node=transfer.node.id,
        start=transfer.start,
        end=transfer.end,
        ranks=transfer.ranks,
        waiting=_waiting(state, transfer) if open_ else (),
    )


def _summarise_send(send: Send) -> TransferSummary:
    open_ = not send.cancelled
    return TransferSummary(
        transfer=send.id,
        kind=SEND,
        state=UNDER_WAY if open_ else CANCELLED,
        engine=send.engine,
        blocks=send.blocks,
        source=send.source,
        source_blocks=send.source_blocks if open_ else (),
        destination=send.destination,
        destination_blocks=send.destination_blocks,
        quarantine=overlap(send.destination_blocks, send.quarantine),
        node=None,
        start=None,
        end=None,
        ranks=send.ranks,
        waiting=(send.request,) if open_ else (),
        request=send.request,
        receiver=send.receiver,
    )


def _blocks(transfer: Transfer, pool: str) -> BlockRanges:
    """What its part of the path holds in a pool, in token order."""
    blocks: BlockRanges = ()
    for node in path_nodes(transfer.node):
        if node.end <= transfer.start:
            break
        blocks = ranges.join(node.copies[pool].blocks, blocks)
    return blocks


def _waiting(state: State, transfer: Transfer) -> tuple[str, ...]:
    return tuple(
        request_id
        for name in sorted(state.engines)
        for request_id, request in sorted(state.engines[name].requests.items())
        if state.engines[name].gpu_pool == transfer.destination
        and covers(request.leaf, transfer.destination, transfer.id)
    )


# --- facts ----------------------------------------------------------------------------------------------------------


def transfer_of(fact: Fact) -> str | None:
    """The transfer a fact is about."""
    if isinstance(fact, TransferStarted | SendStarted | TransferFinished | TransferCancelled):
        return fact.transfer
    return None


@attrs.define
class Concerned:
    """The engines facts are about, when asked in the order of the log.

    That of a transfer is the first part of its id. A send has a receiver too, which only its start names.
    """

    _receivers: dict[str, str] = attrs.field(factory=dict)

    def know(self, transfer: str, receiver: str) -> None:
        """A send that began before the first fact that is asked about."""
        self._receivers[transfer] = receiver

    def by(self, fact: Fact) -> tuple[str, ...]:
        transfer = transfer_of(fact)
        if transfer is None:
            engine = getattr(fact, "engine", None)
            return (engine,) if isinstance(engine, str) else ()
        if isinstance(fact, SendStarted):
            self._receivers[transfer] = fact.receiver
        sender, receiver = transfer.rpartition(":")[0], self._receivers.get(transfer)
        return (sender,) if receiver is None else (sender, receiver)


def is_by_worker(entry: Entry) -> bool:
    """Whether a worker wrote it. An engine may be called like one, but no engine has a session 0."""
    return entry.session == 0 and entry.engine.startswith(WORKER)


def require_workers_right(state: State, entry: Entry) -> None:
    """Stop at a worker's entry that says more than that transfers of a pool of this index have ended."""
    pool = state.pools.get(entry.engine.removeprefix(WORKER))
    if pool is None or pool.tier != GPU:
        raise CorruptState(
            f"{entry.engine!r} wrote, and the index has no such GPU pool for a worker", position=entry.position
        )
    for fact in entry.facts:
        if not isinstance(fact, TransferFinished):
            raise CorruptState(
                f"{entry.engine!r} wrote {type(fact).__name__}: a worker may only say that a transfer has finished",
                position=entry.position,
            )
        transfer = state.transfers.get(fact.transfer) or state.sends.get(fact.transfer)
        if transfer is None:
            continue
        its_own = (transfer.source,) if isinstance(transfer, Send) else (transfer.source, transfer.destination)
        if pool.name not in its_own:
            what = SEND if isinstance(transfer, Send) else "transfer"
            raise CorruptState(
                f"{entry.engine!r} finished {what} {fact.transfer!r}, which goes from {transfer.source!r} to "
                f"{transfer.destination!r}",
                position=entry.position,
            )
