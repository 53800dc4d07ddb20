"""Facts to bytes and back: exactly, and nothing else is read.

The golden bytes below are what logs on disks hold. If they change, old logs must still be readable: a new schema number
and a migration, not a new golden text.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import attrs
import orjson
import pytest

from events import codec
from events.errors import CorruptState, InvalidInput, NewerSchema
from events.facts import (
    FACT_TYPES,
    SCHEMA,
    BlocksAllocated,
    BlocksRecycled,
    CacheCleared,
    CopyEvicted,
    EngineJoined,
    EngineLeft,
    EngineLost,
    Fact,
    HistoryLost,
    IndexCreated,
    PathExtended,
    PathReady,
    PolicyChosen,
    PoolAdded,
    PoolDropped,
    PoolResized,
    PrefixMatched,
    RequestReleased,
    SendStarted,
    ServicePaused,
    ServiceResumed,
    TransferCancelled,
    TransferFinished,
    TransferStarted,
)
from events.limits import COMMIT_BYTES_MAX, COMMIT_FACTS_MAX
from events.ports import Commit, Record, StoredRecord

FACTS_OF_1: tuple[Fact, ...] = (
    IndexCreated(64, "blake2b-128/1"),
    PoolAdded("gpu:a", "gpu", 8),
    PolicyChosen("write_through", 10, 25),
    EngineJoined("a", 1, "gpu:a", None, 4, True),
    EngineJoined("b", 2, "gpu:a", "host", 1, True),
    EngineLeft("a", 1),
    EngineLost("b", 2, "a new life of the engine began"),
    PrefixMatched("a", "r", -3, 2, 130),
    BlocksAllocated("a", "r", "gpu:a", ((0, 2), (5, 1))),
    BlocksAllocated("a", None, "gpu:a", ()),
    BlocksRecycled("a", "r", "gpu:a", ((5, 1),)),
    PathExtended("a", "r", 2, bytes(range(32)), ((0, 1),), ((1, 1),)),
    PathReady("a", "r", 4),
    RequestReleased("a", "r", ()),
    CopyEvicted("gpu:a", 7, 4, ((0, 2),)),
    TransferStarted("a:0", "swap_out", "a", None, 7, 2, 4, "gpu:a", ((0, 2),), "host", ((6, 2),)),
    TransferStarted("b:3", "swap_in", "b", "r", -1, 0, 1, "host", ((6, 1),), "gpu:a", ((3, 1),)),
    TransferFinished("a:0", True, ""),
    TransferFinished("b:3", False, "rank 1: the copy differs"),
    TransferCancelled("b:3", "nobody waits"),
)
FACTS_SINCE_2: tuple[Fact, ...] = (
    PoolResized("gpu:a", 12),
    PoolDropped("a", "gpu:a"),
    SendStarted("a:4", "a", "r", "b", "gpu:a", ((0, 2),), "gpu:b", ((5, 2),)),
    ServicePaused("a", "new weights"),
    CacheCleared("a", "new weights"),
    ServiceResumed("a", "they are loaded"),
)
FACTS_SINCE_3: tuple[Fact, ...] = (HistoryLost("keeper", "n.9"),)
FACTS = FACTS_OF_1 + FACTS_SINCE_2 + FACTS_SINCE_3
FIRST_WRITTEN: dict[Fact, Fact] = {
    EngineJoined("a", 1, "gpu:a", None, 4, True): EngineJoined("a", 1, "gpu:a", None, 4, False),
    EngineJoined("b", 2, "gpu:a", "host", 1, True): EngineJoined("b", 2, "gpu:a", "host", 1, False),
}
"""What became of a fact that an older schema could not write down whole: nobody said then that memory survives."""


def commit(*facts: Fact) -> Commit:
    return Commit("n.1", "a", 3, facts, checks=("engine:a",), touches=("engine:a",))


def stored(record: Record, position: int = 7) -> StoredRecord:
    return StoredRecord(position, "n.0", record)


def rewritten(record: Record, **changes: object) -> StoredRecord:
    """The record with other content and a checksum that is right for it: forged, not damaged."""
    changed = attrs.evolve(record, **changes)  # type: ignore[arg-type]
    head = (
        f"{changed.commit_id}|{changed.author}|{changed.at_ms}|{changed.schema}|"
        f"{len(changed.body)}|{len(changed.hashes)}|"
    )
    checksum = zlib.crc32(changed.hashes, zlib.crc32(changed.body, zlib.crc32(head.encode())))
    return stored(attrs.evolve(changed, checksum=f"{checksum:08x}"))


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: type(fact).__name__)
def test_each_fact_comes_back(fact: Fact) -> None:
    """A fact is read back as another: replay gives another state."""
    entry = codec.decode(stored(codec.encode(commit(fact), at_ms=5)))

    assert entry.facts == (fact,)
    assert (entry.position, entry.id, entry.previous) == (7, "n.1", "n.0")
    assert (entry.engine, entry.session, entry.at_ms) == ("a", 3, 5)


def test_every_fact_is_among_them() -> None:
    """A new fact is in no round trip."""
    assert {type(fact) for fact in FACTS} == set(FACT_TYPES)


def test_facts_of_one_commit_share_the_hashes_in_order() -> None:
    """Two requests of one step get each other's hashes."""
    one = PathExtended("a", "r", 0, b"1" * 16, ((0, 1),), ())
    two = PathExtended("a", "s", 0, b"2" * 32, ((1, 2),), ())

    record = codec.encode(commit(one, PathReady("a", "r", 1), two), at_ms=0)

    assert record.hashes == b"1" * 16 + b"2" * 32
    assert codec.decode(stored(record)).facts == (one, PathReady("a", "r", 1), two)


