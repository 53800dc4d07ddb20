"""What the example serves: requests of a trace, made shorter, some of them asked again, dealt to the engines.

Owns the way from a trace to tasks. A trace tells lengths and block hashes; the rest is made here, from numbers only, so
that the same options make the same requests in every process.

Some prompts are asked again, which a trace of conversations hardly ever does and users do all the time: while the first is
still being computed, on the same engine and on the other, and when it has been done for a while. Such prompts are cut to
whole blocks, so that everything of them can be cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import attrs
import numpy as np

from ops.examples.fastdeploy.prompts import Words, tokens_of
from ops.examples.fastdeploy.task import Task
from ops.trace import TRACE_BLOCK_TOKENS, TraceError, TraceRequest, generate, read_trace

AGAIN_AFTER: Final = (2, 1, 60)
"""How many requests later a prompt is asked again, in turn. With two engines: the same, the other, the same."""


class WorkloadError(ValueError):
    """No such workload; the message is for the person who asked."""


@attrs.frozen
class Shape:
    """How tasks are made of a trace.

    Attributes:
        block_size: of the index; prompts asked again are cut to it.
        shrink_prompt, shrink_output: lengths are divided by these; that of prompts divides 512.
        again_every: one of so many requests asks an earlier prompt again; 0: none.
    """

    block_size: int
    shrink_prompt: int = 16
    shrink_output: int = 4
    again_every: int = 12

    def __attrs_post_init__(self) -> None:
        if self.shrink_prompt < 1 or TRACE_BLOCK_TOKENS % self.shrink_prompt:
            raise WorkloadError(
                f"prompts are made shorter by a divisor of {TRACE_BLOCK_TOKENS}, not {self.shrink_prompt}"
            )
        if self.shrink_output < 1 or self.again_every < 0:
            raise WorkloadError(
                f"outputs are made shorter by at least 1, not {self.shrink_output}; again_every is at least 0, not "
                f"{self.again_every}"
            )


@attrs.frozen
class Workload:
    """Requests, and where they come from in words."""

    requests: tuple[TraceRequest, ...]
    shape: Shape
    source: str

    def tasks(self, engine: int, engines: int) -> list[Task]:
        """The requests of one engine, dealt round-robin in order of arrival."""
        return [self._task(number) for number in range(engine, len(self.requests), engines)]

    @property
    def longest(self) -> int:
        """Tokens of the longest request, prompt and output."""
        shape = self.shape
        return max(
            -(-request.input_tokens // shape.shrink_prompt) + _output(request, shape) for request in self.requests
        )

    def _task(self, number: int) -> Task:
        """Its prompt is cut to whole blocks if it is asked again, or asks again."""
        first = self._asked_again_from(number)
        prompt = self._prompt(number if first is None else first)
        again = first is not None or any(self._asked_again_from(number + later) == number for later in AGAIN_AFTER)
        if again and len(prompt) >= self.shape.block_size:
            del prompt[len(prompt) - len(prompt) % self.shape.block_size :]
        return Task(f"request-{number}", prompt, _output(self.requests[number], self.shape), number)

    def _asked_again_from(self, number: int) -> int | None:
        """The request whose prompt this one asks again."""
        every = self.shape.again_every
        if not every or number % every != every - 1 or number >= len(self.requests):
            return None
        first = number - AGAIN_AFTER[number // every % len(AGAIN_AFTER)]
        return first if first >= 0 and first % every != every - 1 else None

    def _prompt(self, number: int) -> list[int]:
        request, shape = self.requests[number], self.shape
        ids = np.array(request.hash_ids, dtype=np.uint64)
        places = np.arange(TRACE_BLOCK_TOKENS // shape.shrink_prompt, dtype=np.uint64)
        words: Words = ((ids[:, np.newaxis] << np.uint64(9)) | places).ravel()
        return tokens_of(words[: -(-request.input_tokens // shape.shrink_prompt)])


def _output(request: TraceRequest, shape: Shape) -> int:
    return max(1, request.output_tokens // shape.shrink_output)


def workload(trace: Path | None, requests: int, seed: int, shape: Shape) -> Workload:
    """Read or generate.

    Raises:
        WorkloadError: the trace cannot be read, or has requests without a prompt.
    """
    if trace is None:
        return Workload(tuple(generate(requests, seed)), shape, f"the built-in generator, seed {seed}")
    try:
        chosen = tuple(islice(read_trace(trace), requests))
    except (TraceError, OSError) as error:
        raise WorkloadError(f"cannot read the trace {str(trace)!r}: {error}") from None
    return Workload(_with_prompts(chosen), shape, trace.name)


def _with_prompts(requests: Sequence[TraceRequest]) -> tuple[TraceRequest, ...]:
    empty = [number for number, request in enumerate(requests) if not request.input_tokens]
    if empty:
        raise WorkloadError(f"request {empty[0]} of the trace has no prompt: there is nothing to compute")
    return tuple(requests)
