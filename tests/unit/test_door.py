"""What a caller may hand in at the doors of `CacheIndex`: everything else is `InvalidInput`, named, and has no effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from events import connect
from events.errors import InvalidInput
from events.limits import BLOCK_SIZE_MAX, POOL_BLOCKS_MAX
from events.log import LogConnection
from statecore import CacheIndex, ExtraKey, Rejection, UnknownRequest

NAN, INFINITE = float("nan"), float("inf")
NO_SIZES = (-1, 1.5, 2.0, NAN, INFINITE, True, False, "3", b"3", None, [3], 10**30, np.float64(2), np.bool_(True))
NO_IDS = ("", "a" * 257, "a\nb", "a\0b", "\ud800", "a\tb", "\u202e", b"r", 5, True, NAN, ["r"], object())


@pytest.fixture
def connection() -> Iterator[LogConnection]:
    with connect("memory://") as opened:
        yield opened


@pytest.fixture
def index(connection: LogConnection) -> CacheIndex:
    """Request r: 2 of 3 blocks on its path; h is known by hashes."""
    index = CacheIndex(connection, name="i", engine="a", gpu_blocks=16, block_size=4)
    index.match("r", list(range(10)))
    index.allocate("r", 3)
    index.extend("r")
    index.match("h", hashes=bytes(16))
    return index


def refused(index: CacheIndex, call: Callable[[], object], *said: str) -> None:
    """The call is refused at the door, saying these things; the log and the state have not moved."""
    before, position = index.digest(), index.position
    with pytest.raises(InvalidInput) as raised:
        call()
    for thing in said:
        assert thing in str(raised.value), f"{thing} is missing in: {raised.value}"
    assert len(str(raised.value)) < 700
    assert (index.digest(), index.position) == (before, position)


def shown(value: object) -> str:
    return repr(value)[:40]


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, *NO_SIZES], ids=repr)
def test_allocate_so_many(index: CacheIndex, size: object) -> None:
    """E-18: zero or a negative size gives the whole free list; a float gives something."""
    refused(index, lambda: index.allocate("r", size), "blocks must be", shown(size))  # type: ignore[arg-type]
    refused(index, lambda: index.allocate(None, size), "blocks must be", shown(size))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", NO_SIZES, ids=repr)
def test_can_allocate_so_many(index: CacheIndex, size: object) -> None:
    """A question with a nonsensical size is answered."""
    refused(index, lambda: index.can_allocate(size), "blocks must be", shown(size))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [size for size in NO_SIZES if size is not None], ids=repr)
def test_depths_limits_and_lengths(index: CacheIndex, size: object) -> None:
    """A depth of -1 means the last block but one, as a slice would have it."""
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: index.extend("r", blocks=size), "blocks must be"),  # type: ignore[arg-type]
        (lambda: index.ready("r", size), "blocks must be"),  # type: ignore[arg-type]
        (lambda: index.match("n", [1], limit=size), "limit must be"),  # type: ignore[arg-type]
        (lambda: index.match("n", hashes=bytes(16), prompt_tokens=size), "prompt_tokens must be"),  # type: ignore[arg-type]
    ]
    for call, what in wrong:
        refused(index, call, what, shown(size))


@pytest.mark.parametrize("size", [0, *NO_SIZES], ids=repr)
def test_settings(connection: LogConnection, index: CacheIndex, size: object) -> None:
    """An index is created with blocks of no tokens, or a pool of minus one block, for ever."""
    for setting in ("block_size", "tensor_parallel_size", "gpu_blocks"):
        if size is None and setting == "gpu_blocks":
            continue
        given = {"block_size": 4, "gpu_blocks": 8, setting: size}
        refused(
            index,
            lambda given=given: CacheIndex(connection, name="new", engine="b", **given),  # type: ignore[misc]
            f"{setting} must be",
            shown(size),
        )
    assert connection.indexes() == ("i",)


@pytest.mark.parametrize(
    ("setting", "most"),
    [("block_size", BLOCK_SIZE_MAX), ("gpu_blocks", POOL_BLOCKS_MAX), ("tensor_parallel_size", 1024)],
)
def test_settings_too_large(connection: LogConnection, setting: str, most: int) -> None:
    """Mixed-up arguments make an index nobody can use."""
    given = {"gpu_blocks": 8, setting: most + 1}
    with pytest.raises(InvalidInput, match=f"{setting} must be from 1 to {most}, not {most + 1}"):
        CacheIndex(connection, name="new", engine="b", **given)  # type: ignore[arg-type]
    given = {"gpu_blocks": 8, setting: most}
    assert CacheIndex(connection, name="new", engine="b", **given).free_blocks  # type: ignore[arg-type]


def test_whole_numbers_of_numpy_are_whole_numbers(connection: LogConnection) -> None:
    """An engine that computes with numpy is refused."""
    index = CacheIndex(
        connection,
        name="i",
        engine="a",
        gpu_blocks=np.int32(16),  # type: ignore[arg-type]
        block_size=np.uint8(4),  # type: ignore[arg-type]
        tensor_parallel_size=np.int64(2),  # type: ignore[arg-type]
    )
    index.match("r", np.arange(20, dtype=np.int32), limit=np.int16(3))  # type: ignore[arg-type]
    assert index.allocate("r", np.uint64(5)).blocks == [0, 1, 2, 3, 4]  # type: ignore[arg-type]
    assert index.extend("r", blocks=np.int8(4)).path_blocks == 4  # type: ignore[arg-type]
    index.ready("r", np.int64(2))  # type: ignore[arg-type]
    index.recycle("r", np.array([4]))
    assert index.table("r") == [0, 1, 2, 3]
    index.match("h", hashes=bytes(32), prompt_tokens=np.int64(9))  # type: ignore[arg-type]


def test_a_size_too_large_to_print(index: CacheIndex) -> None:
    """A hostile size ends in an error that is none of ours."""
    refused(index, lambda: index.allocate("r", 10**5000), "blocks must be")


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_id", NO_IDS, ids=lambda value: repr(value)[:20])
def test_request_ids(index: CacheIndex, request_id: object) -> None:
    """A prompt passed as an id, or an id with control characters, goes into every replica and every log line."""
    calls: list[Callable[..., object]] = [
        lambda name: index.match(name, [1]),
        lambda name: index.allocate(name, 1),
        index.extend,
        index.ready,
        index.release,
        lambda name: index.recycle(name, [2]),
        index.table,
        index.path_blocks,
    ]
    for call in calls:
        refused(index, lambda call=call: call(request_id), "request id")  # type: ignore[misc]


@pytest.mark.parametrize("request_id", ["r-1", "x" * 256, "模型 42", "a{b}*", "-", "cmpl-0#1", "'\"\\"])
def test_ordinary_request_ids(index: CacheIndex, request_id: str) -> None:
    """A client's ordinary id is refused, or does not come back from the log as it was."""
    index.match(request_id, [1])
    assert request_id in index.requests()
    index.release(request_id)


