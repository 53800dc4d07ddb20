"""What every byte store promises, for each implementation at hand."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from events.errors import InvalidInput
from statecore import ranges
from tests.stores.given import INDEX, LARGER, SMALL, Opened, OtherProcess, content, hash_of
from workers.layout import CacheLayout
from workers.numpy_store import NumpyStore
from workers.paddle_store import PaddleStore
from workers.segment_header import HEADER_BYTES, segment_name
from workers.store import BlockStore, MemoryGone


@pytest.fixture
def two_tiers(store: BlockStore) -> BlockStore:
    """A GPU pool of 8 blocks, each with bytes of its own, and an empty host pool of 20."""
    store.create("gpu-0", "gpu", SMALL)
    store.create("host", "cpu", LARGER)
    for block in range(SMALL.num_blocks):
        store.write("gpu-0", block, content(block))
    return store


def held(store: BlockStore, pool: str, layout: CacheLayout) -> list[bytes]:
    return [store.read(pool, block) for block in range(layout.num_blocks)]


# --- copies -----------------------------------------------------------------------------------------


def test_a_block_survives_the_way_to_the_host_and_back(two_tiers: BlockStore) -> None:
    """A prompt would continue from another prompt's keys and values after a swap."""
    size = SMALL.bytes_per_block
    assert two_tiers.copy("gpu-0", "host", ((2, 3),), ((17, 3),)) == 3 * size
    for block in range(SMALL.num_blocks):
        two_tiers.write("gpu-0", block, bytes(size))
    assert two_tiers.copy("host", "gpu-0", ((17, 1), (18, 2)), ((7, 1), (0, 2))) == 3 * size
    empty = bytes(size)
    assert held(two_tiers, "gpu-0", SMALL) == [content(3), content(4), *[empty] * 5, content(2)]


@given(pairs=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_copies_what_block_by_block_would(two_tiers: BlockStore, pairs: st.DataObject) -> None:
    """A merged copy would touch blocks that are not in its lists."""
    destinations = pairs.draw(st.lists(st.integers(0, LARGER.num_blocks - 1), unique=True))
    sources = [pairs.draw(st.integers(0, SMALL.num_blocks - 1)) for _ in destinations]
    wanted = held(two_tiers, "host", LARGER)
    for source, destination in zip(sources, destinations, strict=True):
        wanted[destination] = content(source)
    moved = two_tiers.copy("gpu-0", "host", ranges.of_ids(sources), ranges.of_ids(destinations))
    assert moved == len(sources) * SMALL.bytes_per_block
    assert held(two_tiers, "host", LARGER) == wanted
    assert held(two_tiers, "gpu-0", SMALL) == [content(block) for block in range(SMALL.num_blocks)]


def test_blocks_move_inside_a_pool(two_tiers: BlockStore) -> None:
    """A pool could not be compacted."""
    two_tiers.copy("gpu-0", "gpu-0", ((0, 2),), ((6, 2),))
    assert held(two_tiers, "gpu-0", SMALL)[6:] == [content(0), content(1)]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("gpu-0", "host", ((0, 2),), ((0, 1),)), "2 source, 1"),
        (("gpu-0", "host", ((7, 2),), ((0, 2),)), "outside the pool, which has 0 to 7"),
        (("gpu-0", "host", ((0, 2),), ((19, 2),)), "outside the pool, which has 0 to 19"),
        (("gpu-0", "host", ((0, 2),), ((3, 1), (3, 1))), "named twice"),
        (("gpu-0", "gpu-0", ((0, 2),), ((1, 2),)), "both source and destination"),
        (("gpu-1", "host", ((0, 1),), ((0, 1),)), "pool 'gpu-1' is not open .* open: gpu-0, host"),
        (("gpu-0", "disk", ((0, 1),), ((0, 1),)), "pool 'disk' is not open"),
        (("gpu-0", "odd", ((0, 1),), ((0, 1),)), "different layouts"),
    ],
)
def test_a_refused_copy_moves_nothing(two_tiers: BlockStore, arguments: Any, named: str) -> None:
    """A job with a mistake in it would destroy blocks on its way to the error (E-09)."""
    odd = CacheLayout(SMALL.layers, 8, (2, 4, 6), "bfloat16")
    two_tiers.create("odd", "cpu", odd)
    with pytest.raises(InvalidInput, match=named):
        two_tiers.copy(*arguments)
    assert held(two_tiers, "gpu-0", SMALL) == [content(block) for block in range(SMALL.num_blocks)]
    for pool, layout in (("host", LARGER), ("odd", odd)):
        assert held(two_tiers, pool, layout) == [bytes(layout.bytes_per_block)] * layout.num_blocks


