"""What hashing a prompt costs per block of 64 tokens, for tokens that come as a list and as a numpy array.

The reference is bare BLAKE2b over byte strings of the same length, a block each, cut before the clock starts: what is
on top is turning tokens into bytes, cutting them, and joining the hashes.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import numpy as np

from events.facts import BLOCK_HASH_BYTES
from ops.bench.figure import Advance, Budget, Group, Measurement, Pair, Settings, computing_us, undisturbed
from ops.bench.workload import BLOCK_TOKENS
from statecore import HashedTokens

_LIST: Final = "hashing_us_per_block"
_NUMPY: Final = "hashing_us_per_block_numpy"
_PROMPT_BLOCKS: Final = 200
_VOCABULARY: Final = 150_000


def measure(settings: Settings, wanted: frozenset[str], advance: Advance) -> list[Measurement]:
    array = np.random.default_rng(settings.seed).integers(0, _VOCABULARY, _PROMPT_BLOCKS * BLOCK_TOKENS, dtype=np.int64)
    inputs = {_LIST: array.tolist(), _NUMPY: array}
    width = BLOCK_HASH_BYTES + BLOCK_TOKENS * 4
    content = np.random.default_rng(settings.seed).bytes(_PROMPT_BLOCKS * width)
    pieces = [content[offset : offset + width] for offset in range(0, len(content), width)]
    pairs = {name: Pair() for name in inputs if name in wanted}
    repetitions = settings.count(usual=400, quick=20)
    with undisturbed():
        for repetition in range(repetitions):
            for name, pair in pairs.items():
                spent = computing_us(HashedTokens.begin(BLOCK_TOKENS).extend, inputs[name])
                bare = computing_us(_hash_barely, pieces)
                pair.add(spent / _PROMPT_BLOCKS, bare / _PROMPT_BLOCKS)
            advance((repetition + 1) / repetitions)
    return [pair.measurement(name, "µs", "bare BLAKE2b of as many bytes") for name, pair in pairs.items()]


def _hash_barely(pieces: list[bytes]) -> None:
    for piece in pieces:
        blake2b(piece, digest_size=BLOCK_HASH_BYTES).digest()


GROUP: Final = Group(
    title="hashing",
    figures=(_LIST, _NUMPY),
    seconds=1,
    measure=measure,
    budgets={_LIST: Budget(1.5), _NUMPY: Budget(1.5)},
)
