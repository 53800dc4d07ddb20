"""An engine's scheduler with continuous batching, against any `CacheIndex`: no process, no clock, no model.

Owns who runs, who waits and who gives way. One `step` is one commit, in three parts, so that a step which did not
happen leaves no trace here either:

    plan     inside `with index.step()`: ask the index, write down what would change; nothing of ours changes
    commit   the end of the block: the step is in the log, or StepConflict / Contended and it never was
    apply    only now our own books, and the bytes of what was computed

| in a step, in this order       | calls                                                                         |
|--------------------------------|-------------------------------------------------------------------------------|
| before it: blocks on their way | poll; all there: look at their bytes; else the path is shorter, compute more  |
| requests that are finished     | release                                                                       |
| running, oldest first: prompt  | extend, over the blocks the next chunk of it fills                            |
| running, oldest first: output  | allocate when a block boundary is crossed, extend when a block is full        |
| the pool is exhausted          | release the newest running request and put it first in line                   |
| waiting, in order of arrival   | match, allocate the rest of the prompt, extend over its first chunk           |

A step stands for as many passes of a model as a block has tokens: every running request gains up to one block of
output. What a step extends is pending in the index until the next step speaks of the request, as in engines that put
blocks into the tree when they schedule them; so a finished request is released one step after its last token.

Nobody waits inside a step. A request whose blocks come from the host holds its place and computes nothing; one that is
told "not yet", because blocks must leave for the host first, asks again in a later step, and nobody newer is given any
before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from events.errors import OutcomeUnknown
from ops.demo.contents import NO_CONTENTS, Contents
from ops.demo.plan import Admission, Advance, Outcome, Plan
from ops.demo.sequence import Sequence
from ops.demo.tally import Limits, Tally
from ops.trace import TraceRequest
from statecore import Allocation, CacheIndex, Contended, PoolExhausted, StepConflict
from statecore.tiers import transfers_of

STALLS_MAX = 8
"""Steps in a row that a lone request waits for a block before it gives its own back: two engines of one pool, each
waiting for the other's blocks, would wait for ever."""


