"""Whether one life of an engine goes on, and what ended it.

Owns the verdict: once a life is over it stays over, and whoever asks is told the same. Knows the log's answers that end a
life, and the facts that do.
"""

from __future__ import annotations

from collections.abc import Iterable

from events.errors import CorruptState, RolledBack
from events.facts import EngineLost
from events.ports import Diverged, Entry, Fenced
from statecore.rejections import SessionOver
from statecore.restoring import rolled_back
from statecore.state import State


class Life:
    """The present life of `engine`.

    Attributes:
        number: its session; 0 before it began.
        end: why it is over; None while it goes on.
        told: whether the engine has been told of the end.
        left: whether it was the engine that ended it.
    """

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.number = 0
        self.end: SessionOver | CorruptState | None = None
        self.told = False
        self.left = False

    def begin(self, number: int) -> None:
        self.number, self.end, self.told, self.left = number, None, False, False

    def leave(self) -> None:
        """It ended as its engine wished."""
        self.over()
        self.left = True

    def over(self, current: int | None = None, reason: str = "") -> SessionOver:
        """It is over. `current`: the lowest session that may follow."""
        self.end = SessionOver(self.engine, self.number, self.number if current is None else current, reason)
        return self.end

    def broken(self, error: CorruptState) -> CorruptState:
        """The history it stands on cannot be gone on with."""
        self.end = error
        return error

    def require(self) -> None:
        """Raise what ended it."""
        if self.end is not None:
            self.told = True
            raise self.end.with_traceback(None)  # it is raised again and again, and must not grow

    @property
    def corrupt(self) -> CorruptState | None:
        return self.end if isinstance(self.end, CorruptState) else None

    @property
    def may_follow(self) -> bool:
        """Whether a next life may begin by itself: the engine knows of the end, and nothing is broken for good."""
        return self.told and not self.left and isinstance(self.end, SessionOver | RolledBack)

    def ended_by(self, reply: Fenced | Diverged, state: State) -> SessionOver | CorruptState:
        """What the log's answer means for it; `state` is the one it stands on."""
        if isinstance(reply, Diverged):
            return self.broken(rolled_back(state.position, state.last_commit_id, reply.found))
        told = why_lost(self.engine, self.number, reply.missed)
        return self.over(reply.lowest_session, told or "it was declared lost, or another process began a life of it")

    def notice(self, state: State, entries: Iterable[Entry]) -> None:
        """Somebody else may have ended it, in one of `entries`, which `state` is the outcome of."""
        if self.number and self.end is None:
            engine = state.engines[self.engine]
            if engine.session != self.number or not engine.alive:
                self.over(engine.session, why_lost(self.engine, self.number, entries))


def why_lost(engine: str, session: int, entries: Iterable[Entry]) -> str:
    """The reason that the log gives for the end of a life; "" if these entries do not tell."""
    for entry in entries:
        for fact in entry.facts:
            if isinstance(fact, EngineLost) and (fact.engine, fact.session) == (engine, session):
                return fact.reason
    return ""
