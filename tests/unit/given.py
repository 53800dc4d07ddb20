"""Given a machine in a certain state: short ways to bring one about, and to see that a refusal left no trace.

Owns no expectation about what the machine decides. Blocks hold one token here, so a path is a list of small numbers and
`path(1, 2, 3)` are its three hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from events.facts import Fact, TransferFinished, TransferStarted
from statecore import ranges
from statecore.commands import Allocate, BringIn, Command, Extend, Join, MarkReady, Match, Release
from statecore.decide import decide
from statecore.hashing import SCHEME, HashedTokens
from statecore.invariants import leaked_blocks, violations
from statecore.policy import Policy
from statecore.rejections import Rejection
from statecore.replica import Replica
from statecore.state import Pool, State, request_table

Refusal = TypeVar("Refusal", bound=Rejection)


def path(*tokens: int) -> bytes:
    """Joined hashes of a path of one-token blocks."""
    return HashedTokens.begin(1).extend(tokens).hashes


def join(
    engine: str,
    pool: str = "g",
    blocks: int | None = 8,
    block_size: int = 1,
    host: int | None = None,
    policy: Policy | None = None,
) -> Join:
    """`host`: blocks of the host pool "c", which all engines share; none without."""
    cpu_pool = None if host is None else "c"
    chosen = None if policy is None else policy.fact
    return Join(engine, block_size, SCHEME, pool, blocks, 1, cpu_pool, host, chosen)


def match(engine: str, request: str, *tokens: int, limit: int | None = None) -> Match:
    return Match(engine, request, path(*tokens), len(tokens), limit)


def bring_in(engine: str, request: str, *tokens: int, limit: int | None = None) -> BringIn:
    return BringIn(engine, request, path(*tokens), limit)


def extend(engine: str, request: str, *tokens: int) -> Extend:
    return Extend(engine, request, path(*tokens))


class Machine:
    """A replica whose commits land as soon as they are decided; sound after each, or the test fails."""

    def __init__(self, *commands: Command) -> None:
        self.replica = Replica()
        self.seen: list[Fact] = []
        for command in commands:
            self.do(command)

    @property
    def state(self) -> State:
        return self.replica.state

    def do(self, *commands: Command) -> list[Fact]:
        """The commands become one commit. None of them may be refused."""
        facts: list[Fact] = []
        for command in commands:
            decided = self.replica.propose(command)
            assert not isinstance(decided, Rejection), decided
            facts += decided
            self.must_be_sound()
        if facts:
            position = self.state.position + 1
            self.replica.settle(position, f"c{position}")
        self.seen += facts
        return facts

    def apply(self, *facts: Fact) -> None:
        """Facts as another's commit brings them."""
        self.replica.redo(facts)
        self.must_be_sound()
        self.seen += facts
        position = self.state.position + 1
        self.replica.settle(position, f"c{position}")

    def refuses(self, command: Command, kind: type[Refusal], *said: object) -> Refusal:
        """The command is refused for this reason, its message says these things, and nothing has changed."""
        before = self.replica.digest()
        decided = self.replica.propose(command)
        assert isinstance(decided, kind), decided
        for thing in said:
            assert str(thing) in str(decided), f"{thing!r} is missing in: {decided}"
        self.replica.undo()
        assert self.replica.digest() == before, "a refused command left a trace"
        self.must_be_sound()
        return decided

    def would(self, command: Command) -> Sequence[Fact]:
        """What would be decided; nothing happens."""
        decided = decide(self.state, command)
        assert not isinstance(decided, Rejection), decided
        return decided

    def must_be_sound(self) -> None:
        assert violations(self.state) == []
        assert leaked_blocks(self.state) == 0

    # --- common histories -------------------------------------------------------------------------------------------

    def cache(self, engine: str, *tokens: int, request: str = "warm") -> None:
        """A path is computed and cached; its request has ended."""
        self.serve(engine, request, *tokens)
        self.do(Release(engine, request))

    def serve(self, engine: str, request: str, *tokens: int, ready: bool = True) -> None:
        """A request is matched, gets blocks for all it lacks, and its path covers them; it goes on living."""
        self.do(match(engine, request, *tokens))
        missing = len(tokens) - self.state.engines[engine].requests[request].path_blocks
        commands: list[Command] = [Allocate(engine, request, missing)] if missing else []
        commands.append(extend(engine, request, *tokens))
        if ready:
            commands.append(MarkReady(engine, request))
        self.do(*commands)

    # --- two tiers --------------------------------------------------------------------------------------------------

    def finish(self, transfer: str, *, ok: bool = True) -> None:
        """The workers report, whether anybody still waits or not."""
        self.apply(TransferFinished(transfer, ok, "" if ok else "broken"))

    def fetch(self, engine: str, request: str, *tokens: int, limit: int | None = None) -> list[Fact]:
        """A match as `CacheIndex` makes it: what the GPU holds, then what the host holds."""
        return self.do(match(engine, request, *tokens, limit=limit), bring_in(engine, request, *tokens, limit=limit))

    def swap_out(self, engine: str, *tokens: int) -> None:
        """A path is computed, cached, swapped out and gone from the GPU pool, which is empty before and after."""
        self.cache(engine, *tokens)
        for fact in self.do(Allocate(engine, None, self.pool(engine).blocks)):
            if isinstance(fact, TransferStarted):
                self.finish(fact.transfer)

    def pool(self, engine: str) -> Pool:
        return self.state.pools[self.state.engines[engine].gpu_pool]

    def started(self) -> list[TransferStarted]:
        """Every transfer so far."""
        return [fact for fact in self.seen if isinstance(fact, TransferStarted)]

    def table(self, engine: str, request: str) -> list[int]:
        found = self.state.engines[engine]
        return ranges.ids(request_table(found.requests[request], found.gpu_pool))
