"""The simulated world: one log, its job streams and all memories, an account of them, and a checker that sees every
commit land.

Owns what is true: the log, a replica that is checked after every single fact, a second one that applies entries as an
engine would, the ledger, the bytes, and the digest at every position. Processes, workers and their faulty transports
report here. Time is a number that somebody moves.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import attrs

from events import codec, keys
from events.facts import (
    BlocksAllocated,
    CopyEvicted,
    EngineJoined,
    Fact,
    PathExtended,
    PathReady,
    PrefixMatched,
    TransferFinished,
)
from events.job_ports import DUPLICATE, FINISHED, INTERRUPTED, UNSEATED, OtherOutcome, RawReport, Report, Seat
from events.memory import MemoryTransport
from events.memory_jobs import MemoryJobs
from events.ports import Base, Behind, Diverged, Entry, Fenced, Job, RawAppended, RawConflicted, RawReply, Record
from statecore import invariants, ranges, tree
from statecore.evolve import evolve
from statecore.replica import Replica
from statecore.state import State, request_table
from tests.sim.accounts import Intent, listed, require
from tests.sim.choices import Choices
from tests.sim.contents import Contents
from tests.sim.moves import TieredLedger
from tests.sim.tier_marks import TierMarks

if TYPE_CHECKING:
    from tests.sim.process import Process


@attrs.frozen(eq=False)
class Message:
    """An append on its way, with what its writer had in mind."""

    process: Process
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
        clock: seconds; only the story moves it.
        late: messages still on their way.
        copying: (transfer, rank) that a living worker has in its hands, to copy.
        marks, story: counts and tells what occurred.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.clock = 0.0
        self.log = MemoryTransport(clock=self.now)
        self.jobs = MemoryJobs(self.log, self.now)
        self.checker = Replica()
        self.follower = Replica()
        self.ledger = TieredLedger()
        self.contents = Contents(self, ranks=1)
        self.tier_marks = TierMarks(self)
        self.past = {0: self.ledger.copy()}
        self.digests = {0: self.checker.digest()}
        self.landed: dict[str, int] = {}
        self.never: set[str] = set()
        self.late: list[Message | LateReport] = []
        self.copying: set[tuple[str, int]] = set()
        self.marks: Counter[str] = Counter()
        self.story: list[str] = []
        self.depth = 0
        self.healed = False

    def now(self) -> float:
        return self.clock

    def tell(self, line: str) -> None:
        self.story.append("    " * self.depth + line)

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
                    self.marks["a finish lands below a commit"] += self._is_finish_among(message.base.position)
                self._lands(reply.position, message)
            case RawConflicted():
                self.tell(f"{tag} conflicts on {reply.scope}")
                self.marks["conflict"] += 1
                self.marks["a conflict after a finish"] += self._is_finish_among(message.base.position)
            case Fenced():
                self.tell(f"{tag} is fenced, lowest session {reply.lowest_session}")
                self.marks["fenced"] += 1
            case Behind():
                self.tell(f"{tag} is behind {reply.head}")
                self.marks["behind"] += 1
            case Diverged():
                require(False, "history never diverges here", reply)
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
        return reply

    def deliver_late(self) -> None:
        """Some of what is still on its way arrives."""
        while self.late and (self.healed or self.choices.chance(35)):
            message = self.late.pop(0 if self.healed else self.choices.draw(len(self.late)))
            if isinstance(message, LateReport):
                self.report(message.seat, message.report, "late ")
            else:
                self.deliver(message, "late ")

    def _is_finish_among(self, base: int) -> bool:
        known, now = self.past[base].moving, self.ledger.moving
        return any(transfer not in now for transfer in known)

    # --- a commit lands ---------------------------------------------------------------------------------------------

    def _lands(self, position: int, message: Message | None) -> None:
        """Whatever a writer sent, or the finish that the last rank's report made."""
        (stored,) = self.log.read(position - 1, 1)
        entry = codec.decode(stored)
        require(position == self.checker.state.position + 1, "positions have no gaps", position)
        require(entry.id not in self.landed, "a commit lands once", entry.id)
        require(entry.id not in self.never, "what was said not to have happened never does", entry.id)
        self.landed[entry.id] = position
        if message is None:
            (fact,) = entry.facts
            require(isinstance(fact, TransferFinished), "a report brings a finish", entry)
            self.tell(f"    {fact} at {position}")
            self._apply(entry, 0, None, frozenset())
        else:
            self._lands_of(message, entry)
        self.checker.settle(position, entry.id)
        self.ledger.commit = position + 1
        self.past[position] = self.ledger.copy()
        self.follower.apply(entry)
        self.digests[position] = self.follower.digest()
        require(self.checker.digest() == self.digests[position], "fact by fact is entry by entry", position)

    def _lands_of(self, message: Message, entry: Entry) -> None:
        require(entry.id == message.record.commit_id, "the log holds what was sent", entry)
        message.process.landed.append(entry.id)
        if not any(isinstance(fact, EngineJoined) and fact.engine == entry.engine for fact in entry.facts):
            life = self.ledger.engines[entry.engine]
            require(life.alive and life.session == entry.session, "a session that is over changes nothing", entry)
        intents = list(message.intents)
        asked = [intents.pop(0) if isinstance(fact, PrefixMatched) else None for fact in entry.facts]
        self._judge(message, entry, asked)
        for number, intent in enumerate(asked):
            self._apply(entry, number, intent, message.said_ready)

    def _judge(self, message: Message, entry: Entry, asked: list[Intent | None]) -> None:
        """Was it the right decision, on the history its writer knew?"""
        known = self.past[message.base.position].copy()
        evicted = 0
        for fact, intent in zip(entry.facts, asked, strict=True):
            match fact:
                case PrefixMatched():
                    assert intent is not None
                    depth, foreign = known.longest(fact.engine, intent.hashes, intent.limit)
                    self.marks["foreign pending stop"] += foreign
                    self.marks["hit"] += fact.depth > 0
                    exact = not message.redecided
                    require(
                        fact.depth == depth or (fact.depth < depth and not exact),
                        "the longest prefix is found",
                        (fact, depth),
                    )
                case CopyEvicted():
                    pool, blocks = known.pools[fact.pool], listed(fact.blocks)
                    used = {each.used for each in pool.cached.values() if each.block in blocks}
                    require(used == {known.next_to_go(fact.pool)}, "the least recently used goes first", (fact, used))
                    evicted += len(blocks) if pool.tier == "gpu" else 0
                case BlocksAllocated():
                    free = sorted(known.pools[fact.pool].free)
                    given = listed(fact.blocks)
                    require(given == free[: len(given)], "lowest ids are given first", (fact, free))
                    needed = known.moves(fact.pool) or not evicted or len(given) == len(free)
                    require(needed, "no more is evicted than is missing", fact)
                    evicted = 0
                case PathExtended():
                    self.marks["duplicate extension"] += bool(fact.duplicates)
            known.enter(fact, intent, message.said_ready)

    def _apply(self, entry: Entry, number: int, intent: Intent | None, said_ready: frozenset[str]) -> None:
        state, fact = self.checker.state, entry.facts[number]
        nodes = len(state.nodes)
        self.marks[type(fact).__name__] += 1
        if isinstance(fact, CopyEvicted):
            self.marks["eviction of a partial run"] += _is_partial(state, fact)
        self.tier_marks.before(entry.facts, number)
        evolve(state, fact)
        self.marks["split"] += isinstance(fact, PrefixMatched) and len(state.nodes) > nodes
        self.ledger.enter(fact, intent, said_ready)
        self.tier_marks.after(fact)
        broken = invariants.violations(state)
        require(not broken, "the invariants hold", (fact, broken))
        self._compare(state, fact)
        if isinstance(fact, PathReady | TransferFinished):
            self.contents.check_ready()

    def _compare(self, state: State, fact: Fact) -> None:
        """The machine's state is what the ledger says."""
        ledger = self.ledger
        for name, pool in state.pools.items():
            memory = ledger.pools[name]
            require(set(ranges.ids(tuple(pool.free))) == memory.free, "free blocks are as counted", (fact, name))
            require(pool.unpinned == ledger.idle(name), "evictable blocks are as counted", (fact, name))
            ledger.owners(name)
            cached = {}
            for node in state.nodes.values():
                copy = node.copies.get(name)
                if copy is not None:
                    for place, block in enumerate(ranges.ids(copy.blocks)):
                        block_hash = node.hashes[place * 16 : place * 16 + 16]
                        cached[block_hash] = (block, copy.pending, copy.filling, copy.leaving)
            expected = {
                block_hash: (each.block, each.pending, each.filling, each.leaving)
                for block_hash, each in memory.cached.items()
            }
            require(cached == expected, "cached blocks are as counted", (fact, name))
        for engine in state.engines.values():
            told = [engine.requests_seen, engine.requests_hit, engine.prompt_tokens]
            told += [engine.matched_tokens, engine.host_tokens]
            counted = ledger.engines[engine.name].served
            blocks = [counted.found * state.block_size, counted.fetched * state.block_size]
            require(
                told == [counted.requests, counted.hits, counted.asked, *blocks], "counters are as counted", engine.name
            )
            for request in engine.requests.values():
                table = ranges.ids(request_table(request, engine.gpu_pool))
                require(table == ledger.table(engine.name, request.id), "tables are as counted", (fact, request.id))
        live = {(engine.name, name) for engine in state.engines.values() for name in engine.requests}
        require(live == ledger.requests.keys(), "requests are as counted", fact)
        moving = [
            (each.id, each.kind, each.cancelled, ranges.ids(each.quarantine)) for each in state.transfers.values()
        ]
        wanted = [
            (name, each.kind, each.cancelled, list(each.blocks) if each.cancelled else [])
            for name, each in ledger.moving.items()
        ]
        require(moving == wanted, "transfers are as counted", (fact, moving, wanted))
        require(state.ignored_finishes == ledger.ignored, "late results are counted", fact)


def scope_of_pool(name: str) -> str:
    return keys.pool_scope(name)


def _is_partial(state: State, fact: CopyEvicted) -> bool:
    """Whether only a part of a run goes."""
    node, left = tree.node_at(state, fact.node, fact.depth), ranges.count(fact.blocks)
    while left > 0:
        left -= node.end - node.start
        assert node.parent is not None
        node = node.parent
    return left < 0
