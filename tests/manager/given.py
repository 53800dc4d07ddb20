"""Given managers on a log: the process they run in, FastDeploy's configuration and tasks, and workers that report.

Owns doubles for the doors of a process and short ways to bring a cache into a state, by public calls only. Blocks hold
two tokens here, as in the seed, so `[1, 2, 3, 4]` are two blocks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

import attrs

from events.job_ports import Delivery
from events.log import LogConnection
from statecore import Policy, PrefixCacheManager
from statecore.invariants import leaked_blocks, violations
from statecore.manager.surroundings import Process, WorkerOrder
from tests.jobs.given import seated

BLOCK = 2
ON_DEMAND = Policy(free_low=0, free_high=0)
"""Copies leave only when blocks are needed, so that a test decides when."""


# --- the process ----------------------------------------------------------------------------------------------------


class Metric:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.values: list[object] = []

    def set(self, value: float) -> None:
        self.values.append(value)

    def inc(self, value: float = 1) -> None:
        self.values.append(("inc", value))

    def dec(self, value: float = 1) -> None:
        self.values.append(("dec", value))

    def observe(self, value: float) -> None:
        self.values.append(("observe", value))


class Sink:
    """Metrics by name, made when they are first used."""

    def __init__(self) -> None:
        self.metrics: dict[str, Metric] = {}

    def __getattr__(self, name: str) -> Metric:
        return self.metrics.setdefault(name, Metric())


@attrs.define
class WorkerProcess:
    """A process that was not started."""

    pid: int
    code: int | None = None

    def poll(self) -> int | None:
        return self.code


@attrs.define
class Launcher:
    """Notes orders; its workers are ready at once, or `fails`."""

    orders: list[WorkerOrder] = attrs.Factory(list)
    fails: str = ""

    def launch(self, order: WorkerOrder) -> Sequence[Process]:
        self.orders.append(order)
        if self.fails:
            raise RuntimeError(self.fails)
        return [WorkerProcess(1000 + rank) for rank in range(order.ranks)]


@attrs.define
class Place:
    """The surroundings of managers on one log, and what they are told there.

    Attributes:
        opened: managers, to be closed at the end.
    """

    log: LogConnection
    index: str
    variables: dict[str, str] = attrs.Factory(dict)
    sink: Sink = attrs.Factory(Sink)
    worker_launcher: Launcher = attrs.Factory(Launcher)
    notices: list[str] = attrs.Factory(list)
    opened: list[PrefixCacheManager] = attrs.Factory(list)

    def settings(self) -> Mapping[str, str]:
        return self.variables

    def connection(self) -> LogConnection:
        return self.log

    def metrics(self) -> Sink:
        return self.sink

    def launcher(self, connection: object) -> Launcher:
        assert connection is self.log
        return self.worker_launcher

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def manager(
        self,
        engine: str = "engine-a",
        role: str = "mixed",
        *,
        tensor_parallel_size: int = 1,
        swap_timeout_s: float = 20.0,
        gpu_pool: str | None = None,
        attention_backend: object = None,
        quantization: str | None = None,
        **cache: object,
    ) -> PrefixCacheManager:
        """A manager; `cache` are fields of its cache_config."""
        made = PrefixCacheManager(
            config(quantization=quantization, **cache),
            tensor_parallel_size,
            role,
            connection=self.log,
            index=self.index,
            engine=engine,
            gpu_pool=gpu_pool,
            policy=ON_DEMAND,
            attention_backend=attention_backend,  # type: ignore[arg-type]
            surroundings=self,
            swap_timeout_s=swap_timeout_s,
        )
        self.opened.append(made)
        return made

    def close(self) -> None:
        for made in self.opened:
            if made.index.session:
                must_be_sound(made)
                made.close()

    # --- workers ----------------------------------------------------------------------------------------------------

    @contextmanager
    def workers(self, *managers: PrefixCacheManager, fails: str = "") -> Iterator[None]:
        """Meanwhile the workers of these managers' pools report every transfer, as done or as failed."""
        stop = threading.Event()
        errors: list[BaseException] = []

        def work(pool: str) -> None:
            seat = seated(self.log, self.index, name="worker", pool=pool)
            try:
                while not stop.is_set():
                    delivery = seat.take(0.02)
                    if isinstance(delivery, Delivery):
                        seat.finish(delivery, not fails, fails)
            except BaseException as error:
                errors.append(error)
                raise

        pools = dict.fromkeys(manager.index.gpu_pool for manager in managers)
        threads = [threading.Thread(target=work, args=(pool,)) for pool in pools]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            assert not errors, errors

    def report(self, manager: PrefixCacheManager, transfer: str, *, ok: bool = True, reason: str = "") -> None:
        """The worker of a manager's pool reports this transfer, which must be the next of its stream."""
        seat = seated(self.log, self.index, name="worker", pool=manager.index.gpu_pool)
        delivery = seat.take(5.0)
        assert isinstance(delivery, Delivery), delivery
        assert delivery.job.transfer == transfer
        seat.finish(delivery, ok, reason)


