"""What is in the keys is not what we wrote: damage, strangers, other releases; on every backend that has keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from events import facts, keys
from events.errors import CorruptState, InvalidInput, NewerSchema
from events.keys import IndexKeys
from events.log import EventLog, LogConnection
from events.ports import Appended, Base, Diverged, Trimmed
from tests.contract.commits import BIRTH, client_of, commit, dump, filled, hashed_fact, ids
from tests.contract.test_read import until

Fields = dict[bytes, bytes]


NEXT = str(facts.SCHEMA + 1).encode()


def rewrite(client: Any, log_key: str, position: int, change: Callable[[Fields], Fields]) -> None:
    """Replace one entry, as a disk, a proxy or a stranger might: the stream is written anew with it."""
    entries = client.xrange(log_key)
    client.delete(log_key)
    for stream_id, fields in entries:
        changed = change(fields) if keys.position_of(stream_id) == position else fields
        client.xadd(log_key, changed, id=stream_id)


def test_scripts_forgotten_by_the_server(stored: LogConnection, index_name: str) -> None:
    """Otherwise every engine would stop when a server restarts or somebody flushes its scripts.

    Given appends, when the script cache is flushed between them, then they go on.
    """
    log = stored.log(index_name)
    base = BIRTH
    for number in range(1, 6):
        client_of(stored).script_flush()
        assert log.append(commit(f"c{number}"), base) == Appended(number, ())
        base = Base(number, f"c{number}")


@pytest.mark.parametrize("key", ["log", "head", "fence"])
@pytest.mark.parametrize("behind", [False, True])
def test_a_key_of_another_type(stored: LogConnection, index_name: str, key: str, behind: bool) -> None:
    """Otherwise a key collision would leave half an append, and an index nobody can open.

    Given a key of the index that holds a string, when an engine appends, then CorruptState, and nothing was written.
    """
    log = stored.log(index_name)
    base = filled(log, 3)
    client_of(stored).set(getattr(IndexKeys.of(index_name), key), "not ours")
    before = dump(stored, index_name)

    with pytest.raises(CorruptState, match=r"wrong kind of value|WRONGTYPE"):
        log.append(commit("x1", engine="x", fences=(("x", 1),)), BIRTH if behind else base)

    assert dump(stored, index_name) == before


META = ("commit", "author", "at", "schema", "checksum")


def with_meta(**changed: bytes) -> Callable[[Fields], Fields]:
    """The same entry with other words in its field of meta data."""

    def change(fields: Fields) -> Fields:
        words = dict(zip(META, fields[b"meta"].split(b" "), strict=True)) | changed
        return fields | {b"meta": b" ".join(words.values())}

    return change


def harmed(value: bytes, damage: str) -> bytes | None:
    """A value that lost a bit, its tail, all of it, or (None) itself."""
    return {"flipped": value[:-1] + bytes([value[-1] ^ 1]), "cut": value[:-1], "empty": b"", "gone": None}[damage]


@pytest.mark.parametrize("part", ["meta", "body", "hashes", *META])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "gone"])
def test_a_damaged_field(stored: LogConnection, index_name: str, part: str, damage: str) -> None:
    """Otherwise an engine would use blocks by a history that never was.

    Given an entry of which a field, or a word of the field of meta data, lost a bit, its tail, or itself, when read or met
    in a reply, then CorruptState names its position.
    """
    log = stored.log(index_name)
    base = filled(log, 3)
    log.append(commit("c4", facts=[hashed_fact(bytes(32))]), base)

    def harm(fields: Fields) -> Fields:
        if part in META:
            words = [
                harmed(word, damage) if name == part else word
                for name, word in zip(META, fields[b"meta"].split(b" "), strict=True)
            ]
            return fields | {b"meta": b" ".join(word for word in words if word is not None)}
        value = harmed(fields[part.encode()], damage)
        kept = {name: kept for name, kept in fields.items() if name != part.encode()}
        return kept if value is None else kept | {part.encode(): value}

    rewrite(client_of(stored), IndexKeys.of(index_name).log, 4, harm)

    assert ids(log.read(0, 3)) == ["c1", "c2", "c3"]
    for meet in (lambda: log.read(0), lambda: log.append(commit("x1", engine="x"), Base(2, "c2"))):
        with pytest.raises(CorruptState) as refused:
            meet()
        assert "position 4" in str(refused.value)
        assert refused.value.position == 4


def test_an_entry_without_its_link(stored: LogConnection, index_name: str) -> None:
    """Otherwise a replica could not tell that the entry continues another history than its own.

    Given an entry that does not name the one before it, when read or met in a reply, then CorruptState with its position.
    """
    log = stored.log(index_name)
    filled(log, 3)
    rewrite(
        client_of(stored),
        IndexKeys.of(index_name).log,
        3,
        lambda fields: {name: value for name, value in fields.items() if name != b"previous"},
    )

    for meet in (lambda: log.read(0), lambda: log.append(commit("x1", engine="x"), Base(1, "c1"))):
        with pytest.raises(CorruptState, match=r"previous.* at position 3"):
            meet()


def test_a_newer_release_wrote_it(stored: LogConnection, index_name: str) -> None:
    """Otherwise an old engine would guess at facts it does not know.

    Given an entry of the next schema, when read or met in a reply, then NewerSchema with the position and the remedy.
    """
    log = stored.log(index_name)
    filled(log, 2)
    rewrite(client_of(stored), IndexKeys.of(index_name).log, 2, with_meta(schema=NEXT))

    for meet in (lambda: log.read(0), lambda: log.append(commit("x1", engine="x"), Base(1, "c1"))):
        with pytest.raises(NewerSchema, match=rf"schema {facts.SCHEMA + 1}.*upgrade statecore at position 2"):
            meet()


@pytest.mark.parametrize("schema", [b"0", b"-1", b"x", b"1.0"])
def test_a_schema_nobody_wrote(stored: LogConnection, index_name: str, schema: bytes) -> None:
    """Otherwise an entry of no release at all would be read as today's.

    Given an entry whose schema is no number of ours, when read, then CorruptState with the position.
    """
    log = stored.log(index_name)
    filled(log, 2)
    rewrite(client_of(stored), IndexKeys.of(index_name).log, 2, with_meta(schema=schema))

    with pytest.raises(CorruptState, match="position 2"):
        log.read(0)


@pytest.mark.parametrize("stream_id", ["3-1", "4-0", "1700000000000-0", "1700000000000-7"])
def test_a_strangers_entry(stored: LogConnection, index_name: str, stream_id: str) -> None:
    """Otherwise somebody's test message in our stream would be taken for a fact.

    Given an XADD by somebody else after position 3, when read, or when an engine appends, then CorruptState; the head
    does not move.
    """
    log = stored.log(index_name)
    base = filled(log, 3)
    client_of(stored).xadd(IndexKeys.of(index_name).log, {"message": "hello"}, id=stream_id)

    with pytest.raises(CorruptState, match=r"position 4|nobody of us wrote|position 1700000000000|lacks"):
        log.read(0)
    if stream_id != "3-1":  # a smaller id than the next one does not stand in the way of a writer at the end
        with pytest.raises(CorruptState):
            log.append(commit("x1", engine="x"), base)
        assert log.head().position == 3


def test_a_log_without_its_beginning(stored: LogConnection, index_name: str) -> None:
    """Otherwise an engine that slept through a trim would go on with a hole in its history.

    Given a log trimmed to 4…6, when somebody at 3 appends, then all is well; somebody at 2 is told that what it missed is
    trimmed; the head says what the oldest is.
    """
    log = stored.log(index_name)
    filled(log, 6)
    client_of(stored).xtrim(IndexKeys.of(index_name).log, minid="4-0", approximate=False)

    assert log.head().first == 4
    assert log.append(commit("x1", engine="x"), Base(2, "c2")) == Trimmed()
    assert isinstance(log.append(commit("x3", engine="x"), Base(3, "c3")), Appended)
    assert log.append(commit("x2", engine="x"), Base(3, "other")) == Diverged(3, "c3")


def test_a_log_trimmed_to_nothing(stored: LogConnection, index_name: str) -> None:
    """Otherwise an index could not be trimmed right behind a snapshot.

    Given a log without entries and a head at 3, when an engine at 3 appends, then 4.
    """
    log = stored.log(index_name)
    base = filled(log, 3)
    client_of(stored).xtrim(IndexKeys.of(index_name).log, maxlen=0, approximate=False)

    assert log.append(commit("x1", engine="x"), base) == Appended(4, ())


@pytest.mark.parametrize("behind", [False, True])
def test_a_log_that_was_deleted(stored: LogConnection, index_name: str, behind: bool) -> None:
    """Otherwise engines would go on writing into a log that no engine can ever join again.

    Given the log's key was deleted and the head is still there, when an engine appends, then it hears of it (an error,
    or Diverged) and no new log begins.
    """
    log = stored.log(index_name)
    base = filled(log, 3)
    client_of(stored).delete(IndexKeys.of(index_name).log)
    before = dump(stored, index_name)

    try:
        reply: object = log.append(commit("x1", engine="x"), Base(1, "c1") if behind else base)
    except CorruptState as error:
        reply = error

    assert isinstance(reply, Diverged | CorruptState), reply
    assert dump(stored, index_name) == before


def refused_at_birth(log: EventLog) -> bool:
    try:
        return log.append(commit("x2", engine="x"), BIRTH) == Diverged(0, "")
    except CorruptState:
        return True


def test_a_head_that_was_deleted(stored: LogConnection, index_name: str) -> None:
    """Otherwise engines would begin a second history over the first.

    Given the head's key was deleted and the log is still there, when an engine at the end, or a new one, appends, then
    Diverged or CorruptState, and the log is as it was.
    """
    log = stored.log(index_name)
    base = filled(log, 3)
    client_of(stored).delete(IndexKeys.of(index_name).head)
    before = dump(stored, index_name)

    assert log.append(commit("x1", engine="x"), base) == Diverged(3, "")
    assert refused_at_birth(log)
    with pytest.raises(CorruptState, match="has entries but"):
        log.head()

    assert dump(stored, index_name) == before


def test_another_layout(stored: LogConnection, index_name: str) -> None:
    """Otherwise a release with other keys and ours would write into the same index.

    Given an index of layout 9, when an engine appends or asks for the head, then InvalidInput with both layouts, nothing
    written.
    """
    log = stored.log(index_name)
    base = filled(log, 2)
    client_of(stored).hset(IndexKeys.of(index_name).head, keys.HEAD_LAYOUT, "9")
    before = dump(stored, index_name)

    for ask in (lambda: log.append(commit("x1", engine="x"), base), log.head):
        with pytest.raises(InvalidInput, match=f"layout '9'.*'{keys.LAYOUT}'"):
            ask()

    assert dump(stored, index_name) == before


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("damage", ["stranger", "newer"])
def test_the_follower_meets_an_unreadable_entry(stored: LogConnection, index_name: str, damage: str) -> None:
    """Otherwise an engine would silently stop hearing of its neighbours.

    Given a follower, when an entry arrives that it cannot read, then asking what arrived raises CorruptState.
    """
    log = stored.log(index_name)
    filled(log, 2)
    fields: Fields = {b"message": b"hello"}
    if damage == "newer":
        fields = with_meta(schema=NEXT)(client_of(stored).xrange(IndexKeys.of(index_name).log)[1][1])
    log.follow(2)
    client_of(stored).xadd(IndexKeys.of(index_name).log, fields, id="3-0")
    heard: list[CorruptState] = []

    def ask() -> bool:
        try:
            assert log.arrived(2) == ()
        except CorruptState as error:
            heard.append(error)
        return bool(heard)

    until(ask)

    assert heard[0].position == 3
    assert isinstance(heard[0], NewerSchema) == (damage == "newer")
    log.close()
