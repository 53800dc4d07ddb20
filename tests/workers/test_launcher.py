"""Starting workers: ready means ready, and what goes wrong is known at once, with the child's own words."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from events.embedded import EmbeddedRedis
from events.errors import InvalidInput
from tests.workers.fleet import GPU_BLOCKS, HOST_BLOCKS, LAYOUT, RANKS, Fleet
from workers.launcher import launch_workers, stop_workers
from workers.stores import StoreSettings
from workers.worker_process import WorkerSettings

BROKEN = "tests.workers.held_store:BrokenStore"


@pytest.fixture
def fleet(embedded_redis: EmbeddedRedis, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(embedded_redis.url, tmp_path)
    yield made
    made.close()


def test_workers_are_ready_when_launched(fleet: Fleet) -> None:
    """Otherwise an engine would begin to serve while nobody moves its bytes.

    Given two ranks, when launched, then both have a heartbeat, of these very processes; when stopped, both are gone.
    """
    engine = fleet.engine("e0")
    workers = fleet.launch(engine)
    seats = fleet.connection.jobs(fleet.index, engine.gpu_pool, 0, RANKS, "look")

    assert [beat and beat.pid for beat in seats.alive()] == [worker.pid for worker in workers]
    assert stop_workers(workers) == [0, 0]
    assert seats.alive() == (None, None)


def test_a_worker_that_dies_at_its_start_is_noticed_at_once(fleet: Fleet) -> None:
    """Otherwise the engine would wait for ever, as the reference implementation does.

    Given a store that cannot be made, when launched with a minute's patience, then it fails within seconds, with the
    rank, the exit code and what the child said last; and no child is left.
    """
    engine = fleet.engine("e0")
    begun = time.monotonic()

    with pytest.raises(RuntimeError, match=r"(?s)worker of rank \d ended with code 1 .*libcuda.so.1 is missing"):
        fleet.launch(engine, BROKEN, timeout_s=60)

    assert time.monotonic() - begun < 15
    assert fleet.connection.jobs(fleet.index, engine.gpu_pool, 0, RANKS, "look").alive() == (None, None)


def test_workers_that_are_not_ready_in_time_are_ended(fleet: Fleet) -> None:
    """Otherwise a half-started set of workers would stay behind.

    Given no time at all, when launched, then the error says which ranks were not ready, and no child is left.
    """
    engine = fleet.engine("e0")
    with pytest.raises(RuntimeError, match=r"not ready within 0 s \(not ready: ranks \[0, 1\]\)"):
        fleet.launch(engine, timeout_s=0.0)
    fleet.launch(engine)


def test_a_second_set_of_workers_is_refused(fleet: Fleet) -> None:
    """Otherwise two processes would write the same blocks.

    Given living workers, when launched again, then refused, naming the one that is there; the first go on.
    """
    engine = fleet.engine("e0")
    workers = fleet.launch(engine)

    with pytest.raises(RuntimeError, match=f"(?s)code 2 .*pid ({workers[0].pid}|{workers[1].pid})"):
        fleet.launch(engine)

    assert [worker.poll() for worker in workers] == [None, None]


def test_a_killed_worker_is_replaced_without_waiting_for_its_heartbeat(fleet: Fleet) -> None:
    """Otherwise every crash would cost the time a heartbeat takes to run out.

    Given a worker that was killed, when launched again, then its successor is ready at once.
    """
    engine = fleet.engine("e0")
    workers = fleet.launch(engine)
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    begun = time.monotonic()

    fleet.launch(engine)

    assert time.monotonic() - begun < 8


def test_workers_can_make_the_memory(fleet: Fleet) -> None:
    """Otherwise an engine whose cache tensors are the worker's could not start.

    Given a layout and a host pool's size, when launched for a pool without memory, then its memory is there in that
    layout; with another layout than what is there, refused with both.
    """
    engine = fleet.engine("e0")
    held = StoreSettings(layout=LAYOUT.to_json(), host_blocks=HOST_BLOCKS)
    for store in fleet.stores:
        store.unlink(engine.gpu_pool)

    workers = launch_workers(fleet.url, fleet.index, engine.gpu_pool, RANKS, held, log_folder=fleet.folder)
    fleet.workers += workers
    for store in fleet.stores:
        assert store.attach(engine.gpu_pool).layout == LAYOUT
    stop_workers(workers)

    other = StoreSettings(layout=attrs.evolve(LAYOUT, num_blocks=GPU_BLOCKS + 1).to_json())
    with pytest.raises(RuntimeError, match=rf"{GPU_BLOCKS} blocks"):
        launch_workers(fleet.url, fleet.index, engine.gpu_pool, RANKS, other, log_folder=fleet.folder)


@pytest.mark.parametrize(
    ("url", "settings", "says"),
    [
        ("memory://", StoreSettings(), "memory://"),
        ("embedded:///tmp/x", StoreSettings(), "embedded://"),
        ("unix:///nowhere", StoreSettings(store="disk"), "'disk'"),
        ("unix:///nowhere", StoreSettings(store="nowhere:Store"), "nowhere"),
        ("unix:///nowhere", StoreSettings(store="workers.layout:Store"), "Store"),
        ("unix:///nowhere", StoreSettings(host_blocks=3), "layout"),
        ("unix:///nowhere", StoreSettings(layout="{}"), "layout"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    tmp_path: Path, url: str, settings: StoreSettings, says: str
) -> None:
    """Otherwise a typing mistake would be found in a child's log.

    Given settings that cannot be, when launched, then refused by name, and no child was started.
    """
    with pytest.raises(InvalidInput, match=says):
        launch_workers(url, "i", "gpu:e0", 1, settings, log_folder=tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_settings_travel_as_they_are() -> None:
    """Otherwise a worker would serve another pool than it was started for.

    Given settings, when written and read, then equal; anything else is refused.
    """
    settings = WorkerSettings("i", "gpu:e0", 1, 4, StoreSettings("paddle@gpu:1", host_blocks=0), takeover=True)

    assert WorkerSettings.from_json(settings.to_json()) == settings
    for text in ("", "[]", "{}", '{"store":{}}', '{"store":3}'):
        with pytest.raises(InvalidInput, match="settings"):
            WorkerSettings.from_json(text)


def test_the_command_says_what_is_wrong(embedded_redis: EmbeddedRedis) -> None:
    """Otherwise an operator would read a traceback.

    Given a worker in the foreground with a rank that does not exist, then exit code 2 and one line with the numbers.
    """
    code = "from ops.worker_command import command; command()"
    options = ["--url", embedded_redis.url, "--index", "i", "--pool", "gpu:e0", "--rank", "5", "--tp", "2"]
    ended = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, timeout=30, check=False)

    assert ended.returncode == 2
    assert b'"event":"refused"' in ended.stderr
    assert b"rank 5 of 2" in ended.stderr
    assert ended.stderr.count(b"\n") == 1
