"""Two small histories that have one of everything an operator may look for, and the command run on them.

Owns the stories the tests in this folder tell, but that of `handover.py`. One has two engines of one pool, shared prefixes,
a duplicate, an eviction, an end and a second life; the other a host tier, with transfers in every state. What the commands
print is compared with what the engines themselves said while it happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import attrs
import orjson
import redis
from click.testing import CliRunner, Result

from events import connect
from events.codec import decode, encode
from events.facts import Fact, SendStarted, TransferFinished, TransferStarted
from events.keys import IndexKeys
from events.log import LogConnection
from events.ports import Base, Commit, RawAppended
from events.stream_entry import meta_of, stored_records
from ops.cli import main
from statecore import CacheIndex
from statecore.policy import Policy
from statecore.scopes import finish_touches

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


# --- two tiers ------------------------------------------------------------------------------------------------------

TIERS = "tiers"
WARM = list(range(16))
BUSY = list(range(100, 116))
LATER = list(range(200, 216))


@attrs.frozen
class Tiers:
    """What happened between the tiers: `at` names positions of the log."""

    url: str
    end: int
    digests: Mapping[int, str]
    at: Mapping[str, int]


def tell_tiers(url: str, index: str = TIERS) -> Tiers:
    """Make the history on a server: one engine of two ranks, 12 blocks on the GPU, 16 on the host."""
    digests: dict[int, str] = {}
    at: dict[str, int] = {}
    with connect(url) as connection:
        engine = CacheIndex(
            connection, name=index, engine="engine-0", gpu_pool="gpu", gpu_blocks=12, cpu_blocks=16,
            block_size=BLOCK_SIZE, tensor_parallel_size=2, policy=Policy(free_low=0, free_high=0), follow=False,
        )  # fmt: skip

        @contextmanager
        def moment(name: str) -> Iterator[None]:
            yield
            at[name] = engine.refresh()
            digests[at[name]] = engine.digest()

        def cache(request: str, tokens: list[int]) -> None:
            with engine.step():
                engine.match(request, tokens)
                engine.allocate(request, len(tokens) // BLOCK_SIZE)
                engine.extend(request, ready=True)
                engine.release(request)

        cache("warm", WARM)  # gpu 0-3
        cache("busy", BUSY)  # gpu 4-7
        engine.match("large", [1] * 40)
        with moment("swap-out"):
            engine.allocate("large", 8)  # engine-0:0 takes 0-3 to the host
        with moment("swapped out"):
            finish(connection, index, "engine-0:0")
        engine.allocate("large", 8)
        engine.release("large")
        with moment("swap-in"), engine.step():
            engine.match("hasty", WARM)  # engine-0:1 fetches 0-3 again
        with moment("failed"):
            finish(connection, index, "engine-0:1", reason="rank 1: no such file")
        engine.release("hasty")
        with engine.step():
            engine.match("patient", WARM)  # engine-0:2
        with moment("swapped in"):
            finish(connection, index, "engine-0:2")
        engine.allocate("patient", 8)  # engine-0:3 takes what "busy" left
        with moment("used again"):
            engine.match("busy again", BUSY)
        with moment("rescued"):
            finish(connection, index, "engine-0:3")
        engine.release("patient")
        engine.release("busy again")
        cache("later", LATER)  # gpu 8-11
        engine.match("largest", [2] * 60)
        engine.allocate("largest", 12)  # drops what the host holds too; engine-0:4 takes what "later" left
        with moment("cancelled"):
            engine.cancel("engine-0:4", "the engine is in a hurry")
        with moment("end"), engine.step():
            engine.match("waiting", WARM)  # engine-0:5
    return Tiers(url, at["end"], digests, at)


def finish(connection: LogConnection, index: str, transfer: str, reason: str = "", worker: str = "worker:gpu") -> None:
    """What the last rank's worker writes: at whatever the head is, and it moves what its job said."""
    log, transport = connection.log(index, follow=False), connection.backend.transport(index)
    [started] = [
        fact
        for entry in log.read(0)
        for fact in entry.facts
        if isinstance(fact, TransferStarted | SendStarted) and fact.transfer == transfer
    ]
    touches = finish_touches(started) if isinstance(started, TransferStarted) else ((), ())
    record = encode(
        Commit(
            id=f"finish-{transfer}",
            engine=worker,
            session=0,
            facts=(TransferFinished(transfer, not reason, reason),),
            checks=(),
            touches=(),
        ),
        at_ms=1_700_000_000_000,
    )
    head = log.head()
    reply = transport.append(
        record,
        engine=worker,
        session=0,
        base=Base(head.position, head.commit_id),
        checks=(),
        touches=touches[bool(reason)],
        fences=(),
    )
    assert isinstance(reply, RawAppended)


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
    fields[b"meta"] = meta_of(record).encode()
    fields[b"body"] = record.body
    fields[b"hashes"] = record.hashes


META = ("commit", "author", "at", "schema", "checksum")


def with_meta(**changed: str) -> Callable[[Fields], object]:
    """Other words in the entry's field of meta data, the checksum as it was."""

    def change(fields: Fields) -> None:
        words = dict(zip(META, fields[b"meta"].decode().split(" "), strict=True)) | changed
        fields[b"meta"] = " ".join(words.values()).encode()

    return change
