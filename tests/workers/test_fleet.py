"""Two engines, one host tier, two ranks, real worker processes and real bytes: what survives when workers die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from events import limits
from events.embedded import EmbeddedRedis
from statecore import CacheIndex
from tests.jobs.given import taken
from tests.workers.fleet import BLOCK_TOKENS, GPU_BLOCKS, HELD, HOST_LAYOUT, RANKS, WAIT_S, Fleet, eventually, prompt
from workers.launcher import stop_workers


@pytest.fixture
def fleet(embedded_redis: EmbeddedRedis, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(embedded_redis.url, tmp_path)
    yield made
    made.close()


def swap_out(fleet: Fleet, engine: CacheIndex, name: str = "a") -> tuple[bytes, str]:
    """A prompt that fills the pool, and a request that pushes it out: its hashes, and the transfer."""
    hashes = prompt(name, GPU_BLOCKS)
    fleet.compute(engine, name, hashes)
    engine.match("next", hashes=prompt(f"next-{name}", GPU_BLOCKS))
    (transfer,) = engine.allocate("next", GPU_BLOCKS).waits_for
    return hashes, transfer


def test_bytes_go_out_and_come_back_on_the_other_engine(fleet: Fleet) -> None:
    """Otherwise a prompt routed to the neighbour is computed again, or answered from wrong bytes.

    Given a full GPU pool of one engine, when it needs room, then its workers swap out; when the other engine matches,
    its workers swap in; and both ranks hold exactly the bytes that were computed.
    """
    first, second = fleet.engine("e0"), fleet.engine("e1")
    fleet.launch(first)
    fleet.launch(second)
    hashes, transfer = swap_out(fleet, first)
    assert first.wait(transfer, WAIT_S).done
    assert len(first.allocate("next", GPU_BLOCKS).blocks) == GPU_BLOCKS

    second.refresh()
    match = second.match("r", hashes=hashes)
    assert match.host_tokens == GPU_BLOCKS * BLOCK_TOKENS
    for each in match.waits_for:
        assert second.wait(each, WAIT_S).done

    fleet.check(second.gpu_pool, match.blocks, hashes)
    assert all(fact.ok for fact in fleet.finishes())
    assert second.inspect(lambda state: len(state.transfers)) == 0


def test_many_requests_through_a_small_pool(fleet: Fleet) -> None:
    """Otherwise bytes would be mixed up as soon as blocks are reused while others move.

    Given six prompts of a pool's size each, computed in turn by two engines, twice, when every cached block is
    checked whenever it is matched, then none is ever wrong, and no transfer is left.
    """
    engines = [fleet.engine("e0"), fleet.engine("e1")]
    for engine in engines:
        fleet.launch(engine)
    swapped_in = 0
    for turn in range(12):
        engine, hashes = engines[turn % 2], prompt(f"p{turn % 6 // 2}", GPU_BLOCKS)
        table = fleet.compute(engine, f"r{turn}", hashes)
        swapped_in = engine.inspect(lambda state: sum(each.host_tokens for each in state.engines.values()))
        fleet.check(engine.gpu_pool, table, hashes)

    assert swapped_in > 0
    eventually(lambda: engines[0].refresh() and not engines[0].inspect(lambda state: state.transfers), "all finished")
    assert {fact.ok for fact in fleet.finishes()} == {True}


def test_a_killed_worker_is_replaced_and_its_copy_done_again(fleet: Fleet) -> None:
    """Otherwise blocks would stay pinned for ever, or half-copied ones be used.

    Given a worker killed in the middle of a copy (SIGKILL), when workers are started again, then the same transfer is
    finished, once, and its bytes are right.
    """
    first, second = fleet.engine("e0"), fleet.engine("e1")
    workers = fleet.launch(first, HELD)
    fleet.hold()
    hashes, transfer = swap_out(fleet, first)
    for worker in workers:
        fleet.reached(worker)
    workers[0].kill()
    workers[0].wait()
    fleet.go_on()
    assert first.wait(transfer, 0.5).under_way
    stop_workers(workers)

    fleet.launch(first)
    assert first.wait(transfer, WAIT_S).done

    fleet.launch(second)
    second.refresh()
    match = second.match("r", hashes=hashes)
    assert second.wait(match.waits_for[0], WAIT_S).done
    fleet.check(second.gpu_pool, match.blocks, hashes)
    assert [fact.transfer for fact in fleet.finishes()].count(transfer) == 1


def test_a_suspended_worker_that_wakes_up_harms_nothing(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a paused machine would finish transfers twice when it comes back (E-11, E-32).

    Given a worker suspended in the middle of a copy, whose job somebody else of its rank has finished, when it wakes
    up, then its report is a duplicate, nothing is appended, and it goes on with the next job.
    """
    first = fleet.engine("e0")
    workers = fleet.launch(first, HELD)
    fleet.hold()
    _, transfer = swap_out(fleet, first)
    for worker in workers:
        fleet.reached(worker)
    os.kill(workers[0].pid, signal.SIGSTOP)
    fleet.go_on()

    # Somebody else of its rank, by hand: a worker process could not, `rank_lock.py` keeps it from starting.
    monkeypatch.setattr(limits, "JOB_IDLE_S", 0.0)
    sibling = fleet.connection.jobs(fleet.index, first.gpu_pool, 0, RANKS, "sibling")
    delivery = taken(sibling)
    job = delivery.job
    fleet.stores[0].copy(job.source, job.destination, job.source_blocks, job.destination_blocks)
    sibling.finish(delivery, ok=True)
    assert first.wait(transfer, WAIT_S).done

    os.kill(workers[0].pid, signal.SIGCONT)
    log = fleet.folder / f"{fleet.index}-gpu_e0-rank-0.log"
    eventually(lambda: b'"outcome":"duplicate"' in log.read_bytes(), "the duplicate report")

    assert [fact.transfer for fact in fleet.finishes()] == [transfer]
    assert len(first.allocate("next", GPU_BLOCKS).blocks) == GPU_BLOCKS
    first.release("next")
    fleet.compute(first, "b", prompt("b", GPU_BLOCKS))
    _, following = swap_out(fleet, first, "c")
    assert first.wait(following, WAIT_S).done


