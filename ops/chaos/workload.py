"""Requests without end: conversations that share their beginnings, small enough that an engine commits many times a second.

Owns what is asked of the engines. From a seed, the engine's place and its life: no two processes ask the same, all ask for
the same documents, so every pool's blocks are hit, evicted, swapped and fetched by others all the time.
"""

from __future__ import annotations

import random
from typing import Final

from ops.trace import TRACE_BLOCK_TOKENS, TraceRequest

DOCUMENTS: Final = 40
DOCUMENT_BLOCKS: Final = 12
"""Blocks of the longest shared beginning: all documents together are a few times what the pools hold."""

OWN_BLOCKS_MAX: Final = 3
OUTPUT_TOKENS_MAX: Final = 3 * TRACE_BLOCK_TOKENS
BATCH: Final = 50
"""Requests a scheduler is given at a time."""

_NUMBERS_OF_A_LIFE: Final = 1 << 20
_LIVES_MAX: Final = 1 << 10
_OWN_IDS_FROM: Final = 1 << 40


class Conversations:
    """The requests of one engine process."""

    def __init__(self, seed: int, place: int, life: int) -> None:
        self._chance = random.Random(f"{seed}/{place}/{life}")
        self._next = (place * _LIVES_MAX + life) * _NUMBERS_OF_A_LIFE

    def batch(self) -> list[tuple[int, TraceRequest]]:
        """The next requests with their numbers."""
        return [self._request() for _ in range(BATCH)]

    def _request(self) -> tuple[int, TraceRequest]:
        number, chance = self._next, self._chance
        self._next += 1
        document = min(chance.randrange(DOCUMENTS), chance.randrange(DOCUMENTS))  # some are asked for more often
        shared = [document * DOCUMENT_BLOCKS + place for place in range(chance.randint(1, DOCUMENT_BLOCKS))]
        own = [_OWN_IDS_FROM + (number << 4) + place for place in range(chance.randint(0, OWN_BLOCKS_MAX))]
        ids = (*shared, *own)
        tokens = len(ids) * TRACE_BLOCK_TOKENS - chance.choice((0, 0, 0, 200))
        return number, TraceRequest(0, tokens, chance.randint(1, OUTPUT_TOKENS_MAX), ids)
