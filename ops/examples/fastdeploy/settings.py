"""What the scheduler may do in a step, and how far ahead it reserves blocks.

Owns the numbers, under names close to FastDeploy's configuration, and the refusal of those that cannot work together.
"""

from __future__ import annotations

import attrs


class SettingsError(ValueError):
    """These numbers cannot work; the message says which and why."""


@attrs.frozen
class Settings:
    """Of one engine.

    Attributes:
        block_size: tokens in a block.
        max_num_seqs: requests that run at a time.
        max_num_batched_tokens: tokens of one step, prompts and decodes together.
        max_block_num_per_seq: longest block table.
        enc_dec_block_num: blocks a decoding request is given at once.
        prealloc_dec_block_slot_num_threshold: with so few free places left in its table, or fewer, it is given them.
        num_speculative_tokens: tokens drafted in a decode step; the step writes behind them all, and keeps some.
        reserve_output_block_num: blocks left over for each running request when another one is to begin. Falls by
            `reserve_decay` a step and is back at the full number after a preemption, which says that it was too low.
        output_caching: generated tokens can be matched by later requests.
    """

    block_size: int = 16
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 1024
    max_block_num_per_seq: int = 1 << 20
    enc_dec_block_num: int = 2
    prealloc_dec_block_slot_num_threshold: int = 12
    num_speculative_tokens: int = 0
    reserve_output_block_num: int = 2
    reserve_decay: float = 0.025
    output_caching: bool = True

    def __attrs_post_init__(self) -> None:
        for name in (
            "block_size",
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_block_num_per_seq",
            "enc_dec_block_num",
        ):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("prealloc_dec_block_slot_num_threshold", "num_speculative_tokens", "reserve_output_block_num"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.prealloc_dec_block_slot_num_threshold < self.tokens_per_decode:
            raise SettingsError(
                f"a decode step writes {self.tokens_per_decode} tokens (1 and {self.num_speculative_tokens} drafted): "
                "prealloc_dec_block_slot_num_threshold must be at least that, not "
                f"{self.prealloc_dec_block_slot_num_threshold}"
            )
        if self.enc_dec_block_num * self.block_size <= self.tokens_per_decode:
            raise SettingsError(
                f"{self.enc_dec_block_num} blocks of {self.block_size} tokens cannot hold the {self.tokens_per_decode} "
                "tokens of a decode step and the one before: raise enc_dec_block_num"
            )
        least = self.max_num_seqs * self.tokens_per_decode + 1
        if self.max_num_batched_tokens < least:
            raise SettingsError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is too small: {self.max_num_seqs} requests that "
                f"decode {self.tokens_per_decode} tokens each, and one token of a prompt, need {least}"
            )

    @property
    def tokens_per_decode(self) -> int:
        """Places a decode step writes to."""
        return self.num_speculative_tokens + 1

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def blocks_at_most(self, tokens: int) -> int:
        """Length of the block table, at its longest, of a request that ends with so many tokens."""
        ahead = self.prealloc_dec_block_slot_num_threshold
        return self.blocks_for(tokens + ahead) + self.enc_dec_block_num + (self.num_speculative_tokens > 0)
