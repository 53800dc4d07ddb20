"""What a worker does when the log's server begins a new life: real servers, killed and cut, and real worker processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from events import RolledBack, Unavailable, connect, limits
from events.job_ports import FINISHED, INTERRUPTED
from events.job_queue import JobQueue
from events.jobs import encode_job
from events.keys import IndexKeys
from events.log import LogConnection
from events.ports import Appended, Base, Job
from statecore import CacheIndex
from tests.contract.lives import append_only_file, restart
from tests.jobs.given import POOL, commit, finishes, index_with, job, seated, taken
from tests.servers import RedisServer
from tests.workers.fleet import GPU_BLOCKS, HELD, HOST_POOL, WAIT_S, Fleet, eventually, prompt
from tests.workers.held_store import BARRIER_VARIABLE

BARRIER_S = 0.75
INDEX = "lives"


@pytest.fixture(autouse=True)
def short_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BARRIER_S", BARRIER_S)
    monkeypatch.setenv(BARRIER_VARIABLE, str(BARRIER_S))


@pytest.fixture
def connection_to(server: RedisServer) -> Iterator[LogConnection]:
    with connect(server.url) as connection:
        yield connection


def refused_for(jobs: JobQueue) -> float:
    """Seconds for which the worker is given nothing, because the log is closed."""
    begun = time.monotonic()
    while True:
        try:
            delivery = jobs.take(0.05)
        except Unavailable:
            time.sleep(0.02)
        else:
            assert delivery is not None
            return time.monotonic() - begun


def test_no_copy_begins_while_the_log_is_closed(server: RedisServer, connection_to: LogConnection) -> None:
    """Otherwise a worker would fill a block that another one is still writing, for a transfer that vanished.

    Given a job in its stream, when the server is killed and started again, then no worker is given it before the barrier is
    over; then it is, and its report finishes.
    """
    log = index_with(connection_to, INDEX, job())
    mine = seated(connection_to, INDEX)
    restart(server)

    assert refused_for(mine) > BARRIER_S * 0.8

    mine.again()
    assert mine.finish(taken(mine), ok=True).outcome == FINISHED
    assert [fact.ok for fact in finishes(log)] == [True]


@pytest.mark.parametrize("ok", [True, False])
def test_a_job_from_before_is_not_reported_as_done(server: RedisServer, connection_to: LogConnection, ok: bool) -> None:
    """Otherwise a copy would count whose blocks may have been somebody else's meanwhile (E-11).

    Given a worker with a job in its hands, when the server is killed and started again and the log is open, then its
    report is interrupted and writes nothing; it is given the job again, and that report counts.
    """
    log = index_with(connection_to, INDEX, job())
    mine = seated(connection_to, INDEX)
    before = taken(mine)
    restart(server)
    seat = seated(connection_to, INDEX, name="other", rank=1, ranks=2)
    with pytest.raises(Unavailable, match="closed for"):
        seat._transport.look_up("e0:0", 0)
    time.sleep(BARRIER_S * 1.2)

    reply = mine.finish(before, ok=ok, reason="" if ok else "broken")

    assert (reply.outcome, reply.position) == (INTERRUPTED, 0)
    assert finishes(log) == []
    client = server.client()
    assert not client.exists(IndexKeys.of(INDEX).acks("e0:0"))
    again = taken(mine)
    assert (again.job, again.reported) == (before.job, False)
    assert again.life not in ("", before.life)
    assert mine.finish(again, ok=True).outcome == FINISHED


def test_a_job_that_vanished_is_forgotten(server: RedisServer, connection_to: LogConnection) -> None:
    """Otherwise the finish of a transfer that never was would stand in the log.

    Given a worker with a job whose transfer the server has lost, when it reports, then interrupted; there is no job, no
    finish, and no acks that stay for ever.
    """
    log = index_with(connection_to, INDEX)
    mine = seated(connection_to, INDEX)
    assert mine.take(0.0) is None  # its group is there
    end = append_only_file(server).stat().st_size
    index_with_one_more(connection_to)
    held = taken(mine)
    restart(server, cut_at=end)

    assert mine.finish(held, ok=True).outcome == INTERRUPTED
    with pytest.raises(Unavailable, match="closed for"):
        mine._transport.look_up("e0:0", 0)
    time.sleep(BARRIER_S * 1.2)
    assert mine.take(0.1) is None
    assert finishes(log) == []
    assert connection_to.doorbell(INDEX).ringing(POOL) == frozenset()
    assert not server.client().exists(IndexKeys.of(INDEX).acks("e0:0"))


def index_with_one_more(connection: LogConnection) -> None:
    log = connection.log(INDEX, follow=False)
    rung = Job(POOL, "e0:0", encode_job(job()))
    assert isinstance(log.append(commit("c2", jobs=[rung]), Base(1, "c1")), Appended)


# --- processes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fleet(server: RedisServer, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(server.url, tmp_path)
    yield made
    made.close()


def swap_out(fleet: Fleet, engine: CacheIndex) -> tuple[bytes, str]:
    hashes = prompt("a", GPU_BLOCKS)
    fleet.compute(engine, "a", hashes)
    engine.match("next", hashes=prompt("next", GPU_BLOCKS))
    (transfer,) = engine.allocate("next", GPU_BLOCKS).waits_for
    return hashes, transfer


def test_workers_in_the_middle_of_a_copy(fleet: Fleet, server: RedisServer) -> None:
    """Otherwise a restart of Redis would cost the transfers under way, or have them counted with the wrong bytes.

    Given worker processes in the middle of a copy, when the server is killed and started again, then they report nothing of
    that copy, carry the job out again once the log is open, and every byte is right.
    """
    engine = fleet.engine("e0")
    workers = fleet.launch(engine, HELD)
    fleet.hold()
    hashes, transfer = swap_out(fleet, engine)
    stored = fleet.host_blocks(engine, transfer)
    for worker in workers:
        fleet.reached(worker)
    restart(server)
    fleet.go_on()

    assert engine.wait(transfer, WAIT_S).done

    fleet.check(HOST_POOL, stored, hashes)
    assert [fact.transfer for fact in fleet.finishes()] == [transfer]
    for rank in range(len(workers)):
        eventually(lambda: b'"copied"' in fleet.log_of(engine, rank), "the second copy is told")  # noqa: B023
        events = [orjson.loads(line)["event"] for line in fleet.log_of(engine, rank).splitlines()]
        assert "not_counted" in events or "cut_off" in events
        assert events.count("copied") == 1
    assert engine.session == 1


def test_a_transfer_that_vanished_in_the_middle_of_its_copy(fleet: Fleet, server: RedisServer) -> None:
    """Otherwise its finish would follow it into a log that never knew it, or its blocks never be given again.

    Given worker processes copying for a transfer that the server then loses, then the engine is told while it waits; in its
    next life nothing of the transfer is in the log, and the same workers serve another.
    """
    engine = fleet.engine("e0")
    workers = fleet.launch(engine, HELD)
    fleet.compute(engine, "a", prompt("a", GPU_BLOCKS))
    fleet.hold()
    engine.match("next", hashes=prompt("next", GPU_BLOCKS))
    end = append_only_file(server).stat().st_size
    (lost,) = engine.allocate("next", GPU_BLOCKS).waits_for
    for worker in workers:
        fleet.reached(worker)
    restart(server, cut_at=end)
    fleet.go_on()

    begun = time.monotonic()
    with pytest.raises(RolledBack):
        engine.wait(lost, WAIT_S)
    assert time.monotonic() - begun < WAIT_S / 2
    engine.rejoin()

    hashes, transfer = swap_out_anew(fleet, engine)
    stored = fleet.host_blocks(engine, transfer)
    assert engine.wait(transfer, WAIT_S).done
    fleet.check(HOST_POOL, stored, hashes)
    assert [fact.transfer for fact in fleet.finishes()] == [transfer]


def swap_out_anew(fleet: Fleet, engine: CacheIndex) -> tuple[bytes, str]:
    """After the pool's content was forgotten with the life before."""
    hashes = prompt("b", GPU_BLOCKS)
    fleet.compute(engine, "b", hashes)
    engine.match("following", hashes=prompt("following", GPU_BLOCKS))
    (transfer,) = engine.allocate("following", GPU_BLOCKS).waits_for
    return hashes, transfer
