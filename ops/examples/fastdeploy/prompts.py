"""Token ids out of numbers: of prompts, and of what a model would answer.

Owns the mixing. Generated tokens are a function of the prompt, as with a model that always takes the likeliest token: two
requests with one prompt generate the same, so they fill blocks of the same content at the same time, which a cache manager
must survive.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ops.examples.fastdeploy.task import Task

VOCABULARY: Final = 2**31

Words: TypeAlias = npt.NDArray[np.uint64]


def tokens_of(words: Words) -> list[int]:
    """A token for each word: the finisher of splitmix64 (Steele, Lea, Flood: Fast Splittable Generators, 2014), cut."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    listed: list[int] = ((words ^ (words >> np.uint64(31))) % np.uint64(VOCABULARY)).tolist()
    return listed


class Answers:
    """What the model says. Deterministic; keeps the answer of each request that lives."""

    def __init__(self) -> None:
        self._of: dict[str, list[int]] = {}

    def next_tokens(self, task: Task, count: int) -> list[int]:
        """The next `count` tokens, or as many as there still are."""
        answer = self._of.get(task.request_id)
        if answer is None:
            answer = self._of[task.request_id] = _answer(task)
        begin = len(task.output_token_ids)
        return answer[begin : begin + count]

    def forget(self, task: Task) -> None:
        self._of.pop(task.request_id, None)


def _answer(task: Task) -> list[int]:
    prompt = np.array(task.prompt_token_ids, dtype="<u4").tobytes()
    start = int.from_bytes(blake2b(prompt, digest_size=8).digest(), "little")
    return tokens_of(np.uint64(start) + np.arange(task.max_tokens, dtype=np.uint64))
