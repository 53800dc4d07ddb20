"""Requests prepared for measuring: everything that is not the index's work is done before the clock starts.

Owns the life of a request in calls: match, allocate and extend the prompt, ready, allocate and extend the output, ready,
release. It is driven into the machine directly (`serve`, no log) or through a `CacheIndex` (`serve_index`); the naive
reference follows the same life in `reference.py`. Block hashes are ready-made, because hashing has a figure of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Final

import attrs
import numpy as np

from events.facts import BLOCK_HASH_BYTES, Fact, PrefixMatched
from ops.trace import TRACE_BLOCK_TOKENS, TraceRequest, block_hashes, generate, output_hashes, read_trace
from statecore import CacheIndex, Rejection
from statecore.commands import Allocate, Command, Extend, Join, MarkReady, Match, Release
from statecore.hashing import SCHEME
from statecore.replica import Replica

BLOCK_TOKENS: Final = 64
ENGINE: Final = "engine-0"
POOL: Final = "gpu"


@attrs.frozen(slots=True)
class Life:
    """One request with all its numbers.

    Attributes:
        prompt: hashes of the prompt's full blocks, joined.
        path: `prompt`, then the blocks that the output fills.
        prompt_blocks, blocks: table length after the prompt and at the end, a last block that is not full included.
    """

    request: str
    prompt_tokens: int
    prompt: bytes
    path: bytes
    prompt_blocks: int
    blocks: int

    @classmethod
    def of(cls, index: int, request: TraceRequest, seed: bytes = b"") -> Life:
        prompt = block_hashes(request, BLOCK_TOKENS, seed)
        tokens = request.input_tokens + request.output_tokens
        return cls(
            request=f"r{index}",
            prompt_tokens=request.input_tokens,
            prompt=prompt,
            path=prompt + output_hashes(index, request, BLOCK_TOKENS, seed),
            prompt_blocks=-(-request.input_tokens // BLOCK_TOKENS),
            blocks=-(-tokens // BLOCK_TOKENS),
        )


def lives_of(trace: Path | None, requests: int, seed: int, *, blocks_max: int | None = None) -> Iterator[Life]:
    """Requests of a trace file or, without one, of the generator; prompts longer than `blocks_max` are cut.

    A file that holds fewer gives what it has.
    """
    found = read_trace(trace, requests) if trace else generate(requests, seed)
    for index, request in enumerate(found):
        yield Life.of(index, request if blocks_max is None else _cut(request, blocks_max))


def tenants(lives: Callable[[], Iterable[Life]]) -> Iterator[Life]:
    """The requests again and again, each time with other content: for an index larger than the trace fills."""
    for tenant in count():
        mask = np.frombuffer(np.random.default_rng(tenant).bytes(BLOCK_HASH_BYTES), dtype=np.uint8)
        for life in lives():
            path = (np.frombuffer(life.path, dtype=np.uint8).reshape(-1, BLOCK_HASH_BYTES) ^ mask).tobytes()
            yield attrs.evolve(life, path=path, prompt=path[: len(life.prompt)])


def _cut(request: TraceRequest, blocks_max: int) -> TraceRequest:
    tokens = min(request.input_tokens, blocks_max * BLOCK_TOKENS)
    ids = request.hash_ids[: -(-tokens // TRACE_BLOCK_TOKENS)]
    return attrs.evolve(request, input_tokens=tokens, hash_ids=ids)


# --- the machine, without a log -------------------------------------------------------------------------------------


def new_replica(pool_blocks: int, facts: list[Fact] | None = None) -> Replica:
    """A replica at position 1: one engine with one pool. `facts` collects what the first commit holds."""
    replica = Replica()
    decided = ask(replica, Join(ENGINE, BLOCK_TOKENS, SCHEME, POOL, pool_blocks, 1))
    if facts is not None:
        facts.extend(decided)
    replica.settle(1, "c1")
    return replica


def ask(replica: Replica, command: Command) -> Sequence[Fact]:
    """Decide and evolve; a rejection stops the bench, because then it does not measure what it says."""
    facts = replica.propose(command)
    if isinstance(facts, Rejection):
        raise facts
    return facts


def serve(replica: Replica, life: Life, facts: list[Fact] | None = None) -> int:
    """A whole request as one commit, decided, evolved and settled. Returns the blocks it found cached.

    `facts` collects what was decided, for those who want to write it to a log.
    """
    request = life.request
    decided = ask(replica, Match(ENGINE, request, life.prompt, life.prompt_tokens))
    found = decided[0]
    assert isinstance(found, PrefixMatched)
    for command in _after_match(life, found.depth):
        more = ask(replica, command)
        if facts is not None:
            decided = [*decided, *more]
    if facts is not None:
        facts.extend(decided)
    position = replica.state.position + 1
    replica.settle(position, f"c{position}")
    return found.depth


def serve_all(replica: Replica, lives: Iterable[Life]) -> None:
    """Whole requests, one after the other."""
    for life in lives:
        serve(replica, life)


def _after_match(life: Life, matched: int) -> list[Command]:
    request, commands = life.request, list[Command]()
    if life.prompt_blocks > matched:
        commands.append(Allocate(ENGINE, request, life.prompt_blocks - matched))
    commands.append(Extend(ENGINE, request, life.prompt))
    commands.append(MarkReady(ENGINE, request))
    if life.blocks > life.prompt_blocks:
        commands.append(Allocate(ENGINE, request, life.blocks - life.prompt_blocks))
    if len(life.path) > len(life.prompt):
        commands.append(Extend(ENGINE, request, life.path))
        commands.append(MarkReady(ENGINE, request))
    commands.append(Release(ENGINE, request))
    return commands


# --- the same through the index -------------------------------------------------------------------------------------


def serve_index(index: CacheIndex, life: Life) -> int:
    """The same request through the calls an engine makes; within a step, or a commit a call."""
    request = life.request
    matched = len(index.match(request, hashes=life.prompt, prompt_tokens=life.prompt_tokens).blocks)
    if life.prompt_blocks > matched:
        index.allocate(request, life.prompt_blocks - matched)
    index.extend(request, ready=True)
    if life.blocks > life.prompt_blocks:
        index.allocate(request, life.blocks - life.prompt_blocks)
    output = life.path[len(life.prompt) :]
    if output:
        index.extend(request, hashes=output, ready=True)
    index.release(request)
    return matched


def blocks_in(hashes: bytes) -> int:
    return len(hashes) // BLOCK_HASH_BYTES
