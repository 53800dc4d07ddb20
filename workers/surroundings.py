"""What statecore's `PrefixCacheManager` takes from an ordinary process: environment, log, metrics, worker processes.

Owns the names of the settings and how an order for workers becomes processes. Registered in `pyproject.toml` under the entry
point group `statecore.surroundings`, because statecore may import neither this package nor a metrics library.

| variable                 | means                                                                                        |
|--------------------------|----------------------------------------------------------------------------------------------|
| `STATECORE_URL`          | where the log is: any URL of `events/connect.py`; not set: in memory                         |
| `STATECORE_STORE`        | what holds the bytes (`workers/stores.py`); not set: numpy                                   |
| `STATECORE_METRICS_PORT` | serve the metrics for Prometheus on this port of loopback; 0: any; not set: nowhere          |
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from events import connect
from events.errors import InvalidInput
from events.job_queue import this_host
from events.log import LogConnection
from events.ports import Connection
from events.server_url import without_password
from statecore.manager.surroundings import Process, WorkerOrder
from workers import shared_memory
from workers.launcher import launch_workers
from workers.layout import CacheLayout, format_shape
from workers.prometheus import PROCESS_METRICS, PrometheusMetrics
from workers.segment_header import Process as Identity
from workers.segment_header import segment_name
from workers.store import MemoryGone
from workers.stores import StoreSettings

URL_VARIABLE: Final = "STATECORE_URL"
STORE_VARIABLE: Final = "STATECORE_STORE"
METRICS_PORT_VARIABLE: Final = "STATECORE_METRICS_PORT"

_SERVERS: Final = ("redis://", "rediss://", "unix://", "redis+", "rediss+")
_HIDDEN: Final = "***"
_GPU_STORE: Final = "paddle@gpu"
_PORT_MAX: Final = 65_535
_UNKNOWN_CODE: Final = -1


class InstalledSurroundings:
    """Implements `statecore.manager.surroundings.Surroundings` for this process."""

    def settings(self) -> Mapping[str, str]:
        return os.environ

    def connection(self) -> LogConnection:
        """A new one each time. In memory each is a world of its own: engines that share an index share the connection."""
        return connect(os.environ.get(URL_VARIABLE) or "memory://")

    def metrics(self) -> PrometheusMetrics:
        """The sink of this process, served where `STATECORE_METRICS_PORT` says. InvalidInput: that cannot be a port."""
        text = os.environ.get(METRICS_PORT_VARIABLE)
        if text:
            if not (text.isascii() and text.isdigit() and int(text) <= _PORT_MAX):
                raise InvalidInput(f"{METRICS_PORT_VARIABLE} is a port, 0 to {_PORT_MAX}, not {text!r:.80}")
            PROCESS_METRICS.serve(int(text))
        return PROCESS_METRICS

    def launcher(self, connection: Connection) -> WorkerLauncher:
        return WorkerLauncher(connection, os.environ)

    def notice(self, text: str) -> None:
        logging.getLogger("statecore").warning("%s", text)


class RunningWorker:
    """A worker that another engine has started, or an earlier life of this one."""

    def __init__(self, identity: Identity) -> None:
        self.pid = identity.pid
        self._identity = identity

    def poll(self) -> int | None:
        """None while it lives. How it ended only its parent knows: -1."""
        return None if self._identity.alive else _UNKNOWN_CODE


class WorkerLauncher:
    """Implements `statecore.manager.surroundings.Launcher` with `workers.launcher`.

    Workers outlive the engine that started them, and engines that share a GPU pool share its workers. So a pool whose
    ranks all have one keeps them; if some are missing, all are started anew.
    """

    def __init__(self, connection: Connection, settings: Mapping[str, str], *, log_folder: Path | None = None) -> None:
        """`settings`: see the table of this module. `log_folder`: as in `launch_workers`."""
        self._connection = connection
        self._settings = settings
        self._log_folder = log_folder

    def launch(self, order: WorkerOrder) -> Sequence[Process]:
        """One worker per rank, ready.

        Raises:
            RuntimeError: the log is in memory; or a worker ended or was not ready in time, with what it said last.
            InvalidInput: the order or the store cannot be; nothing was started.
        """
        connection, url = self._server()
        layout = layout_of(order)
        store = store_of(order, layout, self._settings.get(STORE_VARIABLE) or "numpy")
        running = _running(connection, order, layout)
        if running:
            return running
        try:
            return launch_workers(
                url, order.index, order.pool, order.ranks, store, takeover=True, log_folder=self._log_folder
            )
        except RuntimeError:
            running = _running(connection, order, layout)  # an engine of the same pool was faster
            if not running:
                raise
            return running

    def _server(self) -> tuple[LogConnection, str]:
        """The log, and a URL under which another process finds its server."""
        connection = self._connection
        if not isinstance(connection, LogConnection):
            raise RuntimeError(f"workers need a connection that `events.connect` made, not {type(connection).__name__}")
        url, known = connection.url, self._settings.get(URL_VARIABLE, "")
        if without_password(known) == url:
            url = known  # a connection does not show its password
        hidden = _HIDDEN in url and url != known
        if hidden or not url.startswith(_SERVERS):
            raise RuntimeError(
                "workers are processes of their own and need a server whose URL they can be given: set "
                f"{URL_VARIABLE} to redis://, rediss://, unix:// or embedded:///folder. This index is on {connection.url}"
            )
        return connection, url


def layout_of(order: WorkerOrder) -> CacheLayout:
    """The layout of the GPU pool an order is about. InvalidInput when it cannot be."""
    keys, values = order.key_shape, order.value_shape
    if values is not None and values != keys:
        raise InvalidInput(
            f"keys of shape {format_shape(keys)!r} and values of shape {format_shape(values)!r}: a pool's tensors have "
            "one shape, or there are no values"
        )
    if not keys:
        raise InvalidInput("a cache shape is [num_blocks, …]; this one has no dimension")
    return CacheLayout(order.layers, keys[0], keys[1:], order.dtype, values=values is not None)


def store_of(order: WorkerOrder, layout: CacheLayout, store: str) -> StoreSettings:
    """What the workers of an order are told about their memory."""
    devices: tuple[int, ...] = ()
    if store.startswith(_GPU_STORE) and order.device_ids:
        if len(order.device_ids) != order.ranks:
            raise InvalidInput(f"{order.ranks} ranks need as many devices, not {len(order.device_ids)}")
        store, devices = f"{_GPU_STORE}:0", order.device_ids
    made = StoreSettings(store=store, layout=layout.to_json(), host_blocks=order.host_blocks, devices=devices)
    return made if order.host_pool is None else attrs.evolve(made, host_pool=order.host_pool)


def _running(connection: LogConnection, order: WorkerOrder, layout: CacheLayout) -> Sequence[Process]:
    """The workers of all ranks, when all live on this machine; else none.

    Raises:
        InvalidInput: the memory they serve has another layout.
    """
    found: list[Process] = []
    for beat in connection.jobs(order.index, order.pool, 0, order.ranks, "launcher").alive():
        identity = Identity.of(beat.pid) if beat is not None and beat.host == this_host() else None
        if identity is None:
            return ()
        found.append(RunningWorker(identity))
    for rank in range(order.ranks):
        there = _layout_there(order, rank)
        if there not in (None, layout):
            raise InvalidInput(
                f"pool {order.pool!r} has workers, and memory of {there}; asked for {layout}. End them first (pids "
                f"{', '.join(str(worker.pid) for worker in found)})"
            )
    return found


def _layout_there(order: WorkerOrder, rank: int) -> CacheLayout | None:
    """Of the pool's shared memory; None: it has none (yet)."""
    path = shared_memory.SHARED_FOLDER / segment_name(order.index, order.pool, rank)
    try:
        with shared_memory.opened(path) as descriptor:
            return shared_memory.read_header(path, descriptor).layout
    except MemoryGone:
        return None
