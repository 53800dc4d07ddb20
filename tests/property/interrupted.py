"""A log in memory in which others act between an engine's decision and its append: the race, on demand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from events import codec
from events.facts import SendStarted, TransferFinished, TransferStarted
from events.log import EventLog
from events.memory import MemoryTransport
from events.ports import Commit, RawReply, Record
from statecore.scopes import finish_touches


class Interrupted(MemoryTransport):
    """`between` is called once, before the next append reaches the log."""

    def __init__(self) -> None:
        super().__init__()
        self.between: Callable[[], object] | None = None

    def append(self, record: Record, **arguments: Any) -> RawReply:
        act, self.between = self.between, None
        if act is not None:
            act()
        return super().append(record, **arguments)

    def report(self, fact: TransferStarted | SendStarted, *, ok: bool) -> None:
        """The last rank reports: the entry goes to the end of the log, whatever stands there."""
        touches = finish_touches(fact)[0 if ok else 1] if isinstance(fact, TransferStarted) else ()
        finished = TransferFinished(fact.transfer, ok, "" if ok else "broken")
        number = self.head().position
        record = codec.encode(Commit(f"w{number}", "worker", 0, (finished,), (), ()), at_ms=0)
        with self.changed:
            self.append_unchecked(record, (*touches, "engine:worker"))


class Connected:
    """A connection whose logs all lie on one transport."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport

    def log(self, index: str, *, follow: bool = True) -> EventLog:
        return EventLog(index, self.transport, follow=follow, sleep=lambda _: None)

    def indexes(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        """Nothing to end."""
