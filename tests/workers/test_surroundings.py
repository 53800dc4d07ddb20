"""What an installed statecore finds in its process: settings, log, operator."""

from __future__ import annotations

import logging
from pathlib import Path

import attrs
import pytest

from events import connect
from events.embedded import EmbeddedRedis
from events.errors import InvalidInput
from statecore import CacheIndex
from statecore.manager.surroundings import Surroundings, WorkerOrder, installed
from tests.servers import RedisServer
from workers.layout import CacheLayout
from workers.stores import StoreSettings
from workers.surroundings import InstalledSurroundings, WorkerLauncher, layout_of, store_of

ORDER = WorkerOrder(
    index="i",
    pool="gpu:e0",
    ranks=2,
    layers=3,
    dtype="bfloat16",
    key_shape=(5, 2, 3),
    value_shape=(5, 2, 3),
    host_pool=None,
    host_blocks=0,
)


def ordered(**changes: object) -> WorkerOrder:
    return attrs.evolve(ORDER, **changes)  # type: ignore[arg-type]


def test_the_installation_names_ours() -> None:
    """Otherwise a manager that is given nothing could not start (the entry point of `pyproject.toml`)."""
    found: Surroundings = installed()

    assert isinstance(found, InstalledSurroundings)


def test_settings_are_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a setting made after the import would not be seen."""
    monkeypatch.setenv("STATECORE_ANYTHING", "7")

    assert InstalledSurroundings().settings()["STATECORE_ANYTHING"] == "7"


def test_the_operator_is_told_through_logging(caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise what an operator must know would be lost, or be on the engine's standard output."""
    with caplog.at_level(logging.WARNING, logger="statecore"):
        InstalledSurroundings().notice("100 % of pool gpu:e0 is pinned")

    assert [record.getMessage() for record in caplog.records] == ["100 % of pool gpu:e0 is pinned"]


# --- the log ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [None, ""])
def test_without_a_setting_the_log_is_in_memory(monkeypatch: pytest.MonkeyPatch, url: str | None) -> None:
    """Otherwise a single process would need a Redis (seed: a manager without anything)."""
    monkeypatch.delenv("STATECORE_URL", raising=False)
    if url is not None:
        monkeypatch.setenv("STATECORE_URL", url)

    with InstalledSurroundings().connection() as connection:
        assert connection.url == "memory://"
        with CacheIndex(connection, name="i", engine="e0", gpu_blocks=4) as index:
            assert index.free_blocks == 4


def test_the_log_is_where_the_setting_says(
    monkeypatch: pytest.MonkeyPatch, embedded_redis: EmbeddedRedis, tmp_path: Path
) -> None:
    """Otherwise engines that should share an index would each have their own."""
    monkeypatch.setenv("STATECORE_URL", embedded_redis.url)
    with InstalledSurroundings().connection() as connection:
        assert connection.url == embedded_redis.url

    monkeypatch.setenv("STATECORE_URL", f"embedded://{tmp_path}")
    with InstalledSurroundings().connection() as first, InstalledSurroundings().connection() as second:
        assert first.url == second.url == f"unix://{tmp_path}/redis.sock"


def test_a_setting_that_is_no_log_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a typing mistake would make an index nobody else sees."""
    monkeypatch.setenv("STATECORE_URL", "redsi://localhost")

    with pytest.raises(InvalidInput, match="redsi"):
        InstalledSurroundings().connection()


# --- workers: what is refused before any is started ------------------------------------------------------------------


def test_workers_need_a_server() -> None:
    """Otherwise worker processes would wait for jobs in a memory of their own, for ever."""
    with connect("memory://") as connection, pytest.raises(RuntimeError, match=r"need a server .*memory://"):
        WorkerLauncher(connection, {}).launch(ORDER)


def test_workers_get_the_password_from_the_setting(tmp_path: Path) -> None:
    """Otherwise engines on a Redis with a password could start no workers: a connection does not show it.

    Given a server that wants one, when the connection is that of the setting, then workers are given the setting; when
    the connection came from elsewhere, refused, and the password is not in the message.
    """
    with RedisServer(tmp_path, "--requirepass", "s3cret") as server:
        url = server.url.replace("redis://", "redis://default:s3cret@")
        with connect(url) as connection:
            assert "s3cret" not in connection.url
            launcher = WorkerLauncher(connection, {"STATECORE_URL": url})
            assert launcher._server() == (connection, url)
            with pytest.raises(RuntimeError, match="STATECORE_URL") as refusal:
                WorkerLauncher(connection, {"STATECORE_URL": "redis://elsewhere"}).launch(ORDER)
    assert "s3cret" not in str(refusal.value)


def test_the_order_becomes_a_layout() -> None:
    """Otherwise the workers' memory would have another shape than the engine's tensors."""
    assert layout_of(ORDER) == CacheLayout(3, 5, (2, 3), "bfloat16")
    assert layout_of(ordered(value_shape=None)) == CacheLayout(3, 5, (2, 3), "bfloat16", values=False)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"value_shape": (5, 2, 4)}, "'5,2,3'.*'5,2,4'"),
        ({"key_shape": (), "value_shape": None}, "no dimension"),
        ({"key_shape": (5,), "value_shape": None}, "at least one dimension"),
        ({"key_shape": (0, 2), "value_shape": (0, 2)}, "number of blocks must be from 1"),
        ({"layers": 0}, "layers"),
        ({"dtype": "float64"}, "float64"),
    ],
)
def test_an_order_that_cannot_be_is_refused(changes: dict[str, object], says: str) -> None:
    """Otherwise memory of a nonsensical size would be made, or the failure be found in a child's log."""
    with pytest.raises(InvalidInput, match=says):
        layout_of(ordered(**changes))


def test_the_store_is_chosen_by_setting() -> None:
    """Otherwise a machine with a GPU would move the bytes of host memory nobody computes in."""
    text = layout_of(ORDER).to_json()

    assert store_of(ORDER, layout_of(ORDER), "numpy") == StoreSettings("numpy", text)
    with_host = ordered(host_pool="cpu:other", host_blocks=9, device_ids=(4, 6))
    assert store_of(with_host, layout_of(ORDER), "numpy") == StoreSettings("numpy", text, "cpu:other", 9)


def test_each_rank_sees_its_own_gpu() -> None:
    """Otherwise all ranks of an engine would open the memory of the first GPU."""
    store = store_of(ordered(device_ids=(4, 6)), layout_of(ORDER), "paddle@gpu")

    assert (store.store, store.visible(0), store.visible(1)) == (
        "paddle@gpu:0",
        {"CUDA_VISIBLE_DEVICES": "4"},
        {"CUDA_VISIBLE_DEVICES": "6"},
    )
    assert store_of(ORDER, layout_of(ORDER), "paddle@gpu:0").visible(0) == {}
    with pytest.raises(InvalidInput, match="2 ranks need as many devices, not 1"):
        store_of(ordered(device_ids=(4,)), layout_of(ORDER), "paddle@gpu")
