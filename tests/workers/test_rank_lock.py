"""One worker of a rank moves bytes at a time, and the kernel says which."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from events import limits
from events.errors import InvalidInput
from workers.rank_lock import RankLock

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
