"""Somebody who reads the log from its first entry on and writes nothing: what the histories are held against.

Owns the collecting. The keeper trims the log behind its snapshots, so it is read continuously, past the failing network,
and kept. An entry that was seen is evidence: the log may neither lose nor change it.
"""

from __future__ import annotations

import threading
import time
from typing import Final

import attrs

from events import connect
from events.errors import CorruptState, StateCoreError, Unavailable
from events.log import LogConnection
from events.ports import Entry
from statecore.replica import Replica

PAUSE_S: Final = 0.1


@attrs.frozen
class Seen:
    """An entry and when the auditor saw it, by the clock all processes share."""

    entry: Entry
    at: float


class Auditor:
    """A thread of its own. Use as a context.

    Attributes:
        seen: entries by their order; position n is seen[n - 1].
        faults: what it found that cannot be, in words.
        engines_alive, open_transfers: after the last entry seen.
    """

    def __init__(self, url: str, index: str) -> None:
        self._url = url
        self._index = index
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="auditor", daemon=True)
        self.seen: list[Seen] = []
        self.faults: list[str] = []
        self.engines_alive = 0
        self.open_transfers = 0
        self._replica = Replica()

    @property
    def position(self) -> int:
        return len(self.seen)

    def __enter__(self) -> Auditor:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def read_again(self) -> tuple[Entry, ...]:
        """What the log holds now, from its first entry that is left.

        Raises:
            Unavailable, CorruptState: it cannot be read.
        """
        with connect(self._url) as connection:
            log = connection.log(self._index, follow=False)
            entries: list[Entry] = []
            while page := log.read(entries[-1].position if entries else 0):
                entries += page
            return tuple(entries)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                with connect(self._url) as connection:
                    self._follow(connection)
            except Unavailable:
                self._ended.wait(PAUSE_S)
            except StateCoreError as error:
                self.faults.append(f"the log cannot be read: {error}")
                return

    def _follow(self, connection: LogConnection) -> None:
        log = connection.log(self._index, follow=False)
        while not self._ended.is_set():
            page = log.read(self.position)
            if not page:
                self._ended.wait(PAUSE_S)
            for entry in page:
                if entry.position != self.position + 1:
                    raise CorruptState(f"after position {self.position} comes {entry.position}")
                self._replica.apply(entry)
                self.seen.append(Seen(entry, time.monotonic()))
            state = self._replica.state
            self.engines_alive = sum(engine.alive for engine in state.engines.values())
            self.open_transfers = len(state.transfers) + len(state.sends)
