"""An engine's scheduler with continuous batching, against any `CacheIndex`: no process, no clock, no model.

Owns who runs, who waits and who gives way. One `step` is one commit, in three parts, so that a step which did not
happen leaves no trace here either:

    plan     inside `with index.step()`: ask the index, write down what would change; nothing of ours changes
    commit   the end of the block: the step is in the log, or StepConflict / Contended and it never was
    apply    only now our own books

| in a step, in this order       | calls                                                                         |
|--------------------------------|-------------------------------------------------------------------------------|
| requests that are finished     | release                                                                       |
| running, oldest first: prompt  | extend, over the blocks the next chunk of it fills                            |
| running, oldest first: output  | allocate when a block boundary is crossed, extend when a block is full        |
| the pool is exhausted          | release the newest running request and put it first in line                   |
| waiting, in order of arrival   | match, allocate the rest of the prompt, extend over its first chunk           |

A step stands for as many passes of a model as a block has tokens: every running request gains up to one block of
output. What a step extends is pending in the index until the next step speaks of the request, as in engines that put
blocks into the tree when they schedule them; so a finished request is released one step after its last token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum, auto

import attrs

from events.errors import OutcomeUnknown
from ops.demo.sequence import Sequence
from ops.trace import TraceRequest
from statecore import Allocation, CacheIndex, Contended, PoolExhausted, StepConflict

STALLS_MAX = 8
"""Steps in a row that a lone request waits for a block before it gives its own back: two engines of one pool, each
waiting for the other's blocks, would wait for ever."""


@attrs.frozen
class Limits:
    """Of one step and one engine. The defaults are those of production engines.

    Attributes:
        step_tokens: tokens computed in a step, prompts and output together.
        chunk_tokens: tokens of one prompt computed in a step.
        running_max: requests that run at a time.
    """

    step_tokens: int = 8192
    chunk_tokens: int = 2048
    running_max: int = 32


