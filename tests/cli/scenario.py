"""A small history that has one of everything an operator may look for, and the command run on it.

Owns the story the tests in this folder tell: two engines of one pool, shared prefixes, a duplicate, an eviction, an end
and a second life. What the commands print is compared with what the engines themselves said while it happened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import attrs
import orjson
import redis
from click.testing import CliRunner, Result

from events import connect
from events.codec import decode, encode
from events.facts import Fact
from events.keys import IndexKeys
from events.ports import Commit
from events.stream_entry import stored_records
from ops.cli import main
from statecore import CacheIndex

INDEX = "llama"
POOL_BLOCKS = 24
BLOCK_SIZE = 4
FIRST = list(range(20))
FORKED = [*range(12), *range(100, 108)]
TWIN = list(range(200, 220))

Fields = dict[bytes, bytes]


@attrs.frozen
class Story:
    """What happened, as the engines saw it.

    Attributes:
        url: of the server it is on.
        end: position of the last commit.
        digests: digest by position.
        tables: block tables of the requests, by request, at `before_end`.
        before_end: position before engine-1's first life ended.
    """

    url: str
    end: int
    digests: Mapping[int, str]
    tables: Mapping[str, list[int]]
    before_end: int


def tell(url: str, index: str = INDEX) -> Story:
    """Make the history on a server."""
    digests: dict[int, str] = {}

    def note(engine: CacheIndex) -> int:
        position = engine.refresh()
        digests[position] = engine.digest()
        return position

    with connect(url) as connection:

        def join(engine: str) -> CacheIndex:
            return CacheIndex(
                connection, name=index, engine=engine, gpu_pool="gpu", gpu_blocks=POOL_BLOCKS, block_size=BLOCK_SIZE,
                follow=False,
            )  # fmt: skip

        zero, one = join("engine-0"), join("engine-1")
        with zero.step():  # 3
            zero.match("first", FIRST)
            zero.allocate("first", 6)
            zero.extend("first", ready=True)
        one.refresh()  # without a follower, this is how it learns what "first" left
        one.match("forked", FORKED)  # 4
        one.allocate("forked", 3)
        one.extend("forked")
        one.ready("forked")  # 7
        note(zero)
        one.match("twin-a", TWIN)  # 8
        zero.match("twin-b", TWIN)
        one.allocate("twin-a", 5)
        zero.allocate("twin-b", 6)
        one.extend("twin-a", ready=True)
        zero.extend("twin-b")  # 13: the tree has all of it, so the blocks of twin-b are duplicates
        zero.allocate(None, 2)  # 14
        zero.release("first")  # 15
        one.match("big", [7] * 80)  # 16
        one.allocate("big", 4)  # 17: evicts the end of what only "first" used
        before_end = note(zero)
        one.refresh()
        tables = {name: engine.table(name) for engine in (zero, one) for name in engine.requests()}
        one.rejoin()  # 18
        one.match("late", FIRST)  # 19
        end = note(zero)
    return Story(url, end, digests, tables, before_end)


# --- running the command --------------------------------------------------------------------------------------------


def statecore(*arguments: object, **env: str) -> Result:
    """The command, in this process, as it behaves in a pipe; no variable of the surroundings reaches it."""
    blank: dict[str, str | None] = {"STATECORE_URL": None, "STATECORE_INDEX": None}
    return CliRunner(env={**blank, **env}).invoke(main, [str(argument) for argument in arguments])


def answer(result: Result) -> dict[str, object]:
    """The one JSON object a command printed, and nothing else."""
    assert result.exit_code in (0, 1), result.output
    value = orjson.loads(result.stdout)
    assert isinstance(value, dict)
    return value


def answers(result: Result) -> list[dict[str, object]]:
    """One JSON object per line."""
    assert result.exit_code == 0, result.output
    return [orjson.loads(line) for line in result.stdout.splitlines()]


def complaint(result: Result, code: int) -> str:
    """The one line on stderr of a command that failed with `code`, and printed no traceback."""
    assert result.exit_code == code, result.output
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in result.output
    return line.removeprefix("error: ")


# --- damaging a log -------------------------------------------------------------------------------------------------


def clone(client: redis.Redis, origin: str, name: str) -> IndexKeys:
    """The same index under another name, key by key."""
    old, new = IndexKeys.of(origin), IndexKeys.of(name)
    for source, target in ((old.log, new.log), (old.head, new.head), (old.fence, new.fence)):
        client.copy(source, target, replace=True)
    return new


def rewrite(client: redis.Redis, keys: IndexKeys, position: int, change: Callable[[Fields], object]) -> None:
    """Write the stream again with the fields of one entry changed in place; what `change` empties is left out."""
    entries = cast("list[tuple[bytes, Fields]]", client.xrange(keys.log))
    client.delete(keys.log)
    for stream_id, fields in entries:
        if stream_id == f"{position}-0".encode():
            change(fields)
        if fields:
            client.xadd(keys.log, cast("Any", fields), id=stream_id)


def reauthored(engine: str, session: int) -> Callable[[Fields], object]:
    """As if somebody else had written the entry: all checksums are right."""
    return lambda fields: _encoded(fields, engine, session, None)


def refacted(*facts: Fact) -> Callable[[Fields], object]:
    """Other facts in the entry: all checksums are right."""
    return lambda fields: _encoded(fields, None, None, facts)


def _encoded(fields: Fields, engine: str | None, session: int | None, facts: tuple[Fact, ...] | None) -> None:
    entry = decode(stored_records([(b"1-0", fields)])[0])
    record = encode(
        Commit(
            id=entry.id,
            engine=entry.engine if engine is None else engine,
            session=entry.session if session is None else session,
            facts=entry.facts if facts is None else facts,
            checks=(),
            touches=(),
        ),
        entry.at_ms,
    )
    fields[b"author"] = record.author.encode()
    fields[b"body"] = record.body
    fields[b"hashes"] = record.hashes
    fields[b"checksum"] = record.checksum.encode()
