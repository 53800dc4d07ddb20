"""A synthetic trace that behaves like the recorded one, so that the project ships no recording.

Owns how conversations come, grow and stop; every number it uses is in `fitted.py`. New
conversations are a Poisson stream. After each turn a conversation stops, or draws how long until
the next turn and what that turn is: an extension (previous prompt, its answer, a new message), a
repeat, or a fork (an early part of the previous prompt, then other text). The clock runs for a
while before the first request is shown, because a recording starts in the middle of things, too.

Only uniform draws of PCG64 are used, in arrival order: the same seed gives the same trace on every
machine, and a shorter trace is the beginning of a longer one.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import count, islice
from math import log
from typing import TypeVar

import numpy as np

from ops.trace import fitted
from ops.trace.format import TRACE_BLOCK_TOKENS, TraceRequest

DRAWS_PER_BATCH = 4096

Value = TypeVar("Value")


def generate(requests: int, seed: int) -> Iterator[TraceRequest]:
    """The first `requests` requests of the synthetic trace of this seed, in order of arrival.

    Ids are given in order of appearance, from 0 (the system prompt, in every request). Memory grows
    with the conversations that go on, not with `requests`.

    Raises:
        ValueError: at once; requests is not an integer >= 1, or seed is not an integer >= 0.
    """
    _check_at_least("requests", requests, 1)
    _check_at_least("seed", seed, 0)
    return islice(_endless(_Draws(seed)), requests)


class _Draws:
    """Uniform numbers below 1, and what is made of them."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._batch: Iterator[float] = iter(())

    def uniform(self) -> float:
        for value in self._batch:
            return value
        batch: list[float] = self._generator.random(DRAWS_PER_BATCH).tolist()
        self._batch = iter(batch)
        return next(self._batch)

    def exponential(self) -> float:
        return -log(1.0 - self.uniform())

    def happens(self, probability: float) -> bool:
        return self.uniform() < probability

    def quantile(self, table: Sequence[int]) -> float:
        """A value drawn from a quantile table."""
        probability = self.uniform()
        right = bisect_right(fitted.PROBABILITIES, probability)
        low, high = fitted.PROBABILITIES[right - 1], fitted.PROBABILITIES[right]
        share = (probability - low) / (high - low)
        return table[right - 1] + share * (table[right] - table[right - 1])


class _Conversation:
    """The last turn of a conversation: enough to make the next one."""

    __slots__ = ("forked", "ids", "input_tokens", "output_tokens", "shared_blocks", "turn")

    def __init__(self, draws: _Draws) -> None:
        self.turn = 1
        self.forked = False
        self.input_tokens = int(draws.quantile(fitted.NEW_PROMPT_TOKENS))
        self.output_tokens = int(draws.quantile(fitted.OUTPUT_TOKENS))
        self.shared_blocks = fitted.SYSTEM_BLOCKS
        self.ids = list(range(fitted.SYSTEM_BLOCKS))

    def goes_on(self, draws: _Draws) -> bool:
        """Make it the next turn, or say that there is none."""
        full_blocks = self.input_tokens // TRACE_BLOCK_TOKENS
        if full_blocks < fitted.BLOCKS_MIN_TO_GO_ON or not draws.happens(self._go_on_probability()):
            return False
        forks = fitted.FORK_AFTER_FORK if self.forked else _at(fitted.FORK, self.input_tokens)
        kind = draws.uniform()
        if kind < fitted.REPEAT:
            self.shared_blocks = full_blocks + 1
        elif kind < fitted.REPEAT + forks and full_blocks > fitted.BLOCKS_MIN_TO_GO_ON:
            self._fork(draws, full_blocks)
        else:
            self._extend(draws, full_blocks)
        self.turn += 1
        self.output_tokens = int(draws.quantile(fitted.OUTPUT_TOKENS))
        return self.input_tokens <= fitted.PROMPT_TOKENS_MAX

    def show(self, arrival_ms: int, fresh: Iterator[int]) -> TraceRequest:
        """The turn as a request: shared blocks keep their ids, the others get the next ones."""
        blocks = -(-self.input_tokens // TRACE_BLOCK_TOKENS)
        del self.ids[self.shared_blocks :]
        self.ids.extend(islice(fresh, blocks - len(self.ids)))
        return TraceRequest(arrival_ms, self.input_tokens, self.output_tokens, tuple(self.ids))

    def _go_on_probability(self) -> float:
        if self.turn == 1:
            return _at(fitted.GO_ON_AFTER_FIRST_TURN, self.input_tokens)
        return _at(fitted.GO_ON_AFTER_LATER_TURN, self.turn)

    def _extend(self, draws: _Draws, full_blocks: int) -> None:
        message_tokens = int(draws.quantile(_at(fitted.MESSAGE_TOKENS, self.input_tokens)))
        length = self.input_tokens + self.output_tokens + message_tokens
        self.input_tokens = max(length, full_blocks * TRACE_BLOCK_TOKENS + 1)
        self.shared_blocks = full_blocks
        self.forked = False

    def _fork(self, draws: _Draws, full_blocks: int) -> None:
        shared = int(full_blocks * draws.quantile(fitted.FORK_SHARED_PERCENT) / 100)
        self.shared_blocks = min(max(shared, fitted.BLOCKS_MIN_TO_GO_ON), full_blocks - 1)
        length = int(self.input_tokens * draws.quantile(fitted.FORK_LENGTH_PERMILLE) / 1000)
        self.input_tokens = max(length, self.shared_blocks * TRACE_BLOCK_TOKENS + 1)
        self.forked = True


def _endless(draws: _Draws) -> Iterator[TraceRequest]:
    fresh = count(fitted.SYSTEM_BLOCKS)
    due: dict[int, list[_Conversation]] = {}
    next_new = 0.0  # in ticks since the warm-up began
    for tick in count():
        turns = due.pop(tick, [])
        while next_new < tick + 1:
            turns.append(_Conversation(draws))
            next_new += draws.exponential() / fitted.NEW_CONVERSATIONS_PER_TICK
        for conversation in turns:
            if tick >= fitted.WARM_UP_TICKS:
                arrival_ms = (tick - fitted.WARM_UP_TICKS) * fitted.TICK_MS
                yield conversation.show(arrival_ms, fresh)
            if conversation.goes_on(draws):
                gap_ms = draws.quantile(fitted.GAP_SECONDS) * 1000
                next_tick = tick + max(1, round(gap_ms / fitted.TICK_MS))
                due.setdefault(next_tick, []).append(conversation)


def _at(steps: Sequence[tuple[int, Value]], position: int) -> Value:
    """The value of the last step that starts at or before `position`."""
    found = steps[0][1]
    for start, value in steps:
        if start > position:
            break
        found = value
    return found


def _check_at_least(name: str, value: int, least: int) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} is {value!r}, needs an integer of at least {least}")
