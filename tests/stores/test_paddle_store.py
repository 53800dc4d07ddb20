"""What only the paddle store does: tensors, and the path to a GPU with host memory in the GPU's place."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from events.errors import InvalidInput
from tests.stores.given import (
    EXTRAS_VARIABLE,
    INDEX,
    LARGER,
    SMALL,
    OtherProcess,
    content,
    hash_of,
    import_paddle,
    import_paddle_for_gpu,
)
from workers.block_moves import Span
from workers.layout import CacheLayout
from workers.numpy_store import NumpyStore
from workers.paddle_store import PaddleStore
from workers.pointer_copy import HostMemory
from workers.segment_header import IPC_HANDLE_BYTES
from workers.shared_memory import SHARED_FOLDER
from workers.store import MemoryGone


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


# --- paddle itself ----------------------------------------------------------------------------------

IMPORT = """
import os, signal, sys
from workers.paddle_store import PaddleStore
if sys.argv[1] == "theirs":
    import paddle
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append("told to stop"))
PaddleStore("index", 0)
os.kill(os.getpid(), signal.SIGTERM)
sys.stdout.write(*told)
"""


@pytest.mark.parametrize("imported", ["by us", "theirs"])
def test_a_worker_hears_that_it_shall_stop(imported: str) -> None:
    """Paddle's import takes SIGTERM for a stack trace: every stop of a worker would cut off the copy at hand.

    Given a process that handles SIGTERM, when it makes a store and gets one, then it is told, and goes on; and what
    paddle's import has to say about its build is not heard, unless it was not our import.
    """
    import_paddle()
    ended = subprocess.run([sys.executable, "-c", IMPORT, imported], capture_output=True, timeout=60, check=False)

    assert (ended.returncode, ended.stdout) == (0, b"told to stop")
    if imported == "by us":
        assert ended.stderr == b""


def test_make_test_does_not_go_without_paddle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the store tests would be skipped for months before anybody reads the list of skips.

    Given no paddle, when a test needs it, then skipped; where the Makefile says that it was installed, failed.
    """
    makefile = Path(__file__).parents[2] / "Makefile"
    assert f"{EXTRAS_VARIABLE}=paddle $(PYTEST)" in makefile.read_text()
    monkeypatch.setitem(sys.modules, "paddle", None)
    monkeypatch.delenv(EXTRAS_VARIABLE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="not installed"):
        import_paddle()
    monkeypatch.setenv(EXTRAS_VARIABLE, "paddle")
    with pytest.raises(pytest.fail.Exception, match=r"have to run here: .*statecore\[paddle\]"):
        import_paddle()


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
    with pytest.raises(InvalidInput, match=r"cudaSetDevice failed on GPU 63|needs cuda-python"):
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


# --- a pretended GPU --------------------------------------------------------------------------------


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


