"""The simulated world: one log, its job streams and all memories, an account of them, and a checker that sees every
commit land.

Owns what is true: the log, the history it holds now, the ledger, the bytes, and the digest after every commit that ever
landed, those included that the server lost again. Processes, workers and their faulty transports report here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

import attrs

from events import codec
from events.errors import Unavailable
from events.facts import EngineJoined, EngineLost, HistoryLost, PoolDropped, PrefixMatched, TransferFinished
from events.job_ports import DUPLICATE, FINISHED, INTERRUPTED, UNSEATED, OtherOutcome, RawReport, Report, Seat
from events.memory import MemoryTransport
from events.memory_jobs import MemoryJobs
from events.ports import (
    Base,
    Behind,
    Diverged,
    Entry,
    Fenced,
    Job,
    LossInTheWay,
    RawAppended,
    RawConflicted,
    RawReply,
    Record,
    StillAlive,
    Trimmed,
)
from statecore.replica import Replica
from tests.sim.accounts import Intent, require
from tests.sim.checker import Checker
from tests.sim.choices import Choices
from tests.sim.clockwork import Clockwork
from tests.sim.contents import Contents
from tests.sim.moves import TieredLedger
from tests.sim.server import Server
from tests.sim.shelf import Shelf
from tests.sim.tier_marks import TierMarks


class Writer(Protocol):
    """Who sends commits: an engine's process, or a keeper's.

    Attributes:
        landed: ids of its commits that are, or were, in the log.
    """

    @property
    def name(self) -> str: ...

    @property
    def landed(self) -> list[str]: ...


@attrs.frozen(eq=False)
class Message:
    """An append on its way, with what its writer had in mind."""

    process: Writer
    record: Record
    engine: str
    session: int
    base: Base
    checks: tuple[str, ...]
    touches: tuple[str, ...]
    fences: tuple[tuple[str, int], ...]
    jobs: tuple[Job, ...]
    lapsed: tuple[str, ...]
    forgets: bool
    intents: tuple[Intent, ...]
    said_ready: frozenset[str]
    redecided: bool


@attrs.frozen(eq=False)
class LateReport:
    """A worker's report that is still on its way; its worker may be dead by now."""

    seat: Seat
    report: Report


