"""How fast blocks go between a GPU and page-locked host memory, beside one plain cudaMemcpy of as many bytes.

What a swap worker does on a GPU, without paddle and without the log: the moves of a transfer, and `CudaMemory`. Both pools
are scattered, no two neighbours, as after hours of service; so every block is one piece in each tensor.

| name                                                  | block                               | pieces  |
|-------------------------------------------------------|-------------------------------------|---------|
| gpu_swap_out_vs_memcpy, gpu_swap_in_vs_memcpy         | 1 MiB: 4 layers, 8 heads of a rank  | 128 KiB |
| gpu_swap_out_vs_memcpy_16k, gpu_swap_in_vs_memcpy_16k | 128 KiB: 4 layers, 1 head of a rank | 16 KiB  |

Measured where there is a GPU and cuda-python (the extra statecore[gpu]).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import attrs
import numpy as np

from events.errors import InvalidInput
from ops.bench.figure import Advance, Group, Measurement, Pair, Settings, wall_us
from ops.bench.store import Case, chosen
from workers.block_moves import plan, slab, spans
from workers.cuda_memory import CudaMemory
from workers.layout import CacheLayout

_GPU: Final = 0
_POOL_FACTOR: Final = 2

_CASES: Final = {
    "gpu_swap_out_vs_memcpy": (Case(8, scattered=True), "out"),
    "gpu_swap_out_vs_memcpy_16k": (Case(1, scattered=True), "out"),
    "gpu_swap_in_vs_memcpy": (Case(8, scattered=True), "in"),
    "gpu_swap_in_vs_memcpy_16k": (Case(1, scattered=True), "in"),
}


def missing() -> str:
    """Why nothing can be measured here; "" where it can."""
    try:
        CudaMemory(_GPU).close()
    except InvalidInput as reason:
        return f"no GPU here: {reason}"
    return ""


def measure(settings: Settings, wanted: frozenset[str], advance: Advance) -> list[Measurement]:
    copied_bytes, repetitions = settings.count(usual=256 << 20, quick=2 << 20), settings.repetitions(51)
    found = []
    with _opened(_POOL_FACTOR * copied_bytes) as (memory, runtime, on_gpu, on_host):
        for number, name in enumerate(name for name in _CASES if name in wanted):
            case, direction = _CASES[name]
            source, target = (on_gpu, on_host) if direction == "out" else (on_host, on_gpu)
            blocks = copied_bytes // case.block.bytes_per_block
            random = np.random.default_rng(settings.seed)
            layout = attrs.evolve(case.block, num_blocks=_POOL_FACTOR * blocks)
            by_worker = partial(_move, memory, layout, source, target, chosen(blocks, random), chosen(blocks, random))
            kind = runtime.cudaMemcpyKind.cudaMemcpyDefault
            at_once = partial(_successful, runtime.cudaMemcpy, target, source, copied_bytes, kind)
            pair = Pair()
            for _ in range(1 + repetitions):
                pair.add(copied_bytes / wall_us(by_worker) / 1e3, copied_bytes / wall_us(at_once) / 1e3)
            label = f"one cudaMemcpy, page-locked; {blocks} × {case.block.bytes_per_block >> 10} KiB"
            found.append(Pair(pair.values[1:], pair.references[1:]).measurement(name, "GB/s", label))
            advance((number + 1) / len(_CASES))
    return found


def _move(memory: CudaMemory, layout: CacheLayout, source: int, target: int, read: Any, written: Any) -> None:
    moves = plan(layout, layout, read, written, same_pool=False)
    memory.move(spans(moves, layout.bytes_per_block_per_tensor, slab(source, layout), slab(target, layout)))


@contextmanager
def _opened(size: int) -> Iterator[tuple[CudaMemory, Any, int, int]]:
    """A memory, `cuda.bindings.runtime`, and where `size` bytes are on the GPU and as many page-locked on the host."""
    memory, runtime = CudaMemory(_GPU), importlib.import_module("cuda.bindings.runtime")
    host = np.ones(size, dtype=np.uint8)
    (on_gpu,) = _successful(runtime.cudaMalloc, size)
    try:
        memory.pin(host.ctypes.data, size)
        try:
            yield memory, runtime, int(on_gpu), host.ctypes.data
        finally:
            memory.unpin(host.ctypes.data)
    finally:
        _successful(runtime.cudaFree, on_gpu)
        memory.close()


def _successful(call: Any, *arguments: Any) -> tuple[Any, ...]:
    """What the call returns after its error code."""
    error, *results = call(*arguments)
    if int(error):
        raise InvalidInput(f"{call.__name__} failed on GPU {_GPU}: {error!r}")
    return tuple(results)


GROUP: Final = Group(title="GPU", figures=tuple(_CASES), seconds=4, measure=measure, missing=missing)
