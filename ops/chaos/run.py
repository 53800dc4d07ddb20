"""A chaos run from its first process to its last check.

Owns the order: memory, server, network, auditor, actors; faults; quiet, digests, leaving; one more death of Redis, and the
checks. Whatever happens on the way, everybody is ended and nothing is left behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ops.chaos.auditor import Auditor
from ops.chaos.cast import ENGINE, KEEPER, WORKER, EngineActor, end_all
from ops.chaos.history import Acknowledged, read_histories
from ops.chaos.leftovers import Leftovers
from ops.chaos.network import Network
from ops.chaos.scene import Plan, actors_of, matcher, memory_of, pool_of
from ops.chaos.server import Server
from ops.chaos.slot import Order
from ops.chaos.stage import Stage
from ops.chaos.tormentor import SHORT_S, dealt, torment
from ops.chaos.verdict import Evidence, verdict
from ops.reliability.results import ChaosResult, Versions

JOIN_S: Final = 60.0
CONVERGE_S: Final = 60.0
"""Once faults stop, everybody must be at work again within this time, and in the end everybody must have left in as much
again. The longest single wait is that for the log after Redis died."""

POLL_S: Final = 0.2
WORKER_STOP_S: Final = 10.0

Watch = Callable[[str], None]


class NotRun(Exception):
    """The run did not come to its end; says why."""


def run(plan: Plan, watch: Watch = lambda _what: None) -> ChaosResult:
    """
    Raises:
        NotRun: a process could not be started, or the engines never joined.
    """
    index = plan.index
    with ExitStack() as everything:
        leftovers = everything.enter_context(Leftovers(index))
        folder = leftovers.folder
        pools = sorted({pool_of(plan, place) for place in range(plan.engines)})
        memory = [memory_of(index, plan, pool) for pool in pools]
        for each in memory:
            everything.enter_context(each)
        server = Server(folder / "redis", index, binary=plan.binary, fsync=plan.fsync)
        everything.callback(server.close)
        network = Network(server.address, plan.seed)
        everything.callback(network.close)
        auditor = everything.enter_context(Auditor(server.url, index))
        actors = actors_of(plan, index, network.url, pools, folder)
        stage = Stage(plan.seed, server, network, actors)
        everything.callback(lambda: end_all(stage.actors, index))
        return _run(plan, index, folder, pools, stage, auditor, watch)


def _run(
    plan: Plan, index: str, folder: Path, pools: list[str], stage: Stage, auditor: Auditor, watch: Watch
) -> ChaosResult:
    server, network = stage.server, stage.network
    watch("starting")
    for actor in stage.actors:
        actor.start()
    at_once = len([actor for actor in stage.actors if actor.role == ENGINE])
    _wait(lambda: auditor.engines_alive >= at_once, JOIN_S, stage, f"{at_once} engines to join")
    began = time.monotonic()
    network.failing = True

    def enough() -> bool:
        kills = sum(stage.kills.values()) >= plan.kills_min
        return kills and network.counts.total() >= plan.network_min and auditor.position >= plan.commits_min * 1.2

    torment(stage, plan.seed, plan.duration_s, watch, enough)
    network.failing = False
    healed = time.monotonic()
    watch("healing")
    late = _converge(stage, folder, healed)
    watch("leaving")
    late += _leave(stage, auditor)
    converged_s = time.monotonic() - healed
    watch("checking")
    server.kill()
    server.start()
    evidence = Evidence(
        folder=folder,
        seen=tuple(auditor.seen),
        again=auditor.read_again(),
        dealt=dealt(plan.duration_s),
        injuries=tuple(stage.injuries),
        oddities=(*stage.oddities, *auditor.faults, *late),
        network=network,
        matches=matcher(index, plan.ranks, pools),
        recovery_bound_s=CONVERGE_S,
    )
    judged = verdict(evidence)
    return ChaosResult(
        seed=plan.seed,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        duration_s=round(healed - began, 1),
        converged_s=round(converged_s, 1),
        fsync=plan.fsync,
        versions=Versions.here(server.version),
        processes={
            role: len([actor for actor in stage.actors if actor.role == role]) for role in (ENGINE, WORKER, KEEPER)
        },
        positions=auditor.position,
        kills=dict(sorted(stage.kills.items())),
        network={fault.value: count for fault, count in sorted(network.counts.items(), key=str)},
        faults=judged.faults,
        totals=judged.totals,
        violations=judged.violations,
        missing=(
            *judged.missing,
            *_missing(plan, stage, judged.totals.commits_acknowledged),
            *([] if evidence.trimmed or plan.duration_s < SHORT_S else ["the log was never trimmed behind a snapshot"]),
        ),
    )


# --- waiting --------------------------------------------------------------------------------------------------------


def _wait(done: Callable[[], bool], timeout_s: float, stage: Stage, what: str) -> None:
    end = time.monotonic() + timeout_s
    while not done():
        stage.tick()
        if time.monotonic() > end:
            raise NotRun(f"waited {timeout_s:.0f} s for {what}. {' '.join(stage.oddities)[:1000]}")


def _converge(stage: Stage, folder: Path, healed: float) -> list[str]:
    """Every engine has a commit acknowledged after the last fault; who does not is named."""
    end = time.monotonic() + CONVERGE_S
    waiting = {actor.name for actor in stage.actors if actor.role == ENGINE}
    while waiting and time.monotonic() < end:
        stage.tick()
        time.sleep(POLL_S)
        at_work = {
            history.engine
            for history in read_histories(folder)
            if any(isinstance(line, Acknowledged) and line.ended > healed for line in history.lines)
        }
        waiting -= at_work
    return [f"{name} was not at work again {CONVERGE_S:.0f} s after the last fault" for name in sorted(waiting)]


def _leave(stage: Stage, auditor: Auditor) -> list[str]:
    late = []
    engines = [actor for actor in stage.actors if isinstance(actor, EngineActor)]
    for engine in engines:
        engine.order(Order.FINISH)
    end = time.monotonic() + CONVERGE_S
    for engine in engines:
        code = engine.wait(max(0.0, end - time.monotonic()))
        if code != 0:
            how = "had not left" if code is None else f"ended with code {code} instead of leaving"
            late.append(f"{engine.name} {how} {CONVERGE_S:.0f} s after it was told to: {engine.last_words()[-300:]}")
    while auditor.open_transfers and time.monotonic() < end:
        time.sleep(POLL_S)
    others = [actor for actor in stage.actors if actor.role != ENGINE]
    for actor in others:
        actor.terminate()
    end = time.monotonic() + WORKER_STOP_S
    for actor in others:
        code = actor.wait(max(0.0, end - time.monotonic()))
        if code != 0:
            late.append(f"{actor.name} ended with {code} when told to: {actor.last_words()[-300:]}")
    time.sleep(POLL_S)
    return late


def _missing(plan: Plan, stage: Stage, commits: int) -> list[str]:
    """Minimums that were not reached."""
    wanted = (
        ("kills", stage.kills.total(), plan.kills_min),
        ("faults of the network", stage.network.counts.total(), plan.network_min),
        ("acknowledged commits", commits, plan.commits_min),
    )
    return [f"{found:,} {what}, of {least:,} that should be" for what, found, least in wanted if found < least]
