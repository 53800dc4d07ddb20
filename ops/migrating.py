"""Bringing one index to the layout of keys that this release speaks.

Owns looking first (layout, schemas of what is stored) and the order of the moves, one by one, so that a run that was cut
off is continued by the next. What a move is, says `migrations/`; how it is done in one step, `events/redis_layout.py`.

Entries and snapshots are not rewritten: they stay as they were written and are lifted when they are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import attrs

from events.errors import CorruptState, InvalidInput, NewerSchema
from events.facts import SCHEMA
from events.keys import LAYOUT
from events.limits import READ_PAGE
from events.log import EventLog, LogConnection
from events.redis_layout import RedisLayout
from events.redis_log import RedisBackend
from events.transport import SnapshotTransport
from migrations import layouts
from migrations.move import Move
from statecore.snapshot import SNAPSHOT_SCHEMA


@attrs.frozen
class Survey:
    """What is stored of an index.

    Attributes:
        layout: of its keys.
        first, last: position and schema of the oldest and newest entry; (0, 0) where the log holds none.
        schemas: number of entries per schema.
        snapshots: schema of each snapshot, by position.
        moves: what is to be done.
    """

    layout: str
    first: tuple[int, int]
    last: tuple[int, int]
    schemas: dict[int, int]
    snapshots: dict[int, int]
    moves: tuple[Move, ...]


@attrs.frozen
class Place:
    """One index, as a migration sees it."""

    log: EventLog
    snapshots: SnapshotTransport
    layout: RedisLayout

    @classmethod
    def of(cls, connection: LogConnection, index: str) -> Place:
        """Raises InvalidInput where there are no keys to be laid out."""
        backend = connection.backend
        if not isinstance(backend, RedisBackend):
            raise InvalidInput(f"{connection.url} holds no keys: only what is on a server is migrated")
        return cls(connection.log(index, follow=False), backend.transport(index).snapshots, backend.layout(index))


def survey(place: Place) -> Survey:
    """Look, and change nothing.

    Raises:
        InvalidInput: the layout is none this release knows.
        NewerSchema: a newer release wrote some of it.
        CorruptState: an entry is no entry.
    """
    layout = place.layout.found()
    moves = layouts.remaining(layout)
    if moves is None:
        raise InvalidInput(
            f"the index has key layout {layout!r}, this release knows up to {LAYOUT!r}: upgrade statecore; "
            "nothing was changed"
        )
    snapshots = {pointer.position: pointer.schema for pointer in place.snapshots.pointers()}
    for position, schema in snapshots.items():
        _refuse_newer("snapshot", schema, SNAPSHOT_SCHEMA, position)
    schemas: Counter[int] = Counter()
    first = last = (0, 0)
    while page := place.log.read_stored(last[0], READ_PAGE):
        for stored in page:
            _refuse_newer("log entry", stored.record.schema, SCHEMA, stored.position)
            schemas[stored.record.schema] += 1
        ends = [(stored.position, stored.record.schema) for stored in (page[0], page[-1])]
        first, last = first if first[0] else ends[0], ends[1]
    return Survey(layout, first, last, dict(sorted(schemas.items())), snapshots, moves)


def carry_out(place: Place, moves: tuple[Move, ...]) -> Iterator[Move]:
    """Do the moves in order; each is done when it is yielded.

    Raises:
        CorruptState: the index is somewhere else than a move leads to.
        Unavailable: the server cannot be reached. Run it again: it goes on where this one stopped.
    """
    for move in moves:
        reached = place.layout.carry_out(move)
        left = layouts.remaining(reached)
        if left is None or len(left) > len(layouts.remaining(move.end) or ()):
            raise CorruptState(f"the index has key layout {reached!r} after a move from {move.start!r} to {move.end!r}")
        yield move


def _refuse_newer(what: str, schema: int, known: int, position: int) -> None:
    if schema > known:
        raise NewerSchema(
            f"nothing was changed: this release reads up to schema {known}, upgrade statecore; a {what} of schema {schema} "
            "stands",
            position=position,
        )
