"""The demo from its first process to its last proof, without a word to anybody.

Owns the order of things: join, serve, leave, read, replay, compare. Who watches is told through `Watcher`; what came
out is a `Result`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, Protocol

import attrs

from events.ports import Connection
from ops.demo.fleet import Fleet
from ops.demo.messages import Compared, EngineSpec, Left, Order, Progress, Replicated, Served
from ops.demo.proofs import Proof, Replay, proofs, replay
from ops.demo.scheduler import Limits, Tally
from ops.demo.workload import Workload

GPU_POOL: Final = "gpu:shared"


class Watcher(Protocol):
    """Who wants to see how far it is."""

    def begin(self, what: str, total: int) -> None:
        """The next part begins; it has so many units."""
        ...

    def at(self, done: int, detail: str) -> None: ...


class Unwatched:
    """Nobody looks."""

    def begin(self, what: str, total: int) -> None: ...

    def at(self, done: int, detail: str) -> None: ...


@attrs.frozen
class EngineResult:
    """What one engine did, and would have done alone."""

    name: str
    shared: Tally
    private: Tally
    left: Left


@attrs.frozen
class Result:
    """Everything there is to report. `duration_s` is the time of serving, from the order to the last release."""

    workload: Workload
    index: str
    step_s: float
    private_blocks: int
    engines: tuple[EngineResult, ...]
    replicas: tuple[Replicated, ...]
    replay: Replay
    proofs: tuple[Proof, ...]
    duration_s: float

    @property
    def ok(self) -> bool:
        return all(proof.holds for proof in self.proofs)


def run(
    connection: Connection,
    url: str,
    index: str,
    work: Workload,
    *,
    engines: int,
    step_s: float,
    watcher: Watcher | None = None,
) -> Result:
    """Run the demo on a server that both `connection` and, for the engine processes, `url` lead to.

    Raises:
        EngineDied: an engine did not come to its end; all others are ended, too.
        Unavailable, CorruptState: the log cannot be replayed.
    """
    watcher = watcher or Unwatched()
    specs = _specs(url, index, work, engines, step_s)
    total = len(work.requests)
    with Fleet(specs) as fleet:
        watcher.begin("starting", engines)
        fleet.joined()
        watcher.begin("serving", total)
        began = time.monotonic()
        fleet.order(Order.SERVE)
        served = fleet.collect(Served, lambda progress: watcher.at(*_so_far(progress)))
        duration_s = time.monotonic() - began
        fleet.order(Order.LEAVE)
        left = fleet.collect(Left)
        fleet.order(Order.READ)
        replicas = fleet.collect(Replicated)
        fleet.order(Order.COMPARE)
        watcher.begin("replaying", replicas[0].position)
        replayed = replay(connection.log(index, follow=False), GPU_POOL, lambda at, _head: watcher.at(at, ""))
        watcher.begin("comparing", total)
        private = fleet.collect(Compared, lambda progress: watcher.at(*_so_far(progress)))
    return Result(
        workload=work,
        index=index,
        step_s=step_s,
        private_blocks=specs[0].private_blocks,
        engines=tuple(
            EngineResult(spec.engine, shared.tally, alone.tally, books)
            for spec, shared, alone, books in zip(specs, served, private, left, strict=True)
        ),
        replicas=tuple(replicas),
        replay=replayed,
        proofs=tuple(proofs(replicas, replayed)),
        duration_s=duration_s,
    )


def _specs(url: str, index: str, work: Workload, engines: int, step_s: float) -> list[EngineSpec]:
    return [
        EngineSpec(
            url=url,
            index=index,
            engine=f"engine-{place}",
            gpu_pool=GPU_POOL,
            place=place,
            gpu_blocks=work.gpu_blocks,
            private_blocks=work.gpu_blocks // engines,
            block_size=work.block_size,
            step_s=step_s,
            limits=Limits(),
            requests=dealt,
        )
        for place, dealt in enumerate(work.dealt(engines))
    ]


def _so_far(progress: Sequence[Progress | None]) -> tuple[int, str]:
    """Requests done, and what to say of them."""
    heard = [one for one in progress if one is not None]
    total = Tally.sum(one.tally for one in heard)
    conflicts = sum(one.conflicts for one in heard)
    detail = f"hit rate {total.hit_rate * 100:.1f} %, {sum(one.commits for one in heard):,} commits"
    return total.requests + total.refused, f"{detail}, {conflicts:,} conflicts" if conflicts else detail
