"""Whatever others commit in between, what an engine was told holds, and all replicas reach one state."""

from __future__ import annotations

import functools

from hypothesis import given

from events.log import EventLog
from events.memory import MemoryTransport
from statecore import invariants
from statecore.index import CacheIndex
from statecore.rejections import StepConflict
from statecore.replica import Replica
from tests.property.histories import BLOCKS, KINDS, Answer, Operation, call, many, operations, thorough
from tests.property.interrupted import Connected, Interrupted
from tests.sim.model import counts

CALLS = tuple(kind for kind in KINDS if kind not in ("commit", "leave", "let go"))
STEPS = many(many(operations(CALLS), 1, 7), 1, 8)

# One content, small pools: the same nodes are split, shared, cut and dropped by both pools all the time.
CHAIN = many(many(operations(("serve", "serve", "match", "release", "release", "hold", "let go"), 1), 1, 7), 1, 8)


def engine_of(transport: MemoryTransport, name: str, pool: str) -> CacheIndex:
    return CacheIndex(Connected(transport), name="i", engine=name, gpu_pool=pool, gpu_blocks=BLOCKS[pool], block_size=1)


def facts_of_life(index: CacheIndex) -> dict[str, tuple[list[int], int]]:
    return {name: (index.table(name), index.path_blocks(name)) for name in index.requests()}


def step(
    index: CacheIndex, calls: list[Operation]
) -> tuple[list[Answer], list[object], dict[str, tuple[list[int], int]]]:
    """One commit of several calls; the answers, what their counts were when given, and the tables seen inside."""
    answers: list[Answer] = []
    told: list[object] = []
    with index.step():
        for operation in calls:
            answers += call(index, operation)
            told = [*told, *[counts(each) for each in answers[len(told) :]]]
        seen = facts_of_life(index)
    return answers, told, seen


def end(transport: MemoryTransport, indexes: list[CacheIndex]) -> None:
    """All replicas, and one that begins now, are one sound state."""
    for index in indexes:
        index.refresh()
    replayed = Replica()
    log = EventLog("i", transport)
    while entries := log.read(replayed.state.position):
        replayed.apply_all(entries)
    assert {index.digest() for index in indexes} == {replayed.digest()}
    assert invariants.violations(replayed.state) == []


@thorough
@given(STEPS | CHAIN, STEPS | CHAIN)
def test_commits_of_other_pools_change_no_outcome(mine: list[list[Operation]], theirs: list[list[Operation]]) -> None:
    """Given engines with pools of their own, when one commits between another's decision and its append, then there is
    no conflict and every table, path and answer is as it was told."""
    transport = Interrupted()
    first, other = engine_of(transport, "e0", "p"), engine_of(transport, "e2", "q")
    for number, calls in enumerate(mine):
        their_calls = theirs[number] if number < len(theirs) else []
        transport.between = functools.partial(step, other, their_calls)
        answers, told, seen = step(first, calls)
        transport.between = None

        assert facts_of_life(first) == seen
        assert [counts(answer) for answer in answers] == told
        assert first.digest() == _replayed_to(transport, first.position)
    assert first.conflicts == other.conflicts == 0
    end(transport, [first, other])


@thorough
@given(STEPS, STEPS)
def test_in_a_shared_pool_a_step_happens_as_told_or_not_at_all(
    mine: list[list[Operation]], theirs: list[list[Operation]]
) -> None:
    """Given engines that share a pool, when one commits in between, then a step stands with the counts it told, or it
    never happened; and what the other was told holds as well."""
    transport = Interrupted()
    first, other = engine_of(transport, "e0", "p"), engine_of(transport, "e1", "p")
    for number, calls in enumerate(mine):
        their_calls = theirs[number] if number < len(theirs) else []
        transport.between = functools.partial(step, other, their_calls)
        before = facts_of_life(first)
        try:
            answers, told, seen = step(first, calls)
        except StepConflict:
            assert facts_of_life(first) == before
        else:
            assert [counts(answer) for answer in answers] == told
            after = facts_of_life(first)
            assert {name: (len(table), path) for name, (table, path) in after.items()} == {
                name: (len(table), path) for name, (table, path) in seen.items()
            }
        transport.between = None
        theirs_now = facts_of_life(other)
        other.refresh()
        assert facts_of_life(other) == theirs_now
        assert first.digest() == _replayed_to(transport, first.position)
    end(transport, [first, other])


def _replayed_to(transport: MemoryTransport, position: int) -> str:
    replayed = Replica()
    replayed.apply_all(EventLog("i", transport).read(0, position))
    return replayed.digest()
