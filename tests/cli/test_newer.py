"""A log or a snapshot that a newer release wrote (bugs E-30): whoever meets it says so, and does nothing else."""

from __future__ import annotations

import struct
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
import redis

from events import connect
from events.errors import NewerSchema
from events.facts import SCHEMA
from events.keys import IndexKeys
from events.ports import SnapshotPointer
from statecore import CacheIndex, snapshot
from statecore.replica import Replica
from statecore.restoring import up_to_date
from tests.cli.scenario import BLOCK_SIZE, POOL_BLOCKS, Story, complaint, rewrite, statecore, with_meta
from workers.keeper import Keeper
from workers.keeper_totals import KeeperSettings

AT: Final = 12
READS: Final = f"has schema {SCHEMA + 1}, this release reads up to {SCHEMA}: upgrade statecore"
SAID: Final = f"log entry {READS} at position {AT}"


@pytest.fixture
def newer(client: redis.Redis, copy: IndexKeys) -> IndexKeys:
    """A log with an entry of the next schema in it."""
    rewrite(client, copy, AT, with_meta(schema=str(SCHEMA + 1)))
    return copy


def held(client: redis.Redis, keys: IndexKeys) -> Any:
    return client.xrange(keys.log), client.hgetall(keys.head), client.hgetall(keys.fence)


@pytest.mark.parametrize("command", [("log", "--json"), ("replay",), ("inspect", "pools"), ("verify",)], ids=" ".join)
def test_commands_say_what_to_do(story: Story, newer: IndexKeys, command: tuple[str, ...]) -> None:
    """An operator takes a newer log for a broken one."""
    assert complaint(statecore(*command, "--url", story.url, "--index", newer.name), 2) == SAID


def test_an_exported_file_is_refused_too(story: Story, newer: IndexKeys, tmp_path: Path, name: str) -> None:
    """A newer log is imported half, and engines join the half."""
    file = tmp_path / "newer.jsonl"
    assert statecore("export", file, "--url", story.url, "--index", newer.name).exit_code == 0

    assert complaint(statecore("verify", "--file", file), 2) == SAID
    assert complaint(statecore("import", file, "--url", story.url, "--index", name), 2) == SAID
    assert "there is no index" in complaint(statecore("log", "--url", story.url, "--index", name), 2)


def test_an_engine_does_not_join(client: redis.Redis, story: Story, newer: IndexKeys) -> None:
    """An engine decides on half of what happened."""
    before = held(client, newer)

    with connect(story.url) as connection, pytest.raises(NewerSchema, match=SAID):
        CacheIndex(
            connection, name=newer.name, engine="late", gpu_pool="gpu", gpu_blocks=POOL_BLOCKS, block_size=BLOCK_SIZE
        )

    assert held(client, newer) == before


def test_a_keeper_does_nothing(client: redis.Redis, story: Story, newer: IndexKeys) -> None:
    """A keeper of the old release trims the log behind a snapshot of a state that it did not understand."""
    before = held(client, newer)
    with connect(story.url) as connection:
        keeper = Keeper(connection.keeping(newer.name), KeeperSettings(every=1, age_s=0.0), lambda *_, **__: None)
        with pytest.raises(NewerSchema, match=SAID):
            keeper.turn()
    assert held(client, newer) == before
    assert not client.exists(newer.snapshot)


def of_tomorrow(data: bytes) -> bytes:
    """The snapshot with the next schema in its header; its checksum is right."""
    start = len(snapshot._MAGIC) + 4
    (length,) = struct.unpack_from("<I", data, start - 4)
    header = orjson.loads(data[start : start + length]) | {
        "schema": snapshot.SNAPSHOT_SCHEMA + 1,
        "what": "nobody knows",
    }
    packed = orjson.dumps(header)
    body = data[: start - 4] + struct.pack("<I", len(packed)) + packed + data[start + length : -16]
    return body + blake2b(body, digest_size=16).digest()


def test_nothing_older_is_used_in_place_of_a_newer_snapshot(client: redis.Redis, story: Story, copy: IndexKeys) -> None:
    """An old release starts from the snapshot before, and goes on writing beside the new one.

    Given two snapshots, the newer of the next schema, when a replica starts, then it is refused with what to do.
    """
    with connect(story.url) as connection:
        log, shelf = connection.log(copy.name, follow=False), connection.keeping(copy.name).shelf
        replica = Replica()
        for entry in log.read(0):
            replica.apply(entry)
            if entry.position not in {6, AT}:
                continue
            data = snapshot.encode(replica.state)
            schema = snapshot.SNAPSHOT_SCHEMA
            if entry.position == AT:
                data, schema = of_tomorrow(data), schema + 1
            pointer = SnapshotPointer(entry.position, entry.id, replica.digest(), schema, "", 0, 0)
            shelf.publish(shelf.upload(data, pointer), shelf.pointers())
        assert [pointer.position for pointer in shelf.pointers()] == [AT, 6]

        known = snapshot.SNAPSHOT_SCHEMA
        with pytest.raises(
            NewerSchema, match=f"snapshot has schema {known + 1}, this release reads up to {known}: upgrade"
        ):
            up_to_date(log)
        assert complaint(statecore("migrate", "--url", story.url, "--index", copy.name), 2).startswith(
            f"nothing was changed: this release reads up to schema {known}, upgrade statecore; a snapshot of schema"
        )
    client.delete(*client.keys(f"kv:{{{copy.name}}}:snapshot*"))