def test_taking_over_ends_a_suspended_worker_before_its_job_is_done_again(fleet: Fleet) -> None:
    """Otherwise it would wake up in the middle of a copy and write old bytes into blocks of somebody else.

    Given a worker suspended in the middle of a copy, when workers are launched, then refused, naming it; with takeover
    it is ended, and the transfer finished by the new one, with the right bytes.
    """
    first, second = fleet.engine("e0"), fleet.engine("e1")
    old = fleet.launch(first, HELD)
    fleet.hold()
    hashes, transfer = swap_out(fleet, first)
    for worker in old:
        fleet.reached(worker)
    os.kill(old[0].pid, signal.SIGSTOP)
    fleet.go_on()
    with pytest.raises(RuntimeError, match=f"pid ({old[0].pid}|{old[1].pid})"):
        fleet.launch(first)

    fleet.launch(first, takeover=True)
    assert first.wait(transfer, WAIT_S).done

    assert [worker.wait(WAIT_S) for worker in old] == [-signal.SIGKILL] * 2
    fleet.launch(second)
    second.refresh()
    match = second.match("r", hashes=hashes)
    assert second.wait(match.waits_for[0], WAIT_S).done
    fleet.check(second.gpu_pool, match.blocks, hashes)


def test_a_worker_told_to_stop_ends_its_copy_and_reports(fleet: Fleet) -> None:
    """Otherwise every restart of the workers would cost the transfers under way.

    Given workers in the middle of a copy, when they get SIGTERM, then the transfer is done, they end with code 0,
    their last line says so, and their seats are free at once.
    """
    engine = fleet.engine("e0")
    workers = fleet.launch(engine, HELD)
    fleet.hold()
    _, transfer = swap_out(fleet, engine)
    for worker in workers:
        fleet.reached(worker)
        worker.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    assert [worker.poll() for worker in workers] == [None, None]
    fleet.go_on()

    assert stop_workers(workers) == [0, 0]
    assert engine.poll(transfer).done
    seats = fleet.connection.jobs(fleet.index, engine.gpu_pool, 0, RANKS, "look")
    assert seats.alive() == (None, None)
    lines = (fleet.folder / f"{fleet.index}-gpu_e0-rank-1.log").read_bytes().splitlines()
    assert [orjson.loads(line)["event"] for line in lines] == ["ready", "copied", "stopped"]


def test_memory_that_is_gone_fails_the_transfer_and_not_the_worker(fleet: Fleet) -> None:
    """Otherwise an engine whose worker cannot open the memory would wait for ever (E-12).

    Given the host pool's memory is missing on one rank, when a swap-out starts, then it fails with that rank and the
    reason, and the blocks are dropped next time; when the memory is back, the same workers do the next one.
    """
    engine = fleet.engine("e0")
    fleet.stores[1].unlink("cpu:host")
    fleet.launch(engine)
    _, transfer = swap_out(fleet, engine)

    state = engine.wait(transfer, WAIT_S)
    assert state.state == "failed"
    assert state.reason.startswith("rank 1: pool 'cpu:host': there is no shared memory")

    fleet.stores[1].create("cpu:host", "cpu", HOST_LAYOUT)
    assert len(engine.allocate("next", GPU_BLOCKS).blocks) == GPU_BLOCKS
    engine.release("next")
    _, again = swap_out(fleet, engine, "b")
    assert engine.wait(again, WAIT_S).done
