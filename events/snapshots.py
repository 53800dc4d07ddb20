"""Snapshots of one index over a transport: in pieces, repeated while the server is away.

Owns how bytes get there and back. What is in them is `statecore/snapshot.py`'s; who may publish is the script's.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import attrs

from events import limits
from events.errors import InvalidInput
from events.policy import retrying
from events.ports import SnapshotPointer
from events.transport import PublishReply, SnapshotTransport


class Snapshots:
    """What a keeper stores and a replica starts from."""

    def __init__(self, transport: SnapshotTransport, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._transport = transport
        self._sleep = sleep

    def pointers(self) -> tuple[SnapshotPointer, ...]:
        """The newest first, at most two."""
        return retrying(limits.READ_DEADLINE_S, self._sleep)(self._transport.pointers)

    def fetch(self, pointer: SnapshotPointer) -> bytes:
        """The bytes of a snapshot; fewer than its size if the blob is gone or cut, which its checksum shows."""
        pieces = []
        for start in range(0, min(pointer.size, limits.SNAPSHOT_BYTES_MAX), limits.SNAPSHOT_PIECE_BYTES):
            size = min(limits.SNAPSHOT_PIECE_BYTES, pointer.size - start)
            pieces.append(
                retrying(limits.READ_DEADLINE_S, self._sleep)(self._transport.piece, pointer.blob, start, size)
            )
        return b"".join(pieces)

    def upload(self, data: bytes, pointer: SnapshotPointer) -> SnapshotPointer:
        """Store bytes where nobody looks yet; returns `pointer` with the blob's name and size."""
        if len(data) > limits.SNAPSHOT_BYTES_MAX:
            raise InvalidInput(f"a snapshot of {len(data)} bytes; at most {limits.SNAPSHOT_BYTES_MAX} can be stored")
        blob = f"{pointer.position}-{secrets.token_hex(4)}"
        for start in range(0, len(data), limits.SNAPSHOT_PIECE_BYTES):
            piece = data[start : start + limits.SNAPSHOT_PIECE_BYTES]
            retrying(limits.APPEND_DEADLINE_S, self._sleep)(
                self._transport.store, blob, start, piece, limits.SNAPSHOT_UPLOAD_TTL_S
            )
        return attrs.evolve(pointer, blob=blob, size=len(data))

    def discard(self, pointer: SnapshotPointer) -> None:
        """Forget an uploaded snapshot that was not published."""
        retrying(limits.APPEND_DEADLINE_S, self._sleep)(self._transport.discard, pointer.blob)

    def publish(self, pointer: SnapshotPointer, seen: tuple[SnapshotPointer, ...]) -> PublishReply:
        """Make an uploaded snapshot the newest, if the pointers are still those `seen`; trims the log behind it."""
        return retrying(limits.APPEND_DEADLINE_S, self._sleep)(
            self._transport.publish, pointer, seen, limits.SNAPSHOT_MARGIN
        )

    def plant(self, data: bytes, pointer: SnapshotPointer, fences: tuple[tuple[str, int], ...]) -> PublishReply:
        """Begin an empty index with this snapshot instead of its birth."""
        return retrying(limits.APPEND_DEADLINE_S, self._sleep)(
            self._transport.plant, self.upload(data, pointer), fences
        )
