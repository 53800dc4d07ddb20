"""One index as its keeper sees it: the log, the snapshots beside it, the job streams, who holds a lease, who acts.

Owns nothing but the bundle. What a keeper does with it is `workers/keeper.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs

from events import limits
from events.job_ports import Doorbell
from events.ports import Log, SnapshotPointer
from events.transport import PublishReply, Transport


class SnapshotShelf(Protocol):
    """Snapshots as a keeper stores them; `events/snapshots.py` makes one of any transport."""

    def pointers(self) -> tuple[SnapshotPointer, ...]: ...

    def fetch(self, pointer: SnapshotPointer) -> bytes: ...

    def upload(self, data: bytes, pointer: SnapshotPointer) -> SnapshotPointer: ...

    def discard(self, pointer: SnapshotPointer) -> None: ...

    def publish(self, pointer: SnapshotPointer, seen: tuple[SnapshotPointer, ...]) -> PublishReply: ...


@attrs.frozen
class Keeping:
    """What a keeper works with."""

    log: Log
    shelf: SnapshotShelf
    bell: Doorbell
    transport: Transport

    def act(self, token: str) -> bool:
        """Be the one keeper that acts, or go on being it; False while another one is."""
        return self.transport.keep(token, limits.KEEPER_TTL_S)

    def leases(self, engines: Sequence[str]) -> tuple[bool, ...]:
        """Which of these engines hold their lease."""
        return self.transport.leases(engines)