def config(*, quantization: str | None = None, **cache: object) -> SimpleNamespace:
    """FastDeploy's configuration objects, as far as anybody reads them."""
    gpu_blocks = cache.pop("num_gpu_blocks", 6)
    fields: dict[str, object] = {
        "total_block_num": gpu_blocks,
        "prefill_kvcache_block_num": gpu_blocks,
        "num_cpu_blocks": 0,
        "block_size": BLOCK,
        "enable_prefix_caching": True,
        "disable_chunked_mm_input": False,
        "cache_dtype": "float16",
        "model_cfg": SimpleNamespace(num_hidden_layers=3),
    }
    return SimpleNamespace(
        cache_config=SimpleNamespace(**{**fields, **cache}),
        model_config=SimpleNamespace(num_hidden_layers=3, num_key_value_heads=4, head_dim=8, dtype="float16"),
        quant_config=None if quantization is None else SimpleNamespace(kv_cache_quant_type=quantization),
    )


# --- tasks ----------------------------------------------------------------------------------------------------------


def task(request_id: str, prompt: object, output: Sequence[int] = (), **more: object) -> SimpleNamespace:
    """A FastDeploy request that has not begun."""
    return SimpleNamespace(
        request_id=request_id, prompt_token_ids=prompt, output_token_ids=list(output), block_tables=[], **more
    )


def images(*places: tuple[int, int, str]) -> dict[str, list[object]]:
    """`multimodal_inputs` with images at (offset, length, hash)."""
    return {
        "mm_positions": [SimpleNamespace(offset=offset, length=length) for offset, length, _ in places],
        "mm_hashes": [key for _, _, key in places],
    }


def schedule(manager: PrefixCacheManager, request: SimpleNamespace, computed: int | None = None) -> None:
    """What FastDeploy's scheduler does for a request that begins: match, allocate, and put the full blocks in the tree."""
    length = len(request.prompt_token_ids) + len(request.output_token_ids)
    common, _, _ = manager.request_match_blocks(request, BLOCK)
    lacking = manager.get_required_block_num(length, BLOCK) - len(common)
    request.block_tables = [*common, *manager.allocate_gpu_blocks(lacking, request.request_id)]
    manager.update_cache_blocks(request, BLOCK, length if computed is None else computed)


def finish(manager: PrefixCacheManager, request: SimpleNamespace) -> None:
    """What FastDeploy's scheduler does for a request that has ended."""
    manager.release_block_ids(request)
    manager.recycle_gpu_blocks(request.block_tables[request.num_cached_blocks :], request.request_id)
    request.block_tables = []


def cache(manager: PrefixCacheManager, prompt: list[int], request_id: str = "warm", **more: object) -> list[int]:
    """A prompt was computed and its request has ended: its blocks, which are cached."""
    request = task(request_id, prompt, (), **more)
    schedule(manager, request)
    table = list(request.block_tables)
    finish(manager, request)
    return table


def evict(manager: PrefixCacheManager, blocks: int) -> None:
    """So many more blocks of the GPU pool become free."""
    manager.free_block_ids(len(manager.gpu_free_block_list) + blocks)


# --- what must hold -------------------------------------------------------------------------------------------------


def must_be_sound(manager: PrefixCacheManager) -> None:
    assert manager.index.inspect(violations) == []
    assert manager.index.inspect(leaked_blocks) == 0


@contextmanager
def unchanged(manager: PrefixCacheManager) -> Iterator[None]:
    """Nothing that happens inside leaves a trace: not in the state, not in the log."""
    before = manager.index.refresh(), manager.index.digest()
    yield
    assert (manager.index.refresh(), manager.index.digest()) == before
    must_be_sound(manager)
