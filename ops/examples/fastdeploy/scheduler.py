"""The scheduler loop: who runs, who waits, who gives way. Written after FastDeploy's contract, in our own words.

Owns the queues and the order of calls to the cache manager. No clock, no chance, no model: `schedule` makes the batch of
one step, the model runs it, `confirm` takes note that it has, `finish` ends a request.

    add ──► waiting ──(match, allocate, update)──► running ──finish──► gone
               ▲                                      │
               └───── confirm ◄── batch.preempted ◄───┘  the newest first, until the blocks suffice

| in a step, in this order         | calls                                                                        |
|----------------------------------|------------------------------------------------------------------------------|
| whose client went away           | release_block_ids, recycle_gpu_blocks                                        |
| running, oldest first, decoding  | can_allocate, allocate when the places left in its table fall to a threshold |
| running, oldest first, prefill   | can_allocate, allocate for the chunk that the budget allows; update          |
|   blocks do not suffice          | release and recycle of the newest running request, until they do             |
| waiting, first come first served | can_allocate, request_match, can_allocate, allocate, update                  |
|   ... and it does not fit        | release and recycle: the match is undone                                     |

Nobody is admitted in a step in which somebody was preempted. A preempted request keeps what it generated, waits in front
of all others once its batch has run, and begins again with a match, which usually finds what it computed before.

**A try that fails leaves no trace in the log.** Whether a waiting request fits is asked of the replica first, for all of
its tokens and the reserve; that question evicts nothing and appends nothing, however often it is asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import ceil

import attrs

from ops.examples.fastdeploy.manager import Manager
from ops.examples.fastdeploy.settings import Settings
from ops.examples.fastdeploy.task import Status, Task
from statecore import PoolExhausted


@attrs.frozen
class Chunk:
    """Tokens `start` … `end`-1 of a request that this step computes. `first`: after its match."""

    task: Task
    start: int
    end: int
    first: bool


@attrs.define
class Batch:
    """One step: what the model computes, and what the worker is told beside it.

    Attributes:
        prefills: chunks of prompts, and of what preempted requests had generated.
        decodes: requests that get their next tokens.
        preempted: that lost their blocks; they wait again when the batch has run.
        aborted: whose client went away; the worker forgets them.
        refused: that would never fit; they are gone.
    """

    prefills: list[Chunk] = attrs.Factory(list)
    decodes: list[Task] = attrs.Factory(list)
    preempted: list[Task] = attrs.Factory(list)
    aborted: list[Task] = attrs.Factory(list)
    refused: list[Task] = attrs.Factory(list)

    @property
    def idle(self) -> bool:
        """Nothing is in it at all."""
        return not (self.prefills or self.decodes or self.preempted or self.aborted or self.refused)


@attrs.define
class Counts:
    """What the scheduler did so far.

    Attributes:
        admitted: requests that began to run; resumed: of them, after a preemption.
        whole_prompt_hits: matches that covered everything, so that the last block is computed again.
        undone: matches given back because the request could not be scheduled after all.
        no_room: matches that could not bring in what is in the host pool, and so did not begin.
        put_off: times a waiting request was asked for and did not fit; none of them appended anything.
    """

    finished: int = 0
    aborted: int = 0
    refused: int = 0
    preempted: int = 0
    admitted: int = 0
    resumed: int = 0
    whole_prompt_hits: int = 0
    undone: int = 0
    no_room: int = 0
    put_off: int = 0
    prefill_tokens: int = 0

    @property
    def ended(self) -> int:
        """Requests that live no more."""
        return self.finished + self.aborted + self.refused


class Scheduler:
    """The requests of one engine.

    Attributes:
        waiting, running: first come first served; in order of admission.
        counts: what was done so far.
    """

    def __init__(
        self,
        manager: Manager,
        settings: Settings,
        *,
        fits: Callable[[int], bool],
        is_due: Callable[[int], bool] = lambda _number: True,
    ) -> None:
        """`fits` says of a number of blocks whether eviction, at most, could make them free. It must change nothing.
        A request with the number n in the trace waits until `is_due(n)`."""
        self.manager = manager
        self.settings = settings
        self.waiting: deque[Task] = deque()
        self.running: list[Task] = []
        self.counts = Counts()
        self._fits = fits
        self._is_due = is_due
        self._gone: set[str] = set()
        self._reserve = float(settings.reserve_output_block_num)

    # --- from outside -------------------------------------------------------------------------------------------------

    def add(self, task: Task) -> None:
        self.waiting.append(task)

    def abort(self, request_id: str) -> bool:
        """Its client went away: it ends with the next step. False: it lives no more."""
        if not any(task.request_id == request_id for task in (*self.running, *self.waiting)):
            return False
        self._gone.add(request_id)
        return True

    @property
    def next_number(self) -> int | None:
        """Place in the trace of the request that is first in line; None when nobody waits."""
        return self.waiting[0].number if self.waiting else None

    def schedule(self) -> Batch:
        """Make the batch of one step."""
        batch = Batch()
        self._drop_aborted(batch)
        self._reserve = max(0.0, self._reserve - self.settings.reserve_decay)
        decoding = sum(task.decoding for task in self.running)
        budget = self.settings.max_num_batched_tokens - decoding * self.settings.tokens_per_decode
        budget = self._schedule_running(batch, budget)
        if not batch.preempted:
            self._schedule_waiting(batch, budget)
        return batch

    def confirm(self, batch: Batch) -> None:
        """The model has run the batch: nobody writes to the blocks of the preempted any more, they may wait again."""
        self.waiting.extendleft(batch.preempted)  # the newest first: the oldest ends up in front

    def finish(self, task: Task) -> None:
        """Its last token is there: what it generated is cached, its own blocks are free."""
        if self.settings.output_caching:
            self.manager.cache_output_blocks(task, self.settings.block_size)
        self.running.remove(task)
        self._free_blocks(task)
        self._gone.discard(task.request_id)
        task.status = Status.FINISHED
        self.counts.finished += 1

    # --- running ------------------------------------------------------------------------------------------------------

    def _drop_aborted(self, batch: Batch) -> None:
        for task in [task for task in self.waiting if task.request_id in self._gone]:
            self.waiting.remove(task)
            self._abort(batch, task)
        for task in [task for task in self.running if task.request_id in self._gone]:
            self.running.remove(task)
            self._free_blocks(task)
            self._abort(batch, task)

    def _abort(self, batch: Batch, task: Task) -> None:
        batch.aborted.append(task)
        self._gone.discard(task.request_id)
        task.status = Status.ABORTED
        self.counts.aborted += 1

    def _schedule_running(self, batch: Batch, budget: int) -> int:
        """Returns what is left of the budget for those that wait."""
        turn = 0
        while turn < len(self.running):  # it shrinks at its end, where the newest are
            task = self.running[turn]
            if task.decoding:
                if self._make_place(batch, task):
                    batch.decodes.append(task)
            elif budget > 0:
                end = task.num_computed_tokens + min(task.need_prefill_tokens - task.num_computed_tokens, budget)
                if self._give(batch, task, self._new_blocks(task, end)):
                    budget -= end - task.num_computed_tokens
                    self._prefill(batch, task, end, first=False)
            turn += 1
        return budget

    def _make_place(self, batch: Batch, task: Task) -> bool:
        """Places for the tokens a decode step writes; False: the request itself had to give way."""
        settings = self.settings
        task.num_computed_tokens = task.num_total_tokens - 1
        left = len(task.block_tables) * settings.block_size - task.num_total_tokens
        if left > settings.prealloc_dec_block_slot_num_threshold:
            return True
        blocks = min(settings.enc_dec_block_num, settings.max_block_num_per_seq - len(task.block_tables))
        return self._give(batch, task, blocks)

    def _give(self, batch: Batch, task: Task, blocks: int) -> bool:
        """More blocks for a running request, if need be those of newer ones; False: its own had to go, too."""
        while blocks > 0 and not self.manager.can_allocate_gpu_blocks(blocks):
            newest = self.running.pop()
            self._preempt(batch, newest)
            if newest is task:
                return False
        if blocks > 0:
            task.block_tables += self.manager.allocate_gpu_blocks(blocks, task.request_id)
        return True

    def _preempt(self, batch: Batch, task: Task) -> None:
        self._free_blocks(task)
        task.status = Status.PREEMPTED
        task.preemptions += 1
        self._reserve = float(self.settings.reserve_output_block_num)
        self.counts.preempted += 1
        batch.preempted.append(task)

    # --- waiting ------------------------------------------------------------------------------------------------------

    def _schedule_waiting(self, batch: Batch, budget: int) -> None:
        while self.waiting and budget > 0 and len(self.running) + len(batch.aborted) < self.settings.max_num_seqs:
            task = self.waiting[0]
            if not self._is_due(task.number):
                return
            if self._never_fits(task):
                self.waiting.popleft()
                task.status = Status.REFUSED
                self.counts.refused += 1
                batch.refused.append(task)
                continue
            reserve = ceil(self._reserve) * len(self.running)
            if not self._fits(self._blocks_to_begin(task) + reserve):
                self.counts.put_off += 1
                return
            end = self._admit(task, budget, reserve)
            if end is None:
                return
            self.waiting.popleft()
            self.running.append(task)
            budget -= end - task.num_computed_tokens
            self._prefill(batch, task, end, first=True)

    def _admit(self, task: Task, budget: int, reserve: int) -> int | None:
        """Match and allocate; where its first chunk ends. None: it could not be scheduled, and nothing of it is left."""
        block_size = self.settings.block_size
        try:
            blocks, matched, _ = self.manager.request_match_blocks(task, block_size)
        except PoolExhausted:  # blocks in the host pool find no room; it has not begun
            self.counts.no_room += 1
            return None
        task.block_tables = list(blocks)
        task.num_cached_blocks = len(blocks)
        task.num_cached_tokens = task.num_computed_tokens = matched
        whole = matched >= task.need_prefill_tokens
        if whole:  # a step computes at least one token: the last block, into the shared block, the same bytes
            task.num_computed_tokens = matched - block_size
        end = task.num_computed_tokens + min(task.need_prefill_tokens - task.num_computed_tokens, budget)
        new = self._new_blocks(task, end)
        if new > 0 and not self.manager.can_allocate_gpu_blocks(new + reserve):
            self._free_blocks(task)
            self.counts.undone += 1
            return None
        if new > 0:
            task.block_tables += self.manager.allocate_gpu_blocks(new, task.request_id)
        self.counts.admitted += 1
        self.counts.resumed += task.status is Status.PREEMPTED
        self.counts.whole_prompt_hits += whole
        task.status = Status.RUNNING
        return end

    def _never_fits(self, task: Task) -> bool:
        """At its longest it needs more than there is: begun, it would preempt itself for ever."""
        longest = self.settings.blocks_at_most(task.prompt_token_ids_len + task.max_tokens)
        return longest > min(self.manager.num_gpu_blocks, self.settings.max_block_num_per_seq)

    def _blocks_to_begin(self, task: Task) -> int:
        return self.manager.get_required_block_num(task.need_prefill_tokens, self.settings.block_size) + (
            self.settings.num_speculative_tokens > 0
        )

    # --- both ---------------------------------------------------------------------------------------------------------

    def _new_blocks(self, task: Task, end: int) -> int:
        """Blocks missing for a chunk that ends there; one more where drafted tokens are written behind it."""
        table = self.manager.get_required_block_num(end, self.settings.block_size)
        table += self.settings.num_speculative_tokens > 0
        return min(table, self.settings.max_block_num_per_seq) - len(task.block_tables)

    def _prefill(self, batch: Batch, task: Task, end: int, *, first: bool) -> None:
        """The chunk is in the batch; its full blocks are put into the tree now, before they have been computed."""
        batch.prefills.append(Chunk(task, task.num_computed_tokens, end, first))
        self.counts.prefill_tokens += end - task.num_computed_tokens
        task.num_computed_tokens = end
        self.manager.update_cache_blocks(task, self.settings.block_size, end)

    def _free_blocks(self, task: Task) -> None:
        """First what it shares, then what is its own: the table says which is which."""
        own = task.block_tables[task.num_cached_blocks :]
        self.manager.release_block_ids(task)
        if own:
            self.manager.recycle_gpu_blocks(own, task.request_id)
        task.restart()
