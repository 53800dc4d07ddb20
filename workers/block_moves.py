"""Which bytes a copy moves: from two lists of block ranges to few, large, checked pieces.

Owns the refusals of a copy and the arithmetic from block ids to byte addresses. Pure: reads no memory, so what a GPU
does with the addresses can be checked without one. Costs are per range, never per block.

    source        (3, 4)                     3 4 5 6                 two moves:
    destination   (9, 2), (0, 1), (1, 1)     9 10 0 1                3 -> 9, 2 blocks;  5 -> 0, 2 blocks

Each move is one contiguous piece in each of the `2 * layers` tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from events.errors import InvalidInput
from events.facts import BlockRanges
from statecore.ranges import count
from workers.layout import CacheLayout

Move: TypeAlias = tuple[int, int, int]
"""`(first source block, first destination block, blocks)`."""

Span: TypeAlias = tuple[int, int, int]
"""`(destination address, source address, bytes)`, in the order memmove and cudaMemcpyAsync take them."""


def plan(
    source: CacheLayout,
    destination: CacheLayout,
    source_blocks: BlockRanges,
    destination_blocks: BlockRanges,
    *,
    same_pool: bool,
) -> list[Move]:
    """The moves of one copy, merged. InvalidInput when it must not happen; nothing is moved before all is checked."""
    if not source.same_block(destination):
        raise InvalidInput(f"blocks cannot be copied between different layouts: source {source}, target {destination}")
    check_ranges(source_blocks, source.num_blocks, "source")
    check_ranges(destination_blocks, destination.num_blocks, "destination")
    given, wanted = count(source_blocks), count(destination_blocks)
    if given != wanted:
        raise InvalidInput(f"a copy needs as many destination blocks as source blocks: {given} source, {wanted} given")
    _refuse_written_twice(destination_blocks)
    if same_pool:
        _refuse_read_and_written(source_blocks, destination_blocks)
    return merged_moves(source_blocks, destination_blocks)


def check_ranges(blocks: BlockRanges, num_blocks: int, side: str) -> None:
    """Refuse what is not `((start, count), …)` inside a pool of `num_blocks` blocks."""
    for each in blocks:
        start, length = _range(each, side)
        if length < 1:
            raise InvalidInput(f"a range of {side} blocks has at least one block, not {length} from block {start}")
        if start < 0 or start + length > num_blocks:
            raise InvalidInput(
                f"{side} blocks {start} to {start + length - 1} are outside the pool, which has 0 to {num_blocks - 1}"
            )


def _range(value: object, side: str) -> tuple[int, int]:
    match value:
        case (int() as start, int() as length):
            return start, length
        case _:
            raise InvalidInput(f"{side} blocks come as ((start, count), …) of integers, not {value!r:.80}")


def merged_moves(source_blocks: BlockRanges, destination_blocks: BlockRanges) -> list[Move]:
    """Pair the two lists block by block, and join neighbours that continue each other on both sides."""
    moves: list[Move] = []
    for source, destination, blocks in _pieces(source_blocks, destination_blocks):
        if moves:
            from_source, from_destination, length = moves[-1]
            if source == from_source + length and destination == from_destination + length:
                moves[-1] = (from_source, from_destination, length + blocks)
                continue
        moves.append((source, destination, blocks))
    return moves


def _pieces(source_blocks: BlockRanges, destination_blocks: BlockRanges) -> Iterator[Move]:
    """Cut both lists wherever either of them has a border."""
    destinations = iter(destination_blocks)
    destination = room = 0
    for start, length in source_blocks:
        source, left = start, length
        while left:
            if not room:
                destination, room = next(destinations)
            blocks = min(left, room)
            yield source, destination, blocks
            source, left = source + blocks, left - blocks
            destination, room = destination + blocks, room - blocks


def slab(base: int, layout: CacheLayout) -> tuple[int, ...]:
    """Addresses of the tensors of a pool that lies in one piece from `base`."""
    return tuple(base + tensor * layout.bytes_per_tensor for tensor in range(layout.tensors))


def spans(
    moves: Sequence[Move],
    bytes_per_block_per_tensor: int,
    source_tensors: Sequence[int],
    destination_tensors: Sequence[int],
) -> list[Span]:
    """Addresses and sizes of every contiguous piece, given the address of each tensor on both sides."""
    assert len(source_tensors) == len(destination_tensors), f"{len(source_tensors)} and {len(destination_tensors)}"
    size = bytes_per_block_per_tensor
    return [
        (to + destination * size, from_ + source * size, blocks * size)
        for from_, to in zip(source_tensors, destination_tensors, strict=True)
        for source, destination, blocks in moves
    ]


def _refuse_written_twice(blocks: BlockRanges) -> None:
    end = 0
    for start, length in sorted(blocks):
        if start < end:
            raise InvalidInput(f"destination block {start} is named twice: what it would hold is undefined")
        end = start + length


def _refuse_read_and_written(source_blocks: BlockRanges, destination_blocks: BlockRanges) -> None:
    """Inside one pool, what a copy reads must not change while it runs."""
    written = sorted(destination_blocks)
    position = 0
    for start, length in sorted(source_blocks):
        while position < len(written) and sum(written[position]) <= start:
            position += 1
        if position < len(written) and written[position][0] < start + length:
            block = max(start, written[position][0])
            raise InvalidInput(f"block {block} is both source and destination of one copy inside a pool")
