"""Starting workers: ready means ready, and what goes wrong is known at once, with the child's own words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest

from events.embedded import EmbeddedRedis
from events.errors import InvalidInput
from tests.processes import WORKER, children_of
from tests.stores.given import import_paddle
from tests.workers.fleet import GPU_BLOCKS, HOST_BLOCKS, LAYOUT, RANKS, WAIT_S, Fleet
from workers.launcher import launch_workers, stop_workers
from workers.numpy_store import COPY_ENVIRONMENT
from workers.segment_header import lock_prefix
from workers.shared_memory import SHARED_FOLDER
from workers.stores import StoreSettings
from workers.worker_process import WorkerSettings

STORES = "tests.workers.held_store"
COMMAND = "from ops.worker_command import command; command()"
TUNABLE = COPY_ENVIRONMENT["GLIBC_TUNABLES"]


def left_behind(fleet: Fleet) -> list[str]:
    """Locks of the index's workers."""
    return sorted(path.name for path in SHARED_FOLDER.glob(f"{lock_prefix(fleet.index)}*"))


def children() -> list[int]:
    """Worker processes of this one."""
    return children_of(os.getpid(), WORKER)


def environment_of(pid: int) -> dict[str, str]:
    """As the process was started."""
    lines = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(line.split("=", 1) for line in lines if line)


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


@pytest.mark.parametrize(
    ("store", "says"),
    [
        ("BrokenStore", r"code 1 .*RuntimeError: libcuda.so.1 is missing, says rank \d of fleet-"),
        ("KilledStore", r"code -9 .*taking 900 GB, says rank \d of fleet-"),
    ],
)
def test_a_worker_that_dies_at_its_start_is_noticed_at_once(fleet: Fleet, store: str, says: str) -> None:
    """Otherwise the engine would wait for ever, as the reference implementation does.

    Given a store that cannot be made, or whose process is killed, when launched with a minute's patience, then it fails
    within seconds, with the rank, the exit code and what the child said last; and no child and no lock is left.
    """
    engine = fleet.engine("e0")
    begun = time.monotonic()

    with pytest.raises(RuntimeError, match=rf"(?s)worker of rank \d ended with {says}"):
        fleet.launch(engine, f"{STORES}:{store}", timeout_s=60)

    assert time.monotonic() - begun < 15
    assert fleet.connection.jobs(fleet.index, engine.gpu_pool, 0, RANKS, "look").alive() == (None, None)
    assert left_behind(fleet) == []


def test_workers_that_are_not_ready_in_time_are_ended(fleet: Fleet) -> None:
    """Otherwise a half-started set of workers would stay behind.

    Given no time at all, when launched, then the error says which ranks were not ready, and no child is left.
    """
    engine = fleet.engine("e0")
    with pytest.raises(RuntimeError, match=r"not ready within 0 s \(not ready: ranks \[0, 1\]\)"):
        fleet.launch(engine, timeout_s=0.0)
    fleet.launch(engine)


def test_a_worker_that_hangs_is_ended_when_the_time_is_over(fleet: Fleet) -> None:
    """Otherwise an engine would hang with its workers, and nobody would know in what.

    Given a store that never gets ready, when launched with two seconds' patience, then the error comes then, with the
    ranks and what the child said last; the children are gone, and their locks.
    """
    engine = fleet.engine("e0")
    begun = time.monotonic()

    says = r"(?s)not ready within 2 s \(not ready: ranks \[0, 1\]\).*waiting for the driver, says rank 0 of fleet-"
    with pytest.raises(RuntimeError, match=says):
        fleet.launch(engine, f"{STORES}:EndlessStore", timeout_s=2.0)

    assert 2 <= time.monotonic() - begun < 10
    assert children() == []
    assert left_behind(fleet) == []


def test_ctrl_c_while_a_worker_is_started_leaves_none(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a worker that is started and not yet in anybody's list would run for ever, and hold its memory.

    Given a Ctrl-C that comes when a worker's process is there and nobody has been told, when launching, then it is a Ctrl-C,
    and no worker and no lock is left.
    """
    engine = fleet.engine("e0")
    started: list[int] = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            started.append(self.pid)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)

    with pytest.raises(KeyboardInterrupt):
        fleet.launch(engine)

    assert len(started) == 1
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
    assert left_behind(fleet) == []


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
    options = ["--url", embedded_redis.url, "--index", "i", "--pool", "gpu:e0", "--rank", "5", "--tp", "2"]
    ended = subprocess.run([sys.executable, "-c", COMMAND, *options], capture_output=True, timeout=30, check=False)

    assert ended.returncode == 2
    assert b'"event":"refused"' in ended.stderr
    assert b"rank 5 of 2" in ended.stderr
    assert ended.stderr.count(b"\n") == 1


@pytest.mark.parametrize("store", ["nowhere", "nowhere:Store"])
def test_the_command_says_which_stores_there_are(store: str) -> None:
    """Otherwise a typing mistake would be a traceback.

    Given a store that nobody knows, then exit code 2 and one line that names it.
    """
    options = ["--url", "unix:///nowhere", "--index", "i", "--pool", "gpu:e0", "--rank", "0", "--store", store]
    ended = subprocess.run([sys.executable, "-c", COMMAND, *options], capture_output=True, timeout=30, check=False)

    assert ended.returncode == 2
    assert f"{store}" in orjson.loads(ended.stderr)["reason"]


# --- fast copies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["numpy", "paddle@cpu"])
def test_launched_workers_copy_past_the_caches(fleet: Fleet, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise large swaps would take twice their time on machines with a large cache.

    Given an engine's environment without the setting of the C library, when launched, then every worker was started
    with it; given one that sets it otherwise, then the worker has that.
    """
    if store.startswith("paddle"):
        import_paddle()
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    workers = fleet.launch(fleet.engine("e0"), store)
    assert [environment_of(worker.pid)["GLIBC_TUNABLES"] for worker in workers] == [TUNABLE] * RANKS

    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    (worker, *_) = fleet.launch(fleet.engine("e1"), store)
    assert environment_of(worker.pid)["GLIBC_TUNABLES"] == "glibc.malloc.check=1"


def test_a_worker_started_by_hand_copies_past_the_caches(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the same worker would be slower when an operator starts it than when an engine does.

    Given a terminal without the setting, when the command is started there, then the worker has it, under the pid the
    operator sees; it works, and SIGTERM ends it with code 0.
    """
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    engine = fleet.engine("e0")
    options = ["--url", fleet.url, "--index", fleet.index, "--pool", engine.gpu_pool, "--rank", "0", "--tp", str(RANKS)]
    with subprocess.Popen([sys.executable, "-c", COMMAND, *options], stderr=subprocess.PIPE) as worker:
        fleet.workers.append(worker)
        assert worker.stderr is not None
        ready = orjson.loads(worker.stderr.readline())
        assert (ready["event"], ready["pid"]) == ("ready", worker.pid)
        assert environment_of(worker.pid)["GLIBC_TUNABLES"] == TUNABLE
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(WAIT_S) == 0
        assert orjson.loads(worker.stderr.readline())["event"] == "stopped"
    assert left_behind(fleet) == []