GOLDEN_BODY = (
    b"["
    b'["IndexCreated",64,"blake2b-128/1"],'
    b'["PoolAdded","gpu:a","gpu",8],'
    b'["PolicyChosen","write_through",10,25],'
    b'["EngineJoined","a",1,"gpu:a",null,4],'
    b'["EngineJoined","b",2,"gpu:a","host",1],'
    b'["EngineLeft","a",1],'
    b'["EngineLost","b",2],'
    b'["PrefixMatched","a","r",-3,2,130],'
    b'["BlocksAllocated","a","r","gpu:a",[[0,2],[5,1]]],'
    b'["BlocksAllocated","a",null,"gpu:a",[]],'
    b'["BlocksRecycled","a","r","gpu:a",[[5,1]]],'
    b'["PathExtended","a","r",2,2,[[0,1]],[[1,1]]],'
    b'["PathReady","a","r",4],'
    b'["RequestReleased","a","r",[]],'
    b'["CopyEvicted","gpu:a",7,4,[[0,2]]],'
    b'["TransferStarted","a:0","swap_out","a",null,7,2,4,"gpu:a",[[0,2]],"host",[[6,2]]],'
    b'["TransferStarted","b:3","swap_in","b","r",-1,0,1,"host",[[6,1]],"gpu:a",[[3,1]]],'
    b'["TransferFinished","a:0",true,""],'
    b'["TransferFinished","b:3",false,"rank 1: the copy differs"],'
    b'["TransferCancelled","b:3","nobody waits"]'
    b"]"
)
GOLDEN_CHECKSUM_OF_1 = "37a7df7f"
GOLDEN_BODY_SINCE_2 = (
    b"["
    b'["PoolResized","gpu:a",12],'
    b'["PoolDropped","a","gpu:a"],'
    b'["SendStarted","a:4","a","r","b","gpu:a",[[0,2]],"gpu:b",[[5,2]]],'
    b'["ServicePaused","a","new weights"],'
    b'["CacheCleared","a","new weights"],'
    b'["ServiceResumed","a","they are loaded"]'
    b"]"
)
GOLDEN_CHECKSUM_OF_2 = "4d93879d"
GOLDEN_CHECKSUM = "eebf11fa"


def golden_body() -> bytes:
    """What schema 3 writes: the same with what it added."""
    body = GOLDEN_BODY[:-1] + b"," + GOLDEN_BODY_SINCE_2[1:]
    body = body.replace(b'"gpu:a",null,4]', b'"gpu:a",null,4,true]').replace(b'"host",1]', b'"host",1,true]')
    body = body.replace(b'["EngineLost","b",2]', b'["EngineLost","b",2,"a new life of the engine began"]')
    return body[:-1] + b',["HistoryLost","keeper","n.9"]]'


