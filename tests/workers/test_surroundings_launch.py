"""An order for workers becomes worker processes, with the memory it asks for."""

from __future__ import annotations

import functools
import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
import orjson
import pytest

from events import connect
from events.embedded import EmbeddedRedis
from events.errors import InvalidInput
from events.log import LogConnection
from statecore import CacheIndex
from statecore.manager.surroundings import Process, WorkerOrder
from tests.workers.fleet import eventually
from workers.layout import CacheLayout
from workers.numpy_store import NumpyStore
from workers.segment_header import Process as Identity
from workers.shared_pools import remove_stale
from workers.surroundings import WorkerLauncher

RANKS = 2
BLOCKS, HOST_BLOCKS = 5, 7
HOST = "cpu:host"
ORDER = WorkerOrder(
    index="",
    pool="gpu:e0",
    ranks=RANKS,
    layers=3,
    dtype="float16",
    key_shape=(BLOCKS, 2, 3),
    value_shape=(BLOCKS, 2, 3),
    host_pool=HOST,
    host_blocks=HOST_BLOCKS,
)
LAYOUT = CacheLayout(3, BLOCKS, (2, 3), "float16")

_numbers = itertools.count(1)

Launch = Callable[[WorkerOrder], Sequence[Process]]


@pytest.fixture
def connection(embedded_redis: EmbeddedRedis) -> Iterator[LogConnection]:
    with connect(embedded_redis.url) as opened:
        yield opened


@pytest.fixture
def order() -> WorkerOrder:
    return attrs.evolve(ORDER, index=f"launch-{os.getpid()}-{next(_numbers)}")


@pytest.fixture
def launch(connection: LogConnection, order: WorkerOrder, tmp_path: Path) -> Iterator[Launch]:
    """Launches; in the end every worker is ended and its memory removed."""
    started: list[Process] = []

    def launching(each: WorkerOrder) -> Sequence[Process]:
        started.extend(WorkerLauncher(connection, {}, log_folder=tmp_path).launch(each))
        return started[-each.ranks :]

    yield launching
    for worker in started:
        if worker.poll() is None:
            os.kill(worker.pid, signal.SIGKILL)
    for worker in started:
        eventually(functools.partial(has_ended, worker), f"{worker.pid} ends")
    stores = [NumpyStore(order.index, rank) for rank in range(RANKS)]
    for store, pool in itertools.product(stores, ("gpu:e0", "gpu:e1", HOST)):
        try:
            store.attach(pool)
        except InvalidInput:
            continue
        assert store.unlink(pool)
    remove_stale(order.index)


def has_ended(worker: Process) -> bool:
    return worker.poll() is not None


def memory(order: WorkerOrder, pool: str, rank: int) -> CacheLayout:
    store = NumpyStore(order.index, rank)
    try:
        return store.attach(pool).layout
    finally:
        store.close()


def test_an_order_becomes_one_worker_per_rank(launch: Launch, order: WorkerOrder) -> None:
    """Otherwise half the heads of every block would stay behind (seed: one transfer process per rank).

    Given an order for two ranks, when launched, then two processes, in the order of ranks, alive and ready; each rank's
    memory of both pools has the shape and size that was ordered.
    """
    workers = launch(order)

    assert [worker.poll() for worker in workers] == [None, None]
    for rank, worker in enumerate(workers):
        command = Path(f"/proc/{worker.pid}/cmdline").read_bytes().split(b"\0")
        settings = orjson.loads(command[3])
        assert (settings["rank"], settings["ranks"], settings["pool"]) == (rank, RANKS, "gpu:e0")
        assert memory(order, "gpu:e0", rank) == LAYOUT
        assert memory(order, HOST, rank) == attrs.evolve(LAYOUT, num_blocks=HOST_BLOCKS)
    store = NumpyStore(order.index, 0)
    store.attach("gpu:e0")
    assert store.tensor("gpu:e0", 2, "value").shape == order.value_shape
    assert len(store.read("gpu:e0", 0)) == 3 * 2 * (2 * 3) * 2
    store.close()


def test_shapes_reach_the_worker_as_they_are_written(launch: Launch, order: WorkerOrder) -> None:
    """Otherwise an operator could not see in `ps` which memory a worker serves (seed: "2,3" on its command line).

    Given blocks of 2 x 3, when launched, then the worker's command line says "2,3", and how many there are.
    """
    workers = launch(order)

    command = Path(f"/proc/{workers[0].pid}/cmdline").read_bytes().split(b"\0")
    layout = orjson.loads(orjson.loads(command[3])["store"]["layout"])
    assert layout == {"block_shape": "2,3", "dtype": "float16", "layers": 3, "num_blocks": BLOCKS}


