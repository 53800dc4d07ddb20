"""statecore's manager in the place of FastDeploy's: how it is built, started and taken down.

Owns the one place that constructs `PrefixCacheManager`. What FastDeploy has in its configuration objects stands here with
the same names; what statecore needs beside it (which log, which index, which engine) goes in as arguments, and in FastDeploy
itself comes from the environment (README).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import attrs

from events.errors import InvalidInput
from events.log import LogConnection
from ops.demo.contents import NO_CONTENTS, Contents, SharedContents
from ops.examples.fastdeploy.serve import Serving
from ops.examples.fastdeploy.settings import Settings
from ops.examples.fastdeploy.task import Task
from ops.examples.fastdeploy.workload import Workload
from statecore import CacheIndex, PrefixCacheManager
from workers.launcher import stop_workers
from workers.segment_header import Process
from workers.shared_pools import remove_stale
from workers.worker_process import WorkerSettings

LAYERS: Final = 2
HEADS: Final = 1
HEAD_DIM: Final = 8
DTYPE: Final = "float16"
"""A model small enough that the bytes of its cache cost next to nothing, and are there all the same."""

MIXED: Final = "mixed"
PREFILL: Final = "prefill"
DECODE: Final = "decode"

_BYTES: Final = 2
STOP_S: Final = 5.0
POLL_S: Final = 0.02
WORKER_MODULE: Final = b"workers.worker_process"


class SpecError(ValueError):
    """These engines cannot be; the message says why."""


@attrs.frozen
class EngineSpec:
    """Everything an engine process is told at its start.

    Attributes:
        url: of the log's server.
        place: which of the `engines` it is, from 0.
        gpu_blocks: of its own pool; host_blocks: of the pool all share, 0: none.
        abort_every: one client of so many goes away.
        role: FastDeploy's splitwise_role.
    """

    url: str
    index: str
    place: int
    engines: int
    gpu_blocks: int
    host_blocks: int
    settings: Settings
    work: Workload
    abort_every: int = 0
    role: str = MIXED

    @property
    def engine(self) -> str:
        return f"{'engine' if self.role == MIXED else self.role}-{self.place}"

    @property
    def gpu_pool(self) -> str:
        return f"gpu:{self.engine}"

    @property
    def block_bytes(self) -> int:
        """Of one block: keys and values of all layers."""
        return 2 * LAYERS * HEADS * HEAD_DIM * self.settings.block_size * _BYTES

    def at(self, url: str) -> EngineSpec:
        return attrs.evolve(self, url=url)


def engine_specs(
    work: Workload,
    settings: Settings,
    *,
    engines: int,
    gpu_blocks: int,
    host_blocks: int,
    index: str,
    abort_every: int,
    roles: Sequence[str] = (),
) -> list[EngineSpec]:
    """Equal engines, or one for each of these roles.

    Raises:
        SpecError: more engines than requests; or a role that can refuse nothing meets a request that never fits.
    """
    if roles and (longest := settings.blocks_at_most(work.longest)) > gpu_blocks:
        raise SpecError(f"the longest request needs {longest} blocks, more than --gpu-blocks {gpu_blocks}")
    if engines > len(work.requests):
        raise SpecError(f"{engines} engines for {len(work.requests)} requests: give each at least one")
    return [
        EngineSpec("memory://", index, place, engines, gpu_blocks, host_blocks, settings, work, abort_every, role)
        for place, role in enumerate(roles or [MIXED] * engines)
    ]


def fastdeploy_config(spec: EngineSpec) -> SimpleNamespace:
    """FastDeploy's configuration objects, as far as a cache manager reads them."""
    model = SimpleNamespace(
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=HEAD_DIM, dtype=DTYPE
    )
    cache = SimpleNamespace(
        total_block_num=spec.gpu_blocks,
        prefill_kvcache_block_num=spec.gpu_blocks,
        num_cpu_blocks=spec.host_blocks,
        block_size=spec.settings.block_size,
        enable_prefix_caching=True,
        enable_hierarchical_cache=spec.host_blocks > 0,
        cache_dtype=DTYPE,
        model_cfg=model,
    )
    return SimpleNamespace(
        cache_config=cache,
        model_config=model,
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        speculative_config=SimpleNamespace(num_speculative_tokens=spec.settings.num_speculative_tokens),
        quant_config=None,
    )


@attrs.frozen
class Plugged:
    """A manager that serves, with what the example looks at beside it."""

    spec: EngineSpec
    manager: PrefixCacheManager
    index: CacheIndex
    contents: Contents

    def serving(self, tasks: Iterable[Task], is_due: Callable[[int], bool] = lambda _number: True) -> Serving:
        return Serving(
            self.manager,
            self.index,
            self.spec.settings,
            tasks,
            contents=self.contents,
            abort_every=self.spec.abort_every,
            is_due=is_due,
        )


@contextmanager
def plugged(spec: EngineSpec, connection: LogConnection) -> Iterator[Plugged]:
    """A manager on this log; with a host pool, or a role that sends, its workers, too. At the end they are ended."""
    config = fastdeploy_config(spec)
    manager = PrefixCacheManager(config, 1, spec.role, connection=connection, index=spec.index, engine=spec.engine)
    workers: Sequence[object] = ()
    contents: Contents = NO_CONTENTS
    try:
        if spec.host_blocks or spec.role != MIXED:
            workers = manager.launch_cache_manager(config.cache_config, 1, [0], "127.0.0.1", 0, "", True)
            contents = SharedContents(spec.index, manager.index.gpu_pool, 1)
        yield Plugged(spec, manager, manager.index, contents)
    finally:
        stop_workers([worker for worker in workers if isinstance(worker, subprocess.Popen)], timeout_s=STOP_S)
        if isinstance(contents, SharedContents):
            contents.close()
        manager.index.close()


@contextmanager
def nothing_left_behind(index: str) -> Iterator[None]:
    """At the end, whatever came of the engines: no worker of this index lives here, and none of its memory is left."""
    try:
        yield
    finally:
        _end(_workers(index))
        remove_stale(index)


def _workers(index: str) -> list[Process]:
    """Workers of the index on this machine, those included that have not said yet that they are ready."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended just now
            continue
        if WORKER_MODULE in words and _index_of(words[words.index(WORKER_MODULE) + 1 :]) == index:
            process = Process.of(int(folder.name))
            if process is not None:
                found.append(process)
    return found


def _index_of(words: Sequence[bytes]) -> str | None:
    """Of a worker, by its settings."""
    try:
        return WorkerSettings.from_json(words[0].decode()).index if words else None
    except (InvalidInput, UnicodeDecodeError):
        return None


def _end(processes: Sequence[Process]) -> None:
    """SIGTERM, then SIGKILL. Only who is still the process that we found."""
    for number, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
        for process in processes:
            if process.alive:
                os.kill(process.pid, number)
        end = time.monotonic() + patience_s
        while any(process.alive for process in processes) and time.monotonic() < end:
            time.sleep(POLL_S)
