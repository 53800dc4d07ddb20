"""Blocks as paddle tensors, on CPU or GPU place. The only file that imports paddle.

Owns which memory a pool is in and the tensors over it. The copies themselves go by raw address (`tensor.data_ptr()`)
through `pointer_copy.py` or `cuda_memory.py`, and which address to which is `block_moves.py`.

| place | tier | memory                                             | what other processes open                 |
|-------|------|----------------------------------------------------|-------------------------------------------|
| cpu   | both | shared memory, the tensors lie over it             | the bytes; a NumpyStore may, too          |
| gpu:n | cpu  | shared memory, page-locked here by cudaHostRegister | the bytes                                |
| gpu:n | gpu  | tensors of this process, or of the engine          | a segment that holds a CUDA handle each   |

**What has not been run:** place "gpu:n" with paddle's own tensors; with PyTorch's in their place it was (`cuda_memory.py`).
Without a GPU its path through this file, from published tensors over handles to addresses, is tested with host memory
standing in for it. Place "cpu" is tested always: `make test` installs paddle.
"""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol

import attrs
import numpy as np
import numpy.typing as npt

from events.errors import InvalidInput
from events.facts import BlockRanges
from workers.block_moves import check_ranges, plan, slab, spans
from workers.cuda_memory import CudaMemory
from workers.layout import CacheLayout
from workers.numpy_store import COPY_ENVIRONMENT as HOST_COPY_ENVIRONMENT
from workers.pattern import pattern
from workers.pointer_copy import DeviceMemory, HostMemory
from workers.segment_header import CUDA, HEADER_BYTES, HOST, IPC_HANDLE_BYTES
from workers.shared_memory import SHARED_FOLDER
from workers.shared_pools import SharedPools
from workers.store import PoolMemory

COPY_ENVIRONMENT: Final = HOST_COPY_ENVIRONMENT
"""On place "cpu" the copies are the same memmove as numpy's."""

_DTYPE: Final = {"float16": "float16", "bfloat16": "bfloat16", "int8": "int8", "fp8": "float8_e4m3fn"}


class Tensor(Protocol):
    """What is used of a paddle tensor."""

    @property
    def shape(self) -> Sequence[int]: ...

    def data_ptr(self) -> int: ...

    def element_size(self) -> int: ...

    def is_contiguous(self) -> bool: ...


@attrs.frozen(slots=True)
class _Pool:
    """`addresses`: of each tensor. `tensors`: those made or wrapped here, in the same order; none if only opened."""

    layout: CacheLayout
    addresses: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    pinned: int | None = None


