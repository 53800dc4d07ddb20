"""What only the paddle store does: tensors, and the path to a GPU with host memory in the GPU's place."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from events.errors import InvalidInput
from tests.stores.given import INDEX, LARGER, SMALL, content, hash_of, import_paddle
from workers.block_moves import Span
from workers.layout import CacheLayout
from workers.numpy_store import NumpyStore
from workers.paddle_store import PaddleStore
from workers.pointer_copy import HostMemory
from workers.segment_header import IPC_HANDLE_BYTES


class PretendedGpu(HostMemory):
    """Host memory with the manners of a GPU: what is not pinned or exported may not be touched."""

    def __init__(self) -> None:
        self.pinned: dict[int, int] = {}
        self.exported: list[int] = []
        self.moved: list[Span] = []
        self.closed = False

    def move(self, spans: Sequence[Span]) -> None:
        self.moved = list(spans)
        super().move(spans)

    def pin(self, address: int, size: int) -> None:
        self.pinned[address] = size

    def unpin(self, address: int) -> None:
        del self.pinned[address]

    def export(self, address: int) -> bytes:
        self.exported.append(address)
        return b"handle".ljust(IPC_HANDLE_BYTES - 8, b"\0") + address.to_bytes(8, "little")

    def open(self, exported: bytes) -> int:
        assert exported.startswith(b"handle")
        return int.from_bytes(exported[-8:], "little")

    def close(self) -> None:
        self.closed = True


def test_paddle_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without paddle would see an ImportError from deep inside a worker."""
    monkeypatch.setitem(sys.modules, "paddle", None)
    with pytest.raises(InvalidInput, match=r"statecore\[paddle\]"):
        PaddleStore(INDEX, 0, folder=tmp_path)


@pytest.mark.parametrize("place", ["gpu", "gpu:", "gpu:x", "tpu:0", ""])
def test_refuses_other_places(place: str) -> None:
    """A mistyped place would put the cache into host memory."""
    import_paddle()
    with pytest.raises(InvalidInput, match="place must be 'cpu' or 'gpu:<number>'"):
        PaddleStore(INDEX, 0, place)


def test_a_machine_without_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker started for a GPU it does not have would die without a reason."""
    import_paddle()
    with pytest.raises(InvalidInput, match=r"cannot be used: cudaSetDevice failed|needs cuda-python"):
        PaddleStore(INDEX, 0, "gpu:63")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(InvalidInput, match=r"statecore\[gpu\]"):
        PaddleStore(INDEX, 0, "gpu:0")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "fp8"])
def test_tensors_are_the_blocks(tmp_path: Path, dtype: str) -> None:
    """What an engine writes into its cache tensors would not be what the worker swaps."""
    import_paddle()
    layout = CacheLayout(2, 4, (3, 5), dtype)
    engine, worker = PaddleStore(INDEX, 0, folder=tmp_path), NumpyStore(INDEX, 0, tmp_path)
    engine.create("gpu-0", "gpu", layout)
    worker.attach("gpu-0")
    tensors: Any = engine.tensors("gpu-0")
    assert [list(tensor.shape) for tensor in tensors] == [[4, 3, 5]] * 4
    assert {str(tensor.dtype) for tensor in tensors} == {f"paddle.{dtype.replace('fp8', 'float8_e4m3fn')}"}
    worker.fill("gpu-0", 2, hash_of(2))
    assert b"".join(tensor.view("uint8")[2].numpy().tobytes() for tensor in tensors) == worker.read("gpu-0", 2)
    worker.close()
    engine.close()


def test_a_tensor_keeps_the_memory(tmp_path: Path) -> None:
    """An engine that closes its store before its last kernel has run would read memory that is gone."""
    import_paddle()
    store, reader = PaddleStore(INDEX, 0, folder=tmp_path), NumpyStore(INDEX, 0, tmp_path)
    store.create("gpu-0", "gpu", SMALL)
    store.fill("gpu-0", 2, hash_of(2))
    tensors: Any = store.tensors("gpu-0")
    store.close()
    reader.attach("gpu-0")
    assert not reader.unlink("gpu-0"), "nobody seems to use it"
    assert any(tensors[0].view("uint8")[2].numpy().reshape(-1))


@pytest.fixture
def gpu() -> PretendedGpu:
    import_paddle()
    return PretendedGpu()


def made_by_an_engine(layout: CacheLayout) -> Any:
    paddle: Any = sys.modules["paddle"]
    shape = [layout.num_blocks, *layout.block_shape]
    return [paddle.zeros(shape, dtype=layout.dtype) for _ in range(layout.tensors)]


def test_a_worker_opens_what_an_engine_published(tmp_path: Path, gpu: PretendedGpu) -> None:
    """Blocks of engine-made tensors could not be swapped out and back."""
    engine, worker = (PaddleStore(INDEX, 0, folder=tmp_path, device=gpu) for _ in range(2))
    tensors = made_by_an_engine(SMALL)
    engine.publish("gpu-0", SMALL, tensors)
    assert gpu.exported == [tensor.data_ptr() for tensor in tensors]
    engine.write("gpu-0", 3, content(3))

    worker.attach("gpu-0", SMALL)
    worker.create("host", "cpu", LARGER)
    assert list(gpu.pinned.values()) == [LARGER.total_bytes]
    worker.copy("gpu-0", "host", ((3, 2),), ((18, 2),))
    size = SMALL.bytes_per_block_per_tensor
    (pinned,) = gpu.pinned
    assert gpu.moved == [
        (pinned + number * LARGER.bytes_per_tensor + 18 * size, tensor.data_ptr() + 3 * size, 2 * size)
        for number, tensor in enumerate(tensors)
    ]
    worker.copy("host", "gpu-0", ((18, 1),), ((0, 1),))
    assert engine.read("gpu-0", 0) == content(3)
    assert b"".join(tensor.view("uint8")[0].numpy().tobytes() for tensor in tensors) == content(3)
    assert worker.tensors("gpu-0") == ()
    worker.close()
    engine.close()
    assert gpu.pinned == {}
    assert gpu.closed


def test_the_store_makes_tensors_of_its_own(tmp_path: Path, gpu: PretendedGpu) -> None:
    """Without an engine's tensors there would be no GPU pool for the worker to hold."""
    store = PaddleStore(INDEX, 0, folder=tmp_path, device=gpu)
    assert store.create("gpu-0", "gpu", SMALL).created
    store.fill("gpu-0", 1, hash_of(1))
    assert store.matches("gpu-0", 1, hash_of(1))
    assert not store.matches("gpu-0", 2, hash_of(1))
    assert gpu.pinned == {}
    assert store.unlink("gpu-0")
    assert list(tmp_path.iterdir()) == []
    store.close()


