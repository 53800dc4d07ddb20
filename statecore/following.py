"""The replica of one engine and the log it follows: reading on, restoring, waiting for what the log will tell.

Owns the replica and everything that brings it forward without deciding anything. `session.py` puts steps on top of it. Knows
nothing of how an append is answered.

| the log               | the replica                                                                                       |
|-----------------------|---------------------------------------------------------------------------------------------------|
| goes on               | applies, entry by entry                                                                           |
| begins further on     | is left for the one of a newer snapshot, in the same life                                         |
| does not continue it  | `RolledBack`: this life is over                                                                   |
| cannot be read        | `CorruptState`: this life is over                                                                 |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from events import limits
from events.errors import CorruptState, InvalidInput
from events.ports import Entry, Log
from statecore.life import Life
from statecore.outcomes import Outcomes
from statecore.replica import Replica
from statecore.restoring import restored, rolled_back, trimmed
from statecore.results import TransferState
from statecore.state import State
from statecore.step import Step

Answer = TypeVar("Answer")


class Following:
    """Threads may share it. `turn` orders whole steps. `guard` protects the replica and is never held while waiting, so a
    read-only call answers at once while another thread's commit is under way.
    """

    def __init__(self, log: Log, engine: str) -> None:
        self._log = log
        self._turn = log.mutex()
        self._guard = log.mutex()
        self._replica = Replica()
        self._outcomes = Outcomes()
        self._life = Life(engine)
        self._step: Step | None = None

    def read(self, query: Callable[[State], Answer]) -> Answer:
        with self._guard:
            return query(self._replica.state)

    def digest(self) -> str:
        with self._turn, self._guard:
            if self._step is not None:
                raise InvalidInput("a step in progress has no digest; ask outside of it")
            return self._replica.digest()

    # --- the log goes on --------------------------------------------------------------------------------------------

    def refresh(self) -> int:
        """Read the log to its end, as it was at some moment of this call; returns the position."""
        with self._turn:
            if self._step is not None:
                raise InvalidInput("a step in progress rests on the position it began at; refresh outside of it")
            if (broken := self._life.corrupt) is not None:
                self._life.told = True
                raise broken.with_traceback(None)
            with self._ending_if_corrupt():
                if not self._replica.state.position:
                    self._start_from(restored(self._log))
                while True:
                    entries = self._news()
                    with self._guard:
                        self._apply(entries)
                    if len(entries) < limits.READ_PAGE:
                        break
                base = self._replica.base
                if not self._log.continues(base):
                    raise rolled_back(base.position, base.commit_id, found="")
            return base.position

    def _news(self) -> tuple[Entry, ...]:
        """What comes next, as far as one read brings it. Where the log begins further on, the replica is restored first, and
        a step on top of it is undone.

        Raises:
            CorruptState: neither the log nor a snapshot has what is missing.
            RolledBack: the log may not continue what this life rests on.
        """
        while True:
            entries = self._log.read(self._replica.state.position)
            if not entries or entries[0].position == self._replica.state.position + 1:
                return entries
            self._restore(entries[0].position)

    def _restore(self, first: int) -> None:
        """The log begins at `first`, beyond what this replica has come to: go on from a snapshot, in the same life."""
        newer = restored(self._log)
        if newer is None or newer.state.position <= self._replica.state.position:
            if self._log.head().first <= self._replica.state.position + 1:
                return  # the log went back between the two looks: it is read again
            raise trimmed(self._replica, first)
        if self._life.number and self._life.end is None and not self._log.same_life():
            base = self._replica.base  # what lies between is gone, and with it the proof that it continued ours
            raise rolled_back(base.position, base.commit_id, found="")
        self._start_from(newer)

    def _start_from(self, replica: Replica | None) -> None:
        if replica is not None:
            with self._guard:
                self._replica.undo()  # what a step at hand begins is not under way yet
                self._outcomes.begin_at(replica.state, self._replica.state)
                self._replica = replica
                self._life.notice(replica.state, ())
                self._log.at(replica.base)

    def _anew(self) -> None:
        """Forget everything: what the log holds is another history."""
        with self._guard:
            self._replica, self._outcomes = Replica(), Outcomes()
            self._life.over()

    def _apply(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            with self._ending_if_corrupt():
                self._replica.apply_all((entry,))
            self._outcomes.note(entry.facts, self._replica.state)
            self._applied(entry)
        self._life.notice(self._replica.state, entries)
        self._log.at(self._replica.base)

    def _applied(self, entry: Entry) -> None:
        """For who waits for one of them."""

    def _catch_up_with_arrived(self) -> None:
        with self._ending_if_corrupt():
            arrived = self._log.arrived(self._replica.state.position)
        for entry in arrived:
            if entry.position > self._replica.state.position + 1:
                self.refresh()
                break
            with self._guard:
                self._apply((entry,))
        self._life.require()

    @contextmanager
    def _ending_if_corrupt(self) -> Iterator[None]:
        """A history that cannot be read ends this life: nothing is decided on it any more."""
        try:
            yield
        except CorruptState as error:
            self._life.broken(error)
            self._life.told = True
            self._log.drop_lease()  # nobody acts on it: the keeper may end what the log still calls alive
            raise

    def _require_usable(self) -> None:
        """Raise what ended this life, or what stands in its way."""
        self._life.require()
        if (verdict := self._log.standing()) is not None:
            self._life.ended_by(verdict, self._replica.state)
            self._life.require()

    # --- transfers --------------------------------------------------------------------------------------------------

    def transfer(self, transfer: str) -> TransferState:
        """What is known of a transfer; `UnknownTransfer` if it never was, or ended too long ago."""
        with self._guard:
            return self._outcomes.of(transfer, self._replica)

    def arrival(self, request: str) -> TransferState | None:
        self._look_again_for_news()
        with self._guard:
            return self._outcomes.arrival(self._life.engine, request, self._replica)

    def poll(self, transfer: str) -> TransferState:
        """What is known of a transfer, with what has arrived unless another thread's step is going on."""
        self._look_again_for_news()
        return self.transfer(transfer)

    def wait(self, transfer: str, timeout_s: float) -> TransferState:
        """Wait until a transfer has ended, holding nothing meanwhile; "under way" when the time is over first."""
        for left in self._log.until(timeout_s):
            if not self._turn.acquire(timeout=left):
                break
            try:
                self._look_for_news()
                known, after = self.transfer(transfer), self._replica.state.position
            finally:
                self._turn.release()
            if not known.under_way:
                return known
            self._log.wait(after, min(left, limits.LEASE_EVERY_S))  # no entry tells that this life is over
        return self.transfer(transfer)

    def _look_again_for_news(self) -> None:
        if self._turn.acquire(blocking=False):
            try:
                self._look_for_news()
            finally:
                self._turn.release()

    def _look_for_news(self) -> None:
        if self._step is not None:
            raise InvalidInput("no transfer can end before the step at hand has; wait outside of it")
        self._require_usable()
        if not self._log.following:
            self.refresh()
        self._catch_up_with_arrived()
