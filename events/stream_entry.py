"""Stream entries as the client library hands them out, turned into records.

Owns the names of the entry's fields on the reading side (the writing side is `lua/commit.lua`). Both the log and its
background follower read through here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from events import keys
from events.errors import CorruptState
from events.ports import Record, StoredRecord


def stored_records(entries: Iterable[tuple[bytes, Any]]) -> tuple[StoredRecord, ...]:
    """Stream entries, in any of the shapes the client library gives them, as records.

    Raises:
        CorruptState: an entry that no commit of ours wrote.
    """
    return tuple([_stored_record(stream_id, fields) for stream_id, fields in entries])


def _stored_record(stream_id: bytes, fields: Mapping[bytes, bytes] | Sequence[bytes]) -> StoredRecord:
    try:
        position = keys.position_of(stream_id)
    except ValueError as error:
        raise CorruptState(f"the log holds an entry nobody of us wrote: {error}") from None
    try:
        named = fields if isinstance(fields, Mapping) else dict(zip(fields[::2], fields[1::2], strict=True))
        return StoredRecord(
            position=position,
            previous=named[b"previous"].decode("ascii"),
            record=Record(
                commit_id=named[b"commit"].decode("ascii"),
                author=named[b"author"].decode("utf-8"),
                at_ms=int(named[b"at"]),
                schema=int(named[b"schema"]),
                body=named[b"body"],
                hashes=named[b"hashes"],
                checksum=named[b"checksum"].decode("ascii"),
            ),
        )
    except (KeyError, ValueError) as error:
        raise CorruptState(
            f"log entry lacks or garbles a field ({type(error).__name__}: {error})", position=position
        ) from None
