"""Facts to bytes and back, exactly.

Owns the encoding of one log entry: a JSON array of facts (`body`), the joined block hashes of all facts beside it
(`hashes`, binary: base64 would cost a third more), and a checksum over everything the writer decided. The predecessor's
commit id is not under the checksum: the log writes it, at the moment it knows the predecessor.

Decoding is strict: an unknown fact, a missing, extra or ill-typed field, a wrong checksum, hashes too many or too few
are refused with the position and the reason (`CorruptState`), a higher schema number as `NewerSchema`. Nothing is
guessed, nothing is executed. What an older release wrote is lifted to today's shape first (`migrations/`); an entry of
today's schema pays one comparison for that.
"""

from __future__ import annotations

import typing
import zlib
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final

import attrs
import orjson

from events.errors import CorruptState, InvalidInput, NewerSchema
from events.facts import BLOCK_HASH_BYTES, FACT_TYPES, SCHEMA, BlockRanges, Fact
from events.limits import COMMIT_BYTES_MAX, COMMIT_FACTS_MAX, POOL_BLOCKS_MAX
from events.ports import Commit, Entry, Record, StoredRecord
from migrations import facts as old_facts
from migrations.chain import Misshapen

assert old_facts.SCHEMA == SCHEMA, f"migrations end at schema {old_facts.SCHEMA}, facts are of schema {SCHEMA}"


class _Refused(Exception):
    """A value inside an entry is not what the schema says; caught where the position is known."""


def encode(commit: Commit, at_ms: int) -> Record:
    """Bytes of a commit. `at_ms` is wall time for people to read; nothing computes with it.

    Raises:
        InvalidInput: the commit has no facts, or is larger than `limits` allow.
    """
    if not 1 <= len(commit.facts) <= COMMIT_FACTS_MAX:
        raise InvalidInput(f"a commit holds 1 to {COMMIT_FACTS_MAX} facts, not {len(commit.facts)}")
    hashes: list[bytes] = []
    try:
        body = orjson.dumps([_fact_to_json(fact, hashes) for fact in commit.facts])
    except TypeError as error:
        raise InvalidInput(f"a fact holds what cannot be written: {error}") from None
    joined = b"".join(hashes)
    if len(body) + len(joined) > COMMIT_BYTES_MAX:
        raise InvalidInput(f"a commit holds at most {COMMIT_BYTES_MAX} bytes, not {len(body) + len(joined)}")
    author = f"{commit.engine}#{commit.session}"
    return Record(
        commit_id=commit.id,
        author=author,
        at_ms=at_ms,
        schema=SCHEMA,
        body=body,
        hashes=joined,
        checksum=_checksum(commit.id, author, at_ms, SCHEMA, body, joined),
    )


def decode(stored: StoredRecord) -> Entry:
    """The entry behind stored bytes.

    Raises:
        NewerSchema: written by a newer release.
        CorruptState: anything else that is not exactly what `encode` writes.
    """
    record, position = stored.record, stored.position
    if record.schema < 1:
        raise CorruptState(f"log entry has schema {record.schema}; schemas are numbered from 1", position=position)
    if record.schema > SCHEMA:
        raise NewerSchema(
            f"log entry has schema {record.schema}, this release reads up to {SCHEMA}: upgrade statecore",
            position=position,
        )
    checksum = _checksum(record.commit_id, record.author, record.at_ms, record.schema, record.body, record.hashes)
    if checksum != record.checksum:
        raise CorruptState(
            f"log entry is damaged: checksum {checksum}, entry says {record.checksum}", position=position
        )
    try:
        if len(record.body) + len(record.hashes) > COMMIT_BYTES_MAX:
            raise _Refused(f"{len(record.body) + len(record.hashes)} bytes, a commit holds at most {COMMIT_BYTES_MAX}")
        engine, session = _author(record.author)
        facts = _facts_from_json(record.body, record.hashes, record.schema)
    except _Refused as refused:
        raise CorruptState(f"log entry is not readable: {refused}", position=position) from None
    return Entry(
        position=position,
        id=record.commit_id,
        previous=stored.previous,
        engine=engine,
        session=session,
        at_ms=record.at_ms,
        facts=facts,
    )


def decode_all(stored: Sequence[StoredRecord]) -> tuple[Entry, ...]:
    return tuple([decode(record) for record in stored])


def fact_to_dict(fact: Fact) -> dict[str, object]:
    """A fact for people and `--json`: its name, its fields, hashes in hexadecimal."""
    plain: dict[str, object] = {"fact": type(fact).__name__}
    for field in attrs.fields(type(fact)):
        value = getattr(fact, field.name)
        plain[field.name] = value.hex() if isinstance(value, bytes) else value
    return plain


# --- one fact: [name, field, field, …] in the order of the record ---------------------------------------------------


def _ranges(value: object) -> BlockRanges:
    if type(value) is not list:
        raise _Refused(f"{value!r:.80} is not a list of block ranges")
    ranges = []
    for pair in value:
        if type(pair) is not list or len(pair) != 2:
            raise _Refused(f"{pair!r:.80} is not a block range (start, count)")
        start, count = pair
        if type(start) is not int or type(count) is not int or start < 0 or not 0 < count <= POOL_BLOCKS_MAX:
            raise _Refused(f"{pair!r:.80} is not a block range (start >= 0, count >= 1)")
        ranges.append((start, count))
    return tuple(ranges)