def test_golden_bytes() -> None:
    """The format of the log changed, and logs on disks are not readable any more."""
    record = codec.encode(commit(*FACTS), at_ms=1_700_000_000_000)

    assert record.body == golden_body()
    assert record.hashes == bytes(range(32))
    assert record.checksum == GOLDEN_CHECKSUM
    assert (record.commit_id, record.author, record.at_ms, record.schema) == ("n.1", "a#3", 1_700_000_000_000, 3)
    assert SCHEMA == 3


def test_a_log_of_schema_1_is_read_as_it_was() -> None:
    """P7: an upgrade cannot read what the release before it wrote."""
    old = Record("n.1", "a#3", 1_700_000_000_000, 1, GOLDEN_BODY, bytes(range(32)), GOLDEN_CHECKSUM_OF_1)

    assert codec.decode(stored(old)).facts == tuple([FIRST_WRITTEN.get(fact, fact) for fact in FACTS_OF_1])


def test_a_log_of_schema_2_is_read_as_it_was() -> None:
    """P7: an upgrade cannot read what the release before it wrote."""
    body = GOLDEN_BODY[:-1] + b"," + GOLDEN_BODY_SINCE_2[1:]
    old = Record("n.1", "a#3", 1_700_000_000_000, 2, body, bytes(range(32)), GOLDEN_CHECKSUM_OF_2)

    assert codec.decode(stored(old)).facts == tuple(
        [FIRST_WRITTEN.get(fact, fact) for fact in FACTS_OF_1 + FACTS_SINCE_2]
    )


# --- what is refused ------------------------------------------------------------------------------------------------

ONE = codec.encode(commit(BlocksAllocated("a", "r", "g", ((0, 2),))), at_ms=0)
PATH = codec.encode(commit(PathExtended("a", "r", 0, bytes(32), ((0, 2),), ())), at_ms=0)


def body(*values: object) -> bytes:
    """One fact of these values, its name first."""
    return orjson.dumps([list(values)])


def allocated(engine: object = "a", request: object = "r", pool: object = "g", blocks: object = ((0, 2),)) -> bytes:
    return body("BlocksAllocated", engine, request, pool, blocks)


def extended(count: object, depth: object = 0) -> bytes:
    return body("PathExtended", "a", "r", depth, count, [[0, 2]], [])


def finished(ok: object) -> bytes:
    return body("TransferFinished", "a:0", ok, "")


