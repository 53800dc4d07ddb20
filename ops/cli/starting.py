"""Where a replay begins: at the birth of the index, or at a stored snapshot where the log before it is gone.

Owns the choice, and the words for what is gone. A snapshot that cannot be read is passed over with a warning; what a
snapshot holds is `statecore.restoring`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs

from events.errors import CorruptState, InvalidInput, NewerSchema, Unavailable
from events.ports import Head, SnapshotPointer
from ops.cli.failures import say_warning
from ops.cli.source import Source
from statecore.replica import Replica
from statecore.restoring import of_snapshot

_LOOKS: Final = 5
"""Times to look until no snapshot was published in between; the keeper publishes one in minutes."""


@attrs.frozen
class Kept:
    """What of a history is still there, at one moment.

    Attributes:
        head: of the log.
        first: first position whose entry is kept; one above the head where none is.
        stored: every stored snapshot, the newest first.
        pointers: those that the kept entries follow, the oldest first.
    """

    head: Head
    first: int
    stored: tuple[SnapshotPointer, ...]
    pointers: tuple[SnapshotPointer, ...]

    @property
    def from_birth(self) -> bool:
        return self.first <= 1

    @property
    def oldest(self) -> int | None:
        """The oldest position whose state can be shown; None if none can."""
        if self.from_birth:
            return 0
        return self.pointers[0].position if self.pointers else None

    def gone(self) -> str:
        """What is gone, in words."""
        words = f"positions before {self.first:,} are gone"
        if self.oldest is None:
            return f"{words}, and no snapshot is there: no state can be shown"
        return f"{words}; the oldest state that can be shown is at {self.oldest:,}"


def kept(source: Source) -> Kept:
    """What of a log and its snapshots can be used together."""
    head, stored = source.head(), _stored(source)
    for _ in range(_LOOKS):
        head, before = source.head(), stored
        stored = _stored(source)
        if stored == before:
            break
    first = head.first or (head.position + 1 if stored else 1)
    usable = [pointer for pointer in stored if first - 1 <= pointer.position <= head.position]
    return Kept(head, first, stored, tuple(sorted(usable, key=lambda pointer: pointer.position)))


def _stored(source: Source) -> tuple[SnapshotPointer, ...]:
    try:
        return source.pointers()
    except CorruptState as error:
        say_warning(f"no snapshot is used: {error}")
        return ()


def beginning(source: Source, until: int, *, oldest: bool, here: Kept | None = None) -> Replica:
    """A replica from which the kept entries lead to `until`: the newest there is, or the oldest. `here`: looked at before.

    Raises:
        InvalidInput: that position can no longer be shown; says which can.
        CorruptState: entries are gone that no readable snapshot covers.
        NewerSchema: a newer release wrote the snapshot.
    """
    here = here or kept(source)
    if until == 0:
        return Replica()
    usable = [pointer for pointer in here.pointers if pointer.position <= until]
    if not here.from_birth and here.pointers and not usable:
        raise InvalidInput(f"position {until:,} cannot be shown: {here.gone()}")
    if oldest and here.from_birth:
        return Replica()
    for replica in readable(source, usable if oldest else usable[::-1]):
        return replica
    if here.from_birth:
        return Replica()
    raise CorruptState(
        f"the log begins at position {here.first}: entries 1 to {here.first - 1} are missing, and without them or a "
        "snapshot there is no state"
    )


def readable(source: Source, pointers: list[SnapshotPointer]) -> Iterator[Replica]:
    """Of these snapshots the ones that can be read, one by one; of the others a warning."""
    for pointer in pointers:
        try:
            yield read(source, pointer)
        except NewerSchema:
            raise
        except CorruptState as error:
            say_warning(f"the snapshot at position {pointer.position} is not used: {error}")


def read(source: Source, pointer: SnapshotPointer) -> Replica:
    """The replica of a stored snapshot.

    Raises:
        CorruptState: it is damaged. NewerSchema: a newer release wrote it.
        Unavailable: the keeper has replaced it meanwhile.
    """
    try:
        return of_snapshot(pointer, source.snapshot(pointer))
    except NewerSchema:
        raise
    except CorruptState:
        if pointer not in _stored(source):
            raise Unavailable(
                f"the log was trimmed while it was read: newer snapshots have replaced the one at {pointer.position:,}. "
                "Run it again"
            ) from None
        raise
