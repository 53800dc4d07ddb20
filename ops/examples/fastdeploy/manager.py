"""What the scheduler needs of a cache manager, under FastDeploy's names.

Owns the protocol and nothing behind it: `statecore.PrefixCacheManager` answers to it, and so does a test's double.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ops.examples.fastdeploy.task import Task


class Manager(Protocol):
    """A prefix cache manager, as far as the scheduler calls it."""

    @property
    def num_gpu_blocks(self) -> int: ...

    @property
    def gpu_free_block_list(self) -> Sequence[int]:
        """Ids that belong to nobody; to look at only."""
        ...

    def can_allocate_gpu_blocks(self, num_blocks: int, try_free_gpu_blocks: bool = True) -> bool:
        """Whether so many blocks can be had. With `try_free_gpu_blocks` it evicts what is missing."""
        ...

    def allocate_gpu_blocks(self, num_blocks: int, req_id: str | None = None) -> list[int]: ...

    def recycle_gpu_blocks(self, gpu_block_ids: list[int] | int, req_id: str | None = None) -> None: ...

    def get_required_block_num(self, input_token_num: int, block_size: int) -> int: ...

    def request_match_blocks(self, task: Task, block_size: int) -> tuple[list[int], int, Mapping[str, object]]: ...

    def update_cache_blocks(self, task: Task, block_size: int, num_computed_tokens: int) -> None: ...

    def cache_output_blocks(self, task: Task, block_size: int) -> None: ...

    def release_block_ids(self, task: Task) -> None: ...