FORGED: dict[str, tuple[StoredRecord, str]] = {
    "no JSON": (rewritten(ONE, body=b"[{"), "body is not JSON"),
    "torn": (rewritten(ONE, body=ONE.body[:-5]), "body is not JSON"),
    "no text": (rewritten(ONE, body=b"\xff\xfe"), "body is not JSON"),
    "NaN": (rewritten(ONE, body=ONE.body.replace(b"[0,2]", b"[NaN,2]")), "body is not JSON"),
    "no list": (rewritten(ONE, body=b"{}"), "is not a list of 1 to"),
    "no facts": (rewritten(ONE, body=b"[]"), "is not a list of 1 to"),
    "too many facts": (rewritten(ONE, body=b"[" + b"1," * COMMIT_FACTS_MAX + b"1]"), "is not a list of 1 to"),
    "no fact": (rewritten(ONE, body=b"[5]"), "5 is not a fact"),
    "a fact as a map": (rewritten(ONE, body=b'[{"fact":"PathReady"}]'), "{'fact': 'PathReady'} is not a fact"),
    "a fact without a name": (rewritten(ONE, body=b"[[]]"), "[] is not a fact"),
    "unknown fact": (rewritten(ONE, body=body("Exploded", "a")), "unknown fact 'Exploded'"),
    "unhashable name": (rewritten(ONE, body=body([], "a")), "unknown fact []"),
    "no name": (rewritten(ONE, body=body(None)), "unknown fact None"),
    "missing field": (
        rewritten(ONE, body=body("BlocksAllocated", "a", "r", [[0, 2]])),
        "BlocksAllocated has the fields engine, request, pool, blocks, found 3 values",
    ),
    "extra field": (rewritten(ONE, body=body("PathReady", "a", "r", 1, "red")), "found 4 values"),
    "number for text": (
        rewritten(ONE, body=allocated(engine=5)),
        "engine of BlocksAllocated: 5 is not of type str",
    ),
    "null for text": (rewritten(ONE, body=allocated(pool=None)), "pool of BlocksAllocated: None is not of type str"),
    "number for text or null": (
        rewritten(ONE, body=allocated(request=5)),
        "request of BlocksAllocated: 5 is not of type str",
    ),
    "text for a boolean": (rewritten(ONE, body=finished("yes")), "ok of TransferFinished: 'yes' is not of type bool"),
    "number for a boolean": (rewritten(ONE, body=finished(1)), "ok of TransferFinished: 1 is not of type bool"),
    "ranges that are none": (
        rewritten(ONE, body=allocated(blocks="0-2")),
        "blocks of BlocksAllocated: '0-2' is not of type list",
    ),
    "null for ranges": (rewritten(ONE, body=allocated(blocks=None)), "None is not of type list"),
    "flat ranges": (rewritten(ONE, body=allocated(blocks=[0, 2])), "0 is not a block range"),
    "range of three": (rewritten(ONE, body=allocated(blocks=[[0, 2, 3]])), "[0, 2, 3] is not a block range"),
    "range of none": (rewritten(ONE, body=allocated(blocks=[[0, 0]])), "[0, 0] is not a block range"),
    "negative range": (rewritten(ONE, body=allocated(blocks=[[-1, 2]])), "[-1, 2] is not a block range"),
    "range of negative length": (rewritten(ONE, body=allocated(blocks=[[1, -2]])), "[1, -2] is not a block range"),
    "endless range": (rewritten(ONE, body=allocated(blocks=[[0, 2**40]])), "is not a block range"),
    "range of booleans": (rewritten(ONE, body=allocated(blocks=[[False, True]])), "is not a block range"),
    "range of floats": (rewritten(ONE, body=allocated(blocks=[[0.0, 2]])), "[0.0, 2] is not a block range"),
    "text for a count of hashes": (
        rewritten(PATH, body=extended("2")),
        "hashes of PathExtended: '2' is not of type int",
    ),
    "float for a count of hashes": (rewritten(PATH, body=extended(2.0)), "2.0 is not of type int"),
    "boolean for a count of hashes": (rewritten(PATH, body=extended(True)), "True is not of type int"),
    "negative count of hashes": (rewritten(PATH, body=extended(-2)), "-2 is not a number of hashes"),
    "float for a number": (rewritten(PATH, body=extended(2, 0.0)), "depth of PathExtended: 0.0 is not of type int"),
    "boolean for a number": (rewritten(PATH, body=extended(2, depth=False)), "False is not of type int"),
    "too few hashes": (rewritten(PATH, hashes=bytes(16)), "facts name 32 bytes of hashes, entry holds 16"),
    "too many hashes": (rewritten(PATH, hashes=bytes(33)), "facts name 32 bytes of hashes, entry holds 33"),
    "hashes of nobody": (rewritten(ONE, hashes=bytes(16)), "facts name 0 bytes of hashes, entry holds 16"),
    "author without session": (rewritten(ONE, author="a"), "author 'a' is not of the form engine#session"),
    "author with a session of text": (rewritten(ONE, author="a#x"), "is not of the form"),
    "author with a negative session": (rewritten(ONE, author="a#-1"), "is not of the form"),
    "author with no session": (rewritten(ONE, author="a#"), "is not of the form"),
}


@pytest.mark.parametrize(("record", "reason"), FORGED.values(), ids=FORGED.keys())
def test_what_is_not_exactly_ours_is_refused(record: StoredRecord, reason: str) -> None:
    """A broken entry is guessed at, and the replica goes on with a state nobody else has."""
    with pytest.raises(CorruptState) as raised:
        codec.decode(record)

    assert reason in str(raised.value)
    assert raised.value.position == 7
    assert "at position 7" in str(raised.value)
    assert len(str(raised.value)) < 600


