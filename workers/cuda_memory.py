"""GPU memory by raw address: copies on a stream of our own, page-locked host memory, handles for other processes.

Owns every call of cuda-python (`cuda.bindings`), and nothing else; works with the buffers of any framework.

**What has been run.** `tests/stores` on an H200, driver 13.0, cuda-bindings 13.3, with tensors of PyTorch in paddle's place;
in `tests/workers/test_fleet.py` worker processes open an engine's GPU memory there and move its blocks. The names were
checked against cuda-bindings 12.9, too. Machines without a GPU run the same tests with host memory in its place.

**Many small copies.** A block is a piece in each tensor. GB/s of `statecore bench --only 'gpu_*'` there, where one copy
of all bytes has 55, by how the pieces are queued. A driver from before CUDA 12.8 takes only a call for each:

| pieces of         | a call for each | a call for every 64 | a call for all of a move |
|-------------------|-----------------|---------------------|--------------------------|
| 128 KiB, out / in | 24.5 / 24.2     | 46.6 / 46.5         | 40.4 / 39.3              |
| 16 KiB, out / in  | 6.8 / 4.9       | 16.6 / 11.7         | 13.5 / 4.1               |

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
_BATCH: Final = 64
_BATCHES_SINCE: Final = 12_080
"""The first version of the driver, as it says it, that has cudaMemcpyBatchAsync."""


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
        (version,) = self._call("cudaDriverGetVersion")
        self._queue = self._queue_batches if version >= _BATCHES_SINCE else self._queue_one_by_one
        (self._stream,) = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)

    def move(self, spans: Sequence[Span]) -> None:
        self._enter(CopyFailed)
        try:
            self._queue(spans)
        finally:
            # Also after a failure: nobody may reuse a block that a queued copy still reads or writes (E-10).
            self._call("cudaStreamSynchronize", self._stream, failure=CopyFailed)

    def _queue_batches(self, spans: Sequence[Span]) -> None:
        manner = self._runtime.cudaMemcpyAttributes()
        manner.srcAccessOrder = self._runtime.cudaMemcpySrcAccessOrder.cudaMemcpySrcAccessOrderStream
        for start in range(0, len(spans), _BATCH):
            destinations, sources, sizes = map(list, zip(*spans[start : start + _BATCH], strict=True))
            copies = destinations, sources, sizes, len(sizes)
            manners = [manner], [0], 1  # one, which holds from copy 0 on
            self._call("cudaMemcpyBatchAsync", *copies, *manners, self._stream, failure=CopyFailed)

    def _queue_one_by_one(self, spans: Sequence[Span]) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDefault  # the direction follows from the addresses
        for destination, source, size in spans:
            self._call("cudaMemcpyAsync", destination, source, size, kind, self._stream, failure=CopyFailed)

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
