"""Whatever a release of schema 2 could write, today's reads, and adds to it only what 3 added.

Owns a copy of schema 2's table of fields, as it was at the last release of it. It must never follow the code.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import attrs
import orjson
from hypothesis import given
from hypothesis import strategies as st

from events import codec
from events.errors import CorruptState
from events.facts import BLOCK_HASH_BYTES
from events.ports import Record, StoredRecord

SCHEMA_2: Final[dict[str, str]] = {
    "IndexCreated": "int str",
    "PoolAdded": "str str int",
    "PoolResized": "str int",
    "PoolDropped": "str str",
    "PolicyChosen": "str int int",
    "EngineJoined": "str int str str? int",
    "EngineLeft": "str int",
    "EngineLost": "str int",
    "PrefixMatched": "str str int int int",
    "BlocksAllocated": "str str? str ranges",
    "BlocksRecycled": "str str? str ranges",
    "PathExtended": "str str int hashes ranges ranges",
    "PathReady": "str str int",
    "RequestReleased": "str str ranges",
    "CopyEvicted": "str int int ranges",
    "TransferStarted": "str str str str? int int int str ranges str ranges",
    "TransferFinished": "str bool str",
    "TransferCancelled": "str str",
    "SendStarted": "str str str str str ranges str ranges",
    "ServicePaused": "str str",
    "ServiceResumed": "str str",
    "CacheCleared": "str str",
}
ADDED_SINCE_1: Final = {"PoolResized", "PoolDropped", "SendStarted", "ServicePaused", "ServiceResumed", "CacheCleared"}
ADDED_BY_3: Final[dict[str, tuple[object, ...]]] = {
    "EngineJoined": (False,),
    "EngineLost": ("a new life of the engine began",),
}

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
WHOLE = st.integers(-(2**63), 2**63 - 1)
FIELDS: Final[dict[str, st.SearchStrategy[Any]]] = {
    "int": WHOLE,
    "str": TEXT,
    "str?": TEXT | st.none(),
    "bool": st.booleans(),
    "hashes": st.integers(0, 3),
    "ranges": st.lists(st.tuples(st.integers(0, 2**40), st.integers(1, 2**31)).map(list), max_size=3),
}
FACTS = st.sampled_from(sorted(SCHEMA_2)).flatmap(
    lambda name: st.tuples(st.just(name), *(FIELDS[kind] for kind in SCHEMA_2[name].split())).map(list)
)


def entry(schema: int, facts: list[list[Any]], hashes: bytes) -> StoredRecord:
    body = orjson.dumps(facts)
    head = f"n.1|a#1|0|{schema}|{len(body)}|{len(hashes)}|".encode()
    checksum = f"{zlib.crc32(hashes, zlib.crc32(body, zlib.crc32(head))):08x}"
    return StoredRecord(7, "n.0", Record("n.1", "a#1", 0, schema, body, hashes, checksum))


def hashes_of(facts: list[list[Any]]) -> bytes:
    return bytes(BLOCK_HASH_BYTES * sum(fact[4] for fact in facts if fact[0] == "PathExtended"))


def as_written(fact: object) -> list[Any]:
    """A fact of today in the form in which schema 2 wrote it, with what 3 added at its end."""
    values = [getattr(fact, field.name) for field in attrs.fields(type(fact))]  # type: ignore[arg-type]
    plain = [len(value) // BLOCK_HASH_BYTES if isinstance(value, bytes) else value for value in values]
    return [type(fact).__name__, *(list(map(list, value)) if isinstance(value, tuple) else value for value in plain)]


@given(st.lists(FACTS, min_size=1, max_size=6))
def test_what_schema_2_wrote_is_read(facts: list[list[Any]]) -> None:
    """P7: one fact of an old log, in a form nobody thought of, ends every replica after the upgrade."""
    read = codec.decode(entry(2, facts, hashes_of(facts))).facts

    assert [as_written(fact) for fact in read] == [[*fact, *ADDED_BY_3.get(fact[0], ())] for fact in facts]


@given(st.lists(FACTS.filter(lambda fact: fact[0] not in ADDED_SINCE_1), min_size=1, max_size=6))
def test_what_schema_1_wrote_is_read_as_what_2_wrote(facts: list[list[Any]]) -> None:
    """The steps of two upgrades, one after the other, lead elsewhere than the last alone."""
    of_1, of_2 = (codec.decode(entry(schema, facts, hashes_of(facts))).facts for schema in (1, 2))

    assert of_1 == of_2


JSON = st.recursive(st.none() | st.booleans() | WHOLE | TEXT, lambda inner: st.lists(inner, max_size=4), max_leaves=8)
NEARLY = st.one_of(
    st.tuples(st.sampled_from(["EngineJoined", "EngineLost", "PoolResized"]), st.lists(JSON, max_size=7)).map(
        lambda pair: [pair[0], *pair[1]]
    ),
    st.lists(JSON, max_size=4),
)


@given(st.sampled_from([1, 2]), st.lists(NEARLY | FACTS, min_size=1, max_size=3))
def test_whatever_else_stands_there_is_refused_and_nothing_worse(schema: int, facts: list[Any]) -> None:
    """An entry that knows its checksum ends a replica with an error nobody handles, or is read as what it is not."""
    stored = entry(schema, facts, b"")
    try:
        read = codec.decode(stored).facts
    except CorruptState:
        return
    assert [as_written(fact) for fact in read] == [[*fact, *ADDED_BY_3.get(fact[0], ())] for fact in facts]