@attrs.define
class Tally:
    """What an engine has done.

    Attributes:
        requests: served to the end.
        refused: that need more blocks than the pool has.
        prompt_tokens, reused_tokens: of requests admitted, each counted at its first admission.
        evicted_blocks: dropped from the cache to make room for this engine.
        preemptions: requests that gave their blocks back in the middle.
        steps: that stand; lost_steps: that never happened because another engine was faster.
    """

    requests: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    evicted_blocks: int = 0
    preemptions: int = 0
    steps: int = 0
    lost_steps: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that were cached, 0 to 1."""
        return self.reused_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @classmethod
    def sum(cls, tallies: Iterable[Tally]) -> Tally:
        """Of several engines."""
        return cls(*(sum(counts) for counts in zip(*(attrs.astuple(tally) for tally in tallies), strict=True)))


class Outcome(Enum):
    """What came of a step."""

    PROGRESS = auto()
    LOST = auto()  # it never happened
    SHORT = auto()  # no blocks to go on with: others must release some
    AHEAD = auto()  # the next request is not due yet
    DONE = auto()  # nothing runs, nothing waits


@attrs.define
class _Advance:
    """Tokens a running request gains, and the blocks it was given for them."""

    sequence: Sequence
    tokens: int
    hashed: int
    allocation: Allocation | None


@attrs.define
class _Admission:
    """A request that begins to run: where it starts, and its first chunk."""

    cached_tokens: int
    cached_blocks: int
    first: _Advance


@attrs.define
class _Plan:
    """What changes in our books if the step stands."""

    released: list[Sequence] = attrs.Factory(list)
    preempted: list[Sequence] = attrs.Factory(list)
    advanced: list[_Advance] = attrs.Factory(list)
    refused: list[Sequence] = attrs.Factory(list)
    admitted: list[_Admission] = attrs.Factory(list)
    stalled: bool = False
    short: bool = False

    @property
    def changes(self) -> bool:
        return bool(self.released or self.preempted or self.advanced or self.refused or self.admitted)


class Scheduler:
    """The requests of one engine, first come first served.

    Attributes:
        waiting, running: in order of arrival, and of admission.
        tally: what was done so far.
    """

    def __init__(
        self,
        index: CacheIndex,
        requests: Iterable[tuple[int, TraceRequest]],
        limits: Limits | None = None,
        is_due: Callable[[int], bool] = lambda _number: True,
    ) -> None:
        """`requests` come with their numbers in the trace; one waits until `is_due` says so for its number."""
        self.index = index
        self.limits = limits or Limits()
        self.waiting = deque(Sequence(number, request, index.block_size) for number, request in requests)
        self.running: list[Sequence] = []
        self.tally = Tally()
        self._is_due = is_due
        self._stalls = 0
        self._pool_blocks = index.inspect(lambda state: state.pools[index.gpu_pool].blocks)

    @property
    def next_number(self) -> int | None:
        """Number of the request that is first in line; None when nobody waits."""
        return self.waiting[0].number if self.waiting else None

    @property
    def is_ahead(self) -> bool:
        """Whether the request that is first in line is not due yet."""
        return bool(self.waiting) and not self._is_due(self.waiting[0].number)

    def step(self) -> Outcome:
        """One scheduler step, one commit.

        Raises:
            Unavailable, CorruptState, SessionOver: as `CacheIndex.step`; our books are as before.
        """
        if not self.running and not self.waiting:
            return Outcome.DONE
        plan = _Plan()
        try:
            with self.index.step():
                self._plan(plan)
        except (StepConflict, Contended):
            self.tally.lost_steps += 1
            return Outcome.LOST
        except OutcomeUnknown:
            if not self.index.resolve():
                self.tally.lost_steps += 1
                return Outcome.LOST
        self._apply(plan)
        if plan.changes:
            return Outcome.PROGRESS
        return Outcome.SHORT if plan.short else Outcome.AHEAD

    # --- plan -------------------------------------------------------------------------------------------------------

    def _plan(self, plan: _Plan) -> None:
        for sequence in self.running:
            if sequence.finished:
                self.index.release(sequence.id)
                plan.released.append(sequence)
        going = [sequence for sequence in self.running if not sequence.finished]
        budget = self._plan_running(plan, going, self.limits.step_tokens)
        if not plan.preempted and not plan.stalled:
            self._plan_waiting(plan, len(going), budget)

    def _plan_running(self, plan: _Plan, going: list[Sequence], budget: int) -> int:
        """Returns what is left of the budget. Preempted requests leave `going`."""
        turn = 0
        while turn < len(going) and budget:
            sequence = going[turn]
            tokens = sequence.next_tokens(sequence.computed, self.limits.chunk_tokens, budget)
            missing = max(0, sequence.blocks_for(sequence.computed + tokens) - sequence.blocks)
            allocation = self._allocate(plan, going, sequence, missing) if missing else None
            if allocation is not None or not missing:
                hashed = self._extend(sequence, sequence.computed + tokens, sequence.hashed)
                plan.advanced.append(_Advance(sequence, tokens, hashed, allocation))
                budget -= tokens
                turn += 1
            elif plan.stalled:
                break
        return budget

    def _allocate(self, plan: _Plan, going: list[Sequence], sequence: Sequence, blocks: int) -> Allocation | None:
        """Blocks for a running request, if need be at the cost of the newest; None when that is the request itself."""
        while True:
            try:
                return self.index.allocate(sequence.id, blocks)
            except PoolExhausted:
                plan.short = True
                if len(going) == 1 and self._stalls < STALLS_MAX:
                    plan.stalled = True
                    return None
                newest = going.pop()
                self.index.release(newest.id)
                plan.preempted.append(newest)
                if newest is sequence:
                    return None

    def _plan_waiting(self, plan: _Plan, running: int, budget: int) -> None:
        for sequence in self.waiting:
            if not budget or running >= self.limits.running_max or not self._is_due(sequence.number):
                return
            if sequence.blocks_at_end > self._pool_blocks:  # the index would say NeverFits, but only at the last block
                plan.refused.append(sequence)
                continue
            blocks = sequence.blocks_for(sequence.known)
            if not self.index.can_allocate(blocks + running):  # leave every running request its next block
                plan.short = True
                return
            admission = self._admit(sequence, blocks, budget)
            plan.admitted.append(admission)
            budget -= admission.first.tokens
            running += 1

    def _admit(self, sequence: Sequence, blocks: int, budget: int) -> _Admission:
        """The caller knows that the pool can give the blocks. At least one token is computed, as engines need it."""
        size, known = self.index.block_size, sequence.known
        hashed = known // size
        match = self.index.match(
            sequence.id,
            hashes=sequence.hashes(0, hashed),
            prompt_tokens=known,
            limit=max(0, known - 1) // size,
        )
        rest = blocks - len(match.blocks)
        allocation = self.index.allocate(sequence.id, rest) if rest else None
        tokens = min(known - match.tokens, self.limits.chunk_tokens, budget)
        self._extend(sequence, match.tokens + tokens, hashed)
        first = _Advance(sequence, tokens, hashed, allocation)
        return _Admission(match.tokens, len(match.blocks), first)

    def _extend(self, sequence: Sequence, computed: int, hashed: int) -> int:
        """Put the blocks that `computed` tokens fill into the tree; returns how many hashes the index knows then.

        The path may stop short where another engine is computing the same content; the next call goes on from there.
        """
        full = computed // sequence.block_size
        if full > hashed:
            self.index.extend(sequence.id, hashes=sequence.hashes(hashed, full))
        else:
            self.index.extend(sequence.id, blocks=full)
        return max(full, hashed)

    # --- apply ------------------------------------------------------------------------------------------------------

    def _apply(self, plan: _Plan) -> None:
        tally = self.tally
        tally.steps += plan.changes
        tally.requests += len(plan.released)
        tally.refused += len(plan.refused)
        tally.preemptions += len(plan.preempted)
        self._stalls = self._stalls + 1 if plan.stalled else 0
        for advance in plan.advanced:
            self._apply_advance(advance)
        for _ in range(len(plan.refused) + len(plan.admitted)):
            self.waiting.popleft()
        gone = {id(sequence) for sequence in (*plan.released, *plan.preempted)}
        self.running = [sequence for sequence in self.running if id(sequence) not in gone]
        for sequence in plan.preempted:
            sequence.restart()
            self.waiting.appendleft(sequence)
        for admission in plan.admitted:
            self._apply_admission(admission)

    def _apply_advance(self, advance: _Advance) -> None:
        sequence = advance.sequence
        sequence.advance(advance.tokens)
        sequence.hashed = advance.hashed
        if advance.allocation is not None:
            sequence.blocks += len(advance.allocation.blocks)
            self.tally.evicted_blocks += advance.allocation.evicted

    def _apply_admission(self, admission: _Admission) -> None:
        sequence = admission.first.sequence
        sequence.computed, sequence.blocks = admission.cached_tokens, admission.cached_blocks
        sequence.admissions += 1
        if sequence.admissions == 1:
            self.tally.prompt_tokens += sequence.prompt_tokens
            self.tally.reused_tokens += admission.cached_tokens
        self._apply_advance(admission.first)
        self.running.append(sequence)
