"""What must be true when the engines are done, checked by somebody who was not there.

Owns the proofs. The parent process, which made no commit, replays the log from position 0 into a fresh replica and
recounts every invariant on the way; what it arrives at is compared with what the engines hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import attrs

from events.ports import Log
from ops.demo.messages import Replicated
from ops.demo.movements import Movements
from statecore.invariants import leaked_blocks, violations
from statecore.replica import Replica
from statecore.state import State

CHECKPOINTS: Final = 10
"""Positions at which the replay stops to recount everything: at the end nobody runs, and little could be wrong."""


@attrs.frozen
class Replay:
    """A replica made from the log alone.

    Attributes:
        position, digest: where it ends.
        facts: how many the log holds.
        checked_at: positions at which every invariant was recounted, the last one included.
        violations: what was found there, in words.
        leaked_blocks: the most that belonged to nobody at any of them.
        alive: engines that never left.
        free, cached, blocks: of all pools at the end, of both tiers.
        duration_s: of reading and applying the log, without the checks.
        open_transfers: that nobody ever finished.
        movements: what went between the tiers.
    """

    position: int
    digest: str
    facts: int
    checked_at: tuple[int, ...]
    violations: tuple[str, ...]
    leaked_blocks: int
    alive: tuple[str, ...]
    free: int
    cached: int
    blocks: int
    duration_s: float
    open_transfers: int
    movements: Movements


@attrs.frozen
class Bytes:
    """What was found in the blocks that were reused; `block_bytes` of one block, all ranks together."""

    verified_blocks: int
    mismatches: int
    block_bytes: int

    @property
    def verified_bytes(self) -> int:
        return self.verified_blocks * self.block_bytes


@attrs.frozen
class Proof:
    """One claim, whether it holds, and the figures."""

    claim: str
    holds: bool
    shown_by: str


def replay(log: Log, watch: Callable[[int, int], None] = lambda _position, _head: None) -> Replay:
    """Read the whole log into a fresh replica. `watch` is told the position and the head now and then.

    Raises:
        Unavailable: the log cannot be read.
        CorruptState: it does not hold a history.
    """
    replica, head = Replica(), log.head().position
    facts = 0
    checkpoints = {head * number // CHECKPOINTS for number in range(1, CHECKPOINTS)} - {0, head}
    checked: list[int] = []
    found: list[str] = []
    leaked, duration = 0, 0.0
    movements = Movements()

    def check() -> None:
        nonlocal leaked
        checked.append(replica.state.position)
        found.extend(f"{violation} at position {replica.state.position}" for violation in violations(replica.state))
        leaked = max(leaked, abs(leaked_blocks(replica.state)))

    while True:
        start = time.perf_counter()
        entries = log.read(replica.state.position)
        if not entries:
            break
        for entry in entries:
            replica.apply(entry)
            facts += len(entry.facts)
            movements.note(entry.facts, replica.state)
            if entry.position in checkpoints:
                duration += time.perf_counter() - start
                check()
                start = time.perf_counter()
        duration += time.perf_counter() - start
        watch(replica.state.position, head)
    check()
    state, pools = replica.state, replica.state.pools.values()
    return Replay(
        position=state.position,
        digest=replica.digest(),
        facts=facts,
        checked_at=tuple(checked),
        violations=tuple(found),
        leaked_blocks=leaked,
        alive=_alive(state),
        free=sum(pool.free.total for pool in pools),
        cached=sum(pool.unpinned for pool in pools),
        blocks=sum(pool.blocks for pool in pools),
        duration_s=duration,
        open_transfers=len(state.transfers),
        movements=movements,
    )


def proofs(replicas: Sequence[Replicated], replayed: Replay) -> list[Proof]:
    """The claims of the demo, in the order in which they are shown."""
    held = replayed.free + replayed.cached
    return [
        Proof(
            "every engine left in order",
            not replayed.alive,
            ", ".join(f"{name} is still there" for name in replayed.alive)
            or f"{len(replicas)} of {len(replicas)}, by the log",
        ),
        Proof("all engines hold one state", digests_equal(replicas), _digests(replicas)),
        Proof(
            "replaying the log gives it again",
            replay_equal(replicas, replayed),
            f"{replayed.digest[:12]} from {replayed.position:,} commits, {replayed.facts:,} facts, "
            f"in {replayed.duration_s:.1f} s",
        ),
        Proof(
            "invariants hold",
            not replayed.violations,
            replayed.violations[0] if replayed.violations else f"recounted at {len(replayed.checked_at)} positions",
        ),
        Proof(
            "no block leaked",
            leaked(replayed) == 0,
            f"{replayed.free:,} free + {replayed.cached:,} cached = {held:,} of {replayed.blocks:,}",
        ),
    ]


def tier_proofs(replayed: Replay, held: Bytes) -> list[Proof]:
    """The claims that two tiers add."""
    still = f"{replayed.open_transfers:,} of them never ended"
    done = replayed.movements.swap_ins + replayed.movements.swap_outs
    wrong = f"{held.mismatches:,} of {held.verified_blocks:,} blocks held something else"
    return [
        Proof(
            "every transfer ended",
            replayed.open_transfers == 0,
            still if replayed.open_transfers else f"{done:,} done, {replayed.movements.failed:,} failed",
        ),
        Proof(
            "every reused block held its bytes",
            held.mismatches == 0,
            wrong if held.mismatches else f"{held.verified_blocks:,} blocks looked at before they were used",
        ),
    ]


def nothing_left(names: Sequence[str]) -> Proof:
    """After the last process; `names` of shared memory that is still there."""
    return Proof("nothing is left behind", not names, ", ".join(names) or "no process, no shared memory")


def digests_equal(replicas: Sequence[Replicated]) -> bool:
    """Whether all engines stand at one position with one digest."""
    return len(set(replicas)) == 1


def replay_equal(replicas: Sequence[Replicated], replayed: Replay) -> bool:
    """Whether the replay ends where the engines are, with the digest they have."""
    return all(replica == Replicated(replayed.position, replayed.digest) for replica in replicas)


def leaked(replayed: Replay) -> int:
    """Blocks that belonged to nobody, at any check or after everybody left."""
    return max(replayed.leaked_blocks, abs(replayed.blocks - replayed.free - replayed.cached))


def _digests(replicas: Sequence[Replicated]) -> str:
    if digests_equal(replicas):
        return f"{replicas[0].digest[:12]} in {len(replicas)} processes at position {replicas[0].position:,}"
    return ", ".join(f"{replica.digest[:12]} at {replica.position:,}" for replica in replicas)


def _alive(state: State) -> tuple[str, ...]:
    return tuple(sorted(name for name, engine in state.engines.items() if engine.alive))
