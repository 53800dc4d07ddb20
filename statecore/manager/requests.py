"""The life of a request, under FastDeploy's names.

    request_match_blocks ── allocate_gpu_blocks ── update_cache_blocks … ── cache_output_blocks ── release_block_ids
      pins what is cached     blocks of the caller   they join the path       output too            pins off

Owns how these calls become calls of the index. For a live request, the first `task.num_cached_blocks` entries of its table
belong to the tree (or stand beside a block that does) and the rest to the caller, who gives them back with
`recycle_gpu_blocks` after the release. Older callers take all blocks at once (`request_block_ids`): then the rest belongs to
the request, and the release frees it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Final

from events.errors import InvalidInput, StateCoreError
from statecore import door, tree
from statecore.hashing import Tokens
from statecore.manager import tasks
from statecore.manager.base import ROUNDS_MAX, ManagerBase
from statecore.manager.hits import HitInfo, hit_info
from statecore.manager.refusals import NotEnoughBlocks
from statecore.manager.settings import DECODE
from statecore.rejections import PathNotCovered, PoolExhausted, UnknownTransfer
from statecore.results import Match
from statecore.state import State
from statecore.tiers import held_by_transfers, outgoing_blocks

_RESERVE_MAX: Final = 1 << 20


class Released:
    """What `release_block_ids_async` answers: it has happened already."""

    def result(self, timeout: float | None = None) -> None:
        del timeout

    def done(self) -> bool:
        return True


class _EndsInsideImage(Exception):
    """Undoes a step; `blocks` would end before the image."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks


class _NeedsRoom(Exception):
    """Undoes a step; `blocks` free blocks would let it go further."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks


class _StopsShort(Exception):
    """Undoes a step; the path can grow to `blocks` for now."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks


