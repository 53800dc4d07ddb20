"""`statecore export` and `import`: the file is the log, byte for byte, and a torn one is never taken for a whole one."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
import redis

from events import connect
from events.errors import OutcomeUnknown
from events.keys import IndexKeys
from events.ports import Base, Fenced, RawReply, Record
from events.redis_log import RedisTransport
from ops.cli.export_file import ExportFile
from statecore import CacheIndex
from statecore.invariants import leaked_blocks, violations
from tests.cli.scenario import (
    BLOCK_SIZE,
    FIRST,
    INDEX,
    META,
    TIERS,
    WARM,
    Story,
    Tiers,
    complaint,
    rewrite,
    statecore,
)


def lines_of(file: Path) -> list[dict[str, Any]]:
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    return [orjson.loads(line) for line in data.splitlines()]


# --- export


def test_the_file_holds_the_stored_entries_between_header_and_footer(
    story: Story, exported: Path, client: redis.Redis
) -> None:
    """A log taken home would not be the log that was there."""
    header, *entries, footer = lines_of(exported)
    stored: Any = client.xrange(IndexKeys.of(INDEX).log)

    assert header == {"format": "statecore-log", "version": 1, "index": INDEX, "first": 1, "count": story.end}
    assert [entry["position"] for entry in entries] == list(range(1, story.end + 1))
    assert [entry["body"].encode() for entry in entries] == [fields[b"body"] for _, fields in stored]
    meta = [" ".join(str(entry[name]) for name in META) for entry in entries]
    assert [words.encode() for words in meta] == [fields[b"meta"] for _, fields in stored]
    assert [entry["previous"].encode() for entry in entries] == [fields[b"previous"] for _, fields in stored]
    whole = exported.read_bytes()
    before = whole[: whole.rindex(b"\n", 0, -1) + 1]
    assert footer == {
        "end": "statecore-log",
        "count": story.end,
        "commit": entries[-1]["commit"],
        "checksum": hashlib.blake2b(before, digest_size=16).hexdigest(),
    }


def test_the_same_log_makes_the_same_file_packed_or_not(story: Story, exported: Path, tmp_path: Path) -> None:
    """Two copies of one log could not be compared by their bytes."""
    first, second = tmp_path / "one.jsonl.gz", tmp_path / "two.jsonl.gz"
    for file in (first, second):
        result = statecore("export", file, "--url", story.url, "--index", INDEX)
        assert result.exit_code == 0
        assert result.stdout == (
            f"wrote {file}: 19 commits (positions 1 to 19) of index 'llama', {file.stat().st_size:,} bytes\n"
        )

    assert first.read_bytes() == second.read_bytes()
    assert gzip.decompress(first.read_bytes()) == exported.read_bytes()
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_a_beginning_can_be_exported_from_a_file_too(story: Story, exported: Path, tmp_path: Path) -> None:
    """A log could not be cut down to the part that shows a fault."""
    part = tmp_path / "part.jsonl"

    assert statecore("export", part, "--file", exported, "--to", 7).exit_code == 0

    assert statecore("replay", "--file", part, "--digest").stdout.strip() == story.digests[7]


def test_a_file_is_not_overwritten_unasked(story: Story, tmp_path: Path) -> None:
    """The only copy of an incident would be replaced by a slip of the finger."""
    file = tmp_path / "kept.jsonl"
    file.write_text("precious")

    refused = statecore("export", file, "--url", story.url, "--index", INDEX)
    kept = file.read_text()
    forced = statecore("export", file, "--url", story.url, "--index", INDEX, "--force")

    assert "exists: give another name, or --force" in complaint(refused, 2)
    assert kept == "precious"
    assert forced.exit_code == 0
    assert ExportFile.open(file).head.position == story.end


def test_a_log_with_a_hole_leaves_no_file(story: Story, client: redis.Redis, copy: IndexKeys, tmp_path: Path) -> None:
    """Half an export would lie there and look like one."""
    client.xdel(copy.log, "5-0")

    result = statecore("export", tmp_path / "x.jsonl", "--url", story.url, "--index", copy.name)

    assert complaint(result, 1) == "the log goes on with 6: an entry is missing at position 5"
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_entry_is_exported_as_it_is(
    story: Story, client: redis.Redis, copy: IndexKeys, tmp_path: Path
) -> None:
    """A damaged log could not be sent to whoever is to look at it."""
    rewrite(client, copy, 5, lambda fields: fields.update({b"body": b"[]"}))
    file = tmp_path / "damaged.jsonl"

    assert statecore("export", file, "--url", story.url, "--index", copy.name).exit_code == 0

    assert complaint(statecore("verify", "--file", file), 1).endswith("at position 5")


# --- what is wrong with a file


def torn(data: bytes) -> bytes:
    return data[: len(data) // 2]


def without_footer(data: bytes) -> bytes:
    return data[: data.rindex(b"\n", 0, -1) + 1]


def without_last_byte(data: bytes) -> bytes:
    return data[:-1]


def without_an_entry(data: bytes) -> bytes:
    return b"".join(line for number, line in enumerate(data.splitlines(keepends=True)) if number != 4)


def sealed(lines: list[dict[str, Any]]) -> bytes:
    """Lines with a right footer: as a forger or another program would write them."""
    data = b"".join(orjson.dumps(line) + b"\n" for line in lines[:-1])
    footer = {**lines[-1], "checksum": hashlib.blake2b(data, digest_size=16).hexdigest()}
    return data + orjson.dumps(footer) + b"\n"


def changed(line: int, **fields: object) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        lines = [orjson.loads(each) for each in data.splitlines()]
        lines[line] = {**lines[line], **fields}
        return sealed(lines)

    return change


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("damage", "message", "code"),
    [
        (torn, "is torn: it stops after", 1),
        (without_footer, "is torn: it stops after 19 whole entries", 1),
        (without_last_byte, "is torn", 1),
        (without_an_entry, "is damaged: it holds 18 entries, its header says 19", 1),
        (lambda data: data.replace(b"twin-a", b"twin-c"), "is damaged: the checksum of its bytes is", 1),
        (lambda _: b"", "is not an exported log", 2),
        (lambda _: b'{"timestamp": 1}\n', "is not an exported log", 2),
        (lambda _: b"x" * 100_000, "is not an exported log", 2),
        (changed(0, version=3), "has format version 3, this release reads versions 1 and 2", 2),
        (changed(0, version=2), "is damaged: its header says version 2, and that its snapshots are []", 1),
        (changed(0, index=7), "is damaged: its header lacks index, first or count", 1),
        (changed(0, count=20), "is damaged: it holds 19 entries, its header says 20", 1),
        (changed(0, first=0), "is damaged: its header lacks index, first or count", 1),
        (changed(0, first=2), "the log begins at position 2: entries 1 to 1 are missing", 1),
        (changed(6, position=7), "the entry there says it is 7 at position 6", 1),
        (changed(6, body=["x"]), "is damaged: body is ['x'] at position 6", 1),
        (changed(6, hashes="%"), "is damaged: hashes are not base64", 1),
        (changed(6, extra=1), "is damaged: a line is not an entry at position 6", 1),
        (changed(6, previous="elsewhere.7"), "history diverged: the entry continues commit 'elsewhere.7'", 1),
        (changed(6, author="engine-1#2"), "log entry is damaged: checksum", 1),
    ],
)  # fmt: skip
def test_a_file_that_is_not_whole_is_refused(
    exported: Path, tmp_path: Path, damage: Callable[[bytes], bytes], message: str, code: int, packed: bool
) -> None:
    """Half a history would be taken for a history."""
    file = tmp_path / ("bad.jsonl.gz" if packed else "bad.jsonl")
    data = damage(exported.read_bytes())
    file.write_bytes(gzip.compress(data) if packed else data)

    for command in ("replay", "verify"):
        assert message in complaint(statecore(command, "--file", file), code)


def test_a_packed_file_cut_short_is_refused(exported: Path, tmp_path: Path) -> None:
    """A download that broke off would show a traceback of the decompressor."""
    file = tmp_path / "cut.jsonl.gz"
    packed = gzip.compress(exported.read_bytes())
    for length in (11, len(packed) // 2, len(packed) - 4):
        file.write_bytes(packed[:length])
        assert "is torn or damaged" in complaint(statecore("log", "--file", file), 1)


# --- import


def test_an_imported_log_is_the_log_keys_included(story: Story, exported: Path, client: redis.Redis, name: str) -> None:
    """A restored index would differ from the one that was lost: positions, ids, fences, or who conflicts with whom."""
    result = statecore("import", exported, "--url", story.url, "--index", name)

    assert result.stdout == (
        f"imported 19 commits into index '{name}' at {story.url}; digest {story.digests[19]}, as in the file\n"
    )
    old, new = IndexKeys.of(INDEX), IndexKeys.of(name)
    assert client.xrange(new.log) == client.xrange(old.log)
    assert client.hgetall(new.head) == client.hgetall(old.head)
    assert client.hgetall(new.fence) == client.hgetall(old.fence)


def test_engines_go_on_where_the_imported_log_ends(story: Story, exported: Path, name: str) -> None:
    """A restored index would be good for looking at only."""
    assert statecore("import", exported, "--url", story.url, "--index", name).exit_code == 0
    with connect(story.url) as connection:
        engine = CacheIndex(
            connection, name=name, engine="engine-1", gpu_pool="gpu", block_size=BLOCK_SIZE, follow=False
        )
        found = engine.match("again", FIRST)
        late = connection.backend.transport(name).append(
            Record("late.1", "engine-1#2", 0, 1, b"[]", b"", ""),
            engine="engine-1", session=2, base=Base(0, ""), checks=(), touches=(), fences=(),
        )  # fmt: skip

    assert (engine.session, len(found.blocks)) == (3, 4)
    assert late == Fenced(3)
    assert statecore("verify", "--url", story.url, "--index", name).exit_code == 0


def test_the_name_in_the_file_is_the_default(story: Story, exported: Path) -> None:
    """A restored index would have another name than the engines ask for."""
    message = complaint(statecore("import", exported, "--url", story.url), 2)

    assert message == (
        f"index 'llama' at {story.url} is not empty (its log is at position 19): give another name with --index"
    )


def test_a_broken_file_is_not_imported(story: Story, exported: Path, tmp_path: Path, name: str) -> None:
    """An index would be half there, and engines join it."""
    file = tmp_path / "bad.jsonl"
    file.write_bytes(changed(12, previous="elsewhere.7")(exported.read_bytes()))

    message = complaint(statecore("import", file, "--url", story.url, "--index", name), 1)

    assert "history diverged" in message
    with connect(story.url) as connection:
        assert name not in connection.indexes()


def test_a_name_that_is_none_is_refused(story: Story, exported: Path) -> None:
    """Keys would be written that no engine can name."""
    message = complaint(statecore("import", exported, "--url", story.url, "--index", "a b"), 2)

    assert message.startswith("index name 'a b' is not a name")


def test_an_import_stops_when_somebody_else_writes(
    story: Story, exported: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two histories would be mixed into one."""
    append = RedisTransport.append
    calls: list[str] = []

    def with_an_intruder(self: RedisTransport, record: Record, **scopes: Any) -> RawReply:
        calls.append(record.commit_id)
        if len(calls) == 4:
            with connect(story.url) as connection:
                CacheIndex(connection, name=name, engine="intruder", gpu_pool="gpu", block_size=BLOCK_SIZE)
        return append(self, record, **scopes)

    monkeypatch.setattr(RedisTransport, "append", with_an_intruder)

    message = complaint(statecore("import", exported, "--url", story.url, "--index", name), 2)

    assert message == (
        f"somebody else writes to index '{name}': 3 entries were copied before a commit of theirs came; this index is of "
        "no use, import into one that nobody has joined"
    )


