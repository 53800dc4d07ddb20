"""The stand-in for a model: it fills blocks, and generates tokens at once.

Owns what happens between `schedule` and the next step: the bytes of the blocks that a batch computes, and how many of the
drafted tokens are kept. Looks at the bytes of every block that a request takes over from the cache, before anything is
computed behind it, as a model would read them.
"""

from __future__ import annotations

import attrs

from events.facts import BLOCK_HASH_BYTES
from ops.demo.contents import NO_CONTENTS, Contents
from ops.examples.fastdeploy.prompts import Answers
from ops.examples.fastdeploy.scheduler import Batch
from ops.examples.fastdeploy.settings import Settings
from ops.examples.fastdeploy.task import Task
from statecore import HashedTokens


@attrs.define
class Computed:
    """What the model did so far.

    Attributes:
        speculative_steps: decodes of a request that drafted tokens; accepted_tokens: drafted ones that were kept.
        verified_blocks: taken over from the cache and looked at; mismatches: that held something else.
    """

    decode_steps: int = 0
    speculative_steps: int = 0
    generated_tokens: int = 0
    accepted_tokens: int = 0
    verified_blocks: int = 0
    mismatches: int = 0


class Model:
    """Runs batches. `hashes` is what the content of a request's blocks must be, computed here from its tokens alone."""

    def __init__(self, settings: Settings, contents: Contents = NO_CONTENTS) -> None:
        self.computed = Computed()
        self._settings = settings
        self._contents = contents
        self._answers = Answers()
        self._sequences: dict[str, HashedTokens] = {}

    def run(self, batch: Batch) -> list[Task]:
        """Compute the batch; returns the requests whose last token is there."""
        for chunk in batch.prefills:  # in the order of the batch: one may begin on what another of this step computes
            if chunk.first:
                self.verify(chunk.task, chunk.task.num_cached_tokens // self._settings.block_size)
            self._fill(chunk.task, chunk.start, chunk.end)
            if chunk.task.decoding:
                self._generate(chunk.task, 1)
        for task in batch.decodes:
            self._decode(task)
        ran = [chunk.task for chunk in batch.prefills] + batch.decodes
        return [task for task in ran if task.done]

    def hashes(self, task: Task) -> bytes:
        """Joined hashes of the full blocks of all its tokens."""
        sequence = self._sequences.get(task.request_id)
        if sequence is None:
            sequence = HashedTokens.begin(self._settings.block_size).extend(task.prompt_token_ids)
        more = task.output_token_ids[sequence.length - task.prompt_token_ids_len :]
        if more:
            sequence = sequence.extend(more)
        self._sequences[task.request_id] = sequence
        return sequence.hashes

    def verify(self, task: Task, blocks: int) -> None:
        """Look at the bytes of its first `blocks` blocks, which others computed."""
        if blocks and self._contents is not NO_CONTENTS:
            self.computed.verified_blocks += blocks
            self.computed.mismatches += self._contents.wrong(task.block_tables[:blocks], self._part(task, 0, blocks))

    def forget(self, task: Task) -> None:
        """It ended."""
        self._sequences.pop(task.request_id, None)
        self._answers.forget(task)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _decode(self, task: Task) -> None:
        """One token, and as many of the drafted ones as turn out right: a pattern, for there is nothing to be right."""
        drafted = self._settings.num_speculative_tokens
        kept = (task.num_total_tokens + task.number) % (drafted + 1)
        before = task.num_total_tokens - 1
        given = self._generate(task, 1 + kept)
        self._fill(task, before, task.num_total_tokens - 1)
        self.computed.decode_steps += 1
        self.computed.speculative_steps += drafted > 0
        self.computed.accepted_tokens += max(0, given - 1)

    def _generate(self, task: Task, count: int) -> int:
        tokens = self._answers.next_tokens(task, min(count, task.max_tokens - len(task.output_token_ids)))
        task.output_token_ids += tokens
        self.computed.generated_tokens += len(tokens)
        return len(tokens)

    def _fill(self, task: Task, start: int, end: int) -> None:
        """The blocks that tokens `start` … `end`-1 complete."""
        first, after = start // self._settings.block_size, end // self._settings.block_size
        if after > first and self._contents is not NO_CONTENTS:
            self._contents.fill(task.block_tables[first:after], self._part(task, first, after))

    def _part(self, task: Task, first: int, after: int) -> bytes:
        return self.hashes(task)[first * BLOCK_HASH_BYTES : after * BLOCK_HASH_BYTES]
