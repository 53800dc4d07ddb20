"""How the answer of a call is read off the state after its facts.

Owns the filling of `results.py`. Called again when a step is decided again, so an answer always says what the state says.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from events.facts import BlocksAllocated, CopyEvicted, Fact, PathExtended, SendStarted, TransferStarted
from statecore import ranges
from statecore.results import Allocation, Extension, Handover, Match, Room
from statecore.state import GPU, State, request_table
from statecore.tiers import transfers_of
from statecore.tree import path_nodes


@attrs.frozen
class Answers:
    """Answers to one engine, whose requests live in one pool."""

    engine: str
    gpu_pool: str

    def match(self, state: State, _facts: Sequence[Fact], answer: Match) -> None:
        request = state.engines[self.engine].requests[answer.request]
        answer.blocks = ranges.ids(request_table(request, self.gpu_pool))
        answer.tokens = len(answer.blocks) * state.block_size
        answer.host_tokens = 0
        waits_for: dict[str, None] = {}
        for node in path_nodes(request.leaf):
            filling = node.copies[self.gpu_pool].filling
            if filling is not None:
                answer.host_tokens += (node.end - node.start) * state.block_size
                waits_for[filling] = None
        answer.waits_for = tuple(reversed(waits_for))

    def allocation(self, state: State, facts: Sequence[Fact], answer: Allocation) -> None:
        answer.evicted = 0
        answer.blocks = []
        for fact in facts:
            if isinstance(fact, CopyEvicted) and fact.pool == self.gpu_pool:
                answer.evicted += ranges.count(fact.blocks)
            elif isinstance(fact, BlocksAllocated):
                answer.blocks = ranges.ids(fact.blocks)
        waiting = () if answer.blocks else transfers_of(state, self.gpu_pool)
        answer.waits_for = tuple(transfer.id for transfer in waiting)

    def room(self, state: State, facts: Sequence[Fact], answer: Room) -> None:
        started = [fact for fact in facts if isinstance(fact, TransferStarted)]
        name = self.gpu_pool if answer.tier == GPU else state.engines[self.engine].cpu_pool
        evicted = [fact.blocks for fact in facts if isinstance(fact, CopyEvicted) and fact.pool == name]
        answer.evicted = sum(map(ranges.count, evicted))
        answer.leaving = sum(ranges.count(fact.source_blocks) for fact in started)
        answer.waits_for = tuple(fact.transfer for fact in started)

    def handover(self, _state: State, facts: Sequence[Fact], answer: Handover) -> None:
        answer.transfer = next(fact.transfer for fact in facts if isinstance(fact, SendStarted))

    def extension(self, state: State, facts: Sequence[Fact], answer: Extension) -> None:
        answer.path_blocks = state.engines[self.engine].requests[answer.request].path_blocks
        answer.duplicates = sum(ranges.count(fact.duplicates) for fact in facts if isinstance(fact, PathExtended))


def no_answer(_state: State, _facts: Sequence[Fact], _answer: object) -> None:
    """For calls that answer by returning."""
