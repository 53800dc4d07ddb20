"""Which share of all prompt tokens is reused, with one tier, with a host tier for each engine, with one for all.

Four engines, each with a GPU pool of its own, serve the requests of the trace in order of arrival, one after the other;
request i goes to engine i modulo 4, which is what a router does that knows nothing of caches. Memory is the same in all
but the first, which does without the host's; with private tiers, and with one tier, each engine has an index of its own.

| figure                   | GPU pools                     | host pools                      | reference              |
|--------------------------|-------------------------------|---------------------------------|------------------------|
| hit_rate_one_tier        | one an engine                 | none                            | all that repeats       |
| hit_rate_one_tier_large  | the same, and the host's size | none                            | hit_rate_one_tier      |
| hit_rate_private_tiers   | one an engine                 | one an engine                   | hit_rate_one_tier      |
| hit_rate_shared_tier     | one an engine                 | one for all, of their size      | hit_rate_private_tiers |

`All that repeats` is one unbounded cache for everybody. Only the bookkeeping runs: the log is in memory, a transfer ends
as soon as it was started, nothing is pinned by requests beside the one that is served. So the figures depend on the
requests alone, not on the machine, and say nothing of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

import attrs

from events import connect
from events.facts import BLOCK_HASH_BYTES
from events.log import LogConnection
from ops.bench.figure import Advance, Group, Measurement, Settings
from ops.bench.workload import BLOCK_TOKENS, Life
from ops.demo.immediate import ImmediateWorkers
from statecore import CacheIndex, Policy

_ONE: Final = "hit_rate_one_tier"
_LARGE: Final = "hit_rate_one_tier_large"
_PRIVATE: Final = "hit_rate_private_tiers"
_SHARED: Final = "hit_rate_shared_tier"
ENGINES: Final = 4
_GPU_BLOCKS: Final = 6_000
"""Of each engine: the largest request of the published trace takes a third."""
_HOST_BLOCKS: Final = 18_000
"""For each engine: host memory is a few times as large as that of a GPU."""
_POLICY: Final = Policy(free_low=10, free_high=20)
"""With room ahead of need, so that what is in the host can be fetched."""


@attrs.frozen
class Memory:
    """What the engines have: each `gpu_blocks`; `host_pools` times `host_blocks` for all together."""

    gpu_blocks: int
    host_pools: int = 0
    host_blocks: int = 0

    def __str__(self) -> str:
        host = f" + {self.host_pools} × {self.host_blocks:,} host" if self.host_pools else ""
        return f"{ENGINES} × {self.gpu_blocks:,} GPU{host} blocks"


_MEMORY: Final = {
    _ONE: Memory(_GPU_BLOCKS),
    _LARGE: Memory(_GPU_BLOCKS + _HOST_BLOCKS),
    _PRIVATE: Memory(_GPU_BLOCKS, ENGINES, _HOST_BLOCKS),
    _SHARED: Memory(_GPU_BLOCKS, 1, ENGINES * _HOST_BLOCKS),
}
SHARED: Final = _MEMORY[_SHARED]
_REFERENCES: Final = {_LARGE: _ONE, _PRIVATE: _ONE, _SHARED: _PRIVATE}


def measure(settings: Settings, wanted: frozenset[str], advance: Advance) -> list[Measurement]:
    lives = settings.lives(settings.count(usual=4000, quick=200))
    needed = wanted | {_REFERENCES[name] for name in wanted & _REFERENCES.keys()}
    rates = {}
    for number, name in enumerate(name for name in _MEMORY if name in needed):
        rates[name] = reused_share(lives, _MEMORY[name])
        advance((number + 1) / len(needed))
    found = []
    for name in (name for name in _MEMORY if name in wanted):
        reference = _REFERENCES.get(name)
        compared = f"all that repeats, {len(lives):,} requests" if reference is None else reference
        value = repeating_share(lives) if reference is None else rates[reference]
        found.append(Measurement(name, rates[name], "of tokens", f"{compared}; {_MEMORY[name]}", value))
    return found


def reused_share(lives: Sequence[Life], memory: Memory) -> float:
    """Prompt tokens found in a tier over prompt tokens."""
    with ExitStack() as stack:
        engines = engines_of(stack, memory)
        reused = sum(engines[number % ENGINES].serve(life) for number, life in enumerate(lives))
    return reused / sum(life.prompt_tokens for life in lives)


def repeating_share(lives: Sequence[Life]) -> float:
    """The same of one cache for all that forgets nothing."""
    seen: set[bytes] = set()
    reused = 0
    for life in lives:
        hashes = [life.path[first : first + BLOCK_HASH_BYTES] for first in range(0, len(life.path), BLOCK_HASH_BYTES)]
        found = 0
        while found < _reusable(life) and hashes[found] in seen:
            found += 1
        reused += found * BLOCK_TOKENS
        seen.update(hashes)
    return reused / sum(life.prompt_tokens for life in lives)


class Engine:
    """One engine, and whoever ends the transfers of its index."""

    def __init__(self, index: CacheIndex, workers: ImmediateWorkers, connection: LogConnection, number: int) -> None:
        self._index = index
        self.workers = workers
        self.connection = connection
        self.number = number

    def serve(self, life: Life) -> int:
        """A whole request; the tokens of its prompt that need not be computed."""
        index, request = self._index, life.request
        match = index.match(request, hashes=life.prompt, prompt_tokens=life.prompt_tokens, limit=_reusable(life))
        if match.waits_for:
            self.workers.work()
        assert all(index.poll(transfer).done for transfer in match.waits_for)
        assert index.path_blocks(request) == len(match.blocks)
        self._allocate(request, life.prompt_blocks - len(match.blocks))
        index.extend(request, ready=True)
        self._allocate(request, life.blocks - life.prompt_blocks)
        index.extend(request, hashes=life.path[len(life.prompt) :], ready=True)
        index.release(request)
        self.workers.work()
        return match.tokens

    def _allocate(self, request: str, blocks: int) -> None:
        while blocks and not self._index.allocate(request, blocks).blocks:
            ended = self.workers.work()
            assert ended, f"{request} waits for {blocks} blocks, and nothing is under way"


def engines_of(stack: ExitStack, memory: Memory) -> list[Engine]:
    connections = [stack.enter_context(connect("memory://")) for _ in range(1 if memory.host_pools == 1 else ENGINES)]
    ending = [ImmediateWorkers(connection.log("bench", follow=False)) for connection in connections]
    return [
        _engine(stack, connections[number % len(connections)], number, memory, ending[number % len(ending)])
        for number in range(ENGINES)
    ]


def _engine(
    stack: ExitStack, connection: LogConnection, number: int, memory: Memory, workers: ImmediateWorkers
) -> Engine:
    index = CacheIndex(
        connection,
        name="bench",
        engine=f"engine-{number}",
        gpu_blocks=memory.gpu_blocks,
        cpu_blocks=memory.host_blocks,
        block_size=BLOCK_TOKENS,
        policy=_POLICY if memory.host_blocks else None,
    )
    return Engine(stack.enter_context(index), workers, connection, number)


def begin_again(stack: ExitStack, engine: Engine, memory: Memory) -> Engine:
    """The engine's process died with its GPU memory, and this is its next one."""
    return _engine(stack, engine.connection, engine.number, memory, engine.workers)


def _reusable(life: Life) -> int:
    """Full blocks of the prompt without its last token, which an engine computes in any case."""
    return max(0, life.prompt_tokens - 1) // BLOCK_TOKENS


GROUP: Final = Group(title="hit rates", figures=tuple(_MEMORY), seconds=12, measure=measure)