class PaddleStore:
    """A `BlockStore` over paddle tensors."""

    def __init__(
        self,
        index: str,
        rank: int,
        place: str = "cpu",
        folder: Path = SHARED_FOLDER,
        *,
        device: DeviceMemory | None = None,
    ) -> None:
        """InvalidInput when paddle, cuda-python or the place is missing. `device` stands in for the GPU in tests.

        `folder` lies in memory: CUDA page-locks no file of a disk.
        """
        self._paddle = _paddle()
        self._place = place
        self._device = device if device is not None else _device(place)
        self._memory = HostMemory() if self._device is None else self._device
        self._shared = SharedPools(index, rank, folder)
        self._pools: dict[str, _Pool] = {}

    def create(self, pool: str, tier: str, layout: CacheLayout) -> PoolMemory:
        if self._device is None or tier != "gpu":
            return self._map(self._shared.create(pool, tier, layout))
        if self._place != "cpu" and not self._paddle.is_compiled_with_cuda():
            raise InvalidInput(f"this paddle was built without CUDA and cannot make pool {pool!r} on {self._place}")
        tensors = [self._zeros(layout) for _ in range(layout.tensors)]
        if self._place != "cpu":
            self._paddle.device.synchronize(self._place)  # else the zeros may arrive after somebody's first write
        return self._publish(pool, layout, tensors)

    def publish(self, pool: str, layout: CacheLayout, tensors: Sequence[Tensor]) -> PoolMemory:
        """Make tensors an engine has allocated on this GPU the memory of a pool of tier "gpu".

        `tensors` are keys 0, values 0, keys 1, … as in the layout; the store keeps them alive until it is closed.
        InvalidInput when the pool has memory already: an engine that shares it attaches instead.
        """
        if self._device is None:
            raise InvalidInput(f"place {self._place!r} has no GPU memory to publish; use create")
        memory = self._publish(pool, layout, tensors)
        if not memory.created:
            creator = self._shared[pool].header.creator
            self._release(pool)
            self._shared.close(pool)
            raise InvalidInput(f"pool {pool!r} is GPU memory of the living process {creator.pid} already; attach to it")
        return memory

    def _publish(self, pool: str, layout: CacheLayout, tensors: Sequence[Tensor]) -> PoolMemory:
        assert self._device is not None
        export, addresses = self._device.export, _addresses(layout, tensors)
        memory = self._shared.create(pool, "gpu", layout, memory=CUDA, payload=lambda: b"".join(map(export, addresses)))
        if not memory.created:
            return self._map(memory)
        self._pools[pool] = _Pool(layout, addresses, tuple(tensors))
        return memory

    def attach(self, pool: str, layout: CacheLayout | None = None, *, incarnation: str | None = None) -> PoolMemory:
        return self._map(self._shared.attach(pool, layout, incarnation))

    def copy(
        self,
        source_pool: str,
        destination_pool: str,
        source_blocks: BlockRanges,
        destination_blocks: BlockRanges,
    ) -> int:
        segments = self._shared[source_pool], self._shared[destination_pool]
        source, destination = self._pools[source_pool], self._pools[destination_pool]
        moves = plan(
            source.layout,
            destination.layout,
            source_blocks,
            destination_blocks,
            same_pool=source_pool == destination_pool,
        )
        for segment in segments:
            segment.check_in_place()
        size = source.layout.bytes_per_block_per_tensor
        self._memory.move(spans(moves, size, source.addresses, destination.addresses))
        return sum(blocks for _, _, blocks in moves) * source.layout.bytes_per_block

    def read(self, pool: str, block: int) -> bytes:
        return self._fetched(pool, block).tobytes()

    def write(self, pool: str, block: int, content: bytes) -> None:
        size = self._checked(pool, block).layout.bytes_per_block
        if len(content) != size:
            raise InvalidInput(f"a block of pool {pool!r} has {size} bytes, not {len(content)}")
        self._put(pool, block, np.frombuffer(content, dtype=np.uint8))

    def fill(self, pool: str, block: int, block_hash: bytes) -> None:
        self._put(pool, block, pattern(self._checked(pool, block).layout, block_hash))

    def matches(self, pool: str, block: int, block_hash: bytes) -> bool:
        return np.array_equal(self._fetched(pool, block), pattern(self._checked(pool, block).layout, block_hash))

    def tensors(self, pool: str) -> tuple[Tensor, ...]:
        """The paddle tensors `[num_blocks, *block_shape]`: keys 0, values 0, keys 1, … None for another's GPU memory."""
        self._checked(pool, 0)
        return self._pools[pool].tensors

    def unlink(self, pool: str) -> bool:
        self._release(pool)
        return self._shared.unlink(pool)

    def close(self) -> None:
        for pool in list(self._pools):
            self._release(pool)
        self._shared.close_all()
        self._memory.close()

    def _map(self, memory: PoolMemory) -> PoolMemory:
        """Tensors, or opened handles, over the segment that `_shared` has just opened."""
        segment, layout = self._shared[memory.pool], memory.layout
        try:
            if segment.header.memory == HOST:
                self._pools[memory.pool] = self._host_pool(layout, segment.buffer)
            else:
                handles = segment.buffer[HEADER_BYTES : segment.header.segment_bytes]
                self._pools[memory.pool] = self._opened_pool(layout, handles)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # arrays there would keep the segment in use
            if memory.created:
                self._shared.unlink(memory.pool)
            else:
                self._shared.close(memory.pool)
            raise
        return memory

    def _host_pool(self, layout: CacheLayout, buffer: Any) -> _Pool:
        flat = np.frombuffer(buffer, dtype=np.uint8, count=layout.total_bytes, offset=HEADER_BYTES)
        tensors = tuple(self._over(piece, layout) for piece in flat.reshape(layout.tensors, -1))
        addresses = _addresses(layout, tensors)
        assert addresses == slab(flat.ctypes.data, layout), "paddle copied the memory instead of using it"
        self._memory.pin(flat.ctypes.data, layout.total_bytes)
        return _Pool(layout, addresses, tensors, pinned=flat.ctypes.data)

    def _over(self, piece: npt.NDArray[np.uint8], layout: CacheLayout) -> Tensor:
        return self._typed(self._paddle.from_dlpack(piece), layout)

    def _zeros(self, layout: CacheLayout) -> Tensor:
        return self._typed(self._paddle.zeros([layout.bytes_per_tensor], dtype="uint8", device=self._place), layout)

    def _typed(self, flat: Any, layout: CacheLayout) -> Tensor:
        """The same bytes with the layout's dtype and shape: from bytes, because not every dtype can be made directly."""
        tensor: Tensor = flat.view(_DTYPE[layout.dtype]).view([layout.num_blocks, *layout.block_shape])
        return tensor

    def _opened_pool(self, layout: CacheLayout, handles: bytes) -> _Pool:
        if self._device is None:
            raise InvalidInput(
                f"the pool is GPU memory of another process; a store on place {self._place!r} cannot open it"
            )
        starts = range(0, len(handles), IPC_HANDLE_BYTES)
        addresses = tuple(self._device.open(handles[start : start + IPC_HANDLE_BYTES]) for start in starts)
        return _Pool(layout, addresses, tensors=())

    def _release(self, pool: str) -> None:
        released = self._pools.pop(pool, None)
        if released is not None and released.pinned is not None:
            self._memory.unpin(released.pinned)

    def _checked(self, pool: str, block: int) -> _Pool:
        check_ranges(((block, 1),), self._shared[pool].header.layout.num_blocks, "pool")
        return self._pools[pool]

    def _fetched(self, pool: str, block: int) -> npt.NDArray[np.uint8]:
        """A copy of the block on the host, `[2 * layers, bytes_per_block_per_tensor]`."""
        there = self._checked(pool, block)
        size = there.layout.bytes_per_block_per_tensor
        here = np.empty((there.layout.tensors, size), dtype=np.uint8)
        self._memory.move(spans([(block, 0, 1)], size, there.addresses, _rows(here)))
        return here

    def _put(self, pool: str, block: int, content: npt.NDArray[np.uint8]) -> None:
        there = self._checked(pool, block)
        size = there.layout.bytes_per_block_per_tensor
        here = np.ascontiguousarray(content).reshape(there.layout.tensors, size)
        self._memory.move(spans([(0, block, 1)], size, _rows(here), there.addresses))