@pytest.mark.parametrize("setting", ["name", "engine", "gpu_pool"])
@pytest.mark.parametrize("name", ["", "a b", "a{b}", "a" * 129, 5, b"a", "a\n"], ids=lambda value: repr(value)[:20])
def test_names(connection: LogConnection, index: CacheIndex, setting: str, name: object) -> None:
    """A hostile name becomes a key of another index."""
    given = {"name": "new", "engine": "b", "gpu_blocks": 4, setting: name}
    refused(index, lambda: CacheIndex(connection, **given), "name")  # type: ignore[arg-type]
    assert connection.indexes() == ("i",)


def test_an_engine_name_as_long_as_allowed(connection: LogConnection) -> None:
    """A name that is in bounds is refused for a pool the caller never named."""
    CacheIndex(connection, name="new", engine="e" * 128, gpu_blocks=4)


# --- tokens, hashes, block ids --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens", ["1234", [1.0], [-1], [2**32], [None], np.zeros((2, 2), dtype=int), np.array([0.5]), 5, {1}], ids=repr
)
def test_tokens(index: CacheIndex, tokens: object) -> None:
    """E-40: what is no prompt is hashed as one."""
    refused(index, lambda: index.match("n", tokens), "token ids")  # type: ignore[arg-type]
    refused(index, lambda: index.would_match(tokens), "token ids")  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", ["1234", [1.0], [-1], [2**32], np.array([0.5])], ids=repr)
def test_tokens_that_follow(index: CacheIndex, tokens: object) -> None:
    """E-40: what is no output is hashed as one."""
    refused(index, lambda: index.extend("r", tokens), "token ids")  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [5, None, 1.5, iter([1])], ids=lambda tokens: type(tokens).__name__)
def test_tokens_that_follow_and_have_no_length(index: CacheIndex, tokens: object) -> None:
    """A wrong argument ends in an error that is none of ours."""
    refused(index, lambda: index.extend("r", tokens), "token ids")  # type: ignore[arg-type]


@pytest.mark.parametrize("hashes", [bytes(15), bytes(17), "x" * 16, [bytes(16)], bytearray(16), 5])
def test_hashes(index: CacheIndex, hashes: object) -> None:
    """Hashes cut in the middle are taken for a path."""
    refused(index, lambda: index.match("n", hashes=hashes), "block hashes")  # type: ignore[arg-type]
    refused(index, lambda: index.would_match(hashes=hashes), "block hashes")  # type: ignore[arg-type]
    refused(index, lambda: index.extend("h", hashes=hashes), "block hashes")  # type: ignore[arg-type]


