"""A stopwatch around the log: how long an engine waits for its commits.

Owns the measurement, from outside: `MeasuredConnection` and `MeasuredLog` are `events.ports.Connection` and `Log` around
real ones, and the index cannot tell. Two durations, both in seconds:

    round trip   one append and its reply, whatever it says
    commit       from the first append of a commit until it is in the log, conflicts and waits between them included
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

from events.ports import (
    Appended,
    AppendReply,
    Base,
    Commit,
    Connection,
    Diverged,
    Entry,
    Fenced,
    Head,
    Log,
    Mutex,
    SnapshotPointer,
)


class MeasuredLog:
    """A log that keeps the durations of its appends.

    Attributes:
        commits_s: of commits that landed, in order.
        round_trips_s: of every append that was answered, in order.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._began: float | None = None
        self.commits_s: list[float] = []
        self.round_trips_s: list[float] = []

    @property
    def index(self) -> str:
        return self._log.index

    def attempts(self, *, joining: bool) -> Iterator[int]:
        self._began = None
        return self._log.attempts(joining=joining)

    def append(self, commit: Commit, base: Base) -> AppendReply:
        start = perf_counter()
        if self._began is None:
            self._began = start
        reply = self._log.append(commit, base)
        end = perf_counter()
        self.round_trips_s.append(end - start)
        if isinstance(reply, Appended):
            self.commits_s.append(end - self._began)
        return reply

    def next_commit_id(self) -> str:
        return self._log.next_commit_id()

    def read(self, after: int, limit: int | None = None) -> tuple[Entry, ...]:
        return self._log.read(after, limit)

    def head(self) -> Head:
        return self._log.head()

    def snapshots(self) -> tuple[SnapshotPointer, ...]:
        return self._log.snapshots()

    def fetch(self, pointer: SnapshotPointer) -> bytes:
        return self._log.fetch(pointer)

    def alarm(self, message: str) -> None:
        self._log.alarm(message)

    def hold_lease(self, engine: str, session: int) -> None:
        self._log.hold_lease(engine, session)

    def drop_lease(self) -> None:
        self._log.drop_lease()

    def at(self, base: Base) -> None:
        self._log.at(base)

    def standing(self) -> Fenced | Diverged | None:
        return self._log.standing()

    def continues(self, base: Base) -> bool:
        return self._log.continues(base)

    def same_life(self) -> bool:
        return self._log.same_life()

    def follow(self, after: int) -> None:
        self._log.follow(after)

    @property
    def following(self) -> bool:
        return self._log.following

    def arrived(self, after: int) -> tuple[Entry, ...]:
        return self._log.arrived(after)

    def wait(self, after: int, timeout_s: float) -> None:
        self._log.wait(after, timeout_s)

    def until(self, timeout_s: float) -> Iterator[float]:
        return self._log.until(timeout_s)

    def mutex(self) -> Mutex:
        return self._log.mutex()

    def close(self) -> None:
        self._log.close()


class MeasuredConnection:
    """A connection whose logs are measured. `logs` are those opened through it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.logs: list[MeasuredLog] = []

    def log(self, index: str, *, follow: bool = True) -> MeasuredLog:
        log = MeasuredLog(self._connection.log(index, follow=follow))
        self.logs.append(log)
        return log

    def indexes(self) -> tuple[str, ...]:
        return self._connection.indexes()

    def close(self) -> None:
        self._connection.close()
