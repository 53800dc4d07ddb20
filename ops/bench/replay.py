"""How fast a replica is rebuilt from the log: read, decode and apply, in entries per second.

`replay_vs_xrange` replays a log of one whole request per entry, the heaviest an entry gets; `replay_calls_vs_xrange`
the same requests with one call per entry. The log is in an embedded Redis. The reference reads the same log with bare
XRANGE, the same number of entries a page, and throws the answers away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import Final

from events import connect, limits
from events.client import build_client
from events.embedded import EmbeddedRedis
from events.facts import Fact
from events.keys import IndexKeys, engine_scope, entry_id
from events.log import EventLog
from events.ports import Appended, Base, Commit
from ops.bench.core import ROOMY_BLOCKS
from ops.bench.figure import Advance, Budget, Group, Measurement, Pair, Settings, undisturbed
from ops.bench.follower import Recorded, record
from ops.bench.workload import ENGINE
from statecore.replica import Replica

_REQUESTS: Final = "replay_vs_xrange"
_CALLS: Final = "replay_calls_vs_xrange"


def measure(settings: Settings, wanted: frozenset[str], advance: Advance) -> list[Measurement]:
    history = record(settings.lives(settings.count(usual=3000, quick=100)), ROOMY_BLOCKS)
    logs = {_REQUESTS: _whole(history), _CALLS: _by_calls(history)}
    found = []
    repetitions = settings.repetitions(5)
    with EmbeddedRedis() as server, connect(server.url) as connection:
        for number, name in enumerate(sorted(wanted & logs.keys(), reverse=True)):
            log = connection.log(f"bench-{name}", follow=False)
            entries = _write(log, logs[name], entries_max=len(history.commits))
            pair = Pair()
            for repetition in range(repetitions):
                with undisturbed():
                    pair.add(entries / _replayed_in(log, entries), entries / _read_in(server.url, log.index, entries))
                advance((number + (repetition + 1) / repetitions) / len(logs))
            found.append(pair.measurement(name, "entries/s", "bare XRANGE of the same log"))
    return found


def _whole(history: Recorded) -> Iterator[tuple[Fact, ...]]:
    yield history.founding
    for commit in history.commits:
        yield commit.facts


def _by_calls(history: Recorded) -> Iterator[tuple[Fact, ...]]:
    """One fact per entry; without eviction no fact names another of its commit, so each can stand alone."""
    yield history.founding
    for commit in history.commits:
        for fact in commit.facts:
            yield (fact,)


def _write(log: EventLog, commits: Iterable[tuple[Fact, ...]], *, entries_max: int) -> int:
    """Append; return the position of the last entry."""
    base = Base(0, "")
    scopes = (engine_scope(ENGINE),)
    for facts in commits:
        commit = Commit(log.next_commit_id(), ENGINE, 1, facts, checks=scopes, touches=scopes)
        reply = log.append(commit, base)
        assert isinstance(reply, Appended)
        base = Base(reply.position, commit.id)
        if base.position == entries_max:
            break
    return base.position


def _replayed_in(log: EventLog, entries: int) -> float:
    """Seconds to bring a new replica to the end of the log."""
    replica = Replica()
    begin = perf_counter()
    while page := log.read(replica.state.position):
        replica.apply_all(page)
    spent = perf_counter() - begin
    assert replica.state.position == entries
    return spent


def _read_in(url: str, index: str, entries: int) -> float:
    """Seconds to page through the log."""
    client = build_client(url)
    client.ping()
    key, position = IndexKeys.of(index).log, 0
    begin = perf_counter()
    while page := client.xrange(key, min=entry_id(position + 1), max="+", count=limits.READ_PAGE):
        position += len(page)
    spent = perf_counter() - begin
    client.close()
    assert position == entries
    return spent


GROUP: Final = Group(
    title="replay",
    figures=(_REQUESTS, _CALLS),
    seconds=7,
    measure=measure,
    budgets={name: Budget(0.5, of="ratio", at_least=True) for name in (_REQUESTS, _CALLS)},
)
