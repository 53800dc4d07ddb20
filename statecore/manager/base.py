"""What every part of the manager stands on: its index, its settings, one step, one bounded wait, its metrics.

Owns these. A call of the manager is a step of its own, or several with a wait between them; nothing is held while waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from events.errors import InvalidInput
from events.limits import BLOCK_SIZE_MAX
from events.ports import Connection
from statecore import door
from statecore.index import CacheIndex
from statecore.manager import metrics
from statecore.manager.settings import DECODE, CacheSettings
from statecore.manager.shapes import AttentionBackend
from statecore.manager.surroundings import MetricsSink, Surroundings
from statecore.rejections import NeverFits, StepConflict
from statecore.state import Pool, State
from statecore.tiers import transfers_of

T = TypeVar("T")

_STEP_TRIES: Final = 8
"""Times a step is taken anew when engines that share its pool were faster. Each loss means that one of them won."""

ROUNDS_MAX: Final = 8
"""Times room is made, and waited for, before a call gives up: others may take what it made."""


class ManagerBase:
    """See the module.

    Attributes:
        index: the index it works on. Its own calls may be mixed with the manager's, but not put around them: no call of the
            manager belongs into a `with index.step()`.
        cache_config: the configuration that was given last.
        splitwise_role: "mixed", "prefill" or "decode".
    """

    index: CacheIndex
    cache_config: object
    splitwise_role: str
    tensor_parallel_size: int
    _config: object
    _settings: CacheSettings
    _connection: Connection
    _surroundings: Surroundings
    _sink: MetricsSink
    _attention_backend: AttentionBackend | None
    _swap_timeout_s: float

    # --- what is asked again and again ------------------------------------------------------------------------------

    @property
    def _caches(self) -> bool:
        """Whether this engine matches prompts and puts blocks into the tree."""
        return self._settings.caching and self.splitwise_role != DECODE

    def _pool(self, query: Callable[[State, Pool], T]) -> T:
        """Ask the GPU pool of the replica."""
        return self.index.inspect(lambda state: query(state, state.pools[self.index.gpu_pool]))

    def _is_live(self, request: str) -> bool:
        return self.index.inspect(lambda state: request in state.engines[self.index.engine].requests)

    def _require_block_size(self, block_size: object) -> None:
        size = door.whole(block_size, "block_size", least=1, most=BLOCK_SIZE_MAX)
        if size != self.index.block_size:
            raise InvalidInput(
                f"index {self.index.name!r} has blocks of {self.index.block_size} tokens, this call says {size}"
            )

    def _require_fits(self, blocks: int) -> None:
        """Refuse what waiting cannot help."""
        size = self._pool(lambda _state, pool: pool.blocks)
        if blocks > size:
            raise NeverFits(self.index.gpu_pool, blocks, 0, size)

    # --- acting -----------------------------------------------------------------------------------------------------

    def _in_one_step(self, action: Callable[[], T]) -> T:
        """What `action` asks of the index becomes one commit, or nothing of it happens."""
        tries = 1
        while True:
            try:
                with self.index.step():
                    return action()
            except StepConflict:
                if tries == _STEP_TRIES:
                    raise
                tries += 1

    def _wait(self, transfers: Iterable[str]) -> tuple[bool, float]:
        """Wait for transfers, holding nothing: whether all have ended, and how many seconds it took."""
        waiting, left = list(dict.fromkeys(transfers)), self._swap_timeout_s
        if not waiting:
            return True, 0.0
        for left in self.index.until(self._swap_timeout_s):
            if not waiting:
                break
            if self.index.wait(waiting[0], left).under_way:
                return False, self._swap_timeout_s
            waiting.pop(0)
        return not waiting, self._swap_timeout_s - left

    def _make_room(self, blocks: int) -> bool:
        """Evict until so many blocks of the GPU pool are free, the deficit and no more; whether they are in the end."""
        for _ in range(ROUNDS_MAX):
            self.index.make_room(blocks)
            if self.index.free_blocks >= blocks:
                return True
            under_way = self._pool(lambda state, pool: [transfer.id for transfer in transfers_of(state, pool.name)])
            if not under_way or not self._wait(under_way)[0]:
                break
        return self.index.free_blocks >= blocks

    # --- metrics ----------------------------------------------------------------------------------------------------

    def _publish_pool(self) -> None:
        self._pool(lambda state, pool: metrics.publish_pool(self._sink, state, pool.name))

    def _publish_hits(self, gpu_tokens: int, cpu_tokens: int) -> None:
        counted = self.index.inspect(lambda state: metrics.CacheMetrics.of(state, self.index.engine))
        metrics.publish_hits(self._sink, counted, gpu_tokens, cpu_tokens)
        self._publish_pool()
