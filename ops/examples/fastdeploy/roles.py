"""Prefill on one engine, decode on another: FastDeploy's splitwise roles, in a small scenario of its own.

Owns the two sides and what they say to each other. Both managers live in this process and are stepped in turn, on one real
Redis; the bytes are sent by worker processes.

| decode side                                    | prefill side                                           |
|------------------------------------------------|--------------------------------------------------------|
| allocates for prompt and reserve, asks P        |                                                       |
|                                                | matches, allocates for the whole prompt, updates it at |
|                                                | once, computes it in chunks, and the first token       |
|                                                | send_cache: its blocks to those of D                   |
| wait_for_cache; looks at the bytes; decodes    | when the send has ended: release, recycle              |
| recycles                                       |                                                        |

Some clients go away while their blocks are on their way: D gives its blocks back at once, and P hears that the send is
cancelled. Nobody else gets a block that a worker may still write.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import attrs

from events.limits import POOL_BLOCKS_MAX
from ops.examples.fastdeploy.checker import Checker
from ops.examples.fastdeploy.model import Model
from ops.examples.fastdeploy.plug import Plugged
from ops.examples.fastdeploy.scheduler import Batch, Chunk
from ops.examples.fastdeploy.task import Status, Task
from statecore import ForeignBlocks, NotReceivable

ARRIVAL_S: Final = 0.0
"""The scheduler does not wait: it asks."""


@attrs.define(eq=False)
class _Sending:
    """A request on the prefill side."""

    task: Task
    to_blocks: list[int]
    transfer: str = ""


class PrefillSide:
    """Computes prompts and sends them. `sent`, `unsent`: handed over, and not because nobody wanted them any more."""

    def __init__(self, plug: Plugged, receiver: str) -> None:
        self.manager, self.index, self.settings = plug.manager, plug.index, plug.spec.settings
        self.model = Model(self.settings, plug.contents)
        self.checker = Checker(plug.manager, plug.index, self.settings, self.model.hashes)
        self.sent = 0
        self.unsent = 0
        self.first_tokens: dict[str, int] = {}
        self._receiver = receiver
        self._waiting: deque[_Sending] = deque()
        self._running: list[_Sending] = []

    def accept(self, task: Task, to_blocks: list[int]) -> None:
        """A request that the other side has blocks for."""
        self._waiting.append(_Sending(task, to_blocks))

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting)

    def step(self) -> list[str]:
        """One step; what the checker says."""
        for sending in [each for each in self._running if each.transfer]:
            if not self.index.poll(sending.transfer).under_way:
                self.sent += self.index.poll(sending.transfer).done
                self.unsent += not self.index.poll(sending.transfer).done
                self._end(sending)
        while self._waiting and self._begin(self._waiting[0]):
            self._running.append(self._waiting.popleft())
        batch = self._batch()
        found = self.checker.after_schedule(self._tasks(), [each.task for each in self._waiting], batch)
        self.model.run(batch)
        for sending in [each for each in self._running if not each.transfer and each.task.output_token_ids]:
            self._send(sending)
        return found + self.checker.now(self._tasks(), [each.task for each in self._waiting])

    def _tasks(self) -> list[Task]:
        return [each.task for each in self._running]

    def _begin(self, sending: _Sending) -> bool:
        """All blocks for the prompt and the reserve, or none; its whole prompt joins the path at once."""
        task, size = sending.task, self.settings.block_size
        blocks = self.manager.get_required_block_num(task.need_prefill_tokens, size) + self.settings.enc_dec_block_num
        if not self.index.can_allocate(blocks):
            return False
        common, matched, _ = self.manager.request_match_blocks(task, size)
        missing = blocks - len(common)
        if not self.manager.can_allocate_gpu_blocks(missing):
            self.manager.release_block_ids(task)
            task.restart()
            return False
        task.block_tables = [*common, *self.manager.allocate_gpu_blocks(missing, task.request_id)]
        task.num_cached_tokens = matched
        task.num_computed_tokens = matched - size if matched >= task.need_prefill_tokens else matched
        self.manager.update_cache_blocks(task, size, task.need_prefill_tokens)
        task.status = Status.RUNNING
        return True

    def _batch(self) -> Batch:
        batch, budget = Batch(), self.settings.max_num_batched_tokens
        for sending in self._running:
            task = sending.task
            tokens = min(task.need_prefill_tokens - task.num_computed_tokens, budget)
            if tokens > 0:
                start = task.num_computed_tokens
                first = start in {task.num_cached_tokens, task.num_cached_tokens - self.settings.block_size}
                task.num_computed_tokens += tokens
                batch.prefills.append(Chunk(task, start, task.num_computed_tokens, first))
                budget -= tokens
        return batch

    def _send(self, sending: _Sending) -> None:
        task = sending.task
        self.first_tokens[task.request_id] = task.output_token_ids[0]
        try:
            sending.transfer = self.manager.send_cache(task, self._receiver, sending.to_blocks).transfer
        except (NotReceivable, ForeignBlocks):  # its client has gone, and the receiver has given the blocks back
            self.unsent += 1
            self._end(sending)

    def _end(self, sending: _Sending) -> None:
        task = sending.task
        own = task.block_tables[task.num_cached_blocks :]
        self.manager.release_block_ids(task)
        self.manager.recycle_gpu_blocks(own, task.request_id)
        self._running.remove(sending)
        self.model.forget(task)


class DecodeSide:
    """Receives prompts and decodes. No tree: all blocks are its own."""

    def __init__(self, plug: Plugged, tasks: list[Task], prefill: PrefillSide, abort_every: int) -> None:
        self.manager, self.index, self.settings = plug.manager, plug.index, plug.spec.settings
        self.model = Model(self.settings, plug.contents)
        self.checker = Checker(plug.manager, plug.index, self.settings, self.model.hashes, tree=False)
        self.finished = 0
        self.aborted = 0
        self.failed = 0
        self._waiting = deque(tasks)
        self._coming: list[Task] = []
        self._running: list[Task] = []
        self._prefill = prefill
        self._abort_every = abort_every

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._coming or self._running)

    def step(self) -> list[str]:
        """One step; what the checker says."""
        while self._waiting and len(self._coming) + len(self._running) < self.settings.max_num_seqs:
            if not self._begin(self._waiting[0]):
                break
            self._coming.append(self._waiting.popleft())
        for task in list(self._coming):
            self._look_for(task)
        batch = Batch(decodes=[task for task in self._running if self._has_place(task)])
        found = self.checker.after_schedule([*self._coming, *self._running], self._waiting, batch)
        for task in self.model.run(batch):
            self._running.remove(task)
            self._end(task)
            self.finished += 1
        return found + self.checker.now([*self._coming, *self._running], self._waiting)

    def _begin(self, task: Task) -> bool:
        """Only what can end: a decode engine has nobody to take a preempted request back."""
        longest = sum(
            self.settings.blocks_at_most(each.prompt_token_ids_len + each.max_tokens)
            for each in (*self._coming, *self._running, task)
        )
        if longest > min(self.manager.num_gpu_blocks, POOL_BLOCKS_MAX):
            return False
        blocks = self.manager.get_required_block_num(task.prompt_token_ids_len, self.settings.block_size)
        blocks += self.settings.enc_dec_block_num
        if not self.manager.can_allocate_gpu_blocks(blocks):
            return False
        task.block_tables = self.manager.allocate_gpu_blocks(blocks, task.request_id)
        ours = Task(task.request_id, list(task.prompt_token_ids), task.max_tokens, task.number)
        self._prefill.accept(ours, list(task.block_tables))
        return True

    def _has_place(self, task: Task) -> bool:
        """For its next tokens. Blocks of a client that went away come back when its send has ended; then it waits a step."""
        task.num_computed_tokens = task.num_total_tokens - 1
        left = len(task.block_tables) * self.settings.block_size - task.num_total_tokens
        if left <= self.settings.prealloc_dec_block_slot_num_threshold:
            if not self.manager.can_allocate_gpu_blocks(self.settings.enc_dec_block_num):
                return False
            task.block_tables += self.manager.allocate_gpu_blocks(self.settings.enc_dec_block_num, task.request_id)
        return True

    def _look_for(self, task: Task) -> None:
        if self._abort_every and task.number % self._abort_every == 0 and task.request_id in self._prefill.first_tokens:
            self._coming.remove(task)
            self._end(task)
            self.aborted += 1
            return
        came = self.manager.wait_for_cache(task.request_id, ARRIVAL_S)
        if came.under_way:
            return
        self._coming.remove(task)
        if not came.done:
            self._end(task)
            self.failed += 1
            return
        self.model.verify(task, task.prompt_token_ids_len // self.settings.block_size)
        task.output_token_ids.append(self._prefill.first_tokens[task.request_id])
        task.num_computed_tokens = task.prompt_token_ids_len
        task.status = Status.RUNNING
        if task.done:
            self._end(task)
            self.finished += 1
        else:
            self._running.append(task)

    def _end(self, task: Task) -> None:
        self.manager.recycle_gpu_blocks(task.block_tables, task.request_id)
        task.restart()
        self.model.forget(task)
