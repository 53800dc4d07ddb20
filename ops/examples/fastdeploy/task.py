"""A request as FastDeploy's scheduler and cache manager see it: one object that both write to.

Owns the attributes, under the names their callers use, and the arithmetic on them. Knows no manager and no queue. The
manager reads the tokens and writes `num_cached_blocks` (older callers: `cached_block_num`); all else the scheduler writes.
"""

from __future__ import annotations

from enum import Enum, auto

import attrs


class Status(Enum):
    """Where a request is.

    | from      | to        | when                                                              |
    |-----------|-----------|-------------------------------------------------------------------|
    | WAITING   | RUNNING   | its prefix is matched and the blocks of its first chunk are there |
    | RUNNING   | PREEMPTED | somebody older needs its blocks                                   |
    | PREEMPTED | RUNNING   | as a waiting one; what it generated is computed again, too        |
    | RUNNING   | FINISHED  | its last token is there                                           |
    | any       | ABORTED   | its client went away                                              |
    | WAITING   | REFUSED   | the pool, all of it, is too small for it                          |
    """

    WAITING = auto()
    RUNNING = auto()
    PREEMPTED = auto()
    FINISHED = auto()
    ABORTED = auto()
    REFUSED = auto()


@attrs.define(eq=False)
class Task:
    """One request.

    Attributes:
        request_id: unique on this engine.
        prompt_token_ids, output_token_ids: what came in, and what was generated so far.
        max_tokens: generated tokens at its end.
        block_tables: ids of its blocks in token order; the kernel's view.
        num_cached_blocks: so many at the beginning of the table belong to the tree; the rest is its own.
        num_computed_tokens: tokens whose keys and values are in its blocks, or will be when the scheduled step has run.
        num_cached_tokens: of the last match, uncut.
        need_prefill_tokens: to be computed before the next token can be generated: the prompt, and after a preemption
            what was generated, too.
        multimodal_inputs: images and the like; none in a trace.
        number: its place in the trace.
        preemptions: how often it gave its blocks back.
    """

    request_id: str
    prompt_token_ids: list[int]
    max_tokens: int
    number: int = 0
    output_token_ids: list[int] = attrs.Factory(list)
    status: Status = Status.WAITING
    block_tables: list[int] = attrs.Factory(list)
    num_cached_blocks: int = 0
    cached_block_num: int = 0
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    need_prefill_tokens: int = 0
    multimodal_inputs: dict[str, object] | None = None
    preemptions: int = 0

    def __attrs_post_init__(self) -> None:
        if not self.prompt_token_ids:
            raise ValueError(f"request {self.request_id!r} has no tokens: there is nothing to compute")
        if self.max_tokens < 1:
            raise ValueError(f"request {self.request_id!r} wants {self.max_tokens} tokens, at least 1 is generated")
        self.need_prefill_tokens = self.prompt_token_ids_len

    @property
    def prompt_token_ids_len(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_total_tokens(self) -> int:
        """Prompt and what was generated. The last generated token is not computed before the next step."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def decoding(self) -> bool:
        """Nothing is left to prefill."""
        return self.num_computed_tokens >= self.need_prefill_tokens

    @property
    def done(self) -> bool:
        return len(self.output_token_ids) >= self.max_tokens

    def restart(self) -> None:
        """It lost its blocks, and keeps what it generated."""
        self.block_tables = []
        self.num_cached_blocks = self.cached_block_num = 0
        self.num_computed_tokens = self.num_cached_tokens = 0
        self.need_prefill_tokens = self.num_total_tokens
