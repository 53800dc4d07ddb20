"""Engines of the FastDeploy example over a log in memory, and managers that break the contract on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from events import connect
from ops.examples.fastdeploy.manager import Manager
from ops.examples.fastdeploy.plug import EngineSpec, Plugged, plugged
from ops.examples.fastdeploy.scheduler import Batch, Scheduler
from ops.examples.fastdeploy.settings import Settings
from ops.examples.fastdeploy.task import Task
from ops.examples.fastdeploy.workload import Shape, Workload
from ops.trace import generate

BLOCK_SIZE = 4
SMALL = Settings(
    block_size=BLOCK_SIZE,
    max_num_seqs=4,
    max_num_batched_tokens=24,
    enc_dec_block_num=1,
    prealloc_dec_block_slot_num_threshold=2,
    reserve_output_block_num=0,
)


def spec(settings: Settings = SMALL, *, gpu_blocks: int = 16, requests: int = 20, abort_every: int = 0) -> EngineSpec:
    shape = Shape(settings.block_size, 32, 8, again_every=6)
    work = Workload(tuple(generate(requests, 3)), shape, "a test's")
    return EngineSpec("memory://", "fastdeploy-test", 0, 1, gpu_blocks, 0, settings, work, abort_every)


@contextmanager
def engine(of: EngineSpec | None = None) -> Iterator[Plugged]:
    """A manager on a log in memory."""
    with connect("memory://") as connection, plugged(of or spec(), connection) as plug:
        yield plug


def scheduler(plug: Plugged, manager: Manager | None = None) -> Scheduler:
    return Scheduler(manager or plug.manager, plug.spec.settings, fits=plug.index.can_allocate)


def task(number: int, prompt: int, output: int = 4, *, first_token: int | None = None) -> Task:
    """A request with a prompt of its own, or with one that begins with `first_token`."""
    begin = 1000 * number if first_token is None else first_token
    return Task(f"request-{number}", list(range(begin, begin + prompt)), output, number)


def run(batch: Batch, scheduler: Scheduler, token: int = 7) -> None:
    """The least a model does: one token for everybody whose prompt is computed. Ends who is done."""
    ran = [chunk.task for chunk in batch.prefills if chunk.task.decoding] + batch.decodes
    for each in ran:
        each.output_token_ids.append(token)
    scheduler.confirm(batch)
    for each in ran:
        if each.done:
            scheduler.finish(each)


class Faulty:
    """A manager whose answers pass through `faults` first: by name of the method, (what it answers) -> what is told."""

    def __init__(self, manager: Manager, **faults: Callable[..., Any]) -> None:
        self._manager = manager
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._manager, name)
        fault = self._faults.get(name)
        return real if fault is None else lambda *given: fault(real, *given)
