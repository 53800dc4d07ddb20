"""The shape of one layer's KV cache: asked from an attention backend, or the usual one.

Owns how shapes are asked for, written and read. `[num_blocks, …]`, dimensions in elements.

The usual shape is that of paged attention with the heads before the tokens of a block:
`[num_blocks, heads per rank, block_size, head_dim]`, keys and values alike; four-bit values are packed in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from events.errors import InvalidInput
from events.limits import POOL_BLOCKS_MAX
from statecore import door
from statecore.manager.settings import required

_HEADS_MAX: Final = 1 << 20
_PACKED: Final = ("int4", "int4_zp")
_LAYERS_MAX: Final = 1 << 16


class AttentionBackend(Protocol):
    """Who knows the shape of its caches."""

    def get_kv_cache_shape(
        self, max_num_blocks: int, kv_cache_quant_type: str | None = None
    ) -> tuple[Sequence[object], Sequence[object] | None]:
        """Shapes of one layer's keys and values, for so many blocks; the second empty or None where there are no values."""
        ...


def quantization_of(config: object) -> str | None:
    """The type that keys and values are quantized to, or None."""
    return getattr(getattr(config, "quant_config", None), "kv_cache_quant_type", None)


def cache_shapes(
    config: object, backend: AttentionBackend | None, blocks: object, block_size: int, ranks: int
) -> tuple[list[object], list[object]]:
    """Shapes of one layer's keys and values, as the backend says them.

    Raises:
        InvalidInput: there is no backend, and the configuration has not what the usual shape needs.
    """
    count = door.whole(blocks, "max_num_blocks", least=1, most=POOL_BLOCKS_MAX)
    quantization = quantization_of(config)
    if backend is not None:
        keys, values = backend.get_kv_cache_shape(max_num_blocks=count, kv_cache_quant_type=quantization)
        return list(keys), list(values or ())
    model = required(config, "model_config", "config")
    heads = _size(model, "num_key_value_heads")
    width = _size(model, "head_dim")
    if quantization in _PACKED:
        width = -(-width // 2)
    shape: list[object] = [count, max(1, heads // ranks), block_size, width]
    return shape, list(shape)


def layers_of(config: object) -> int:
    """How many layers have a cache."""
    model = getattr(getattr(config, "cache_config", None), "model_cfg", None) or required(
        config, "model_config", "config"
    )
    return door.whole(
        required(model, "num_hidden_layers", "the model's configuration"),
        "num_hidden_layers",
        least=1,
        most=_LAYERS_MAX,
    )


def written(shape: Sequence[object]) -> str:
    """A shape as a command line has it: "2,3"."""
    return ",".join(map(str, shape))


def read_shape(text: object, what: str) -> tuple[int, ...]:
    """The shape behind "2,3", or behind a list of integers; "" is none."""
    parts: Sequence[object]
    if isinstance(text, str):
        parts = [part for part in text.split(",") if part.strip()]
        if not all(str(part).strip().isdecimal() for part in parts):
            raise InvalidInput(f"{what} is written as integers with commas between them, not {door.shown(text)}")
        parts = [int(str(part)) for part in parts]
    elif isinstance(text, list | tuple):
        parts = text
    else:
        raise InvalidInput(f"{what} is a text like '2,3' or a list of integers, not {door.shown(text)}")
    return tuple(door.whole(part, f"a dimension of {what}", least=1, most=POOL_BLOCKS_MAX) for part in parts)


def _size(model: object, name: str) -> int:
    return door.whole(required(model, name, "model_config"), f"model_config.{name}", least=1, most=_HEADS_MAX)
