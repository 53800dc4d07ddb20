"""What must be true of the state that the log gives when it is replayed by somebody who was not there.

Owns the replay: digests at the positions where replicas told theirs, invariants now and then and at the end, ends of
transfers, leaked blocks, and the bytes of every block the cache says it has.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import attrs

from events.facts import BLOCK_HASH_BYTES, TransferFinished, TransferStarted
from events.ports import Entry
from ops.chaos.checks import Finding
from ops.chaos.history import Compared, History
from statecore import ranges
from statecore.invariants import leaked_blocks, violations
from statecore.replica import Replica
from statecore.state import State

CHECKPOINTS: Final = 200
"""Positions at which everything is recounted, spread over the log; the end is one more."""

Matches = Callable[[str, int, bytes], bool]
"""Whether a block of a pool holds the bytes of a hash, in every rank."""


@attrs.frozen
class Replayed:
    """What a replay found.

    Attributes:
        digests: the replicas' against ours; `invariants`, positions at which they were recounted.
        transfers: finished; a wrong one ended twice.
        ends: position of each transfer's end. started: of its start, and its GPU pool.
        leaked, open_transfers: in the end.
        state: in the end.
    """

    digests: Finding
    invariants: Finding
    transfers: Finding
    starts: dict[str, tuple[int, str]]
    ends: dict[str, int]
    leaked: int
    open_transfers: int
    alive: tuple[str, ...]
    state: State


def replay(entries: Sequence[Entry], histories: Iterable[History]) -> Replayed:
    """CorruptState: the entries do not hold a history."""
    told: dict[int, set[tuple[str, str]]] = defaultdict(set)
    for history in histories:
        for line in history.lines:
            if isinstance(line, Compared):
                told[line.position].add((history.process, line.digest))
    every = max(1, len(entries) // CHECKPOINTS)
    replica = Replica()
    different: list[str] = []
    broken: list[str] = []
    compared = checked = 0
    finishes: Counter[str] = Counter()
    starts: dict[str, tuple[int, str]] = {}
    ends: dict[str, int] = {}
    for entry in entries:
        replica.apply(entry)
        for fact in entry.facts:
            if isinstance(fact, TransferStarted):
                starts[fact.transfer] = (entry.position, _gpu_pool(fact))
            if isinstance(fact, TransferFinished):
                finishes[fact.transfer] += 1
                ends[fact.transfer] = entry.position
        if entry.position in told:
            digest = replica.digest()
            compared += len(told[entry.position])
            different += [
                f"{process} had digest {other[:12]} at position {entry.position}, a replay has {digest[:12]}"
                for process, other in sorted(told[entry.position])
                if other != digest
            ]
        if entry.position % every == 0 or entry.position == len(entries):
            checked += 1
            broken += [f"{each} at position {entry.position}" for each in violations(replica.state)]
    beyond = [position for position in told if position > len(entries)]
    different += [f"a replica was at position {position}, the log ends at {len(entries)}" for position in beyond]
    state = replica.state
    return Replayed(
        digests=Finding(compared, tuple(different)),
        invariants=Finding(checked, tuple(broken)),
        transfers=Finding(
            len(finishes),
            tuple(f"transfer {name} ended {times} times" for name, times in finishes.items() if times > 1),
        ),
        starts=starts,
        ends=ends,
        leaked=leaked_blocks(state),
        open_transfers=len(state.transfers) + len(state.sends),
        alive=tuple(sorted(name for name, engine in state.engines.items() if engine.alive)),
        state=state,
    )


def cached_bytes(state: State, matches: Matches) -> Finding:
    """The bytes of every block of every copy that is ready, in every tier, against its hash."""
    looked_at, wrong = 0, []
    for node in state.nodes.values():
        for pool, copy in sorted(node.copies.items()):
            if copy.pending is not None or copy.filling is not None:
                continue
            for place, block in enumerate(ranges.ids(copy.blocks)):
                looked_at += 1
                block_hash = node.hashes[place * BLOCK_HASH_BYTES : (place + 1) * BLOCK_HASH_BYTES]
                if not matches(pool, block, block_hash):
                    wrong.append(f"block {block} of {pool} does not hold what node {node.id} says")
    return Finding(looked_at, tuple(wrong))


def _gpu_pool(fact: TransferStarted) -> str:
    return fact.source if fact.source.startswith("gpu:") else fact.destination
