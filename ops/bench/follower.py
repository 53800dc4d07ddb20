"""What somebody else's request costs a replica that follows the log: decoding one entry and applying it.

Every entry is one commit that holds one whole request, with eviction and without. Around it, the two halves of the
codec. References: the JSON library alone on the same bodies.
"""

from __future__ import annotations

from time import thread_time
from typing import Final

import attrs
import orjson

from events import codec
from events.facts import Fact
from events.ports import Commit, StoredRecord
from ops.bench.core import EVICTING_BLOCKS, ROOMY_BLOCKS
from ops.bench.figure import Advance, Budget, Group, Measurement, Pair, Settings, undisturbed
from ops.bench.workload import ENGINE, Life, new_replica, serve

_POOLS: Final = {"follower_commit_us": EVICTING_BLOCKS, "follower_commit_us_no_evict": ROOMY_BLOCKS}
_ENCODE: Final = "encode_us_per_commit"
_DECODE: Final = "decode_us_per_commit"
_CHUNK: Final = 50


@attrs.frozen
class Recorded:
    """A history of whole requests, one commit each, from position 2 on.

    Attributes:
        founding: facts of the commit at position 1, which makes engine and pool.
        first_eviction: index of the first commit that evicts; 0 if none does.
    """

    founding: tuple[Fact, ...]
    commits: list[Commit]
    stored: list[StoredRecord]
    first_eviction: int


def record(lives: list[Life], pool_blocks: int) -> Recorded:
    """Serve the requests, and write down what was decided as a log would hold it."""
    founding = list[Fact]()
    replica = new_replica(pool_blocks, founding)
    (pool,) = replica.state.pools.values()
    commits, stored = list[Commit](), list[StoredRecord]()
    first_eviction = 0
    for index, life in enumerate(lives):
        facts: list[Fact] = []
        before = replica.base
        serve(replica, life, facts)
        commit = Commit(replica.base.commit_id, ENGINE, 1, tuple(facts), checks=(), touches=())
        commits.append(commit)
        stored.append(StoredRecord(replica.base.position, before.commit_id, codec.encode(commit, at_ms=0)))
        if pool.evicted and not first_eviction:
            first_eviction = index
    return Recorded(tuple(founding), commits, stored, first_eviction)


def measure(settings: Settings, wanted: frozenset[str], advance: Advance) -> list[Measurement]:
    lives = settings.lives(settings.count(usual=2500, quick=500))
    found = list[Measurement]()
    repetitions = settings.repetitions(5)
    followed = {name: record(lives, blocks) for name, blocks in _POOLS.items() if name in wanted}
    pairs = {name: Pair() for name in followed}
    for repetition in range(repetitions):
        for name, history in followed.items():
            pairs[name].add(*_follow(history, _POOLS[name]))
        advance(0.8 * (repetition + 1) / repetitions)
    found += [pair.measurement(name, "µs", "orjson.loads of the bodies") for name, pair in pairs.items()]
    if wanted & {_ENCODE, _DECODE}:
        found += _codec_alone(record(lives, EVICTING_BLOCKS), repetitions)
    advance(1.0)
    return found


def _follow(history: Recorded, pool_blocks: int) -> tuple[float, float]:
    """µs per commit of a follower, and of the JSON library; the commits before the first eviction are not timed."""
    replica = new_replica(pool_blocks)
    stored = history.stored
    for record_before in stored[: history.first_eviction]:
        replica.apply(codec.decode(record_before))
    spent = spent_by_reference = 0.0
    with undisturbed():
        for first in range(history.first_eviction, len(stored), _CHUNK):
            chunk = stored[first : first + _CHUNK]
            begin = thread_time()
            for each in chunk:
                replica.apply(codec.decode(each))
            between = thread_time()
            for each in chunk:
                orjson.loads(each.record.body)
            spent += between - begin
            spent_by_reference += thread_time() - between
    timed = len(stored) - history.first_eviction
    return spent / timed * 1e6, spent_by_reference / timed * 1e6


def _codec_alone(history: Recorded, repetitions: int) -> list[Measurement]:
    encoding, decoding = Pair(), Pair()
    bodies = [each.record.body for each in history.stored]
    plain = [orjson.loads(body) for body in bodies]
    with undisturbed():
        for _ in range(repetitions):
            marks = [thread_time()]
            for commit in history.commits:
                codec.encode(commit, at_ms=0)
            marks.append(thread_time())
            for facts in plain:
                orjson.dumps(facts)
            marks.append(thread_time())
            for each in history.stored:
                codec.decode(each)
            marks.append(thread_time())
            for body in bodies:
                orjson.loads(body)
            marks.append(thread_time())
            encode, dump, decode, load = (
                (marks[turn + 1] - marks[turn]) / len(bodies) * 1e6 for turn in range(len(marks) - 1)
            )
            encoding.add(encode, dump)
            decoding.add(decode, load)
    return [
        encoding.measurement(_ENCODE, "µs", "orjson.dumps of the bodies"),
        decoding.measurement(_DECODE, "µs", "orjson.loads of the bodies"),
    ]


GROUP: Final = Group(
    title="follower",
    figures=(*_POOLS, _ENCODE, _DECODE),
    seconds=8,
    measure=measure,
    budgets={name: Budget(60) for name in _POOLS},
)
