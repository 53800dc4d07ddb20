"""Whatever others commit between a decision and its append: a step stands as it was told or never was, replicas agree."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from events import codec
from events.errors import InvalidInput
from events.facts import SendStarted, TransferFinished, TransferStarted
from events.log import EventLog
from events.memory import MemoryTransport
from events.ports import Commit, RawReply, Record
from statecore import CacheIndex, Policy, Rejection
from statecore.invariants import leaked_blocks, violations
from statecore.replica import Replica
from statecore.results import Allocation, Extension, Match
from statecore.scopes import finish_touches
from tests.property.histories import ENGINES, POOLS, Operation, call, many, operations, thorough
from tests.property.whole_histories import BLOCKS, HOST, POLICIES, Moving

CALLS = (
    *(*("serve",) * 10, *("match",) * 3, *("allocate",) * 2, *("extend",) * 3, *("ready",) * 2, *("release",) * 8),
    *(*("recycle",) * 2, *("hold",) * 4, *("let go",) * 3, *("hold host",) * 2, *("let go host",) * 2),
    *(*("adopt",) * 4, *("send",) * 8, *("cancel",) * 2, *("room",) * 3, *("host room",) * 2),
    *(*("resize",) * 2, *("resize host",) * 2, "pause", "resume", "resume", "resume", "clear", "rejoin"),
)
STEP = many(operations(CALLS), 1, 5)
TURN = st.tuples(st.integers(0, 2), STEP, st.integers(0, 2), STEP, st.integers(0, 11))
"""Who decides and what, who gets in between and with what, and what workers report there."""


class Interrupted(MemoryTransport):
    """A log in memory in which others act between an engine's decision and its append."""

    def __init__(self) -> None:
        super().__init__()
        self.between: Callable[[], object] | None = None

    def append(self, record: Record, **arguments: Any) -> RawReply:
        act, self.between = self.between, None
        if act is not None:
            act()
        return super().append(record, **arguments)


