"""What an engine process and the tormentor tell each other without a network: two bytes in a file both have mapped.

Owns the bytes. One says what the engine shall do; the other stands for the device.

**The device.** On a GPU, kernels that were launched come to their end while their process is stopped, and no new ones are
launched. Here the process itself writes and reads the bytes of blocks, and a SIGSTOP in the middle would let it go on
minutes later with blocks that are somebody else's by then. So an engine is busy while it touches bytes, it looks whether
its life still counts after it said so, and the tormentor lets a busy engine go on until it is not (`cast.py`).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Final

_ORDER: Final = 0
_BUSY: Final = 1
_BYTES: Final = 2


class Order(IntEnum):
    """What an engine shall do."""

    SERVE = 0
    FINISH = 1
    """Begin no more requests; end those that run, and your transfers; tell your digest; leave."""
    GIVE_WAY = 2
    """Another process has your name. When you find out that your life is over, end."""


class Slot:
    """Two bytes of a file; whoever comes first makes it. Writes of a byte are whole."""

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(_BYTES)
            self._bytes = mmap.mmap(file.fileno(), _BYTES)

    @property
    def order(self) -> Order:
        return Order(self._bytes[_ORDER])

    @order.setter
    def order(self, order: Order) -> None:
        self._bytes[_ORDER] = order

    @property
    def busy(self) -> bool:
        return bool(self._bytes[_BUSY])

    @contextmanager
    def device(self) -> Iterator[None]:
        """Bytes of blocks are read or written."""
        self._bytes[_BUSY] = 1
        try:
            yield
        finally:
            self._bytes[_BUSY] = 0

    def close(self) -> None:
        self._bytes.close()
