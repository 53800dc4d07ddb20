"""A seeded story of engines, workers and bytes in one process: whoever uses a block finds in it what its hash says.

Owns a model of memory (which hash each block of each pool and rank holds) beside the real index, the real job streams
and the real log. Workers crash before, during and after a copy and before their report, two names share a rank, jobs are
lost and rung, copies fail, transfers are cancelled, engines begin new lives. After every event every live request's table
is compared with the memory, and every replica's invariants are checked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import attrs

from events.errors import InvalidInput
from events.facts import BlockRanges
from events.job_ports import Delivery
from events.job_queue import JobQueue
from events.log import LogConnection
from events.memory import MemoryBackend
from statecore import CacheIndex, Policy
from statecore.invariants import violations
from statecore.ranges import ids
from statecore.rejections import Rejection
from tests.jobs.given import seated
from workers.rebuild import ring
from workers.swap import step

RANKS = 2
GPU_BLOCKS = 10
HOST_BLOCKS = 16
NAMES = ("a", "b")
INDEX = "bytes"


@attrs.define
class Memory:
    """What every block holds, per rank; a `Mover` that can be told to fail or to stop half-way."""

    holds: dict[tuple[str, int, int], bytes] = attrs.Factory(dict)

    def fill(self, pool: str, block: int, content: bytes) -> None:
        for rank in range(RANKS):
            self.holds[pool, rank, block] = content

    def rank(self, rank: int, stops_after: int | None = None) -> RankMemory:
        return RankMemory(self, rank, stops_after)


@attrs.define
class RankMemory:
    memory: Memory
    rank: int
    stops_after: int | None

    def copy(
        self,
        source_pool: str,
        destination_pool: str,
        source_blocks: BlockRanges,
        destination_blocks: BlockRanges,
    ) -> int:
        pairs = list(zip(ids(source_blocks), ids(destination_blocks), strict=True))
        for source, destination in pairs[: self.stops_after]:
            content = self.memory.holds.get((source_pool, self.rank, source), b"nothing")
            self.memory.holds[destination_pool, self.rank, destination] = content
        if self.stops_after is not None and self.stops_after < len(pairs):
            raise InvalidInput("broken half-way")
        return len(pairs)


@attrs.define
class Running:
    """A live request of the story.

    Attributes:
        waits_for: transfers to be done before its prefix may be used.
        computed: its blocks hold what they should, all of them.
    """

    engine: CacheIndex
    id: str
    hashes: bytes
    waits_for: tuple[str, ...]
    computed: bool = False

    @property
    def blocks(self) -> int:
        return len(self.hashes) // 16


@attrs.define
class Held:
    """A job in a worker's hands."""

    jobs: JobQueue
    delivery: Delivery
    ok: bool | None = None


