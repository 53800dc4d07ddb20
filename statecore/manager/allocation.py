"""Blocks that the caller holds itself, and making room for them.

Owns FastDeploy's allocation calls. The blocks these give belong to the engine, not to a request: `update_cache_blocks` hands
them over to a request's path, `recycle_gpu_blocks` gives back the rest.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable

from events.errors import InvalidInput
from events.limits import POOL_BLOCKS_MAX
from statecore import door, ranges
from statecore.manager.base import ROUNDS_MAX, ManagerBase
from statecore.rejections import PoolExhausted
from statecore.results import Allocation, Room
from statecore.state import CPU, State
from statecore.tiers import held_by_transfers, outgoing_blocks


class Allocations(ManagerBase):
    """Blocks of both tiers. Ids are those of the engine's GPU pool, or of the host pool where a name says cpu."""

    # --- GPU --------------------------------------------------------------------------------------------------------

    def can_allocate_gpu_blocks(self, num_blocks: int, try_free_gpu_blocks: bool = True) -> bool:
        """Whether so many blocks are free, after making room for them if need be.

        Not a query: with caching on it evicts what no request uses, exactly what is missing, and waits for it to leave, at
        most `swap_timeout_s`. It evicts nothing when all of it would not be enough.

        Args:
            num_blocks: any integer; of none or fewer the answer is yes.
            try_free_gpu_blocks: False: only look.
        """
        count = door.whole(num_blocks, "num_blocks", least=-POOL_BLOCKS_MAX, most=POOL_BLOCKS_MAX)
        if count <= 0 or self.index.free_blocks >= count:
            return True
        if not (self._settings.caching and try_free_gpu_blocks) or not self._could_be_free(count):
            return False
        enough = self._make_room(count)
        self._publish_pool()
        return enough

    def allocate_gpu_blocks(self, num_blocks: int, req_id: str | None = None) -> list[int]:
        """So many blocks for the caller, lowest ids first. Evicts what no request uses, if it must, and waits for it.

        Args:
            req_id: the request they are meant for. If it is live, the call also says that what was scheduled for it before
                has been computed.

        Raises:
            PoolExhausted: not now; NeverFits: not ever. Nothing has changed.
        """
        count = door.whole(num_blocks, "num_blocks", least=0, most=POOL_BLOCKS_MAX)
        request = None if req_id is None else door.request_id(req_id)
        if count == 0:
            return []

        def take() -> Allocation:
            if request is not None and self._is_live(request):
                self.index.ready(request)
            return self.index.allocate(None, count)

        given = self._in_one_step(take)
        for _ in range(ROUNDS_MAX):
            if given.blocks or not self._wait(given.waits_for)[0]:
                break
            given = self._in_one_step(take)  # room has been made
        self._publish_pool()
        if not given.blocks:
            raise self._exhausted(count)
        return given.blocks

    def recycle_gpu_blocks(self, gpu_block_ids: Iterable[int] | int, req_id: str | None = None) -> None:
        """Give blocks back: those of the caller, and, of request `req_id`, those that are private to it.

        Raises:
            ForeignBlocks: one of them is neither, or is free already. Nothing is given back then.
        """
        given = _listed(gpu_block_ids)
        request = None if req_id is None else door.request_id(req_id)
        private = set() if request is None else self._private_to(request)
        own = [block for block in given if block in private]
        held = [block for block in given if block not in private]

        def give_back() -> None:
            if own:
                self.index.recycle(request, own)
            if held:
                self.index.recycle(None, held)

        if given:
            self._in_one_step(give_back)
        self._publish_pool()

    def free_block_ids(self, need_block_num: int) -> Room:
        """Evict until so many GPU blocks are free, and wait for those that leave for the host, at most `swap_timeout_s`."""
        room = self.free_block_ids_async(need_block_num)
        self._make_room(need_block_num)
        self._publish_pool()
        return room

    def free_block_ids_async(self, need_block_num: int) -> Room:
        """Begin to evict until so many GPU blocks are free or leaving. What leaves already is counted, not begun twice."""
        room = self.index.make_room(need_block_num)
        self._publish_pool()
        return room

    # --- host -------------------------------------------------------------------------------------------------------

    def allocate_cpu_blocks(self, num_blocks: int) -> list[int]:
        """So many blocks of the host pool for the caller, lowest ids first.

        Raises:
            PoolExhausted, NeverFits: as for the GPU pool.
            InvalidInput: this engine has no host pool.
        """
        count = door.whole(num_blocks, "num_blocks", least=0, most=POOL_BLOCKS_MAX)
        self._require_host()
        return self.index.hold_host(count).blocks if count else []

    def recycle_cpu_blocks(self, cpu_block_ids: Iterable[int] | int) -> None:
        """Give blocks of the host pool back.

        Raises:
            ForeignBlocks: one of them is not the caller's. Nothing is given back then.
        """
        self._require_host()
        self.index.recycle(None, _listed(cpu_block_ids), tier=CPU)

    def free_cpu_block_ids(self, need_block_num: int) -> int:
        """Evict in the host pool until so many blocks are free; how many were evicted for it."""
        self._require_host()
        return self.index.make_room(need_block_num, tier=CPU).evicted

    # --- numbers ----------------------------------------------------------------------------------------------------

    def get_required_block_num(self, input_token_num: int, block_size: int) -> int:
        """How many blocks of `block_size` tokens hold so many tokens."""
        tokens = door.whole(input_token_num, "input_token_num", least=0, most=1 << 62)
        size = door.whole(block_size, "block_size", least=1, most=1 << 62)
        return -(-tokens // size)

    @property
    def num_gpu_blocks(self) -> int:
        return self._pool(lambda _state, pool: pool.blocks)

    @property
    def num_cpu_blocks(self) -> int:
        name = self.index.cpu_pool
        return 0 if name is None else self.index.inspect(lambda state: state.pools[name].blocks)

    @property
    def gpu_free_block_list(self) -> list[int]:
        """Ids that belong to nobody, ascending; a copy."""
        return self._pool(lambda _state, pool: ranges.ids(tuple(pool.free)))

    @property
    def cpu_free_block_list(self) -> list[int]:
        name = self.index.cpu_pool
        return [] if name is None else self.index.inspect(lambda state: ranges.ids(tuple(state.pools[name].free)))

    @property
    def available_gpu_resource(self) -> float:
        """Free share of the GPU pool, 0 to 1."""
        return self._pool(lambda _state, pool: pool.free.total / pool.blocks)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _could_be_free(self, blocks: int) -> bool:
        """Whether so many would be free if all that nobody uses went."""
        return self._pool(
            lambda state, pool: (
                blocks
                <= pool.free.total + pool.unpinned + outgoing_blocks(state, pool) + held_by_transfers(state, pool)
            )
        )

    def _exhausted(self, asked: int) -> PoolExhausted:
        return self._pool(
            lambda _state, pool: PoolExhausted(pool.name, asked, pool.free.total, pool.unpinned, pool.blocks)
        )

    def _private_to(self, request: str) -> set[int]:
        def private(state: State) -> list[int]:
            found = state.engines[self.index.engine].requests.get(request)
            return [] if found is None else ranges.ids(found.private)

        return set(self.index.inspect(private))

    def _require_host(self) -> None:
        if self.index.cpu_pool is None:
            raise InvalidInput(f"engine {self.index.engine!r} has no host pool: cache_config.num_cpu_blocks is 0")


def _listed(blocks: Iterable[int] | int) -> list[int]:
    """One id, or several."""
    alone = isinstance(blocks, numbers.Integral)
    return ranges.ids(door.block_ids([blocks] if alone else blocks, POOL_BLOCKS_MAX))
