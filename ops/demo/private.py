"""What an engine would have reused alone: the same requests and scheduler, an index of its own over its share.

Owns the comparison. It runs on `memory://`, without waiting for a model or for bytes, and changes nothing anybody else
sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from events import connect
from ops.demo.drive import drive
from ops.demo.immediate import ImmediateWorkers
from ops.demo.scheduler import Scheduler
from ops.demo.tally import Limits, Tally
from ops.trace import TraceRequest
from statecore import CacheIndex, Policy

_INDEX = "private"


def serve_privately(
    requests: Iterable[tuple[int, TraceRequest]],
    *,
    gpu_blocks: int,
    host_blocks: int = 0,
    policy: Policy | None = None,
    block_size: int,
    limits: Limits,
    after_step: Callable[[Scheduler], None] = lambda _scheduler: None,
) -> Tally:
    """Serve requests, given with their numbers in the trace, from pools that nobody shares."""
    with connect("memory://") as connection:
        index = CacheIndex(
            connection,
            name=_INDEX,
            engine="engine",
            gpu_blocks=gpu_blocks,
            block_size=block_size,
            cpu_blocks=host_blocks,
            policy=policy if host_blocks else None,
        )
        scheduler = Scheduler(index, requests, limits)
        workers = ImmediateWorkers(connection.log(_INDEX, follow=False))

        def then() -> None:
            if host_blocks:
                workers.work()
            after_step(scheduler)

        drive(scheduler, after_step=then)
        return scheduler.tally
