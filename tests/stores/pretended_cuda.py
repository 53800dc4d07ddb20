"""cuda-python and a GPU in host memory: what `workers/cuda_memory.py` calls, with the manners of the real ones.

Owns two stand-ins for `cuda.bindings.runtime` and `cuda.bindings.driver`. Their names, arguments and results are those of
cuda-bindings 12.9 and 13.5 (`test_cuda_memory.py` compares the names where that is installed). Strict where the real
ones let a mistake pass in a test: bytes move only when their stream is waited for, a thread that has not chosen the GPU
is refused, and nothing is closed, destroyed or pinned twice.
"""

# ruff: noqa: N802, N815 (the names are CUDA's)

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

GPU = 0
FAILED_NOWHERE = (1 << 64) - 1
"""What CUDA 12 answers as the index of the copy that failed; CUDA 13 answers none."""
HANDLE_BYTES = 64


class Error(enum.IntEnum):
    """`cudaError_t`."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalAddress = 700
    cudaErrorHostMemoryAlreadyRegistered = 712
    cudaErrorHostMemoryNotRegistered = 713


class Result(enum.IntEnum):
    """`CUresult`."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_NOT_FOUND = 500


class Direction(enum.IntEnum):
    """`cudaMemcpyKind`."""

    cudaMemcpyDefault = 4


class SourceOrder(enum.IntEnum):
    """`cudaMemcpySrcAccessOrder`."""

    cudaMemcpySrcAccessOrderStream = 1


class Attributes:
    """`cudaMemcpyAttributes`."""

    srcAccessOrder: SourceOrder | None = None


class MemHandle:
    """`cudaIpcMemHandle_t`: 64 bytes at `getPtr()`."""

    def __init__(self) -> None:
        self._bytes = ctypes.create_string_buffer(HANDLE_BYTES)

    def getPtr(self) -> int:
        return ctypes.addressof(self._bytes)


class PretendedDriver:
    CUresult = Result

    def __init__(self, runtime: PretendedRuntime) -> None:
        self._runtime = runtime

    def cuMemGetAddressRange(self, address: int) -> tuple[Any, ...]:
        for base, memory in self._runtime.allocated.items():
            if base <= address < base + memory.size:
                return Result.CUDA_SUCCESS, base, memory.size
        return Result.CUDA_ERROR_NOT_FOUND, None, None


