"""Logs of older releases: what they said then, every command says today."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import orjson
import pytest

from events import codec
from events.codec import decode, encode
from events.ports import Commit
from ops.cli.export_file import ExportFile
from tests.cli.scenario import Story, answer, statecore

HISTORIES: Final = Path(__file__).parents[1] / "histories"
SCHEMA_1: Final = HISTORIES / "schema-1" / "log.jsonl"
"""The story of the two tiers, written by the last release of schema 1 (commit d67dd8d): `scenario.tell_tiers`."""

THEN: Final[dict[str, Any]] = {
    "index": "old", "position": 23, "block_size": 4, "nodes": 3, "requests": 2, "ignored_finishes": 0,
    "counters": {
        "requests_seen": 9, "requests_hit": 4, "prompt_tokens": 212, "matched_tokens": 48, "host_tokens": 32,
        "hit_rate": 48 / 212, "transfers": 6,
    },
    "pools": [
        {
            "pool": "cpu:host", "tier": "cpu", "blocks": 16, "free": 4, "cached": 4, "pinned": 4, "private": 0,
            "filling": 0, "quarantined": 4, "used": 8, "leaving": 0, "evicted": 0, "arrived": 8, "rescued": 0,
        },
        {
            "pool": "gpu", "tier": "gpu", "blocks": 12, "free": 4, "cached": 4, "pinned": 0, "private": 0,
            "filling": 4, "quarantined": 0, "used": 4, "leaving": 0, "evicted": 8, "arrived": 4, "rescued": 4,
        },
    ],
}  # fmt: skip
"""What that release's `statecore replay --json` said of it."""


def test_a_recorded_log_leads_to_the_state_it_led_to() -> None:
    """After an upgrade, an index would be another than the one its engines left."""
    summary = answer(statecore("replay", "--file", SCHEMA_1, "--check-invariants", 1, "--json"))

    assert {record.record.schema for record in ExportFile.open(SCHEMA_1).records(0, 23)} == {1}
    assert {name: summary[name] for name in THEN} == THEN
    assert summary["policy"] == {"write": "write_back", "free_low": 0, "free_high": 0, "chosen": True}
    transfers = summary["transfers"]
    assert isinstance(transfers, list)
    assert [(each["transfer"], each["state"], each["waiting"]) for each in transfers] == [
        ("engine-0:4", "cancelled", []),
        ("engine-0:5", "under way", ["waiting"]),
    ]


@pytest.mark.parametrize("folder", sorted(HISTORIES.glob("schema-*")), ids=lambda folder: folder.name)
def test_a_recorded_log_is_sound_and_can_be_read_and_imported(folder: Path, server: str, name: str) -> None:
    """The log of an incident would be worth nothing after an upgrade."""
    file = folder / "log.jsonl"
    end = ExportFile.open(file).head.position
    assert statecore("verify", "--file", file, "--every", 1).exit_code == 0
    assert len(statecore("log", "--file", file, "--json").stdout.splitlines()) == end
    imported = statecore("import", file, "--url", server, "--index", name)

    assert imported.exit_code == 0, imported.output
    of_file = statecore("replay", "--file", file, "--digest").stdout
    assert statecore("replay", "--url", server, "--index", name, "--digest").stdout == of_file
    assert statecore("verify", "--url", server, "--index", name, "--every", 1).exit_code == 0


def as_schema_1_wrote(fact: list[object]) -> list[object]:
    """Without the fields that were added since."""
    return fact[: {"EngineJoined": 6, "EngineLost": 3}.get(str(fact[0]))]


def test_the_number_of_the_schema_is_no_part_of_the_state(
    story: Story, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log of the last release that has nothing new in it would lead elsewhere than the same log of this one."""
    today = codec._fact_to_json
    lines = [orjson.loads(line) for line in exported.read_bytes().splitlines()]
    entries = [decode(stored) for stored in ExportFile.open(exported).records(0, story.end)]
    with monkeypatch.context() as before:
        before.setattr(codec, "SCHEMA", 1)
        before.setattr(codec, "_fact_to_json", lambda fact, hashes: as_schema_1_wrote(today(fact, hashes)))
        for line, entry in zip(lines[1:-1], entries, strict=True):
            record = encode(Commit(entry.id, entry.engine, entry.session, entry.facts, (), ()), entry.at_ms)
            line.update(schema=1, body=record.body.decode(), checksum=record.checksum)
    whole = b"".join(orjson.dumps(line) + b"\n" for line in lines[:-1])
    lines[-1]["checksum"] = hashlib.blake2b(whole, digest_size=16).hexdigest()
    file = tmp_path / "older.jsonl"
    file.write_bytes(whole + orjson.dumps(lines[-1]) + b"\n")

    assert {record.record.schema for record in ExportFile.open(file).records(0, story.end)} == {1}
    assert statecore("verify", "--file", file, "--every", 1, "--digest", story.digests[story.end]).exit_code == 0
