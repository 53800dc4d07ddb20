"""Steps from what older releases wrote to today's shapes: what they add, what they refuse, and that no step is missing."""

from __future__ import annotations

import struct
import zlib
from hashlib import blake2b
from typing import Any

import orjson
import pytest

from events import codec
from events.errors import CorruptState, NewerSchema
from events.facts import SCHEMA, EngineJoined, EngineLost, PoolResized
from events.keys import LAYOUT
from events.ports import Commit, Record, StoredRecord
from migrations import facts, layouts, snapshots
from migrations.chain import Misshapen, end_of
from statecore import snapshot
from statecore.snapshot import SNAPSHOT_SCHEMA
from tests.unit.given import Machine, join


def entry(schema: int, *written: list[object]) -> StoredRecord:
    """An entry whose checksum is right: a release, or somebody who knows how, wrote it."""
    body = orjson.dumps(written)
    head = f"n.1|a#1|0|{schema}|{len(body)}|0|".encode()
    checksum = f"{zlib.crc32(b'', zlib.crc32(body, zlib.crc32(head))):08x}"
    return StoredRecord(7, "n.0", Record("n.1", "a#1", 0, schema, body, b"", checksum))


def test_chains_end_at_today() -> None:
    """A schema is raised and what the release before it wrote is not lifted to it."""
    assert (facts.SCHEMA, snapshots.SCHEMA, layouts.LAYOUT) == (SCHEMA, SNAPSHOT_SCHEMA, LAYOUT)


@pytest.mark.parametrize("numbers", [(2,), (1, 3), (0, 1), (1, 2, 4)])
def test_a_chain_with_a_hole_is_refused(numbers: tuple[int, ...]) -> None:
    """The step from 2 to 3 is lost in a merge, and years later somebody needs it."""
    with pytest.raises(AssertionError, match="one is missing"):
        end_of(dict.fromkeys(numbers, str))


@pytest.mark.parametrize("schema", [1, 2])
def test_what_was_not_known_then_gets_its_default(schema: int) -> None:
    """An old log ends the replica, or is told to know what nobody had said."""
    old = entry(schema, ["EngineJoined", "a", 1, "g", None, 2], ["EngineLost", "a", 1])

    assert codec.decode(old).facts == (
        EngineJoined("a", 1, "g", None, 2, memory_survives=False),
        EngineLost("a", 1, "a new life of the engine began"),
    )


NOT_OF_ITS_SCHEMA: dict[str, tuple[int, list[object], str]] = {
    "a join of 3 in 2": (
        2,
        ["EngineJoined", "a", 1, "g", None, 2, True],
        "EngineJoined has 5 fields in schema 2, found 6",
    ),
    "a join cut short": (2, ["EngineJoined", "a", 1, "g", None], "EngineJoined has 5 fields in schema 2, found 4"),
    "a loss of 3 in 1": (1, ["EngineLost", "a", 1, "why"], "EngineLost has 2 fields in schema 2, found 3"),
    "a loss without fields": (1, ["EngineLost"], "EngineLost has 2 fields in schema 2, found 0"),
    "a fact of 2 in 1": (1, ["PoolResized", "g", 4], "PoolResized is no fact of schema 1"),
    "a join of 2 in 3": (3, ["EngineJoined", "a", 1, "g", None, 2], "EngineJoined has the fields .* found 5 values"),
    "a field of another type": (2, ["EngineJoined", "a", "1", "g", None, 2], "session of EngineJoined: '1' is not"),
    "a fact nobody knows": (2, ["Rumoured"], "unknown fact 'Rumoured'"),
    "no fact": (1, [], "is not a fact"),
    "no name": (2, [["EngineLost"], 1], "unknown fact"),
}


@pytest.mark.parametrize(("schema", "written", "said"), NOT_OF_ITS_SCHEMA.values(), ids=NOT_OF_ITS_SCHEMA)
def test_what_no_release_of_that_schema_wrote_is_refused(schema: int, written: list[object], said: str) -> None:
    """A forged or garbled entry is read as something it is not."""
    with pytest.raises(CorruptState, match=said) as raised:
        codec.decode(entry(schema, ["PathReady", "a", "r", 1], written))
    assert raised.value.position == 7


def test_steps_change_nothing_in_place() -> None:
    """Reading an entry twice gives two facts."""
    fact: list[object] = ["EngineLost", "a", 1]
    header: dict[str, Any] = {"engines": [["a", list(range(11)), [0] * 5, [], []]]}

    assert facts.upcast(fact, 2) == ["EngineLost", "a", 1, "a new life of the engine began"]
    assert snapshots.upcast(header, 1)["engines"][0][1] == [*range(11), False]
    assert fact == ["EngineLost", "a", 1]
    assert header == {"engines": [["a", list(range(11)), [0] * 5, [], []]]}


@pytest.mark.parametrize("engines", [None, {}, "a", [["a"]], [["a", [0] * 12, [], [], []]], [["a", 11]], [[]], [7]])
def test_a_header_that_is_not_of_its_schema_is_refused(engines: object) -> None:
    """A snapshot of another schema than it says gives a state with its fields shifted."""
    with pytest.raises(Misshapen):
        snapshots.upcast({"engines": engines}, 1)


def test_an_entry_of_today_is_lifted_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every entry pays for what only old ones need."""
    record = codec.encode(Commit("n.1", "a", 1, (PoolResized("g", 4),), (), ()), at_ms=0)
    monkeypatch.setattr(facts, "STEPS", {})
    monkeypatch.setattr(facts, "upcast", None)

    assert codec.decode(StoredRecord(7, "n.0", record)).facts == (PoolResized("g", 4),)


def test_a_fact_of_tomorrow_asks_for_an_upgrade() -> None:
    """A release reads what it cannot know (bugs E-30)."""
    with pytest.raises(NewerSchema, match=f"schema {SCHEMA + 1}, this release reads up to {SCHEMA}: upgrade statecore"):
        codec.decode(entry(SCHEMA + 1, ["EngineLost", "a", 1, "why", "and more"]))


def test_a_snapshot_that_is_not_of_its_schema_is_corrupt() -> None:
    """A damaged snapshot of the last release ends a process with an error that nobody passes over to the one before."""
    data = snapshot.encode(Machine(join("a")).state)
    start = len(snapshot._MAGIC) + 4
    (length,) = struct.unpack_from("<I", data, start - 4)
    header = orjson.dumps(orjson.loads(data[start : start + length]) | {"schema": 1})  # its engines have 12 fields
    body = data[: start - 4] + struct.pack("<I", len(header)) + header + data[start + length : -16]

    with pytest.raises(
        CorruptState, match=r"snapshot is not of schema 1: .* is no engine of schema 1, which has 11 fields"
    ):
        snapshot.decode(body + blake2b(body, digest_size=16).digest())


# --- layouts --------------------------------------------------------------------------------------------------------


def test_the_way_of_a_layout_from_wherever_it_was_left() -> None:
    """A migration that was cut off begins from the start, or is taken for done."""
    whole = layouts.remaining("1")
    assert whole is not None
    assert [(move.start, move.end) for move in whole] == [("1", "1>2"), ("1>2", "1>2"), ("1>2", "2")]
    assert layouts.remaining("1>2") == whole[1:]
    assert layouts.remaining("2") == ()


@pytest.mark.parametrize("layout", ["", "0", "3", "2>3", "1>", "one"])
def test_a_layout_nobody_knows_has_no_way(layout: str) -> None:
    """An index of a newer release is pulled down to this one's layout."""
    assert layouts.remaining(layout) is None
