"""What the tests of a server's lives set up: engines on one pool, a server that is killed, a file whose end is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from events import Unavailable, codec, limits
from events.log import LogConnection
from events.ports import Base, RawReply, RenewReply
from events.transport import Transport
from statecore import CacheIndex
from statecore.invariants import leaked_blocks, violations
from tests.contract.commits import commit
from tests.servers import RedisServer

BARRIER_S = 0.75
INDEX = "lives"
TOKENS = list(range(12))


def shorten_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that opens soon after a restart, and appends that do not wait for it longer than a test may."""
    monkeypatch.setattr(limits, "BARRIER_S", BARRIER_S)
    monkeypatch.setattr(limits, "APPEND_DEADLINE_S", 6.0)


def engine(connection: LogConnection, name: str, *, follow: bool = False) -> CacheIndex:
    return CacheIndex(
        connection, name=INDEX, engine=name, gpu_pool="shared", gpu_blocks=16, block_size=4, follow=follow
    )


def serve(index: CacheIndex, request: str) -> list[int]:
    """A request that takes three blocks."""
    index.match(request, TOKENS)
    index.allocate(request, 3 - index.path_blocks(request))
    return index.table(request)


def sound(*indexes: CacheIndex) -> None:
    assert len({index.refresh() for index in indexes}) == 1
    assert len({index.digest() for index in indexes}) == 1
    assert [index.inspect(violations) for index in indexes] == [[]] * len(indexes)
    assert {index.inspect(leaked_blocks) for index in indexes} == {0}


def append_only_file(server: RedisServer) -> Path:
    """The one that grows. Redis 7 keeps it in a folder."""
    folder = server.folder / "appendonlydir"
    return next(folder.glob("*.incr.aof")) if folder.exists() else server.folder / "appendonly.aof"


def restart(server: RedisServer, *, cut_at: int | None = None) -> None:
    """Killed and started again; with `cut_at`, the append-only file has lost what lies behind that byte."""
    server.kill()
    if cut_at is not None:
        with append_only_file(server).open("rb+") as file:
            file.truncate(cut_at)
    server.start()


def attempt(transport: Transport, name: str, base: Base) -> RawReply | None:
    """One attempt to append; None while the log is closed."""
    made = commit(name)
    try:
        return transport.append(
            codec.encode(made, at_ms=0),
            engine="a",
            session=1,
            base=base,
            checks=made.checks,
            touches=made.touches,
            fences=(),
        )
    except Unavailable as closed:
        if "closed for" not in str(closed) or closed.lasting:
            raise
        return None


def renewed(transport: Transport, base: Base) -> RenewReply:
    """Asked again where the connection was cut."""
    try:
        return transport.renew_lease("a", 1, base)
    except Unavailable:
        return transport.renew_lease("a", 1, base)
