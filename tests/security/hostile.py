"""Messages that claim enormous numbers, each read once; run in a process whose memory is bounded (`test_decoders.py`).

Owns the messages. Prints of each whether reading it ended in an error that we raise on purpose.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
import orjson

from events import codec
from events.errors import CorruptState, InvalidInput
from events.facts import BlocksAllocated, BlocksRecycled, Fact, PathExtended, SendStarted
from events.jobs import decode_job
from events.limits import COMMIT_BYTES_MAX
from events.ports import Commit, Entry
from ops.cli.export_file import ExportFile
from statecore import snapshot
from tests.property.test_codec import sealed, stored
from tests.property.whole_histories import World
from tests.security.test_decoders import WORLDS, resealed

MUCH: Final = 1 << 31


def run_all(folder: Path) -> None:
    for what, message in MESSAGES.items():
        try:
            message(folder)
            answer = "read"
        except (CorruptState, InvalidInput):
            answer = "refused"
        except Exception as error:
            answer = f"{type(error).__name__} {error}"
        sys.stdout.write(f"{what}: {answer}\n")
        sys.stdout.flush()


def _header(change: Callable[[dict[str, Any]], None]) -> None:
    """A snapshot of a rich state with a changed header."""
    world = next(world for world in WORLDS if world.state.transfers and world.state.sends)
    body = snapshot.encode(world.state)[:-16]
    start = len(b"STATECORE-SNAPSHOT") + 4
    length = int.from_bytes(body[start - 4 : start], "little")
    header = orjson.loads(body[start : start + length])
    change(header)
    packed = orjson.dumps(header)
    snapshot.decode(resealed(body[: start - 4] + len(packed).to_bytes(4, "little") + packed + body[start + length :]))


def _rows(_: Path) -> None:
    _header(lambda header: header["lengths"].__setitem__(0, 1 << 40))


def _pool(_: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        header["pools"][0][2] = MUCH

    _header(change)


def _quarantine(_: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        for pool in header["pools"]:
            pool[2] = MUCH
        for transfer in header["transfers"] + header["sends"]:
            transfer[-1] = [[0, MUCH]]

    _header(change)


def _send(_: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        for pool in header["pools"]:
            pool[2] = MUCH
        for send in header["sends"]:
            send[4][1] = send[4][3] = [[0, MUCH]]

    _header(change)


def _applied(fact: Callable[[World], Fact]) -> None:
    """A fact at the end of a history in which it almost fits."""
    world = next(
        world
        for world in WORLDS
        if any(request.private for engine in world.state.engines.values() for request in engine.requests.values())
    )
    state = world.state
    entry = Commit("hostile", "e0", 1, (fact(world),), (), ())
    read = codec.decode(stored(codec.encode(entry, 5)))
    world.replica.apply(
        Entry(state.position + 1, read.id, state.last_commit_id, read.engine, read.session, read.at_ms, read.facts)
    )


def _owner(world: World) -> tuple[str, str, str]:
    """Engine, request and pool of some private blocks."""
    return next(
        (engine.name, request.id, engine.gpu_pool)
        for engine in world.state.engines.values()
        for request in engine.requests.values()
        if request.private
    )


def _recycled(_: Path) -> None:
    def fact(world: World) -> Fact:
        engine, request, pool = _owner(world)
        return BlocksRecycled(engine, request, pool, ((0, MUCH),))

    _applied(fact)


def _allocated(_: Path) -> None:
    def fact(world: World) -> Fact:
        engine, request, pool = _owner(world)
        return BlocksAllocated(engine, request, pool, ((0, MUCH),))

    _applied(fact)


def _sent(_: Path) -> None:
    def fact(world: World) -> Fact:
        engine, request, pool = _owner(world)
        other = next(each for each in world.state.engines.values() if each.gpu_pool != pool and each.alive)
        number = world.state.engines[engine].transfers
        blocks = ((0, MUCH),)
        return SendStarted(f"{engine}:{number}", engine, request, other.name, pool, blocks, other.gpu_pool, blocks)

    _applied(fact)


def _path(_: Path) -> None:
    record = codec.encode(Commit("c", "e", 1, (PathExtended("e", "r", 0, b"", (), ()),), (), ()), 5)
    plain = orjson.loads(record.body)
    plain[0][4] = 1 << 40
    codec.decode(stored(sealed(attrs.evolve(record, body=orjson.dumps(plain)))))


def _deep(_: Path) -> None:
    record = codec.encode(Commit("c", "e", 1, (PathExtended("e", "r", 0, b"", (), ()),), (), ()), 5)
    codec.decode(stored(sealed(attrs.evolve(record, body=b"[" * 20_000_000))))


def _large(_: Path) -> None:
    record = codec.encode(Commit("c", "e", 1, (PathExtended("e", "r", 0, b"", (), ()),), (), ()), 5)
    codec.decode(stored(sealed(attrs.evolve(record, body=b"[" + b"[]," * COMMIT_BYTES_MAX + b"[]]"))))


def _ranks(_: Path) -> None:
    body = {
        "transfer": "e:0", "kind": "swap_out", "source": "p", "source_blocks": [[0, 1]], "destination": "c",
        "destination_blocks": [[0, 1]], "ranks": 1 << 40, "touches_ok": [], "touches_failed": [],
    }  # fmt: skip
    decode_job(orjson.dumps(body))


def _file(folder: Path) -> None:
    """Ten megabytes on disk, two gigabytes in one line."""
    path = folder / "bomb.jsonl.gz"
    header = {"format": "statecore-log", "version": 1, "index": "i", "first": 1, "count": 1}
    megabyte = gzip.compress(b"x" * (1 << 20))
    path.write_bytes(gzip.compress(orjson.dumps(header) + b"\n") + megabyte * 2000)
    ExportFile.open(path)


MESSAGES: Final[dict[str, Callable[[Path], None]]] = {
    "rows of a snapshot": _rows,
    "pool of a snapshot": _pool,
    "quarantine of a snapshot": _quarantine,
    "send of a snapshot": _send,
    "recycled blocks": _recycled,
    "allocated blocks": _allocated,
    "sent blocks": _sent,
    "hashes of a path": _path,
    "depth of an entry": _deep,
    "size of an entry": _large,
    "ranks of a job": _ranks,
    "lines of a file": _file,
}
