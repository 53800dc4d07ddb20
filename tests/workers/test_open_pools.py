"""A worker's pools over real memory: opened when a job needs them, again when they were replaced; what a bad job does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from events.errors import InvalidInput
from events.jobs import TransferJob
from tests.jobs.given import HOST, POOL, job
from tests.stores.given import INDEX, LARGER, SMALL, content
from workers.layout import CacheLayout
from workers.numpy_store import NumpyStore
from workers.segment_header import segment_name
from workers.store import MemoryGone
from workers.stores import OpenPools, StoreSettings
from workers.swap import step

JOB = attrs.evolve(job(), source_blocks=((0, 3),), destination_blocks=((9, 1), (4, 2)))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[NumpyStore]:
    """A GPU pool of 8 blocks, each with bytes of its own, and an empty host pool of 20."""
    store = NumpyStore(INDEX, 0, tmp_path)
    store.create(POOL, "gpu", SMALL)
    store.create(HOST, "cpu", LARGER)
    for block in range(SMALL.num_blocks):
        store.write(POOL, block, content(block))
    yield store
    store.close()


@pytest.fixture
def pools(tmp_path: Path) -> Iterator[OpenPools]:
    opened = OpenPools(lambda: NumpyStore(INDEX, 0, tmp_path), {})
    yield opened
    opened.close()


def host(store: NumpyStore) -> list[bytes]:
    return [store.read(HOST, block) for block in range(LARGER.num_blocks)]


def test_memory_is_opened_when_a_job_needs_it(tmp_path: Path, pools: OpenPools) -> None:
    """Otherwise workers would have to be started after their engines.

    Given no memory, when a job comes, then it fails and names the pool; when there is some, the next one is copied.
    """
    report = step(JOB, pools)
    assert report.reason.startswith(f"pool {POOL!r}: there is no shared memory")

    engine = NumpyStore(INDEX, 0, tmp_path)
    engine.create(POOL, "gpu", SMALL)
    engine.create(HOST, "cpu", LARGER)
    engine.write(POOL, 2, content(2))
    assert step(JOB, pools).moved_bytes == 3 * SMALL.bytes_per_block
    assert engine.read(HOST, 5) == content(2)
    engine.close()


def test_memory_that_was_replaced_is_opened_again(tmp_path: Path, engine: NumpyStore, pools: OpenPools) -> None:
    """Otherwise a worker would go on copying from an engine's last life, or have to be started again with it.

    Given memory that its engine has made anew, when a job of before comes, then it fails; the next one is copied.
    """
    assert step(JOB, pools).ok
    (tmp_path / segment_name(INDEX, POOL, 0)).unlink()
    engine.unlink(POOL)
    engine.create(POOL, "gpu", SMALL)
    engine.write(POOL, 0, content(77))

    assert "was replaced after it was opened" in step(JOB, pools).reason
    assert engine.read(HOST, 9) == content(0)
    assert step(JOB, pools).ok
    assert engine.read(HOST, 9) == content(77)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"destination_blocks": ((9, 2),)}, "3 source, 2"),
        ({"destination_blocks": ((9, 4),)}, "3 source, 4"),
        ({"source_blocks": ()}, "0 source, 3"),
        ({"source_blocks": ((6, 3),)}, "outside the pool, which has 0 to 7"),
        ({"destination_blocks": ((18, 3),)}, "outside the pool, which has 0 to 19"),
        ({"destination_blocks": ((9, 2), (10, 1))}, "named twice"),
        ({"destination": "cpu:other"}, "pool 'cpu:other': there is no shared memory"),
        ({"source": "gpu:other"}, "pool 'gpu:other': there is no shared memory"),
    ],
)
def test_a_bad_job_moves_nothing(engine: NumpyStore, pools: OpenPools, change: dict[str, Any], named: str) -> None:
    """Otherwise a mistake in a job would destroy blocks of others on its way to the error (E-09).

    Given a job that cannot be, when stepped, then a failure with the numbers, no defect, no byte moved; and the worker
    carries out the next.
    """
    before = host(engine)
    report = step(attrs.evolve(JOB, **change), pools)

    assert named in report.reason
    assert (report.ok, report.moved_bytes, report.trace) == (False, 0, "")
    assert host(engine) == before
    assert [engine.read(POOL, block) for block in range(8)] == list(map(content, range(8)))
    assert step(JOB, pools).ok
    assert [engine.read(HOST, block) for block in (9, 4, 5)] == list(map(content, range(3)))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def of_another_index(path: Path) -> None:
    _replace(path, "other-index", LARGER)


def of_another_shape(path: Path) -> None:
    _replace(path, INDEX, CacheLayout(3, 20, (4, 2, 5), "bfloat16"))


def of_another_dtype(path: Path) -> None:
    _replace(path, INDEX, CacheLayout(3, 20, (2, 4, 5), "float16"))


def _replace(path: Path, index: str, layout: CacheLayout) -> None:
    folder = path.parent / "elsewhere"
    folder.mkdir()
    store = NumpyStore(index, 0, folder)
    store.create(HOST, "cpu", layout)
    store.close()
    (folder / segment_name(index, HOST, 0)).rename(path)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (cut, "has 13695 bytes; .* need 13696"),
        (of_another_index, "belongs to index, pool, rank .'other-index', .*not to .'llama@host1'"),
        (of_another_shape, r"different layouts: .*\[2,4,5\] bfloat16, target .*\[4,2,5\] bfloat16"),
        (of_another_dtype, r"different layouts: .*\[2,4,5\] bfloat16, target .*\[2,4,5\] float16"),
    ],
)
@pytest.mark.usefixtures("engine")
def test_memory_that_is_not_the_pools(
    tmp_path: Path, pools: OpenPools, spoil: Callable[[Path], None], named: str
) -> None:
    """Otherwise a worker would write one model's blocks into another's memory, or die of SIGBUS.

    Given a file under the host pool's name that is too small, another index's, or of another shape or dtype, when a job
    comes, then it fails and says so, and the file is as it was.
    """
    path = tmp_path / segment_name(INDEX, HOST, 0)
    path.rename(tmp_path / "kept")
    (tmp_path / "copy").write_bytes((tmp_path / "kept").read_bytes())
    (tmp_path / "copy").rename(path)
    spoil(path)
    before = path.read_bytes()

    report = step(JOB, pools)

    assert re.search(named, report.reason), report.reason
    assert path.read_bytes() == before
    assert report.trace == ""


def test_memory_that_was_removed_under_a_worker(tmp_path: Path, engine: NumpyStore, pools: OpenPools) -> None:
    """Otherwise swapped-out blocks would go where nobody finds them.

    Given a host pool whose name was removed after a first job, when the next comes, then it fails; and so does the one
    after it, until there is a pool.
    """
    assert step(JOB, pools).ok
    (tmp_path / segment_name(INDEX, HOST, 0)).unlink()

    assert "was removed after it was opened" in step(JOB, pools).reason
    assert step(JOB, pools).reason.startswith(f"pool {HOST!r}: there is no shared memory")
    engine.unlink(HOST)
    engine.create(HOST, "cpu", LARGER)
    assert step(JOB, pools).ok
    assert engine.read(HOST, 9) == content(0)


@pytest.mark.parametrize("blocks", [-1, 1 << 40])
def test_a_host_pool_of_no_size(blocks: int) -> None:
    """Otherwise a mistyped size would make a pool of another.

    Given a number of host blocks that cannot be, when the pools are worked out, then refused with it; 0 means none.
    """
    layout = SMALL.to_json()
    with pytest.raises(InvalidInput, match=f"number of blocks must be from 1 .*{blocks}"):
        StoreSettings(layout=layout, host_blocks=blocks).pools(POOL)
    assert StoreSettings(layout=layout, host_blocks=0).pools(POOL) == {POOL: ("gpu", SMALL)}


def test_own_pools_are_made_at_once_and_again(tmp_path: Path, pools: OpenPools) -> None:
    """Otherwise an engine would wait for memory that its worker makes only when the first job comes.

    Given pools a worker shall make, when it starts, then they are there; with another layout than what is there,
    refused; when they were removed, made again with the job that finds out.
    """
    own = {POOL: ("gpu", SMALL), HOST: ("cpu", LARGER)}
    maker = OpenPools(lambda: NumpyStore(INDEX, 0, tmp_path), own)
    assert step(JOB, pools).ok
    with pytest.raises(InvalidInput, match=f"created with {LARGER.layers} layers"):
        OpenPools(lambda: NumpyStore(INDEX, 0, tmp_path), {HOST: ("cpu", SMALL)})

    (tmp_path / segment_name(INDEX, HOST, 0)).unlink()
    with pytest.raises(MemoryGone, match="was removed"):
        copied(maker, JOB)
    assert copied(maker, JOB) == 3 * SMALL.bytes_per_block
    maker.close()


def copied(pools: OpenPools, wanted: TransferJob) -> int:
    return pools.copy(wanted.source, wanted.destination, wanted.source_blocks, wanted.destination_blocks)