def test_memory_that_cannot_be_pinned_is_given_back(
    tmp_path: Path, gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every failed start of a worker would leave a host pool of memory behind.

    Given a GPU that pins nothing, when a pool is made, then refused and no file is left; when opened, it stays.
    """

    def refuse(_address: int, _size: int) -> None:
        raise InvalidInput("cudaHostRegister failed")

    maker = PaddleStore(INDEX, 0, folder=tmp_path)
    monkeypatch.setattr(gpu, "pin", refuse)
    store = PaddleStore(INDEX, 0, folder=tmp_path, device=gpu)
    with pytest.raises(InvalidInput, match="cudaHostRegister failed"):
        store.create("host", "cpu", LARGER)
    assert list(tmp_path.iterdir()) == []
    maker.create("host", "cpu", LARGER)
    with pytest.raises(InvalidInput, match="cudaHostRegister failed"):
        store.attach("host")
    assert maker.read("host", 0) == bytes(LARGER.bytes_per_block)
    assert maker.unlink("host"), "the refused store still holds it"


def test_a_paddle_without_cuda_makes_no_gpu_pool(tmp_path: Path, gpu: PretendedGpu) -> None:
    """A worker would die of a C++ stack trace.

    Given a paddle for CPUs, when it shall make a pool on a GPU, then refused with what is missing.
    """
    if sys.modules["paddle"].is_compiled_with_cuda():
        pytest.skip("this paddle was built with CUDA")
    store = PaddleStore(INDEX, 0, "gpu:0", tmp_path, device=gpu)
    with pytest.raises(InvalidInput, match="built without CUDA and cannot make pool 'gpu-0' on gpu:0"):
        store.create("gpu-0", "gpu", SMALL)
    assert list(tmp_path.iterdir()) == []


# --- a real GPU -------------------------------------------------------------------------------------


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, as the pools of an index are: CUDA page-locks no file that lies on a disk."""
    with tempfile.TemporaryDirectory(dir=SHARED_FOLDER) as made:
        yield Path(made)


@pytest.fixture
def on_gpu(folder: Path) -> Iterator[Any]:
    """Opens stores on place gpu:0, where there is one; closes them after the test."""
    import_paddle_for_gpu()
    opened: list[PaddleStore] = []

    def open_one() -> PaddleStore:
        opened.append(PaddleStore(INDEX, 0, "gpu:0", folder))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


def test_blocks_survive_the_way_from_a_gpu_and_back(on_gpu: Any) -> None:
    """A prompt would continue from another prompt's keys and values after a swap.

    Given a pool on the GPU, when every block went to the host and back to another place, then every byte is right.
    """
    store = on_gpu()
    store.create("gpu-0", "gpu", SMALL)
    store.create("host", "cpu", LARGER)
    for block in range(SMALL.num_blocks):
        store.write("gpu-0", block, content(block))
    assert store.copy("gpu-0", "host", ((0, 8),), ((5, 3), (12, 5))) == 8 * SMALL.bytes_per_block
    assert [store.read("host", block) for block in (5, 6, 7, 12, 13, 14, 15, 16)] == list(map(content, range(8)))
    for block in range(SMALL.num_blocks):
        store.write("gpu-0", block, bytes(SMALL.bytes_per_block))
    store.copy("host", "gpu-0", ((12, 5), (5, 3)), ((0, 8),))

    assert [store.read("gpu-0", block) for block in range(8)] == list(map(content, (3, 4, 5, 6, 7, 0, 1, 2)))
    tensors = [tensor.view("uint8").numpy() for tensor in store.tensors("gpu-0")]
    assert b"".join(tensor[0].tobytes() for tensor in tensors) == content(3)


def test_a_worker_process_opens_what_an_engine_published_on_a_gpu(on_gpu: Any, folder: Path) -> None:
    """Blocks of engine-made tensors could not be swapped out and back by another process.

    Given tensors an engine made on the GPU, all cut from one allocation or not, when a worker process attaches to them
    and copies every block out and back elsewhere, then the engine's tensors hold every byte.
    """
    paddle, engine = sys.modules["paddle"], on_gpu()
    shape = [SMALL.num_blocks, *SMALL.block_shape]
    tensors = [paddle.zeros(shape, dtype=SMALL.dtype, device="gpu:0") for _ in range(SMALL.tensors)]
    paddle.device.synchronize("gpu:0")
    engine.publish("gpu-0", SMALL, tensors)
    engine.create("host", "cpu", LARGER)
    for block in range(SMALL.num_blocks):
        engine.fill("gpu-0", block, hash_of(block))
    with OtherProcess(folder, kind=partial(PaddleStore, place="gpu:0")) as worker:
        worker.do("attach", "gpu-0", SMALL)
        worker.do("attach", "host", LARGER)
        worker.do("copy", "gpu-0", "host", ((0, 8),), ((10, 8),))
        assert all(engine.matches("host", 10 + block, hash_of(block)) for block in range(8))
        worker.do("copy", "host", "gpu-0", ((10, 4), (14, 4)), ((4, 4), (0, 4)))

    assert all(engine.matches("gpu-0", block, hash_of((block + 4) % 8)) for block in range(8))


def test_gpu_memory_of_a_killed_engine_is_not_opened(on_gpu: Any, folder: Path) -> None:
    """A worker would copy from memory that the driver has given to somebody else.

    Given an engine on the GPU that was killed, when a worker attaches to its pool, then MemoryGone.
    """
    worker = on_gpu()
    with OtherProcess(folder, kind=partial(PaddleStore, place="gpu:0")) as engine:
        engine.do("create", "gpu-0", "gpu", SMALL)
        worker.attach("gpu-0", SMALL)
        engine.kill()
    with pytest.raises(MemoryGone, match="went with its creator"):
        on_gpu().attach("gpu-0", SMALL)
