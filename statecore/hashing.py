"""Block hashes: 16 bytes that commit to a block's tokens, to everything before it, to the tenant and to extra keys.

Owns the hash scheme. Equal hashes mean equal content (up to a collision of a 128-bit hash), in every process, release
and machine: no per-process seed, no pickling, little-endian whatever the machine. The scheme's name is recorded in
`IndexCreated`; a replica that would hash otherwise is refused, because it would never hit and nobody would notice.

    root     = H("statecore block hash 1" | block_size | salt | adapter)         each part with its length before it
    block i  = H(block i-1 | tokens as uint32 little-endian | extra keys that overlap block i)

H is BLAKE2b with 128 bits of output. The tokens of a block have a fixed length, so the input is unambiguous.
"""

from __future__ import annotations

import numbers
import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

from events.errors import InvalidInput
from events.facts import BLOCK_HASH_BYTES
from events.limits import BLOCK_SIZE_MAX, PATH_BLOCKS_MAX
from statecore import door

SCHEME: Final = "blake2b-128/1"
_TOKEN_BYTES: Final = 4
_TOKEN_MAX: Final = 2**32 - 1
_PLACE_MAX: Final = 2**62
"""Places of extra keys are packed as signed 64-bit numbers."""

Tokens: TypeAlias = list[int] | tuple[int, ...] | npt.NDArray[np.integer]
"""Token ids, 0 … 2^32-1: a list, a tuple, or a one-dimensional numpy array of any integer type."""


@attrs.frozen(slots=True)
class ExtraKey:
    """Something besides tokens that changes the keys and values of tokens `start` … `end`-1: an image, audio, video.

    Attributes:
        key: identity of the content, such as the hash of the image's pixels.
        start: first token it stands for; may lie before a block it overlaps.
        end: one past the last.
    """

    key: bytes
    start: int
    end: int

    def __attrs_post_init__(self) -> None:
        if type(self.key) is not bytes or self.key == b"":
            raise InvalidInput(f"an extra key is at least one byte, not {door.shown(self.key)}")
        start = door.whole(self.start, "start of an extra key", least=0, most=_PLACE_MAX)
        door.whole(self.end, f"end of an extra key that starts at {start}", least=start + 1, most=_PLACE_MAX + 1)


@attrs.frozen(slots=True)
class HashedTokens:
    """The block hashes of a growing sequence of tokens. Immutable: `extend` gives a longer one.

    Attributes:
        block_size: tokens in a block.
        hashes: joined hashes of the full blocks, 16 bytes each.
        length: number of tokens, those of a last block that is not full included.
    """

    block_size: int
    hashes: bytes
    length: int
    _root: bytes
    _tail: bytes
    _extra: tuple[ExtraKey, ...]

    @classmethod
    def begin(
        cls, block_size: int, *, salt: bytes = b"", adapter: bytes = b"", extra: Sequence[ExtraKey] = ()
    ) -> HashedTokens:
        """An empty sequence.

        Args:
            block_size: tokens in a block.
            salt: the tenant; sequences of different salts never share a block.
            adapter: the LoRA adapter, or empty for the base model.
            extra: images and the like, at their places in the sequence.
        """
        for what, part in (("salt", salt), ("adapter", adapter)):
            if not isinstance(part, bytes):
                raise InvalidInput(f"{what} must be bytes, not {type(part).__name__}")
        size = door.whole(block_size, "block_size", least=1, most=BLOCK_SIZE_MAX)
        header = struct.pack("<I", size) + b"".join(struct.pack("<Q", len(part)) + part for part in (salt, adapter))
        root = blake2b(b"statecore block hash 1" + header, digest_size=BLOCK_HASH_BYTES).digest()
        return cls(size, b"", 0, root, b"", _sorted_keys(extra))

    def extend(self, tokens: Tokens) -> HashedTokens:
        """The sequence with `tokens` after it.

        Raises:
            InvalidInput: not a list, tuple or integer array of one dimension, or an id below 0 or above 2^32-1.
        """
        data = self._tail + token_bytes(tokens)
        width = self.block_size * _TOKEN_BYTES
        full = len(data) - len(data) % width
        begin = len(self.hashes) // BLOCK_HASH_BYTES
        if begin + full // width > PATH_BLOCKS_MAX:
            raise InvalidInput(f"a sequence has at most {PATH_BLOCKS_MAX} blocks of {self.block_size} tokens")
        previous = self.hashes[-BLOCK_HASH_BYTES:] or self._root
        hashes = [self.hashes]
        if self._extra:
            for block, offset in enumerate(range(0, full, width), begin):
                content = data[offset : offset + width] + self._extra_of(block)
                previous = blake2b(previous + content, digest_size=BLOCK_HASH_BYTES).digest()
                hashes.append(previous)
        else:
            for offset in range(0, full, width):
                previous = blake2b(previous + data[offset : offset + width], digest_size=BLOCK_HASH_BYTES).digest()
                hashes.append(previous)
        length = self.length + (len(data) - len(self._tail)) // _TOKEN_BYTES
        return HashedTokens(self.block_size, b"".join(hashes), length, self._root, data[full:], self._extra)

    @property
    def blocks(self) -> int:
        """Number of full blocks."""
        return len(self.hashes) // BLOCK_HASH_BYTES

    def _extra_of(self, block: int) -> bytes:
        """The keys that overlap a block, with their place relative to it."""
        first = block * self.block_size
        after = first + self.block_size
        return b"".join(
            struct.pack("<qqQ", key.start - first, key.end - first, len(key.key)) + key.key
            for key in self._extra
            if key.start < after and key.end > first
        )


