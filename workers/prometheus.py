"""The metrics of a process, for Prometheus: under the names FastDeploy gives them, so that dashboards go on working.

Owns the table of names, one registry for the process, and the HTTP endpoint over it, on loopback only. A metric exists
from its first use on. The registry is ours: an engine whose own metrics carry the same names keeps them in the default one.

| kind    | is                             | takes         |
|---------|--------------------------------|---------------|
| gauge   | a level, as it is now          | set, inc, dec |
| counter | a total since the process began | inc          |
"""

from __future__ import annotations

import threading
from typing import Final

import attrs
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from events.errors import InvalidInput

ADDRESS: Final = "127.0.0.1"
PREFIX: Final = "fastdeploy:"

_GAUGES: Final = {
    "max_gpu_block_num": "Blocks of the GPU pool",
    "free_gpu_block_num": "Blocks of the GPU pool that belong to nobody",
    "available_gpu_block_num": "Blocks of the GPU pool that are free or hold what no request uses",
    "available_gpu_resource": "Share of the GPU pool's blocks that is free, 0 to 1",
    "gpu_cache_usage_perc": "Share of the GPU pool's blocks that is in use, 0 to 1",
    "hit_req_rate": "Share of requests that found a cached prefix, 0 to 1",
    "hit_token_rate": "Share of prompt tokens that were cached, 0 to 1",
    "cpu_hit_token_rate": "Share of prompt tokens that were cached in the host pool, 0 to 1",
    "gpu_hit_token_rate": "Share of prompt tokens that were cached in the GPU pool, 0 to 1",
    "num_requests_running": "Requests that are running",
    "num_requests_waiting": "Requests that wait to be scheduled",
    "batch_size": "Requests in the present batch",
    "max_batch_size": "Requests a batch can have",
    "available_batch_size": "Requests the present batch could take in addition",
}
_COUNTERS: Final = {
    "prefix_cache_token_num": "Prompt tokens that were cached",
    "prefix_gpu_cache_token_num": "Prompt tokens that were cached in the GPU pool",
    "prefix_cpu_cache_token_num": "Prompt tokens that were cached in the host pool",
    "prefix_ssd_cache_token_num": "Prompt tokens that were cached on disk",
    "requests_number": "Requests received",
    "request_success_total": "Requests that ended well",
    "send_cache_failed_num": "Requests whose cache could not be sent to another engine",
}
KNOWN: Final = (*_GAUGES, *_COUNTERS)


@attrs.frozen(slots=True)
class PrometheusMetric:
    """One metric. What its kind does not have is refused: a total that goes down would break every rate over it."""

    name: str
    inner: Gauge | Counter

    def set(self, value: float) -> None:
        self._gauge("set").set(value)

    def inc(self, value: float = 1) -> None:
        self.inner.inc(value)

    def dec(self, value: float = 1) -> None:
        self._gauge("dec").dec(value)

    def observe(self, value: float) -> None:
        raise InvalidInput(f"{self.name} is a {_kind(self.inner)}, and observe({value!r}) is for a histogram")

    def _gauge(self, asked: str) -> Gauge:
        if isinstance(self.inner, Gauge):
            return self.inner
        raise InvalidInput(f"{self.name} is a counter: it has inc, and no {asked}")


class PrometheusMetrics:
    """A `MetricsSink`: `metrics.free_gpu_block_num.set(4)`. Any thread may use it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._mutex = threading.Lock()
        self._endpoint: _Endpoint | None = None

    def __getattr__(self, name: str) -> PrometheusMetric:
        if name not in KNOWN:
            raise AttributeError(f"there is no metric {name!r}; there are {', '.join(KNOWN)}")
        with self._mutex:
            made: PrometheusMetric | None = self.__dict__.get(name)  # another thread may have been here first
            if made is None:
                made = PrometheusMetric(name, self._make(name))
                self.__dict__[name] = made  # from now on found without coming here
        return made

    def _make(self, name: str) -> Gauge | Counter:
        if name in _GAUGES:
            return Gauge(PREFIX + name, _GAUGES[name], registry=self.registry)
        return Counter(PREFIX + name, _COUNTERS[name], registry=self.registry)

    @property
    def port(self) -> int | None:
        """Where the endpoint listens, on loopback; None without one."""
        return None if self._endpoint is None else self._endpoint.port

    def serve(self, port: int) -> None:
        """Answer HTTP on `port` of loopback; 0: any free one. Nothing happens when it does already.

        Raises:
            InvalidInput: it answers on another port already, or this one is somebody else's.
        """
        with self._mutex:
            if self._endpoint is None:
                self._endpoint = _Endpoint(port, self.registry)
            elif port not in (0, self._endpoint.port):
                raise InvalidInput(f"the metrics of this process are on port {self._endpoint.port} already, not {port}")

    def close(self) -> None:
        """End the endpoint; the metrics stay."""
        with self._mutex:
            if self._endpoint is not None:
                self._endpoint.close()
                self._endpoint = None


class _Endpoint:
    def __init__(self, port: int, registry: CollectorRegistry) -> None:
        try:
            self._server, self._thread = start_http_server(port, addr=ADDRESS, registry=registry)
        except OSError as error:
            raise InvalidInput(f"port {port} of {ADDRESS} cannot serve the metrics: {error.strerror}") from error
        self.port = self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _kind(inner: Gauge | Counter) -> str:
    return "gauge" if isinstance(inner, Gauge) else "counter"


PROCESS_METRICS: Final = PrometheusMetrics()
"""The sink of this process: all its managers set the same gauges, as in the reference."""
