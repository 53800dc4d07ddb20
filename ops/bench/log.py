"""What the log adds: one uncontended commit, and a whole request whose scheduler step is committed to Redis.

`commit_vs_evalsha` sends the same commits through `EventLog.append` and as bare EVALSHA of the same bytes, one each in
turn, to an embedded Redis; the figure is the median. `request_in_redis_us` serves requests through a `CacheIndex`, one
commit per step of 16 whole requests; its reference serves the same 16 in process without a log.
"""

from __future__ import annotations

from time import perf_counter
from typing import Final

import attrs

from events import connect
from events.client import build_client
from events.codec import encode
from events.embedded import EmbeddedRedis
from events.keys import engine_scope, pool_scope
from events.log import LogConnection
from events.ports import Appended, Base
from ops.bench.bare import BareAppends
from ops.bench.core import EVICTING_BLOCKS
from ops.bench.figure import Advance, Budget, Group, Measurement, Pair, Settings, undisturbed, wall_us
from ops.bench.follower import Recorded, record
from ops.bench.workload import BLOCK_TOKENS, ENGINE, POOL, Life, new_replica, serve_all, serve_index
from statecore import CacheIndex

_COMMIT: Final = "commit_vs_evalsha"
_REQUEST: Final = "request_in_redis_us"
_STEP_REQUESTS: Final = 16
_VLLM_US: Final = 770
"""What vLLM's manager takes for the same request in process (design, section 10)."""


def measure(settings: Settings, wanted: frozenset[str], advance: Advance) -> list[Measurement]:
    found = []
    with EmbeddedRedis() as server, connect(server.url) as connection:
        if _COMMIT in wanted:
            history = record(settings.lives(settings.count(usual=1000, quick=50), blocks_max=256), EVICTING_BLOCKS)
            found.append(_commits(connection, server.url, history))
        advance(0.3)
        if _REQUEST in wanted:
            lives = settings.lives(settings.count(usual=4000, quick=320))
            found.append(_requests(connection, lives, settings.count(usual=1000, quick=0)))
    return found


def _commits(connection: LogConnection, url: str, history: Recorded) -> Measurement:
    client = build_client(url)
    bare, log = BareAppends(client, "bench-bare"), connection.log("bench-commits", follow=False)
    scopes = (engine_scope(ENGINE), pool_scope(POOL))
    pair = Pair()
    base = Base(0, "")
    with undisturbed():
        for recorded in history.commits:
            commit = attrs.evolve(recorded, id=log.next_commit_id(), checks=scopes, touches=scopes)
            same_bytes = encode(commit, at_ms=1_700_000_000_000)
            begin = perf_counter()
            reply = log.append(commit, base)
            spent = (perf_counter() - begin) * 1e6
            pair.add(spent, wall_us(bare.append, same_bytes))
            assert isinstance(reply, Appended)
            base = Base(reply.position, commit.id)
    client.close()
    return pair.measurement(_COMMIT, "µs", "bare EVALSHA of the same bytes")


def _requests(connection: LogConnection, lives: list[Life], untimed: int) -> Measurement:
    replica = new_replica(EVICTING_BLOCKS)
    pair = Pair()
    with (
        CacheIndex(
            connection, name="bench-requests", engine=ENGINE, gpu_blocks=EVICTING_BLOCKS, block_size=BLOCK_TOKENS
        ) as index,
        undisturbed(),
    ):
        for first in range(0, len(lives) - _STEP_REQUESTS + 1, _STEP_REQUESTS):
            batch = lives[first : first + _STEP_REQUESTS]
            spent = wall_us(_step, index, batch)
            in_process = wall_us(serve_all, replica, batch)
            if first >= untimed:
                pair.add(spent / _STEP_REQUESTS, in_process / _STEP_REQUESTS)
    return pair.measurement(_REQUEST, "µs", "the same in process, no log")


def _step(index: CacheIndex, lives: list[Life]) -> None:
    with index.step():
        for life in lives:
            serve_index(index, life)


GROUP: Final = Group(
    title="log",
    figures=(_COMMIT, _REQUEST),
    seconds=6,
    measure=measure,
    budgets={_COMMIT: Budget(1.5, of="ratio"), _REQUEST: Budget(_VLLM_US)},
)
