"""What the demo serves: which requests, which engine gets which, and how many blocks there are for them.

Owns the choices a person can make about the workload, and what is said when they do not fit together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import attrs

from ops.trace import TRACE_BLOCK_TOKENS, TraceError, TraceRequest, generate, read_trace

POOL_SHARE_PERCENT: Final = 25
"""Size of the default pool, in percent of the different blocks the prompts hold: small enough that blocks are evicted
all the time, as in production, and large enough that keeping them pays."""

GPU_SHARE_PERCENT: Final = 10
HOST_SHARE_PERCENT: Final = 30
"""The same with two tiers: host memory is a few times as large as that of the GPUs."""

POOL_STEP: Final = 500
"""Default pools are round numbers."""


class WorkloadError(Exception):
    """No such workload; the message is for the person who asked."""


@attrs.frozen
class Workload:
    """Requests, and the pools they are served from.

    Attributes:
        requests: in order of arrival.
        source: where they come from, in words.
        gpu_blocks: of all engines together: one pool for all with one tier, an equal pool for each with two.
        host_blocks: of the host pool all share; 0: one tier.
        sized_by_us: whether nobody said how many GPU blocks.
        biggest: blocks of the biggest request, output included.
    """

    requests: tuple[TraceRequest, ...]
    source: str
    block_size: int
    gpu_blocks: int
    host_blocks: int
    sized_by_us: bool
    biggest: int

    @property
    def two_tiers(self) -> bool:
        return self.host_blocks > 0

    def pool_blocks(self, engines: int) -> int:
        """Blocks of the GPU pool a request is served from."""
        return self.gpu_blocks // engines if self.two_tiers else self.gpu_blocks

    def dealt(self, engines: int) -> list[list[tuple[int, TraceRequest]]]:
        """Round-robin in order of arrival: per engine, its requests with their numbers."""
        numbered = list(enumerate(self.requests))
        return [numbered[engine::engines] for engine in range(engines)]


def workload(
    *,
    trace: Path | None,
    seed: int,
    requests: int,
    engines: int,
    block_size: int,
    gpu_blocks: int | None,
    host_blocks: int | None = None,
) -> Workload:
    """Read or generate. Sizes that are None are chosen here.

    Raises:
        WorkloadError: the trace cannot be read, or the block size cuts its blocks in pieces.
    """
    if block_size < 1 or TRACE_BLOCK_TOKENS % block_size:
        raise WorkloadError(
            f"--block-size {block_size} does not divide {TRACE_BLOCK_TOKENS}, the tokens of a trace's block: "
            "use 1, 2, 4 … 512"
        )
    if trace is None:
        chosen, source = tuple(generate(requests, seed)), f"the built-in generator, seed {seed}"
    else:
        chosen, source = _read(trace, requests), trace.name
    biggest = max(-(-(request.input_tokens + request.output_tokens) // block_size) for request in chosen)
    different = len({hash_id for request in chosen for hash_id in request.hash_ids}) * (
        TRACE_BLOCK_TOKENS // block_size
    )
    if host_blocks is None:
        host_blocks = _rounded(different * HOST_SHARE_PERCENT // 100, POOL_STEP)
    if gpu_blocks is None:  # never so few that an equal part of them could not hold every request
        share, step = (GPU_SHARE_PERCENT, POOL_STEP * engines) if host_blocks else (POOL_SHARE_PERCENT, POOL_STEP)
        blocks = _rounded(max(different * share // 100, engines * biggest), step)
    else:
        blocks = gpu_blocks
    return Workload(chosen, source, block_size, blocks, host_blocks, gpu_blocks is None, biggest)


def _rounded(blocks: int, step: int) -> int:
    return max(1, -(-blocks // step)) * step


def _read(trace: Path, requests: int) -> tuple[TraceRequest, ...]:
    try:
        return tuple(read_trace(trace, requests))
    except TraceError as error:
        raise WorkloadError(str(error)) from None
    except OSError as error:
        raise WorkloadError(f"cannot read the trace {str(trace)!r}: {error.strerror or error}") from None
