"""What older releases wrote is read, and leads to where it led then (reliability, P7).

Digests and snapshots beside each log were made by the release that wrote it (or, for schema 1, by the first that could make
snapshots); today's code has no part in them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import orjson
import pytest

from events.codec import decode
from events.facts import SCHEMA
from events.ports import StoredRecord
from ops.cli.export_file import ExportFile
from statecore import snapshot
from statecore.invariants import leaked_blocks, violations
from statecore.replica import Replica
from tests.histories.record import DIGESTS, LOG

FOLDER = Path(__file__).parent
HISTORIES = sorted(FOLDER.glob("schema-*"))
SNAPSHOTS = sorted(FOLDER.glob("schema-*/snapshot-*.bin"))


def records(history: Path) -> list[StoredRecord]:
    export = ExportFile.open(history / LOG)
    return list(export.records(0, export.head.position))


def recorded(history: Path) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads((history / DIGESTS).read_bytes())
    return found


def digests(history: Path) -> dict[int, str]:
    return {int(position): digest for position, digest in recorded(history)["digests"].items()}


def test_there_is_a_history_of_every_schema() -> None:
    """A release changes the schema, and nobody knows whether the next ones read what it wrote."""
    assert [history.name for history in HISTORIES] == [f"schema-{number}" for number in range(1, SCHEMA + 1)]
    made_by = {recorded(file.parent)["snapshot_schema"] for file in SNAPSHOTS}
    assert made_by == set(range(1, snapshot.SNAPSHOT_SCHEMA + 1))


def test_nobody_touched_them() -> None:
    """A recorded history is made to fit the code that should read it."""
    lines = (FOLDER / "checksums.txt").read_text(encoding="ascii").splitlines()
    listed = {name: checksum for checksum, name in (line.split("  ") for line in lines)}
    there = {
        file.relative_to(FOLDER).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for history in HISTORIES
        for file in history.iterdir()
    }

    assert there == listed


@pytest.mark.parametrize("history", HISTORIES, ids=lambda history: history.name)
def test_every_position_has_the_digest_it_had(history: Path) -> None:
    """After an upgrade an index is another than the one its engines left."""
    replica, reached = Replica(), {}
    for stored in records(history):
        assert stored.record.schema == int(history.name.removeprefix("schema-"))
        replica.apply(decode(stored))
        reached[stored.position] = replica.digest()
        assert violations(replica.state) == []
        assert leaked_blocks(replica.state) == 0

    assert reached == digests(history)


@pytest.mark.parametrize("file", SNAPSHOTS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_snapshot_and_the_log_after_it_lead_to_the_same(file: Path) -> None:
    """An upgraded replica starts from a snapshot of the release before and differs from those that read the log."""
    known, data = digests(file.parent), file.read_bytes()
    assert snapshot.header_of(data)["schema"] == recorded(file.parent)["snapshot_schema"]
    replica = Replica(snapshot.decode(data))
    reached = {replica.state.position: replica.digest()}
    assert violations(replica.state) == []

    for stored in records(file.parent)[replica.state.position :]:
        replica.apply(decode(stored))
        reached[stored.position] = replica.digest()

    assert reached == {position: digest for position, digest in known.items() if position >= min(reached)}
    assert int(file.stem.partition("-")[2]) == min(reached)


@pytest.mark.parametrize("file", SNAPSHOTS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_an_old_snapshot_written_again_is_of_today(file: Path) -> None:
    """The keeper of a new release publishes what only it can read, or something else than it was given."""
    state = snapshot.decode(file.read_bytes())

    again = snapshot.encode(state)

    assert snapshot.header_of(again)["schema"] == snapshot.SNAPSHOT_SCHEMA
    assert snapshot.header_of(again)["digest"] == digests(file.parent)[state.position]
    assert Replica(snapshot.decode(again)).digest() == digests(file.parent)[state.position]
