"""Looks after every step whether the contract holds, from the outside and from the state.

Owns the checks. Two of them, that know nothing of each other:

    tables   what the scheduler holds: its requests' block tables against each other and the manager's free list
    state    what the replica holds: every block of every pool in exactly one place, every count recounted, and each
             request's table, path and hashes against what its tokens say they must be

A state is a function of its position, so it is checked again when the position has moved; tables are checked every time.
What is found is a sentence with the numbers. Nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import attrs

from events.facts import BLOCK_HASH_BYTES
from ops.examples.fastdeploy.manager import Manager
from ops.examples.fastdeploy.scheduler import Batch
from ops.examples.fastdeploy.settings import Settings
from ops.examples.fastdeploy.task import Task
from statecore import CacheIndex, ranges
from statecore.invariants import leaked_blocks, violations
from statecore.state import Request, State, private_ranges, request_table

_SHOWN_MAX = 5
"""Of one kind: when something is broken everything behind it is, too."""


@attrs.define
class Checked:
    """How often was looked. `tables` after steps, `states` at positions, `requests` in both together."""

    tables: int = 0
    states: int = 0
    requests: int = 0


class Checker:
    """Of one engine. `hashes` gives the hashes that a request's full blocks must have.

    Attributes:
        checked: how often was looked.
    """

    def __init__(
        self,
        manager: Manager,
        index: CacheIndex,
        settings: Settings,
        hashes: Callable[[Task], bytes],
        *,
        tree: bool = True,
    ) -> None:
        """`tree`: requests live in the index. On the decode role they do not, and all their blocks are their own."""
        self.checked = Checked()
        self._manager = manager
        self._index = index
        self._settings = settings
        self._hashes = hashes
        self._position = -1
        self._tree = tree

    def after_schedule(self, running: Sequence[Task], waiting: Iterable[Task], batch: Batch) -> list[str]:
        """Every violation, when a batch is made and before it runs."""
        return [*self.places(batch), *self.now(running, [*waiting, *batch.preempted, *batch.aborted])]

    def now(self, running: Sequence[Task], waiting: Iterable[Task]) -> list[str]:
        """Every violation, between two steps."""
        found = [*self.tables(running), *self._without_blocks(waiting)]
        if self._index.position != self._position:
            found += self.state(running)
            self._position = self._index.position
        return found

    def at_end(self) -> list[str]:
        """Nobody runs, nothing moves: whatever is not free is cached, and nothing is held."""
        index, found = self._index, []
        if requests := index.requests():
            found.append(f"at the end requests still live: {_few(requests)}")
        free, cached, blocks = index.free_blocks, index.cached_blocks, self._manager.num_gpu_blocks
        if free + cached != blocks:
            found.append(f"at the end {free} blocks are free and {cached} cached, the pool has {blocks}")
        if len(self._manager.gpu_free_block_list) != free:
            found.append(f"the free list has {len(self._manager.gpu_free_block_list)} ids, the pool {free} free blocks")
        if leaked := index.inspect(leaked_blocks):
            found.append(f"{leaked} blocks belong to nobody")
        return found + self.state(())

    # --- what the scheduler holds -------------------------------------------------------------------------------------

    def places(self, batch: Batch) -> list[str]:
        """What the batch writes has a place in the tables, and stays within the budget."""
        size, found, tokens = self._settings.block_size, [], 0
        for chunk in batch.prefills:
            tokens += chunk.end - chunk.start
            if not chunk.start < chunk.end <= len(chunk.task.block_tables) * size:
                found.append(
                    f"{chunk.task.request_id}: tokens {chunk.start} to {chunk.end} in {len(chunk.task.block_tables)} blocks"
                )
        for task in batch.decodes:
            tokens += self._settings.tokens_per_decode
            end = task.num_total_tokens + self._settings.num_speculative_tokens
            if end > len(task.block_tables) * size:
                found.append(f"{task.request_id}: a decode writes to token {end} in {len(task.block_tables)} blocks")
        if tokens > self._settings.max_num_batched_tokens:
            found.append(f"a batch of {tokens} tokens, {self._settings.max_num_batched_tokens} are allowed")
        return found

    def tables(self, running: Sequence[Task]) -> list[str]:
        """Tables are made of different blocks; what is private is in no other table and not free."""
        self.checked.tables += 1
        self.checked.requests += len(running)
        found: list[str] = []
        free = set(self._manager.gpu_free_block_list)
        owners: dict[int, str] = {}
        shared: dict[int, str] = {}
        for task in running:
            table, cached, name = task.block_tables, task.num_cached_blocks, task.request_id
            if not 0 <= cached <= len(table):
                found.append(f"{name}: {cached} blocks of a table of {len(table)} are cached")
            if len(set(table)) != len(table):
                found.append(f"{name}: a block is in its table twice")
            if table and (min(table) < 0 or max(table) >= self._manager.num_gpu_blocks):
                found.append(f"{name}: block {max(table)} in a pool of {self._manager.num_gpu_blocks}")
            if used := free.intersection(table):
                found.append(f"{name}: its blocks {_few(sorted(used))} are free")
            found += [
                f"block {block} is private to {name} and to {owners[block]}"
                for block in table[cached:]
                if owners.setdefault(block, name) != name
            ]
            shared.update(dict.fromkeys(table[:cached], name))
        found += [
            f"block {block} is private to {owners[block]} and cached in the table of {shared[block]}"
            for block in sorted(owners.keys() & shared.keys())
        ]
        return found[:_SHOWN_MAX]

    @staticmethod
    def _without_blocks(waiting: Iterable[Task]) -> list[str]:
        return [
            f"{task.request_id} does not run, and has {len(task.block_tables)} blocks"
            for task in waiting
            if task.block_tables or task.num_cached_blocks or task.num_computed_tokens
        ][:_SHOWN_MAX]

    # --- what the replica holds ---------------------------------------------------------------------------------------

    def state(self, running: Sequence[Task]) -> list[str]:
        """Everything recounted; then each request against its tokens."""
        self.checked.states += 1
        self.checked.requests += len(running)
        return self._index.inspect(lambda state: self._in_state(state, running))[:_SHOWN_MAX]

    def _in_state(self, state: State, running: Sequence[Task]) -> list[str]:
        if found := violations(state):
            return found
        engine = state.engines[self._index.engine]
        names = {task.request_id for task in running}
        found = [
            f"request {name!r} lives in the index and does not run" for name in engine.requests if name not in names
        ]
        held = engine.held.get(self._index.gpu_pool)
        unclaimed = set(ranges.ids(tuple(held))) if held else set()
        for task in running:
            request = engine.requests.get(task.request_id)
            if request is None and not self._tree:
                found += self._reserved(task, task.block_tables, unclaimed)
            elif request is None:
                found.append(f"{task.request_id} runs and does not live in the index")
            else:
                found += self._request(request, task, unclaimed)
        if unclaimed:
            found.append(f"the engine holds blocks {_few(sorted(unclaimed))}, and no request has them in its table")
        return found

    def _request(self, request: Request, task: Task, held: set[int]) -> list[str]:
        """Takes what is this request's out of `held`, the blocks that the engine has without a request."""
        pool, name, path = self._index.gpu_pool, task.request_id, request.path_blocks
        table = ranges.ids(request_table(request, pool))
        if path != task.num_cached_blocks:
            return [f"{name}: num_cached_blocks is {task.num_cached_blocks}, its path has {path}"]
        if table != task.block_tables[: len(table)]:
            return [f"{name}: its table begins with {_few(task.block_tables)}, that of the index is {_few(table)}"]
        found = []
        hashes, tree = _path(request, pool)
        if hashes != self._hashes(task)[: path * BLOCK_HASH_BYTES] or len(tree) != path:
            found.append(f"{name}: the {path} blocks of its path are not those of its tokens")
        own = set(ranges.ids(private_ranges(request)))
        beside = [block for block, of_tree in zip(table, tree, strict=False) if block != of_tree and block not in own]
        if beside:
            found.append(f"{name}: blocks {_few(beside)} are neither the tree's nor duplicates of its own")
        if foreign := set(table[path:]) - own:
            found.append(f"{name}: blocks {_few(sorted(foreign))} follow its path and are not its own")
        return found + self._reserved(task, task.block_tables[len(table) :], held)

    @staticmethod
    def _reserved(task: Task, blocks: list[int], held: set[int]) -> list[str]:
        """Blocks in a request's table that the engine must hold for it."""
        foreign = set(blocks) - held
        held.difference_update(blocks)
        return [f"{task.request_id}: blocks {_few(sorted(foreign))} are in its table and nobody's"] if foreign else []


def _path(request: Request, pool: str) -> tuple[bytes, list[int]]:
    """Hashes and block ids of the tree, from the root to the request's leaf."""
    nodes = []
    node = request.leaf
    while node.parent is not None:
        nodes.append(node)
        node = node.parent
    nodes.reverse()
    blocks = [block for node in nodes for block in ranges.ids(node.copies[pool].blocks)]
    return b"".join(node.hashes for node in nodes), blocks


def _few(items: Sequence[object]) -> str:
    shown = ", ".join(str(item) for item in items[:_SHOWN_MAX])
    return f"{shown} … ({len(items)})" if len(items) > _SHOWN_MAX else shown or "none"
