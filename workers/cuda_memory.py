"""GPU memory by raw address: copies on a stream of our own, page-locked host memory, handles for other processes.

Owns every call of cuda-python (`cuda.bindings`), and nothing else; works with the buffers of any framework.

**What has not been run.** This file was written against cuda-bindings 13.5 on a machine without a GPU. Its calls were
checked against the signatures and docstrings of that package, and the failure of the first one ("driver version is
insufficient") is tested. No copy, no pinning and no handle has ever been through it. What feeds it addresses is
tested with host memory in its place (`tests/stores`).

**Order.** The stream is non-blocking: it does not wait for the engine's kernels. The index only lets a block be copied
that its engine has declared ready, which an engine does after its stream has passed the write (design, section 4).
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

from events.errors import InvalidInput
from workers.block_moves import Span
from workers.segment_header import IPC_HANDLE_BYTES
from workers.store import CopyFailed

_HANDLE_BYTES: Final = 64  # CUDA_IPC_HANDLE_SIZE
_OFFSET_BYTES: Final = IPC_HANDLE_BYTES - _HANDLE_BYTES


class CudaMemory:
    """Implements `DeviceMemory` for one GPU and the process that uses it."""

    def __init__(self, device: int) -> None:
        """InvalidInput when cuda-python is missing or the device cannot be used."""
        self._runtime = _bindings("cuda.bindings.runtime")
        self._driver = _bindings("cuda.bindings.driver")
        self._device = device
        self._opened: dict[bytes, int] = {}
        try:
            self._call("cudaSetDevice", device)
            (self._stream,) = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        except CopyFailed as error:
            raise InvalidInput(f"GPU {device} cannot be used: {error}") from error

    def move(self, spans: Sequence[Span]) -> None:
        self._call("cudaSetDevice", self._device)  # the current device belongs to the calling thread
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDefault  # the direction follows from the addresses
        try:
            for destination, source, size in spans:
                self._call("cudaMemcpyAsync", destination, source, size, kind, self._stream)
        finally:
            # Also after a failure: nobody may reuse a block that a queued copy still reads or writes (E-10).
            self._call("cudaStreamSynchronize", self._stream)

    def pin(self, address: int, size: int) -> None:
        self._call("cudaHostRegister", address, size, self._runtime.cudaHostRegisterPortable)

    def unpin(self, address: int) -> None:
        self._call("cudaHostUnregister", address)

    def export(self, address: int) -> bytes:
        """The handle names the whole allocation a framework cut the tensor from, so its offset goes with it."""
        error, base, _ = self._driver.cuMemGetAddressRange(address)
        if error != self._driver.CUresult.CUDA_SUCCESS:
            raise CopyFailed(f"cuMemGetAddressRange({address:#x}) failed: {error!r}")
        (handle,) = self._call("cudaIpcGetMemHandle", int(base))
        return ctypes.string_at(handle.getPtr(), _HANDLE_BYTES) + (address - int(base)).to_bytes(
            _OFFSET_BYTES, "little"
        )

    def open(self, exported: bytes) -> int:
        allocation, offset = exported[:_HANDLE_BYTES], int.from_bytes(exported[_HANDLE_BYTES:], "little")
        if allocation not in self._opened:  # tensors share allocations, and each is opened once
            handle = self._runtime.cudaIpcMemHandle_t()
            ctypes.memmove(handle.getPtr(), allocation, _HANDLE_BYTES)
            (base,) = self._call("cudaIpcOpenMemHandle", handle, self._runtime.cudaIpcMemLazyEnablePeerAccess)
            self._opened[allocation] = int(base)
        return self._opened[allocation] + offset

    def close(self) -> None:
        while self._opened:
            _, base = self._opened.popitem()
            self._call("cudaIpcCloseMemHandle", base)
        self._call("cudaStreamDestroy", self._stream)

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        """What the call returns after its error code. CopyFailed when that is not success."""
        error, *results = getattr(self._runtime, name)(*arguments)
        if error != self._runtime.cudaError_t.cudaSuccess:
            _, text = self._runtime.cudaGetErrorString(error)
            raise CopyFailed(f"{name} failed on GPU {self._device}: {text.decode()} ({int(error)})")
        return tuple(results)


def _bindings(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidInput(
            f"copying on a GPU needs cuda-python, which the extra statecore[gpu] brings: {error}"
        ) from error
