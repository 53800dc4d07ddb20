"""GPU memory by address: against a pretended GPU always, and against a real one where there is one."""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from events.errors import InvalidInput
from tests.stores.given import skip_without_gpu
from tests.stores.pretended_cuda import NAMES, Error, PretendedDriver, PretendedRuntime
from workers.cuda_memory import CudaMemory
from workers.segment_header import IPC_HANDLE_BYTES
from workers.store import CopyFailed

SIZE = 1 << 20


COPIES = {13_000: "cudaMemcpyBatchAsync", 12_090: "cudaMemcpyBatchAsync", 12_070: "cudaMemcpyAsync"}
"""What drivers copy with: in batches, with one result or two, and not in batches."""


def pretend(monkeypatch: pytest.MonkeyPatch, version: int) -> PretendedRuntime:
    runtime = PretendedRuntime(version)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", PretendedDriver(runtime))
    return runtime


@pytest.fixture(params=list(COPIES))
def pretended(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PretendedRuntime:
    return pretend(monkeypatch, request.param)


@pytest.fixture(params=[*COPIES, "gpu"])
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`cuda.bindings.runtime`, pretended or real."""
    if request.param != "gpu":
        return pretend(monkeypatch, request.param)
    skip_without_gpu()
    return importlib.import_module("cuda.bindings.runtime")


@pytest.fixture
def on_gpu(runtime: Any) -> Iterator[Callable[[], int]]:
    """Gives GPU memory of `SIZE` bytes, and frees it after the test."""
    addresses = []

    def allocate() -> int:
        error, address = runtime.cudaMalloc(SIZE)
        assert error == runtime.cudaError_t.cudaSuccess
        addresses.append(int(address))
        return addresses[-1]

    yield allocate
    for address in addresses:
        assert runtime.cudaFree(address) == (runtime.cudaError_t.cudaSuccess,)


def random_bytes(seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, SIZE, dtype=np.uint8)


# --- on a GPU, pretended or real --------------------------------------------------------------------


@pytest.mark.parametrize("pinned", [False, True])
def test_bytes_survive_the_way_to_the_gpu_and_back(on_gpu: Callable[[], int], pinned: bool) -> None:
    """A prompt would continue from bytes that never were its keys and values.

    Given three pieces, when copied to the GPU, inside it in another order, and back, then every byte is right, and
    what lies between the pieces is as it was.
    """
    memory = CudaMemory(0)
    there, here, back = random_bytes(1), on_gpu(), np.zeros(SIZE, np.uint8)
    if pinned:
        for array in (there, back):
            memory.pin(array.ctypes.data, SIZE)
    other, half, quarter = on_gpu(), SIZE // 2, SIZE // 4
    memory.move([(here, there.ctypes.data, SIZE)])
    memory.move([(other + half, here, quarter), (other, here + half, quarter)])
    memory.move([(back.ctypes.data + at, other + at, quarter) for at in (0, half)])
    if pinned:
        for array in (there, back):
            memory.unpin(array.ctypes.data)
    memory.close()

    assert np.array_equal(back[:quarter], there[half : half + quarter])
    assert np.array_equal(back[half : half + quarter], there[:quarter])
    assert not back[quarter:half].any()
    assert not back[half + quarter :].any()


@pytest.mark.parametrize("pieces", [0, 1, 64, 65, 200])
def test_many_small_pieces_each_go_to_their_place(on_gpu: Callable[[], int], pieces: int) -> None:
    """Blocks of one transfer would be mixed up, or the last of them be left out.

    Given so many pieces, when they go to the GPU and come back in other orders, then each is at its place, and nothing else
    has changed.
    """
    memory, size, chance = CudaMemory(0), 4096, np.random.default_rng(7)
    there, here, back = random_bytes(8), on_gpu(), np.zeros(SIZE, np.uint8)
    on_device, in_back = (chance.permutation(SIZE // size)[:pieces] for _ in range(2))
    source, target = there.ctypes.data, back.ctypes.data
    memory.move([(here + size * int(at), source + size * n, size) for n, at in enumerate(on_device)])
    memory.move([(target + size * int(at), here + size * int(on_device[n]), size) for n, at in enumerate(in_back)])
    memory.close()

    expected = np.zeros((SIZE // size, size), np.uint8)
    expected[in_back] = there.reshape(-1, size)[:pieces]
    assert np.array_equal(back.reshape(-1, size), expected)


def test_a_handle_says_where_in_its_allocation(on_gpu: Callable[[], int]) -> None:
    """A tensor that a framework cut out of a large piece would be looked for at the start of the piece.

    Given an address inside an allocation, when exported, then the handle is that of the allocation, and the offset.
    """
    memory, base = CudaMemory(0), on_gpu()
    first, second = memory.export(base), memory.export(base + 4096)
    memory.close()

    assert len(first) == len(second) == IPC_HANDLE_BYTES
    assert first[:64] == second[:64] != bytes(64)
    assert (int.from_bytes(first[64:], "little"), int.from_bytes(second[64:], "little")) == (0, 4096)


def test_another_thread_may_copy(on_gpu: Callable[[], int]) -> None:
    """The device of a thread is its own: a store made in one thread would copy on GPU 0 in another.

    Given a memory made here, when another thread copies, pins, exports and closes, then it does.
    """
    memory, here, there = CudaMemory(0), on_gpu(), random_bytes(2)
    back = np.zeros(SIZE, np.uint8)
    with ThreadPoolExecutor(1) as threads:
        for call in (
            lambda: memory.pin(back.ctypes.data, SIZE),
            lambda: memory.move([(here, there.ctypes.data, SIZE)]),
            lambda: memory.move([(back.ctypes.data, here, SIZE)]),
            lambda: memory.unpin(back.ctypes.data),
            lambda: memory.export(here),
            memory.close,
        ):
            threads.submit(call).result()

    assert np.array_equal(back, there)


@pytest.mark.usefixtures("runtime")
def test_what_is_no_gpu_memory_is_not_exported() -> None:
    """Handles of host memory would be published, and every worker fail.

    Given host memory, when exported, then refused with the address.
    """
    memory, array = CudaMemory(0), np.zeros(SIZE, np.uint8)
    with pytest.raises(InvalidInput, match=f"{array.ctypes.data:#x}"):
        memory.export(array.ctypes.data)
    memory.close()


@pytest.mark.usefixtures("runtime")
def test_closing_twice_is_closing_once() -> None:
    """A worker that begins again would destroy a stream that is not its own any more.

    Given a memory that is closed, when closed again, then nothing happens.
    """
    memory = CudaMemory(0)
    memory.close()
    memory.close()


# --- what only a pretended GPU can do ---------------------------------------------------------------


def test_a_move_returns_when_the_bytes_have_arrived(pretended: PretendedRuntime) -> None:
    """A transfer would be reported as done while its copy is still queued.

    Given copies that run when their stream is waited for, when moved, then they have run; and the stream is our own.
    """
    memory = CudaMemory(0)
    (error, there), source = pretended.cudaMalloc(SIZE), random_bytes(3)
    memory.move([(there, source.ctypes.data, SIZE)])

    assert error == Error.cudaSuccess
    assert np.array_equal(pretended.allocated[there], source)
    assert list(pretended.streams.values()) == [[]]


def test_a_failed_copy_leaves_nothing_under_way(pretended: PretendedRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks would be given to somebody else while a queued copy still writes them (E-10).

    Given a call that is refused after one has queued copies, when moved, then CopyFailed with the reason, and the queue
    is empty.
    """
    memory, call = CudaMemory(0), COPIES[pretended.version]
    _, there = pretended.cudaMalloc(SIZE)
    source = random_bytes(4)
    queue = getattr(pretended, call)

    def second_refused(*arguments: Any) -> tuple[Any, ...]:
        return queue(*arguments) if not pretended.streams[1] else (Error.cudaErrorIllegalAddress,)

    monkeypatch.setattr(pretended, call, second_refused, raising=False)
    with pytest.raises(CopyFailed, match=rf"{call} failed on GPU 0: text of cudaErrorIllegalAddress \(700\)"):
        memory.move([(there + 8 * piece, source.ctypes.data, 8) for piece in range(100)])

    assert pretended.streams == {1: []}


@pytest.mark.parametrize("call", ["cudaSetDevice", "the copy", "cudaStreamSynchronize"])
def test_no_error_of_a_copy_is_passed_over(pretended: PretendedRuntime, call: str) -> None:
    """A transfer would be reported as done whose bytes never arrived.

    Given a call of a copy that fails, when moved, then CopyFailed naming it.
    """
    memory = CudaMemory(0)
    call = COPIES[pretended.version] if call == "the copy" else call
    pretended.fails[call] = Error.cudaErrorIllegalAddress
    with pytest.raises(CopyFailed, match=f"{call} failed"):
        memory.move([(1, 2, 3)])


@pytest.mark.parametrize(
    ("call", "use"),
    [
        ("cudaSetDevice", lambda _: CudaMemory(0)),
        ("cudaDriverGetVersion", lambda _: CudaMemory(0)),
        ("cudaStreamCreateWithFlags", lambda _: CudaMemory(0)),
        ("cudaHostRegister", lambda memory: memory.pin(4096, 4096)),
        ("cudaHostUnregister", lambda memory: memory.unpin(4096)),
        ("cudaIpcGetMemHandle", lambda memory: memory.export(next(iter(memory._runtime.allocated)))),
        ("cudaIpcOpenMemHandle", lambda memory: memory.open(bytes(IPC_HANDLE_BYTES))),
        ("cudaStreamDestroy", lambda memory: memory.close()),
    ],
)
def test_no_other_error_is_passed_over(pretended: PretendedRuntime, call: str, use: Callable[..., object]) -> None:
    """A pool would be opened that cannot be copied from.

    Given a call that fails, when made, then InvalidInput naming it, with CUDA's text and number.
    """
    memory = CudaMemory(0)
    pretended.cudaMalloc(SIZE)
    pretended.fails[call] = Error.cudaErrorInvalidValue
    with pytest.raises(InvalidInput, match=rf"{call} failed on GPU 0: text of cudaErrorInvalidValue \(1\)"):
        use(memory)


@pytest.mark.usefixtures("pretended")
def test_a_device_that_does_not_exist() -> None:
    """A worker of rank 7 on a machine with one GPU would copy on GPU 0."""
    with pytest.raises(InvalidInput, match="cudaSetDevice failed on GPU 7"):
        CudaMemory(7)


def test_an_allocation_is_opened_once_and_closed_once(pretended: PretendedRuntime) -> None:
    """The driver counts: a handle closed too often, or not at all, keeps GPU memory or takes it away.

    Given two tensors in one allocation and one in another, when all are opened, then each where it is; when closed,
    then nothing stays open.
    """
    engine, worker = CudaMemory(0), CudaMemory(0)
    (_, one), (_, two) = pretended.cudaMalloc(SIZE), pretended.cudaMalloc(SIZE)
    addresses = [one, one + 512, two]

    assert [worker.open(engine.export(address)) for address in addresses] == addresses
    assert sorted(pretended.opened) == sorted([one, two])
    worker.close()
    engine.close()
    assert pretended.opened == []
    assert pretended.streams == {}


# --- cuda-python ------------------------------------------------------------------------------------


def test_cuda_python_has_what_is_called() -> None:
    """A renamed call would be found on the first GPU, by a user.

    Given the cuda-python that is installed, then it has every name used here, its handle is 64 bytes at `getPtr()`,
    and its numbers are those the pretended one has.
    """
    real = {
        name: pytest.importorskip(f"cuda.bindings.{name}", reason="the gpu extra is not installed here")
        for name in NAMES
    }
    assert [(name, each) for name in NAMES for each in NAMES[name] if not hasattr(real[name], each)] == []
    handle = real["runtime"].cudaIpcMemHandle_t()
    ctypes.memmove(handle.getPtr(), bytes(range(64)), 64)
    assert ctypes.string_at(handle.getPtr(), 64) == bytes(range(64))
    assert {each.name: int(getattr(real["runtime"].cudaError_t, each.name)) for each in Error} == {
        each.name: int(each) for each in Error
    }


def test_without_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user would see an ImportError from deep inside a worker."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(InvalidInput, match=r"statecore\[gpu\]"):
        CudaMemory(0)
