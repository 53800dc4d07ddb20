"""Transfers and the workers that end them, as the log tells of them.

Owns what a command that reads a log has to know beyond single facts: whose transfer an id names, what a worker may
write, and the transfers of a state with the blocks they move. Pure.
"""

from __future__ import annotations

from typing import Final

import attrs

from events.errors import CorruptState
from events.facts import BlockRanges, Fact, TransferCancelled, TransferFinished, TransferStarted
from events.ports import Entry
from statecore import ranges
from statecore.state import GPU, State, Transfer
from statecore.transfers import covers
from statecore.tree import path_nodes

WORKER: Final = "worker:"
"""A worker writes as `worker:<gpu pool>`, in session 0: it has no life that could be fenced."""

UNDER_WAY, CANCELLED = "under way", "cancelled"


@attrs.frozen
class TransferSummary:
    """A transfer of a state: not finished, or cancelled and not reported by every rank yet.

    Attributes:
        state: "under way", or "cancelled" (its destination is in quarantine until the workers have reported).
        source_blocks: empty when cancelled: they may have moved on since.
        node, start, end: blocks `start` … `end`-1 of the path that ends at `node`.
        waiting: requests whose path ends on what it brings.
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
    node: int
    start: int
    end: int
    ranks: int
    waiting: tuple[str, ...]


def summarise_transfers(state: State) -> tuple[TransferSummary, ...]:
    """Every transfer of a state, oldest first."""
    return tuple(_summarise(state, transfer) for transfer in state.transfers.values())


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
        node=transfer.node.id,
        start=transfer.start,
        end=transfer.end,
        ranks=transfer.ranks,
        waiting=_waiting(state, transfer) if open_ else (),
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
    return fact.transfer if isinstance(fact, TransferStarted | TransferFinished | TransferCancelled) else None


def engine_of(fact: Fact) -> str | None:
    """The engine a fact is about; that of a transfer is the first part of its id."""
    transfer = transfer_of(fact)
    if transfer is not None:
        return transfer.rpartition(":")[0]
    engine = getattr(fact, "engine", None)
    return engine if isinstance(engine, str) else None


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
        transfer = state.transfers.get(fact.transfer)
        if transfer is not None and pool.name not in (transfer.source, transfer.destination):
            raise CorruptState(
                f"{entry.engine!r} finished transfer {fact.transfer!r}, which goes from {transfer.source!r} to "
                f"{transfer.destination!r}",
                position=entry.position,
            )
