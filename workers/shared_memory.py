"""Shared memory that several processes open by name: one segment for each (index, pool, rank).

Owns making, opening, checking and removing segments. Knows nothing of blocks: behind the header page come bytes.

A segment is a file in /dev/shm with mode 0600, mapped with mmap.

**Made whole.** The file is filled under a name of its own and then linked to its real name, which fails when that
exists. So a segment under its real name is complete, and of two creators one makes it and the other opens it.
Its space is taken from the file system at once: too little of it is an error here, not a SIGBUS in a later copy.

**Who uses it is known to the kernel.** Every mapping holds a shared flock: mmap keeps a duplicate of the descriptor,
so the lock lives exactly as long as the mapping, whatever kills the process. (A forked child inherits both.) Removing
takes the exclusive lock, so nobody loses memory that is in use.

**Not multiprocessing.shared_memory:** in Python 3.11 every process that opens such a segment registers it with its
resource tracker, and the tracker unlinks it when that process ends: a worker that stops would take the pool's name
away from all engines. It has neither a mode, nor an identity, nor a check of the size.

| a segment                                            | attach               | create               | remove_stale |
|------------------------------------------------------|----------------------|----------------------|--------------|
| in use, or its creator lives                         | opens                | opens                | keeps        |
| nobody uses it and its creator is dead               | opens: a warm start  | opens: a warm start  | removes      |
| of another layout, size, owner, header, incarnation  | InvalidInput         | InvalidInput         | as above     |
| holds CUDA handles and its creator is dead           | MemoryGone           | makes a new one      | removes      |
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from events.errors import InvalidInput
from workers.layout import CacheLayout
from workers.segment_header import CUDA, HEADER_BYTES, Process, SegmentHeader, checked_identity, segment_name
from workers.store import MemoryGone

SHARED_FOLDER: Final = Path("/dev/shm")

_MODE: Final = 0o600
_UNFINISHED: Final = ".new-"
_LOCK_ATTEMPTS: Final = 200
_LOCK_WAIT_S: Final = 0.01
"""An exclusive lock is held for a few system calls; two seconds mean that its holder is stopped."""
_CREATE_ATTEMPTS: Final = 10
"""Each lost attempt means that another process made or removed the segment in between."""


class Segment:
    """One mapped segment. `buffer` is the mapping, header page included; arrays over it keep it, and its lock, alive."""

    def __init__(self, path: Path, header: SegmentHeader, descriptor: int, *, created: bool) -> None:
        self.path = path
        self.header = header
        self.created = created
        status = os.fstat(descriptor)
        self._identity = (status.st_dev, status.st_ino)
        # Page tables are filled here: otherwise the first copy into each page pays a fault that costs as much again.
        self.buffer = mmap.mmap(descriptor, header.segment_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)

    def check_in_place(self) -> None:
        """MemoryGone when the name is gone or belongs to other memory, whose bytes are not ours; or when the file was
        cut, and touching what is missing would end this process with SIGBUS.
        """
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            what = "removed"
        else:
            if (status.st_dev, status.st_ino) != self._identity:
                what = "replaced"
            elif status.st_size != self.header.segment_bytes:
                what = f"cut from {self.header.segment_bytes} to {status.st_size} bytes"
            else:
                return
        raise MemoryGone(f"{self.path} was {what} after it was opened (incarnation {self.header.incarnation})")

    def close(self) -> None:
        """Unmap. Arrays that still look at the memory keep it mapped and in use until they are gone."""
        with contextlib.suppress(BufferError):
            self.buffer.close()


def attach(
    folder: Path,
    index: str,
    pool: str,
    rank: int,
    *,
    layout: CacheLayout | None = None,
    incarnation: str | None = None,
) -> Segment:
    """Open an existing segment. MemoryGone when there is none; InvalidInput when it is not the expected one."""
    checked_identity(index, pool, rank)
    path = folder / segment_name(index, pool, rank)
    with opened(path) as descriptor:
        header = read_header(path, descriptor)
        _check(path, header, (index, pool, rank), layout, incarnation)
        if header.memory == CUDA and not header.creator.alive:
            raise MemoryGone(f"{path}: the GPU memory of pool {pool!r} went with its creator, pid {header.creator.pid}")
        return Segment(path, header, descriptor, created=False)


def create(folder: Path, header: SegmentHeader, payload: Callable[[], bytes] | None = None) -> Segment:
    """Make the segment, zeroed or beginning with `payload()`; or open it when it exists with the same layout."""
    checked_identity(header.index, header.pool, header.rank, header.tier)
    for _ in range(_CREATE_ATTEMPTS):
        try:
            found = attach(folder, header.index, header.pool, header.rank, layout=header.layout)
        except MemoryGone:
            _remove_dead_cuda(folder / header.name)
        else:
            _check_same_kind(found, header)
            return found
        made = _make(folder, header, payload)
        if made is not None:
            return made
    raise InvalidInput(
        f"{folder / header.name} was made and removed {_CREATE_ATTEMPTS} times while we tried to open it"
    )


def remove_if_unused(path: Path, *, only_of_the_dead: bool = False) -> bool:
    """Remove a segment that nobody has open; optionally only if its creator is dead too. Returns whether it is gone."""
    with contextlib.suppress(MemoryGone), opened(path, exclusive=True) as descriptor:
        if descriptor < 0:
            return False
        if only_of_the_dead and read_header(path, descriptor).creator.alive:
            return False
        path.unlink()
    return True


def remove_unfinished(path: Path) -> bool:
    """Remove the file of a creator that died before it could give it its name."""
    with contextlib.suppress(MemoryGone), opened(path, exclusive=True) as descriptor:
        # Between making the file and locking it, its creator is known by its pid alone.
        pid = path.name.rpartition(_UNFINISHED)[2].partition("-")[0]
        if descriptor < 0 or not pid.isdigit() or Process.of(int(pid)):
            return False
        path.unlink()
    return True


def is_unfinished(path: Path) -> bool:
    return _UNFINISHED in path.name


@contextlib.contextmanager
def opened(path: Path, *, exclusive: bool = False) -> Iterator[int]:
    """Descriptor of a segment file, ours and locked; -1 when `exclusive` and somebody uses it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise MemoryGone(f"there is no shared memory {path}: no process created it, or it was removed") from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise InvalidInput(f"{path} is not ours: owner {status.st_uid}, mode {stat.filemode(status.st_mode)}")
        locked = _lock(descriptor, fcntl.LOCK_EX, attempts=1) if exclusive else _lock(descriptor, fcntl.LOCK_SH)
        if not locked and not exclusive:
            raise InvalidInput(f"{path} is being removed by a process that does not go on; nothing was opened")
        if os.fstat(descriptor).st_nlink == 0:
            raise MemoryGone(f"the shared memory {path} was removed while it was opened")
        yield descriptor if locked else -1
    finally:
        os.close(descriptor)


