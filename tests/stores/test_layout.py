"""The shape of a pool: sizes, what is refused, and the form in which it travels."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.errors import InvalidInput
from tests.stores.given import SMALL
from workers.layout import DTYPE_BYTES, CacheLayout, format_shape, parse_shape

LAYOUTS = st.builds(
    CacheLayout,
    layers=st.integers(1, 90),
    num_blocks=st.integers(1, 100_000),
    block_shape=st.lists(st.integers(1, 128), min_size=1, max_size=3).map(tuple),
    dtype=st.sampled_from(sorted(DTYPE_BYTES)),
    values=st.booleans(),
)


@pytest.mark.parametrize(("dtype", "element"), [("float16", 2), ("bfloat16", 2), ("int8", 1), ("fp8", 1)])
def test_sizes(dtype: str, element: int) -> None:
    """A host pool would take twice the memory its operator planned, or half (E-47)."""
    layout = CacheLayout(layers=32, num_blocks=1000, block_shape=(8, 64, 128), dtype=dtype)
    assert layout.bytes_per_block_per_tensor == 8 * 64 * 128 * element
    assert layout.bytes_per_tensor == 1000 * 8 * 64 * 128 * element
    assert layout.bytes_per_block == 32 * 2 * 8 * 64 * 128 * element
    assert layout.total_bytes == 1000 * layout.bytes_per_block
    assert attrs.evolve(layout, values=False).total_bytes == layout.total_bytes // 2


@given(LAYOUTS)
@settings(deadline=None)
def test_travels_as_json(layout: CacheLayout) -> None:
    """A worker would read another layout from its command line than the launcher wrote."""
    assert CacheLayout.from_json(layout.to_json()) == layout
    assert "\n" not in layout.to_json()


def test_json_is_stable() -> None:
    """A segment written by one release could not be opened by the next."""
    assert SMALL.to_json() == '{"block_shape":"2,4,5","dtype":"bfloat16","layers":3,"num_blocks":8}'
    keys_only = attrs.evolve(SMALL, values=False)
    assert keys_only.to_json() == '{"block_shape":"2,4,5","dtype":"bfloat16","layers":3,"num_blocks":8,"values":false}'


def test_shapes_are_written_with_commas() -> None:
    """Launchers written for FastDeploy pass shapes as "8,64,128"."""
    assert format_shape((8, 64, 128)) == "8,64,128"
    assert parse_shape("8,64,128") == (8, 64, 128)


@pytest.mark.parametrize("text", ["", "8,", "8, 64", "8x64", "-1,2", "0", "٣", None, [8, 64]])
def test_refuses_other_shapes(text: Any) -> None:
    """A misread shape would give every block a wrong size."""
    with pytest.raises(InvalidInput):
        parse_shape(text)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layers": 0}, "layers must be from 1"),
        ({"layers": True}, "not bool"),
        ({"num_blocks": 0}, "number of blocks must be from 1"),
        ({"num_blocks": -5}, "-5"),
        ({"num_blocks": 2**31 + 1}, "2147483649"),
        ({"num_blocks": 1.5}, "1.5"),
        ({"block_shape": ()}, "at least one dimension"),
        ({"block_shape": (2, 0)}, "dimension of a block must be from 1"),
        ({"block_shape": "2,4"}, "not str"),
        ({"block_shape": 7}, "not int"),
        ({"dtype": "float32"}, "float16"),
        ({"dtype": None}, "None"),
        ({"dtype": ["int8"]}, "int8"),
        ({"layers": 2**31 - 1, "num_blocks": 2**31}, "at most 70368744177664"),
    ],
)
def test_refuses(change: dict[str, Any], named: str) -> None:
    """A pool of a nonsensical size would be created, and fail much later."""
    fields: dict[str, Any] = {"layers": 3, "num_blocks": 8, "block_shape": (2, 4, 5), "dtype": "int8"}
    with pytest.raises(InvalidInput, match=named):
        CacheLayout(**(fields | change))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"block_shape":"2,4,5","dtype":"bfloat16","layers":3}',
        '{"block_shape":"2,4,5","dtype":"bfloat16","layers":3,"num_blocks":8,"pages":1}',
        '{"block_shape":"2,4,5","dtype":"bfloat16","layers":3,"num_blocks":8,"values":1}',
        '{"block_shape":"2,4,5","dtype":"bfloat16","layers":3,"values":false}',
        '{"block_shape":[2,4,5],"dtype":"bfloat16","layers":3,"num_blocks":8}',
        '{"block_shape":"2,4,5","dtype":"bfloat16","layers":"3","num_blocks":8}',
    ],
)
def test_refuses_other_json(text: str) -> None:
    """A worker would start with half a layout."""
    with pytest.raises(InvalidInput):
        CacheLayout.from_json(text)


def test_pools_of_one_index_differ_in_size_only() -> None:
    """The host pool is larger than the GPU pool; everything else about a block must be equal."""

    def changed(**change: Any) -> CacheLayout:
        fields: dict[str, Any] = {"layers": 3, "num_blocks": 8, "block_shape": (2, 4, 5), "dtype": "bfloat16"}
        return CacheLayout(**(fields | change))

    assert SMALL.same_block(changed(num_blocks=99))
    assert not SMALL.same_block(changed(layers=4))
    assert not SMALL.same_block(changed(block_shape=(2, 5, 4)))
    assert not SMALL.same_block(changed(dtype="float16"))
    assert not SMALL.same_block(changed(values=False))
