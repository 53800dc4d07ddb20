"""Block hashes: the same in every process, release and machine; never the same for different content.

The vectors below are fixed. If one of them changes, every deployment loses its cache, and engines of two releases that
share an index never hit: change the name of the scheme, not the vector (bugs E-40).
"""

from __future__ import annotations

import subprocess
import sys
from hashlib import blake2b

import numpy as np
import pytest

from events.errors import InvalidInput
from statecore import ExtraKey, HashedTokens
from statecore.hashing import SCHEME, checked_hashes, token_bytes

IMAGE = ExtraKey(b"image-1", 2, 6)


def hashes(
    tokens: object, block_size: int = 4, salt: bytes = b"", adapter: bytes = b"", extra: tuple[ExtraKey, ...] = ()
) -> bytes:
    return HashedTokens.begin(block_size, salt=salt, adapter=adapter, extra=extra).extend(tokens).hashes  # type: ignore[arg-type]


GOLDEN: dict[str, tuple[bytes, str]] = {
    "plain": (hashes([1, 2, 3, 4, 5, 6, 7, 8]), "4b74e7dd6615f38e79a0e8f7cc21134c77cc8766bd87107f480197fd2763de75"),
    "large ids": (hashes([0, 2**32 - 1, 65536, 255]), "80ce324ce3ff70a49b046357c4efd063"),
    "block of 64": (hashes(list(range(64)), block_size=64), "6fe030f1db0d7ef653e57e4b816fa340"),
    "salt": (hashes([1, 2, 3, 4], salt=b"tenant"), "bc5e7009df43dda43c7e9ad1f0303ce2"),
    "adapter": (hashes([1, 2, 3, 4], adapter=b"lora"), "43c2dba1a78f4f7ccd53216c1dfbcfc4"),
    "image": (
        hashes([1, 2, 3, 4, 5, 6, 7, 8], extra=(IMAGE,)),
        "008893550ab0deade748306d46ac2bfa994f229ca1d6f83f70b367ff2297ba8b",
    ),
}


@pytest.mark.parametrize(("found", "fixed"), GOLDEN.values(), ids=GOLDEN.keys())
def test_golden_vectors(found: bytes, fixed: str) -> None:
    """E-40: after an upgrade nothing is ever found again."""
    assert found.hex() == fixed


def test_the_scheme_has_a_name() -> None:
    """The recorded name changes without the hashes, or the hashes without the name."""
    assert SCHEME == "blake2b-128/1"


def test_the_vectors_can_be_made_without_us() -> None:
    """Nobody else can compute the hashes from the description."""
    root = blake2b(
        b"statecore block hash 1" + (4).to_bytes(4, "little") + (6).to_bytes(8, "little") + b"tenant" + bytes(8),
        digest_size=16,
    ).digest()
    block = b"".join(token.to_bytes(4, "little") for token in (1, 2, 3, 4))

    assert hashes([1, 2, 3, 4], salt=b"tenant") == blake2b(root + block, digest_size=16).digest()


def test_another_process_hashes_the_same() -> None:
    """E-40: a per-process seed; two engines never share a block."""
    program = "from statecore import HashedTokens; import sys; " + (
        "sys.stdout.write(HashedTokens.begin(4, salt=b'x').extend([1, 2, 3, 4, 5, 6, 7, 8]).hashes.hex())"
    )
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        assert done.stdout == hashes([1, 2, 3, 4, 5, 6, 7, 8], salt=b"x").hex()


# --- what tokens may come in ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens",
    [
        (1, 2, 3, 4, 5, 6, 7, 8),
        [np.int64(token) for token in range(1, 9)],
        np.arange(1, 9),
        np.arange(1, 9, dtype=np.uint8),
        np.arange(1, 9, dtype=np.int16),
        np.arange(1, 9, dtype=np.uint32),
        np.arange(1, 9, dtype=np.uint64),
        np.arange(1, 9, dtype=">i4"),
        np.arange(1, 17)[::2] // 2 + 1,
        np.repeat(np.arange(1, 9), 3)[::3],
    ],
    ids=lambda tokens: f"{type(tokens).__name__}-{getattr(tokens, 'dtype', '')}",
)
def test_the_same_tokens_in_other_clothes(tokens: object) -> None:
    """A prompt handed over as an array is not found after it was cached as a list."""
    assert hashes(tokens) == hashes([1, 2, 3, 4, 5, 6, 7, 8])


