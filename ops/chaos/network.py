"""A network that fails at random, from a seed, and counts what it did.

Owns how often a command meets which fault, when a late one arrives, and the commands that are held back on purpose: the last
words of an engine that is then killed. Counts the refusals of sessions that are over, which it sees go by.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import Final

from ops.chaos.proxy import Fault, Proxy

SCRIPT_RATE: Final = 0.03
OTHER_RATE: Final = 0.01
"""Share of commands that meet a fault: scripts are what changes something, all else is reads and heartbeats."""

KINDS: Final = (Fault.LOSE_REQUEST, Fault.LOSE_REPLY, Fault.LATE, Fault.DELAY, Fault.HANG, Fault.LATE_REPLY)
WEIGHTS: Final = (30, 30, 20, 16, 2, 2)
"""Few hang or are answered late: each costs a client its timeout of seconds, in which nothing can go wrong with it."""

LATE_S: Final = 3.0
DELAY_S: Final = 0.3
"""At most; a late command arrives after its sender has found out what it could, or in the middle of that."""

_LATE_POLL_S: Final = 0.05
_FENCED: Final = b"$6\r\nfenced\r\n"
_TAG_BYTES: Final = 32


class Network(Proxy):
    """Between every client and the server.

    Attributes:
        failing: whether faults are drawn at present.
        counts: faults so far.
        fenced: answers that refused a session that was over.
    """

    def __init__(self, target: tuple[str, int], seed: int) -> None:
        self._chance = random.Random(f"{seed}/network")
        self._drawing = threading.Lock()
        self._waiting_for: dict[bytes, bytes | None] = {}
        self._ended = threading.Event()
        self.failing = False
        self.counts: Counter[Fault] = Counter()
        self.fenced = 0
        super().__init__(target)
        self._late = threading.Thread(target=self._deliver_late, name="late commands", daemon=True)
        self._late.start()

    def fault_of(self, name: str, request: bytes) -> Fault:
        with self._drawing:
            if self._waiting_for and self._is_awaited(name, request):
                return Fault.HANG
            script = name.startswith("EVAL")
            if not self.failing or self._chance.random() >= (SCRIPT_RATE if script else OTHER_RATE):
                return Fault.NONE
            fault = self._chance.choices(KINDS, WEIGHTS)[0]
            self.counts[fault] += 1
            return fault

    def delay_s(self) -> float:
        with self._drawing:
            return self._chance.uniform(0, DELAY_S)

    def heard(self, reply: bytes) -> None:
        if _FENCED in reply[:_TAG_BYTES]:
            with self._drawing:
                self.fenced += 1

    # --- last words -----------------------------------------------------------------------------------------------------

    def await_commit(self, engine: str) -> None:
        """Hold back the next commit of this engine, without telling it."""
        with self._drawing:
            self._waiting_for[_author(engine)] = None

    def caught(self, engine: str) -> bytes | None:
        """The commit that was held back, or None; asking for a caught one ends the waiting."""
        with self._drawing:
            found = self._waiting_for.get(_author(engine))
            if found is not None:
                del self._waiting_for[_author(engine)]
            return found

    def give_up(self, engine: str) -> None:
        """Wait no longer."""
        with self._drawing:
            self._waiting_for.pop(_author(engine), None)

    def close(self) -> None:
        self._ended.set()
        super().close()
        self._late.join()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _is_awaited(self, name: str, request: bytes) -> bool:
        if not name.startswith("EVAL"):
            return False
        for author, found in self._waiting_for.items():
            if found is None and author in request:
                self._waiting_for[author] = request
                return True
        return False

    def _deliver_late(self) -> None:
        while not self._ended.wait(_LATE_POLL_S):
            with self._drawing:
                older_than_s = self._chance.uniform(0, LATE_S)
            for held in self.due(older_than_s):
                try:
                    self.send(held.request)
                except OSError:
                    continue  # the server is away: the command is lost after all


def _author(engine: str) -> bytes:
    """What only the commits of an engine hold: the author in an entry's meta, before its session."""
    return f" {engine}#".encode()