def test_a_cache_without_values_has_keys_only(launch: Launch, order: WorkerOrder) -> None:
    """Otherwise a model whose attention keeps one tensor per layer would take twice its memory.

    Given no value shape, when launched, then the memory has one tensor per layer and the bytes of that.
    """
    launch(attrs.evolve(order, value_shape=None, host_pool=None, host_blocks=0))

    store = NumpyStore(order.index, 0)
    found = store.attach("gpu:e0").layout
    assert found == attrs.evolve(LAYOUT, values=False)
    assert store.tensor("gpu:e0", 2, "key").shape == order.key_shape
    assert len(store.read("gpu:e0", 0)) == 3 * (2 * 3) * 2
    with pytest.raises(InvalidInput, match="has key of layers 0 to 2, not value 2"):
        store.tensor("gpu:e0", 2, "value")
    store.close()


def test_engines_of_a_machine_share_the_host_pool(launch: Launch, order: WorkerOrder) -> None:
    """Otherwise what one engine swapped out could not be read by another.

    Given workers of one engine that made the host pool, when those of a second are launched, then they open the same
    memory; and an order for a host pool of another size is refused with both sizes.
    """
    launch(order)
    store = NumpyStore(order.index, 0)
    store.attach(HOST)
    store.fill(HOST, 3, b"h" * 16)

    launch(attrs.evolve(order, pool="gpu:e1"))
    assert store.matches(HOST, 3, b"h" * 16)
    store.close()

    with pytest.raises(RuntimeError, match=f"(?s)rank [01] ended .*{HOST_BLOCKS} blocks.*{HOST_BLOCKS + 1} blocks"):
        launch(attrs.evolve(order, pool="gpu:e2", host_blocks=HOST_BLOCKS + 1))


def test_an_engine_that_comes_back_finds_its_workers(launch: Launch, order: WorkerOrder) -> None:
    """Otherwise an engine that crashed could not start again: its workers live on, and hold their ranks.

    Given living workers of a pool, when launched again, then the same processes are returned and known to live; for
    another shape refused, with both; when one has died, all are replaced; and each knows that it ended.
    """
    first = launch(order)
    again = launch(order)
    assert [worker.pid for worker in again] == [worker.pid for worker in first]
    assert [worker.poll() for worker in again] == [None, None]
    with pytest.raises(InvalidInput, match=r"\[2,3\] float16; asked for .* \[2,4\] float16"):
        launch(attrs.evolve(order, key_shape=(BLOCKS, 2, 4), value_shape=(BLOCKS, 2, 4)))

    os.kill(first[1].pid, signal.SIGKILL)
    eventually(lambda: first[1].poll() is not None, "it ends")
    replaced = launch(order)

    assert not {worker.pid for worker in replaced} & {worker.pid for worker in first}
    assert [worker.poll() for worker in again] == [-1, -1]
    assert [worker.poll() for worker in replaced] == [None, None]
    assert Identity.of(first[0].pid) is None


def test_a_worker_that_cannot_start_is_an_error_with_its_words(
    connection: LogConnection, order: WorkerOrder, tmp_path: Path
) -> None:
    """Otherwise the manager would wait for ever, or hear only that something went wrong (seed: launching fails).

    Given a store that breaks when it is made, when launched, then RuntimeError with what the worker said, at once.
    """
    broken = {"STATECORE_STORE": "tests.workers.held_store:BrokenStore"}

    with pytest.raises(RuntimeError, match=r"(?s)rank \d ended with code 1 .*libcuda.so.1 is missing"):
        WorkerLauncher(connection, broken, log_folder=tmp_path).launch(order)


def test_launched_workers_move_the_bytes(launch: Launch, order: WorkerOrder, connection: LogConnection) -> None:
    """Otherwise workers would be there and serve somebody else.

    Given workers launched for an engine's pool, when it needs room, then they swap out, and every rank holds the bytes.
    """
    launch(order)
    stores = [NumpyStore(order.index, rank) for rank in range(RANKS)]
    for store in stores:
        store.attach("gpu:e0")
        store.attach(HOST)
    hashes = [f"block{number}".encode().ljust(16, b".") for number in range(BLOCKS)]
    with CacheIndex(
        connection,
        name=order.index,
        engine="e0",
        gpu_blocks=BLOCKS,
        cpu_blocks=HOST_BLOCKS,
        block_size=4,
        tensor_parallel_size=RANKS,
    ) as index:
        index.match("a", hashes=b"".join(hashes))
        for block, block_hash in zip(index.allocate("a", BLOCKS).blocks, hashes, strict=True):
            for store in stores:
                store.fill("gpu:e0", block, block_hash)
        index.extend("a", ready=True)
        index.release("a")
        index.match("b", hashes=b"x" * 16 * BLOCKS)
        for transfer in index.allocate("b", BLOCKS).waits_for:
            assert index.wait(transfer, 20.0).done
        for store in stores:
            assert [store.matches(HOST, block, each) for block, each in enumerate(hashes)] == [True] * BLOCKS
    for store in stores:
        store.close()
