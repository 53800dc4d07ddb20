"""Snapshots in the memory of one process: the executable definition of what their transport does.

Owns the reference semantics, in plain Python, in the order in which `lua/publish_snapshot.lua` checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from events.ports import Base, SnapshotPointer
from events.transport import NotPublished, Published, PublishReply

if TYPE_CHECKING:
    from events.memory import MemoryTransport


class MemorySnapshots:
    """Implements `SnapshotTransport` beside the log of one index. Thread-safe. A blob nobody publishes stays: no clock."""

    def __init__(self, log: MemoryTransport) -> None:
        self._log = log
        self._pointers: tuple[SnapshotPointer, ...] = ()
        self.blobs: dict[str, bytearray] = {}

    def pointers(self) -> tuple[SnapshotPointer, ...]:
        with self._log.changed:
            return self._pointers

    def piece(self, blob: str, start: int, size: int) -> bytes:
        with self._log.changed:
            return bytes(self.blobs.get(blob, b"")[start : start + size])

    def store(self, blob: str, start: int, piece: bytes, ttl_s: float) -> None:  # noqa: ARG002 - nothing runs out here
        with self._log.changed:
            stored = self.blobs.setdefault(blob, bytearray())
            stored.extend(bytes(max(0, start - len(stored))))
            stored[start : start + len(piece)] = piece

    def discard(self, blob: str) -> None:
        with self._log.changed:
            self.blobs.pop(blob, None)

    def publish(self, pointer: SnapshotPointer, seen: tuple[SnapshotPointer, ...], margin: int) -> PublishReply:
        with self._log.changed:
            if not self._log.position or not self._log.continues(Base(pointer.position, pointer.commit_id)):
                return NotPublished(
                    f"the log does not hold commit {pointer.commit_id!r} at position {pointer.position}"
                )
            now = self._pointers
            if now and now[0].blob == pointer.blob:
                return Published(0)
            if [each.blob for each in now] != [each.blob for each in seen] or (
                now and now[0].position >= pointer.position
            ):
                return NotPublished(f"another keeper published {now[0].blob if now else ''!r} meanwhile")
            if len(self.blobs.get(pointer.blob, b"")) != pointer.size:
                return NotPublished(f"the blob holds {len(self.blobs.get(pointer.blob, b''))} of {pointer.size} bytes")
            for old in now[1:]:
                self.blobs.pop(old.blob, None)
            self._pointers = (pointer, *now[:1])
            if not now:
                return Published(1)
            keep = max(1, min(now[0].position + 1, pointer.position - margin + 1))
            self._log.trim(keep)
            return Published(keep)

    def plant(self, pointer: SnapshotPointer, fences: tuple[tuple[str, int], ...]) -> PublishReply:
        with self._log.changed:
            if self._log.position:
                return NotPublished(f"the index is not empty: its log is at position {self._log.position}")
            if len(self.blobs.get(pointer.blob, b"")) != pointer.size:
                return NotPublished(f"the blob holds {len(self.blobs.get(pointer.blob, b''))} of {pointer.size} bytes")
            self._pointers = (pointer,)
            self._log.begin_at(Base(pointer.position, pointer.commit_id), dict(fences))
            return Published(pointer.position + 1)