# --- blocks -----------------------------------------------------------------------------------------


def test_a_pattern_is_moved_with_its_block(two_tiers: BlockStore) -> None:
    """The demo could not tell a right swap from a wrong one."""
    two_tiers.fill("gpu-0", 3, hash_of(3))
    two_tiers.copy("gpu-0", "host", ((3, 1),), ((9, 1),))
    assert two_tiers.matches("host", 9, hash_of(3))
    assert not two_tiers.matches("host", 9, hash_of(4))
    assert not two_tiers.matches("host", 8, hash_of(3))


@pytest.mark.parametrize("at", [0, 239, -1])
def test_one_wrong_byte_shows(two_tiers: BlockStore, at: int) -> None:
    """A copy that loses a byte would pass verification."""
    two_tiers.fill("gpu-0", 3, hash_of(3))
    damaged = bytearray(two_tiers.read("gpu-0", 3))
    damaged[at] ^= 1
    two_tiers.write("gpu-0", 3, bytes(damaged))
    assert not two_tiers.matches("gpu-0", 3, hash_of(3))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "fp8"])
def test_every_dtype(store: BlockStore, dtype: str) -> None:
    """An engine with a quantised cache could not swap."""
    layout = CacheLayout(2, 4, (3, 5), dtype)
    store.create("gpu-0", "gpu", layout)
    store.fill("gpu-0", 1, hash_of(1))
    store.copy("gpu-0", "gpu-0", ((1, 1),), ((3, 1),))
    assert store.matches("gpu-0", 3, hash_of(1))
    assert len(store.read("gpu-0", 3)) == layout.bytes_per_block


@pytest.mark.parametrize("block", [-1, 8, 1.0, None])
def test_refuses_a_block_outside_the_pool(two_tiers: BlockStore, block: Any) -> None:
    """numpy would take -1 as the last block."""
    for call in (
        lambda: two_tiers.read("gpu-0", block),
        lambda: two_tiers.write("gpu-0", block, content(0)),
        lambda: two_tiers.fill("gpu-0", block, hash_of(0)),
        lambda: two_tiers.matches("gpu-0", block, hash_of(0)),
    ):
        with pytest.raises(InvalidInput):
            call()


@pytest.mark.parametrize("size", [0, 479, 481])
def test_refuses_content_of_another_size(two_tiers: BlockStore, size: int) -> None:
    """A shorter block would keep the tail of what was there before."""
    with pytest.raises(InvalidInput, match=f"has 480 bytes, not {size}"):
        two_tiers.write("gpu-0", 0, bytes(size))
    assert two_tiers.read("gpu-0", 0) == content(0)


# --- opening and closing ----------------------------------------------------------------------------


def test_new_memory_is_zeroed(store: BlockStore) -> None:
    """Bytes of an earlier index could be read from a pool nobody has written."""
    memory = store.create("gpu-0", "gpu", SMALL)
    assert (memory.pool, memory.tier, memory.layout, memory.created) == ("gpu-0", "gpu", SMALL, True)
    assert store.read("gpu-0", 0) == bytes(SMALL.bytes_per_block)