def _rows(array: npt.NDArray[np.uint8]) -> list[int]:
    return [array.ctypes.data + row * array.strides[0] for row in range(array.shape[0])]


def _addresses(layout: CacheLayout, tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Where the tensors begin. InvalidInput when they are not what the layout says."""
    if len(tensors) != layout.tensors:
        raise InvalidInput(f"{layout} has {layout.tensors} tensors, keys and values; {len(tensors)} were given")
    shape = (layout.num_blocks, *layout.block_shape)
    element = layout.bytes_per_tensor // int(np.prod(shape))
    for number, tensor in enumerate(tensors):
        if tuple(tensor.shape) != shape or tensor.element_size() != element or not tensor.is_contiguous():
            raise InvalidInput(
                f"tensor {number} has shape {tuple(tensor.shape)} of {tensor.element_size()}-byte elements, contiguous: "
                f"{tensor.is_contiguous()}; {layout} needs {shape} of {element}-byte elements, contiguous"
            )
    return tuple(tensor.data_ptr() for tensor in tensors)


def _device(place: str) -> CudaMemory | None:
    if place == "cpu":
        return None
    kind, _, number = place.partition(":")
    if kind != "gpu" or not (number.isascii() and number.isdigit()):
        raise InvalidInput(f"place must be 'cpu' or 'gpu:<number>', not {place!r:.80}")
    return CudaMemory(int(number))


def _paddle() -> ModuleType:
    try:
        with _quiet_import():
            return importlib.import_module("paddle")
    except ImportError as error:
        raise InvalidInput(
            "the paddle store needs paddlepaddle: install the extra statecore[paddle], or statecore[gpu] for a GPU "
            f"({error})"
        ) from error


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Importing paddle warns that tools of its own build are missing, and takes SIGTERM to print a stack trace and die:
    a worker that is told to stop would be cut off in the middle of a copy. Who had imported it before keeps what is.
    """
    mine = "paddle" not in sys.modules and threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if mine and handler is not None:  # None: not set from Python, so not to be set again from here
            signal.signal(signal.SIGTERM, handler)
