"""A keeper as a process: from its settings to the end of its life.

Owns the loop, the signals, and what an exit code says: 0 told to stop, 1 the history is broken or of a newer release, 2
wrong settings or no server at the start.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from events import connect, limits
from events.errors import CorruptState, InvalidInput, StateCoreError
from events.keys import checked_name
from workers.keeper import Keeper
from workers.keeper_metrics import KeeperMetrics
from workers.keeper_totals import KeeperSettings, Totals
from workers.log_lines import LogLines, Say

_BROKEN, _NOT_DONE = 1, 2


def serve(
    url: str, index: str, settings: KeeperSettings, *, stop: threading.Event, say: Say, metrics_port: int | None = None
) -> Totals:
    """Keep an index until told to stop.

    Raises:
        InvalidInput: the settings cannot be. Unavailable: no server at the start. CorruptState: the history is broken.
    """
    checked_name(index, "index name")
    with connect(url) as connection:
        keeper = Keeper(connection.keeping(index), settings, say)
        metrics = KeeperMetrics(index, metrics_port)
        say("ready", pid=os.getpid(), every=settings.every, age_s=settings.age_s)
        try:
            while not stop.is_set():
                keeper.turn()
                metrics.show(keeper.totals)
                time.sleep(
                    limits.KEEPER_EVERY_S
                )  # not stop.wait: a signal handler that sets it would wait for its lock
        finally:
            metrics.close()
    return keeper.totals


def serve_until_signalled(url: str, index: str, settings: KeeperSettings, metrics_port: int | None) -> int:
    """`serve` as the main thread of a process; returns its exit code."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    say = LogLines(index=index, keeper=os.getpid())
    try:
        totals = serve(url, index, settings, stop=stop, say=say, metrics_port=metrics_port)
    except CorruptState as error:
        say("corrupt", reason=str(error))
        return _BROKEN
    except StateCoreError as error:
        say("refused", reason=str(error))
        return _NOT_DONE
    say("stopped", deposed=totals.deposed, rung=totals.rung, published=totals.published)
    return 0


def checked(every: int, age_s: float) -> KeeperSettings:
    """Settings as an operator gives them."""
    if every < 1 or age_s <= 0:
        raise InvalidInput(f"snapshots are taken after at least 1 commit and more than 0 s, not {every} and {age_s}")
    return KeeperSettings(every, age_s)