def test_the_second_creator_opens_what_the_first_made(open_store: Opened) -> None:
    """Engines that start together would each get a host pool of their own."""
    one, two = open_store(), open_store()
    made = one.create("host", "cpu", SMALL)
    one.write("host", 3, content(3))
    found = two.create("host", "cpu", SMALL)
    assert (found.created, found.incarnation) == (False, made.incarnation)
    assert two.read("host", 3) == content(3)


OTHER_LAYOUTS = [
    LARGER,
    CacheLayout(4, 8, (2, 4, 5), "bfloat16"),
    CacheLayout(3, 8, (4, 2, 5), "bfloat16"),
    CacheLayout(3, 8, (2, 4, 5), "float16"),
    CacheLayout(3, 8, (2, 4, 10), "fp8"),
]
"""Each differs from SMALL in one thing; the last two have as many bytes."""


@pytest.mark.parametrize("wanted", OTHER_LAYOUTS, ids=str)
def test_the_second_creator_must_want_the_same(open_store: Opened, wanted: CacheLayout) -> None:
    """Two engines would address one memory with different strides."""
    first, other = open_store(), open_store()
    first.create("host", "cpu", SMALL)
    first.write("host", 7, content(7))
    refusals: list[Callable[[], object]] = [
        lambda: other.create("host", "cpu", wanted),
        lambda: other.attach("host", wanted),
    ]
    for refused in refusals:
        with pytest.raises(InvalidInput, match=re.escape(f"created with {SMALL}; asked for {wanted}")):
            refused()
    with pytest.raises(InvalidInput, match="created as tier"):
        other.create("host", "gpu", SMALL)
    with pytest.raises(InvalidInput, match="not open"):
        other.read("host", 0)
    assert first.read("host", 7) == content(7)
    assert first.unlink("host"), "a refused store still holds it"


def test_attach_takes_only_what_was_meant(open_store: Opened) -> None:
    """After a restart a worker would copy into memory made anew, from what it knew of the old one (E-26)."""
    made = open_store().create("host", "cpu", SMALL)
    worker = open_store()
    with pytest.raises(MemoryGone, match="no shared memory"):
        worker.attach("gpu-0")
    with pytest.raises(InvalidInput, match="asked for 3 layers × 20 blocks"):
        worker.attach("host", LARGER)
    with pytest.raises(InvalidInput, match=f"incarnation {made.incarnation}, not {'0' * 32}"):
        worker.attach("host", incarnation="0" * 32)
    assert worker.attach("host", SMALL, incarnation=made.incarnation).incarnation == made.incarnation


def test_a_pool_is_opened_once(store: BlockStore) -> None:
    """A second opening would leak the first."""
    store.create("host", "cpu", SMALL)
    with pytest.raises(InvalidInput, match="already open"):
        store.create("host", "cpu", SMALL)
    with pytest.raises(InvalidInput, match="already open"):
        store.attach("host")


@pytest.mark.parametrize(("pool", "tier"), [("", "cpu"), ("a b", "cpu"), ("x" * 129, "cpu"), ("host", "disk")])
def test_refuses_names(store: BlockStore, tmp_path: Path, pool: str, tier: str) -> None:
    """A pool that the log cannot name would exist in memory only."""
    with pytest.raises(InvalidInput):
        store.create(pool, tier, SMALL)
    assert list(tmp_path.iterdir()) == []


def test_unlink_keeps_what_others_use(open_store: Opened, tmp_path: Path) -> None:
    """An engine that leaves would take the host pool from under the others."""
    leaving, staying = open_store(), open_store()
    leaving.create("host", "cpu", SMALL)
    staying.attach("host")
    assert not leaving.unlink("host")
    staying.write("host", 0, content(0))
    assert leaving.attach("host").created is False
    assert leaving.read("host", 0) == content(0)
    leaving.close()
    assert staying.unlink("host")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("pool", "tier"), [("host", "cpu"), ("gpu-0", "gpu")])
