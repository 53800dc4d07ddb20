"""What a match found, under the names of both generations of callers.

Owns the keys of `hit_info`. Counts are blocks or tokens as their names say; times are seconds.
"""

from __future__ import annotations

from typing import TypedDict


class HitInfo(TypedDict):
    """Older callers read the first two keys; newer ones the rest. There is no storage tier: its numbers are 0."""

    gpu_cache_blocks: int
    cpu_cache_blocks: int
    gpu_match_token_num: int
    cpu_match_token_num: int
    storage_match_token_num: int
    match_gpu_block_ids: list[int]
    gpu_recv_block_ids: list[int]
    match_storage_block_ids: list[int]
    gpu_cache_prepare_time: float
    cpu_cache_prepare_time: float
    storage_cache_prepare_time: float


def hit_info(blocks: list[int], received: int, block_size: int, waited_s: float) -> HitInfo:
    """`blocks`: ids of the cached prefix, in token order; the last `received` of them came from the host."""
    there = len(blocks) - received
    return HitInfo(
        gpu_cache_blocks=there,
        cpu_cache_blocks=received,
        gpu_match_token_num=there * block_size,
        cpu_match_token_num=received * block_size,
        storage_match_token_num=0,
        match_gpu_block_ids=blocks[:there],
        gpu_recv_block_ids=blocks[there:],
        match_storage_block_ids=[],
        gpu_cache_prepare_time=0.0,
        cpu_cache_prepare_time=waited_s,
        storage_cache_prepare_time=0.0,
    )
