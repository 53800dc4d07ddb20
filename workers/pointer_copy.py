"""Moving bytes between raw addresses: the port behind which a GPU is, and its implementation for host memory.

Owns the protocol and the host side. Knows nothing of blocks: addresses and sizes come from `block_moves.py`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Protocol

from workers.block_moves import Span


class Memory(Protocol):
    """A memory whose addresses can be copied from and to."""

    def move(self, spans: Sequence[Span]) -> None:
        """Copy every span and return when all bytes have arrived. Spans must not overlap.

        CopyFailed: some may have arrived, and nothing is under way any more.
        """

    def pin(self, address: int, size: int) -> None:
        """Make host memory fast to copy from and to, where that means anything."""

    def unpin(self, address: int) -> None: ...

    def close(self) -> None: ...


class DeviceMemory(Memory, Protocol):
    """GPU memory, which other processes open by handle."""

    def export(self, address: int) -> bytes:
        """`IPC_HANDLE_BYTES` bytes with which another process finds this address."""

    def open(self, exported: bytes) -> int:
        """Address, here, of what another process exported. The memory stays the other's."""


class HostMemory:
    """Addresses of this process. ctypes calls memmove without the GIL."""

    def move(self, spans: Sequence[Span]) -> None:
        for destination, source, size in spans:
            ctypes.memmove(destination, source, size)

    def pin(self, address: int, size: int) -> None:
        """Host memory is as fast as it gets."""

    def unpin(self, address: int) -> None:
        """Nothing was pinned."""

    def close(self) -> None:
        """Nothing is held."""