class Requests(ManagerBase):
    """See the module. Tasks are read as `tasks.py` says."""

    # --- beginning --------------------------------------------------------------------------------------------------

    def request_match_blocks(self, task: object, block_size: int, *_ignored: object) -> tuple[list[int], int, HitInfo]:
        """Begin a request: pin the longest cached prefix of its prompt (and output), fetch what of it is in the host pool.

        Waits for what it fetches, at most `swap_timeout_s`; what does not come is not part of the answer. A whole prompt
        that is cached is answered whole: compute its last block again. Sets `num_cached_blocks` on the task.

        Returns:
            Ids of the cached blocks in token order, the tokens they hold, and per tier what was found.

        Raises:
            NotEnoughBlocks: blocks in the host pool find no room in the GPU pool; nothing has changed.
            NeverFits: the prompt is larger than the GPU pool.
            RequestExists, Paused, InvalidInput, and WrongType for tokens that are no list or numpy array.
        """
        self._require_block_size(block_size)
        prompt = tasks.prompt_of(task)
        self._require_fits(self._blocks_for(len(prompt.tokens)))
        found = self._begin(prompt, 0)
        waited_s = self._fetched(prompt, found, 0)
        return self._answer(task, found, self.index.table(prompt.request), waited_s)

    def request_block_ids(
        self, task: object, block_size: int, dec_token_num: int, *_ignored: object
    ) -> tuple[list[int], list[int], HitInfo]:
        """Begin a request with all blocks for its prompt and `dec_token_num` tokens of output, or not at all.

        The blocks are the request's own until its release; its prompt's full blocks are in the tree at once (this engine may
        match them, others when they are computed).

        Returns:
            Ids of the cached blocks and of the others, together in token order, and per tier what was found.

        Raises:
            NotEnoughBlocks: not now; NeverFits: not ever. Nothing has changed; and as `request_match_blocks`.
        """
        self._require_block_size(block_size)
        prompt = tasks.prompt_of(task)
        reserve = door.whole(dec_token_num, "dec_token_num", least=0, most=_RESERVE_MAX)
        total = self._blocks_for(len(prompt.tokens) + reserve)
        self._require_fits(total)
        found = self._begin(prompt, total)
        waited_s = self._fetched(prompt, found, total)
        try:
            self._complete(prompt, total)
        except StateCoreError:
            self.index.release(prompt.request)
            raise
        table, matched = self.index.table(prompt.request), self._matched(prompt.request)
        common, _, info = self._answer(task, found, table[:matched], waited_s)
        tasks.mark_cached(task, self.index.path_blocks(prompt.request))
        return common, table[matched:], info

    def would_match_blocks(self, task: object, block_size: int) -> int:
        """How many blocks `request_match_blocks` would find in both tiers, by what this replica knows. Changes nothing."""
        self._require_block_size(block_size)
        prompt = tasks.prompt_of(task)
        return self._found(prompt, self._blocks_for(len(prompt.tokens))) if self._caches else 0

    def check_admission(self, task: object, block_size: int, dec_token_num: int = 0) -> None:
        """Refuse a request that waiting cannot help, before it waits. Changes nothing.

        Raises:
            NeverFits: its prompt and `dec_token_num` tokens need more blocks than the GPU pool has.
        """
        self._require_block_size(block_size)
        reserve = door.whole(dec_token_num, "dec_token_num", least=0, most=_RESERVE_MAX)
        self._require_fits(self._blocks_for(len(tasks.tokens_of(task)) + reserve))

    def is_chunked_mm_input(self, mm_inputs: object, matched_token_num: int) -> tuple[bool, int]:
        """Whether a boundary after so many tokens cuts an image in two, and the number of that image (0 if none)."""
        tokens = door.whole(matched_token_num, "matched_token_num", least=0, most=tasks.TOKENS_MAX)
        number = tasks.image_around(tasks.spans(mm_inputs), tokens)
        return number is not None, number or 0

    # --- computing --------------------------------------------------------------------------------------------------

    def update_cache_blocks(self, task: object, block_size: int, num_computed_tokens: int) -> None:
        """The next part of a request is scheduled: the full blocks of its first `num_computed_tokens` tokens join its path.

        Blocks of `task.block_tables` that the caller holds go over to the request with this. They are pending until the
        request is spoken of again. Sets `num_cached_blocks` on the task.

        Raises:
            UnknownRequest, ForeignBlocks, InvalidInput: nothing has changed.
        """
        self._require_block_size(block_size)
        computed = door.whole(num_computed_tokens, "num_computed_tokens", least=0, most=tasks.TOKENS_MAX)
        request, tokens = tasks.request_of(task), tasks.tokens_of(task)
        if computed > len(tokens):
            raise InvalidInput(f"request {request!r} has {len(tokens)} tokens, of which {computed} are computed")
        tasks.mark_cached(task, self._lengthen(task, request, tokens, computed // self.index.block_size))

    def cache_output_blocks(self, task: object, block_size: int) -> None:
        """A request has generated all its output: the full blocks of prompt and output join its path.

        The last token was sampled and never computed, so it does not count. Sets `num_cached_blocks` on the task.

        Raises:
            InvalidInput: on the decode role, which has no tree; and as `update_cache_blocks`.
        """
        self._require_block_size(block_size)
        if self.splitwise_role == DECODE:
            raise InvalidInput("output is not cached on the decode role: it has no prefix tree")
        request, tokens = tasks.request_of(task), tasks.tokens_of(task)
        tasks.mark_cached(task, self._lengthen(task, request, tokens, max(0, len(tokens) - 1) // self.index.block_size))

    # --- ending -----------------------------------------------------------------------------------------------------

    def release_block_ids(self, task: object) -> None:
        """End a request: nothing of it is pinned, its private blocks are free. What the caller holds stays the caller's.

        Raises:
            UnknownRequest: it was never matched, or is released already. A `KeyError`.
        """
        self.index.release(tasks.request_of(task))
        self._publish_pool()

    def release_block_ids_async(self, task: object) -> Released:
        """The same, with an answer that can be asked whether it is done. It is; a refusal is raised here."""
        self.release_block_ids(task)
        return Released()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.index.block_size)

    def _found(self, prompt: tasks.Prompt, limit: int) -> int:
        """How many blocks both tiers hold of a prompt, not ending inside an image where that is not wanted."""
        held = self.index.would_match(prompt.tokens, salt=prompt.salt, adapter=prompt.adapter, extra=prompt.extra)
        return self._whole_images(prompt, min(held, limit))

    def _whole_images(self, prompt: tasks.Prompt, blocks: int) -> int:
        if not self._settings.whole_images:
            return blocks
        return tasks.cut_back([(key.start, key.end) for key in prompt.extra], blocks, self.index.block_size)

    def _begin(self, prompt: tasks.Prompt, total: int) -> Match:
        """Match, and allocate up to `total` blocks, in one step, which is taken anew until it holds what it should."""
        limit = len(prompt.tokens) // self.index.block_size if self._caches else 0
        rounds = 0
        while True:
            try:
                insist = rounds < ROUNDS_MAX
                return self._in_one_step(partial(self._begin_now, prompt, limit, total, insist))
            except _EndsInsideImage as shorter:
                limit = shorter.blocks
            except _NeedsRoom as more:
                rounds += 1
                self._make_room(more.blocks)

    def _begin_now(self, prompt: tasks.Prompt, limit: int, total: int, insist: bool) -> Match:
        index = self.index
        found = index.match(
            prompt.request, prompt.tokens, salt=prompt.salt, adapter=prompt.adapter, extra=prompt.extra, limit=limit
        )
        blocks = len(found.blocks)
        if index.cpu_pool is not None and index.free_blocks == 0 and insist and blocks < limit:
            missing = self._found(prompt, limit) - blocks
            if missing > 0:
                raise self._room_for(prompt.request, missing, found.host_tokens // index.block_size + missing)
        whole = self._whole_images(prompt, blocks)
        if whole < blocks:
            raise _EndsInsideImage(whole)
        if total <= blocks:
            return found
        try:
            given = index.allocate(prompt.request, total - blocks)
        except PoolExhausted as full:
            raise self._refusal(prompt.request, full.asked) from full
        if not given.blocks:
            if not insist:
                raise self._refusal(prompt.request, total - blocks)
            raise _NeedsRoom(total - blocks + found.host_tokens // index.block_size)
        return found

    def _room_for(self, request: str, missing: int, needed: int) -> Exception:
        """What ends a step in which blocks of the host pool found no room: a refusal, or a reason to make some."""
        possible = self._pool(
            lambda state, pool: (
                pool.free.total + pool.unpinned + outgoing_blocks(state, pool) + held_by_transfers(state, pool)
            )
        )
        return self._refusal(request, missing) if missing > possible else _NeedsRoom(needed)

    def _refusal(self, request: str, asked: int) -> NotEnoughBlocks:
        return self._pool(
            lambda _state, pool: NotEnoughBlocks(pool.name, asked, pool.free.total, pool.unpinned, pool.blocks, request)
        )

    def _fetched(self, prompt: tasks.Prompt, match: Match, total: int) -> float:
        """Wait until a match's swap-ins have ended; what has not come in time is given up. Seconds it took."""
        try:
            ended, waited_s = self._wait(match.waits_for)
            if not ended:
                self._give_up(prompt, match, total)
        except BaseException:
            with suppress(StateCoreError):
                self.index.release(match.request)  # the caller never heard of it
            raise
        return waited_s

    def _give_up(self, prompt: tasks.Prompt, match: Match, total: int) -> None:
        for transfer in match.waits_for:
            with suppress(UnknownTransfer):  # it ended just now, or another engine of the pool started it
                self.index.cancel(transfer, f"not there after {self._swap_timeout_s:g} s")
        there = self._blocks_there(prompt.request)
        if there < self.index.path_blocks(prompt.request):

            def begin_shorter() -> None:
                self.index.release(prompt.request)
                self._begin_now(prompt, self._whole_images(prompt, there), total, insist=False)

            self._in_one_step(begin_shorter)

    def _complete(self, prompt: tasks.Prompt, total: int) -> None:
        """Blocks in place of those that were not fetched; then the full blocks of the prompt join the path."""

        def complete() -> None:
            lacking = total - len(self.index.table(prompt.request))
            if lacking > 0 and not self.index.allocate(prompt.request, lacking).blocks:
                raise self._refusal(prompt.request, lacking)
            if self._caches:
                self.index.extend(prompt.request)

        self._in_one_step(complete)
        self._publish_pool()

    def _matched(self, request: str) -> int:
        """Blocks a live request's path began with."""
        return self.index.inspect(lambda state: state.engines[self.index.engine].requests[request].matched)

    def _answer(self, task: object, match: Match, blocks: list[int], waited_s: float) -> tuple[list[int], int, HitInfo]:
        """Read off what was found, mark the task, publish."""
        size = self.index.block_size
        there = min(len(match.blocks) - match.host_tokens // size, len(blocks))
        info = hit_info(blocks, len(blocks) - there, size, waited_s)
        tasks.mark_cached(task, len(blocks))
        self._publish_hits(info["gpu_match_token_num"], info["cpu_match_token_num"])
        return blocks, len(blocks) * size, info

    def _lengthen(self, task: object, request: str, tokens: Tokens, target: int) -> int:
        """Bring a request's path to `target` blocks, over blocks the caller holds where it must; its length then."""
        known, own = self.index.known_tokens(request), self.index.table(request)
        if not self._caches:
            return 0
        if len(tokens) < known:
            raise InvalidInput(f"request {request!r} had {known} tokens, the task has {len(tokens)}")
        table = tasks.block_table(task)[:target]
        if len(table) < target:
            path = self.index.path_blocks(request)
            raise PathNotCovered(request, target, path, max(0, len(table) - path))
        common = min(len(own), target)
        if table[:common] != own[:common]:
            at = next(place for place in range(common) if table[place] != own[place])
            raise InvalidInput(
                f"block_tables of request {request!r} has block {table[at]} at {at}, the index knows block {own[at]} there"
            )
        while True:
            try:
                return self._in_one_step(
                    partial(self._lengthen_now, request, table[common:target], tokens[known:], target)
                )
            except _StopsShort as now:
                target = now.blocks

    def _lengthen_now(self, request: str, adopted: list[int], tokens: Tokens, target: int) -> int:
        if adopted:
            self.index.adopt(request, adopted)
        path = self.index.extend(request, tokens, blocks=target).path_blocks
        if path < target:
            raise _StopsShort(path)  # another engine of the pool is computing the same
        return path

    def _blocks_there(self, request: str) -> int:
        """How far a live request's path goes before what a transfer still brings."""

        def there(state: State) -> int:
            leaf = state.engines[self.index.engine].requests[request].leaf
            filled = [node.start for node in tree.path_nodes(leaf) if node.copies[self.index.gpu_pool].filling]
            return min(filled, default=leaf.end)

        return self.index.inspect(there)
