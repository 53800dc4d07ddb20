"""The Prometheus sink: the reference's names, its kinds, and an endpoint on loopback when it is asked for."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from urllib.request import urlopen

import pytest
from prometheus_client import generate_latest

from events.errors import InvalidInput
from statecore.manager.surroundings import Metric
from tests.servers import LOOPBACK
from workers.prometheus import KNOWN, PROCESS_METRICS, PrometheusMetrics
from workers.surroundings import InstalledSurroundings


@pytest.fixture
def metrics() -> Iterator[PrometheusMetrics]:
    made = PrometheusMetrics()
    yield made
    made.close()


def shown(metrics: PrometheusMetrics) -> dict[str, float]:
    """What a scrape gets: value by name."""
    lines = generate_latest(metrics.registry).decode().splitlines()
    values = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in values if "_created" not in name}


def test_the_names_of_the_reference_are_kept(metrics: PrometheusMetrics) -> None:
    """Otherwise dashboards made for FastDeploy would be empty."""
    metrics.free_gpu_block_num.set(4)
    metrics.available_gpu_resource.set(0.5)
    metrics.prefix_gpu_cache_token_num.inc(64)
    metrics.prefix_gpu_cache_token_num.inc()

    assert shown(metrics) == {
        "fastdeploy:free_gpu_block_num": 4,
        "fastdeploy:available_gpu_resource": 0.5,
        "fastdeploy:prefix_gpu_cache_token_num_total": 65,
    }


def test_every_known_name_is_a_metric(metrics: PrometheusMetrics) -> None:
    """Otherwise a manager would fail at the first request that touches a name which cannot be registered."""
    for name in KNOWN:
        metric: Metric = getattr(metrics, name)
        metric.inc(2)
        assert getattr(metrics, name) is metric

    assert set(shown(metrics).values()) == {2}


def test_a_gauge_goes_both_ways(metrics: PrometheusMetrics) -> None:
    """Otherwise "how many run now" would only grow."""
    metrics.num_requests_running.inc(3)
    metrics.num_requests_running.dec()

    assert shown(metrics) == {"fastdeploy:num_requests_running": 2}


def test_an_unknown_name_is_refused_with_the_known_ones(metrics: PrometheusMetrics) -> None:
    """Otherwise a misspelled metric would be set for ever and never shown."""
    with pytest.raises(AttributeError, match=r"'free_gpu_blocks'.*free_gpu_block_num, "):
        _ = metrics.free_gpu_blocks

    assert shown(metrics) == {}


def test_what_a_kind_does_not_have_is_refused(metrics: PrometheusMetrics) -> None:
    """Otherwise a total could go down, and every rate over it be wrong."""
    with pytest.raises(InvalidInput, match="requests_number is a counter"):
        metrics.requests_number.dec()
    with pytest.raises(InvalidInput, match="requests_number is a counter"):
        metrics.requests_number.set(3)
    for metric, kind in ((metrics.requests_number, "counter"), (metrics.hit_req_rate, "gauge")):
        with pytest.raises(InvalidInput, match=f"is a {kind}, and observe"):
            metric.observe(0.3)


def test_threads_that_come_first_together_get_one_metric(metrics: PrometheusMetrics) -> None:
    """Otherwise the second would fail, because the name is registered already."""
    start = threading.Barrier(8)
    found = []

    def use() -> None:
        start.wait()
        metric = metrics.requests_number
        metric.inc()
        found.append(metric)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(map(id, found))) == 1
    assert shown(metrics) == {"fastdeploy:requests_number_total": 8}


# --- the endpoint ---------------------------------------------------------------------------------------------------


def test_a_scrape_answers_on_loopback_and_ends(metrics: PrometheusMetrics) -> None:
    """Otherwise nobody could read the metrics, or everybody on the network could.

    Given a metric, when served on any port, then a scrape shows it; other addresses of the machine do not answer; when
    closed, nothing listens, and it can be served again.
    """
    metrics.max_gpu_block_num.set(8)
    metrics.serve(0)
    port = metrics.port
    assert port
    with urlopen(f"http://{LOOPBACK}:{port}/metrics", timeout=5) as answer:
        assert b"fastdeploy:max_gpu_block_num 8.0" in answer.read()
    with socket.socket() as other:
        other.settimeout(0.5)
        assert other.connect_ex(("127.0.0.2", port)) != 0, "only 127.0.0.1 is bound"

    metrics.close()
    assert metrics.port is None
    with socket.socket() as gone:
        assert gone.connect_ex((LOOPBACK, port)) != 0
    metrics.serve(port)


def test_a_port_that_is_taken_is_refused(metrics: PrometheusMetrics) -> None:
    """Otherwise an engine would believe it is watched."""
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"port {port} .* in use"):
            metrics.serve(port)
    assert metrics.port is None


def test_one_process_has_one_endpoint(metrics: PrometheusMetrics) -> None:
    """Otherwise a second manager of the process would fail, because the port is taken: by the first."""
    metrics.serve(0)
    port = metrics.port
    assert port
    metrics.serve(0)
    metrics.serve(port)
    assert metrics.port == port
    with pytest.raises(InvalidInput, match=f"port {port} already"):
        metrics.serve(port - 1)


def test_the_endpoint_is_there_only_when_a_port_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every program that embeds statecore would listen, or none could be watched."""
    surroundings = InstalledSurroundings()
    monkeypatch.delenv("STATECORE_METRICS_PORT", raising=False)
    assert surroundings.metrics() is PROCESS_METRICS
    assert PROCESS_METRICS.port is None

    for text in ("-1", "65536", "http", "٣"):
        monkeypatch.setenv("STATECORE_METRICS_PORT", text)
        with pytest.raises(InvalidInput, match="STATECORE_METRICS_PORT"):
            surroundings.metrics()

    monkeypatch.setenv("STATECORE_METRICS_PORT", "0")
    try:
        assert surroundings.metrics() is InstalledSurroundings().metrics()
        assert PROCESS_METRICS.port
    finally:
        PROCESS_METRICS.close()
