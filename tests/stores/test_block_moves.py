"""Which bytes a copy moves, checked against copying block by block."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.errors import InvalidInput
from events.facts import BlockRanges
from statecore import ranges
from tests.stores.given import LARGER, SMALL
from workers.block_moves import merged_moves, plan, slab, spans
from workers.layout import CacheLayout


@st.composite
def cut_ranges(draw: st.DrawFn, ids: list[int]) -> BlockRanges:
    """The ids as ranges, cut in more places than needed: what arrives need not be canonical."""
    pieces: list[tuple[int, int]] = []
    for block in ids:
        if pieces and block == sum(pieces[-1]) and draw(st.booleans()):
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + 1)
        else:
            pieces.append((block, 1))
    return tuple(pieces)


@st.composite
def copies(draw: st.DrawFn) -> tuple[BlockRanges, BlockRanges]:
    """Two lists of equal length: sources in SMALL, destinations, all different, in LARGER; both with long runs."""
    order = draw(st.permutations(range(4)))
    destinations = [5 * group + block for group in order for block in range(draw(st.integers(0, 5)))]
    starts = st.integers(0, SMALL.num_blocks - 1)
    sources: list[int] = []
    while len(sources) < len(destinations):
        start = draw(starts)
        sources += range(start, min(SMALL.num_blocks, start + draw(st.integers(1, 6))))
    del sources[len(destinations) :]
    return draw(cut_ranges(sources)), draw(cut_ranges(destinations))


@given(copies())
@settings(deadline=None)
def test_moves_what_block_by_block_would(copy: tuple[BlockRanges, BlockRanges]) -> None:
    """A merged range would put a block's keys and values into another block."""
    source, destination = copy
    moves = plan(SMALL, LARGER, source, destination, same_pool=False)
    one_by_one = [(s + i, d + i) for s, d, blocks in moves for i in range(blocks)]
    assert one_by_one == list(zip(ranges.ids(source), ranges.ids(destination), strict=True))


@given(copies())
@settings(deadline=None)
def test_moves_are_as_few_as_can_be(copy: tuple[BlockRanges, BlockRanges]) -> None:
    """A transfer of a long run would be thousands of small copies instead of one large one."""
    moves = merged_moves(*copy)
    for (source, destination, blocks), (next_source, next_destination, _) in pairwise(moves):
        assert (source + blocks, destination + blocks) != (next_source, next_destination)


@given(copies())
@settings(deadline=None)
def test_addresses_move_what_block_by_block_would(copy: tuple[BlockRanges, BlockRanges]) -> None:
    """A GPU copy would read or write next to the block it was told to move."""
    source, destination = copy
    memory = np.arange(SMALL.total_bytes, dtype=np.uint16).view(np.uint8)[: SMALL.total_bytes].copy()
    wanted = np.zeros((LARGER.tensors, LARGER.num_blocks, LARGER.bytes_per_block_per_tensor), dtype=np.uint8)
    blocks = memory.reshape(SMALL.tensors, SMALL.num_blocks, -1)
    for read, written in zip(ranges.ids(source), ranges.ids(destination), strict=True):
        wanted[:, written] = blocks[:, read]

    got = np.zeros(LARGER.total_bytes, dtype=np.uint8)
    moves = plan(SMALL, LARGER, source, destination, same_pool=False)
    for to, from_, size in spans(moves, SMALL.bytes_per_block_per_tensor, slab(0, SMALL), slab(0, LARGER)):
        got[to : to + size] = memory[from_ : from_ + size]
    assert np.array_equal(got, wanted.reshape(-1))


def test_one_span_for_each_tensor_of_a_run() -> None:
    """A swap of a run on the GPU would queue a copy for each block."""
    moves = plan(SMALL, LARGER, ((2, 3),), ((10, 1), (11, 2)), same_pool=False)
    size = SMALL.bytes_per_block_per_tensor
    pieces = spans(moves, size, range(0, 6_000_000, 1_000_000), range(10_000_000, 16_000_000, 1_000_000))
    assert pieces == [
        (10_000_000 + tensor * 1_000_000 + 10 * size, tensor * 1_000_000 + 2 * size, 3 * size) for tensor in range(6)
    ]


def test_an_empty_copy_is_a_copy() -> None:
    """A transfer of no blocks would fail instead of finishing."""
    assert plan(SMALL, LARGER, (), (), same_pool=False) == []


@pytest.mark.parametrize(
    ("source", "destination", "named"),
    [
        (((0, 2),), ((0, 3),), "2 source, 3"),
        ((), ((0, 1),), "0 source, 1"),
        (((7, 2),), ((0, 2),), "source blocks 7 to 8 are outside the pool, which has 0 to 7"),
        (((0, 2),), ((19, 2),), "destination blocks 19 to 20 are outside the pool, which has 0 to 19"),
        (((-1, 1),), ((0, 1),), "source blocks -1 to -1"),
        (((0, 0),), ((0, 0),), "at least one block, not 0"),
        (((0, -2),), ((0, -2),), "at least one block, not -2"),
        (((0, 2),), ((4, 1), (4, 1)), "destination block 4 is named twice"),
        (((0, 4),), ((4, 3), (6, 1)), "destination block 6 is named twice"),
        ((3,), ((0, 1),), r"\(\(start, count\), …\) of integers, not 3"),
        (((0.0, 1),), ((0, 1),), "of integers"),
        (((0, 1, 2),), ((0, 1),), "of integers"),
    ],
)
def test_refuses(source: Any, destination: Any, named: str) -> None:
    """A mistaken list would overwrite blocks of other requests."""
    with pytest.raises(InvalidInput, match=named):
        plan(SMALL, LARGER, source, destination, same_pool=False)


@pytest.mark.parametrize(
    "other",
    [
        CacheLayout(4, 8, (2, 4, 5), "bfloat16"),
        CacheLayout(3, 8, (4, 2, 5), "bfloat16"),
        CacheLayout(3, 8, (2, 4, 5), "float16"),
        CacheLayout(3, 8, (2, 4, 5), "int8"),
    ],
    ids=str,
)
def test_refuses_another_layout(other: CacheLayout) -> None:
    """Keys of one model would become values of another."""
    with pytest.raises(
        InvalidInput, match=r"source 3 layers × 8 blocks of \[2,4,5\] bfloat16, target .*" + other.dtype
    ):
        plan(SMALL, other, ((0, 1),), ((0, 1),), same_pool=False)


@given(st.sets(st.integers(0, 7), min_size=1), st.sets(st.integers(0, 7), min_size=1))
@settings(deadline=None)
def test_a_pool_is_not_read_where_it_is_written(read: set[int], written: set[int]) -> None:
    """A move inside a pool would depend on the order of its pieces."""
    size = min(len(read), len(written))
    source, destination = ranges.of_ids(sorted(read)[:size]), ranges.of_ids(sorted(written)[:size])
    if set(ranges.ids(source)) & set(ranges.ids(destination)):
        with pytest.raises(InvalidInput, match="both source and destination"):
            plan(SMALL, SMALL, source, destination, same_pool=True)
    else:
        assert plan(SMALL, SMALL, source, destination, same_pool=True)
