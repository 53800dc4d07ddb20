"""One request on its way through an engine: how far it is, in tokens and blocks.

Owns the arithmetic of a request's life; knows no index. A request that lost its blocks (preempted) keeps the tokens it
generated: when it is admitted again they are part of what has to be computed, as in production engines.
"""

from __future__ import annotations

from functools import cached_property

import attrs

from ops.trace import TraceRequest, block_hashes, output_hashes
from ops.trace.format import HASH_BYTES


@attrs.define(slots=False, eq=False)
class Sequence:
    """A request and its progress.

    Attributes:
        number: its place in the trace, from 0; makes its generated blocks unique.
        generated: output tokens so far.
        computed: tokens of prompt and output whose keys and values are in blocks.
        blocks: length of its block table; 0 while it waits.
        hashed: block hashes the index has been told of.
        admissions: how often it was admitted; more than once after being preempted.
        waits_for: transfers that bring blocks its table begins with; nothing is computed before they have ended.
    """

    number: int
    request: TraceRequest
    block_size: int
    generated: int = 0
    computed: int = 0
    blocks: int = 0
    hashed: int = 0
    admissions: int = 0
    waits_for: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"request-{self.number}"

    @property
    def prompt_tokens(self) -> int:
        return self.request.input_tokens

    @property
    def known(self) -> int:
        """Tokens there are: the prompt and what was generated."""
        return self.prompt_tokens + self.generated

    @property
    def finished(self) -> bool:
        return self.computed == self.known and self.generated == self.request.output_tokens

    @property
    def blocks_at_end(self) -> int:
        """Blocks it holds when its last token is there."""
        return self.blocks_for(self.prompt_tokens + self.request.output_tokens)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens, the last one possibly partial."""
        return -(-tokens // self.block_size)

    def next_tokens(self, computed: int, chunk: int, budget: int) -> int:
        """Tokens of the next step: a chunk of what is known, or, when all is computed, at most a block of output."""
        left = self.known - computed
        if left:
            return min(left, chunk, budget)
        return min(self.request.output_tokens - self.generated, self.block_size, budget)

    def hashes(self, first: int, end: int) -> bytes:
        """Joined hashes of its full blocks `first` … `end`-1, generated ones too."""
        return self._hashes[first * HASH_BYTES : end * HASH_BYTES]

    def advance(self, tokens: int) -> None:
        """A step computed so many tokens of it; what goes beyond the known ones was generated."""
        self.computed += tokens
        self.generated += max(0, self.computed - self.known)

    def restart(self) -> None:
        """It lost its blocks; what it generated stays known."""
        self.computed = self.blocks = self.hashed = 0
        self.waits_for = ()

    @cached_property
    def _hashes(self) -> bytes:
        prompt = block_hashes(self.request, self.block_size)
        return prompt + output_hashes(self.number, self.request, self.block_size)
