"""One life of one engine and its conversation with the log: steps, conflicts, unknown outcomes.

Owns the replica, the order of steps, and the rule that a step happens whole or not at all. Knows no call of the engine's
interface: `index.py` hands it commands and functions that fill in answers.

| the log answers | the session                                                                                       |
|-----------------|---------------------------------------------------------------------------------------------------|
| appended        | settles; with entries in between: undo, apply theirs, redo mine                                   |
| conflicted      | undo, apply what was missed, decide every command again, append again; bounded by the port        |
| trimmed         | undo, restore from a snapshot, decide every command again                                         |
| fenced          | this life is over: `SessionOver` now and from now on, until `rejoin`                              |
| diverged        | history was rolled back: `RolledBack` now and from now on, until `rejoin`                         |
| nothing in time | undo, accept nothing until `resolve` has found out, or `rejoin` has fenced it                     |

Threads may share a session. `turn` orders whole steps. `guard` protects the replica and is never held while waiting, so
a read-only call answers at once while another thread's commit is under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TypeVar

from events.errors import CorruptState, InvalidInput, OutcomeUnknown, RolledBack, StateCoreError, Unavailable
from events.ports import (
    Appended,
    AppendReply,
    Base,
    Commit,
    Conflicted,
    Diverged,
    Entry,
    Fenced,
    Log,
    StillAlive,
    Trimmed,
)
from statecore.answers import no_answer
from statecore.commands import Command, Join, Leave
from statecore.life import Life
from statecore.outcomes import Outcomes
from statecore.rejections import Contended, Rejection, SessionOver
from statecore.replica import Replica
from statecore.restoring import restored, rolled_back, trimmed
from statecore.results import TransferState
from statecore.state import State
from statecore.step import Doubt, Fill, Operation, Step, commit_of, decide_again

Answer = TypeVar("Answer")

_FRESH_ATTEMPTS = 2  # they rest on what the last reply brought; the port waits before each later one


class Session:
    """Begins a life with `join`; see the module for what it does afterwards.

    `number` of the present life; `commits` that landed; `conflicts`, refusals because somebody else was faster.
    """

    def __init__(self, log: Log, join: Join, *, rejoin_automatically: bool = False) -> None:
        self._log = log
        self._join = join
        self._turn = log.mutex()
        self._guard = log.mutex()
        self._replica = Replica()
        self._step: Step | None = None
        self._doubt: Doubt | None = None
        self._life = Life(join.engine)
        self._on_begin: Callable[[], None] = lambda: None
        self._rejoin_automatically = rejoin_automatically
        self._outcomes = Outcomes()
        self.commits = 0
        self.conflicts = 0

    @property
    def number(self) -> int:
        return self._life.number

    def join(self, on_begin: Callable[[], None] = lambda: None) -> None:
        """Read the log, then append the beginning of a new life; `on_begin` is called when it stands.

        A replica that the log does not continue any more is left behind: the new life begins on what the log holds.

        Raises:
            Rejection: the index was made with other settings.
            OutcomeUnknown: `resolve` tells whether the new life began. The old one is over in any case.
            Unavailable, CorruptState: as everywhere.
        """
        with self._turn:
            if self._step is not None:
                raise InvalidInput("a new life cannot begin within a step of the old one")
            self._on_begin = on_begin
            self._log.drop_lease()
            if self._life.corrupt is not None:
                self._anew()
            self._life.over()
            self._doubt, self._life.number = None, 0
            try:
                self.refresh()
                self._join_once()
            except RolledBack:
                self._anew()
                self.refresh()
                self._join_once()
            self._join = self._join.in_the_same_process()

    def _anew(self) -> None:
        with self._guard:
            self._replica, self._outcomes = Replica(), Outcomes()
            self._life.over()

    def _join_once(self) -> None:
        with self._begin(explicit=False) as step:
            self.perform(self._join, None, no_answer)
            step.when_it_stands(self._begun)

    def _begun(self) -> None:
        self._life.begin(self._life.number)
        self._log.follow(self._replica.state.position)
        self._log.hold_lease(self._join.engine, self._life.number)
        self._on_begin()

    def wants(self, tier: str, blocks: int) -> None:
        """The next life asks for a pool of this size."""
        self._join = self._join.sized(tier, blocks)

    def leave(self) -> None:
        """End this life in order, if it still goes on; resolves a doubt first. If that fails, it may still be alive."""
        with self._turn:
            if self._doubt is not None:
                self.resolve()
            if self._life.end is not None:
                return
            with suppress(SessionOver), self.step_of_one() as step:  # somebody else may have ended it already
                self.perform(Leave(self._join.engine), None, no_answer)
                step.when_it_stands(self._left)

    def _left(self) -> None:
        self._log.drop_lease()
        self._life.over()

    def resolve(self) -> bool:
        """Find out what became of the step whose outcome is unknown; True if it stands (or nothing was in doubt).

        Raises:
            OutcomeUnknown: the server still does not answer.
            SessionOver, CorruptState: this life is over.
        """
        with self._turn:
            doubt = self._doubt
            if doubt is None:
                self._require_usable()
                return True
            reply, self._doubt = self._log.append(doubt.commit, doubt.base), None
            with self._guard, self._ending_if_corrupt():
                match reply:
                    case Appended():
                        self._land(doubt.step, doubt.base, doubt.commit, reply)
                    case Conflicted():
                        self._apply(reply.missed)
                        return False
                    case Fenced() | Diverged():
                        raise self._life.ended_by(reply, self._replica.state)
                    case Trimmed():
                        raise self._life.over(reason=f"the log has forgotten what became of commit {doubt.commit.id}")
                    case StillAlive():
                        raise AssertionError("an engine declares nobody else lost")
            return True

    def step(self) -> AbstractContextManager[Step]:
        """Everything asked inside becomes one commit, all or nothing; part of the step at hand, if there is one."""
        return self._joined_step(explicit=True)

    def step_of_one(self) -> AbstractContextManager[Step]:
        """The step at hand, or one for a single call: what is refused is refused by itself."""
        return self._joined_step(explicit=False)

    def perform(self, command: Command, answer: Answer, fill: Fill) -> Answer:
        """Decide and evolve one command within the step at hand, or as one by itself. A rejection changes nothing."""
        with self.step_of_one() as step:
            if step.failed is not None:
                raise step.failed.with_traceback(None)
            operation = Operation(command, answer, fill)
            with self._guard:
                refusal = self._do(step, operation)
            if refusal is not None and self._replica.may_be_outdated(refusal):
                refusal = self._look_again(step, operation, refusal)
            if refusal is not None:
                raise refusal
        return answer

    def read(self, query: Callable[[State], Answer]) -> Answer:
        with self._guard:
            return query(self._replica.state)

    def transfer(self, transfer: str) -> TransferState:
        """What is known of a transfer; `UnknownTransfer` if it never was, or ended too long ago."""
        with self._guard:
            return self._outcomes.of(transfer, self._replica)

    def arrival(self, request: str) -> TransferState | None:
        self._look_again_for_news()
        with self._guard:
            return self._outcomes.arrival(self._join.engine, request, self._replica)

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
            self._log.wait(after, left)
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

    def digest(self) -> str:
        with self._turn, self._guard:
            if self._step is not None:
                raise InvalidInput("a step in progress has no digest; ask outside of it")
            return self._replica.digest()

    def refresh(self) -> int:
        """Read the log to its end; returns the position."""
        with self._turn:
            if self._step is not None:
                raise InvalidInput("a step in progress rests on the position it began at; refresh outside of it")
            if (broken := self._life.corrupt) is not None:
                self._life.told = True
                raise broken.with_traceback(None)
            with self._ending_if_corrupt():
                if not self._replica.state.position:
                    self._start_from(restored(self._log))
                while entries := self._log.read(self._replica.state.position):
                    if entries[0].position > self._replica.state.position + 1:
                        self._restore(entries[0].position)
                    else:
                        with self._guard:
                            self._apply(entries)
                base = self._replica.base
                if not self._log.continues(base):
                    raise rolled_back(base.position, base.commit_id, found="")
            return base.position

    def _restore(self, first: int) -> None:
        """The log begins at `first`, beyond what this replica has come to: go on from a snapshot, in the same life."""
        newer = restored(self._log)
        if newer is None or newer.state.position <= self._replica.state.position:
            raise trimmed(self._replica, first)
        if self._life.number and self._life.end is None and not self._log.same_life():
            base = self._replica.base  # what lies between is gone, and with it the proof that it continued ours
            raise rolled_back(base.position, base.commit_id, found="")
        self._start_from(newer)

    def _start_from(self, replica: Replica | None) -> None:
        if replica is not None:
            with self._guard:
                self._replica = replica
                self._life.notice(replica.state, ())
                self._log.at(replica.base)

    @contextmanager
    def _joined_step(self, *, explicit: bool) -> Iterator[Step]:
        with self._turn:
            if self._step is not None:
                yield self._step
                return
            if self._rejoin_automatically and self._life.may_follow:
                self.join(self._on_begin)
            self._require_usable()
            self._catch_up_with_arrived()
            with self._begin(explicit=explicit) as step:
                yield step

    @contextmanager
    def _begin(self, *, explicit: bool) -> Iterator[Step]:
        step = self._step = Step(explicit=explicit)
        try:
            yield step
            if (failed := step.failed or self._life.corrupt) is not None:  # the caller swallowed it, the step is undone
                raise failed
            self._commit(step)
        except BaseException as error:
            with self._guard:
                self._replica.undo()
                step.undo_memos()
            if isinstance(error, CorruptState):
                self._life.broken(error)
            if error is self._life.end:
                self._life.told = True
            raise
        finally:
            self._step = None

    def _do(self, step: Step, operation: Operation) -> Rejection | None:
        with self._ending_if_corrupt():
            facts = self._replica.propose(operation.command)
        if isinstance(facts, Rejection):
            return facts
        step.facts.extend(facts)
        step.operations.append(operation)
        operation.fill(self._replica.state, facts, operation.answer)
        return None

    def _look_again(self, step: Step, operation: Operation, refusal: Rejection) -> Rejection | None:
        """Read what others did, decide the step again on top of it, and then the refused call."""
        news = self._log.read(self._replica.state.position)
        if not news:
            return refusal
        with self._guard:
            try:
                self._decide_again(step, news)
            except StateCoreError as error:
                self._replica.undo()
                step.failed = error  # also if the caller goes on: what it was told no longer holds
                raise
            return self._do(step, operation)

    def _commit(self, step: Step) -> None:
        scope, behind = "", False
        for attempt in self._log.attempts():
            if attempt > 1:  # what the last reply brought is enough for the second; before later ones there was a wait
                news = self._log.read(self._replica.state.position) if behind or attempt > _FRESH_ATTEMPTS else ()
                with self._guard:
                    self._decide_again(step, news)
            if not step.facts:
                return
            with self._guard:
                commit = commit_of(
                    step, self._replica.state, self._join.engine, self.number, self._log.next_commit_id()
                )
                base = self._replica.base
            step.attempts = attempt
            reply = self._append(step, commit, base)
            with self._guard:
                match reply:
                    case Appended():
                        self._land(step, base, commit, reply)
                        return
                    case Conflicted():
                        self.conflicts += 1
                        scope = reply.scope
                        self._replica.undo()
                        self._apply(reply.missed)
                    case Trimmed():
                        self._replica.undo()
                        if reply.in_doubt:
                            raise self._life.over(reason=f"the log has forgotten what became of commit {commit.id}")
                        self._restore(base.position + 2)
                        behind = True
                    case Fenced() | Diverged():
                        raise self._life.ended_by(reply, self._replica.state)
                    case StillAlive():
                        raise AssertionError("an engine declares nobody else lost")
        raise Contended(step.attempts, scope)

    def _append(self, step: Step, commit: Commit, base: Base) -> AppendReply:
        try:
            return self._log.append(commit, base)
        except BaseException as error:
            if isinstance(error, OutcomeUnknown) or not isinstance(error, StateCoreError):
                self._doubt = Doubt(commit, base, step)  # an interrupt, too, may come after the bytes have left
            raise

    def _land(self, step: Step, base: Base, commit: Commit, reply: Appended) -> None:
        replica = self._replica
        if reply.position != base.position + len(reply.missed) + 1:
            raise CorruptState(
                f"appended at {reply.position}, but {len(reply.missed)} entries lie between it and {base.position}",
                position=reply.position,
            )
        if reply.missed or step is not self._step:
            replica.undo()
            self._apply(reply.missed)
            replica.redo(commit.facts)
        replica.settle(reply.position, commit.id)
        self._log.at(replica.base)
        self._outcomes.note(commit.facts, replica.state)
        self._stands(step, commit, reply.position)

    def _stands(self, step: Step, commit: Commit, position: int) -> None:
        self._life.number = commit.session
        self.commits += 1
        if step is not self._step:  # it was undone when its reply did not come
            step.redo_memos()
        step.stands(position)

    def _decide_again(self, step: Step, missed: tuple[Entry, ...]) -> None:
        self._replica.undo()
        self._apply(missed)
        if self._life.number:  # a life that only begins has the end of the one before behind it
            self._life.require()
        decide_again(self._replica, step)

    def _apply(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            with self._ending_if_corrupt():
                self._replica.apply_all((entry,))
            self._outcomes.note(entry.facts, self._replica.state)
            if (doubt := self._doubt) is not None and entry.id == doubt.commit.id:
                self._doubt = None
                self._stands(doubt.step, doubt.commit, entry.position)
        self._life.notice(self._replica.state, entries)
        self._log.at(self._replica.base)

    @contextmanager
    def _ending_if_corrupt(self) -> Iterator[None]:
        """A history that cannot be read ends this life: nothing is decided on it any more."""
        try:
            yield
        except CorruptState as error:
            self._life.broken(error)
            self._life.told = True
            raise

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

    def _require_usable(self) -> None:
        self._life.require()
        if self._doubt is not None:
            raise Unavailable(
                f"the outcome of commit {self._doubt.commit.id} is unknown: call resolve() to find out, or rejoin()"
            )
        if (verdict := self._log.standing()) is not None:
            self._life.ended_by(verdict, self._replica.state)
            self._life.require()
