"""Workloads for benches, demos and tests: published traces, and a synthetic one like them.

Owns the trace format, the synthetic generator and the figures by which two traces are compared.
Knows nothing of the index: a trace is requests with token counts and block hashes, and who serves
them is someone else's business.
"""

from ops.trace.format import (
    TRACE_BLOCK_TOKENS,
    TraceError,
    TraceRequest,
    block_hashes,
    output_hashes,
    read_trace,
    write_trace,
)
from ops.trace.generator import generate
from ops.trace.stats import TraceStats, lru_hit_rate, trace_stats

__all__ = [
    "TRACE_BLOCK_TOKENS",
    "TraceError",
    "TraceRequest",
    "TraceStats",
    "block_hashes",
    "generate",
    "lru_hit_rate",
    "output_hashes",
    "read_trace",
    "trace_stats",
    "write_trace",
]