@pytest.mark.parametrize("arrived", [True, False])
def test_an_import_finds_out_what_became_of_an_entry_without_reply(
    story: Story, exported: Path, name: str, monkeypatch: pytest.MonkeyPatch, arrived: bool
) -> None:
    """A hiccup of the network would leave an entry twice, or not at all."""
    append = RedisTransport.append
    calls: list[str] = []

    def without_reply_once(self: RedisTransport, record: Record, **scopes: Any) -> RawReply:
        calls.append(record.commit_id)
        if len(calls) == 4:
            if arrived:
                append(self, record, **scopes)
            raise OutcomeUnknown("timeout", record.commit_id)
        return append(self, record, **scopes)

    monkeypatch.setattr(RedisTransport, "append", without_reply_once)
    result = statecore("import", exported, "--url", story.url, "--index", name)

    if arrived:
        assert result.exit_code == 0
        assert len(calls) == story.end
    else:
        assert complaint(result, 2) == "timeout"


# --- transfers


def test_transfers_come_along_and_nobody_is_told(
    tiers: Tiers, exported_tiers: Path, client: redis.Redis, name: str
) -> None:
    """A restored index would have lost what was under way, or a worker would copy over blocks that serve requests.

    Given a log with workers' entries, a cancelled transfer and one under way, when imported, then every key but jobs and
    leases is as it was, there is no job, and the command says so.
    """
    result = statecore("import", exported_tiers, "--url", tiers.url, "--index", name)

    assert result.stdout.splitlines() == [
        f"imported {tiers.end} commits into index '{name}' at {tiers.url}; digest {tiers.digests[tiers.end]}, as in the "
        "file",
        "2 transfers of it not over: no worker was told, so nobody moves the blocks before they are rung again or "
        "cancelled (see: statecore inspect transfers)",
    ]
    old, new = IndexKeys.of(TIERS), IndexKeys.of(name)
    assert client.xlen(old.jobs("gpu")) == 6
    keys = cast("list[bytes]", client.keys(f"kv:{{{name}}}:*"))
    assert {key.decode() for key in keys} - {new.lease("engine-0")} == {new.log, new.head, new.fence}
    assert client.xrange(new.log) == client.xrange(old.log)
    assert client.hgetall(new.head) == client.hgetall(old.head)
    assert client.hgetall(new.fence) == client.hgetall(old.fence)


