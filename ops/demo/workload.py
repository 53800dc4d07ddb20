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

POOL_STEP: Final = 500
"""Default pools are round numbers."""


class WorkloadError(Exception):
    """No such workload; the message is for the person who asked."""


@attrs.frozen
class Workload:
    """Requests, and the pool they are served from.

    Attributes:
        requests: in order of arrival.
        source: where they come from, in words.
        gpu_blocks: blocks of the shared pool.
        sized_by_us: whether nobody said how many.
        biggest: blocks of the biggest request, output included.
    """

    requests: tuple[TraceRequest, ...]
    source: str
    block_size: int
    gpu_blocks: int
    sized_by_us: bool
    biggest: int

    def dealt(self, engines: int) -> list[list[tuple[int, TraceRequest]]]:
        """Round-robin in order of arrival: per engine, its requests with their numbers."""
        numbered = list(enumerate(self.requests))
        return [numbered[engine::engines] for engine in range(engines)]


def workload(
    *, trace: Path | None, seed: int, requests: int, engines: int, block_size: int, gpu_blocks: int | None
) -> Workload:
    """Read or generate.

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
    blocks = gpu_blocks or default_gpu_blocks(chosen, engines, block_size, biggest)
    return Workload(chosen, source, block_size, blocks, gpu_blocks is None, biggest)


def default_gpu_blocks(requests: tuple[TraceRequest, ...], engines: int, block_size: int, biggest: int) -> int:
    """A share of the blocks the prompts hold; never so few that an equal part of them could not hold every request."""
    different = len({hash_id for request in requests for hash_id in request.hash_ids})
    wanted = different * (TRACE_BLOCK_TOKENS // block_size) * POOL_SHARE_PERCENT // 100
    least = engines * biggest
    return max(1, -(-max(wanted, least) // POOL_STEP)) * POOL_STEP


def _read(trace: Path, requests: int) -> tuple[TraceRequest, ...]:
    try:
        return tuple(read_trace(trace, requests))
    except TraceError as error:
        raise WorkloadError(str(error)) from None
    except OSError as error:
        raise WorkloadError(f"cannot read the trace {str(trace)!r}: {error.strerror or error}") from None
