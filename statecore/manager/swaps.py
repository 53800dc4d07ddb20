"""Transfers by FastDeploy's names, and handing a request from a prefill engine to a decode engine.

Owns the correspondence of task ids to transfers. Transfers begin with the decision that needs them, together with the job
that tells the workers; nothing is left for `issue_swap_task` but to check and to wait. A task id is the id of a transfer, or
of a live request: then the transfers that fill its path are meant.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import attrs

from events.errors import InvalidInput
from events.limits import POOL_BLOCKS_MAX
from statecore import door, ranges, tree
from statecore.manager import tasks
from statecore.manager.base import ManagerBase
from statecore.manager.settings import DECODE
from statecore.rejections import ForeignBlocks, NotReceivable, UnknownTransfer
from statecore.results import UNDER_WAY, Handover, TransferState
from statecore.state import SWAP_IN, State, Transfer

TO_GPU: Final = "SWAP2GPU"
TO_CPU: Final = "SWAP2CPU"
DIRECTIONS: Final = (TO_GPU, TO_CPU)


@attrs.frozen
class Swap:
    """A swap under way.

    Attributes:
        transfer: its id.
        node_ids: of the tree nodes it moves, in token order.
        gpu_block_ids, cpu_block_ids: pairwise, in token order.
        direction: "SWAP2GPU" or "SWAP2CPU".
    """

    transfer: str
    node_ids: list[int]
    gpu_block_ids: list[int]
    cpu_block_ids: list[int]
    direction: str


class Swaps(ManagerBase):
    """See the module."""

    def swaps(self, task_id: str) -> list[Swap]:
        """The swaps that a task id means and that are still under way, oldest first."""
        door.transfer_id(task_id)
        return self.index.inspect(lambda state: [_swap(transfer) for transfer in self._meant(state, task_id)])

    def issue_swap_task(
        self,
        transfer_task_id: str,
        swap_node_ids: list[int],
        gpu_block_ids: list[int],
        cpu_block_ids: list[int],
        event_type: object,
        is_sync: bool,
    ) -> None:
        """Check that this swap is under way, and wait for it if `is_sync`.

        Args:
            event_type: "SWAP2GPU" or "SWAP2CPU", or an enum member of that name.

        Raises:
            UnknownTransfer: nothing of this id is under way.
            InvalidInput: it moves other blocks than these, or in the other direction.
            TimeoutError: it had not ended after `swap_timeout_s`.
        """
        given = Swap(
            transfer_task_id,
            _ids(swap_node_ids, "swap_node_ids"),
            _ids(gpu_block_ids, "gpu_block_ids"),
            _ids(cpu_block_ids, "cpu_block_ids"),
            _direction(event_type),
        )
        found = self.swaps(transfer_task_id)
        if not found:
            raise UnknownTransfer(transfer_task_id)
        under_way = Swap(
            transfer_task_id,
            [node for swap in found for node in swap.node_ids],
            [block for swap in found for block in swap.gpu_block_ids],
            [block for swap in found for block in swap.cpu_block_ids],
            found[0].direction,
        )
        if given != under_way:
            raise InvalidInput(f"the swap under way is {under_way}, this call says {given}")
        if is_sync:
            self.sync_swap_task(transfer_task_id)

    def sync_swap_task(self, transfer_task_id: str) -> tuple[TransferState, ...]:
        """Wait until what the id means has ended; what became of it. Of one that ended before, at once.

        Raises:
            UnknownTransfer: neither a transfer nor a live request.
            TimeoutError: it had not ended after `swap_timeout_s`.
        """
        meant = [swap.transfer for swap in self.swaps(transfer_task_id)]
        if not meant and not self._is_live(transfer_task_id):
            meant = [transfer_task_id]
        if not self._wait(meant)[0]:
            raise TimeoutError(f"swap {transfer_task_id!r} has not ended after {self._swap_timeout_s:g} s")
        return tuple(self.index.poll(transfer) for transfer in meant)

    # --- from prefill to decode -------------------------------------------------------------------------------------

    def send_cache(self, task: object, receiver_engine: str, receiver_block_ids: Iterable[int]) -> Handover:
        """Begin to copy the blocks of a request's prompt to blocks of a decode engine.

        Wait for the answer's `transfer` before the request is released.

        Args:
            receiver_block_ids: as many as the prompt fills, in token order; what the receiver reserved beyond is left alone.

        Raises:
            NotReceivable, ForeignBlocks, InvalidInput: nothing was started.
        """
        if self.splitwise_role == DECODE:
            raise InvalidInput("a decode engine receives requests, and sends none")
        request = tasks.request_of(task)
        blocks = -(-tasks.prompt_length(task) // self.index.block_size)
        source = tasks.block_table(task)[:blocks]
        given = ranges.ids(door.block_ids(receiver_block_ids, POOL_BLOCKS_MAX))
        if len(source) < blocks or len(given) < blocks:
            raise InvalidInput(
                f"request {request!r} fills {blocks} blocks: its table has {len(source)}, the receiver gave {len(given)}"
            )
        try:
            return self.index.send(request, source, receiver_engine, given[:blocks])
        except (ForeignBlocks, NotReceivable):  # it may be that this replica has not read of the receiver's blocks yet
            self.index.refresh()
            return self.index.send(request, source, receiver_engine, given[:blocks])

    def wait_for_cache(self, request_id: str, timeout: float) -> TransferState:
        """On the engine that receives: wait until a request's blocks have come, at most `timeout` seconds.

        Returns:
            "done", "failed", "cancelled" or "forgotten" with the reason; "under way" when the time was over first, without a
            transfer if this engine has heard of no send: it is to come, or ended where this engine could not read it.
        """
        request, seconds = door.request_id(request_id), door.seconds(timeout, "timeout")
        known: TransferState | None = None
        for left in self.index.until(seconds):
            position = self.index.position
            known = self.index.arrival(request)
            if known is None:
                self.index.wait_for_news(position, left)
            elif not known.under_way or not self.index.wait(known.transfer, left).under_way:
                return self.index.poll(known.transfer)
        known = known or self.index.arrival(request)
        return known or TransferState("", UNDER_WAY, "no send of it is known here")

    # --- inside -----------------------------------------------------------------------------------------------------

    def _meant(self, state: State, task_id: str) -> list[Transfer]:
        transfer = state.transfers.get(task_id)
        if transfer is not None:
            return [] if transfer.cancelled else [transfer]
        request = state.engines[self.index.engine].requests.get(task_id)
        if request is None:
            return []
        path = [node.copies[self.index.gpu_pool].filling for node in tree.path_nodes(request.leaf)]
        return [state.transfers[filling] for filling in dict.fromkeys(reversed(path)) if filling is not None]


def _swap(transfer: Transfer) -> Swap:
    nodes = [node for node in tree.path_nodes(transfer.node) if node.end > transfer.start][::-1]
    inward = transfer.kind == SWAP_IN
    gpu, cpu = (transfer.destination, transfer.source) if inward else (transfer.source, transfer.destination)
    return Swap(
        transfer.id,
        [node.id for node in nodes],
        [block for node in nodes for block in ranges.ids(node.copies[gpu].blocks)],
        [block for node in nodes for block in ranges.ids(node.copies[cpu].blocks)],
        TO_GPU if inward else TO_CPU,
    )


def _ids(value: object, what: str) -> list[int]:
    if not isinstance(value, list | tuple):
        raise InvalidInput(f"{what} is a list of integers, not {type(value).__name__} {door.shown(value)}")
    return [door.whole(one, f"a number in {what}", least=0, most=1 << 62) for one in value]


def _direction(value: object) -> str:
    name = value if isinstance(value, str) else getattr(value, "name", None)
    if name not in DIRECTIONS:
        raise InvalidInput(f"a swap's event_type is one of {', '.join(DIRECTIONS)}, not {door.shown(value)}")
    return str(name)
