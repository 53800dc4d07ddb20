"""The simulated world: one log in memory, an account of it, and a checker that sees every commit land.

Owns what is true: the log, a replica that is checked after every single fact, a second one that applies entries as an
engine would, the ledger, and the digest at every position. Processes and their faulty transports report here.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import attrs

from events import codec, keys
from events.facts import BlocksAllocated, CopyEvicted, EngineJoined, Fact, PathExtended, PrefixMatched
from events.memory import MemoryTransport
from events.ports import Base, Behind, Diverged, Entry, Fenced, Job, RawAppended, RawConflicted, RawReply, Record
from statecore import invariants, ranges, tree
from statecore.evolve import evolve
from statecore.replica import Replica
from statecore.state import State, request_table
from tests.sim.choices import Choices
from tests.sim.ledger import Intent, Ledger, listed, require

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
    intents: tuple[Intent, ...]
    said_ready: frozenset[str]
    redecided: bool


class World:
    """Everything that is shared. `marks` counts what occurred, `story` tells it."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.log = MemoryTransport()
        self.checker = Replica()
        self.follower = Replica()
        self.ledger = Ledger()
        self.past = {0: self.ledger.copy()}
        self.digests = {0: self.checker.digest()}
        self.landed: dict[str, int] = {}
        self.never: set[str] = set()
        self.late: list[Message] = []
        self.marks: Counter[str] = Counter()
        self.story: list[str] = []
        self.depth = 0
        self.healed = False

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
        )
        tag = f"{what}commit {message.record.commit_id} (on {message.base.position})"
        match reply:
            case RawAppended():
                self.tell(f"{tag} lands at {reply.position}")
                if reply.missed:
                    self.marks["in-between success"] += 1
                self._lands(message, reply.position)
            case RawConflicted():
                self.tell(f"{tag} conflicts on {reply.scope}")
                self.marks["conflict"] += 1
            case Fenced():
                self.tell(f"{tag} is fenced, lowest session {reply.lowest_session}")
                self.marks["fenced"] += 1
            case Behind():
                self.tell(f"{tag} is behind {reply.head}")
                self.marks["behind"] += 1
            case Diverged():
                require(False, "history never diverges here", reply)
        return reply

    def deliver_late(self) -> None:
        """Some of what is still on its way arrives."""
        while self.late and (self.healed or self.choices.chance(35)):
            self.deliver(self.late.pop(0 if self.healed else self.choices.draw(len(self.late))), "late ")

    # --- a commit lands ---------------------------------------------------------------------------------------------

    def _lands(self, message: Message, position: int) -> None:
        (stored,) = self.log.read(position - 1, 1)
        entry = codec.decode(stored)
        require(entry.id == message.record.commit_id, "the log holds what was sent", entry)
        require(position == self.checker.state.position + 1, "positions have no gaps", position)
        require(entry.id not in self.landed, "a commit lands once", entry.id)
        require(entry.id not in self.never, "what was said not to have happened never does", entry.id)
        self.landed[entry.id] = position
        message.process.landed.append(entry.id)
        if not any(isinstance(fact, EngineJoined) and fact.engine == entry.engine for fact in entry.facts):
            life = self.ledger.engines[entry.engine]
            require(life.alive and life.session == entry.session, "a session that is over changes nothing", entry)
        intents = list(message.intents)
        asked = [intents.pop(0) if isinstance(fact, PrefixMatched) else None for fact in entry.facts]
        self._judge(message, entry, asked)
        for fact, intent in zip(entry.facts, asked, strict=True):
            self._apply(message, fact, intent)
        self.checker.settle(position, entry.id)
        self.ledger.commit = position + 1
        self.past[position] = self.ledger.copy()
        self.follower.apply(entry)
        self.digests[position] = self.follower.digest()
        require(self.checker.digest() == self.digests[position], "fact by fact is entry by entry", position)

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
                    evicted += len(listed(fact.blocks))
                    used = {
                        each.used
                        for each in known.pools[fact.pool].cached.values()
                        if each.block in listed(fact.blocks)
                    }
                    require(used == {known.next_to_go(fact.pool)}, "the least recently used goes first", (fact, used))
                case BlocksAllocated():
                    free = sorted(known.pools[fact.pool].free)
                    given = listed(fact.blocks)
                    require(given == free[: len(given)], "lowest ids are given first", (fact, free))
                    require(not evicted or len(given) == len(free), "no more is evicted than is missing", fact)
                    evicted = 0
                case PathExtended():
                    self.marks["duplicate extension"] += bool(fact.duplicates)
            known.enter(fact, intent, message.said_ready)

    def _apply(self, message: Message, fact: Fact, intent: Intent | None) -> None:
        state = self.checker.state
        nodes = len(state.nodes)
        self.marks[type(fact).__name__] += 1
        if isinstance(fact, CopyEvicted):
            self.marks["eviction of a partial run"] += _is_partial(state, fact)
        evolve(state, fact)
        self.marks["split"] += isinstance(fact, PrefixMatched) and len(state.nodes) > nodes
        self.ledger.enter(fact, intent, message.said_ready)
        broken = invariants.violations(state)
        require(not broken, "the invariants hold", (fact, broken))
        self._compare(state, fact)

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
                        cached[node.hashes[place * 16 : place * 16 + 16]] = (block, copy.pending)
            expected = {block_hash: (each.block, each.pending) for block_hash, each in memory.cached.items()}
            require(cached == expected, "cached blocks are as counted", (fact, name))
        for engine in state.engines.values():
            served = (engine.requests_seen, engine.requests_hit, engine.prompt_tokens, engine.matched_tokens)
            seen, hits, asked, found = ledger.engines[engine.name].served
            require(served == (seen, hits, asked, found * state.block_size), "counters are as counted", engine.name)
            for request in engine.requests.values():
                table = ranges.ids(request_table(request, engine.gpu_pool))
                require(table == ledger.table(engine.name, request.id), "tables are as counted", (fact, request.id))
        live = {(engine.name, name) for engine in state.engines.values() for name in engine.requests}
        require(live == ledger.requests.keys(), "requests are as counted", fact)


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
