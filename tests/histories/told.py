"""A history with one of everything a release can write, to be recorded by each release once.

Owns the story. It calls only what releases since schema 2 have, so that the file can be put into the tree of an older one;
what came later is told where that release knows it. Three engines: `a` and `twin` work in one GPU pool, `b` has its own, all
share a host pool; one worker each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from events import facts
from events.log import EventLog, LogConnection
from statecore import CacheIndex
from statecore.policy import Policy
from statecore.replica import Replica
from tests.cli.scenario import finish

WARM: Final = list(range(16))
FORKED: Final = [*range(8), *range(100, 108)]
BUSY: Final = list(range(200, 216))
CHAT: Final = list(range(400, 416))
LATER: Final = list(range(300, 308))


class Told:
    """The engines of a history, each of which knows at every moment what the others have done."""

    def __init__(self, connection: LogConnection, index: str) -> None:
        self._connection = connection
        self._index = index
        self.engines: dict[str, CacheIndex] = {}

    def join(self, engine: str, pool: str, blocks: int | None, **more: Any) -> CacheIndex:
        self.engines[engine] = CacheIndex(
            self._connection, name=self._index, engine=engine, gpu_pool=pool, gpu_blocks=blocks, cpu_pool="host",
            cpu_blocks=None if blocks is None else 16, block_size=4, follow=False, **more,
        )  # fmt: skip
        self.refresh()
        return self.engines[engine]

    def refresh(self) -> None:
        for engine in self.engines.values():
            engine.refresh()

    def log(self) -> EventLog:
        return self._connection.log(self._index, follow=False)

    def replica(self) -> Replica:
        """The state at the end of the log."""
        replica = Replica()
        replica.apply_all(self.log().read(0))
        return replica

    def do(self, call: Callable[[], object]) -> None:
        """One call of one engine; the others see it."""
        call()
        self.refresh()

    def open(self) -> list[str]:
        """Transfers and sends that somebody waits for, or may still write."""
        return next(iter(self.engines.values())).inspect(lambda state: [*state.transfers, *state.sends])

    def end_all(self, worker: str, reason: str = "") -> None:
        assert self.open(), "nothing is under way"
        for transfer in self.open():
            finish(self._connection, self._index, transfer, reason, worker=worker)
        self.refresh()

    def cache(self, engine: CacheIndex, request: str, tokens: list[int], *, ready: bool = True) -> None:
        with engine.step():
            engine.match(request, tokens)
            missing = len(tokens) // 4 - len(engine.table(request))
            if missing:
                engine.allocate(request, missing)
                engine.extend(request, ready=ready)
        self.refresh()

    def send(self, sender: CacheIndex, request: str) -> None:
        self.cache(sender, request, CHAT)
        receiver = self.engines["b"]
        with receiver.step():
            receiver.match(request, hashes=b"", prompt_tokens=len(CHAT))
            receiver.allocate(request, 4)
        self.refresh()
        sender.send(request, sender.table(request), "b", receiver.table(request))
        self.refresh()


def tell(connection: LogConnection, index: str) -> None:
    """Make the history."""
    told = Told(connection, index)
    a = told.join("a", "ga", 16, policy=Policy(free_low=0, free_high=0), memory_survives=True)
    twin = told.join("twin", "ga", None, memory_survives=True)
    b = told.join("b", "gb", 10)

    # Shared prefixes, a path that forks, a duplicate, blocks held without a request.
    told.cache(a, "warm", WARM)
    told.cache(a, "forked", FORKED)
    told.cache(a, "one", BUSY, ready=False)
    told.cache(twin, "other", BUSY)
    held = twin.allocate(None, 2).blocks
    told.do(lambda: twin.recycle(None, held[:1]))
    told.do(lambda: a.ready("one"))
    for request in ("warm", "forked", "one"):
        told.do(partial(a.release, request))
    told.do(lambda: twin.release("other"))

    _move(told, a, b)
    _hand_over(told, a, b)
    _end_lives(told, twin, b)
    _leave_open(told, a, told.engines["b"])


def _move(told: Told, a: CacheIndex, b: CacheIndex) -> None:
    # To the host and back: arrived, rescued, failed, given up.
    told.do(lambda: a.match("large", [1] * 64))
    told.do(lambda: a.allocate("large", 14))
    told.end_all("worker:ga")
    told.do(lambda: a.allocate("large", 8))
    told.do(lambda: a.release("large"))
    told.do(lambda: b.match("far", WARM))
    told.end_all("worker:gb", "rank 0: no such segment")
    told.do(lambda: b.release("far"))
    told.do(lambda: b.match("far", WARM))
    told.end_all("worker:gb")
    told.do(lambda: a.match("back", FORKED))
    told.do(lambda: a.cancel(told.open()[0], "the engine is in a hurry"))
    told.do(lambda: a.release("back"))
    told.end_all("worker:ga")
    told.do(lambda: b.release("far"))


def _hand_over(told: Told, a: CacheIndex, b: CacheIndex) -> None:
    # Handed over, with every end; the cache is cleared over the last.
    for request, reason in (("sent", ""), ("torn", "rank 0: no such segment")):
        told.send(a, request)
        told.end_all("worker:ga", reason)
        told.do(partial(a.release, request))
        told.do(partial(b.release, request))
    told.send(a, "hasty")
    told.do(lambda: b.release("hasty"))
    told.do(lambda: a.release("hasty"))
    told.do(lambda: a.pause("new weights"))
    told.do(lambda: a.clear("new weights", timeout=1))
    told.do(lambda: a.resume("the weights are loaded"))
    told.end_all("worker:ga")
    told.do(lambda: b.resize(12))
    told.do(lambda: b.resize(11))


def _end_lives(told: Told, twin: CacheIndex, b: CacheIndex) -> None:
    # Lives end: in order, by the next one, with the memory.
    told.cache(b, "kept", LATER)
    told.cache(twin, "lost", WARM)
    twin = told.join("twin", "ga", None, memory_survives=True)
    told.join("b", "gb", None, memory_survives=False)
    told.cache(twin, "again", WARM)
    told.cache(twin, "going", BUSY)
    told.do(lambda: twin.release("going"))
    told.do(twin.leave)
    if facts.SCHEMA >= 3:
        from tests.golden.keeper import declare_lost

        told.join("c", "gc", 6, memory_survives=False)
        told.cache(told.engines["c"], "dying", LATER)
        declare_lost(told.log(), told.replica(), "c", "no sign of life from it for 9 s")
        told.refresh()


def _leave_open(told: Told, a: CacheIndex, b: CacheIndex) -> None:
    # The end: everything under way, service paused.
    told.do(lambda: a.match("large", [2] * 64))
    told.do(lambda: a.allocate("large", 11))
    told.end_all("worker:ga")
    told.do(lambda: a.allocate("large", 4))
    told.send(a, "last")
    told.do(lambda: b.match("far", BUSY))
    told.do(lambda: b.allocate(None, 1))
    for request in ("first", "second"):
        told.do(partial(b.match, request, LATER))
        told.do(partial(b.allocate, request, 2))
    for request in ("first", "second"):
        told.do(partial(b.extend, request))
    told.do(lambda: a.allocate("large", 6))
    told.do(lambda: a.pause("maintenance"))