DAMAGE: dict[str, Callable[[Record], Record]] = {
    "body": lambda record: attrs.evolve(record, body=record.body.replace(b'"r",0', b'"r",1')),
    "body cut": lambda record: attrs.evolve(record, body=record.body[:-1]),
    "hashes": lambda record: attrs.evolve(record, hashes=b"\1" + record.hashes[1:]),
    "hashes cut": lambda record: attrs.evolve(record, hashes=record.hashes[:-16]),
    "author": lambda record: attrs.evolve(record, author="b#3"),
    "commit id": lambda record: attrs.evolve(record, commit_id="n.2"),
    "time": lambda record: attrs.evolve(record, at_ms=1),
    "checksum": lambda record: attrs.evolve(record, checksum="00000000"),
    "no checksum": lambda record: attrs.evolve(record, checksum=""),
    "a byte from body to hashes": lambda record: attrs.evolve(
        record, body=record.body[:-1], hashes=record.body[-1:] + record.hashes
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_noticed(damage: Callable[[Record], Record]) -> None:
    """A flipped bit in the log becomes another block, another engine, another time."""
    with pytest.raises(CorruptState, match=r"damaged: checksum .* at position 7"):
        codec.decode(stored(damage(PATH)))


def test_every_byte_of_the_body_counts() -> None:
    """There is a byte in the log that nobody checks."""
    for at in range(len(ONE.body)):
        flipped = ONE.body[:at] + bytes([ONE.body[at] ^ 1]) + ONE.body[at + 1 :]
        with pytest.raises(CorruptState):
            codec.decode(stored(attrs.evolve(ONE, body=flipped)))


def test_a_newer_schema_asks_for_an_upgrade() -> None:
    """An old release reads half of what a new one wrote."""
    with pytest.raises(NewerSchema, match="has schema 4, this release reads up to 3: upgrade statecore at position 7"):
        codec.decode(rewritten(ONE, schema=4))
    with pytest.raises(NewerSchema):
        codec.decode(stored(attrs.evolve(ONE, schema=99, checksum="not ours", body=b"not JSON")))


@pytest.mark.parametrize("schema", [0, -1])
def test_a_schema_nobody_wrote_is_refused(schema: int) -> None:
    """An entry of no release is read as one of this."""
    with pytest.raises(CorruptState):
        codec.decode(rewritten(ONE, schema=schema))


def test_a_commit_has_bounds() -> None:
    """A commit that no replica could read back is written."""
    ready = PathReady("a", "r", 1)
    with pytest.raises(InvalidInput, match=f"1 to {COMMIT_FACTS_MAX} facts, not 0"):
        codec.encode(commit(), at_ms=0)
    with pytest.raises(InvalidInput, match=f"not {COMMIT_FACTS_MAX + 1}"):
        codec.encode(commit(*[ready] * (COMMIT_FACTS_MAX + 1)), at_ms=0)
    with pytest.raises(InvalidInput, match=f"at most {COMMIT_BYTES_MAX} bytes"):
        codec.encode(commit(PathExtended("a", "r", 0, bytes(COMMIT_BYTES_MAX), ((0, 1),), ())), at_ms=0)


def test_hashes_that_are_not_whole_are_not_written() -> None:
    """A defect in one engine ends every replica: the entry is in the log and unreadable."""
    torn = commit(PathExtended("a", "r", 0, bytes(17), ((0, 1),), ()))
    with pytest.raises(InvalidInput):
        codec.encode(torn, at_ms=0)


def test_for_people() -> None:
    """`statecore log --json` prints something that is no JSON."""
    plain = codec.fact_to_dict(FACTS[11])

    assert plain == {
        "fact": "PathExtended",
        "engine": "a",
        "request": "r",
        "depth": 2,
        "hashes": bytes(range(32)).hex(),
        "adopted": ((0, 1),),
        "duplicates": ((1, 1),),
    }
    assert orjson.loads(orjson.dumps(plain))["fact"] == "PathExtended"
