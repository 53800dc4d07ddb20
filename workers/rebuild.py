"""Jobs that got lost, made again from the state.

Owns the way back from a transfer to its job. A job is a doorbell: everything it says is in the state, which knows the
nodes a transfer covers and the blocks their copies have. A stream that was deleted or trimmed therefore costs time and
nothing else.
"""

from __future__ import annotations

from collections.abc import Collection

from events.errors import CorruptState
from events.facts import BlockRanges, TransferStarted
from events.job_ports import Doorbell
from events.jobs import TransferJob, encode_job
from events.log import LogConnection
from events.ports import Base, Job
from statecore import ranges
from statecore.restoring import up_to_date
from statecore.scopes import finish_touches, send_job
from statecore.state import SWAP_IN, Node, State, Transfer
from statecore.tree import path_nodes


def missing_jobs(state: State, present: Collection[str]) -> tuple[Job, ...]:
    """Jobs of the transfers under way that are not among `present` (transfer ids), oldest first. Pure."""
    jobs = [_job(transfer) for transfer in state.transfers.values() if transfer.id not in present]
    jobs += [send_job(send) for send in state.sends.values() if send.id not in present]
    return tuple(jobs)


def ring(connection: LogConnection, index: str) -> int:
    """Put back the jobs of open transfers that have none in their stream; returns how many that were.

    Reads the whole log first. What it knows must not be older than `limits.ACKS_TTL_S`, so it looks and rings at once.

    Raises:
        Unavailable, CorruptState: as everywhere. Repeating it is harmless.
    """
    return ring_missing(connection, index, up_to_date(connection.log(index, follow=False)).state)


def ring_missing(connection: LogConnection, index: str, state: State) -> int:
    """`ring` for who has a replica that is up to date."""
    return ring_all(connection.doorbell(index), state)


def ring_all(bell: Doorbell, state: State) -> int:
    """The same for who has the doorbell at hand."""
    pools = {*map(_gpu_pool, state.transfers.values()), *(send.source for send in state.sends.values())}
    present = {transfer for pool in sorted(pools) for transfer in bell.ringing(pool)}
    base = Base(state.position, state.last_commit_id)
    return sum([bell.ring(job, base) for job in missing_jobs(state, present)])


def _job(transfer: Transfer) -> Job:
    if transfer.cancelled:
        # Its source may be anybody's by now, and nobody wants the bytes. What is wanted is every rank's word that it
        # writes no more, so that the destination can leave quarantine: a job of no blocks.
        source = destination = ranges.NONE
    else:
        source, destination = _blocks(transfer, transfer.source), _blocks(transfer, transfer.destination)
    started = TransferStarted(
        transfer=transfer.id,
        kind=transfer.kind,
        engine=transfer.engine,
        request=None,
        node=transfer.node.id,
        start=transfer.start,
        end=transfer.end,
        source=transfer.source,
        source_blocks=source,
        destination=transfer.destination,
        destination_blocks=destination,
    )
    touches_ok, touches_failed = finish_touches(started)
    job = TransferJob(
        transfer=transfer.id,
        kind=transfer.kind,
        source=transfer.source,
        source_blocks=source,
        destination=transfer.destination,
        destination_blocks=destination,
        ranks=transfer.ranks,
        touches_ok=touches_ok,
        touches_failed=touches_failed,
    )
    return Job(_gpu_pool(transfer), transfer.id, encode_job(job))


def _blocks(transfer: Transfer, pool: str) -> BlockRanges:
    """The transfer's blocks in one of its pools, in token order."""
    blocks: BlockRanges = ()
    for node in _segment(transfer):
        blocks = ranges.join(node.copies[pool].blocks, blocks)
    if ranges.count(blocks) != transfer.blocks:
        raise CorruptState(f"transfer {transfer.id!r} of {transfer.blocks} blocks covers {blocks} in pool {pool!r}")
    return blocks


def _segment(transfer: Transfer) -> list[Node]:
    """Its nodes, from the lower end up."""
    return [node for node in path_nodes(transfer.node) if node.end > transfer.start]


def _gpu_pool(transfer: Transfer) -> str:
    return transfer.destination if transfer.kind == SWAP_IN else transfer.source
