"""Whatever is stored, reading it gives what was stored or a clear refusal: nothing else, and no more memory than it takes.

Every decoder of what comes from outside the process, fed with damaged bytes whose checksums were made to fit again, so that
the damage gets behind them: entries of the log, stream fields, snapshots, jobs, heartbeats, exported files. What is still
a well-formed message after the damage has to be read as it stands; what is not has to be refused.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from events import codec, job_queue
from events.errors import CorruptState, InvalidInput
from events.jobs import decode_job, encode_job
from events.ports import Commit, Entry, Record, StoredRecord
from events.stream_entry import meta_of, stored_records
from ops.cli.export_file import ExportFile, write_export
from ops.cli.replaying import replay
from ops.cli.source import FileSource
from ops.cli.verify import require_head
from statecore import snapshot
from statecore.digest import digest
from statecore.invariants import violations
from statecore.replica import Replica
from tests.jobs.given import job
from tests.property.test_codec import sealed, stored
from tests.property.whole_histories import KINDS, POLICIES, World
from tests.security import mutations

ROOT: Final = Path(__file__).resolve().parents[2]
fuzzed = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
SEEDS = st.integers(0, 2**48)
MAGIC: Final = b"STATECORE-SNAPSHOT"


def a_world(seed: int, steps: int = 60) -> World:
    """A history of two tiers, sends, cancellations and everything else, from a seed."""
    chance = random.Random(seed)
    world = World(True, POLICIES[seed % len(POLICIES)])
    for _ in range(steps):
        symbols = [chance.randrange(2) for _ in range(chance.randint(1, 5))]
        world.run((chance.choice(KINDS), chance.randrange(3), chance.randrange(3), symbols, chance.randint(1, 5)))
    world.commit()
    return world


WORLDS: Final = [a_world(seed) for seed in range(12)]
"""Enough that together they hold every kind of fact and every part of a state."""


def test_the_worlds_hold_everything() -> None:
    """A fuzzer that never meets a part of the format proves nothing about it."""
    states = [world.state for world in WORLDS]
    facts = {type(fact).__name__ for world in WORLDS for entry in world.log for fact in entry.facts}
    assert len(facts) >= 20, facts
    assert any(state.transfers for state in states)
    assert any(state.sends for state in states)
    assert any(engine.held for state in states for engine in state.engines.values())
    assert any(r.duplicates for state in states for engine in state.engines.values() for r in engine.requests.values())


# --- entries of the log ---------------------------------------------------------------------------------------------


@fuzzed
@given(SEEDS)
def test_entries(seed: int) -> None:
    """Otherwise a damaged or hostile entry would end a replica with a traceback, or be read as something it is not.

    Given an entry whose JSON was changed in one place, or whose bytes were damaged, under a fitting checksum, when decoded
    and applied, then the entry says what its bytes say and the state is sound, or CorruptState and the state is as before.
    """
    chance = random.Random(seed)
    world = chance.choice(WORLDS)
    number = chance.randrange(len(world.log))
    entry = world.log[number]
    record = codec.encode(Commit(entry.id, entry.engine or "e", entry.session, entry.facts, (), ()), entry.at_ms)
    if chance.random() < 0.7:
        body = orjson.dumps(tame(mutations.of_json(orjson.loads(record.body), chance)))
        record = sealed(attrs.evolve(record, body=body))
    else:
        damaged: Any = {(name := chance.choice(["body", "hashes"])): mutations.of_bytes(getattr(record, name), chance)}
        record = sealed(attrs.evolve(record, **damaged))

    try:
        read = codec.decode(stored(record))
    except CorruptState:
        return
    again = codec.encode(Commit(read.id, read.engine, read.session, read.facts, (), ()), read.at_ms)
    assert orjson.loads(again.body) == orjson.loads(record.body)
    assert again.hashes == record.hashes
    applied(world.log[:number], read)


def applied(before: list[Entry], last: Entry) -> None:
    """The entry after those before it: it fits, or it is refused and leaves no trace."""
    replica = Replica()
    replica.apply_all(before)
    known = replica.digest()
    try:
        replica.apply(attrs.evolve(last, position=len(before) + 1, previous=replica.state.last_commit_id))
    except CorruptState:
        assert replica.digest() == known


def tame(value: Any) -> Any:
    """As a JSON writer would have it: numbers beyond 64 bits, infinite or not, become text."""
    try:
        orjson.dumps(value)
    except (TypeError, orjson.JSONEncodeError):
        return "too much for JSON"
    return value


@fuzzed
@given(SEEDS)
def test_fields_of_an_entry(seed: int) -> None:
    """Otherwise an entry that nobody of us wrote would end a follower's thread without a word, or be read as another one.

    Given stream entries with damaged ids and fields, when read and applied, then a record that says what its bytes say, and
    the state that the whole entry leads to, or CorruptState and the state before it.
    """
    chance = random.Random(seed)
    before, entry = WORLDS[0].log[:3], WORLDS[0].log[3]
    record = codec.encode(Commit(entry.id, "e0", 1, entry.facts, (), ()), 5)
    fields = {
        b"previous": entry.previous.encode(),
        b"meta": meta_of(record).encode(),
        b"body": record.body,
        b"hashes": record.hashes,
    }
    stream_id = b"4-0"
    match chance.randrange(4):
        case 0:
            stream_id = mutations.of_bytes(stream_id, chance)
        case 1:
            del fields[chance.choice(list(fields))]
        case 2:
            name = chance.choice(list(fields))
            fields[name] = mutations.of_bytes(fields[name], chance)
        case _:
            name = chance.choice(list(fields))
            fields[mutations.of_bytes(name, chance)] = fields.pop(name)

    try:
        (read,) = stored_records([(stream_id, fields)])
        decoded = codec.decode(read)
    except CorruptState:
        return
    commit_id, author, at_ms, schema, checksum = fields[b"meta"].decode().split(" ")
    told = Record(commit_id, author, int(at_ms), int(schema), fields[b"body"], fields[b"hashes"], checksum)
    position, _, rest = stream_id.decode().partition("-")
    assert (read, rest) == (StoredRecord(int(position), fields[b"previous"].decode(), told), "0")
    assert decoded == attrs.evolve(
        entry, position=int(position), previous=read.previous, engine="e0", session=1, at_ms=5
    )
    replica = Replica()
    replica.apply_all(before)
    known = replica.digest()
    try:
        replica.apply(decoded)
    except CorruptState:
        assert replica.digest() == known
    else:
        whole = Replica()
        whole.apply_all([*before, entry])
        assert replica.digest() == whole.digest()


# --- snapshots ------------------------------------------------------------------------------------------------------


def resealed(body: bytes) -> bytes:
    return body + hashlib.blake2b(body, digest_size=16).digest()


@fuzzed
@given(SEEDS)
def test_snapshots(seed: int) -> None:
    """Otherwise a replica would start from a state that never was: with blocks that two requests own, for instance.

    Given a snapshot whose header was changed in one place, or whose bytes were damaged, under a fitting checksum, when
    decoded, then the same state, or CorruptState.
    """
    chance = random.Random(seed)
    world = chance.choice(WORLDS)
    whole = snapshot.encode(world.state)
    body = whole[:-16]
    if chance.random() < 0.6:
        (length,) = struct.unpack_from("<I", body, len(MAGIC))
        start = len(MAGIC) + 4
        header = orjson.dumps(tame(mutations.of_json(orjson.loads(body[start : start + length]), chance)))
        body = MAGIC + struct.pack("<I", len(header)) + header + body[start + length :]
    else:
        body = mutations.of_bytes(body, chance)
    with contextlib.suppress(CorruptState):
        state = snapshot.decode(resealed(body))
        assert digest(state) == digest(world.state)
        assert violations(state) == []


@pytest.mark.parametrize("world", WORLDS)
def test_a_sound_snapshot_is_read(world: World) -> None:
    """Otherwise the checks would refuse what is whole.

    Given any history, when its state is encoded and decoded, then it is the same to the byte.
    """
    data = snapshot.encode(world.state)

    state = snapshot.decode(data)

    assert digest(state) == digest(world.state)
    assert snapshot.encode(state) == data


# --- jobs, heartbeats, files ----------------------------------------------------------------------------------------


@fuzzed
@given(SEEDS)
def test_jobs(seed: int) -> None:
    """Otherwise a bad job would end a worker, and the next worker, and the next.

    Given a damaged job, when decoded, then it says what its bytes say, or InvalidInput.
    """
    chance = random.Random(seed)
    body = encode_job(job(ranks=2))
    body = (
        orjson.dumps(tame(mutations.of_json(orjson.loads(body), chance)))
        if chance.random() < 0.7
        else mutations.of_bytes(body, chance)
    )
    with contextlib.suppress(InvalidInput):
        assert orjson.loads(encode_job(decode_job(body))) == orjson.loads(body)


@fuzzed
@given(SEEDS)
def test_heartbeats(seed: int) -> None:
    """Otherwise one strange heartbeat would end every launcher and every look at the workers.

    Given a damaged heartbeat, when decoded, then it says what its bytes say, or InvalidInput.
    """
    chance = random.Random(seed)
    plain = {
        "worker": "w", "life": "l", "pid": 5, "host": "h", "pool": "p", "rank": 0, "state": "ready", "jobs": 3,
    }  # fmt: skip
    body = orjson.dumps(tame(mutations.of_json(plain, chance)))
    if chance.random() < 0.3:
        body = mutations.of_bytes(body, chance)
    with contextlib.suppress(InvalidInput):
        beat = job_queue._heartbeat_of(body)
        assert attrs.asdict(beat) == orjson.loads(body)
        assert (type(beat.pid), type(beat.rank), type(beat.worker), type(beat.host)) == (int, int, str, str)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "whole.jsonl"
    write_export(path, "i", 1, len(WORLDS[0].log), records_of(WORLDS[0]))
    return path


def records_of(world: World) -> Iterator[StoredRecord]:
    for entry in world.log:
        record = codec.encode(Commit(entry.id, entry.engine or "e", entry.session, entry.facts, (), ()), 5)
        yield StoredRecord(entry.position, entry.previous, record)


@fuzzed
@given(SEEDS)
def test_exported_files(exported: Path, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Otherwise a file that somebody sent would be read as another history, or end the command with a traceback.

    Given an exported log with one line changed under a fitting checksum, or damaged bytes, compressed or not, when opened,
    read and replayed, then records that say what the lines say and the state that was exported, or InvalidInput or
    CorruptState.
    """
    chance = random.Random(seed)
    lines = exported.read_bytes().splitlines(keepends=True)
    if chance.random() < 0.7:
        number = chance.randrange(len(lines))
        lines[number] = orjson.dumps(tame(mutations.of_json(orjson.loads(lines[number]), chance))) + b"\n"
        if number < len(lines) - 1:
            footer = orjson.loads(lines[-1])
            footer["checksum"] = hashlib.blake2b(b"".join(lines[:-1]), digest_size=16).hexdigest()
            lines[-1] = orjson.dumps(footer) + b"\n"
        data = b"".join(lines)
    else:
        data = mutations.of_bytes(b"".join(lines), chance)
    said = [line for line in data.splitlines() if line]
    if chance.random() < 0.3:
        data = gzip.compress(data)
        data = mutations.of_bytes(data, chance) if chance.random() < 0.5 else data
    path = tmp_path_factory.mktemp("damaged") / "log.jsonl"
    path.write_bytes(data)
    try:
        found = ExportFile.open(path)
        records = list(found.records(0, found.head.position))
    except (InvalidInput, CorruptState):
        return
    header, footer = orjson.loads(said[0]), orjson.loads(said[-1])
    assert (found.index, found.head.commit_id) == (header["index"], str(footer.get("commit")))
    assert [line_of(record) for record in records] == [orjson.loads(line) for line in said[1:-1]]
    with contextlib.suppress(CorruptState):
        source = FileSource(found)
        replica = replay(source, found.head.position)
        require_head(source, replica.state)
        assert replica.digest() == digest(WORLDS[0].state)


def line_of(stored: StoredRecord) -> dict[str, object]:
    """An entry as a file says it."""
    record = stored.record
    return {
        "position": stored.position, "previous": stored.previous, "commit": record.commit_id, "author": record.author,
        "at": record.at_ms, "schema": record.schema, "body": record.body.decode(),
        "hashes": base64.b64encode(record.hashes).decode(), "checksum": record.checksum,
    }  # fmt: skip


# --- memory ---------------------------------------------------------------------------------------------------------

HOSTILE: Final = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000, 1_500_000_000))
from pathlib import Path
from tests.security import hostile
hostile.run_all(Path(sys.argv[1]))
"""


def test_a_small_message_takes_little_memory(tmp_path: Path) -> None:
    """Otherwise one entry of a hundred bytes could take the memory of every engine that reads it.

    Given a process of at most 1.5 GB and messages that claim enormous numbers, when they are read, then each is refused.
    """
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    answers = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert {what: answer for what, answer in answers.items() if answer != "refused"} == {}
    assert (done.returncode, len(answers)) == (0, 12), done.stderr[-2000:]
