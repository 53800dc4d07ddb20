"""The shape of a pool's bytes: what every engine and worker of one pool and rank must agree on before a byte moves.

Owns `CacheLayout`: sizes, their check, and the JSON form in which a layout travels on a worker's command line and in
the header of shared memory. Knows nothing about where the bytes are.

**Order in memory.** A pool is `2 * layers` tensors of shape `[num_blocks, *block_shape]`, without gaps:

    tensor    0          1          2          3              2 * layer       2 * layer + 1
    holds     keys 0     values 0   keys 1     values 1   …   keys of layer   values of layer

(an attention that keeps no values has one tensor per layer), so the bytes accounted for are the bytes mapped, and nothing
else: `total_bytes` (E-47).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import attrs
import orjson

from events.errors import InvalidInput
from events.limits import POOL_BLOCKS_MAX
from statecore.door import whole

DTYPE_BYTES: Final = {"bfloat16": 2, "float16": 2, "fp8": 1, "int8": 1}
"""Bytes of one element. Stores move bytes, so the name only has to give a size and to be equal on both sides."""

DIMENSION_MAX: Final = (1 << 31) - 1
"""Layers, and each dimension of a block: kernels index them by int32."""

POOL_BYTES_MAX: Final = 1 << 46
"""64 TiB in one pool of one rank: above the address space of one process on x86-64, so a mixed-up shape."""

_FIELDS: Final = frozenset({"layers", "num_blocks", "block_shape", "dtype"})
_WITHOUT_VALUES: Final = {"values": False}
"""In the JSON form of a layout only where it is so."""


def format_shape(shape: tuple[int, ...]) -> str:
    """`(8, 64, 128)` as "8,64,128"."""
    return ",".join(str(dimension) for dimension in shape)


def parse_shape(text: object) -> tuple[int, ...]:
    """ "8,64,128" as `(8, 64, 128)`. InvalidInput for anything else."""
    parts = text.split(",") if isinstance(text, str) else []
    if not parts or not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidInput(f"a block shape is written like '8,64,128', not {text!r:.80}")
    return _shape(int(part) for part in parts)


def _shape(value: Iterable[int]) -> tuple[int, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise InvalidInput(f"a block shape is a tuple of integers, not {type(value).__name__} {value!r:.80}")
    shape = tuple(whole(each, "a dimension of a block", least=1, most=DIMENSION_MAX) for each in value)
    if not shape:
        raise InvalidInput("a block shape has at least one dimension, such as (8, 64, 128); this one has none")
    return shape


def _layers(value: int) -> int:
    return whole(value, "the number of layers", least=1, most=DIMENSION_MAX)


def _num_blocks(value: int) -> int:
    return whole(value, "the number of blocks", least=1, most=POOL_BLOCKS_MAX)


def _dtype(value: str) -> str:
    if value not in tuple(DTYPE_BYTES):
        raise InvalidInput(f"dtype must be one of {', '.join(DTYPE_BYTES)}, not {value!r:.80}")
    return value


@attrs.frozen(slots=True)
class CacheLayout:
    """Shape of the keys and values of one pool, as one tensor-parallel rank holds them.

    Attributes:
        layers: attention layers; each has one key and one value tensor.
        num_blocks: blocks of the pool, the first dimension of every tensor.
        block_shape: the other dimensions, such as (kv_heads, block_size, head_dim).
        dtype: float16, bfloat16, int8 or fp8.
        values: whether there are value tensors; an attention that compresses both into one tensor has none.
    """

    layers: int = attrs.field(converter=_layers)
    num_blocks: int = attrs.field(converter=_num_blocks)
    block_shape: tuple[int, ...] = attrs.field(converter=_shape)
    dtype: str = attrs.field(converter=_dtype)
    values: bool = True

    def __attrs_post_init__(self) -> None:
        if self.total_bytes > POOL_BYTES_MAX:
            raise InvalidInput(f"{self} makes {self.total_bytes} bytes; a pool has at most {POOL_BYTES_MAX}")

    @property
    def tensors(self) -> int:
        """Key and value tensors together."""
        return (2 if self.values else 1) * self.layers

    @property
    def bytes_per_block_per_tensor(self) -> int:
        """Bytes of one block in one of the tensors: the smallest piece that is contiguous."""
        return math.prod(self.block_shape) * DTYPE_BYTES[self.dtype]

    @property
    def bytes_per_tensor(self) -> int:
        return self.num_blocks * self.bytes_per_block_per_tensor

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block in all layers, keys and values."""
        return self.tensors * self.bytes_per_block_per_tensor

    @property
    def total_bytes(self) -> int:
        return self.tensors * self.bytes_per_tensor

    def same_block(self, other: CacheLayout) -> bool:
        """Whether a block means the same bytes in both, so that it can be copied. Pools may differ in size."""
        return self == attrs.evolve(other, num_blocks=self.num_blocks)

    def __str__(self) -> str:
        shape = format_shape(self.block_shape)
        keys_only = "" if self.values else " (no values)"
        return f"{self.layers} layers × {self.num_blocks} blocks of [{shape}] {self.dtype}{keys_only}"

    def to_json(self) -> str:
        """One line that `from_json` reads back to an equal layout."""
        fields = attrs.asdict(self) | {"block_shape": format_shape(self.block_shape)}
        if self.values:
            del fields["values"]
        return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> CacheLayout:
        try:
            fields = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"a layout is JSON such as {_EXAMPLE}, not {text!r:.200}: {error}") from error
        more = {name: fields[name] for name in fields.keys() - _FIELDS} if isinstance(fields, dict) else None
        if more not in ({}, _WITHOUT_VALUES) or not fields.keys() >= _FIELDS:
            raise InvalidInput(f"a layout is JSON such as {_EXAMPLE}, not {text!r:.200}")
        return cls(
            layers=fields["layers"],
            num_blocks=fields["num_blocks"],
            block_shape=parse_shape(fields["block_shape"]),
            dtype=fields["dtype"],
            values=not more,
        )


_EXAMPLE: Final = CacheLayout(32, 1000, (8, 64, 128), "bfloat16").to_json()
