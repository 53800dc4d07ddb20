"""Where a replay begins: at the birth of the index, or at a stored snapshot where the log before it is gone.

Owns the choice, and the words for what is gone. A snapshot that cannot be read is passed over with a warning; what a
snapshot holds is `statecore.restoring`'s.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from events.errors import CorruptState, InvalidInput, NewerSchema
from events.ports import SnapshotPointer
from ops.cli.failures import say_warning
from ops.cli.source import Source
from statecore.replica import Replica
from statecore.restoring import of_snapshot


@attrs.frozen
class Kept:
    """What of a history is still there.

    Attributes:
        first: first position whose entry is kept; one above the head where none is.
        pointers: of the stored snapshots that the kept entries follow, the oldest first.
    """

    first: int
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
    pointers = sorted(source.pointers(), key=lambda pointer: pointer.position)
    head = source.head()
    first = head.first or (head.position + 1 if pointers else 1)
    return Kept(first, tuple([pointer for pointer in pointers if first - 1 <= pointer.position <= head.position]))


def beginning(source: Source, until: int, *, oldest: bool) -> Replica:
    """A replica from which the kept entries lead to `until`: the newest there is, or the oldest.

    Raises:
        InvalidInput: that position can no longer be shown; says which can.
        CorruptState: entries are gone that no readable snapshot covers.
        NewerSchema: a newer release wrote the snapshot.
    """
    here = kept(source)
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
            yield of_snapshot(pointer, source.snapshot(pointer))
        except NewerSchema:
            raise
        except CorruptState as error:
            say_warning(f"the snapshot at position {pointer.position} is not used: {error}")