_JSON_TYPES: Final[dict[object, type]] = {
    int: int,
    str: str,
    bool: bool,
    str | None: str,
    BlockRanges: list,
    bytes: int,
}
"""What JSON holds for a field of each type; hashes are counted there and stand beside the body."""


@attrs.frozen
class _Spec:
    """How one fact type is written.

    Attributes:
        types: per field what JSON holds for it.
        optional: places that may be null.
        ranges: places of block ranges.
        hashes: place of the field that holds hashes.
    """

    fact: type[Fact]
    names: tuple[str, ...]
    types: tuple[type, ...]
    optional: frozenset[int]
    ranges: tuple[int, ...]
    hashes: int | None
    values: Callable[[Fact], tuple[object, ...]]


def _spec(fact_type: type[Fact]) -> _Spec:
    hints = typing.get_type_hints(fact_type)
    names = tuple(field.name for field in attrs.fields(fact_type))
    binary = [place for place, name in enumerate(names) if hints[name] is bytes]
    assert len(binary) <= 1, f"{fact_type.__name__} has more than one field of hashes"
    assert len(names) > 1, "attrgetter gives a tuple only for several names"
    return _Spec(
        fact=fact_type,
        names=names,
        types=tuple(_JSON_TYPES[hints[name]] for name in names),
        optional=frozenset(place for place, name in enumerate(names) if hints[name] == (str | None)),
        ranges=tuple(place for place, name in enumerate(names) if hints[name] == BlockRanges),
        hashes=binary[0] if binary else None,
        values=attrgetter(*names),
    )


_SPECS: Final = {fact_type.__name__: _spec(fact_type) for fact_type in FACT_TYPES}
_SPECS_BY_TYPE: Final = {spec.fact: spec for spec in _SPECS.values()}


def _fact_to_json(fact: Fact, hashes: list[bytes]) -> list[object]:
    spec = _SPECS_BY_TYPE[type(fact)]
    plain: list[object] = [type(fact).__name__, *spec.values(fact)]
    if spec.hashes is not None:
        joined = plain[spec.hashes + 1]
        assert isinstance(joined, bytes)
        if len(joined) % BLOCK_HASH_BYTES:
            raise InvalidInput(f"{len(joined)} bytes are not whole block hashes of {BLOCK_HASH_BYTES}")
        hashes.append(joined)
        plain[spec.hashes + 1] = len(joined) // BLOCK_HASH_BYTES
    return plain


def _facts_from_json(body: bytes, hashes: bytes, schema: int) -> tuple[Fact, ...]:
    try:
        plain = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _Refused(f"body is not JSON ({error})") from None
    if type(plain) is not list or not 1 <= len(plain) <= COMMIT_FACTS_MAX:
        raise _Refused(f"body is not a list of 1 to {COMMIT_FACTS_MAX} facts")
    if schema != SCHEMA:
        plain = _of_today(plain, schema)
    facts = []
    taken = 0
    for item in plain:
        if type(item) is not list or not item:
            raise _Refused(f"{item!r:.80} is not a fact")
        name = item[0]
        spec = _SPECS.get(name) if type(name) is str else None
        if spec is None:
            raise _Refused(f"unknown fact {name!r:.80}")
        values: list[Any] = item[1:]
        if tuple(map(type, values)) != spec.types:
            _check_types(spec, values)
        for place in spec.ranges:
            values[place] = _ranges(values[place])
        if spec.hashes is not None:
            count = values[spec.hashes]
            if count < 0:
                raise _Refused(f"{spec.names[spec.hashes]} of {name}: {count} is not a number of hashes")
            values[spec.hashes] = hashes[taken : taken + count * BLOCK_HASH_BYTES]
            taken += count * BLOCK_HASH_BYTES
        facts.append(spec.fact(*values))
    if taken != len(hashes):
        raise _Refused(f"facts name {taken} bytes of hashes, entry holds {len(hashes)}")
    return tuple(facts)


def _of_today(plain: list[Any], schema: int) -> list[Any]:
    """Facts of an older schema in today's shape. What is no fact at all stays, to be refused as such."""
    try:
        return [
            old_facts.upcast(item, schema) if type(item) is list and item and type(item[0]) is str else item
            for item in plain
        ]
    except Misshapen as misshapen:
        raise _Refused(str(misshapen)) from None


def _check_types(spec: _Spec, values: list[object]) -> None:
    """The types are not all the plain ones: refuse the first that may not be as it is."""
    name = spec.fact.__name__
    if len(values) != len(spec.types):
        raise _Refused(f"{name} has the fields {', '.join(spec.names)}, found {len(values)} values")
    for place, (value, kind) in enumerate(zip(values, spec.types, strict=True)):
        if type(value) is not kind and not (value is None and place in spec.optional):
            raise _Refused(f"{spec.names[place]} of {name}: {value!r:.80} is not of type {kind.__name__}")


def _author(author: str) -> tuple[str, int]:
    engine, mark, session = author.rpartition("#")
    if not mark or not session.isascii() or not session.isdecimal():
        raise _Refused(f"author {author!r:.80} is not of the form engine#session")
    return engine, int(session)


def _checksum(commit_id: str, author: str, at_ms: int, schema: int, body: bytes, hashes: bytes) -> str:
    head = f"{commit_id}|{author}|{at_ms}|{schema}|{len(body)}|{len(hashes)}|".encode()
    return f"{zlib.crc32(hashes, zlib.crc32(body, zlib.crc32(head))):08x}"
