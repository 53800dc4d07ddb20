"""An index with two tiers, a Redis and living swap workers, for figures of transfers.

Owns the set-up and its end: a fresh embedded Redis, shared memory under a name nobody else has, one worker process per
rank over the numpy store, and one engine. Everything is what anybody uses; only the pools are small.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import attrs
import numpy as np

from events import connect, limits
from events.embedded import EmbeddedRedis
from events.facts import BLOCK_HASH_BYTES, TransferStarted
from events.log import EventLog
from events.ports import Job
from ops.bench.workload import BLOCK_TOKENS, ENGINE, POOL
from ops.demo.movers import Movers
from ops.demo.tiers import TierMemory, Tiers
from statecore import CacheIndex, Policy
from statecore.scopes import jobs_of
from workers.layout import CacheLayout

WHEN_NEEDED: Final = Policy(free_low=0, free_high=0)
"""Nothing leaves before blocks are needed, so a figure knows which call starts which transfers."""

_WAIT_S: Final = limits.SOCKET_TIMEOUT_S
"""For one transfer of a bench; a worker that takes longer is not working."""


@attrs.frozen
class Moving:
    """What a figure needs. `log` is a second view of the index's log, beside the engine's own."""

    url: str
    index: CacheIndex
    log: EventLog

    def cache(self, prompt: bytes, request: str) -> None:
        """A request that computes the blocks of `prompt`, which nobody has, and is over: one step."""
        with self.index.step():
            self.index.match(request, hashes=prompt)
            self.index.allocate(request, len(prompt) // BLOCK_HASH_BYTES)
            self.index.extend(request, ready=True)
            self.index.release(request)

    def wait(self, transfer: str) -> None:
        """Until the engine knows that it is done."""
        state = self.index.wait(transfer, _WAIT_S)
        if not state.done:
            raise RuntimeError(f"transfer {transfer} of the bench is {state.state}: {state.reason}")

    def jobs_since(self, position: int) -> list[Job]:
        """The jobs of commits after `position`, as they were put into the stream."""
        facts = [fact for entry in self.log.read(position) for fact in entry.facts if isinstance(fact, TransferStarted)]
        return list(self.index.inspect(lambda state: jobs_of(state, facts)))


@contextmanager
def moving(layout: CacheLayout, host_blocks: int, ranks: int = 1) -> Iterator[Moving]:
    """`layout` of the GPU pool, as one rank holds it; the host pool has the same with `host_blocks` blocks."""
    name = f"bench-{secrets.token_hex(4)}"
    tiers = Tiers(layout, host_blocks, ranks, WHEN_NEEDED)
    with (
        EmbeddedRedis() as server,
        TierMemory(name, tiers, [POOL]),
        Movers(server.url, name, [POOL], tiers),
        connect(server.url) as connection,
        CacheIndex(
            connection,
            name=name,
            engine=ENGINE,
            gpu_pool=POOL,
            gpu_blocks=layout.num_blocks,
            cpu_blocks=host_blocks,
            block_size=BLOCK_TOKENS,
            policy=WHEN_NEEDED,
            tensor_parallel_size=ranks,
        ) as index,
    ):
        yield Moving(server.url, index, connection.log(name, follow=False))


def prompts(seed: int, blocks: int) -> Iterator[bytes]:
    """Hashes of prompts of so many blocks that have nothing in common."""
    random = np.random.default_rng(seed)
    while True:
        yield random.bytes(blocks * BLOCK_HASH_BYTES)