def test_refuses_tensors_of_another_layout(tmp_path: Path, gpu: PretendedGpu) -> None:
    """Handles would be published for memory that is smaller than the pool."""
    store = PaddleStore(INDEX, 0, folder=tmp_path, device=gpu)
    with pytest.raises(InvalidInput, match="6 tensors, keys and values; 5 were given"):
        store.publish("gpu-0", SMALL, made_by_an_engine(SMALL)[:5])
    for other in (LARGER, CacheLayout(3, 8, (2, 5, 4), "bfloat16"), CacheLayout(3, 8, (2, 4, 5), "int8")):
        with pytest.raises(InvalidInput, match="tensor 0 has shape"):
            store.publish("gpu-0", SMALL, made_by_an_engine(other))
    turned = [tensor.transpose([0, 1, 3, 2]) for tensor in made_by_an_engine(CacheLayout(3, 8, (2, 5, 4), "bfloat16"))]
    with pytest.raises(InvalidInput, match="contiguous: False"):
        store.publish("gpu-0", SMALL, turned)
    assert gpu.exported == []
    assert list(tmp_path.iterdir()) == []


def test_a_pool_is_published_once(tmp_path: Path, gpu: PretendedGpu) -> None:
    """An engine would compute into tensors that are not the pool's."""
    first, second = (PaddleStore(INDEX, 0, folder=tmp_path, device=gpu) for _ in range(2))
    first.publish("gpu-0", SMALL, made_by_an_engine(SMALL))
    with pytest.raises(InvalidInput, match="attach to it"):
        second.publish("gpu-0", SMALL, made_by_an_engine(SMALL))
    assert not second.attach("gpu-0").created
    for store in (second, first):
        store.close()


def test_gpu_memory_needs_a_gpu(tmp_path: Path, gpu: PretendedGpu) -> None:
    """A worker on CPU place would read handles as blocks."""
    engine, worker = PaddleStore(INDEX, 0, folder=tmp_path, device=gpu), PaddleStore(INDEX, 0, folder=tmp_path)
    engine.create("gpu-0", "gpu", SMALL)
    with pytest.raises(InvalidInput, match="cannot open it"):
        worker.attach("gpu-0")
    with pytest.raises(InvalidInput, match="no GPU memory"):
        worker.publish("gpu-1", SMALL, [])
    with pytest.raises(InvalidInput, match="not open"):
        worker.read("gpu-0", 0)
    engine.close()
