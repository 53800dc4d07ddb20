"""What an engine may do in a step, and what it has done.

Owns the counts of the demo; knows no index and no scheduler.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs


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
        verified_blocks: reused, from either tier, whose bytes were looked at before anything was computed after them.
        mismatches: those of them that held something else.
        cut: admissions whose blocks did not all come from the host: the rest was computed.
    """

    requests: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    evicted_blocks: int = 0
    preemptions: int = 0
    steps: int = 0
    lost_steps: int = 0
    verified_blocks: int = 0
    mismatches: int = 0
    cut: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that were cached, 0 to 1."""
        return self.reused_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @classmethod
    def sum(cls, tallies: Iterable[Tally]) -> Tally:
        """Of several engines."""
        return cls(*(sum(counts) for counts in zip(*(attrs.astuple(tally) for tally in tallies), strict=True)))
