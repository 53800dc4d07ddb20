"""One worker of a rank moves bytes at a time, and the kernel says which."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from events import limits
from events.errors import InvalidInput
from workers.rank_lock import RankLock, remove_dead_locks
from workers.segment_header import lock_name
from workers.shared_pools import remove_stale

HOLD = """
import sys, time
from pathlib import Path
from workers.rank_lock import RankLock
RankLock("index", "gpu:e0", 0, Path(sys.argv[1])).acquire()
sys.stdout.write("held\\n")
sys.stdout.flush()
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def lock(folder: Path, rank: int = 0) -> RankLock:
    return RankLock("index", "gpu:e0", rank, folder)


def test_a_living_holder_is_named(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    """Otherwise two workers would write the same blocks, or nobody would know whom to end.

    Given a process that holds a rank, when another wants it, then refused with its pid; another rank is free.
    """
    with pytest.raises(InvalidInput, match=rf"rank 0 of pool 'gpu:e0' .* pid {holder.pid}"):
        lock(tmp_path).acquire()

    with lock(tmp_path, rank=1) as other:
        other.acquire()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_holder_holds_nothing(tmp_path: Path, holder: subprocess.Popen[bytes], number: int) -> None:
    """Otherwise a crashed worker could not be started again.

    Given a holder that was killed, when another wants the rank, then it has it at once.
    """
    holder.send_signal(number)
    holder.wait()

    with lock(tmp_path) as mine:
        mine.acquire()


def test_a_stopped_holder_still_holds(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    """Otherwise it would wake up in the middle of a copy and write into blocks of somebody else.

    Given a suspended holder, when another wants the rank, then refused; with takeover it is killed first, for good.
    """
    os.kill(holder.pid, signal.SIGSTOP)
    with pytest.raises(InvalidInput, match="may be stopped"):
        lock(tmp_path).acquire()

    with lock(tmp_path) as mine:
        mine.acquire(takeover=True)
        assert holder.wait(timeout=5) == -signal.SIGKILL


def test_a_released_lock_leaves_nothing(tmp_path: Path) -> None:
    """Otherwise files would pile up in shared memory.

    Given a lock taken and released, twice, then no file is left, and it can be taken again in between.
    """
    for _ in range(2):
        mine = lock(tmp_path)
        mine.acquire()
        with pytest.raises(InvalidInput):
            lock(tmp_path).acquire()
        mine.release()
        mine.release()

    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_holder_is_not_killed(
    tmp_path: Path, holder: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a worker in another container, whose pid means another process here, would cost that process its life.

    Given a lock held by a process of another pid namespace, when taken over, then refused, and nothing is killed.
    """
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b'"namespace":"pid:[', b'"namespace":"pid:[9'))
    monkeypatch.setattr(limits, "TAKEOVER_TIMEOUT_S", 0.1)

    with pytest.raises(InvalidInput, match="cannot see"):
        lock(tmp_path).acquire(takeover=True)

    assert holder.poll() is None


# --- what killed workers leave ------------------------------------------------------------------------------------------


def test_a_killed_holders_file_is_removed(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    """Otherwise every crash of a worker whose pool does not come back leaves a file in shared memory.

    Given a living holder and another's free file, when cleaned up, then the living one's stays and still refuses
    others; when it was killed, its file goes.
    """
    (held,) = tmp_path.iterdir()
    free = tmp_path / lock_name("index", "gpu:gone", 3)
    free.touch()

    assert [removed.name for removed in remove_stale("index", tmp_path)] == [free.name]
    with pytest.raises(InvalidInput, match=f"pid {holder.pid}"):
        lock(tmp_path).acquire()
    os.kill(holder.pid, signal.SIGSTOP)
    assert remove_stale("index", tmp_path) == []
    holder.kill()
    holder.wait()
    assert [removed.name for removed in remove_stale("index", tmp_path)] == [held.name]
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    """Otherwise cleaning up after one index would take from another.

    Given locks of another index, links and folders under such a name, when cleaned up, then all are there.
    """
    mine = tmp_path / lock_name("index", "gpu:e0", 0)
    others = [tmp_path / lock_name("index2", "gpu:e0", 0), mine.with_name(f"{mine.name}.old"), tmp_path / "x"]
    for path in others:
        path.touch()
    mine.with_name(mine.name.replace("-r0", "-r1")).symlink_to(tmp_path / "x")
    mine.mkdir()

    assert remove_dead_locks("index", tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 5


def test_a_lock_taken_while_it_is_cleaned_up_is_somebodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a cleaner takes the name of a lock from a worker that has just got it, and a second one starts.

    Given a dead file that a worker takes over, or replaces, just before the cleaner locks what it has opened, when
    cleaned up, then the worker's file stays, and nobody else gets the lock.
    """
    flock = fcntl.flock
    for replaced in (False, True):
        worker = lock(tmp_path)
        (tmp_path / lock_name("index", "gpu:e0", 0)).touch()

        def come_first(descriptor: int, kind: int, worker: RankLock = worker, replaced: bool = replaced) -> None:
            monkeypatch.setattr(fcntl, "flock", flock)
            if replaced:
                (tmp_path / lock_name("index", "gpu:e0", 0)).unlink()
            worker.acquire()
            flock(descriptor, kind)

        monkeypatch.setattr(fcntl, "flock", come_first)
        assert remove_dead_locks("index", tmp_path) == []
        with pytest.raises(InvalidInput, match=f"pid {os.getpid()}"):
            lock(tmp_path).acquire()
        worker.release()
        assert list(tmp_path.iterdir()) == []


def test_release_takes_its_own_file_only(tmp_path: Path) -> None:
    """Otherwise somebody who tidied up by hand would leave the next worker without a lock.

    Given a lock whose file was removed by hand, and its successor's under the same name, when the first is released,
    then the successor still holds.
    """
    first, second = lock(tmp_path), lock(tmp_path)
    first.acquire()
    (tmp_path / lock_name("index", "gpu:e0", 0)).unlink()
    second.acquire()
    first.release()

    with pytest.raises(InvalidInput, match=f"pid {os.getpid()}"):
        lock(tmp_path).acquire()
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_cleaners_and_workers_at_once(tmp_path: Path) -> None:
    """Otherwise two workers of a rank would move bytes at the same time, once in a thousand starts.

    Given threads that take and release one lock and threads that clean up, all the time, then no two ever hold it.
    """
    inside: list[RankLock] = []
    overlaps: list[int] = []
    end = time.monotonic() + 1.0

    def work() -> None:
        while time.monotonic() < end:
            mine = lock(tmp_path)
            if mine._try():
                inside.append(mine)
                overlaps.extend([1] * (len(inside) - 1))
                inside.remove(mine)
                mine.release()

    def clean() -> None:
        while time.monotonic() < end:
            remove_dead_locks("index", tmp_path)

    with ThreadPoolExecutor(6) as threads:
        tasks = [threads.submit(each) for each in (work, work, work, work, clean, clean)]
    for task in tasks:
        task.result()
    assert overlaps == []
