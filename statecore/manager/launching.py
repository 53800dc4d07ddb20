"""Starting the processes that move bytes.

Owns the order for workers: what an engine's configuration says about its caches, as the launcher of the surroundings takes
it. One worker per tensor-parallel rank carries out swaps and, where the role hands requests over, sends.
"""

from __future__ import annotations

from collections.abc import Sequence

from events.errors import InvalidInput
from statecore import door
from statecore.manager import shapes
from statecore.manager.base import ManagerBase
from statecore.manager.settings import MIXED
from statecore.manager.surroundings import Process, WorkerOrder


class Launching(ManagerBase):
    """See the module. Ports and addresses that FastDeploy passes have no use here: workers find their work in the log."""

    def get_kv_cache_shape(self, max_num_blocks: int) -> tuple[list[object], list[object]]:
        """Shapes of one layer's keys and values for so many blocks, from the attention backend; see `shapes.py`."""
        return shapes.cache_shapes(
            self._config, self._attention_backend, max_num_blocks, self.index.block_size, self.tensor_parallel_size
        )

    def launch_cache_manager(
        self,
        cache_config: object,
        tensor_parallel_size: int,
        device_ids: Sequence[int],
        pod_ip: str = "",
        engine_worker_queue_port: object = None,
        ipc_suffix: object = None,
        create_cache_tensor: bool = True,
    ) -> list[Process]:
        """Start one worker per rank; returns them, in the order of ranks, when all are ready.

        Raises:
            RuntimeError: one ended or was not ready in time, with what it said last.
            InvalidInput: the configuration cannot be.
        """
        del create_cache_tensor  # whoever comes first creates the memory
        blocks = self.index.inspect(lambda state: state.pools[self.index.gpu_pool].blocks)
        keys, values = self.get_kv_cache_shape(blocks)
        if self.splitwise_role == MIXED:
            order = self._order(cache_config, tensor_parallel_size, device_ids, keys, values)
            return list(self._surroundings.launcher(self._connection).launch(order))
        processes = self.launch_cache_messager(
            cache_config,
            tensor_parallel_size,
            device_ids,
            shapes.written(keys),
            shapes.written(values),
            pod_ip,
            engine_worker_queue_port,
            ipc_suffix,
        )
        if processes is None:
            raise RuntimeError(
                f"the workers of engine {self.index.engine!r} (role {self.splitwise_role}) did not start; the operator has "
                "been told why"
            )
        return processes

    def launch_cache_messager(
        self,
        cache_config: object,
        tensor_parallel_size: int,
        device_ids: Sequence[int],
        key_cache_shape: str | Sequence[int],
        value_cache_shape: str | Sequence[int],
        pod_ip: str = "",
        engine_worker_queue_port: object = None,
        ipc_suffix: object = None,
    ) -> list[Process] | None:
        """Start the workers of an engine that hands requests over; None when that failed: the operator is told why.

        Args:
            key_cache_shape, value_cache_shape: as "2,3"; the second "" where there are no values.
        """
        del pod_ip, engine_worker_queue_port, ipc_suffix
        order = self._order(cache_config, tensor_parallel_size, device_ids, key_cache_shape, value_cache_shape)
        try:
            return list(self._surroundings.launcher(self._connection).launch(order))
        except RuntimeError as error:
            self._surroundings.notice(f"workers of pool {order.pool!r} did not start: {error}")
            return None

    def _order(
        self, cache_config: object, ranks: object, device_ids: object, keys: object, values: object
    ) -> WorkerOrder:
        if door.whole(ranks, "tensor_parallel_size", least=1, most=1024) != self.tensor_parallel_size:
            raise InvalidInput(
                f"this engine joined its index with {self.tensor_parallel_size} ranks, workers for {ranks} are asked for"
            )
        if not isinstance(device_ids, list | tuple):
            raise InvalidInput(f"device_ids is a list of integers, not {door.shown(device_ids)}")
        value_shape = shapes.read_shape(values, "the value cache's shape")
        key_shape = shapes.read_shape(keys, "the key cache's shape")
        if not key_shape:
            raise InvalidInput("the key cache's shape has at least one dimension")
        dtype = getattr(cache_config, "cache_dtype", None)
        if not isinstance(dtype, str):
            raise InvalidInput(f"cache_config.cache_dtype is a name like 'float16', not {door.shown(dtype)}")
        cpu_pool = self.index.cpu_pool
        host_blocks = 0 if cpu_pool is None else self.index.inspect(lambda state: state.pools[cpu_pool].blocks)
        return WorkerOrder(
            index=self.index.name,
            pool=self.index.gpu_pool,
            ranks=self.tensor_parallel_size,
            layers=shapes.layers_of(self._config),
            dtype=dtype,
            key_shape=key_shape,
            value_shape=value_shape or None,
            host_pool=cpu_pool,
            host_blocks=host_blocks,
            device_ids=tuple(door.whole(device, "a device id", least=0, most=1 << 16) for device in device_ids),
            sends=self.splitwise_role != MIXED,
        )
