"""What an engine would have reused alone: the same requests and scheduler, an index of its own over its share.

Owns the comparison. It runs on `memory://`, without waiting for a model, and changes nothing anybody else sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from events import connect
from ops.demo.drive import drive
from ops.demo.scheduler import Limits, Scheduler, Tally
from ops.trace import TraceRequest
from statecore import CacheIndex


def serve_privately(
    requests: Iterable[tuple[int, TraceRequest]],
    *,
    gpu_blocks: int,
    block_size: int,
    limits: Limits,
    after_step: Callable[[Scheduler], None] = lambda _scheduler: None,
) -> Tally:
    """Serve requests, given with their numbers in the trace, from a pool of `gpu_blocks` that nobody shares."""
    with connect("memory://") as connection:
        index = CacheIndex(connection, name="private", engine="engine", gpu_blocks=gpu_blocks, block_size=block_size)
        scheduler = Scheduler(index, requests, limits)
        drive(scheduler, after_step=lambda: after_step(scheduler))
        return scheduler.tally
