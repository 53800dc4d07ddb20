"""How fast blocks go between a GPU and page-locked host memory, beside one plain cudaMemcpy of as many bytes.

What a swap worker does on a GPU, without paddle and without the log: the moves of a transfer, 64 blocks at a time, and
`CudaMemory`. Both pools are scattered, no two neighbours, as after hours of service; so every block is one piece in each
tensor, and a range of its own.

| name                                                  | block                               | pieces  |
|-------------------------------------------------------|-------------------------------------|---------|
| gpu_swap_out_vs_memcpy, gpu_swap_in_vs_memcpy         | 1 MiB: 4 layers, 8 heads of a rank  | 128 KiB |
| gpu_swap_out_vs_memcpy_16k, gpu_swap_in_vs_memcpy_16k | 128 KiB: 4 layers, 1 head of a rank | 16 KiB  |

Measured where there is a GPU and cuda-python (the extra statecore[gpu]).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import attrs
import numpy as np

from events.errors import InvalidInput
from events.facts import BlockRanges
from events.limits import COPY_PIECE_BLOCKS
from ops.bench.figure import Advance, Group, Measurement, Pair, Settings, wall_us
from ops.bench.store import Case, chosen
from workers.block_moves import plan, slab, spans
from workers.cuda_memory import CudaMemory
from workers.layout import CacheLayout

_GPU: Final = 0
_POOL_FACTOR: Final = 2


@attrs.frozen
class Opened:
    """Where the pools are: addresses of as many bytes on the GPU and, page-locked, on the host.

    `runtime`: `cuda.bindings.runtime`, which `memory` uses.
    """

    memory: CudaMemory
    runtime: Any
    on_gpu: int
    on_host: int


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
    with _opened(_POOL_FACTOR * copied_bytes) as opened:
        for number, name in enumerate(name for name in _CASES if name in wanted):
            case, direction = _CASES[name]
            blocks = copied_bytes // case.block.bytes_per_block
            pair = copy(opened, case, direction, blocks, repetitions, settings.seed)
            label = f"one cudaMemcpy, page-locked; {blocks} × {case.block.bytes_per_block >> 10} KiB"
            found.append(pair.measurement(name, "GB/s", label))
            advance((number + 1) / len(_CASES))
    return found


def copy(opened: Opened, case: Case, direction: str, blocks: int, repetitions: int, seed: int) -> Pair:
    """GB/s of a transfer and of the memcpy, in turn."""
    random, runtime = np.random.default_rng(seed), opened.runtime
    source, target = (opened.on_gpu, opened.on_host) if direction == "out" else (opened.on_host, opened.on_gpu)
    layout, size = attrs.evolve(case.block, num_blocks=_POOL_FACTOR * blocks), blocks * case.block.bytes_per_block
    read, written = chosen(blocks, random), chosen(blocks, random)
    by_worker = partial(_move, opened.memory, layout, source, target, read, written)
    at_once = partial(_successful, runtime.cudaMemcpy, target, source, size, runtime.cudaMemcpyKind.cudaMemcpyDefault)
    pair = Pair()
    for _ in range(1 + repetitions):
        pair.add(size / wall_us(by_worker) / 1e3, size / wall_us(at_once) / 1e3)
    return Pair(pair.values[1:], pair.references[1:])


def _move(
    memory: CudaMemory, layout: CacheLayout, source: int, target: int, read: BlockRanges, written: BlockRanges
) -> None:
    """One transfer between two pools that lie in one piece each, from these addresses on; so many blocks at a time."""
    from_, to = slab(source, layout), slab(target, layout)
    for start in range(0, len(read), COPY_PIECE_BLOCKS):
        piece = slice(start, start + COPY_PIECE_BLOCKS)
        moves = plan(layout, layout, read[piece], written[piece], same_pool=False)
        memory.move(spans(moves, layout.bytes_per_block_per_tensor, from_, to))


@contextmanager
def _opened(size: int) -> Iterator[Opened]:
    """Both pools; nothing stays taken."""
    memory, runtime = CudaMemory(_GPU), importlib.import_module("cuda.bindings.runtime")
    host = np.ones(size, dtype=np.uint8)
    (on_gpu,) = _successful(runtime.cudaMalloc, size)
    try:
        memory.pin(host.ctypes.data, size)
        try:
            yield Opened(memory, runtime, int(on_gpu), host.ctypes.data)
        finally:
            memory.unpin(host.ctypes.data)
    finally:
        _successful(runtime.cudaFree, on_gpu)
        memory.close()


def _successful(call: Callable[..., tuple[Any, ...]], *arguments: Any) -> tuple[Any, ...]:
    """What the call returns after its error code."""
    error, *results = call(*arguments)
    if int(error):
        raise InvalidInput(f"{call.__name__} failed on GPU {_GPU}: {error!r}")
    return tuple(results)


GROUP: Final = Group(title="GPU", figures=tuple(_CASES), seconds=4, measure=measure, missing=missing)
