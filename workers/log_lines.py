"""A worker's log: one JSON object a line, on standard error.

Owns the form of a line. What is said is the business of who says it; every line carries what the worker is (index, pool,
rank) and the time, so that the lines of many workers can be poured together.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import BinaryIO, Protocol

import orjson


class Say(Protocol):
    """Say what happened: a word, and its details."""

    def __call__(self, event: str, /, **details: object) -> None: ...


class LogLines:
    """Implements `Say`. Thread-safe; never fails: a worker does not stop because nobody reads what it says."""

    def __init__(self, stream: BinaryIO | None = None, **every_line: object) -> None:
        self._stream: BinaryIO | None = sys.stderr.buffer if stream is None else stream
        self._every_line = every_line
        self._mutex = threading.Lock()

    def __call__(self, event: str, /, **details: object) -> None:
        line = orjson.dumps(
            {"event": event, "at": round(time.time(), 3), **self._every_line, **details},
            default=str,
            option=orjson.OPT_APPEND_NEWLINE,
        )
        with self._mutex:
            if self._stream is None:
                return
            try:
                self._stream.write(line)
                self._stream.flush()
            except (OSError, ValueError):  # the reader went away
                self._stream = None
