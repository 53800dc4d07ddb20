"""What the log says about one request, engine or transfer, collected while it is replayed.

Owns when a request begins and ends (it also ends with its engine's life, which no fact about the request says), that the
end of a swap-in or a send belongs to the request it was started for, and that a send is a matter of both its engines. Where
the beginning of the log is gone, the state at the snapshot says what had begun before it.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from events.codec import fact_to_dict
from events.facts import (
    EngineJoined,
    EngineLeft,
    EngineLost,
    Fact,
    PrefixMatched,
    RequestReleased,
    SendStarted,
    TransferCancelled,
    TransferFinished,
    TransferStarted,
)
from events.ports import Entry
from ops.cli.output import iso_time
from ops.cli.transfers import Concerned, transfer_of
from statecore import ranges
from statecore.results import CANCELLED, DONE, FAILED, UNDER_WAY
from statecore.state import State


@attrs.frozen
class Event:
    """A fact, when it happened and who wrote it."""

    position: int
    at_ms: int
    engine: str
    fact: Fact

    def as_dict(self) -> dict[str, object]:
        return {"position": self.position, "at": iso_time(self.at_ms), **fact_to_dict(self.fact)}


@attrs.define
class RequestHistory:
    """Facts about the requests of one id, per engine that served one, or that one was sent to.

    Attributes:
        engine: only this one's, if given.
        begun: engines in which a request of that id began.
    """

    request: str
    engine: str | None
    events: dict[str, list[Event]] = attrs.field(factory=dict)
    begun: set[str] = attrs.field(factory=set)
    _live: set[str] = attrs.field(factory=set)
    _transfers: set[str] = attrs.field(factory=set)
    _concerned: Concerned = attrs.field(factory=Concerned)

    def begin(self, state: State) -> None:
        """Requests of that id that live where the kept log begins."""
        for engine in state.engines.values():
            if self.request in engine.requests and self.engine in (None, engine.name):
                self.events.setdefault(engine.name, [])
                self.begun.add(engine.name)
                self._live.add(engine.name)
        for send in state.sends.values():
            self._concerned.know(send.id, send.receiver)
            if send.request == self.request:
                self._transfers.add(send.id)

    def watch(self, _state: State, entry: Entry) -> None:
        for fact in entry.facts:
            for engine in self._concerned.by(fact):
                if self.engine in (None, engine) and self._is_about(fact, engine):
                    self.events.setdefault(engine, []).append(Event(entry.position, entry.at_ms, entry.engine, fact))

    def _is_about(self, fact: Fact, engine: str) -> bool:
        if isinstance(fact, EngineLeft | EngineLost) and engine in self._live:
            self._live.discard(engine)
            return True
        if getattr(fact, "request", None) != self.request:
            return transfer_of(fact) in self._transfers
        if isinstance(fact, PrefixMatched):
            self.begun.add(engine)
            self._live.add(engine)
        elif isinstance(fact, RequestReleased):
            self._live.discard(engine)
        elif isinstance(fact, TransferStarted | SendStarted):
            self._transfers.add(fact.transfer)
        return True


@attrs.define
class Life:
    """A session of an engine. `joined` is None where that was trimmed away, `ended` while it goes on."""

    session: int
    joined: Event | None
    ended: Event | None = None

    def as_dict(self) -> dict[str, object]:
        joined, ended = self.joined, self.ended
        return {
            "session": self.session,
            "joined_position": None if joined is None else joined.position,
            "joined_at": None if joined is None else iso_time(joined.at_ms),
            "ended_position": None if ended is None else ended.position,
            "ended_at": None if ended is None else iso_time(ended.at_ms),
            "ended_by": None if ended is None else type(ended.fact).__name__,
        }


def watch_lives(engine: str, lives: list[Life]) -> Callable[[State, Entry], None]:
    """Collects the lives of an engine into `lives`."""

    def watch(_state: State, entry: Entry) -> None:
        for fact in entry.facts:
            if isinstance(fact, EngineJoined | EngineLeft | EngineLost) and fact.engine == engine:
                event = Event(entry.position, entry.at_ms, entry.engine, fact)
                if isinstance(fact, EngineJoined):
                    lives.append(Life(fact.session, event))
                elif lives:
                    lives[-1].ended = event

    return watch


def begin_lives(engine: str, lives: list[Life]) -> Callable[[State], None]:
    """Puts the life that goes on where the kept log begins into `lives`."""

    def begin(state: State) -> None:
        known = state.engines.get(engine)
        if known is not None and known.alive:
            lives.append(Life(known.session, None))

    return begin


@attrs.define
class Sending:
    """A send that an engine took part in. `started` is None where that was trimmed away, `ended` while it is under way."""

    send: SendStarted
    started: Event | None
    ended: Event | None = None

    @property
    def outcome(self) -> str:
        """ "under way", "done", "failed" or "cancelled"."""
        match None if self.ended is None else self.ended.fact:
            case TransferCancelled():
                return CANCELLED
            case TransferFinished(ok=ok):
                return DONE if ok else FAILED
            case _:
                return UNDER_WAY

    @property
    def reason(self) -> str:
        return "" if self.ended is None else str(getattr(self.ended.fact, "reason", ""))

    def as_dict(self) -> dict[str, object]:
        started, ended = self.started, self.ended
        return {
            "transfer": self.send.transfer,
            "sender": self.send.engine,
            "receiver": self.send.receiver,
            "request": self.send.request,
            "blocks": ranges.count(self.send.source_blocks),
            "started_position": None if started is None else started.position,
            "started_at": None if started is None else iso_time(started.at_ms),
            "ended_position": None if ended is None else ended.position,
            "ended_at": None if ended is None else iso_time(ended.at_ms),
            "outcome": self.outcome,
            "reason": self.reason,
        }


def watch_sends(engine: str, sends: dict[str, Sending]) -> Callable[[State, Entry], None]:
    """Collects the sends from and to an engine, by id; the first end counts."""

    def watch(_state: State, entry: Entry) -> None:
        for fact in entry.facts:
            event = Event(entry.position, entry.at_ms, entry.engine, fact)
            if isinstance(fact, SendStarted) and engine in (fact.engine, fact.receiver):
                sends[fact.transfer] = Sending(fact, event)
            elif isinstance(fact, TransferFinished | TransferCancelled):
                send = sends.get(fact.transfer)
                if send is not None and send.ended is None:
                    send.ended = event

    return watch


def begin_sends(engine: str, sends: dict[str, Sending]) -> Callable[[State], None]:
    """Puts the sends that are under way where the kept log begins into `sends`."""

    def begin(state: State) -> None:
        for send in state.sends.values():
            if engine in (send.engine, send.receiver):
                ends = (send.source, send.source_blocks, send.destination, send.destination_blocks)
                sends[send.id] = Sending(SendStarted(send.id, send.engine, send.request, send.receiver, *ends), None)

    return begin


def watch_starts(starts: dict[str, Event]) -> Callable[[State, Entry], None]:
    """Collects the start of every transfer that has not finished, by id."""

    def watch(_state: State, entry: Entry) -> None:
        for fact in entry.facts:
            if isinstance(fact, TransferStarted | SendStarted):
                starts[fact.transfer] = Event(entry.position, entry.at_ms, entry.engine, fact)
            elif isinstance(fact, TransferFinished):
                starts.pop(fact.transfer, None)

    return watch
