"""What a snapshot costs its keeper, and a process that starts from it: of a million cached blocks, grown from the trace.

    snapshot_encode_s      state -> bytes, in the keeper's process: no engine waits for it
    snapshot_restore_s     bytes in Redis -> a replica that can decide, digest compared; the budget of a warm restart
    snapshot_bytes_per_block

The reference of both times is what cannot be saved: storing and fetching the same bytes with bare SET and GET.
"""

from __future__ import annotations

from time import perf_counter
from typing import Final

from events import connect
from events.client import build_client
from events.embedded import EmbeddedRedis
from events.ports import SnapshotPointer
from events.snapshots import Snapshots
from ops.bench.figure import Advance, Budget, Group, Measurement, Pair, Settings, undisturbed
from ops.bench.memory import grown
from statecore import snapshot
from statecore.replica import Replica
from statecore.restoring import of_snapshot

_ENCODE: Final = "snapshot_encode_s"
_RESTORE: Final = "snapshot_restore_s"
_BYTES: Final = "snapshot_bytes_per_block"
_BARE_BYTES: Final = 20


def measure(settings: Settings, wanted: frozenset[str], advance: Advance) -> list[Measurement]:
    replica = grown(settings.trace, settings.seed, settings.count(usual=1_000_000, quick=50_000))
    (pool,) = replica.state.pools.values()
    encoding, restoring = Pair(), Pair()
    size = 0
    repetitions = settings.repetitions(3)
    with EmbeddedRedis() as server, connect(server.url) as connection:
        shelf = Snapshots(connection.backend.transport("bench").snapshots)
        for repetition in range(repetitions):
            with undisturbed():
                size, encode_s, restore_s = _once(replica, shelf)
                set_s, get_s = _bare(server.url, size)
            encoding.add(encode_s, set_s)
            restoring.add(restore_s, get_s)
            advance((repetition + 1) / repetitions)
    found = {
        _ENCODE: encoding.measurement(_ENCODE, "s", "bare SET of the same bytes"),
        _RESTORE: restoring.measurement(_RESTORE, "s", "bare GET of the same bytes"),
        _BYTES: Measurement(_BYTES, size / pool.unpinned, "B", "16 B of hash and 4 B of id", _BARE_BYTES),
    }
    return [found[name] for name in found if name in wanted]


def _once(replica: Replica, shelf: Snapshots) -> tuple[int, float, float]:
    """Bytes; seconds to encode; seconds to fetch and decode what was stored."""
    state = replica.state
    begin = perf_counter()
    data = snapshot.encode(state)
    encode_s = perf_counter() - begin
    pointer = SnapshotPointer(state.position, state.last_commit_id, "", snapshot.SNAPSHOT_SCHEMA, "", 0, 0)
    pointer = shelf.upload(data, pointer)
    begin = perf_counter()
    restored = of_snapshot(pointer, shelf.fetch(pointer))
    restore_s = perf_counter() - begin
    assert restored.digest() == replica.digest(), "a snapshot gives another state back"
    return len(data), encode_s, restore_s


def _bare(url: str, size: int) -> tuple[float, float]:
    """Seconds of SET and GET of so many bytes."""
    client = build_client(url)
    client.ping()
    data = bytes(size)
    begin = perf_counter()
    client.set("bare", data)
    between = perf_counter()
    client.get("bare")
    end = perf_counter()
    client.close()
    return between - begin, end - between


GROUP: Final = Group(
    title="snapshots",
    figures=(_ENCODE, _RESTORE, _BYTES),
    seconds=15,
    measure=measure,
    budgets={_RESTORE: Budget(1.0), _BYTES: Budget(64)},
)
