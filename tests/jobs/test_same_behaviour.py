"""Every backend behaves like the one in memory, whatever is asked of it and in whatever order.

Seeded stories of several workers on two ranks: taking, finishing well and badly, twice and late, restarts, siblings
that take over, streams that are lost, jobs that are rung. What every call answers, and the log at the end, is the same.
"""

from __future__ import annotations

import random

import fakeredis
import pytest

from events import connect, limits
from events.embedded import EmbeddedRedis
from events.job_ports import Delivery, Dropped
from events.job_queue import JobQueue
from events.jobs import encode_job
from events.log import EventLog, LogConnection
from events.ports import Appended, Base, Job
from tests.jobs.given import POOL, commit, finishes, index_with, job, lose_stream, seated

RANKS = 2
STEPS = 100
NAMES = ("a", "b")


class Story:
    """One seeded story on one backend, told as a list of lines."""

    def __init__(self, connection: LogConnection, index: str, seed: int) -> None:
        self._connection = connection
        self._index = index
        self._random = random.Random(seed)
        self._log: EventLog = index_with(connection, index)
        self._started = 0
        self._workers = {(rank, name): self._worker(rank, name) for rank in range(RANKS) for name in NAMES}
        self._held: list[tuple[JobQueue, Delivery]] = []
        self.lines: list[str] = []

    def tell(self) -> list[str]:
        steps = (self._start, self._start, self._take, self._take, self._take, self._finish, self._finish, self._finish)
        rare = (self._restart, self._lose, self._ring, self._repeat)
        for _ in range(STEPS):
            self._random.choice(steps if self._random.random() < 0.85 else rare)()
        self.lines += [str(fact) for fact in finishes(self._log)]
        self.lines.append(str(sorted(self._connection.doorbell(self._index).ringing(POOL))))
        return self.lines

    def _worker(self, rank: int, name: str) -> JobQueue:
        return seated(self._connection, self._index, rank, RANKS, name)

    def _start(self) -> None:
        name = f"e0:{self._started}"
        self._started += 1
        head = self._log.head()
        ranks = self._random.choice([1, 2, 2])
        rung = Job(POOL, name, encode_job(job(name, ranks)) if self._random.random() < 0.9 else b"garbage")
        assert isinstance(
            self._log.append(commit(f"c{name}", jobs=[rung]), Base(head.position, head.commit_id)), Appended
        )

    def _take(self) -> None:
        who = self._random.choice(sorted(self._workers))
        if self._random.random() < 0.3:
            self._sit(who)
        got = self._workers[who].take(0.0)
        match got:
            case Delivery():
                self._held.append((self._workers[who], got))
                self.lines.append(f"{who} takes {got.job.transfer}, {got.deliveries}, {got.reported}")
            case Dropped():
                self.lines.append(f"{who} drops: {got.reason}")
            case None:
                self.lines.append(f"{who} finds nothing")

    def _finish(self) -> None:
        if self._held:
            held = self._held.pop(self._random.randrange(len(self._held)))
            self._report(*held)
            if self._random.random() < 0.3:
                self._held.append(held)

    def _report(self, mine: JobQueue, delivery: Delivery) -> None:
        ok = self._random.random() < 0.7
        reply = mine.finish(delivery, ok=ok, reason=f"broken in {mine.seat.worker}")
        told = (reply.outcome, reply.position, reply.failure)  # `acked`: Redis 7 forgets trimmed jobs earlier than 6.2
        self.lines.append(f"{mine.seat} reports {delivery.job.transfer} {ok}: {told}")

    def _repeat(self) -> None:
        if self._held:
            self._report(*self._random.choice(self._held))

    def _restart(self) -> None:
        who = self._random.choice(sorted(self._workers))
        self._workers[who] = self._worker(*who)

    def _sit(self, who: tuple[int, str]) -> None:
        self._workers[who].enter(takeover=True)
        beats = {each: mine.beat("ready") is not None for each, mine in self._workers.items()}
        self.lines.append(f"{who} sits down: {beats}")

    def _lose(self) -> None:
        # Whole: of what is only trimmed, Redis 7 forgets at once what 6.2 remembers; test_take.py has both.
        lose_stream(self._connection, self._index, trimmed=False)

    def _ring(self) -> None:
        if self._started:
            name = f"e0:{self._random.randrange(self._started)}"
            rung = self._connection.doorbell(self._index).ring(Job(POOL, name, encode_job(job(name, RANKS))))
            self.lines.append(f"{name} is rung: {rung}")


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("idle_s", [0.0, 1000.0])
def test_stories_are_the_same_on_every_backend(
    embedded_redis: EmbeddedRedis,
    system_redis: EmbeddedRedis,
    index_name: str,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    idle_s: float,
) -> None:
    """Otherwise what the simulator proves about workers would not hold in production.

    Given a seeded story, when it is told on every backend, with siblings that take over at once or never, then each
    tells what memory tells.
    """
    monkeypatch.setattr(limits, "JOB_IDLE_S", idle_s)
    monkeypatch.setattr(limits, "JOB_CLAIM_EVERY_S", 0.0)
    with connect("memory://") as memory:
        told = Story(memory, index_name, seed).tell()
    assert any("('finished'" in line for line in told)
    assert any("('unseated'" in line for line in told)

    for url in (None, embedded_redis.url, system_redis.url):
        fake = fakeredis.FakeRedis(server=fakeredis.FakeServer()) if url is None else None
        with connect(url, client=fake) as connection:
            assert Story(connection, index_name, seed).tell() == told, url
