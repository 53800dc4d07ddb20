"""The demo from its first process to its last proof, without a word to anybody.

Owns the order of things: memory, engines and workers; join, serve, leave, read, replay, compare. Who watches is told
through `Watcher`; what came out is a `Result`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Protocol

import attrs

from events.ports import Connection
from ops.demo.fleet import Fleet
from ops.demo.messages import Compared, EngineSpec, Left, Order, Progress, Replicated, Served
from ops.demo.movers import Moved, Movers, memcpy_bytes_per_s
from ops.demo.proofs import Bytes, Proof, Replay, nothing_left, proofs, replay, tier_proofs
from ops.demo.tally import Limits, Tally
from ops.demo.tiers import SHARED_GPU_POOL, TierMemory, Tiers, gpu_pool, left_behind
from ops.demo.workload import Workload
from statecore import Policy


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
    """What one engine did, and would have done alone: with its share of all blocks, and of the GPU blocks only."""

    name: str
    shared: Tally
    private: Tally
    gpu_only: Tally
    left: Left


@attrs.frozen
class Result:
    """Everything there is to report.

    Attributes:
        tiers: None with one tier.
        moved, memcpy_bytes_per_s: what the workers copied, and how fast one large copy was in the same run.
        held: what was found in reused blocks.
        duration_s: time of serving, from the order to the last release.
    """

    workload: Workload
    tiers: Tiers | None
    index: str
    step_s: float
    private_gpu_blocks: int
    private_host_blocks: int
    engines: tuple[EngineResult, ...]
    replicas: tuple[Replicated, ...]
    replay: Replay
    moved: Moved
    memcpy_bytes_per_s: float
    held: Bytes
    open_transfers: int
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
    tiers: Tiers | None = None,
    *,
    engines: int,
    step_s: float,
    watcher: Watcher | None = None,
) -> Result:
    """Run the demo on a server that both `connection` and, for the other processes, `url` lead to.

    Raises:
        EngineDied, WorkerDied: a process did not come to its end; all others are ended, too.
        InvalidInput: the shared memory cannot be had.
        Unavailable, CorruptState: the log cannot be replayed.
    """
    watcher = watcher or Unwatched()
    specs = _specs(url, index, work, tiers, engines, step_s)
    pools = [spec.gpu_pool for spec in specs]
    total = len(work.requests)
    moved, memcpy = Moved(), 0.0
    with ExitStack() as processes:
        if tiers is not None:
            processes.enter_context(TierMemory(index, tiers, pools))
        watcher.begin("starting", engines)
        fleet = processes.enter_context(Fleet(specs))
        movers = None if tiers is None else processes.enter_context(Movers(url, index, pools, tiers))
        fleet.joined()
        watcher.begin("serving", total)

        def see(progress: Sequence[Progress | None]) -> None:
            if movers is not None:
                movers.require_life()
            watcher.at(*_so_far(progress))

        began = time.monotonic()
        fleet.order(Order.SERVE)
        served = fleet.collect(Served, see)
        duration_s = time.monotonic() - began
        fleet.order(Order.LEAVE)
        left = fleet.collect(Left)
        fleet.order(Order.READ)
        replicas = fleet.collect(Replicated)
        if movers is not None:
            moved, memcpy = movers.stop(), memcpy_bytes_per_s()
        fleet.order(Order.COMPARE)
        watcher.begin("replaying", replicas[0].position)
        replayed = replay(connection.log(index, follow=False), lambda at, _head: watcher.at(at, ""))
        watcher.begin("comparing", total)
        compared = fleet.collect(Compared, lambda progress: watcher.at(*_so_far(progress)))
    held = _held([one.tally for one in served], tiers)
    shown = proofs(replicas, replayed)
    if tiers is not None:
        shown += [*tier_proofs(replayed, held), nothing_left(left_behind(index))]
    return Result(
        workload=work,
        tiers=tiers,
        index=index,
        step_s=step_s,
        private_gpu_blocks=specs[0].private_gpu_blocks,
        private_host_blocks=specs[0].private_host_blocks,
        engines=tuple(
            EngineResult(spec.engine, shared.tally, alone.private, alone.gpu_only, books)
            for spec, shared, alone, books in zip(specs, served, compared, left, strict=True)
        ),
        replicas=tuple(replicas),
        replay=replayed,
        moved=moved,
        memcpy_bytes_per_s=memcpy,
        held=held,
        open_transfers=max(replayed.open_transfers, sum(one.open_transfers for one in served)),
        proofs=tuple(shown),
        duration_s=duration_s,
    )


def _held(tallies: Sequence[Tally], tiers: Tiers | None) -> Bytes:
    total = Tally.sum(tallies)
    return Bytes(total.verified_blocks, total.mismatches, 0 if tiers is None else tiers.block_bytes)


def _specs(url: str, index: str, work: Workload, tiers: Tiers | None, engines: int, step_s: float) -> list[EngineSpec]:
    return [
        EngineSpec(
            url=url,
            index=index,
            engine=f"engine-{place}",
            gpu_pool=SHARED_GPU_POOL if tiers is None else gpu_pool(place),
            place=place,
            gpu_blocks=work.pool_blocks(engines),
            host_blocks=work.host_blocks,
            ranks=1 if tiers is None else tiers.ranks,
            policy=Policy() if tiers is None else tiers.policy,
            private_gpu_blocks=work.gpu_blocks // engines,
            private_host_blocks=work.host_blocks // engines,
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