def test_tokens_and_hashes_do_not_mix(index: CacheIndex) -> None:
    """A prompt is given twice, and one of the two is silently ignored."""
    refused(index, lambda: index.match("n"), "tokens or as hashes")
    refused(index, lambda: index.match("n", [1], hashes=bytes(16)), "tokens or as hashes")
    refused(index, index.would_match, "tokens or as hashes")
    refused(index, lambda: index.match("n", hashes=bytes(16), salt=b"x"), "salt, adapter and extra")
    refused(index, lambda: index.match("n", hashes=bytes(16), adapter=b"x"), "salt, adapter and extra")
    refused(index, lambda: index.match("n", hashes=bytes(16), extra=[ExtraKey(b"x", 0, 1)]), "salt, adapter and")
    refused(index, lambda: index.extend("r", hashes=bytes(16)), "'r' was matched by tokens")
    refused(index, lambda: index.extend("h", [1]), "'h' was matched by hashes")


def test_prompt_tokens_fit_the_prompt(index: CacheIndex) -> None:
    """The hit rate counts prompts of no tokens, and rises above 100 %."""
    with pytest.raises(InvalidInput):
        index.match("n", hashes=bytes(32), prompt_tokens=0)
    with pytest.raises(InvalidInput):
        index.match("m", [1, 2], prompt_tokens=7)


@pytest.mark.parametrize("salt", ["tenant", 5, None, bytearray(b"x")])
def test_salt_and_adapter(index: CacheIndex, salt: object) -> None:
    """A tenant's name in another type makes another tenant, or none."""
    refused(index, lambda: index.match("n", [1], salt=salt), "salt must be bytes")  # type: ignore[arg-type]
    refused(index, lambda: index.match("n", [1], adapter=salt), "adapter must be bytes")  # type: ignore[arg-type]


@pytest.mark.parametrize("extra", [5, None, ["x"], [b"x"], [("x", 0, 1)]], ids=repr)
def test_extra_keys(index: CacheIndex, extra: object) -> None:
    """A wrong argument ends in an error that is none of ours."""
    refused(index, lambda: index.match("n", [1], extra=extra))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ([2, 2], "block 2 is named twice"),  # E-04
        ([-1], "-1"),
        ([POOL_BLOCKS_MAX], str(POOL_BLOCKS_MAX)),
        ([1.0], "1.0"),
        ([True], "True"),
        ([None], "None"),
        (["2"], "'2'"),
        ([[2]], "[2]"),
        ("23", "'23'"),
        (b"23", "b'23'"),
        (5, "int 5"),
        (None, "None"),
        (np.array([2.0]), "2.0"),
    ],
    ids=repr,
)
def test_block_ids(index: CacheIndex, blocks: object, said: str) -> None:
    """E-01, E-04: one block is freed twice by one call."""
    refused(index, lambda: index.recycle("r", blocks), said)  # type: ignore[arg-type]
    refused(index, lambda: index.recycle(None, blocks), said)  # type: ignore[arg-type]


def test_block_ids_as_a_number_of_numpy(index: CacheIndex) -> None:
    """A wrong argument ends in an error that is none of ours."""
    refused(index, lambda: index.recycle("r", np.array(2)), "block ids")


def test_recycle_nothing_of_nobody(index: CacheIndex) -> None:
    """A call about a request that is gone is taken for a good one."""
    with pytest.raises(UnknownRequest):
        index.recycle("nobody", [])


def test_extend_beyond_what_is_known(index: CacheIndex) -> None:
    """Blocks are filed without content."""
    refused(index, lambda: index.extend("r", blocks=3), "3 blocks", "'r'", "fill 2")


@pytest.mark.parametrize(
    "call",
    [
        lambda index: index.table("nobody"),
        lambda index: index.path_blocks("nobody"),
        lambda index: index.extend("nobody"),
        lambda index: index.ready("nobody"),
        lambda index: index.release("nobody"),
        lambda index: index.allocate("nobody", 1),
        lambda index: index.recycle("nobody", [1]),
    ],
)
def test_a_request_nobody_began(index: CacheIndex, call: Callable[[CacheIndex], object]) -> None:
    """A question about a request that is gone is answered with another's blocks."""
    before = index.digest()
    with pytest.raises(UnknownRequest, match="engine 'a' has no request 'nobody'"):
        call(index)
    assert index.digest() == before


def test_a_pool_must_exist_or_be_given(connection: LogConnection) -> None:
    """An engine without memory joins, and an index nobody asked for is created."""
    with pytest.raises(Rejection, match=r"no pool 'gpu:b'; known: none"):
        CacheIndex(connection, name="new", engine="b")
    assert connection.indexes() == ()