class ByteStory:
    def __init__(self, connection: LogConnection, seed: int) -> None:
        self._connection = connection
        self._random = random.Random(seed)
        self._memory = Memory()
        policy = Policy(*self._random.choice([("write_back", 0, 0), ("write_through", 0, 0), ("write_back", 30, 60)]))
        self._engines = [
            CacheIndex(
                connection,
                name=INDEX,
                engine=name,
                gpu_blocks=GPU_BLOCKS,
                cpu_blocks=HOST_BLOCKS,
                block_size=4,
                tensor_parallel_size=RANKS,
                policy=policy,
            )
            for name in ("e0", "e1")
        ]
        self._requests: dict[str, Running] = {}
        self._held: dict[tuple[str, int], Held] = {}
        self._queues: dict[tuple[str, int], JobQueue] = {}
        self._numbers = iter(range(10**9))
        self.events: list[str] = []

    def tell(self, events: int) -> None:
        actions = [self._begin] * 3 + [self._advance] * 9 + [self._take] * 9 + [self._carry_out] * 9
        rare = [self._crash, self._lose, self._cancel, self._rejoin, self._refresh]
        for _ in range(events):
            action = self._random.choice(actions if self._random.random() < 0.95 else rare)
            self.events.append(action.__name__)
            action()
            self._check()
        self._end()

    # --- engines ----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        engine = self._random.choice(self._engines)
        if len(self._requests) > 6:
            return
        family = self._random.randrange(3)
        length = self._random.randint(1, GPU_BLOCKS - 2)
        branch = self._random.randint(0, length)
        tail = self._random.randrange(3)
        hashes = b"".join(
            f"{family}.{number}.{tail if number >= branch else 0}.{branch if number >= branch else 0}".encode().ljust(
                16
            )
            for number in range(length)
        )
        request = f"r{next(self._numbers)}"
        match = engine.match(request, hashes=hashes)
        self._requests[request] = Running(engine, request, hashes, match.waits_for)

    def _advance(self) -> None:
        if not self._requests:
            return
        running = self._requests[self._random.choice(sorted(self._requests))]
        engine = running.engine
        if running.computed or self._random.random() < 0.1:
            engine.release(running.id)
            del self._requests[running.id]
            return
        if any(engine.poll(transfer).under_way for transfer in running.waits_for):
            return
        running.waits_for = ()
        missing = running.blocks - len(engine.table(running.id))
        if missing > 0:
            try:
                if not engine.allocate(running.id, missing).blocks:
                    return
            except Rejection:
                return
        table = engine.table(running.id)
        for number in range(engine.path_blocks(running.id), running.blocks):
            self._memory.fill(engine.gpu_pool, table[number], running.hashes[16 * number : 16 * (number + 1)])
        running.computed = True
        engine.extend(running.id, ready=self._random.random() < 0.7)

    def _cancel(self) -> None:
        engine = self._random.choice(self._engines)
        mine = engine.inspect(
            lambda state: [each.id for each in state.transfers.values() if each.engine == engine.engine]
        )
        if mine:
            try:
                engine.cancel(self._random.choice(mine))
            except Rejection:
                self.events.append("  not cancelled")

    def _rejoin(self) -> None:
        if self._random.random() < 0.3:
            engine = self._random.choice(self._engines)
            engine.rejoin()
            self._requests = {name: each for name, each in self._requests.items() if each.engine is not engine}

    def _refresh(self) -> None:
        self._random.choice(self._engines).refresh()

    # --- workers ----------------------------------------------------------------------------------------------------

    def _seats(self) -> Iterator[tuple[str, int]]:
        for engine in self._engines:
            for rank in range(RANKS):
                yield engine.gpu_pool, rank

    def _queue(self, seat: tuple[str, int]) -> JobQueue:
        if seat not in self._queues:
            pool, rank = seat
            self._queues[seat] = seated(self._connection, INDEX, rank, RANKS, self._random.choice(NAMES), pool)
        return self._queues[seat]

    def _take(self) -> None:
        seat = self._random.choice([each for each in self._seats() if each not in self._held] or [None])
        if seat is None:
            return
        got = self._queue(seat).take(0.0)
        if isinstance(got, Delivery):
            self._held[seat] = Held(self._queue(seat), got)

    def _carry_out(self) -> None:
        if not self._held:
            return
        seat = self._random.choice(sorted(self._held))
        held = self._held[seat]
        if held.ok is None and not held.delivery.reported:
            stops_after = 0 if self._random.random() < 0.05 else 1 if self._random.random() < 0.05 else None
            held.ok = step(held.delivery.job, self._memory.rank(seat[1], stops_after)).ok
            if self._random.random() < 0.5:
                return  # the report comes later
        held.jobs.finish(held.delivery, bool(held.ok), "" if held.ok else "broken")
        if self._random.random() < 0.1:
            held.jobs.finish(held.delivery, bool(held.ok), "late")
        del self._held[seat]

    def _crash(self) -> None:
        """A worker dies with what it has in its hands, copied in part or not at all; the next has either name."""
        seat = self._random.choice(list(self._seats()))
        held = self._held.pop(seat, None)
        if held is not None and held.ok is None and not held.delivery.reported:
            step(held.delivery.job, self._memory.rank(seat[1], self._random.randrange(3)))
        self._queues.pop(seat, None)

    def _lose(self) -> None:
        backend = self._connection.backend
        assert isinstance(backend, MemoryBackend)
        backend.jobs(INDEX).lose(self._random.choice(self._engines).gpu_pool, lists=self._random.random() < 0.5)
        if self._random.random() < 0.5:
            ring(self._connection, INDEX)

    # --- proofs -----------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        for engine in self._engines:
            assert not (broken := engine.inspect(violations)), broken
        for running in self._requests.values():
            engine, table = running.engine, running.engine.table(running.id)
            if running.waits_for and any(engine.poll(transfer).under_way for transfer in running.waits_for):
                continue
            table = engine.table(running.id)
            known = running.blocks if running.computed else engine.path_blocks(running.id)
            for number, block in enumerate(table[:known]):
                wanted = running.hashes[16 * number : 16 * (number + 1)]
                for rank in range(RANKS):
                    found = self._memory.holds.get((engine.gpu_pool, rank, block))
                    assert found == wanted, (
                        f"request {running.id} of {engine.engine}: block {block} ({number} of its table {table}, rank "
                        f"{rank}) holds {found!r} and not {wanted!r}"
                    )

    def _end(self) -> None:
        """Everybody finishes: then no transfer is left, and all replicas agree."""
        for running in list(self._requests.values()):
            running.engine.release(running.id)
        self._requests.clear()
        for _ in range(3):
            ring(self._connection, INDEX)
            for seat in self._seats():
                held = self._held.pop(seat, None)
                jobs = self._queue(seat)
                if held is not None:
                    jobs.finish(held.delivery, bool(held.ok), "" if held.ok else "given up")
                while isinstance(got := jobs.take(0.0), Delivery):
                    ok = got.reported or step(got.job, self._memory.rank(seat[1])).ok
                    jobs.finish(got, ok)
        for engine in self._engines:
            engine.refresh()
            assert not (broken := engine.inspect(violations)), broken
        left = self._engines[0].inspect(lambda state: sorted(state.transfers))
        assert not left, f"never finished: {left}"
        assert len({engine.digest() for engine in self._engines}) == 1
