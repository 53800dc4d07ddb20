"""Bytes that tell which block they belong to: a pattern derived from a block hash.

Owns the pattern that the demo, the tests and the chaos runs fill a "computed" block with and check after it was moved.
Every 8-byte word depends on the hash and on its place (layer, key or value, offset), so a block that holds another
block's bytes, a layer's values under its keys, or bytes shifted by a word, does not match. Not a checksum: it can
only say whether a block holds exactly what its hash says.
"""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
import numpy.typing as npt

from events.errors import InvalidInput
from events.facts import BLOCK_HASH_BYTES
from workers.layout import CacheLayout

_WORD_BYTES: Final = 8
_ODD: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: neighbouring words differ in about half their bits


def pattern(layout: CacheLayout, block_hash: bytes) -> npt.NDArray[np.uint8]:
    """The bytes of the block: `[2 * layers, bytes_per_block_per_tensor]`, two passes over one block of memory."""
    if len(block_hash) != BLOCK_HASH_BYTES:
        raise InvalidInput(f"a block hash is {BLOCK_HASH_BYTES} bytes, not {block_hash!r:.80}")
    low, high = np.frombuffer(block_hash, dtype="<u8")
    size = layout.bytes_per_block_per_tensor
    words = _places(layout.tensors, -(-size // _WORD_BYTES)) ^ low
    words += high
    content: npt.NDArray[np.uint8] = words.view(np.uint8)
    return content[:, :size]


@functools.lru_cache(maxsize=2)  # a process works with one layout, a test with a few; each is as large as a block
def _places(tensors: int, words: int) -> npt.NDArray[np.uint64]:
    places = np.arange(1, tensors * words + 1, dtype="<u8").reshape(tensors, words)
    places *= _ODD
    places.flags.writeable = False
    return places
