"""Recording a history: `python -m tests.histories.record FOLDER [LOG]`, see README.md.

Owns what is recorded: the log as `statecore export` writes it, the digest at every position, and snapshots at a few. Runs in
the tree of the release whose history it records, so it uses only what releases since schema 2 have.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import orjson

from events import connect
from events.codec import decode
from events.facts import SCHEMA
from events.ports import StoredRecord
from ops.cli.export_file import ExportFile, write_export
from statecore import snapshot
from statecore.replica import Replica
from tests.histories.told import tell

INDEX: Final = "history"
LOG: Final = "log.jsonl"
DIGESTS: Final = "digests.json"


def told() -> Sequence[StoredRecord]:
    """The story, as the release that runs this writes it."""
    with connect("memory://") as connection:
        tell(connection, INDEX)
        return list(connection.log(INDEX, follow=False).read_stored(0, 100_000))


def record(folder: Path, records: Sequence[StoredRecord], *, write_log: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    last = records[-1].position
    if write_log:
        write_export(folder / LOG, INDEX, 1, last, records)
    replica, digests = Replica(), {}
    for stored in records:
        replica.apply(decode(stored))
        digests[str(stored.position)] = replica.digest()
        if stored.position in {last // 3, last * 2 // 3, last}:
            (folder / f"snapshot-{stored.position}.bin").write_bytes(snapshot.encode(replica.state))
    written = {"reads_up_to_schema": SCHEMA, "snapshot_schema": snapshot.SNAPSHOT_SCHEMA, "digests": digests}
    (folder / DIGESTS).write_bytes(orjson.dumps(written, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if len(sys.argv) > 2:
        export = ExportFile.open(Path(sys.argv[2]))
        record(target, list(export.records(0, export.head.position)), write_log=False)
    else:
        record(target, told(), write_log=True)
