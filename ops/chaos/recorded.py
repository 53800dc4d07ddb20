"""A log that writes down what it was answered, before its engine gets to act on it.

Owns the evidence of appends, from two places that neither the index nor the log can tell from the real ones:

    RecordedTransport   one attempt: whether its outcome was unknown
    RecordedLog         the append as a whole: what was found out in the end. Begun when its bytes are first handed over,
                        ended when the answer is there, however often it was sent in between
"""

from __future__ import annotations

from time import monotonic
from typing import Any, cast

from events.errors import OutcomeUnknown
from events.job_ports import JobTransport
from events.log import Backend, LogConnection
from events.ports import Appended, AppendReply, Base, Commit, Conflicted, Fenced, Log, RawReply, Record
from events.transport import Transport
from ops.chaos.history import Acknowledged, Doubted, HistoryWriter, Refused, Resolved
from ops.demo.measured import MeasuredConnection, MeasuredLog


class RecordedTransport:
    """Writes down attempts whose outcome is unknown; all else is the real one's."""

    def __init__(self, transport: Transport, history: HistoryWriter) -> None:
        self._transport = transport
        self._history = history

    def append(self, record: Record, **named: Any) -> RawReply:
        try:
            return self._transport.append(record, **named)
        except OutcomeUnknown:
            self._history.write(Doubted(record.commit_id, monotonic()))
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class RecordedBackend:
    """Makes recorded transports."""

    def __init__(self, backend: Backend, history: HistoryWriter) -> None:
        self._backend = backend
        self._history = history

    def transport(self, index: str) -> Transport:
        return cast("Transport", RecordedTransport(self._backend.transport(index), self._history))

    def jobs(self, index: str) -> JobTransport:
        return self._backend.jobs(index)

    def indexes(self) -> tuple[str, ...]:
        return self._backend.indexes()

    def close(self) -> None:
        self._backend.close()


class RecordedLog(MeasuredLog):
    """Records what became of every append.

    Attributes:
        in_doubt: the commit whose outcome the caller was last told to be unknown, until somebody has told it.
    """

    def __init__(self, log: Log, history: HistoryWriter) -> None:
        super().__init__(log)
        self._history = history
        self._begun: dict[str, float] = {}
        self.in_doubt: str | None = None

    def append(self, commit: Commit, base: Base) -> AppendReply:
        began = self._begun.get(commit.id) or monotonic()
        try:
            reply = super().append(commit, base)
        except OutcomeUnknown:
            self._begun[commit.id] = began
            self.in_doubt = commit.id
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
        if commit.id in self._history.doubted and isinstance(reply, Appended | Conflicted | Fenced):
            self._history.write(Resolved(commit.id, isinstance(reply, Appended), now))
        self.round_trips_s.clear()  # nobody asks for them here
        self.commits_s.clear()
        return reply


class RecordedConnection(MeasuredConnection):
    """A connection whose logs are recorded. `last`: the one opened last."""

    last: RecordedLog

    def __init__(self, connection: LogConnection, history: HistoryWriter) -> None:
        super().__init__(LogConnection(RecordedBackend(connection.backend, history), connection.url))
        self._history = history

    def log(self, index: str, *, follow: bool = True) -> RecordedLog:
        self.last = RecordedLog(self._connection.log(index, follow=follow), self._history)
        return self.last
