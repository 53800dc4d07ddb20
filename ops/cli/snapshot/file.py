"""A snapshot file: written all or nothing, read with clear words for what is none.

Owns the way to the disk and back. The bytes are `statecore.snapshot`'s.
"""

from __future__ import annotations

import os
from pathlib import Path

from events.errors import CorruptState, InvalidInput
from events.limits import SNAPSHOT_BYTES_MAX
from ops.cli.replaying import require_sound
from statecore import snapshot
from statecore.replica import Replica

_LOG_BEGINS = (b'{"format":"statecore-log"', b"\x1f\x8b")
"""An exported log, plain or packed: what is mixed up with a snapshot most easily."""


def write_snapshot(path: Path, data: bytes) -> None:
    """Replace or create a file.

    Raises:
        InvalidInput: its folder does not exist.
        OSError: it cannot be written.
    """
    if not path.parent.is_dir():
        raise InvalidInput(f"there is no folder {path.parent} to write {path.name} into")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_snapshot(path: Path) -> bytes:
    """The bytes of a snapshot file.

    Raises:
        InvalidInput: it is something else.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size > SNAPSHOT_BYTES_MAX:
        raise InvalidInput(f"{path} has {size:,} bytes; a snapshot has at most {SNAPSHOT_BYTES_MAX:,}")
    data = path.read_bytes()
    if data.startswith(_LOG_BEGINS):
        raise InvalidInput(f"{path} is an exported log, not a snapshot: see statecore import and --file")
    if not snapshot.is_one(data):
        raise InvalidInput(f"{path} is not a snapshot: its {size:,} bytes begin with {data[:18]!r}")
    return data


def read_replica(path: Path) -> Replica:
    """The state in a snapshot file, as a replica would read it: checksum, digest and invariants hold.

    Raises:
        InvalidInput, OSError: as above.
        CorruptState: it is damaged.
        NewerSchema: a newer release wrote it.
    """
    data = read_snapshot(path)
    says, replica = snapshot.header_of(data)["digest"], Replica(snapshot.decode(data))
    if says != replica.digest():
        raise CorruptState(f"{path} says that its digest is {says!r:.40}, it is {replica.digest()}")
    require_sound(replica.state)
    return replica
