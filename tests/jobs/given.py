"""What the tests of jobs start from: an index with jobs in its streams, workers on seats, networks that lose replies."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import redis

from events.errors import Unavailable
from events.facts import Fact, PoolAdded, TransferFinished
from events.job_ports import Delivery, JobTransport, Seat
from events.job_queue import JobQueue
from events.jobs import TransferJob, encode_job
from events.keys import IndexKeys, engine_scope, pool_scope
from events.log import EventLog, LogConnection
from events.memory import MemoryBackend
from events.ports import Appended, Base, Commit, Job
from events.redis_log import RedisBackend

POOL = "gpu:e0"
HOST = "cpu:host"


def job(transfer: str = "e0:0", ranks: int = 1, blocks: int = 2) -> TransferJob:
    return TransferJob(
        transfer=transfer,
        kind="swap_out",
        source=POOL,
        source_blocks=((0, blocks),),
        destination=HOST,
        destination_blocks=((8, blocks),),
        ranks=ranks,
        touches_ok=(pool_scope(POOL),),
        touches_failed=(pool_scope(HOST),),
    )


def commit(commit_id: str, pools: Sequence[str] = (), jobs: Sequence[Job] = (), engine: str = "e0") -> Commit:
    scopes = (engine_scope(engine), *map(pool_scope, pools))
    fact = PoolAdded(pool="p", tier="gpu", blocks=1)
    return Commit(commit_id, engine, 1, (fact,), checks=scopes, touches=scopes, jobs=tuple(jobs))


def index_with(connection: LogConnection, index: str, *jobs: TransferJob) -> EventLog:
    """An index whose first commit rang these jobs."""
    log = connection.log(index, follow=False)
    rung = [Job(POOL, each.transfer, encode_job(each)) for each in jobs]
    assert isinstance(log.append(commit("c1", jobs=rung), Base(0, "")), Appended)
    return log


def worker(connection: LogConnection, index: str, rank: int = 0, ranks: int = 1, name: str = "w") -> JobQueue:
    return connection.jobs(index, POOL, rank, ranks, name)


def seated(
    connection: LogConnection, index: str, rank: int = 0, ranks: int = 1, name: str = "w", pool: str = POOL
) -> JobQueue:
    """A worker that has taken the seat, from whoever had it: its reports count."""
    jobs = connection.jobs(index, pool, rank, ranks, name)
    jobs.enter(takeover=True)
    return jobs


def taken(jobs: JobQueue, timeout_s: float = 1.0) -> Delivery:
    """The next job, which there must be."""
    delivery = jobs.take(timeout_s)
    assert isinstance(delivery, Delivery), delivery
    return delivery


def finishes(log: EventLog) -> list[TransferFinished]:
    facts: list[Fact] = [fact for entry in log.read(0) for fact in entry.facts]
    return [fact for fact in facts if isinstance(fact, TransferFinished)]


def lose_stream(connection: LogConnection, index: str, *, trimmed: bool) -> None:
    """The stream's entries are gone; `trimmed`: its groups are still there, and remember what they handed out."""
    backend = connection.backend
    if isinstance(backend, MemoryBackend):
        backend.jobs(index).lose(POOL, lists=not trimmed)
        return
    assert isinstance(backend, RedisBackend)
    key = IndexKeys.of(index).jobs(POOL)
    if trimmed:
        client_of(connection).xtrim(key, maxlen=0, approximate=False)
    else:
        client_of(connection).delete(key)


def client_of(connection: LogConnection) -> redis.Redis:
    """The connection's own client, to look at keys and damage them."""
    assert isinstance(connection.backend, RedisBackend)
    client = connection.backend._client
    assert isinstance(client, redis.Redis)
    return client


@attrs.define
class Lossy:
    """A `JobTransport` whose next calls of some names are carried out, but their replies are lost."""

    inner: JobTransport
    lose: list[str] = attrs.Factory(list)

    def __getattr__(self, name: str) -> object:
        method = getattr(self.inner, name)

        def call(*arguments: object, **named: object) -> object:
            answer = method(*arguments, **named)
            if name in self.lose:
                self.lose.remove(name)
                raise Unavailable(f"the reply to {name} was lost")
            return answer

        return call


def lossy_worker(
    connection: LogConnection, index: str, *lose: str, name: str = "w", rank: int = 0, ranks: int = 1
) -> JobQueue:
    transport = Lossy(connection.backend.jobs(index), list(lose))
    jobs = JobQueue(transport, Seat(POOL, rank, name), ranks, sleep=lambda _s: None)  # type: ignore[arg-type]
    jobs.enter()
    return jobs


def delete_consumer(connection: LogConnection, index: str, name: str, rank: int = 0) -> None:
    """A consumer of the rank's group is gone, and its list with it; the entries are still in the stream."""
    backend = connection.backend
    if isinstance(backend, MemoryBackend):
        backend.jobs(index).delete_consumer(Seat(POOL, rank, name))
        return
    client_of(connection).xgroup_delconsumer(IndexKeys.of(index).jobs(POOL), f"rank-{rank}", name)
