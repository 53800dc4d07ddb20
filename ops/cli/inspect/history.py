"""What the log says about one request, engine or transfer, collected while it is replayed.

Owns when a request begins and ends (it also ends with its engine's life, which no fact about the request says), and that
the end of a swap-in belongs to the request it was started for.
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
    TransferFinished,
    TransferStarted,
)
from events.ports import Entry
from ops.cli.output import iso_time
from ops.cli.transfers import engine_of, transfer_of
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
    """Facts about the requests of one id, per engine that served one."""

    request: str
    engine: str | None
    events: dict[str, list[Event]] = attrs.field(factory=dict)
    _live: set[str] = attrs.field(factory=set)
    _transfers: set[str] = attrs.field(factory=set)

    def watch(self, _state: State, entry: Entry) -> None:
        for fact in entry.facts:
            engine = engine_of(fact)
            if engine is None or self.engine not in (None, engine):
                continue
            if getattr(fact, "request", None) == self.request:
                if isinstance(fact, PrefixMatched):
                    self._live.add(engine)
                elif isinstance(fact, RequestReleased):
                    self._live.discard(engine)
                elif isinstance(fact, TransferStarted):
                    self._transfers.add(fact.transfer)
            elif transfer_of(fact) in self._transfers:
                pass
            elif isinstance(fact, EngineLeft | EngineLost) and engine in self._live:
                self._live.discard(engine)
            else:
                continue
            self.events.setdefault(engine, []).append(Event(entry.position, entry.at_ms, entry.engine, fact))


@attrs.define
class Life:
    """A session of an engine. `ended` is None while it goes on."""

    session: int
    joined: Event
    ended: Event | None = None

    def as_dict(self) -> dict[str, object]:
        ended = self.ended
        return {
            "session": self.session,
            "joined_position": self.joined.position,
            "joined_at": iso_time(self.joined.at_ms),
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


def watch_starts(starts: dict[str, Event]) -> Callable[[State, Entry], None]:
    """Collects the start of every transfer that has not finished, by id."""

    def watch(_state: State, entry: Entry) -> None:
        for fact in entry.facts:
            if isinstance(fact, TransferStarted):
                starts[fact.transfer] = Event(entry.position, entry.at_ms, entry.engine, fact)
            elif isinstance(fact, TransferFinished):
                starts.pop(fact.transfer, None)

    return watch
