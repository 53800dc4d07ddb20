"""One life of one engine and its conversation with the log: steps, conflicts, unknown outcomes.

Owns the order of steps, and the rule that a step happens whole or not at all. The replica below and the log that goes on are
`following.py`'s. Knows no call of the engine's interface: `index.py` hands it commands and functions that fill in answers.

| the log answers | the session                                                                                       |
|-----------------|---------------------------------------------------------------------------------------------------|
| appended        | settles; with entries in between: undo, apply theirs, redo mine                                   |
| conflicted      | undo, apply what was missed, decide every command again, append again; bounded by the port        |
| trimmed         | undo, restore from a snapshot, decide every command again                                         |
| fenced          | this life is over: `SessionOver` now and from now on, until `rejoin`                              |
| diverged        | history was rolled back: `RolledBack` now and from now on, until `rejoin`                         |
| nothing in time | undo, accept nothing until `resolve` has found out, or `rejoin` has fenced it                     |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    LossInTheWay,
    StillAlive,
    Trimmed,
)
from statecore.alone import commit_of_one
from statecore.answers import no_answer
from statecore.commands import Command, Forget, Join, Leave
from statecore.following import Following
from statecore.rejections import Contended, Rejection, SessionOver
from statecore.restoring import rolled_back
from statecore.step import Doubt, Fill, Operation, Step, commit_of, decide_again

Answer = TypeVar("Answer")

_FRESH_ATTEMPTS = 2  # they rest on what the last reply brought; the port waits before each later one


class Session(Following):
    """Begins a life with `join`; see the module for what it does afterwards.

    `number` of the present life; `commits` that landed; `conflicts`, refusals because somebody else was faster.
    """

    def __init__(self, log: Log, join: Join, *, rejoin_automatically: bool = False) -> None:
        super().__init__(log, join.engine)
        self._join = join
        self._doubt: Doubt | None = None
        self._lost = ""
        self._on_begin: Callable[[], None] = lambda: None
        self._rejoin_automatically = rejoin_automatically
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
                self._left_behind()
            self._life.over()
            self._doubt, self._life.number = None, 0
            try:
                self.refresh()
                self._join_once()
            except RolledBack:
                self._left_behind()
                self.refresh()
                self._join_once()
            self._join = self._join.in_the_same_process(self.number)

    def _left_behind(self) -> None:
        """What this process knew the log does not hold: whatever it wrote then is not what the log says of those blocks."""
        self._lost = self._replica.base.commit_id or self._lost
        self._anew()
        self._join = self._join.after_lost_history()

    def _join_once(self) -> None:
        with self._begin(explicit=False) as step:
            self.perform(self._join, None, no_answer)
            if self._join.history_lost:
                self.perform(Forget(self._join.engine, self._lost), None, no_answer)
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
        self._life.leave()

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
            if isinstance(reply, Appended):
                self._require_standing(doubt)
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
                        self._log.drop_lease()
                        raise self._life.over(reason=f"the log has forgotten what became of commit {doubt.commit.id}")
                    case LossInTheWay():
                        return False
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

    def _require_standing(self, landed: Doubt) -> None:
        """A commit may have taken long to be found out: it is in the log, and this life may be over all the same, or nobody
        may have heard of it for too long. What was given in it may belong to others by now; so the caller hears that.
        """
        if any(
            engine == self._join.engine and lowest > landed.commit.session for engine, lowest in landed.commit.fences
        ):
            return  # it ends this life itself
        try:
            verdict = self._log.standing()
        except Unavailable as error:
            self._doubt = landed
            raise OutcomeUnknown(
                f"it is in the log, but whether this life still goes on was not heard: {error}", landed.commit.id
            ) from error
        if verdict is not None:
            with self._guard:
                raise self._life.ended_by(verdict, self._replica.state)

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
            if self._life.end is not None:
                self._log.drop_lease()  # nobody acts on it: the keeper may end what the log still calls alive
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
        before = self._replica
        with self._ending_if_corrupt():
            news = self._news()
        if not news and self._replica is before:
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
        for attempt in self._log.attempts(joining=not self.number):
            if attempt > 1:  # what the last reply brought is enough for the second; before later ones there was a wait
                news = self._news() if behind or attempt > _FRESH_ATTEMPTS else ()
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
            loss: LossInTheWay | None = None
            reply = self._append(step, commit, base)
            if isinstance(reply, Appended):
                self._require_standing(Doubt(commit, base, step))
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
                        if reply.in_doubt:
                            raise self._life.over(reason=f"the log has forgotten what became of commit {commit.id}")
                        behind = True
                    case Fenced() | Diverged():
                        raise self._life.ended_by(reply, self._replica.state)
                    case LossInTheWay():
                        self._replica.undo()
                        loss = reply
                    case StillAlive():
                        raise AssertionError("an engine declares nobody else lost")
            if loss is not None:
                self._deal_with(step, loss)
        raise Contended(step.attempts, scope)

    def _deal_with(self, step: Step, loss: LossInTheWay) -> None:
        """Somebody knew an end of the history that is gone: what it may have overwritten is given up before anything else.

        In a commit of its own, so that the step is decided again on what is left; a life that begins does it with the step.
        """
        command = Forget(self._join.engine, loss.commit)
        if not self.number:
            step.operations.append(Operation(command, None, no_answer))
            return
        with self._guard:
            prepared = commit_of_one(self._log, self._replica, (self._join.engine, self.number), command)
        if prepared is None:
            return
        commit, base = prepared
        try:
            reply = self._log.append(commit, base)
        except OutcomeUnknown as error:  # of this commit; nothing of the step has been sent again
            raise Unavailable(f"a lost part of history could not be dealt with: {error}") from error
        with self._guard:
            match reply:
                case Appended():
                    self._apply(reply.missed)
                    self._replica.redo(commit.facts)
                    self._replica.settle(reply.position, commit.id)
                    self._outcomes.note(commit.facts, self._replica.state)
                    self._log.at(self._replica.base)
                case Conflicted():
                    self._apply(reply.missed)
                case Fenced() | Diverged():
                    raise self._life.ended_by(reply, self._replica.state)

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
            before = Base(reply.missed[-1].position, reply.missed[-1].id) if reply.missed else base
            if replica.base != before:  # it had read on after the commit was sent, in a history that is gone
                raise rolled_back(replica.base.position, replica.base.commit_id, found="")
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

    def _applied(self, entry: Entry) -> None:
        if (doubt := self._doubt) is not None and entry.id == doubt.commit.id:
            self._doubt = None
            self._stands(doubt.step, doubt.commit, entry.position)

    def _require_usable(self) -> None:
        self._life.require()
        if self._doubt is not None:
            raise Unavailable(
                f"the outcome of commit {self._doubt.commit.id} is unknown: call resolve() to find out, or rejoin()"
            )
        super()._require_usable()