class Connected:
    """A connection whose logs all lie on one transport."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport

    def log(self, index: str, *, follow: bool = True) -> EventLog:
        return EventLog(index, self.transport, follow=follow, sleep=lambda _: None)

    def indexes(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        """Nothing to end."""


class Table:
    """Three engines and their workers around one log, and a replica that reads along."""

    def __init__(self, policy: Policy | None, follow: bool) -> None:
        self.transport = Interrupted()
        self.log = EventLog("i", self.transport)
        self.watch, self.moving = Replica(), Moving()
        self._started: dict[str, TransferStarted | SendStarted] = {}
        self.indexes = [
            CacheIndex(
                Connected(self.transport), name="i", engine=engine, gpu_pool=POOLS[engine],
                gpu_blocks=BLOCKS[POOLS[engine]], block_size=1, cpu_pool=HOST, cpu_blocks=BLOCKS[HOST], policy=policy,
                follow=follow,
            )
            for engine in ENGINES
        ]  # fmt: skip
        self.see()

    def see(self) -> None:
        """Read along, and check every state on the way."""
        while entries := self.log.read(self.watch.state.position):
            for entry in entries:
                self.watch.apply(entry)
                for fact in entry.facts:
                    self.moving.note(fact)
                    if isinstance(fact, TransferStarted | SendStarted):
                        self._started[fact.transfer] = fact
                assert violations(self.watch.state) == []
                assert leaked_blocks(self.watch.state) == 0
                self.moving.must_hold(self.watch.state)

    def report(self, choice: int) -> None:
        """Workers report one of what they move, well or badly, or say something they said before."""
        self.see()
        under_way = self.moving.under_way if choice % 4 else self.moving.ended[-1:]
        if choice < 4 or not under_way:
            return
        transfer, ok = under_way[choice % len(under_way)], choice % 3 != 0
        fact = self._started[transfer]
        touches = finish_touches(fact)[0 if ok else 1] if isinstance(fact, TransferStarted) else ()
        finished = TransferFinished(transfer, ok, "" if ok else "broken")
        head = self.transport.head().position
        record = codec.encode(Commit(f"w{head}", "worker", 0, (finished,), (), ()), at_ms=0)
        with self.transport.changed:
            self.transport.append_unchecked(record, (*touches, "engine:worker"))

    def step(self, index: CacheIndex, calls: list[Operation]) -> None:
        """One commit of several calls. If it stands, tables are as they were seen inside, and answers as they were given."""
        before = tables(index)
        try:
            with index.step():
                answers = [answer for operation in calls for answer in self._call(index, operation)]
                told = [counted(answer) for answer in answers]
                seen = tables(index)
        except Rejection:
            assert before.keys() >= tables(index).keys()
        else:
            assert [counted(answer) for answer in answers] == told
            assert {name: len(table) for name, table in tables(index).items()}.keys() == seen.keys()

    def _call(  # noqa: PLR0912 - one branch per call of the index
        self, index: CacheIndex, operation: Operation
    ) -> list[Match | Allocation | Extension]:
        kind, _, number, _, count = operation
        try:
            match kind:
                case "hold host":
                    return [index.hold_host(count)]
                case "let go host":
                    index.recycle(None, self.held(index, HOST)[:count], tier="cpu")
                case "adopt":
                    index.adopt(f"r{number}", self.held(index, index.gpu_pool)[:count][::-1])
                case "room":
                    index.make_room(count + 1)
                case "host room":
                    index.make_room(count, tier="cpu")
                case "resize":
                    index.resize(count + 4)
                case "resize host":
                    index.resize(count + 2, tier="cpu")
                case "pause":
                    index.pause("weights")
                case "resume":
                    index.resume()
                case "send":
                    self._send(index, f"r{number}", count)
                case "cancel":
                    under_way = self.moving.under_way
                    if under_way:
                        index.cancel(under_way[count % len(under_way)])
                case "clear" | "rejoin":
                    pass  # not within a step
                case _:
                    return call(index, operation)
        except (Rejection, InvalidInput):
            return []
        return []

    def alone(self, index: CacheIndex, calls: list[Operation]) -> None:
        """What cannot be part of a step."""
        for kind, *_ in calls:
            try:
                if kind == "clear":
                    index.clear("weights", timeout=0)
                elif kind == "rejoin":
                    index.rejoin()
            except Rejection:
                pass

    def _send(self, index: CacheIndex, request: str, count: int) -> None:
        receiver = self.indexes[2 if index.gpu_pool == "p" else count % 2]
        source = index.table(request) if request in index.requests() else self.held(index, index.gpu_pool)
        to = self.held(receiver, receiver.gpu_pool)
        blocks = min(count, len(source), len(to))
        index.send(request, source[:blocks], receiver.engine, to[:blocks])

    @staticmethod
    def held(index: CacheIndex, pool: str) -> list[int]:
        def ids(state: Any) -> list[int]:
            held = state.engines[index.engine].held.get(pool)
            return [] if held is None else [block for start, count in held for block in range(start, start + count)]

        return index.inspect(ids)


def counted(answer: Match | Allocation | Extension) -> int:
    return answer.path_blocks if isinstance(answer, Extension) else len(answer.blocks)


def tables(index: CacheIndex) -> dict[str, list[int]]:
    return {name: index.table(name) for name in index.requests()}


@thorough
@given(st.lists(TURN, max_size=14), st.sampled_from(POLICIES), st.booleans())
def test_all_replicas_agree_whoever_was_faster(
    turns: list[tuple[int, list[Operation], int, list[Operation], int]], policy: Policy | None, follow: bool
) -> None:
    """Given three engines that decide while others commit and workers report, then no entry is refused by a replica, every
    state is sound, and at the end all replicas and one that begins now hold the same."""
    table = Table(policy, follow)

    for mine, my_calls, theirs, their_calls, choice in turns:
        first, other = table.indexes[mine], table.indexes[theirs]

        def between(other: CacheIndex, calls: list[Operation], choice: int, same: bool) -> None:
            if not same:
                table.step(other, calls)
                table.alone(other, calls)
            table.report(choice)

        table.transport.between = functools.partial(between, other, their_calls, choice, other is first)
        table.step(first, my_calls)
        table.alone(first, my_calls)
        table.transport.between = None
        table.see()

    for index in table.indexes:
        index.refresh()
    replayed = Replica()
    while entries := table.log.read(replayed.state.position):
        replayed.apply_all(entries)
    assert {index.digest() for index in table.indexes} == {replayed.digest()} == {table.watch.digest()}
