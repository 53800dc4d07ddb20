"""`PrefixCacheManager`: the class an engine of FastDeploy drives, on an index that engines share.

Owns how it is built: which log, which index, which engine; and what is not about requests, blocks or processes. Several
managers whose logs and index names are the same share one prefix tree and one host pool.
"""

from __future__ import annotations

from types import TracebackType

from events.ports import Connection
from statecore import door
from statecore.index import CacheIndex
from statecore.manager import settings
from statecore.manager.allocation import Allocations
from statecore.manager.launching import Launching
from statecore.manager.metrics import CacheMetrics
from statecore.manager.requests import Requests
from statecore.manager.shapes import AttentionBackend
from statecore.manager.surroundings import Surroundings, installed
from statecore.manager.swaps import Swaps
from statecore.manager.upkeep import Upkeep
from statecore.policy import Policy
from statecore.rejections import DifferentIndex

SWAP_TIMEOUT_S = 60.0
"""How long a call waits for transfers by default: minutes of bytes at any speed, and yet an end when no worker runs."""

_RANKS_MAX = 1024


class PrefixCacheManager(Requests, Allocations, Swaps, Upkeep, Launching):
    """One engine's door to a shared cache, in FastDeploy's words."""

    def __init__(  # noqa: PLR0913 - FastDeploy's four arguments, and by keyword what it takes from its surroundings
        self,
        config: object,
        tensor_parallel_size: int,
        splitwise_role: str = settings.MIXED,
        local_data_parallel_id: int = 0,
        *,
        connection: Connection | None = None,
        index: str | None = None,
        engine: str | None = None,
        gpu_pool: str | None = None,
        policy: Policy | None = None,
        attention_backend: AttentionBackend | None = None,
        surroundings: Surroundings | None = None,
        swap_timeout_s: float = SWAP_TIMEOUT_S,
    ) -> None:
        """Join the index.

        Args:
            config: with `cache_config` and what `settings.py` lists.
            tensor_parallel_size: ranks that each hold a shard of every block.
            splitwise_role: "mixed", "prefill", or "decode", which matches nothing and has no tree.
            local_data_parallel_id: number of this engine among those of its process group.
            connection: where the log is; default: as the environment says, else in memory.
            index: its name; default: as the environment says, else "fastdeploy".
            engine: who this is; default: as the environment says; needed where the log is shared.
            gpu_pool: its GPU pool; default: as the environment says, else one of its own. Engines that name the same share
                its blocks.
            policy: when copies go to the host; default: what the index has.
            attention_backend: knows the shape of the caches.
            surroundings: doors to the process; default: those that are installed.
            swap_timeout_s: how long a call waits for transfers at most.

        Raises:
            InvalidInput: a field is missing or wrong.
            Rejection: the index was made with other settings.
            Unavailable: the log cannot be reached.
        """
        self._swap_timeout_s = door.seconds(swap_timeout_s, "swap_timeout_s")
        self._config = config
        self._attention_backend = attention_backend
        self.splitwise_role = settings.role_of(splitwise_role)
        self.tensor_parallel_size = door.whole(tensor_parallel_size, "tensor_parallel_size", least=1, most=_RANKS_MAX)
        rank = settings.rank_of(local_data_parallel_id)
        self._surroundings = installed() if surroundings is None else surroundings
        variables = self._surroundings.settings()
        self.cache_config = settings.required(config, "cache_config", "config")
        self._settings = settings.read_cache_config(self.cache_config, variables)
        self._owns_connection = connection is None
        self._connection = self._surroundings.connection() if connection is None else connection
        try:
            name = settings.engine_name(engine, variables, rank, self._connection)
            pool = settings.pool_name(gpu_pool, variables)
            self.index = self._joined(settings.index_name(index, variables), name, pool, policy)
        except BaseException:
            if self._owns_connection:
                self._connection.close()
            raise
        self._sink = self._surroundings.metrics()
        self._publish_pool()

    @property
    def metrics(self) -> CacheMetrics:
        """Hits of this engine's requests, from the facts."""
        return self.index.inspect(lambda state: CacheMetrics.of(state, self.index.engine))

    def close(self) -> None:
        """End this engine's life; what is cached stays."""
        try:
            self.index.close()
        finally:
            if self._owns_connection:
                self._connection.close()

    def __enter__(self) -> PrefixCacheManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PrefixCacheManager({self.index!r}, splitwise_role={self.splitwise_role!r})"

    # --- inside -----------------------------------------------------------------------------------------------------

    def _joined(self, name: object, engine: object, pool: object, policy: Policy | None) -> CacheIndex:
        """Join; a pool that an earlier life gave another size gets the one this configuration says."""
        wanted = self._settings.gpu_blocks
        try:
            return self._join(name, engine, pool, policy, wanted)
        except DifferentIndex as different:
            if pool is not None or different.what != f"blocks in pool 'gpu:{engine}'":
                raise
        joined = self._join(name, engine, pool, policy, None)
        try:
            joined.resize(wanted)
        except BaseException:
            joined.close()
            raise
        return joined

    def _join(
        self, name: object, engine: object, pool: object, policy: Policy | None, gpu_blocks: int | None
    ) -> CacheIndex:
        return CacheIndex(
            self._connection,
            name=name,  # type: ignore[arg-type]  # what was configured is checked there
            engine=engine,  # type: ignore[arg-type]
            gpu_pool=pool,  # type: ignore[arg-type]
            gpu_blocks=gpu_blocks,
            block_size=self._settings.block_size,
            tensor_parallel_size=self.tensor_parallel_size,
            cpu_blocks=self._settings.cpu_blocks,
            policy=policy,
            rejoin_automatically=True,  # its scheduler is told once that its requests are gone, and goes on
        )
