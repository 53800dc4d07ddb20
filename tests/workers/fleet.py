"""Engines, shared memory and worker processes for a test: real processes, real bytes, a real Redis.

Owns the two-engine setting: each its GPU pool, one host pool, two ranks, every block filled with the pattern of its
hash when it is "computed", and checked on every rank when it was moved.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, cast

import attrs

from events import connect
from events.errors import InvalidInput
from events.facts import BLOCK_HASH_BYTES, TransferFinished
from events.jobs import decode_job
from events.log import LogConnection
from statecore import CacheIndex
from statecore.ranges import ids
from tests.workers.held_store import FOLDER_VARIABLE
from workers.launcher import launch_workers, stop_workers
from workers.layout import CacheLayout
from workers.rebuild import missing_jobs
from workers.shared_pools import remove_stale
from workers.store import BlockStore
from workers.stores import StoreSettings

RANKS: Final = 2
GPU_BLOCKS: Final = 8
HOST_BLOCKS: Final = 64
HOST_POOL: Final = "cpu:host"
BLOCK_TOKENS: Final = 4
WAIT_S: Final = 20.0
LAYOUT: Final = CacheLayout(layers=2, num_blocks=GPU_BLOCKS, block_shape=(2, 8), dtype="float16")
HOST_LAYOUT: Final = attrs.evolve(LAYOUT, num_blocks=HOST_BLOCKS)
HELD: Final = "tests.workers.held_store:HeldStore"
HELD_PADDLE: Final = "tests.workers.held_store:HeldPaddleStore"

_numbers = itertools.count(1)


def prompt(name: str, blocks: int) -> bytes:
    """Hashes of a prompt that shares nothing with others."""
    return b"".join(f"{name}{number}".encode().ljust(16, b".")[:16] for number in range(blocks))


def eventually(holds: Callable[[], object], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end, f"not within {WAIT_S} s: {what}"
        time.sleep(0.01)


class Fleet:
    """An index, its memory on every rank, and what a test starts; `close` ends and removes all of it."""

    def __init__(self, url: str, folder: Path, store: str = "numpy") -> None:
        """`store`: what the engines keep their blocks in, as `launch` names one for the workers."""
        self.store = store
        self.index = f"fleet-{os.getpid()}-{next(_numbers)}"
        self.folder = folder
        self.connection: LogConnection = connect(url)
        self.url = url
        self.engines: list[CacheIndex] = []
        make = StoreSettings(store).maker()
        self.stores = [cast("BlockStore", make(self.index, rank)) for rank in range(RANKS)]
        self.workers: list[subprocess.Popen[bytes]] = []
        os.environ[FOLDER_VARIABLE] = str(folder)
        for each in self.stores:
            each.create(HOST_POOL, "cpu", HOST_LAYOUT)

    def engine(self, name: str, host_blocks: int = HOST_BLOCKS) -> CacheIndex:
        engine = CacheIndex(
            self.connection,
            name=self.index,
            engine=name,
            gpu_blocks=GPU_BLOCKS,
            cpu_blocks=host_blocks,
            block_size=BLOCK_TOKENS,
            tensor_parallel_size=RANKS,
        )
        self.engines.append(engine)
        for store in self.stores:
            store.create(engine.gpu_pool, "gpu", LAYOUT)
        return engine

    def launch(
        self, engine: CacheIndex, store: str | None = None, *, takeover: bool = False, timeout_s: float = WAIT_S
    ) -> list[subprocess.Popen[bytes]]:
        """Workers for an engine's pool, with the engines' store unless another is named."""
        workers = launch_workers(
            self.url,
            self.index,
            engine.gpu_pool,
            RANKS,
            StoreSettings(store=store or self.store),
            timeout_s=timeout_s,
            takeover=takeover,
            log_folder=self.folder,
        )
        self.workers += workers
        return workers

    def compute(self, engine: CacheIndex, request: str, hashes: bytes) -> list[int]:
        """A request whose blocks are computed (filled with their patterns) and released. Returns its table."""
        match = engine.match(request, hashes=hashes)
        found = len(match.blocks)
        for transfer in match.waits_for:
            assert engine.wait(transfer, WAIT_S).done
        missing = len(hashes) // 16 - found
        while missing and not (allocation := engine.allocate(request, missing)).blocks:
            for transfer in allocation.waits_for:
                assert engine.wait(transfer, WAIT_S).done
        table = engine.table(request)
        for number in range(found, len(table)):
            for store in self.stores:
                store.fill(engine.gpu_pool, table[number], hashes[16 * number : 16 * (number + 1)])
        engine.extend(request, ready=True)
        engine.release(request)
        return table

    def check(self, pool: str, blocks: Sequence[int], hashes: bytes) -> None:
        """Every block of the prompt is there and holds its pattern, on every rank."""
        assert len(blocks) == len(hashes) // BLOCK_HASH_BYTES > 0, f"{len(blocks)} blocks of {pool} to check"
        for rank, store in enumerate(self.stores):
            wrong = [
                block
                for number, block in enumerate(blocks)
                if not store.matches(pool, block, hashes[16 * number : 16 * (number + 1)])
            ]
            assert not wrong, f"rank {rank} of {pool}: blocks {wrong} of {list(blocks)} hold other bytes"

    def finishes(self) -> list[TransferFinished]:
        log = self.connection.log(self.index, follow=False)
        return [fact for entry in log.read(0, 10_000) for fact in entry.facts if isinstance(fact, TransferFinished)]

    def host_blocks(self, engine: CacheIndex, transfer: str) -> list[int]:
        """Where in the host pool a transfer under way puts its blocks, in token order."""
        jobs = engine.inspect(lambda state: missing_jobs(state, ()))
        (body,) = [job.body for job in jobs if job.transfer == transfer]
        return list(ids(decode_job(body).destination_blocks))

    def log_of(self, engine: CacheIndex, rank: int) -> bytes:
        """What the worker of a rank has said, since it was started last."""
        return (self.folder / f"{self.index}-{engine.gpu_pool.replace(':', '_')}-rank-{rank}.log").read_bytes()

    def hold(self) -> None:
        """From now on copies of a `HeldStore` stop in the middle."""
        (self.folder / "hold").touch()

    def go_on(self) -> None:
        (self.folder / "hold").unlink(missing_ok=True)

    def reached(self, worker: subprocess.Popen[bytes]) -> None:
        """Wait until this worker is in the middle of a copy."""
        eventually((self.folder / f"reached-{worker.pid}").exists, f"worker {worker.pid} copies")

    def close(self) -> None:
        self.go_on()
        for worker in self.workers:
            worker.kill()
        stop_workers(self.workers, timeout_s=0.0)
        for engine in self.engines:
            engine.close()
        pools = [HOST_POOL, *{engine.gpu_pool for engine in self.engines}]
        for store, pool in itertools.product(self.stores, pools):
            with contextlib.suppress(InvalidInput):  # a test may have taken it away
                store.unlink(pool)
        for store in self.stores:
            store.close()
        remove_stale(self.index)  # the locks of killed workers
        self.connection.close()
        del os.environ[FOLDER_VARIABLE]