def test_an_imported_index_with_transfers_goes_on(tiers: Tiers, exported_tiers: Path, name: str) -> None:
    """Transfers that nobody makes would hold their blocks for ever.

    Given an imported log with a swap-in under way, when its engine joins anew, then the request it was for is gone, and
    when the engine fetches the same again, then it can.
    """
    assert statecore("import", exported_tiers, "--url", tiers.url, "--index", name).exit_code == 0
    with connect(tiers.url) as connection:
        engine = CacheIndex(
            connection, name=name, engine="engine-0", gpu_pool="gpu", cpu_pool="cpu:host", block_size=BLOCK_SIZE,
            tensor_parallel_size=2, follow=False,
        )  # fmt: skip
        assert engine.requests() == ()
        found = engine.match("again", WARM)

        assert engine.inspect(violations) == []
        assert engine.inspect(leaked_blocks) == 0
        assert found.host_tokens in (0, 16)
    assert statecore("verify", "--url", tiers.url, "--index", name, "--every", 1).exit_code == 0


def test_without_transfers_nothing_is_said_of_them(story: Story, exported: Path, name: str) -> None:
    """Whoever has one tier would look for workers that do not exist."""
    result = statecore("import", exported, "--url", story.url, "--index", name)

    assert "worker" not in result.stdout