class World:
    """Everything that is shared.

    Attributes:
        clock: seconds; `clockwork` moves it.
        chain, entries: the history the log holds, or held before it was trimmed: commit ids, "" first, and entries.
        past, digests: the account and the digest after each commit that ever landed, by its id.
        landed: position of each commit that is in the log. vanished: ids of those that the server lost.
        acknowledged: position of each commit whose writer was told that it stands.
        late: messages still on their way.
        copying: (transfer, rank) that a living worker has in its hands, to copy.
        marks, story: counts and tells what occurred.
        ended: who ended each life, and why: (engine, session) -> (author, reason, position).
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.clock = 0.0
        self.clockwork = Clockwork(self)
        self.log = MemoryTransport(clock=self.now)
        self.jobs = MemoryJobs(self.log, self.now)
        self.checker = Checker(self)
        self.follower = Replica()
        self.ledger = TieredLedger()
        self.contents = Contents(self, ranks=1)
        self.tier_marks = TierMarks(self)
        self.chain = [""]
        self.entries: list[Entry] = []
        self.past = {"": self.ledger.copy()}
        self.digests = {"": self.follower.digest()}
        self.landed: dict[str, int] = {}
        self.vanished: set[str] = set()
        self.acknowledged: dict[str, int] = {}
        self.never: set[str] = set()
        self.ended: dict[tuple[str, int], tuple[str, str, int]] = {}
        self.late: list[Message | LateReport] = []
        self.copying: set[tuple[str, int]] = set()
        self.marks: Counter[str] = Counter()
        self.story: list[str] = []
        self.depth = 0
        self.healed = False
        self.perils = False
        self.recoveries: list[float] = []
        self.server = Server(self)
        self.shelf = Shelf(self)
        self.on_join: Callable[[Writer, EngineJoined], None] = lambda _, __: None

    def now(self) -> float:
        return self.clock

    def tell(self, line: str) -> None:
        self.story.append("    " * self.depth + line)

    def stands(self, base: Base) -> bool:
        """Whether the history up to `base` is that of the log."""
        return base.position < len(self.chain) and self.chain[base.position] == base.commit_id

    # --- messages ---------------------------------------------------------------------------------------------------

    def deliver(self, message: Message, what: str = "") -> RawReply:
        """Hand an append to the log and check what it did."""
        reply = self.log.append(
            message.record,
            engine=message.engine,
            session=message.session,
            base=message.base,
            checks=message.checks,
            touches=message.touches,
            fences=message.fences,
            jobs=message.jobs,
            lapsed=message.lapsed,
            forgets=message.forgets,
        )
        tag = f"{what}commit {message.record.commit_id} (on {message.base.position})"
        match reply:
            case RawAppended():
                self.tell(f"{tag} lands at {reply.position}")
                if reply.missed:
                    self.marks["in-between success"] += 1
                    self.marks["a finish lands below a commit"] += self._is_finish_among(message.base)
                self._lands(reply.position, message)
            case RawConflicted():
                self.tell(f"{tag} conflicts on {reply.scope}")
                self.marks["conflict"] += 1
                self.marks["a conflict after a finish"] += self._is_finish_among(message.base)
            case Fenced():
                self.tell(f"{tag} is fenced, lowest session {reply.lowest_session}")
                self.marks["fenced"] += 1
            case Behind():
                self.tell(f"{tag} is behind {reply.head}")
                self.marks["behind"] += 1
            case Diverged():
                self.tell(f"{tag} is of another history")
                require(not self.stands(message.base), "who stands on the log's history is not turned away", reply)
                self.marks["diverged at append"] += 1
            case Trimmed():
                self.tell(f"{tag} is behind the trim")
                require(message.base.position + 1 < self.log.head().first, "what is kept is not called trimmed", tag)
                self.marks["behind the trim at a commit"] += 1
            case LossInTheWay():
                self.tell(f"{tag} finds that {reply.commit} was lost")
                self.marks["a loss in the way"] += 1
            case StillAlive():
                self.tell(f"{tag} declares {reply.engine} lost, which is alive")
                self.marks["depose refused because alive"] += 1
        return reply

    def report(self, seat: Seat, report: Report, what: str = "") -> RawReport:
        """Hand a worker's report to the job streams and check what it did."""
        positions = self.log.head().position
        reply = self.jobs.report(seat, report)
        tag = f"{what}report of {report.transfer} by rank {seat.rank} of {seat.pool} ({report.reason or 'copied'})"
        self.tell(f"{tag} -> {'another outcome' if isinstance(reply, OtherOutcome) else reply.outcome}")
        if isinstance(reply, OtherOutcome):
            self.marks["a rank failed, the last one says so"] += 1
            return reply
        self.marks[f"report: {reply.outcome}"] += 1
        if reply.outcome in (UNSEATED, INTERRUPTED):
            return reply
        self.marks["report: came twice"] += (
            reply.outcome != DUPLICATE and (report.transfer, seat.rank) in self.contents.reported
        )
        self.marks[f"{what}report".strip()] += 1
        self.contents.reported.add((report.transfer, seat.rank))
        if reply.outcome == FINISHED:
            self._lands(reply.position, None)
        require(self.log.head().position == positions + (reply.outcome == FINISHED), "a finish is told", tag)
        self.server.photograph()
        return reply

    def deliver_late(self) -> None:
        """Some of what is still on its way arrives."""
        while self.late and (self.healed or self.choices.chance(35)):
            message = self.late.pop(0 if self.healed else self.choices.draw(len(self.late)))
            if isinstance(message, LateReport):
                self.report(message.seat, message.report, "late ")
                continue
            try:
                self.deliver(message, "late ")
            except Unavailable:
                self.tell(f"late commit {message.record.commit_id} finds the log closed")

    def _is_finish_among(self, base: Base) -> bool:
        known, now = self.past[base.commit_id].moving, self.ledger.moving
        return any(transfer not in now for transfer in known)

    # --- a commit lands ---------------------------------------------------------------------------------------------

    def _lands(self, position: int, message: Message | None) -> None:
        """Whatever a writer sent, or the finish that the last rank's report made."""
        (stored,) = self.log.read(position - 1, 1)
        entry = codec.decode(stored)
        checker = self.checker.replica
        require(position == checker.state.position + 1, "positions have no gaps", position)
        require(entry.id not in self.landed, "a commit lands once", entry.id)
        require(entry.id not in self.never, "what was said not to have happened never does", entry.id)
        self.server.let_in()
        self.landed[entry.id] = position
        self.chain.append(entry.id)
        self.entries.append(entry)
        if message is None:
            (fact,) = entry.facts
            require(isinstance(fact, TransferFinished), "a report brings a finish", entry)
            self.tell(f"    {fact} at {position}")
            self.checker.apply(entry, 0, None, frozenset())
        else:
            self._lands_of(message, entry)
        checker.settle(position, entry.id)
        self.ledger.commit = position + 1
        self.past[entry.id] = self.ledger.copy()
        self.follower.apply(entry)
        self.digests[entry.id] = self.follower.digest()
        require(checker.digest() == self.digests[entry.id], "fact by fact is entry by entry", position)
        self.server.photograph()

    def _lands_of(self, message: Message, entry: Entry) -> None:
        require(entry.id == message.record.commit_id, "the log holds what was sent", entry)
        joins = [fact for fact in entry.facts if isinstance(fact, EngineJoined) and fact.engine == entry.engine]
        if joins or not any(isinstance(fact, HistoryLost) for fact in entry.facts):
            message.process.landed.append(entry.id)  # the other kind is no call's: it makes way for one
        if entry.engine in self.ledger.engines and not joins:
            life = self.ledger.engines[entry.engine]
            require(life.alive and life.session == entry.session, "a session that is over changes nothing", entry)
        for fact in entry.facts:
            if isinstance(fact, EngineLost):
                self._is_lost(entry, fact)
        intents = list(message.intents)
        asked = [intents.pop(0) if isinstance(fact, PrefixMatched) else None for fact in entry.facts]
        known = self.past[message.base.commit_id].copy()
        self.checker.judge(known, entry, asked, exact=not message.redecided, said_ready=message.said_ready)
        for number, intent in enumerate(asked):
            self.checker.apply(entry, number, intent, message.said_ready)
        for fact in joins:
            self.clockwork.gives_sign(fact.engine, fact.session)
            self.on_join(message.process, fact)
        self.contents.check_ready()

    def _is_lost(self, entry: Entry, fact: EngineLost) -> None:
        """Whoever else declares an engine lost must not have heard of it for the length of its lease."""
        self.ended[fact.engine, fact.session] = (entry.engine, fact.reason, entry.position)
        if fact.engine != entry.engine:
            silent = self.clockwork.silent_for(fact.engine, fact.session)
            require(not self.clockwork.holds_lease(fact.engine), "who is alive is not declared lost", (fact, silent))
            self.marks["deposed"] += 1
            self.marks["memory dropped with its engine"] += any(isinstance(each, PoolDropped) for each in entry.facts)

    # --- the server loses its end -----------------------------------------------------------------------------------

    def forget_after(self, position: int) -> None:
        """The log ends at `position` again; what came after is history that vanished."""
        for commit_id in self.chain[position + 1 :]:
            del self.landed[commit_id]
            self.vanished.add(commit_id)
        del self.chain[position + 1 :]
        del self.entries[position:]
        self.ended = {key: end for key, end in self.ended.items() if end[2] <= position}
        self.ledger = self.past[self.chain[position]].copy()
        self.checker.replica, self.follower = Replica(), Replica()
        for replica in (self.checker.replica, self.follower):
            replica.apply_all(self.entries)
