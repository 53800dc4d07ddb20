"""Reading a FastDeploy task: any object with these attributes.

| attribute           | what                                                            | missing or None |
|---------------------|-----------------------------------------------------------------|-----------------|
| `request_id`        | string                                                          | refused         |
| `prompt_token_ids`  | list, tuple or one-dimensional numpy array of token ids         | refused         |
| `output_token_ids`  | the same; a resumed request is matched over both                | none            |
| `multimodal_inputs` | mapping with `mm_positions` and `mm_hashes`, one for one        | none            |
| `lora_id`           | the LoRA adapter: string, bytes or integer                      | the base model  |
| `cache_salt`        | the tenant: string or bytes; tenants never share a block        | none            |
| `block_tables`      | list of block ids, in token order                               | empty           |

Owns these names and their checks. A position has `offset` and `length`, in tokens, as attributes or as keys; it may stand
for an image, a video or audio, and its hash (string or bytes) becomes part of the key of every block it overlaps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol, cast

import attrs
import numpy as np

from events.errors import InvalidInput
from events.limits import BLOCK_SIZE_MAX, POOL_BLOCKS_MAX
from statecore import door, ranges
from statecore.hashing import ExtraKey, Tokens
from statecore.manager.refusals import WrongType

TOKENS_MAX: Final = BLOCK_SIZE_MAX * POOL_BLOCKS_MAX


@attrs.frozen
class Prompt:
    """What a task is matched by.

    Attributes:
        tokens: prompt and output.
        extra: images and the like, at their places.
    """

    request: str
    tokens: Tokens
    salt: bytes
    adapter: bytes
    extra: tuple[ExtraKey, ...]


class _Marks(Protocol):
    """What both generations of callers read off a task."""

    num_cached_blocks: int
    cached_block_num: int


def prompt_of(task: object) -> Prompt:
    return Prompt(
        request=request_of(task),
        tokens=tokens_of(task),
        salt=_key(getattr(task, "cache_salt", None), "cache_salt"),
        adapter=_key(getattr(task, "lora_id", None), "lora_id"),
        extra=extra_keys(getattr(task, "multimodal_inputs", None)),
    )


def request_of(task: object) -> str:
    return door.request_id(_field(task, "request_id"))


def tokens_of(task: object) -> Tokens:
    """Prompt and output."""
    prompt = _tokens(_field(task, "prompt_token_ids"), "prompt_token_ids")
    output = getattr(task, "output_token_ids", None)
    output = () if output is None else _tokens(output, "output_token_ids")
    if len(output) == 0:
        return prompt
    if isinstance(prompt, np.ndarray):
        return np.concatenate([prompt, np.asarray(output, dtype=prompt.dtype)])
    return [*prompt, *output]


def prompt_length(task: object) -> int:
    """Tokens of the prompt alone."""
    return len(_tokens(_field(task, "prompt_token_ids"), "prompt_token_ids"))


def block_table(task: object) -> list[int]:
    """The task's block ids, in token order."""
    value = getattr(task, "block_tables", None)
    if value is None:
        return []
    return ranges.ids(door.block_ids(_listed(value, "block_tables"), POOL_BLOCKS_MAX))


def mark_cached(task: object, blocks: int) -> None:
    """Tell the task how many blocks of its table belong to the tree."""
    marks = cast(_Marks, task)
    marks.num_cached_blocks = blocks
    marks.cached_block_num = blocks


def extra_keys(multimodal: object) -> tuple[ExtraKey, ...]:
    """The images of `multimodal_inputs`, as extra keys of the blocks they overlap."""
    positions, hashes = _multimodal(multimodal)
    if len(positions) != len(hashes):
        raise InvalidInput(f"mm_positions and mm_hashes go together: {len(positions)} and {len(hashes)} given")
    keys = []
    for (start, end), key in zip(spans(multimodal), hashes, strict=True):
        name = _key(key, "a hash in mm_hashes")
        if not name:
            raise InvalidInput("a hash in mm_hashes is missing or empty: different images would share a key")
        keys.append(ExtraKey(name, start, end))
    return tuple(keys)


def spans(multimodal: object) -> list[tuple[int, int]]:
    """The places of a task's images: first token, one past the last."""
    found = []
    for position in _multimodal(multimodal)[0]:
        read = position.get if isinstance(position, Mapping) else lambda name, of=position: getattr(of, name, None)
        offset = door.whole(read("offset"), "offset of a position in mm_positions", least=0, most=TOKENS_MAX)
        length = door.whole(read("length"), "length of a position in mm_positions", least=1, most=TOKENS_MAX)
        found.append((offset, offset + length))
    return found


def image_around(places: Sequence[tuple[int, int]], tokens: int) -> int | None:
    """Which image the boundary after `tokens` tokens cuts in two."""
    return next((number for number, (start, end) in enumerate(places) if start < tokens < end), None)


def cut_back(places: Sequence[tuple[int, int]], blocks: int, block_size: int) -> int:
    """The longest prefix of whole blocks, at most `blocks`, that ends inside of no image."""
    while (number := image_around(places, blocks * block_size)) is not None:
        blocks = places[number][0] // block_size
    return blocks


# --- inside ---------------------------------------------------------------------------------------------------------


def _field(task: object, name: str) -> object:
    value = getattr(task, name, None)
    if value is None:
        raise InvalidInput(f"a task has a {name}; {type(task).__name__} {door.shown(task)} has none")
    return value


def _listed(value: object, what: str) -> object:
    if not isinstance(value, list | tuple | np.ndarray):
        kind = f"{type(value).__module__}.{type(value).__name__}"
        raise WrongType(f"{what} is a list of integers (or a tuple, or a numpy array), not {kind}; convert it first")
    return value


def _tokens(value: object, what: str) -> Tokens:
    listed = cast(Tokens, _listed(value, what))
    if isinstance(listed, np.ndarray) and (listed.ndim != 1 or listed.dtype.kind not in "iu"):
        raise WrongType(f"{what} is an integer array of one dimension, not {listed.dtype} of shape {listed.shape}")
    return listed


def _multimodal(value: object) -> tuple[Sequence[object], Sequence[object]]:
    if value is None:
        return (), ()
    if not isinstance(value, Mapping):
        raise WrongType(f"multimodal_inputs is a mapping, not {type(value).__name__} {door.shown(value)}")
    lists = []
    for name in ("mm_positions", "mm_hashes"):
        listed = value.get(name)
        if listed is not None and not isinstance(listed, list | tuple):
            raise WrongType(f"{name} is a list, not {type(listed).__name__} {door.shown(listed)}")
        lists.append(listed or ())
    return lists[0], lists[1]


def _key(value: object, what: str) -> bytes:
    """A name as bytes; a number as its digits."""
    match value:
        case None:
            return b""
        case bool():
            pass
        case bytes():
            return value
        case str():
            return value.encode("utf-8", "surrogatepass")
        case int():
            return b"%d" % value
    raise WrongType(f"{what} is a string or bytes, not {type(value).__name__} {door.shown(value)}")
