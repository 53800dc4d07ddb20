"""Random histories for properties: small operations that mean something on any state, and a machine to run them on.

Owns the strategy `OPERATIONS` and two readers of it: `Machine` runs an operation as a command on a bare replica,
`call` as a call on a `CacheIndex`. Engines e0 and e1 share pool p, e2 has pool q: nodes get copies in both.
"""

from __future__ import annotations

from typing import TypeAlias, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from events.errors import InvalidInput
from events.facts import Fact
from statecore import commands, ranges
from statecore.commands import Command
from statecore.hashing import SCHEME, HashedTokens
from statecore.index import CacheIndex
from statecore.rejections import Rejection
from statecore.replica import Replica
from statecore.results import Allocation, Extension, Match
from statecore.state import Request, State
from tests.sim.accounts import Intent
from tests.sim.ledger import Ledger

T = TypeVar("T")

POOLS = {"e0": "p", "e1": "p", "e2": "q"}
BLOCKS = {"p": 5, "q": 6}
ENGINES = tuple(POOLS)

Operation: TypeAlias = tuple[str, int, int, list[int], int]
"""What, which engine, which request, block contents, a small number."""

Answer: TypeAlias = Match | Allocation | Extension

SYMBOLS = st.lists(st.integers(0, 1), min_size=1, max_size=5)
KINDS = (
    *("match", "match", "serve", "serve", "serve", "serve"),
    *("allocate", "extend", "extend", "ready", "release", "release", "release"),
    *("recycle", "hold", "hold", "let go", "leave", "commit", "commit", "commit"),
)
thorough = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def operations(kinds: tuple[str, ...] = KINDS, contents: int = 2) -> st.SearchStrategy[Operation]:
    """One number each, taken apart: quick to draw, and it shrinks to the first kind, engine, request and content."""

    def taken_apart(number: int) -> Operation:
        parts = []
        for size in (len(kinds), 3, 3, 5, 5):
            number, part = divmod(number, size)
            parts.append(part)
        kind, which, request, count, length = parts
        return kinds[kind], which, request, [(number >> bit & 1) % contents for bit in range(length + 1)], count + 1

    return st.integers(0, len(kinds) * 3 * 3 * 5 * 5 * 32 - 1).map(taken_apart)


def many(strategy: st.SearchStrategy[T], least: int, most: int) -> st.SearchStrategy[list[T]]:
    """Lists of every size alike: hypothesis by itself prefers short ones."""
    return st.integers(least, most).flatmap(lambda size: st.lists(strategy, min_size=size, max_size=size))


OPERATIONS = many(operations(), 0, 40)


def hashes_of(symbols: list[int]) -> bytes:
    return HashedTokens.begin(1).extend(symbols).hashes


class Machine:
    """A replica, the ledger beside it, the sequences of its requests, and every fact decided."""

    def __init__(self) -> None:
        self.replica = Replica()
        self.ledger = Ledger()
        self.symbols: dict[tuple[str, str], list[int]] = {}
        self.decided: list[Fact] = []
        for engine in ENGINES:
            self.join(engine)
        self.commit()

    def commit(self) -> None:
        position = self.replica.state.position + 1
        self.replica.settle(position, f"c.{position}")
        self.ledger.commit = position + 1

    def join(self, engine: str) -> None:
        pool = POOLS[engine]
        self.propose(commands.Join(engine, 1, SCHEME, pool, BLOCKS[pool], 1))

    def propose(self, command: Command, ready: str = "") -> tuple[Fact, ...]:
        """Facts, entered in the ledger too; none if it was refused."""
        facts = self.replica.propose(command)
        if isinstance(facts, Rejection):
            return ()
        for fact in facts:
            intent = Intent(command.hashes, command.limit) if isinstance(command, commands.Match) else None
            self.ledger.enter(fact, intent, frozenset([ready]))
        self.decided += facts
        return tuple(facts)

    def request(self, engine: str, name: str) -> Request | None:
        return self.replica.state.engines[engine].requests.get(name)

    def run(self, operation: Operation) -> None:
        kind, which, number, symbols, count = operation
        engine, name = ENGINES[which], f"r{number}"
        if kind == "commit":
            self.commit()
        elif kind == "leave":
            self.propose(commands.Leave(engine))
            self.join(engine)
        elif kind == "serve":
            for part in ("match", "allocate", "extend"):
                self.run((part, which, number, symbols, len(symbols)))
        else:
            ready = name if kind == "ready" else ""
            command = self.command(kind, engine, name, symbols, count)
            facts = () if command is None else self.propose(command, ready)
            if facts and kind == "match":
                self.symbols[engine, name] = symbols
            elif facts and isinstance(command, commands.Extend):
                self.symbols[engine, name] = self._longer(engine, name, symbols)[: len(command.hashes) // 16]

    def _longer(self, engine: str, name: str, symbols: list[int]) -> list[int]:
        return self.symbols[engine, name] + symbols

    def command(self, kind: str, engine: str, name: str, symbols: list[int], count: int) -> Command | None:
        request = self.request(engine, name)
        match kind:
            case "match":
                return commands.Match(engine, name, hashes_of(symbols), len(symbols), None if count > 1 else 2)
            case "allocate":
                return commands.Allocate(engine, name, count)
            case "hold":
                return commands.Allocate(engine, None, count)
            case "extend" if request is not None:
                length = min(request.path_blocks + count, request.path_blocks + ranges.count(request.private))
                return commands.Extend(engine, name, hashes_of(self._longer(engine, name, symbols)[:length]))
            case "ready" if request is not None:
                return commands.MarkReady(engine, name, None if count > 2 else min(count, request.path_blocks))
            case "release":
                return commands.Release(engine, name)
            case "recycle" if request is not None and request.private:
                return commands.Recycle(engine, name, ranges.split(request.private, 1)[0])
            case "let go":
                held = self.replica.state.engines[engine].held.get(POOLS[engine])
                return (
                    commands.Recycle(engine, None, held.lowest(min(count, held.total))) if held and held.total else None
                )
        return None


def call(index: CacheIndex, operation: Operation) -> list[Answer]:
    """The same operation as calls of an index; what is refused counts as not asked."""
    kind, _, number, symbols, count = operation
    name = f"r{number}"
    try:
        match kind:
            case "serve":
                parts = ("match", "allocate", "extend")
                return [answer for part in parts for answer in call(index, (part, 0, number, symbols, len(symbols)))]
            case "match":
                return [index.match(name, symbols, limit=None if count > 1 else 2)]
            case "allocate":
                return [index.allocate(name, count)]
            case "hold":
                return [index.allocate(None, count)]
            case "extend":
                known = len(index.table(name))
                return [index.extend(name, symbols, blocks=min(known, index.path_blocks(name) + count))]
            case "ready":
                index.ready(name)
            case "release":
                index.release(name)
            case "let go":
                index.recycle(None, held_by(index)[:count])
            case "recycle":
                index.recycle(name, index.table(name)[index.path_blocks(name) :][:1])
    except (Rejection, InvalidInput):
        return []
    return []


def held_by(index: CacheIndex) -> list[int]:
    """Blocks the engine holds without a request."""

    def ids(state: State) -> list[int]:
        held = state.engines[index.engine].held.get(index.gpu_pool)
        return [] if held is None else ranges.ids(tuple(held))

    return index.inspect(ids)
