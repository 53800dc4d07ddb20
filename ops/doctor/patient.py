"""What is examined: a server, and one index on it.

Owns the asking: each thing is asked once, what the server does not know or this user may not ask becomes `CannotTell`, and a
server that does not answer at all ends the examination. Writes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeVar, cast

import attrs
import redis
from redis.exceptions import RedisError, ResponseError

from events import client as clients
from events.cluster_client import ClusterClient
from events.errors import CorruptState, StateCoreError, Unavailable
from events.facts import SendStarted, TransferFinished, TransferStarted
from events.keys import HEAD_COMMIT, HEAD_FIELDS, HEAD_FORGOT, HEAD_LOST, HEAD_POSITION, IndexKeys
from events.log import LogConnection
from events.ports import Entry, Head, SnapshotPointer
from events.redis_log import RedisBackend
from events.redis_values import number, text
from ops.cli.inspect.history import Event, watch_starts
from ops.cli.replaying import replay, require_fenced
from ops.cli.source import LiveSource, entries
from ops.cli.starting import Kept, kept
from statecore.digest import digest
from statecore.replica import Replica
from statecore.state import State

T = TypeVar("T")


class CannotTell(Exception):
    """Something may not be asked, or is not known here. The message says why."""


class Damaged(CannotTell):
    """What is there is none of ours. The message says where, and what."""


@attrs.frozen
class Reading:
    """A log read from the oldest state that it leads from to its end.

    Attributes:
        replica: the state at the end, or None where something is broken before it.
        broken: what; None where nothing is.
        entries: how many were read.
        start: position after which they begin.
        digests: by position of a stored snapshot, what the log leads to there.
        starts: of the transfers under way whose beginning was read.
        finished: transfers that ended, the last ones first.
    """

    replica: Replica | None
    broken: StateCoreError | None
    entries: int
    start: int
    digests: Mapping[int, str]
    starts: Mapping[str, Event]
    finished: tuple[str, ...]


def servers(connection: LogConnection) -> list[tuple[str, redis.Redis]]:
    """The server behind a connection, or every primary of a cluster, with what to call it."""
    client = _client(connection)
    if not isinstance(client, ClusterClient):
        return [(connection.url, client)]
    nodes = sorted(client.get_primaries(), key=lambda node: str(node.name))  # type: ignore[no-untyped-call]
    return [(str(node.name), client.get_redis_connection(node)) for node in nodes]


def holder(connection: LogConnection, index: str) -> redis.Redis:
    """The one that holds an index."""
    client = _client(connection)
    if not isinstance(client, ClusterClient):
        return client
    node = client.get_node_from_key(IndexKeys.of(index).log)  # type: ignore[no-untyped-call]
    return client.get_redis_connection(node)


def _client(connection: LogConnection) -> clients.Client:
    assert isinstance(connection.backend, RedisBackend), "only a server can be examined"
    return connection.backend.client


class Patient:
    """A server and one of its indexes. Raises `CannotTell` and `Unavailable` wherever it is asked."""

    def __init__(self, connection: LogConnection, client: redis.Redis, index: str | None = None) -> None:
        """`client`: of the server itself, or of the node of a cluster that holds the index."""
        self.client = client
        self.connection = connection
        self.index = index

    def ask(self, command: str, *words: str | bytes | int) -> Any:
        """One command."""
        what = f"{command} {words[0]!s}" if words else command
        return self.call(lambda: self.client.execute_command(command, *words), what)  # type: ignore[no-untyped-call]

    def call(self, ask: Callable[[], T], command: str = "") -> T:
        """The same for a method of the client, which knows how to read the answer."""
        try:
            return ask()
        except ResponseError as error:
            refused = Damaged if "WRONGTYPE" in str(error) else CannotTell
            raise refused(f"{command}: {error}" if command else str(error)) from error
        except (RedisError, OSError) as error:
            failure = clients.unavailable(error)
            if isinstance(failure, Unavailable) and failure.lasting:
                raise CannotTell(str(failure)) from error
            raise failure from error

    # --- the server -------------------------------------------------------------------------------------------------

    @cached_property
    def info(self) -> Mapping[str, Any]:
        """All of INFO."""
        return cast("Mapping[str, Any]", self.ask("INFO"))

    def fact(self, name: str) -> Any:
        """A field of INFO."""
        if name not in self.info:
            raise CannotTell(f"INFO of this server has no {name}")
        return self.info[name]

    def setting(self, name: str) -> str:
        """A value of the configuration."""
        found = self.ask("CONFIG GET", name)
        if not found:
            raise CannotTell(f"this server has no setting {name}")
        pairs = found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
        [value] = pairs.values()
        return value.decode() if isinstance(value, bytes) else str(value)

    # --- the index --------------------------------------------------------------------------------------------------

    @cached_property
    def keys(self) -> IndexKeys:
        assert self.index is not None, "this check needs an index"
        return IndexKeys.of(self.index)

    @cached_property
    def source(self) -> LiveSource:
        assert self.index is not None, "this check needs an index"
        return LiveSource.of(self.connection, self.index)

    @cached_property
    def head_fields(self) -> Mapping[str, str]:
        """The hash as it is, of whatever layout."""
        found = dict(zip(HEAD_FIELDS, self.ask("HMGET", self.keys.head, *HEAD_FIELDS), strict=True))

        def read() -> None:
            number(0 if found[HEAD_POSITION] is None else found[HEAD_POSITION], f"{self.keys.head}, {HEAD_POSITION}")
            for name in (HEAD_COMMIT, HEAD_LOST, HEAD_FORGOT):
                text(found[name], f"{self.keys.head}, {name}")

        self.told(read)
        return {name: value.decode(errors="replace") for name, value in found.items() if value is not None}

    @cached_property
    def kept(self) -> Kept:
        """What of the log and its snapshots there was at one moment. All else is judged by this moment."""
        return self.told(lambda: kept(self.source))

    @property
    def head(self) -> Head:
        return self.kept.head

    @property
    def pointers(self) -> tuple[SnapshotPointer, ...]:
        """Of the stored snapshots, the newest first."""
        return self.kept.stored

    def begun_since(self) -> frozenset[str]:
        """Transfers that began after that moment."""
        later = self.told(lambda: list(entries(self.source, self.head.position, self.source.head().position)))
        started = (fact for entry in later for fact in entry.facts if isinstance(fact, TransferStarted | SendStarted))
        return frozenset(fact.transfer for fact in started)

    @cached_property
    def state(self) -> State:
        """At the end of the log."""
        if self.reading.replica is None:
            raise CannotTell(f"the log leads to no state: {self.reading.broken}")
        return self.reading.replica.state

    @cached_property
    def reading(self) -> Reading:
        """All that is kept, read once."""
        wanted = {pointer.position for pointer in self.pointers}
        starts: dict[str, Event] = {}
        finished: dict[str, None] = {}
        digests: dict[int, str] = {}
        watched = watch_starts(starts)
        read = start = 0

        def begin(state: State) -> None:
            nonlocal start
            start = state.position

        def watch(state: State, entry: Entry) -> None:
            nonlocal read
            note(state)
            require_fenced(state, entry)
            watched(state, entry)
            finished.update({fact.transfer: None for fact in entry.facts if isinstance(fact, TransferFinished)})
            read += 1

        def note(state: State) -> None:
            if state.position in wanted:
                digests[state.position] = digest(state)

        replica, broken = None, None
        try:
            replica = replay(self.source, self.head.position, watch=watch, begin=begin, here=self.kept)
            note(replica.state)
        except Unavailable:
            raise
        except StateCoreError as error:
            broken = error
        return Reading(replica, broken, read, start, digests, starts, tuple(finished)[::-1])

    def now_ms(self) -> int:
        """Our wall clock, for ages that people read."""
        return time.time_ns() // 1_000_000

    @staticmethod
    def told(ask: Callable[[], T]) -> T:
        """What a longer question brings."""
        try:
            return ask()
        except Unavailable as error:
            if error.lasting:
                raise CannotTell(str(error)) from error
            raise
        except CorruptState as error:
            raise Damaged(str(error)) from error