class PretendedRuntime:
    """`cuda.bindings.runtime` with one GPU.

    Attributes:
        allocated: GPU memory by address.
        pinned: host memory by address: its size.
        opened: addresses that were opened by handle and not closed.
        streams: what is queued in each stream that exists.
        fails: answers this error to calls of these names.
        version: of the driver, as it says it.
    """

    cudaError_t = Error
    cudaMemcpyKind = Direction
    cudaMemcpyAttributes = Attributes
    cudaMemcpySrcAccessOrder = SourceOrder
    cudaIpcMemHandle_t = MemHandle
    cudaStreamNonBlocking = 1
    cudaHostRegisterPortable = 1
    cudaIpcMemLazyEnablePeerAccess = 1

    def __init__(self, version: int = 13_000) -> None:
        self.version = version
        self.allocated: dict[int, npt.NDArray[np.uint8]] = {}
        self.pinned: dict[int, int] = {}
        self.opened: list[int] = []
        self.streams: dict[int, list[tuple[int, int, int]]] = {}
        self.fails: dict[str, Error] = {}
        self._current = threading.local()
        self._made = 0

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        """A call: fails if it shall, or if its thread has not chosen the GPU; else what the method `_name` answers."""
        if not name.startswith("cuda"):
            raise AttributeError(name)
        call, results = _CALLS[name]

        def checked(*arguments: Any) -> tuple[Any, ...]:
            error = self.fails.get(name, Error.cudaSuccess)
            chosen = name in {"cudaSetDevice", "cudaGetErrorString"} or getattr(self._current, "gpu", None) == GPU
            if not chosen:
                error = Error.cudaErrorInvalidDevice
            return (error, *[None] * results) if error else call(self, *arguments)

        return checked

    def _set_device(self, device: int) -> tuple[Any, ...]:
        if device != GPU:
            return (Error.cudaErrorInvalidDevice,)
        self._current.gpu = device
        return (Error.cudaSuccess,)

    def _copy_now(self, destination: int, source: int, size: int, kind: Direction) -> tuple[Any, ...]:
        assert kind is Direction.cudaMemcpyDefault
        ctypes.memmove(destination, source, size)
        return (Error.cudaSuccess,)

    def _driver_version(self) -> tuple[Any, ...]:
        return Error.cudaSuccess, self.version

    def _error_string(self, error: Error) -> tuple[Any, ...]:
        return Error.cudaSuccess, f"text of {error.name}".encode()

    def _malloc(self, size: int) -> tuple[Any, ...]:
        memory = np.zeros(size, np.uint8)
        self.allocated[memory.ctypes.data] = memory
        return Error.cudaSuccess, memory.ctypes.data

    def _free(self, address: int) -> tuple[Any, ...]:
        return (Error.cudaSuccess if self.allocated.pop(address, None) is not None else Error.cudaErrorInvalidValue,)

    def _stream(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        self._made += 1
        self.streams[self._made] = []
        return Error.cudaSuccess, self._made

    def _destroy(self, stream: int) -> tuple[Any, ...]:
        return (Error.cudaErrorInvalidResourceHandle if self.streams.pop(stream, None) is None else Error.cudaSuccess,)

    def _copy(self, destination: int, source: int, size: int, kind: Direction, stream: int) -> tuple[Any, ...]:
        assert kind is Direction.cudaMemcpyDefault
        self.streams[stream].append((destination, source, size))
        return (Error.cudaSuccess,)

    def _batch(
        self,
        destinations: list[int],
        sources: list[int],
        sizes: list[int],
        count: int,
        attributes: list[Attributes],
        begin_at: list[int],
        kinds: int,
        stream: int,
    ) -> tuple[Any, ...]:
        """In no order that anybody may count on."""
        assert self.version >= 12_080, "an older driver does not have it"
        if not count or (len(attributes), begin_at, kinds) != (1, [0], 1) or attributes[0].srcAccessOrder is None:
            return (Error.cudaErrorInvalidValue,)
        assert len(destinations) == len(sources) == len(sizes) == count
        self.streams[stream] += reversed(list(zip(destinations, sources, sizes, strict=True)))
        return (Error.cudaSuccess, FAILED_NOWHERE) if self.version < 13_000 else (Error.cudaSuccess,)

    def _synchronize(self, stream: int) -> tuple[Any, ...]:
        for destination, source, size in self.streams[stream]:
            ctypes.memmove(destination, source, size)
        self.streams[stream].clear()
        return (Error.cudaSuccess,)

    def _register(self, address: int, size: int, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaHostRegisterPortable
        if address in self.pinned:
            return (Error.cudaErrorHostMemoryAlreadyRegistered,)
        self.pinned[address] = size
        return (Error.cudaSuccess,)

    def _unregister(self, address: int) -> tuple[Any, ...]:
        known = self.pinned.pop(address, None) is not None
        return (Error.cudaSuccess if known else Error.cudaErrorHostMemoryNotRegistered,)

    def _get_handle(self, base: int) -> tuple[Any, ...]:
        if base not in self.allocated:
            return Error.cudaErrorInvalidValue, None
        handle = MemHandle()
        ctypes.memmove(handle.getPtr(), base.to_bytes(8, "little").rjust(HANDLE_BYTES, b"h"), HANDLE_BYTES)
        return Error.cudaSuccess, handle

    def _open_handle(self, handle: MemHandle, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaIpcMemLazyEnablePeerAccess
        text = ctypes.string_at(handle.getPtr(), HANDLE_BYTES)
        base = int.from_bytes(text[-8:], "little")
        if not text.startswith(b"h") or base not in self.allocated:
            return Error.cudaErrorInvalidValue, None
        assert base not in self.opened, "each allocation is opened once"
        self.opened.append(base)
        return Error.cudaSuccess, base

    def _close_handle(self, base: int) -> tuple[Any, ...]:
        self.opened.remove(base)
        return (Error.cudaSuccess,)


_CALLS: dict[str, tuple[Callable[..., tuple[Any, ...]], int]] = {
    "cudaSetDevice": (PretendedRuntime._set_device, 0),
    "cudaDriverGetVersion": (PretendedRuntime._driver_version, 1),
    "cudaGetErrorString": (PretendedRuntime._error_string, 1),
    "cudaMalloc": (PretendedRuntime._malloc, 1),
    "cudaFree": (PretendedRuntime._free, 0),
    "cudaStreamCreateWithFlags": (PretendedRuntime._stream, 1),
    "cudaStreamDestroy": (PretendedRuntime._destroy, 0),
    "cudaStreamSynchronize": (PretendedRuntime._synchronize, 0),
    "cudaMemcpy": (PretendedRuntime._copy_now, 0),
    "cudaMemcpyAsync": (PretendedRuntime._copy, 0),
    "cudaMemcpyBatchAsync": (PretendedRuntime._batch, 0),
    "cudaHostRegister": (PretendedRuntime._register, 0),
    "cudaHostUnregister": (PretendedRuntime._unregister, 0),
    "cudaIpcGetMemHandle": (PretendedRuntime._get_handle, 1),
    "cudaIpcOpenMemHandle": (PretendedRuntime._open_handle, 1),
    "cudaIpcCloseMemHandle": (PretendedRuntime._close_handle, 0),
}
"""Each call, and how many results stand after its error code."""

NAMES = {
    "runtime": sorted([*_CALLS, *(name for name in vars(PretendedRuntime) if name.startswith("cuda"))]),
    "driver": ["CUresult", "cuMemGetAddressRange"],
}
