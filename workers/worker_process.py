"""One swap worker as a process: from its settings to the end of its life.

Owns the order of starting and leaving, and the signals. `statecore worker` and the launcher both come through here.

    python -m workers.worker_process '<settings as JSON>'    and the URL in STATECORE_WORKER_URL, where `ps` does not show it

Starting: the lock of the rank (`rank_lock.py`), the log's server, the pools whose layout it was given, the seat. From then
on its heartbeat says that it is ready. SIGTERM and SIGINT: the copy at hand is ended and reported, then it leaves.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Final

import attrs
import orjson

from events import connect
from events.errors import InvalidInput, StateCoreError
from events.job_queue import this_host
from events.keys import checked_name
from events.log import LogConnection
from workers.log_lines import LogLines, Say
from workers.rank_lock import RankLock
from workers.stores import OpenPools, StoreSettings
from workers.swap import Totals, run

URL_VARIABLE: Final = "STATECORE_WORKER_URL"
_NOT_DONE: Final = 2


@attrs.frozen
class WorkerSettings:
    """What a worker has to know.

    Attributes:
        index, pool, rank, ranks: whose jobs it takes.
        store: what holds the bytes.
        takeover: end a worker of this rank that is alive.
        name: its name on the job lists; the same at every start, so that it finds what it did not finish.
    """

    index: str
    pool: str
    rank: int
    ranks: int
    store: StoreSettings = attrs.Factory(StoreSettings)
    takeover: bool = False
    name: str = attrs.Factory(socket.gethostname)

    def to_json(self) -> str:
        return orjson.dumps(attrs.asdict(self)).decode()

    @classmethod
    def from_json(cls, text: str) -> WorkerSettings:
        try:
            named = orjson.loads(text)
            return cls(**{**named, "store": StoreSettings(**named["store"])})
        except (KeyError, TypeError, orjson.JSONDecodeError) as error:
            raise InvalidInput(f"not the settings of a worker: {text!r:.300} ({error})") from None


def serve(url: str, settings: WorkerSettings, *, stop: threading.Event, say: Say) -> Totals:
    """Be a worker until told to stop.

    Raises:
        InvalidInput: the settings cannot be; a worker of this rank lives.
        Unavailable: the log's server cannot be reached at the start.
    """
    checked_name(settings.index, "index name")
    make = settings.store.maker()
    pools = settings.store.pools(settings.pool)
    with RankLock(settings.index, settings.pool, settings.rank) as lock:
        lock.acquire(takeover=settings.takeover)
        with connect(url) as connection:
            return _work(connection, settings, OpenPools(lambda: make(settings.index, settings.rank), pools), stop, say)


def _work(
    connection: LogConnection, settings: WorkerSettings, pools: OpenPools, stop: threading.Event, say: Say
) -> Totals:
    try:
        jobs = connection.jobs(settings.index, settings.pool, settings.rank, settings.ranks, settings.name)
        other = jobs.alive()[settings.rank]
        # We hold this machine's lock of the rank: a heartbeat from this machine is that of a worker that has died.
        dead = other is not None and other.host == this_host()
        jobs.enter(takeover=settings.takeover or dead)
        say("ready", worker=settings.name, pid=os.getpid())
        return run(jobs, pools, stop=stop, say=say)
    finally:
        pools.close()


def restart_with(variables: Mapping[str, str]) -> None:
    """Begin this process again, same pid and same command, with variables that count only at a process's start.

    Those that are set stay as they are; when all are, nothing happens.
    """
    missing = {name: value for name, value in variables.items() if name not in os.environ}
    if missing:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **missing})


def serve_until_signalled(url: str, settings: WorkerSettings) -> int:
    """`serve` as the main thread of a process; returns its exit code."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    say = LogLines(index=settings.index, pool=settings.pool, rank=settings.rank)
    try:
        serve(url, settings, stop=stop, say=say)
    except StateCoreError as error:
        say("refused", reason=str(error))
        return _NOT_DONE
    return 0


if __name__ == "__main__":
    sys.exit(serve_until_signalled(os.environ[URL_VARIABLE], WorkerSettings.from_json(sys.argv[1])))