@pytest.mark.parametrize("cuts", [(4, 4), (1, 7), (3, 3, 2), (8,), (1,) * 8, (0, 8, 0)])
def test_a_sequence_grown_in_parts(cuts: tuple[int, ...]) -> None:
    """Output appended token by token is filed elsewhere than the same prompt next time."""
    sequence, at = HashedTokens.begin(4), 0
    for cut in cuts:
        sequence = sequence.extend(list(range(1 + at, 1 + at + cut)))
        at += cut
        assert (sequence.length, sequence.blocks) == (at, at // 4)

    assert sequence.hashes == hashes([1, 2, 3, 4, 5, 6, 7, 8])


def test_a_sequence_is_never_changed() -> None:
    """Two continuations of one prompt overwrite each other's hashes."""
    prompt = HashedTokens.begin(4).extend([1, 2, 3, 4, 5])
    one, other = prompt.extend([6, 7, 8]), prompt.extend([9, 9, 9])

    assert (prompt.blocks, prompt.length) == (1, 5)
    assert one.hashes[:16] == other.hashes[:16] == prompt.hashes
    assert one.hashes[16:] != other.hashes[16:]


class Tensor:
    """What paddle and torch hand over: looks like an array, is none."""

    shape = (4,)

    def __iter__(self) -> object:
        return iter([1, 2, 3, 4])

    def numpy(self) -> object:
        return np.arange(4)


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        ([1, -1], "-1"),
        ([1, 2**32], str(2**32)),
        ([1, 1.0], "1.0"),
        ([1, "2"], "'2'"),
        ([1, None], "None"),
        ([[1, 2], [3, 4]], "[1, 2]"),
        (np.array([1, -1]), "-1"),
        (np.array([1, 2**32]), str(2**32)),
        (np.array([1.0, 2.0]), "float64"),
        (np.array([True, False]), "bool"),
        (np.array(["1"]), "<U1"),
        (np.array([1, None], dtype=object), "object"),
        (np.zeros((2, 4), dtype=int), "(2, 4)"),
        (np.array(5), "()"),
        ("1234", "str"),
        (b"1234", "bytes"),
        (None, "NoneType"),
        (7, "int"),
        ({1, 2}, "set"),
        (range(4), "range"),
        (Tensor(), "Tensor"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_token_is_named(tokens: object, named: str) -> None:
    """E-40: None or a float in a prompt is hashed as something, and nothing ever hits."""
    with pytest.raises(InvalidInput, match="token ids") as raised:
        hashes(tokens)

    assert named in str(raised.value)


def test_the_wrong_token_among_numpy_integers_is_named() -> None:
    """The message blames a good token."""
    with pytest.raises(InvalidInput) as raised:
        token_bytes([np.int64(5), -1])  # type: ignore[list-item]

    assert "-1" in str(raised.value)
    assert "5" not in str(raised.value).replace("4294967295", "")


def test_a_token_too_large_to_print_is_refused_like_any_other() -> None:
    """A hostile prompt ends in an error that is none of ours."""
    with pytest.raises(InvalidInput) as raised:
        token_bytes([10**5000])
    assert "token ids" in str(raised.value)


def test_a_sequence_has_a_bound() -> None:
    """One hostile prompt makes every replica hold gigabytes."""
    with pytest.raises(InvalidInput, match="at most 1048576 blocks of 1 tokens"):
        HashedTokens.begin(1).extend(np.zeros(2**20 + 1, dtype=np.uint8))


# --- what keeps content apart ---------------------------------------------------------------------------------------


def test_everything_that_differs_makes_another_hash() -> None:
    """E-48: a tenant, an adapter or an image reads another's blocks."""
    tokens = [1, 2, 3, 4]
    different = [
        hashes(tokens),
        hashes([1, 2, 3, 5]),
        hashes(tokens, salt=b"x"),
        hashes(tokens, salt=b"y"),
        hashes(tokens, adapter=b"x"),
        hashes(tokens, salt=b"x", adapter=b"x"),
        hashes(tokens, salt=b"xx"),
        hashes(tokens, extra=(ExtraKey(b"x", 0, 1),)),
        hashes(tokens, extra=(ExtraKey(b"y", 0, 1),)),
        hashes(tokens, extra=(ExtraKey(b"x", 0, 2),)),
        hashes(tokens, extra=(ExtraKey(b"x", 1, 2),)),
        hashes(tokens, extra=(ExtraKey(b"x", 0, 1), ExtraKey(b"x", 1, 2))),
        hashes([1, 2], block_size=2),
        hashes(tokens, block_size=2)[:16],
    ]

    assert len({one[:16] for one in different}) == len(different) - 1  # the last two are one block of two tokens
    assert different[-1] == different[-2]


def test_the_first_block_depends_on_the_block_size() -> None:
    """Engines of another block size find each other's first block, by accident of its tokens."""
    short, long = HashedTokens.begin(4), HashedTokens.begin(8)

    assert short.extend([0] * 8).hashes[:16] != long.extend([0] * 8).hashes[:16]
    assert short.extend([0] * 4).hashes != b""


def test_a_block_commits_to_everything_before_it() -> None:
    """A block is found after another beginning."""
    one, other = hashes([1, 2, 3, 4, 5, 6, 7, 8]), hashes([9, 2, 3, 4, 5, 6, 7, 8])

    assert one[16:] != other[16:]


def test_an_image_changes_the_blocks_it_overlaps_and_those_after() -> None:
    """E-48: a chunk boundary inside an image; the second half is shared between two images."""
    tokens = list(range(16))
    plain = hashes(tokens)

    def changed(start: int, end: int) -> list[bool]:
        found = hashes(tokens, extra=(ExtraKey(b"image", start, end),))
        return [found[at : at + 16] != plain[at : at + 16] for at in range(0, 64, 16)]

    assert changed(0, 1) == [True, True, True, True]
    assert changed(4, 8) == [False, True, True, True]
    assert changed(6, 10) == [False, True, True, True]
    assert changed(12, 16) == [False, False, False, True]
    assert changed(16, 20) == [False, False, False, False]


def test_an_image_over_two_blocks_is_another_image_in_each() -> None:
    """The second block of an image is taken for the first of the same image elsewhere."""
    image = (ExtraKey(b"image", 0, 8),)
    one = hashes([0] * 8, extra=image)
    other = hashes([0] * 8, extra=(ExtraKey(b"image", 0, 4), ExtraKey(b"other", 4, 8)))

    assert one[:16] != other[:16]
    assert one[16:] != other[16:]


def test_images_may_come_in_any_order() -> None:
    """The order in which an engine lists its images decides whether they are found."""
    keys = (ExtraKey(b"a", 0, 2), ExtraKey(b"b", 1, 3), ExtraKey(b"a", 1, 3))

    assert hashes([1, 2, 3, 4], extra=keys) == hashes([1, 2, 3, 4], extra=keys[::-1])


# --- the door -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [b"", "image", None, bytearray(b"x"), 5])
def test_an_extra_key_is_bytes(key: object) -> None:
    """E-40: None as an image's identity; all images are one."""
    with pytest.raises(InvalidInput, match="extra key"):
        ExtraKey(key, 0, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("start", "end", "wrong"), [(-1, 1, -1), (0, 0, 0), (3, 2, 2)])
def test_an_extra_key_covers_something(start: int, end: int, wrong: int) -> None:
    """An image that covers nothing changes nothing, silently."""
    with pytest.raises(InvalidInput, match=f"of an extra key .*must be from .*, not {wrong}"):
        ExtraKey(b"x", start, end)


@pytest.mark.parametrize(("start", "end"), [("0", 1), (0, None), (0.5, 2), (0, 2**70), (True, 2)])
def test_an_extra_key_has_whole_places(start: object, end: object) -> None:
    """A wrong place ends in an error that is none of ours, in the middle of a match."""
    with pytest.raises(InvalidInput):
        hashes([1, 2, 3, 4], extra=(ExtraKey(b"x", start, end),))  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["salt", "adapter"])
def test_salt_and_adapter_are_bytes(what: str) -> None:
    """A tenant's name given as text is hashed by its encoding of the day."""
    with pytest.raises(InvalidInput, match=f"{what} must be bytes, not str"):
        HashedTokens.begin(4, **{what: "tenant"})  # type: ignore[arg-type]


@pytest.mark.parametrize("block_size", [0, -1, 2**40, "4", None, 1.5, True])
def test_a_block_size_is_a_size(block_size: object) -> None:
    """A caller who hashes by itself divides by zero, or hashes blocks nobody else has."""
    with pytest.raises(InvalidInput):
        HashedTokens.begin(block_size).extend([1, 2, 3, 4])  # type: ignore[arg-type]


def test_ready_made_hashes() -> None:
    """Hashes cut in the middle are taken for a path."""
    assert checked_hashes(bytes(32)) == bytes(32)
    assert checked_hashes(b"") == b""
    for wrong in (bytes(17), "x" * 16, bytearray(16), None, [bytes(16)]):
        with pytest.raises(InvalidInput, match="block hashes are joined bytes"):
            checked_hashes(wrong)
    with pytest.raises(InvalidInput, match="at most 1048576 blocks, not 1048577"):
        checked_hashes(bytes((2**20 + 1) * 16))