class Scheduler:
    """The requests of one engine, first come first served.

    Attributes:
        waiting, running: in order of arrival, and of admission.
        tally: what was done so far.
        waits_for: after `MOVING`, a transfer to wait for.
    """

    def __init__(
        self,
        index: CacheIndex,
        requests: Iterable[tuple[int, TraceRequest]],
        limits: Limits | None = None,
        is_due: Callable[[int], bool] = lambda _number: True,
        contents: Contents = NO_CONTENTS,
    ) -> None:
        """`requests` come with their numbers in the trace; one waits until `is_due` says so for its number."""
        self.index = index
        self.limits = limits or Limits()
        self.waiting = deque(Sequence(number, request, index.block_size) for number, request in requests)
        self.running: list[Sequence] = []
        self.tally = Tally()
        self.waits_for: str | None = None
        self._is_due = is_due
        self._contents = contents
        self._stalls = 0
        self._doubtful: Plan | None = None
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
            OutcomeUnknown: the step may stand; the next call finds out and goes on from there.
        """
        if self._doubtful is not None:
            return self._settle(self._doubtful)
        if not self.running and not self.waiting:
            return Outcome.DONE
        self._receive()
        plan = Plan()
        try:
            with self.index.step():
                self._plan(plan)
        except (StepConflict, Contended):
            self.tally.lost_steps += 1
            return Outcome.LOST
        except OutcomeUnknown:
            self._doubtful = plan
            return self._settle(plan)
        return self._stands(plan)

    def _settle(self, plan: Plan) -> Outcome:
        """Find out what became of a step whose outcome is unknown."""
        stands = self.index.resolve()
        self._doubtful = None
        if not stands:
            self.tally.lost_steps += 1
            return Outcome.LOST
        return self._stands(plan)

    def _stands(self, plan: Plan) -> Outcome:
        self._apply(plan)
        if plan.changes:
            return Outcome.PROGRESS
        self.waits_for = self._under_way(plan)
        if self.waits_for is not None:
            return Outcome.MOVING
        return Outcome.SHORT if plan.short else Outcome.AHEAD

    # --- before a step ----------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Requests whose blocks have come can go on; those whose have not, too, from further up."""
        for sequence in self.running:
            if sequence.waits_for and not any(self.index.poll(each).under_way for each in sequence.waits_for):
                sequence.waits_for = ()
                self._cut_to(sequence, self.index.path_blocks(sequence.id))
                self._verify(sequence)

    def _cut_to(self, sequence: Sequence, blocks: int) -> None:
        missing = sequence.computed - blocks * sequence.block_size
        if missing:
            self.tally.cut += 1
            sequence.computed -= missing
            sequence.blocks = len(self.index.table(sequence.id))
            if sequence.admissions == 1:
                self.tally.reused_tokens -= missing

    def _under_way(self, plan: Plan) -> str | None:
        """A transfer that keeps us from going on."""
        for sequence in self.running:
            if sequence.waits_for:
                return next((each for each in sequence.waits_for if self.index.poll(each).under_way), None)
        if plan.waits_for:
            return plan.waits_for[0]
        if not plan.short:
            return None
        own = self.index.inspect(lambda state: transfers_of(state, self.index.gpu_pool))
        return own[0].id if own else None

    # --- plan -------------------------------------------------------------------------------------------------------

    def _plan(self, plan: Plan) -> None:
        for sequence in self.running:
            if sequence.finished:
                self.index.release(sequence.id)
                plan.released.append(sequence)
        going = [sequence for sequence in self.running if not sequence.finished]
        budget = self._plan_running(plan, going, self.limits.step_tokens)
        if not plan.preempted and not plan.short:
            self._plan_waiting(plan, len(going), budget)

    def _plan_running(self, plan: Plan, going: list[Sequence], budget: int) -> int:
        """Returns what is left of the budget. Preempted requests leave `going`."""
        turn = 0
        while turn < len(going) and budget:
            sequence = going[turn]
            if sequence.waits_for:
                turn += 1
                continue
            tokens = sequence.next_tokens(sequence.computed, self.limits.chunk_tokens, budget)
            missing = max(0, sequence.blocks_for(max(sequence.known, sequence.computed + tokens)) - sequence.blocks)
            allocation = self._allocate(plan, going, sequence, missing) if missing else None
            if plan.stalled:
                break
            if turn == len(going):  # it was the newest itself, and has given way
                continue
            if allocation is not None or not missing:
                hashed = self._extend(sequence, sequence.computed + tokens, sequence.hashed)
                plan.advanced.append(Advance(sequence, tokens, hashed, allocation))
                budget -= tokens
            turn += 1
        return budget

    def _allocate(self, plan: Plan, going: list[Sequence], sequence: Sequence, blocks: int) -> Allocation | None:
        """Blocks for a running request, if need be at the cost of the newest; None: not in this step."""
        while plan.without_room is None:
            try:
                allocation = self.index.allocate(sequence.id, blocks)
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
            else:
                if allocation.blocks:
                    return allocation
                self._must_wait(plan, allocation)
        return None

    def _must_wait(self, plan: Plan, allocation: Allocation) -> None:
        plan.short = True
        plan.without_room = allocation

    def _plan_waiting(self, plan: Plan, running: int, budget: int) -> None:
        for sequence in self.waiting:
            if not budget or running >= self.limits.running_max or not self._is_due(sequence.number):
                return
            if sequence.blocks_at_end > self._pool_blocks:  # the index would say NeverFits, but only at the last block
                plan.refused.append(sequence)
                continue
            blocks = sequence.blocks_for(sequence.known)
            if plan.without_room is not None or not self.index.can_allocate(
                blocks + running
            ):  # leave each running one its next block
                plan.short = True
                return
            admission = self._admit(plan, sequence, blocks, budget)
            plan.admitted.append(admission)
            budget -= admission.first.tokens
            running += 1

    def _admit(self, plan: Plan, sequence: Sequence, blocks: int, budget: int) -> Admission:
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
        tokens = 0
        if allocation is not None and not allocation.blocks:
            self._must_wait(plan, allocation)
        elif not match.waits_for:
            tokens = min(known - match.tokens, self.limits.chunk_tokens, budget)
            self._extend(sequence, match.tokens + tokens, hashed)
        return Admission(match, Advance(sequence, tokens, hashed, allocation))

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

    def _apply(self, plan: Plan) -> None:
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
        for admission in plan.admitted:  # when all is computed: one may begin on what another of this step brought
            if not admission.match.waits_for:
                self._verify(admission.first.sequence, admission.match.tokens)

    def _apply_advance(self, advance: Advance) -> None:
        sequence, size = advance.sequence, advance.sequence.block_size
        first = sequence.computed // size
        sequence.advance(advance.tokens)
        sequence.hashed = advance.hashed
        if advance.allocation is not None:
            sequence.blocks += len(advance.allocation.blocks)
            self.tally.evicted_blocks += advance.allocation.evicted
        full = sequence.computed // size
        if full > first and self._contents is not NO_CONTENTS:
            self._contents.fill(self.index.table(sequence.id)[first:full], sequence.hashes(first, full))

    def _apply_admission(self, admission: Admission) -> None:
        sequence, match = admission.first.sequence, admission.match
        sequence.computed, sequence.blocks, sequence.waits_for = match.tokens, len(match.blocks), match.waits_for
        sequence.admissions += 1
        if sequence.admissions == 1:
            self.tally.prompt_tokens += sequence.prompt_tokens
            self.tally.reused_tokens += match.tokens
        self._apply_advance(admission.first)
        self.running.append(sequence)

    def _verify(self, sequence: Sequence, tokens: int | None = None) -> None:
        """Look at the bytes of what a request reuses: its first `tokens`, default all it has so far."""
        blocks = (sequence.computed if tokens is None else tokens) // sequence.block_size
        if blocks and self._contents is not NO_CONTENTS:
            self.tally.verified_blocks += blocks
            table = self.index.table(sequence.id)[:blocks]
            self.tally.mismatches += self._contents.wrong(table, sequence.hashes(0, blocks))
