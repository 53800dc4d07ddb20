"""Facts come back from bytes exactly, and bytes that are not exactly what was written are refused with a reason."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from events import codec
from events.errors import CorruptState, NewerSchema
from events.facts import BLOCK_HASH_BYTES, FACT_TYPES, SCHEMA, Fact, PoolAdded
from events.ports import Commit, Record, StoredRecord

TEXT = st.text(max_size=8)
NUMBERS = st.integers(-5, 2**60)
RANGES = st.lists(st.tuples(st.integers(0, 2**31), st.integers(1, 2**31)), max_size=3).map(tuple)
HASHES = st.integers(0, 3).flatmap(lambda blocks: st.binary(min_size=16 * blocks, max_size=16 * blocks))
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    "int": NUMBERS,
    "str": TEXT,
    "bool": st.booleans(),
    "bytes": HASHES,
    "BlockRanges": RANGES,
    "str | None": st.none() | TEXT,
}


def facts_of(fact_type: type[Fact]) -> st.SearchStrategy[Fact]:
    values = {field.name: BY_TYPE[field.type] for field in attrs.fields(fact_type)}
    return st.builds(fact_type, **values)


FACTS = st.lists(st.one_of([facts_of(fact_type) for fact_type in FACT_TYPES]), min_size=1, max_size=4)
NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.:@+/-]{0,9}", fullmatch=True)


@st.composite
def commits(draw: st.DrawFn) -> Commit:
    engine = draw(NAMES)
    return Commit(draw(NAMES), engine, draw(st.integers(0, 2**40)), tuple(draw(FACTS)), (), ())


def stored(record: Record) -> StoredRecord:
    return StoredRecord(7, "before", record)


def sealed(record: Record) -> Record:
    """The record with a checksum that fits, as a buggy or hostile writer would send it."""
    head = f"{record.commit_id}|{record.author}|{record.at_ms}|{record.schema}|{len(record.body)}|{len(record.hashes)}|"
    checksum = zlib.crc32(record.hashes, zlib.crc32(record.body, zlib.crc32(head.encode())))
    return attrs.evolve(record, checksum=f"{checksum:08x}")


def changed(name: str, value: Any) -> dict[str, Any]:
    return {name: value}


def rewritten(record: Record, change: Callable[[Any], Any]) -> Record:
    return sealed(attrs.evolve(record, body=json.dumps(change(json.loads(record.body))).encode()))


@given(commits(), st.integers(0, 2**50))
def test_what_is_written_is_read(commit: Commit, at_ms: int) -> None:
    """Given any facts, when they are encoded and decoded, then they are equal, and so is all about them."""
    entry = codec.decode(stored(codec.encode(commit, at_ms)))

    assert (entry.facts, entry.id, entry.engine, entry.session, entry.at_ms) == (
        commit.facts,
        commit.id,
        commit.engine,
        commit.session,
        at_ms,
    )
    assert (entry.position, entry.previous) == (7, "before")
    assert codec.encode(commit, at_ms) == codec.encode(commit, at_ms)
    assert sealed(codec.encode(commit, at_ms)) == codec.encode(commit, at_ms)


@given(commits(), st.data())
def test_a_flipped_bit_is_noticed(commit: Commit, data: st.DataObject) -> None:
    """Given stored bytes with one bit turned over in any field, then the entry is refused with its position."""
    record = codec.encode(commit, at_ms=5)
    name = data.draw(st.sampled_from(["body", "hashes", "author", "commit_id", "checksum", "at_ms", "schema"]))
    value = getattr(record, name)
    other: Any
    if isinstance(value, int):
        other = value ^ (1 << data.draw(st.integers(0, 40)))
    elif isinstance(value, bytes):
        assume(value)
        other = _flipped(value, data)
    else:
        torn = _flipped(value.encode(), data)
        try:
            other = torn.decode()
        except UnicodeDecodeError:
            return  # events/stream_entry.py refuses it before the codec sees it
    with pytest.raises(CorruptState, match="at position 7"):
        codec.decode(stored(attrs.evolve(record, **changed(name, other))))


def _flipped(value: bytes, data: st.DataObject) -> bytes:
    place = data.draw(st.integers(0, len(value) - 1))
    return value[:place] + bytes([value[place] ^ (1 << data.draw(st.integers(0, 7)))]) + value[place + 1 :]


@given(commits(), st.sampled_from(["body", "hashes"]), st.integers(0, 200), st.booleans())
def test_a_torn_entry_is_refused_even_with_a_fitting_checksum(commit: Commit, name: str, size: int, seal: bool) -> None:
    """Given bytes cut short, then the entry is refused, whoever computed the checksum."""
    record = codec.encode(commit, at_ms=5)
    whole: bytes = getattr(record, name)
    assume(size < len(whole))
    torn = attrs.evolve(record, **changed(name, whole[:size]))

    with pytest.raises(CorruptState, match="at position 7"):
        codec.decode(stored(sealed(torn) if seal else torn))


VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=3)
)


@given(commits(), st.data())
def test_a_changed_value_is_read_as_it_is_or_refused(commit: Commit, data: st.DataObject) -> None:
    """Given a field with a value of any type, then either the facts are what the bytes say, or `CorruptState`; nothing
    is guessed, converted, or raised as anything else."""
    record = codec.encode(commit, at_ms=5)
    value = data.draw(VALUES)
    where: list[tuple[int, int]] = []

    def change(facts: list[list[Any]]) -> list[list[Any]]:
        place = data.draw(st.integers(0, len(facts) - 1))
        field = data.draw(st.integers(0, len(facts[place]) - 1))
        facts[place][field] = value
        where.append((place, field))
        return facts

    entry = stored(rewritten(record, change))
    try:
        facts = codec.decode(entry).facts
    except CorruptState:
        return
    ((place, field),) = where
    names = [each.name for each in attrs.fields(type(facts[place]))]
    found = getattr(facts[place], names[field - 1]) if field else type(facts[place]).__name__
    expected = tuple(tuple(pair) for pair in value) if isinstance(value, list) else value
    if isinstance(found, bytes):
        found = len(found) // BLOCK_HASH_BYTES
    assert type(found) is type(expected)
    assert found == expected


CHANGES: dict[str, Callable[[Any], Any]] = {
    "no list": lambda facts: facts[0],
    "empty": lambda _: [],
    "a fact that is none": lambda facts: [*facts, 5],
    "a fact of nothing": lambda facts: [*facts, []],
    "an object": lambda facts: [{"fact": facts[0][0]}],
    "an unknown fact": lambda facts: [["BlocksBurned", *facts[0][1:]]],
    "no name": lambda facts: [facts[0][1:]],
    "a field too many": lambda facts: [[*facts[0], 1]],
    "a field too few": lambda facts: [facts[0][:-1]],
    "deep": lambda facts: [[[facts]]],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@given(commits())
def test_another_shape_is_refused(change: Callable[[Any], Any], commit: Commit) -> None:
    """Given a body of another shape, sealed with a fitting checksum, then it is refused with position and reason."""
    with pytest.raises(CorruptState, match=r"not readable.*at position 7"):
        codec.decode(stored(rewritten(codec.encode(commit, at_ms=5), change)))


@given(commits(), st.binary(max_size=40))
def test_any_bytes_are_refused_or_read(commit: Commit, body: bytes) -> None:
    """Given any bytes as body, then nothing but `CorruptState` comes out."""
    with pytest.raises(CorruptState):
        codec.decode(stored(sealed(attrs.evolve(codec.encode(commit, at_ms=5), body=body))))


@given(commits(), st.integers(SCHEMA + 1, 2**31))
def test_a_newer_schema_says_upgrade(commit: Commit, schema: int) -> None:
    """Given an entry of a newer release, then the error says that this process is too old, not that it is damaged."""
    with pytest.raises(NewerSchema, match="upgrade"):
        codec.decode(stored(sealed(attrs.evolve(codec.encode(commit, at_ms=5), schema=schema))))


@pytest.mark.parametrize("schema", [0, -1])
def test_a_schema_that_never_was_is_refused(schema: int) -> None:
    """Given a schema number that no release wrote, then the entry is refused."""
    commit = Commit("c", "e", 1, (PoolAdded("p", "gpu", 1),), (), ())

    with pytest.raises(CorruptState):
        codec.decode(stored(sealed(attrs.evolve(codec.encode(commit, at_ms=5), schema=schema))))


@pytest.mark.parametrize("author", ["e", "#1x", "e#", "e#-1", "e#1 ", "e#\u0663", "e#+1", ""])
def test_an_author_that_is_none_is_refused(author: str) -> None:
    """Given an author field that no writer makes, then the entry is refused."""
    commit = Commit("c", "e", 1, (PoolAdded("p", "gpu", 1),), (), ())

    with pytest.raises(CorruptState):
        codec.decode(stored(sealed(attrs.evolve(codec.encode(commit, at_ms=5), author=author))))


def test_ranges_are_what_facts_hold() -> None:
    """The strategies above cover every type a fact has: a new one would fail here, not pass unseen."""
    kinds = {field.type for fact_type in FACT_TYPES for field in attrs.fields(fact_type)}

    assert kinds == BY_TYPE.keys()
