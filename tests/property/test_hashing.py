"""A block hash says exactly: these tokens, after these, for this tenant and adapter, with these extra keys."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.errors import InvalidInput
from events.facts import BLOCK_HASH_BYTES
from statecore.hashing import ExtraKey, HashedTokens

# Few values, so that equal and nearly equal inputs meet.
TOKENS = st.lists(st.integers(0, 2), max_size=12)
NAMES = st.sampled_from([b"", b"a", b"b", b"ab", b"\0"])
EXTRA = st.builds(
    lambda key, start, length: ExtraKey(key, start, start + length),
    st.sampled_from([b"x", b"y", b"xy"]),
    st.integers(0, 8),
    st.integers(1, 6),
)
INPUTS = st.tuples(st.integers(1, 3), TOKENS, NAMES, NAMES, st.lists(EXTRA, max_size=2))

Input: TypeAlias = tuple[int, list[int], bytes, bytes, list[ExtraKey]]


def hashed(given_: Input) -> HashedTokens:
    block_size, tokens, salt, adapter, extra = given_
    return HashedTokens.begin(block_size, salt=salt, adapter=adapter, extra=tuple(extra)).extend(tokens)


def content(given_: Input, block: int) -> object:
    """What the hash of a block commits to, written out."""
    block_size, tokens, salt, adapter, extra = given_
    end = (block + 1) * block_size
    seen = []
    for place in range(block + 1):
        first, after = place * block_size, (place + 1) * block_size
        overlapping = [key for key in extra if key.start < after and key.end > first]
        seen.append(sorted((key.start, key.end, key.key) for key in overlapping))
    return block_size, tokens[:end], salt, adapter, seen


def blocks(sequence: HashedTokens) -> list[bytes]:
    joined = sequence.hashes
    return [joined[at : at + BLOCK_HASH_BYTES] for at in range(0, len(joined), BLOCK_HASH_BYTES)]


@given(INPUTS, INPUTS)
def test_hashes_are_equal_exactly_when_everything_is(first: Input, second: Input) -> None:
    """Given two sequences, then two of their blocks have one hash exactly when all that matters is equal (E-40, E-48)."""
    for i, one in enumerate(blocks(hashed(first))):
        for j, other in enumerate(blocks(hashed(second))):
            assert (one == other) == (content(first, i) == content(second, j))


@given(INPUTS, st.lists(st.integers(0, 12), max_size=4))
def test_extending_bit_by_bit_equals_one_go(given_: Input, cuts: list[int]) -> None:
    """Given a sequence cut anywhere, when it is extended piece by piece, then it is the same sequence."""
    block_size, tokens, salt, adapter, extra = given_
    sequence = HashedTokens.begin(block_size, salt=salt, adapter=adapter, extra=tuple(reversed(extra)))
    places = sorted(min(cut, len(tokens)) for cut in cuts)
    for start, end in zip([0, *places], [*places, len(tokens)], strict=True):
        sequence = sequence.extend(tokens[start:end])

    assert sequence == hashed(given_)
    assert sequence.length == len(tokens)
    assert sequence.blocks == len(tokens) // block_size


TYPES = st.sampled_from(["<i4", ">i4", "<u4", ">u8", "<i8", "u2", "i1", "u1"])


@given(TOKENS, TYPES, st.integers(1, 3))
def test_lists_tuples_and_arrays_are_one(tokens: list[int], dtype: str, stride: int) -> None:
    """Given tokens as list, tuple or numpy array of any integer type, byte order or stride, then the hashes are one."""
    array = np.repeat(np.array(tokens, dtype=dtype), stride)[::stride]
    begun = HashedTokens.begin(2)

    assert begun.extend(tokens) == begun.extend(tuple(tokens)) == begun.extend(array)
    assert begun.extend([np.int64(token) for token in tokens]) == begun.extend(tokens)  # type: ignore[misc]


WRONG = [
    [-1],
    [2**32],
    [1.5],
    ["1"],
    [None],
    [[1]],
    (1, 2**70),
    np.array([[1, 2]]),
    np.array([1.0]),
    np.array([-1]),
    np.array([2**32]),
    np.array(["a"]),
    np.array([True]),
    np.array(5),
    "12",
    b"12",
    5,
    {1},
    None,
]


@pytest.mark.parametrize("tokens", WRONG, ids=repr)
def test_what_is_no_token_is_refused(tokens: object) -> None:
    """Given something that is not token ids, then the error says so, and names no innards."""
    with pytest.raises(InvalidInput, match="token ids"):
        HashedTokens.begin(2).extend(tokens)  # type: ignore[arg-type]
