"""Random histories of everything an index can be asked: two tiers, handovers, sizes, pauses, clearing, and what workers say.

Owns the strategy `OPERATIONS` and `World`, which runs it on a bare replica and keeps a log beside it. Engines e0 and e1
share pool p, e2 has pool q; with a host tier all share pool c. What is checked after every commit is in
`World.must_hold`; what no fact may ever do to a block that a worker is moving is in `Moving`, which knows the facts and
nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from events.facts import (
    BlockRanges,
    BlocksAllocated,
    Fact,
    SendStarted,
    TransferCancelled,
    TransferFinished,
    TransferStarted,
)
from events.ports import Entry
from statecore import commands, ranges
from statecore.commands import Command
from statecore.hashing import SCHEME
from statecore.invariants import leaked_blocks, violations
from statecore.policy import Policy
from statecore.rejections import Rejection
from statecore.replica import Replica
from statecore.state import CPU, GPU, State, request_table
from tests.property.histories import ENGINES, POOLS, Operation, hashes_of, many, operations

BLOCKS = {"p": 8, "q": 7, "c": 6}
HOST = "c"
KINDS = (
    *(*("serve",) * 12, *("match",) * 4, *("allocate",) * 3, *("extend",) * 3, *("ready",) * 3, *("release",) * 8),
    *(*("recycle",) * 3, *("hold",) * 3, *("hold host",) * 2, *("let go",) * 4, *("let go host",) * 2, *("adopt",) * 5),
    *(*("send",) * 8, *("cancel",) * 2, *("room",) * 3, *("host room",) * 2, *("resize",) * 2, *("resize host",) * 2),
    *("pause", "resume", "resume", "resume", "clear", "leave", "lose"),
    *(*("finish",) * 8, *("fail",) * 3, *("finish again",) * 2, *("commit",) * 10),
)
POLICIES = (None, Policy(free_low=0, free_high=0), Policy(free_low=40, free_high=70), Policy("write_through"))
OPERATIONS = many(operations(KINDS), 0, 60)


class Moving:
    """What workers are moving, by the facts alone: blocks that may still be written, blocks whose bytes are counted on."""

    def __init__(self) -> None:
        self._written: dict[str, tuple[str, set[int]]] = {}
        self._sent: dict[str, tuple[str, set[int]]] = {}
        self.ended: list[str] = []

    @property
    def under_way(self) -> list[str]:
        return list(self._written)

    def note(self, fact: Fact) -> None:
        match fact:
            case BlocksAllocated():
                self._must_be_still(fact.pool, fact.blocks)
            case TransferStarted() | SendStarted():
                self._must_be_still(fact.destination, fact.destination_blocks)
                self._written[fact.transfer] = fact.destination, set(ranges.ids(fact.destination_blocks))
                if isinstance(fact, SendStarted):
                    self._sent[fact.transfer] = fact.source, set(ranges.ids(fact.source_blocks))
            case TransferCancelled():
                self._sent.pop(fact.transfer, None)
            case TransferFinished():
                self._sent.pop(fact.transfer, None)
                if self._written.pop(fact.transfer, None) is not None:
                    self.ended.append(fact.transfer)

    def must_hold(self, state: State) -> None:
        for what, moved in (("is being written", self._written), ("is being sent", self._sent)):
            for transfer, (pool, blocks) in moved.items():
                free = blocks.intersection(ranges.ids(tuple(state.pools[pool].free)))
                assert not free, f"pool {pool!r} calls {free} free, which {what} by {transfer!r}"

    def _must_be_still(self, pool: str, blocks: BlockRanges) -> None:
        for transfer, (written, by) in self._written.items():
            common = by.intersection(ranges.ids(blocks))
            assert written != pool or not common, f"blocks {common} are given away while {transfer!r} writes them"


class World:
    """A replica, the commands of its step in progress, and the log of what was committed."""

    def __init__(self, host: bool, policy: Policy | None) -> None:
        self.replica = Replica()
        self.log: list[Entry] = []
        self.moving = Moving()
        self._host, self._policy = host, policy
        self.step: list[Fact] = []
        self._symbols: dict[tuple[str, str], list[int]] = {}
        for engine in ENGINES:
            self.ask(self.join(engine))
            self.commit()

    @property
    def state(self) -> State:
        return self.replica.state

    def join(self, engine: str) -> commands.Join:
        pool = self.state.pools.get(POOLS[engine])
        blocks = BLOCKS[POOLS[engine]] if pool is None else None
        host = BLOCKS[HOST] if self._host and HOST not in self.state.pools else None
        policy = None if self._policy is None else self._policy.fact
        return commands.Join(
            engine, 1, SCHEME, POOLS[engine], blocks, 1, HOST if self._host else None, host, None, policy
        )

    # --- what happens -----------------------------------------------------------------------------------------------

    def ask(self, command: Command) -> Sequence[Fact]:
        """Decide on top of the step. A refusal leaves the digest as it was."""
        before = self.replica.digest()
        facts = self.replica.propose(command)
        if isinstance(facts, Rejection):
            assert self.replica.digest() == before, f"{command} was refused and left a trace: {facts}"
            return ()
        self.step += facts
        self.must_be_sound()
        return facts

    def commit(self) -> None:
        """The step lands, if it has facts."""
        if self.step:
            self._enter(tuple(self.step))
            self.step.clear()

    def report(self, transfer: str, *, ok: bool) -> None:
        """Workers report between two commits."""
        self.commit()
        finished = TransferFinished(transfer, ok, "" if ok else "broken")
        self.replica.redo([finished])
        self._enter((finished,))

    def end_all(self) -> None:
        """Everybody leaves, workers report what they still have, somebody clears."""
        for engine in ENGINES:
            self.ask(commands.Leave(engine))
            self.commit()
        for transfer in self.moving.under_way:
            self.report(transfer, ok=True)
        self.ask(self.join("e0"))
        self.ask(commands.Clear("e0", "the end"))
        self.commit()

    def _enter(self, facts: tuple[Fact, ...]) -> None:
        position, previous = self.state.position + 1, self.state.last_commit_id
        self.log.append(Entry(position, f"c{position}", previous, "", 1, 0, facts))
        self.replica.settle(position, f"c{position}")
        for fact in facts:
            self.moving.note(fact)
        self.must_be_sound()
        self.moving.must_hold(self.state)

    def must_be_sound(self) -> None:
        assert violations(self.state) == []
        assert leaked_blocks(self.state) == 0

    def run(self, operation: Operation) -> None:
        kind, which, number, symbols, count = operation
        engine, name = ENGINES[which], f"r{number}"
        match kind:
            case "commit":
                self.commit()
            case "leave" | "lose":
                if kind == "leave":
                    self.ask(commands.Leave(engine))
                self.ask(self.join(engine))
            case "serve":
                for part in ("match", "allocate", "extend"):
                    self.run((part, which, number, symbols, len(symbols)))
            case "finish" | "fail":
                if under_way := self.moving.under_way:
                    self.report(under_way[number % len(under_way)], ok=kind == "finish")
            case "finish again":
                self.report(self.moving.ended[-1] if self.moving.ended else "nobody:0", ok=count > 2)
            case _:
                command = self.command(kind, engine, name, symbols, count)
                facts = () if command is None else self.ask(command)
                if isinstance(command, commands.Match) and facts:
                    self._symbols[engine, name] = symbols
                    self.ask(commands.BringIn(engine, name, command.hashes))
                elif isinstance(command, commands.Extend) and facts:
                    self._symbols[engine, name] = [*self._symbols[engine, name], *symbols]

    # --- what is asked ----------------------------------------------------------------------------------------------

    def command(  # noqa: PLR0912 - one branch per command
        self, kind: str, engine: str, name: str, symbols: list[int], count: int
    ) -> Command | None:
        match kind:
            case "match":
                return commands.Match(engine, name, hashes_of(symbols), len(symbols))
            case "allocate":
                return commands.Allocate(engine, name, count)
            case "hold":
                return commands.Allocate(engine, None, count)
            case "hold host":
                return commands.AllocateHost(engine, count)
            case "release":
                return commands.Release(engine, name)
            case "room":
                return commands.MakeRoom(engine, GPU, count + 1)
            case "host room":
                return commands.MakeRoom(engine, CPU, count)
            case "resize":
                return commands.Resize(engine, GPU, count + 4)
            case "resize host":
                return commands.Resize(engine, CPU, count + 1)
            case "pause":
                return commands.Pause(engine, "weights")
            case "resume":
                return commands.Resume(engine, "loaded")
            case "clear":
                return commands.Clear(engine, "weights")
            case "cancel":
                under_way = self.moving.under_way
                return (
                    commands.CancelTransfer(engine, under_way[count % len(under_way)], "unwanted")
                    if under_way
                    else None
                )
            case "send":
                return self._send(engine, name, count)
            case _:
                return self._of_own(kind, engine, name, symbols, count)

    def _of_own(self, kind: str, engine: str, name: str, symbols: list[int], count: int) -> Command | None:
        """Commands about blocks that an engine or request has."""
        request = self.state.engines[engine].requests.get(name)
        match kind:
            case "extend" if request is not None:
                known = self._symbols.setdefault((engine, name), []) + symbols
                length = min(request.path_blocks + count, request.path_blocks + ranges.count(request.private))
                return commands.Extend(engine, name, hashes_of(known[:length]))
            case "ready" if request is not None:
                return commands.MarkReady(engine, name, None if count > 2 else min(count, request.path_blocks))
            case "recycle" if request is not None and request.private:
                return commands.Recycle(engine, name, ranges.split(request.private, 1)[0])
            case "let go" | "let go host":
                tier, pool = (GPU, POOLS[engine]) if kind == "let go" else (CPU, HOST)
                held = self.held(engine, pool)[:count]
                return commands.Recycle(engine, None, ranges.of_ids(held), tier) if held else None
            case "adopt" if request is not None:
                held = self.held(engine, POOLS[engine])[:count]
                return commands.Adopt(engine, name, ranges.of_ids(reversed(held))) if held else None
        return None

    def _send(self, engine: str, name: str, count: int) -> Command | None:
        """Blocks of a request, or of its own, to what an engine of the other pool has set aside."""
        receiver = "e2" if POOLS[engine] == "p" else ENGINES[count % 2]
        request = self.state.engines[engine].requests.get(name)
        table = [] if request is None else ranges.ids(request_table(request, POOLS[engine]))
        source = table or self.held(engine, POOLS[engine])
        private = [
            block for each in self.state.engines[receiver].requests.values() for block in ranges.ids(each.private)
        ]
        target = (private if count % 2 else []) or self.held(receiver, POOLS[receiver]) or private
        blocks = min(count, len(source), len(target))
        if not blocks:
            return None
        return commands.Send(
            engine, name, ranges.of_ids(source[:blocks]), receiver, ranges.of_ids(sorted(target)[-blocks:])
        )

    def held(self, engine: str, pool: str) -> list[int]:
        found = self.state.engines[engine].held.get(pool)
        return [] if found is None else ranges.ids(tuple(found))
