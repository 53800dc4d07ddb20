"""A log entry as a Redis stream holds it: four fields, because every field of every entry costs every reader.

    previous   id of the commit one position before; written by the log
    meta       "<commit id> <author> <at_ms> <schema> <checksum>"; none of them can contain a space
    body       facts, see `codec.py`
    hashes     joined block hashes of all facts

Owns these names on the reading side (the writing side is `lua/commit.lua`). The log and its follower read through here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from events import keys
from events.errors import CorruptState
from events.ports import Record, StoredRecord


def meta_of(record: Record) -> str:
    return f"{record.commit_id} {record.author} {record.at_ms} {record.schema} {record.checksum}"


def stored_records(entries: Iterable[tuple[bytes, Any]]) -> tuple[StoredRecord, ...]:
    """Stream entries, in any of the shapes the client library gives them, as records.

    Raises:
        CorruptState: an entry that no commit of ours wrote.
    """
    return tuple([_stored_record(stream_id, fields) for stream_id, fields in entries])


def position_in(stream_id: bytes) -> int:
    try:
        return keys.position_of(stream_id)
    except ValueError as error:
        raise CorruptState(f"the log holds an entry nobody of us wrote: {error}") from None


def _stored_record(stream_id: bytes, fields: Mapping[bytes, bytes] | Sequence[bytes]) -> StoredRecord:
    position = position_in(stream_id)
    try:
        named = fields if isinstance(fields, Mapping) else dict(zip(fields[::2], fields[1::2], strict=True))
        commit_id, author, at_ms, schema, checksum = named[b"meta"].decode("ascii").split(" ")
        record = Record(commit_id, author, int(at_ms), int(schema), named[b"body"], named[b"hashes"], checksum)
        return StoredRecord(position, named[b"previous"].decode("ascii"), record)
    except (KeyError, ValueError) as error:
        raise CorruptState(
            f"log entry lacks or garbles a field ({type(error).__name__}: {error})", position=position
        ) from None
