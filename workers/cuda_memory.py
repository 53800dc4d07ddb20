"""GPU memory by raw address: copies on a stream of our own, page-locked host memory, handles for other processes.

Owns every call of cuda-python (`cuda.bindings`), and nothing else; works with the buffers of any framework.

**What has not been run.** This file was written on machines without a GPU. Its calls, their results and the two structures
it touches were checked against cuda-bindings 12.9 and 13.5, where every call was made and answered that there is no
driver. What a call does after that was only ever seen with host memory in the GPU's place. `tests/stores` has both, and
runs the same tests on a GPU where there is one.

**Order.** The stream is non-blocking: it does not wait for the engine's kernels. The index only lets a block be copied
that its engine has declared ready, which an engine does after its stream has passed the write (design, section 4).

**Handles** are for other processes: CUDA refuses to open one in the process that made it. They name memory of cudaMalloc;
memory of a virtual-memory or stream-ordered allocator has none, and publishing it is refused.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

from events.errors import InvalidInput, StateCoreError
from workers.block_moves import Span
from workers.segment_header import IPC_HANDLE_BYTES
from workers.store import CopyFailed

_HANDLE_BYTES: Final = 64  # CUDA_IPC_HANDLE_SIZE
_OFFSET_BYTES: Final = IPC_HANDLE_BYTES - _HANDLE_BYTES


class CudaMemory:
    """Implements `DeviceMemory` for one GPU and the process that uses it. Any thread may call, one at a time."""

    def __init__(self, device: int) -> None:
        """InvalidInput when cuda-python is missing or the device cannot be used."""
        self._runtime = _bindings("cuda.bindings.runtime")
        self._driver = _bindings("cuda.bindings.driver")
        self._device = device
        self._opened: dict[bytes, int] = {}
        self._stream: Any = None
        self._enter()
        (self._stream,) = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)

    def move(self, spans: Sequence[Span]) -> None:
        self._enter(CopyFailed)
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDefault  # the direction follows from the addresses
        try:
            for destination, source, size in spans:
                self._call("cudaMemcpyAsync", destination, source, size, kind, self._stream, failure=CopyFailed)
        finally:
            # Also after a failure: nobody may reuse a block that a queued copy still reads or writes (E-10).
            self._call("cudaStreamSynchronize", self._stream, failure=CopyFailed)

    def pin(self, address: int, size: int) -> None:
        self._enter()
        self._call("cudaHostRegister", address, size, self._runtime.cudaHostRegisterPortable)

    def unpin(self, address: int) -> None:
        self._enter()
        self._call("cudaHostUnregister", address)

    def export(self, address: int) -> bytes:
        """The handle names the whole allocation a framework cut the tensor from, so its offset goes with it."""
        self._enter()
        error, base, _ = self._driver.cuMemGetAddressRange(address)
        if error != self._driver.CUresult.CUDA_SUCCESS:
            raise InvalidInput(f"cuMemGetAddressRange({address:#x}) failed on GPU {self._device}: {error!r}")
        (handle,) = self._call("cudaIpcGetMemHandle", int(base))
        offset = (address - int(base)).to_bytes(_OFFSET_BYTES, "little")
        return ctypes.string_at(handle.getPtr(), _HANDLE_BYTES) + offset

    def open(self, exported: bytes) -> int:
        allocation, offset = exported[:_HANDLE_BYTES], int.from_bytes(exported[_HANDLE_BYTES:], "little")
        if allocation not in self._opened:  # tensors share allocations, and each is opened once
            self._enter()
            handle = self._runtime.cudaIpcMemHandle_t()
            ctypes.memmove(handle.getPtr(), allocation, _HANDLE_BYTES)
            (base,) = self._call("cudaIpcOpenMemHandle", handle, self._runtime.cudaIpcMemLazyEnablePeerAccess)
            self._opened[allocation] = int(base)
        return self._opened[allocation] + offset

    def close(self) -> None:
        """Close every handle, and the stream. Once: a later call has nothing to do."""
        if self._stream is None:
            return
        stream, self._stream = self._stream, None
        self._enter()
        while self._opened:
            _, base = self._opened.popitem()
            self._call("cudaIpcCloseMemHandle", base)
        self._call("cudaStreamDestroy", stream)

    def _enter(self, failure: type[StateCoreError] = InvalidInput) -> None:
        """The current device belongs to the calling thread, and others may have set it."""
        self._call("cudaSetDevice", self._device, failure=failure)

    def _call(self, name: str, *arguments: Any, failure: type[StateCoreError] = InvalidInput) -> tuple[Any, ...]:
        """What the call returns after its error code; `failure` when that is not success."""
        error, *results = getattr(self._runtime, name)(*arguments)
        if error != self._runtime.cudaError_t.cudaSuccess:
            _, text = self._runtime.cudaGetErrorString(error)
            raise failure(f"{name} failed on GPU {self._device}: {text.decode()} ({int(error)})")
        return tuple(results)


def _bindings(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidInput(
            f"copying on a GPU needs cuda-python, which the extra statecore[gpu] brings: {error}"
        ) from error
