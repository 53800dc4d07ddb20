"""A third small history: one engine prefills and hands requests over to another, which decodes.

Owns its story: sends in every state; service is paused, the cache cleared, service resumed, pools resized.

| send      | request | becomes of it                                                                       |
|-----------|---------|-------------------------------------------------------------------------------------|
| prefill:0 | chat    | arrives                                                                             |
| prefill:1 | lost    | fails                                                                               |
| prefill:2 | hasty   | given up by its receiver, cleared over, reported late                               |
| prefill:3 | partly  | given up with the last two of its four blocks, the others stay its receiver's       |
| prefill:4 | last    | under way at the end, when service is paused again                                  |
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from events import connect
from events.log import LogConnection
from statecore import CacheIndex
from tests.cli.scenario import BLOCK_SIZE, Tiers, finish

SPLIT: Final = "split"
CHAT: Final = list(range(16))
WEIGHTS: Final = "new weights"


def tell_split(url: str, index: str = SPLIT) -> Tiers:
    """Make the history on a server: both engines have two ranks and 12 blocks each, to begin with."""
    with connect(url) as connection:
        both = _Both(connection, index)
        prefill, decode = both.prefill, both.decode
        with both.moment("sent"):
            both.send("chat")
        with both.moment("arrived"):
            both.finish("prefill:0")
        both.release("chat")
        both.send("lost")
        with both.moment("failed"):
            both.finish("prefill:1", "rank 1: no such segment")
        both.release("lost")
        both.send("hasty")
        with both.moment("given up"):
            decode.release("hasty")
        prefill.release("hasty")
        with both.moment("paused"):
            prefill.pause(WEIGHTS)
        with both.moment("cleared"):
            prefill.clear(WEIGHTS, timeout=1)
        with both.moment("resumed"):
            prefill.resume("the weights are loaded")
        with both.moment("too late"):
            both.finish("prefill:2")
        both.send("partly")
        with both.moment("partly given up"):
            decode.recycle("partly", decode.table("partly")[2:])
        both.release("partly")
        prefill.resize(16)
        with both.moment("resized"):
            prefill.resize(14)
        both.send("last")
        with both.moment("end"):
            decode.pause("maintenance")
    return Tiers(url, both.at["end"], both.digests, both.at)


class _Both:
    """The two engines, each of which knows at every moment what the other has done."""

    def __init__(self, connection: LogConnection, index: str) -> None:
        self.digests: dict[int, str] = {}
        self.at: dict[str, int] = {}
        self._connection = connection
        self._index = index
        self.prefill, self.decode = self._join("prefill"), self._join("decode")

    def _join(self, engine: str) -> CacheIndex:
        return CacheIndex(
            self._connection, name=self._index, engine=engine, gpu_blocks=12, block_size=BLOCK_SIZE,
            tensor_parallel_size=2, follow=False,
            memory_survives=True,
        )  # fmt: skip

    @contextmanager
    def moment(self, name: str) -> Iterator[None]:
        yield
        self.at[name] = position = self._refresh()
        self.digests[position] = self.decode.digest()
        assert self.digests[position] == self.prefill.digest()

    def send(self, request: str) -> None:
        with self.prefill.step():
            if not self.prefill.match(request, CHAT).blocks:
                self.prefill.allocate(request, 4)
                self.prefill.extend(request, ready=True)
        with self.decode.step():
            self.decode.match(request, hashes=b"", prompt_tokens=len(CHAT))
            self.decode.allocate(request, 4)
        self._refresh()
        self.prefill.send(request, self.prefill.table(request), "decode", self.decode.table(request))
        self._refresh()

    def finish(self, transfer: str, reason: str = "") -> None:
        finish(self._connection, self._index, transfer, reason, worker="worker:gpu:prefill")

    def release(self, request: str) -> None:
        for engine in (self.prefill, self.decode):
            engine.release(request)
        self._refresh()

    def _refresh(self) -> int:
        self.prefill.refresh()
        return self.decode.refresh()
