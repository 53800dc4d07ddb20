"""The pattern that says which block bytes belong to: every way of moving a block wrongly must show."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.errors import InvalidInput
from tests.stores.given import SMALL, hash_of
from workers.layout import CacheLayout
from workers.pattern import pattern


def test_is_the_same_in_every_release() -> None:
    """Blocks filled by an engine would be reported as corrupt by a worker of another release."""
    block_hash = bytes(range(16))
    low, high = (int.from_bytes(block_hash[half : half + 8], "little") for half in (0, 8))
    words = [((place * 0x9E3779B97F4A7C15 % 2**64 ^ low) + high) % 2**64 for place in range(1, 5)]
    wanted = b"".join(word.to_bytes(8, "little") for word in words)
    assert pattern(CacheLayout(1, 1, (16,), "fp8"), block_hash).tobytes() == wanted
    assert wanted[:8].hex() == "1d865287c9893fa8"


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
@settings(deadline=None)
def test_depends_on_the_hash(one: bytes, two: bytes) -> None:
    """A swapped-in block of another prompt would pass for the right one."""
    assert np.array_equal(pattern(SMALL, one), pattern(SMALL, two)) == (one == two)


@pytest.mark.parametrize("shape", [(2, 4, 5), (3,), (1,), (16, 16)], ids=str)
def test_depends_on_layer_and_on_keys_and_values(shape: tuple[int, ...]) -> None:
    """A worker that swaps keys and values, or two layers, would go unnoticed."""
    rows = pattern(CacheLayout(3, 1, shape, "float16"), hash_of(1))
    assert len({row.tobytes() for row in rows}) == 6


def test_depends_on_the_offset() -> None:
    """Bytes that arrive a word too late would go unnoticed."""
    row = pattern(SMALL, hash_of(1))[0]
    assert not np.array_equal(row[8:], row[:-8])


@pytest.mark.parametrize("size", [1, 7, 8, 9])
def test_fills_blocks_of_any_size(size: int) -> None:
    """Blocks whose size is no multiple of a word would keep old bytes at their end."""
    assert pattern(CacheLayout(2, 1, (size,), "int8"), hash_of(1)).shape == (4, size)


def test_refuses_what_is_no_block_hash() -> None:
    """A truncated hash would match blocks it does not name."""
    with pytest.raises(InvalidInput, match="16 bytes"):
        pattern(SMALL, b"short")
