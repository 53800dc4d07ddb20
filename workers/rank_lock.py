"""One worker of a rank moves bytes at a time: a lock the kernel keeps, and the only way to be sure.

Owns the lock file of (index, pool, rank). A heartbeat only tells that a worker was alive some time ago. A worker that
was stopped in the middle of a copy, and continued after another has finished the transfer, would write into blocks that
belong to somebody else by then: no report and no fence catches that, the bytes are just wrong. So a worker holds an
flock as long as it lives, and who wants to take over ends the one before first. Workers of a rank share its memory, so
they are on one machine, and the kernel of that machine knows.

| the lock is                   | without takeover | with takeover                                                      |
|-------------------------------|------------------|--------------------------------------------------------------------|
| free, or its holder has died  | taken            | taken                                                              |
| held by a process of ours     | InvalidInput     | that process is killed, then taken                                 |
| held by one we cannot see     | InvalidInput     | InvalidInput (another container: end it there)                     |

A worker that ends takes its file along; one that is killed cannot, and `remove_dead_locks` does. Whoever removes a file
holds its lock and has looked that the name still is that file's, so a lock that somebody holds keeps its name, and who
opened the file just before sees that it is no longer in place and begins again.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path
from typing import Final

import orjson

from events import limits
from events.errors import InvalidInput
from workers.segment_header import Process, lock_name, lock_prefix
from workers.shared_memory import SHARED_FOLDER

_POLL_S: Final = 0.01


class RankLock:
    """Held from `acquire` to `release`, or to the end of the process, however it comes."""

    def __init__(self, index: str, pool: str, rank: int, folder: Path = SHARED_FOLDER) -> None:
        self._path = folder / lock_name(index, pool, rank)
        self._whose = f"rank {rank} of pool {pool!r} of index {index!r}"
        self._descriptor: int | None = None

    def acquire(self, *, takeover: bool = False) -> None:
        """Take it. InvalidInput when another process holds it and may not, or cannot, be ended."""
        end = time.monotonic() + limits.TAKEOVER_TIMEOUT_S
        killed = False
        while not self._try():
            holder = self._holder()
            if holder is None and time.monotonic() < end:
                time.sleep(_POLL_S)  # it is just coming or going
                continue
            if holder is None or not takeover:
                who = "a process this one cannot see" if holder is None else f"pid {holder.pid}"
                raise InvalidInput(f"{self._whose} has a worker: {who} (it may be stopped). End it, or take over")
            if time.monotonic() >= end:
                raise InvalidInput(f"{self._whose}: pid {holder.pid} was killed and has not ended; see what holds it")
            if not killed:
                self._kill(holder)
                killed = True
            time.sleep(_POLL_S)

    def release(self) -> None:
        if self._descriptor is not None:
            if _in_place(self._path, self._descriptor):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> RankLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _try(self) -> bool:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise InvalidInput(f"{self._whose}: its lock {self._path} cannot be opened: {error}") from error
        if os.fstat(descriptor).st_uid != os.geteuid():  # who could write it could tell us whom to kill
            owner = os.fstat(descriptor).st_uid
            os.close(descriptor)
            raise InvalidInput(f"{self._whose}: its lock {self._path} belongs to user {owner}: remove it")
        os.fchmod(descriptor, 0o600)
        if not _locked(self._path, descriptor):
            os.close(descriptor)
            return False
        me = Process.current()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, orjson.dumps({"pid": me.pid, "started": me.started, "namespace": _namespace()}), 0)
        self._descriptor = descriptor
        return True

    def _holder(self) -> Process | None:
        """Who holds it, where it can be told from here."""
        try:
            named = orjson.loads(self._path.read_bytes())
            holder = Process(named["pid"], named["started"])
        except (OSError, KeyError, TypeError, orjson.JSONDecodeError):
            return None
        return holder if named.get("namespace") == _namespace() and holder.alive else None

    def _kill(self, holder: Process) -> None:
        try:
            os.kill(holder.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        except PermissionError as error:
            raise InvalidInput(f"{self._whose} has a worker, pid {holder.pid}, of another user: {error}") from error


def remove_dead_locks(index: str, folder: Path = SHARED_FOLDER) -> list[Path]:
    """Remove the lock files that workers of this index left when they were killed; those that somebody holds stay."""
    return [path for path in sorted(folder.glob(f"{lock_prefix(index)}*.lock")) if _remove_dead(path)]


def _remove_dead(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # it went just now, or is another user's
        return False
    try:
        dead = _locked(path, descriptor)
        if dead:
            path.unlink()
        return dead
    finally:
        os.close(descriptor)


def _locked(path: Path, descriptor: int) -> bool:
    """Take the lock of an open file. False: somebody holds it, or the file lost its name before we had it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return _in_place(path, descriptor)


def _in_place(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")