def test_memory_removed_under_a_store_is_noticed(open_store: Opened, tmp_path: Path, pool: str, tier: str) -> None:
    """A worker would go on copying into memory that no engine sees (E-26)."""
    worker, engine = open_store(), open_store()
    worker.create("host", "cpu", SMALL)
    worker.create("gpu-0", "gpu", SMALL)
    (tmp_path / segment_name(INDEX, pool, 0)).unlink()
    with pytest.raises(MemoryGone, match="was removed after it was opened"):
        worker.copy("gpu-0", "host", ((0, 1),), ((0, 1),))
    engine.create(pool, tier, SMALL)
    with pytest.raises(MemoryGone, match="was replaced after it was opened"):
        worker.copy("gpu-0", "host", ((0, 1),), ((0, 1),))
    assert worker.unlink(pool)
    assert worker.attach(pool).created is False
    worker.copy("gpu-0", "host", ((0, 1),), ((0, 1),))


@pytest.mark.parametrize("pool", ["host", "gpu-0"])
def test_memory_cut_under_a_store_is_noticed(open_store: Opened, tmp_path: Path, pool: str) -> None:
    """A worker would be ended by SIGBUS in the middle of a copy, and so would each that follows."""
    worker = open_store()
    worker.create("host", "cpu", SMALL)
    worker.create("gpu-0", "gpu", SMALL)
    whole = HEADER_BYTES + SMALL.total_bytes
    os.truncate(tmp_path / segment_name(INDEX, pool, 0), HEADER_BYTES)
    with pytest.raises(MemoryGone, match=f"was cut from {whole} to {HEADER_BYTES} bytes after it was opened"):
        worker.copy("gpu-0", "host", ((0, 1),), ((0, 1),))
    worker.close()
    with pytest.raises(InvalidInput, match=f"has {HEADER_BYTES} bytes"):
        open_store().attach(pool)


def test_close_leaves_the_bytes_for_a_warm_start(open_store: Opened) -> None:
    """After a restart every host block would have to be computed again."""
    first = open_store()
    made = first.create("host", "cpu", SMALL)
    first.write("host", 5, content(5))
    first.close()
    with pytest.raises(InvalidInput, match="not open"):
        first.read("host", 5)
    second = open_store()
    second.attach("host", incarnation=made.incarnation)
    assert second.read("host", 5) == content(5)


def test_two_processes_see_the_same_bytes(store: BlockStore, other: OtherProcess) -> None:
    """A worker would swap blocks the engine never wrote."""
    made = store.create("host", "cpu", SMALL)
    store.fill("host", 1, hash_of(1))
    assert other.do("attach", "host").incarnation == made.incarnation
    assert other.do("matches", "host", 1, hash_of(1))
    other.do("copy", "host", "host", ((1, 1),), ((6, 1),))
    assert store.matches("host", 6, hash_of(1))


@pytest.mark.parametrize("wanted", OTHER_LAYOUTS, ids=str)
def test_ranks_agree_on_the_layout(open_store: Opened, tmp_path: Path, wanted: CacheLayout) -> None:
    """Ranks would hold different numbers of blocks, and hits differ between them (E-41)."""
    open_store().create("host", "cpu", SMALL)
    rank_1 = NumpyStore(INDEX, 1, tmp_path)
    with pytest.raises(InvalidInput, match=re.escape(f"rank 1 of pool 'host' has {wanted}, but rank 0 has {SMALL}")):
        rank_1.create("host", "cpu", wanted)
    assert len(list(tmp_path.iterdir())) == 1, "the refused rank left memory behind"
    assert rank_1.create("host", "cpu", SMALL).created
    assert len(list(tmp_path.iterdir())) == 2
    rank_1.close()


@pytest.mark.parametrize("kind", [NumpyStore, PaddleStore])
@pytest.mark.parametrize(("index", "rank"), [("", 0), ("a b", 0), ("llama", -1), ("llama", None)])
def test_refuses_identities(kind: Any, index: Any, rank: Any) -> None:
    """A worker started with a mistyped rank would wait for memory that never comes."""
    with pytest.raises(InvalidInput):
        kind(index, rank)
