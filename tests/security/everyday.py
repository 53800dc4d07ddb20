"""What engines, workers and a keeper do on an ordinary day, and on a bad one: as few lines as touch all of it.

Owns the two stories that the tests of rights, of commands and of traces tell. They check that the stories happened; what
a story must leave behind, or must not, is the test's.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from events import connect, limits
from events.keys import IndexKeys
from statecore import CacheIndex
from tests.workers.fleet import GPU_BLOCKS, RANKS, WAIT_S, Fleet, prompt
from workers.keeper import Keeper
from workers.keeper_totals import KeeperSettings, Totals
from workers.launcher import launch_workers, stop_workers
from workers.stores import StoreSettings


def engines_and_workers(fleet: Fleet, worker_url: str) -> None:
    """A prompt is computed, swapped out, and swapped in by a neighbour; a life ends and another begins; all leave."""
    first, second = fleet.engine("engine-0"), fleet.engine("engine-1")
    launched = [
        launch_workers(worker_url, fleet.index, engine.gpu_pool, RANKS, StoreSettings(), log_folder=fleet.folder)
        for engine in (first, second)
    ]
    fleet.workers += [worker for workers in launched for worker in workers]
    hashes = prompt("a", GPU_BLOCKS)
    fleet.compute(first, "a", hashes)
    fleet.compute(first, "b", prompt("b", GPU_BLOCKS))
    second.refresh()
    match = second.match("again", hashes=hashes)
    for transfer in match.waits_for:
        assert second.wait(transfer, WAIT_S).done
    fleet.check(second.gpu_pool, second.table("again"), hashes)
    second.release("again")
    first.rejoin()
    first.match("c", hashes=prompt("c", 2))
    first.release("c")
    stop_workers(fleet.workers)
    second.leave()


def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper that need not wait before it acts, and keeps no margin of the log."""
    monkeypatch.setattr(limits, "LEASE_GRACE_S", 0.0)
    monkeypatch.setattr(limits, "RING_EVERY_S", 0.0)
    monkeypatch.setattr(limits, "SNAPSHOT_MARGIN", 0)


def fill(engine: CacheIndex) -> None:
    """A pool of four blocks, until something is swapped out: there is a job."""
    for name in ("a", "b"):
        engine.match(name, hashes=prompt(name, 4))
        if engine.allocate(name, 4).blocks:
            engine.extend(name, ready=True)
            engine.release(name)
    assert engine.inspect(lambda state: len(state.transfers)) == 1


def a_keeper(engine_url: str, keeper_url: str, admin: Any, index: str) -> Totals:
    """An engine dies with a lost job; a keeper declares it lost, rings the job, publishes snapshots, trims the log."""
    keys = IndexKeys.of(index)
    with connect(engine_url) as dying:
        engine = CacheIndex(dying, name=index, engine="engine-0", gpu_blocks=4, cpu_blocks=8, block_size=4)
        fill(engine)
    admin.xtrim(keys.jobs(engine.gpu_pool), maxlen=0)
    with connect(keeper_url) as connection:
        keeper = Keeper(connection.keeping(index), KeeperSettings(every=1), lambda *_, **__: None)
        keeper.turn()
        admin.delete(keys.lease("engine-0"))
        for _ in range(4):
            time.sleep(0.02)
            keeper.turn()
    return keeper.totals
