"""Holding back what would end us while a process is started that nobody could stop yet.

Ctrl-C and SIGTERM raise in the main thread between any two of its instructions: also when a child is running already,
and its parent has not been told.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """What comes in the block comes at its end. In a thread that is not the main one, none comes anyway.

    Blocking alone would not do that: the kernel gives a signal to any thread that does not block it, and numpy has some.
    """
    held: list[tuple[int, FrameType | None]] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if threading.current_thread() is not threading.main_thread():
        handlers.clear()  # no handler of ours runs here
    for number in handlers:
        signal.signal(number, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for came, frame in held[:1]:
            handler = handlers[signal.Signals(came)]
            if callable(handler):
                handler(came, frame)
            elif handler is signal.SIG_DFL:
                os.kill(os.getpid(), came)
