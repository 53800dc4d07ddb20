"""Starting the workers of a pool, one process per tensor-parallel rank, and knowing that they work.

Owns the start: a worker counts as ready when its heartbeat is in Redis, written by the very process we started. A child that
dies is noticed at once, and what it said last is in the error; then none of the others is left behind.

A worker's log goes to `<log folder>/<pool>-rank-<r>.log`, anew at every start. To a file and not to its parent, so that
a worker outlives an engine that crashes: the host tier is everybody's.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs

from events import connect, limits
from events.errors import InvalidInput
from events.job_ports import Heartbeat
from events.job_queue import this_host
from workers.interrupts import interrupts_held_back
from workers.rank_lock import remove_dead_locks
from workers.stores import StoreSettings
from workers.worker_process import URL_VARIABLE, WorkerSettings

_POLL_S: Final = 0.02
_TAIL_BYTES: Final = 4096
_TAIL_LINES: Final = 8


def launch_workers(
    url: str,
    index: str,
    pool: str,
    tensor_parallel_size: int,
    store: StoreSettings,
    *,
    timeout_s: float = limits.WORKER_START_TIMEOUT_S,
    takeover: bool = False,
    log_folder: Path | None = None,
) -> list[subprocess.Popen[bytes]]:
    """Start one worker per rank and return when all are ready, in the order of their ranks.

    Args:
        url: of the Redis they shall use, which somebody else keeps running: redis://, rediss:// or unix://; for an
            embedded server the `url` of its connection.
        timeout_s: for all of them together.
        takeover: end workers of these ranks that are alive.
        log_folder: default: a folder of this user's in the temporary folder.

    Raises:
        InvalidInput: what was asked for cannot be; nothing was started.
        RuntimeError: a worker ended, or was not ready in time. Its last lines are in the message; all are ended.
    """
    if url.startswith(("memory:", "embedded:")):
        raise InvalidInput(
            f"workers are processes of their own and need a server that stays: redis://, rediss:// or unix://, not {url}"
        )
    store.maker()
    store.pools(pool)
    first = WorkerSettings(index, pool, 0, tensor_parallel_size, store, takeover)
    folder = _log_folder() if log_folder is None else log_folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with connect(url) as connection:
        seats = connection.jobs(index, pool, 0, tensor_parallel_size, "launcher")
        logs = [folder / f"{_file_name(index)}-{_file_name(pool)}-rank-{rank}.log" for rank in range(seats.ranks)]
        workers: list[subprocess.Popen[bytes]] = []
        try:
            for rank, log in enumerate(logs):
                with interrupts_held_back():  # a worker that is started and not in the list would be nobody's to stop
                    workers.append(_start(url, attrs.evolve(first, rank=rank), log))
            end = time.monotonic() + timeout_s
            while waiting := [rank for rank, beat in enumerate(seats.alive()) if not _is_of(beat, workers[rank])]:
                _check(workers, logs, waiting, timeout_s, late=time.monotonic() >= end)
                time.sleep(_POLL_S)
        except BaseException:
            stop_workers(workers, timeout_s=0.0)
            remove_dead_locks(index)
            raise
    return workers


def _log_folder() -> Path:
    """This user's own. Its name is known, so somebody may have made it first, with links to files of ours in it."""
    folder = Path(tempfile.gettempdir()) / f"statecore-workers-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat(follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise InvalidInput(f"{folder} is open to others, or theirs: remove it, or give a folder for the workers' logs")
    return folder


def stop_workers(
    workers: Sequence[subprocess.Popen[bytes]], timeout_s: float = limits.WORKER_STOP_TIMEOUT_S
) -> list[int]:
    """Ask all to leave (SIGTERM), end by force (SIGKILL) those that have not when the time is over; their exit codes."""
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    end = time.monotonic() + timeout_s
    for worker in workers:
        try:
            worker.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
    return [worker.wait() for worker in workers]


def _start(url: str, settings: WorkerSettings, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "workers.worker_process", settings.to_json()],
            env={
                **settings.store.environment(),
                **os.environ,
                **settings.store.visible(settings.rank),
                URL_VARIABLE: url,
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in the engine's terminal is the engine's; it stops its workers itself
        )


def _check(
    workers: Sequence[subprocess.Popen[bytes]],
    logs: Sequence[Path],
    waiting: list[int],
    timeout_s: float,
    *,
    late: bool,
) -> None:
    for rank, worker in enumerate(workers):
        code = worker.poll()
        if code is not None:
            raise RuntimeError(
                f"the worker of rank {rank} ended with code {code} before it was ready. {_said(logs[rank])}"
            )
    if late:
        raise RuntimeError(
            f"the worker of rank {waiting[0]} was not ready within {timeout_s:g} s (not ready: ranks {waiting}). "
            f"{_said(logs[waiting[0]])}"
        )


def _said(log: Path) -> str:
    """The end of what a worker wrote."""
    with log.open("rb") as written:
        written.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = written.read().decode(errors="replace").strip().splitlines()[-_TAIL_LINES:]
    return f"Its last words, in {log}:\n" + "\n".join(lines or ["(nothing)"])


def _is_of(beat: Heartbeat | None, worker: subprocess.Popen[bytes]) -> bool:
    return beat is not None and (beat.pid, beat.host) == (worker.pid, this_host())


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)