def token_bytes(tokens: Tokens) -> bytes:
    """Token ids as uint32, little-endian, whatever they came in."""
    if isinstance(tokens, list | tuple):
        try:
            return struct.pack(f"<{len(tokens)}I", *tokens)
        except struct.error as error:
            wrong = next((token for token in tokens if not _is_token(token)), error)
            raise InvalidInput(f"token ids are integers from 0 to {_TOKEN_MAX}, not {door.shown(wrong)}") from None
    if isinstance(tokens, np.ndarray):
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise InvalidInput(
                f"token ids come as an integer array of one dimension, not {tokens.dtype} of shape {tokens.shape}"
            )
        if tokens.size and not (int(tokens.min()) >= 0 and int(tokens.max()) <= _TOKEN_MAX):
            raise InvalidInput(f"token ids are integers from 0 to {_TOKEN_MAX}, not {tokens.min()} … {tokens.max()}")
        return tokens.astype("<u4").tobytes()
    raise InvalidInput(
        f"token ids come as a list, tuple or numpy array, not {type(tokens).__module__}.{type(tokens).__name__}"
    )


def _sorted_keys(extra: object) -> tuple[ExtraKey, ...]:
    if not isinstance(extra, list | tuple) or not all(isinstance(key, ExtraKey) for key in extra):
        raise InvalidInput(f"extra is a list of ExtraKey, not {door.shown(extra)}")
    return tuple(sorted(extra, key=lambda key: (key.start, key.end, key.key)))


def _is_token(token: object) -> bool:
    return isinstance(token, numbers.Integral) and 0 <= int(token) <= _TOKEN_MAX


def checked_hashes(hashes: object) -> bytes:
    """Ready-made block hashes: joined bytes, 16 a block."""
    if not isinstance(hashes, bytes) or len(hashes) % BLOCK_HASH_BYTES:
        size = len(hashes) if isinstance(hashes, bytes) else type(hashes).__name__
        raise InvalidInput(f"block hashes are joined bytes, {BLOCK_HASH_BYTES} a block, not {size}")
    if len(hashes) > PATH_BLOCKS_MAX * BLOCK_HASH_BYTES:
        raise InvalidInput(f"a path has at most {PATH_BLOCKS_MAX} blocks, not {len(hashes) // BLOCK_HASH_BYTES}")
    return hashes
