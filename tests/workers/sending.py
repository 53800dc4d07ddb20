"""A prefill and a decode engine with memory on every rank, and the workers between them, one step at a time.

Owns the setting of the tests of sends that need no process: a log in memory, shared memory in a test's folder, every block
filled with the pattern of its hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from events import connect
from events.job_ports import Delivery
from events.log import LogConnection
from events.memory import MemoryBackend
from events.ports import Job
from statecore import CacheIndex
from statecore.invariants import leaked_blocks, violations
from tests.jobs.given import seated
from workers.layout import CacheLayout
from workers.numpy_store import NumpyStore
from workers.stores import OpenPools
from workers.swap import StepReport, step

INDEX = "sends"
RANKS = 2
BLOCKS = 8
BLOCK_TOKENS = 4
LAYOUT = CacheLayout(layers=2, num_blocks=BLOCKS, block_shape=(2, 8), dtype="float16")


def prompt(name: str, blocks: int) -> list[bytes]:
    """Block hashes of a prompt that shares nothing with others."""
    return [f"{name}{number}".encode().ljust(16, b".")[:16] for number in range(blocks)]


class Stage:
    """A prefill engine P and a decode engine D with memory on every rank, and the workers of P's pool."""

    def __init__(self, folder: Path, layout: CacheLayout = LAYOUT, decode_layout: CacheLayout = LAYOUT) -> None:
        self.connection: LogConnection = connect("memory://")
        self._folder = folder
        self.prefill, self.decode = self.engine("P"), self.engine("D")
        self.stores = [NumpyStore(INDEX, rank, folder) for rank in range(RANKS)]
        for store in self.stores:
            store.create("gpu:P", "gpu", layout)
            store.create("gpu:D", "gpu", decode_layout)
        self.movers = [self._mover(rank) for rank in range(RANKS)]

    def engine(self, name: str) -> CacheIndex:
        return CacheIndex(
            self.connection,
            name=INDEX,
            engine=name,
            gpu_blocks=BLOCKS,
            block_size=BLOCK_TOKENS,
            tensor_parallel_size=RANKS,
        )

    def _mover(self, rank: int) -> OpenPools:
        return OpenPools(lambda: NumpyStore(INDEX, rank, self._folder), {})

    def computed(self, request: str, hashes: Sequence[bytes]) -> list[int]:
        """P's table of a request whose blocks hold the patterns of their hashes."""
        self.prefill.match(request, hashes=b"".join(hashes))
        blocks = self.prefill.allocate(request, len(hashes)).blocks
        self.fill("gpu:P", blocks, hashes)
        self.prefill.extend(request, ready=True)
        return self.prefill.table(request)

    def expected(self, request: str, hashes: Sequence[bytes]) -> list[int]:
        """D's blocks for a request that is to come."""
        self.decode.match(request, hashes=b"".join(hashes))
        return self.decode.allocate(request, len(hashes)).blocks

    def sent(self, request: str, hashes: Sequence[bytes]) -> tuple[str, list[int]]:
        """A request on its way: the transfer, and D's blocks."""
        source, destination = self.computed(request, hashes), self.expected(request, hashes)
        self.prefill.refresh()
        return self.prefill.send(request, source, "D", destination).transfer, destination

    def fill(self, pool: str, blocks: Sequence[int], hashes: Sequence[bytes]) -> None:
        for store in self.stores:
            for block, block_hash in zip(blocks, hashes, strict=True):
                store.fill(pool, block, block_hash)

    def holds(self, blocks: Sequence[int], hashes: Sequence[bytes]) -> list[bool]:
        """Of D's blocks: whether each holds its pattern, on every rank."""
        return [
            all(store.matches("gpu:D", block, block_hash) for store in self.stores)
            for block, block_hash in zip(blocks, hashes, strict=True)
        ]

    def work(self, rank: int, *, report: bool = True) -> list[StepReport]:
        """The worker of a rank of P's pool carries out what is there; with `report` False it dies before it says so."""
        jobs, reports = seated(self.connection, INDEX, rank, RANKS, pool="gpu:P"), []
        while (delivery := jobs.take(0.0)) is not None:
            assert isinstance(delivery, Delivery)
            reports.append(step(delivery.job, self.movers[rank]))
            if not report:
                break
            jobs.finish(delivery, reports[-1].ok, reports[-1].reason)
        return reports

    def work_all(self) -> None:
        for rank in range(RANKS):
            self.work(rank)

    @property
    def rung(self) -> list[Job]:
        """What commits have put into the stream of P's pool."""
        assert isinstance(self.connection.backend, MemoryBackend)
        return self.connection.backend.transport(INDEX).jobs["gpu:P"]

    def lose_jobs(self) -> None:
        assert isinstance(self.connection.backend, MemoryBackend)
        self.connection.backend.jobs(INDEX).lose("gpu:P", lists=True)

    def free(self, pool: str) -> int:
        """Free blocks, by a replica that has read everything and is sound."""
        with self.engine("observer") as observer:
            assert observer.inspect(violations) == []
            assert observer.inspect(leaked_blocks) == 0
            return observer.inspect(lambda state: state.pools[pool].free.total)

    def close(self) -> None:
        for mover in self.movers:
            mover.close()
        for store in self.stores:
            store.close()
        self.connection.close()
