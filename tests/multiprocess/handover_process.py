"""One engine of a hand-over as a process of its own: `python -m tests.multiprocess.handover_process '<settings as JSON>'`.

Owns an index and the engine's memory on every rank, and does what the test says: reads calls as lines of JSON
(`{"call": "send", …}`), answers each with one (`{"answer": …}`). Ends with its standard input, without leaving.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import attrs

from events import connect
from statecore import CacheIndex
from statecore.invariants import leaked_blocks, violations
from workers.layout import CacheLayout
from workers.numpy_store import NumpyStore

WAIT_S = 20.0


@attrs.frozen
class Settings:
    """What the test tells a process. `layout`: JSON of the engine's pool; its blocks are the pool's."""

    url: str
    index: str
    engine: str
    ranks: int
    layout: str


def hashes_of(name: str, blocks: int) -> list[bytes]:
    """Of a prompt that shares nothing with prompts of other names."""
    return [f"{name}.{number}".encode().ljust(16, b".") for number in range(blocks)]


class Handover:
    """The engine's calls, as the test may name them; prompts are named, and as long as they are told to be."""

    def __init__(self, index: CacheIndex, stores: list[NumpyStore]) -> None:
        self._index = index
        self._stores = stores

    def compute(self, request: str, name: str, blocks: int) -> list[int]:
        """Match a prompt, fill what is not cached with its patterns, on every rank; the table."""
        hashes = hashes_of(name, blocks)
        found = len(self._index.match(request, hashes=b"".join(hashes)).blocks)
        if found < blocks:
            self._index.allocate(request, blocks - found)
        table = self._index.table(request)
        for block, block_hash in list(zip(table, hashes, strict=True))[found:]:
            for store in self._stores:
                store.fill(self._index.gpu_pool, block, block_hash)
        self._index.extend(request, ready=True)
        return table

    def expect(self, request: str, name: str, blocks: int) -> list[int]:
        """Blocks for a request that is to come; none is taken from what is cached."""
        self._index.match(request, hashes=b"".join(hashes_of(name, blocks)), limit=0)
        return self._index.allocate(request, blocks).blocks

    def send(self, request: str, receiver: str, to_blocks: list[int]) -> str:
        self._index.refresh()
        return self._index.send(request, self._index.table(request), receiver, to_blocks).transfer

    def arrived(self, request: str, patience_s: float = WAIT_S) -> list[str]:
        """State and reason of the send of a request to us, when it has ended or the time is over."""
        self._index.refresh()  # the commit is in the log, and may not have come by itself yet
        state = self._index.arrival(request)
        assert state is not None, f"nobody has sent {request}"
        return self.wait(state.transfer, patience_s)

    def wait(self, transfer: str, patience_s: float = WAIT_S) -> list[str]:
        state = self._index.wait(transfer, patience_s)
        return [state.state, state.reason]

    def wrong(self, request: str, name: str, blocks: int) -> list[int]:
        """Blocks of a request that do not hold what they should, on some rank."""
        table, hashes = self._index.table(request), hashes_of(name, blocks)
        return [
            block
            for block, block_hash in zip(table, hashes, strict=True)
            if not all(store.matches(self._index.gpu_pool, block, block_hash) for store in self._stores)
        ]

    def cached(self, request: str) -> int:
        """What has arrived becomes everybody's; blocks of the path."""
        return self._index.extend(request, ready=True).path_blocks

    def release(self, request: str) -> None:
        self._index.release(request)

    def leave(self) -> None:
        self._index.leave()

    def state(self) -> dict[str, Any]:
        position = self._index.refresh()
        return {
            "position": position,
            "digest": self._index.digest(),
            "free": self._index.free_blocks,
            "sends": self._index.inspect(lambda state: sorted(state.sends)),
            "violations": self._index.inspect(violations),
            "leaked": self._index.inspect(leaked_blocks),
        }


def main(settings: Settings) -> None:
    layout = CacheLayout.from_json(settings.layout)
    with connect(settings.url) as connection:
        index = CacheIndex(
            connection,
            name=settings.index,
            engine=settings.engine,
            gpu_blocks=layout.num_blocks,
            block_size=4,
            tensor_parallel_size=settings.ranks,
            memory_survives=True,
        )
        stores = [NumpyStore(settings.index, rank) for rank in range(settings.ranks)]
        for store in stores:
            store.create(index.gpu_pool, "gpu", layout)
        engine = Handover(index, stores)
        for line in sys.stdin:
            asked = json.loads(line)
            answer = getattr(engine, asked.pop("call"))(**asked)
            sys.stdout.write(json.dumps({"answer": answer}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(Settings(**json.loads(sys.argv[1])))
