"""A log that writes down what it was answered, before its engine gets to act on it.

Owns the evidence of appends: `RecordedConnection` and `RecordedLog` are those of the demo's stopwatch with a history
beside them, and the index cannot tell. A commit is begun when its bytes are first handed over, and ended when the answer is
there, however often it was sent in between.
"""

from __future__ import annotations

from time import monotonic

from events.errors import OutcomeUnknown
from events.ports import Appended, AppendReply, Base, Commit, Conflicted, Connection, Fenced, Log
from ops.chaos.history import Acknowledged, Doubted, HistoryWriter, Refused, Resolved
from ops.demo.measured import MeasuredConnection, MeasuredLog


class RecordedLog(MeasuredLog):
    """Records every outcome of every append.

    Attributes:
        in_doubt: the commit whose outcome the caller was last told to be unknown, until somebody has told it.
    """

    def __init__(self, log: Log, history: HistoryWriter) -> None:
        super().__init__(log)
        self._history = history
        self._begun: dict[str, float] = {}
        self.in_doubt: str | None = None

    def append(self, commit: Commit, base: Base) -> AppendReply:
        doubted = commit.id in self._begun
        began = self._begun.get(commit.id) or monotonic()
        try:
            reply = super().append(commit, base)
        except OutcomeUnknown:
            self._begun[commit.id] = began
            self.in_doubt = commit.id
            if not doubted:
                self._history.write(Doubted(commit.id, monotonic()))
            raise
        self._begun.pop(commit.id, None)
        now = monotonic()
        match reply:
            case Appended():
                self._history.write(Acknowledged(commit.id, reply.position, commit.session, began, now))
            case Fenced():
                self._history.write(Refused(commit.id, commit.session, now))
            case _:
                pass
        if doubted and isinstance(reply, Appended | Conflicted | Fenced):
            self._history.write(Resolved(commit.id, isinstance(reply, Appended), now))
        self.round_trips_s.clear()  # nobody asks for them here
        self.commits_s.clear()
        return reply


class RecordedConnection(MeasuredConnection):
    """A connection whose logs are recorded. `last`: the one opened last."""

    last: RecordedLog

    def __init__(self, connection: Connection, history: HistoryWriter) -> None:
        super().__init__(connection)
        self._history = history

    def log(self, index: str, *, follow: bool = True) -> RecordedLog:
        self.last = RecordedLog(self._connection.log(index, follow=follow), self._history)
        return self.last
