"""Stores over a folder of the test's own, so that a failed test leaves nothing in /dev/shm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stores.given import INDEX, Opened, OtherProcess, import_paddle
from workers.numpy_store import NumpyStore
from workers.paddle_store import PaddleStore
from workers.store import BlockStore


@pytest.fixture(params=["numpy", "paddle-cpu"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    """Opens stores of rank 0 of one index, once per implementation; closes them after the test."""
    opened: list[BlockStore] = []
    if request.param == "paddle-cpu":
        import_paddle()

    def open_one() -> BlockStore:
        kind = NumpyStore if request.param == "numpy" else PaddleStore
        opened.append(kind(INDEX, 0, folder=tmp_path))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Opened) -> BlockStore:
    return open_store()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[OtherProcess]:
    """Another process with a NumpyStore of the same index and rank."""
    with OtherProcess(tmp_path) as process:
        yield process
