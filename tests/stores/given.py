"""What the tests of the byte stores start from: small layouts, hashes, and processes of their own.

Owns the child process: a spawned Python that does what it is told with a store and answers, until it is told to end or
killed. Functions that run there are named, so that spawn can find them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from hashlib import blake2b, shake_256
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from events.errors import InvalidInput
from workers.cuda_memory import CudaMemory
from workers.layout import CacheLayout
from workers.numpy_store import NumpyStore
from workers.paddle_store import PaddleStore
from workers.store import BlockStore

SMALL = CacheLayout(layers=3, num_blocks=8, block_shape=(2, 4, 5), dtype="bfloat16")
LARGER = CacheLayout(layers=3, num_blocks=20, block_shape=(2, 4, 5), dtype="bfloat16")
INDEX = "llama@host1"
EXTRAS_VARIABLE = "STATECORE_TEST_EXTRAS"
"""Names the extras that are installed, so that their tests must not be skipped. The Makefile sets it."""

Opened = Callable[[], BlockStore]
_SPAWN = multiprocessing.get_context("spawn")
_ANSWER_S = 20.0


def hash_of(number: int) -> bytes:
    return blake2b(str(number).encode(), digest_size=16).digest()


def content(number: int, layout: CacheLayout = SMALL) -> bytes:
    """Bytes of one block that no other number has, different in every tensor."""
    return shake_256(str(number).encode()).digest(layout.bytes_per_block)


def import_paddle() -> Any:
    """The module; skip when it is not installed, unless this is `make test`, which has installed it.

    By way of the store, which knows how: alone, the import would warn, and take a signal.
    """
    try:
        PaddleStore(INDEX, 0)
    except InvalidInput as missing:
        if "paddle" in os.environ.get(EXTRAS_VARIABLE, "").split():
            pytest.fail(f"the tests of the paddle store have to run here: {missing}")
        pytest.skip("the paddle extra is not installed here")
    return sys.modules["paddle"]


def import_paddle_for_gpu() -> Any:
    """The module; skip where it was built for CPUs only, or there is no GPU."""
    paddle = import_paddle()
    if not paddle.is_compiled_with_cuda():
        pytest.skip("no GPU here: this paddle was built without CUDA")
    skip_without_gpu()
    return paddle


def skip_without_gpu() -> None:
    """Skip, with what CUDA says, where no GPU can be used."""
    try:
        CudaMemory(0).close()
    except InvalidInput as reason:
        pytest.skip(f"no GPU here: {reason}")


class OtherProcess:
    """A process of its own that holds a store and runs functions on it."""

    def __init__(
        self, folder: Path, index: str = INDEX, rank: int = 0, kind: Callable[..., BlockStore] = NumpyStore
    ) -> None:
        self._here, there = _SPAWN.Pipe()
        self._process = _SPAWN.Process(
            target=_serve, args=(there, partial(kind, index, rank, folder=folder)), daemon=True
        )
        self._process.start()
        there.close()

    def do(self, method: str, *arguments: Any) -> Any:
        """Call a method of its store; what it returns, or raise what it raised."""
        self._here.send((method, arguments))
        assert self._here.poll(_ANSWER_S), f"no answer to {method} in {_ANSWER_S} s"
        result = self._here.recv()
        if isinstance(result, Exception):
            raise result
        return result

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL: no clean-up of any kind runs there."""
        os.kill(self.pid, signal.SIGKILL)
        self._process.join(_ANSWER_S)

    def __enter__(self) -> OtherProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.is_alive():
            self.kill()
        self._here.close()


def _serve(orders: Connection, make: Callable[[], BlockStore]) -> None:
    store = make()
    while True:
        try:
            method, arguments = orders.recv()
        except EOFError:
            return
        try:
            orders.send(getattr(store, method)(*arguments))
        except Exception as error:  # the test decides what the error means
            orders.send(error)
