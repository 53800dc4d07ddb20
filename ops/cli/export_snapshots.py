"""The snapshots inside an exported log: how the header speaks of them, and the lines their bytes are in.

Owns that part of the format, see `export_file.py`. What is in them is `statecore/snapshot.py`'s.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs

from events.errors import CorruptState
from events.limits import SNAPSHOT_PIECE_BYTES
from events.ports import Head, SnapshotPointer

VERSION_WITH_SNAPSHOTS: Final = 2

Line: TypeAlias = Mapping[str, Any]

_SNAPSHOT_FIELDS: Final = {
    "position": int, "commit": str, "digest": str, "schema": int, "blob": str, "bytes": int, "at": int, "lines": int,
}  # fmt: skip


@attrs.frozen
class Enclosed:
    """A snapshot in a file, and how many lines it takes."""

    pointer: SnapshotPointer
    lines: int


# --- writing --------------------------------------------------------------------------------------------------------


def piece_lines(data: bytes) -> list[dict[str, object]]:
    """The lines of a snapshot's bytes."""
    starts = range(0, len(data), SNAPSHOT_PIECE_BYTES)
    return [{"snapshot": base64.b64encode(data[start : start + SNAPSHOT_PIECE_BYTES]).decode()} for start in starts]


def header_entry(pointer: SnapshotPointer, data: bytes) -> dict[str, object]:
    """What the header says of a snapshot. `bytes` is what its pointer says; a blob that was cut brings fewer lines."""
    return {
        "position": pointer.position,
        "commit": pointer.commit_id,
        "digest": pointer.digest,
        "schema": pointer.schema,
        "blob": pointer.blob,
        "bytes": pointer.size,
        "at": pointer.at_ms,
        "lines": len(piece_lines(data)),
    }


# --- reading --------------------------------------------------------------------------------------------------------


def enclosed(path: Path, header: Line) -> tuple[Enclosed, ...]:
    """The snapshots a header speaks of.

    Raises:
        CorruptState: it does so in another way than we do.
    """
    listed = header.get("snapshots", [])
    if not isinstance(listed, list) or bool(listed) != (header["version"] == VERSION_WITH_SNAPSHOTS):
        raise CorruptState(
            f"{path} is damaged: its header says version {header['version']}, and that its snapshots are {listed!r:.80}"
        )
    found = []
    for line in listed:
        if not isinstance(line, dict) or any(
            type(line.get(name)) is not kind for name, kind in _SNAPSHOT_FIELDS.items()
        ):
            raise CorruptState(f"{path} is damaged: its header does not say what snapshot {line!r:.80} is")
        *fields, lines = (line[name] for name in _SNAPSHOT_FIELDS)
        if lines < 0:
            raise CorruptState(f"{path} is damaged: a snapshot of {lines} lines")
        found.append(Enclosed(SnapshotPointer(*fields), lines))
    return tuple(found)


def piece_of(path: Path, line: Line | None) -> bytes:
    """The bytes of one line."""
    try:
        return base64.b64decode(str((line or {})["snapshot"]), validate=True)
    except (KeyError, ValueError) as error:
        raise CorruptState(f"{path} is damaged: a line is not a piece of a snapshot ({error!r})") from None


def head_of(first: int, count: int, commit: str, snapshots: tuple[Enclosed, ...]) -> Head:
    """Where the log ends: with its last entry, or with the newest snapshot where no entry is left."""
    if count:
        return Head(first + count - 1, commit, first)
    if not snapshots:
        return Head(0, "", 0)
    newest = max((each.pointer for each in snapshots), key=lambda pointer: pointer.position)
    return Head(newest.position, newest.commit_id, 0)
