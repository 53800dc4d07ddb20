"""Small requests for an engine, in whole trace blocks of 512 tokens, so that a test can count on its fingers."""

from __future__ import annotations

from collections.abc import Sequence

from ops.trace import TRACE_BLOCK_TOKENS, TraceRequest

BLOCK = TRACE_BLOCK_TOKENS


def request(ids: Sequence[int], output_blocks: int = 1) -> TraceRequest:
    """A prompt of full blocks with these ids, and so many blocks of output."""
    return TraceRequest(0, len(ids) * BLOCK, output_blocks * BLOCK, tuple(ids))


def numbered(*requests: TraceRequest) -> list[tuple[int, TraceRequest]]:
    return list(enumerate(requests))
