"""The seed's tests about worker processes: the order that is given, and what comes back. Processes are in tests/workers."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from statecore import PrefixCacheManager
from statecore.manager.surroundings import Process
from tests.manager.given import Place, cache, evict
from workers.layout import format_shape


class ShapesOf:
    """An attention backend."""

    def __init__(self, keys: list[object], values: list[object]) -> None:
        self.shapes = keys, values

    def get_kv_cache_shape(
        self, max_num_blocks: int, kv_cache_quant_type: str | None = None
    ) -> tuple[list[object], list[object]]:
        del max_num_blocks, kv_cache_quant_type
        return self.shapes


class Quantized:
    """The seed's attention backend."""

    def get_kv_cache_shape(
        self, max_num_blocks: int, kv_cache_quant_type: str | None = None
    ) -> tuple[list[object], list[object]]:
        return [max_num_blocks, 2], [3, kv_cache_quant_type]


def launched(manager: PrefixCacheManager, ranks: int = 1) -> list[Process]:
    return manager.launch_cache_manager(
        cache_config=manager.cache_config,
        tensor_parallel_size=ranks,
        device_ids=list(range(ranks)),
        pod_ip="127.0.0.1",
        engine_worker_queue_port=8000,
        ipc_suffix="pid",
        create_cache_tensor=True,
    )


def messaged(manager: PrefixCacheManager) -> list[Process] | None:
    return manager.launch_cache_messager(
        cache_config=manager.cache_config,
        tensor_parallel_size=1,
        device_ids=[0],
        key_cache_shape="1",
        value_cache_shape="1",
        pod_ip="127.0.0.1",
        engine_worker_queue_port=8000,
        ipc_suffix="pid",
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_launch_cache_manager_initializes_processes(place: Place, ranks: int) -> None:
    """The same. Given an engine of some ranks, when workers are launched, then there is one for each, as a list."""
    manager = place.manager(tensor_parallel_size=ranks)

    processes = launched(manager, ranks)

    assert isinstance(processes, list)
    assert len(processes) == ranks
    [order] = place.worker_launcher.orders
    assert (order.index, order.pool, order.ranks) == (place.index, manager.index.gpu_pool, ranks)
    assert (order.layers, order.dtype, order.sends) == (3, "float16", False)
    assert order.key_shape == order.value_shape == (6, 4 // ranks, 2, 8)
    assert order.device_ids == tuple(range(ranks))


def test_launch_cache_manager_invokes_splitwise_messager(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simpler on purpose: the workers that swap also send, so the messager starts them all and there are none beside.

    Given a decode engine, when workers are launched, then the messager is asked once, and its order says that it sends.
    """
    manager = place.manager(role="decode")
    asked: list[tuple[object, ...]] = []
    messager: Callable[..., object] = manager.launch_cache_messager

    def counted(*given: object) -> object:
        asked.append(given)
        return messager(*given)

    monkeypatch.setattr(manager, "launch_cache_messager", counted)

    processes = launched(manager)

    assert len(processes) == len(asked) == 1
    [order] = place.worker_launcher.orders
    assert order.sends


def test_launch_cache_manager_errors_when_messager_fails(place: Place) -> None:
    """The same. Given workers that do not start, when a decode engine launches them, then RuntimeError."""
    manager = place.manager(role="decode")
    place.worker_launcher.fails = "rank 0 ended with 2"

    with pytest.raises(RuntimeError, match="did not start"):
        launched(manager)


def test_launch_cache_manager_waits_for_signals_with_hierarchical_cache(place: Place) -> None:
    """Better on purpose: being ready is what the launcher answers with, and results come through the log that the index
    follows, so there is no thread to forget.

    Given a host tier, when workers are launched, then the order names it; and results are heard afterwards.
    """
    manager = place.manager(num_gpu_blocks=2, num_cpu_blocks=2)

    processes = launched(manager)

    assert len(processes) == 1
    [order] = place.worker_launcher.orders
    assert (order.host_pool, order.host_blocks) == ("cpu:host", 2)
    cache(manager, [1, 2, 3, 4])
    with place.workers(manager):
        evict(manager, 2)
    assert manager.gpu_free_block_list == [0, 1]


def test_launch_cache_messager_waits_for_ready_signal(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same. Given workers that are not ready at first, when they are launched, then the call returns when they are."""
    manager = place.manager()
    ready, started = threading.Event(), threading.Event()
    launch = place.worker_launcher.launch

    class Slow:
        def launch(self, order: object) -> object:
            started.set()
            assert ready.wait(20.0)
            return launch(order)  # type: ignore[arg-type]

    monkeypatch.setattr(place, "worker_launcher", Slow())
    answers: list[list[Process] | None] = []
    thread = threading.Thread(target=lambda: answers.append(messaged(manager)))
    thread.start()
    assert started.wait(20.0)
    assert answers == []

    ready.set()
    thread.join(20.0)

    [processes] = answers
    assert processes is not None
    assert len(processes) == 1


def test_launch_cache_messager_returns_none_when_process_fails(place: Place) -> None:
    """The same, and the operator is told what the process said.

    Given a worker that ends early, when the messager is launched, then None.
    """
    manager = place.manager()
    place.worker_launcher.fails = "rank 0 ended with 2: no such device"

    assert messaged(manager) is None

    assert "no such device" in place.notices[0]


@pytest.mark.parametrize("role", ["mixed", "prefill"])
def test_launch_cache_manager_formats_value_cache_shape(place: Place, role: str) -> None:
    """The same. Given a value cache of shape [2, 3], when workers are launched, then it reaches them as "2,3"."""
    manager = place.manager(role=role, attention_backend=ShapesOf([1], [2, 3]))

    launched(manager)

    [order] = place.worker_launcher.orders
    assert order.value_shape is not None
    assert (format_shape(order.key_shape), format_shape(order.value_shape)) == ("1", "2,3")


def test_get_kv_cache_shape_returns_shape_from_backend(place: Place) -> None:
    """The same. Given a backend and a quantization, when the shape of 5 blocks is asked for, then the backend says it."""
    manager = place.manager(attention_backend=Quantized(), quantization="int8")

    key_shape, value_shape = manager.get_kv_cache_shape(5)

    assert (key_shape, value_shape) == ([5, 2], [3, "int8"])