def read_header(path: Path, descriptor: int) -> SegmentHeader:
    try:
        return SegmentHeader.decode(os.pread(descriptor, HEADER_BYTES, 0))
    except InvalidInput as error:
        raise InvalidInput(f"{path} is not a segment of ours: {error}") from error


def _lock(descriptor: int, kind: int, attempts: int = _LOCK_ATTEMPTS) -> bool:
    for attempt in range(attempts):
        if attempt:
            time.sleep(_LOCK_WAIT_S)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
    return False


def _check(
    path: Path,
    header: SegmentHeader,
    asked: tuple[str, str, int],
    layout: CacheLayout | None,
    incarnation: str | None,
) -> None:
    found = (header.index, header.pool, header.rank)
    if found != asked:
        raise InvalidInput(f"{path} belongs to index, pool, rank {found}, not to {asked}")
    if layout is not None and layout != header.layout:
        raise InvalidInput(f"{path} was created with {header.layout}; asked for {layout}")
    if incarnation is not None and incarnation != header.incarnation:
        raise InvalidInput(
            f"{path} is incarnation {header.incarnation}, not {incarnation}: the memory was made anew and what was "
            "known about its blocks is void"
        )
    size = path.stat().st_size
    if size != header.segment_bytes:
        raise InvalidInput(f"{path} has {size} bytes; {header.layout} and the header need {header.segment_bytes}")


def _check_same_kind(found: Segment, wanted: SegmentHeader) -> None:
    there, here = (found.header.tier, found.header.memory), (wanted.tier, wanted.memory)
    if there != here:
        found.close()
        raise InvalidInput(f"{found.path} was created as tier, memory {there}; asked for {here}")


def _make(folder: Path, header: SegmentHeader, payload: Callable[[], bytes] | None) -> Segment | None:
    """The new segment, or None when another process was faster."""
    path = folder / header.name
    unfinished = folder / f"{header.name}{_UNFINISHED}{header.creator.pid}-{secrets.token_hex(4)}"
    page = header.encode()
    descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
    try:
        os.fchmod(descriptor, _MODE)  # a umask may have taken the owner's own rights
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _take_space(folder, descriptor, header)
        os.pwrite(descriptor, page, 0)
        if payload is not None:
            content = payload()
            assert len(content) == header.payload_bytes, f"{len(content)} bytes, not {header.payload_bytes}"
            os.pwrite(descriptor, content, HEADER_BYTES)
        try:
            os.link(unfinished, path)
        except FileExistsError:
            return None
        return Segment(path, header, descriptor, created=True)
    finally:
        unfinished.unlink()
        os.close(descriptor)


def _take_space(folder: Path, descriptor: int, header: SegmentHeader) -> None:
    space = os.statvfs(folder)
    free = space.f_bavail * space.f_frsize
    try:
        if header.segment_bytes > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate(descriptor, 0, header.segment_bytes)
    except OSError as error:
        raise InvalidInput(
            f"pool {header.pool!r} ({header.layout}) needs {header.segment_bytes} bytes in {folder}, which has {free} "
            f"free: {error.strerror}"
        ) from error


def _remove_dead_cuda(path: Path) -> None:
    """Take away the name of handles whose memory is gone, also from those who still have them open.

    They hold locks, so the folder's lock keeps two processes from doing this at once: the slower one would take the
    name of what the faster one has made since.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not _lock(folder, fcntl.LOCK_EX):
            raise InvalidInput(f"{path.parent} is locked by a process that does not go on; nothing was made")
        with contextlib.suppress(MemoryGone), opened(path) as descriptor:
            header = read_header(path, descriptor)
            if header.memory == CUDA and not header.creator.alive:
                path.unlink()
    finally:
        os.close(folder)
