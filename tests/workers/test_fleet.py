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
from statecore import CacheIndex, UnknownTransfer
from statecore.invariants import violations
from tests.jobs.given import seated, taken
from tests.stores.given import import_paddle, import_paddle_for_gpu
from tests.workers.fleet import (
    BLOCK_TOKENS,
    GPU_BLOCKS,
    HELD,
    HELD_PADDLE,
    HOST_BLOCKS,
    HOST_LAYOUT,
    HOST_POOL,
    RANKS,
    WAIT_S,
    Fleet,
    eventually,
    prompt,
)
from tests.workers.held_store import PATIENCE_VARIABLE
from workers.launcher import stop_workers

GPU = "paddle@gpu:0"


@pytest.fixture
def fleet(embedded_redis: EmbeddedRedis, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Its engines' memory is numpy's, or what the test says; on a GPU where there is one."""
    store = getattr(request, "param", "numpy")
    if store == GPU:
        import_paddle_for_gpu()
    made = Fleet(embedded_redis.url, tmp_path, store)
    yield made
    made.close()


def swap_out(fleet: Fleet, engine: CacheIndex, name: str = "a") -> tuple[bytes, str]:
    """A prompt that fills the pool, and a request that pushes it out: its hashes, and the transfer."""
    hashes = prompt(name, GPU_BLOCKS)
    fleet.compute(engine, name, hashes)
    engine.match("next", hashes=prompt(f"next-{name}", GPU_BLOCKS))
    (transfer,) = engine.allocate("next", GPU_BLOCKS).waits_for
    return hashes, transfer


def check_on_the_other(fleet: Fleet, other: CacheIndex, hashes: bytes) -> None:
    """Another engine matches the prompt: all of it comes from the host, and every byte on every rank is right."""
    other.refresh()
    match = other.match("r", hashes=hashes)
    assert match.host_tokens == GPU_BLOCKS * BLOCK_TOKENS
    for each in match.waits_for:
        assert other.wait(each, WAIT_S).done
    fleet.check(other.gpu_pool, match.blocks, hashes)


@pytest.mark.parametrize(
    ("fleet", "store"), [("numpy", "numpy"), ("numpy", "paddle@cpu"), (GPU, GPU)], indirect=["fleet"]
)
def test_bytes_go_out_and_come_back_on_the_other_engine(fleet: Fleet, store: str) -> None:
    """Otherwise a prompt routed to the neighbour is computed again, or answered from wrong bytes.

    Given a full GPU pool of one engine, when it needs room, then its workers swap out; when the other engine matches,
    its workers swap in; and both ranks hold exactly the bytes that were computed.
    """
    if store.startswith("paddle"):
        import_paddle()
    first, second = fleet.engine("e0"), fleet.engine("e1")
    fleet.launch(first, store)
    fleet.launch(second, store)
    hashes, transfer = swap_out(fleet, first)
    stored = fleet.host_blocks(first, transfer)
    assert first.wait(transfer, WAIT_S).done
    fleet.check(HOST_POOL, stored, hashes)
    assert len(first.allocate("next", GPU_BLOCKS).blocks) == GPU_BLOCKS

    check_on_the_other(fleet, second, hashes)
    assert all(fact.ok for fact in fleet.finishes())
    assert second.inspect(lambda state: len(state.transfers)) == 0


@pytest.mark.parametrize("fleet", ["numpy", GPU], indirect=True)
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


@pytest.mark.parametrize(("fleet", "held"), [("numpy", HELD), (GPU, f"{HELD_PADDLE}@gpu:0")], indirect=["fleet"])
def test_a_killed_worker_is_replaced_and_its_copy_done_again(fleet: Fleet, held: str) -> None:
    """Otherwise blocks would stay pinned for ever, or half-copied ones be used.

    Given a worker killed in the middle of a copy (SIGKILL), when workers are started again, then the same transfer is
    finished, once, and its bytes are right.
    """
    first, second = fleet.engine("e0"), fleet.engine("e1")
    workers = fleet.launch(first, held)
    fleet.hold()
    hashes, transfer = swap_out(fleet, first)
    for worker in workers:
        fleet.reached(worker)
    stored = fleet.host_blocks(first, transfer)
    workers[0].kill()
    assert workers[0].wait() == -signal.SIGKILL
    halves = [fleet.stores[0].matches(HOST_POOL, block, hashes[:16]) for block in stored[:2]]
    assert halves == [True, False], "it was not in the middle of its copy"
    fleet.go_on()
    assert first.wait(transfer, 0.5).under_way
    stop_workers(workers)

    fleet.launch(first)
    assert first.wait(transfer, WAIT_S).done
    fleet.check(HOST_POOL, stored, hashes)

    fleet.launch(second)
    check_on_the_other(fleet, second, hashes)
    assert [fact.transfer for fact in fleet.finishes()].count(transfer) == 1


def test_a_suspended_worker_that_wakes_up_harms_nothing(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a paused machine would finish transfers twice when it comes back (E-11, E-32).

    Given a worker suspended in the middle of a copy, whose seat somebody else has taken and whose job is finished, when it
    wakes up, then its report does not count, nothing is appended, and it ends; a new one does the next job.
    """
    first, second = fleet.engine("e0"), fleet.engine("e1")
    workers = fleet.launch(first, HELD)
    fleet.hold()
    hashes, transfer = swap_out(fleet, first)
    stored = fleet.host_blocks(first, transfer)
    for worker in workers:
        fleet.reached(worker)
    os.kill(workers[0].pid, signal.SIGSTOP)
    fleet.go_on()

    # Somebody else of its rank, by hand: a worker process could not, `rank_lock.py` keeps it from starting.
    monkeypatch.setattr(limits, "JOB_IDLE_S", 0.0)
    sibling = seated(fleet.connection, fleet.index, 0, RANKS, "sibling", first.gpu_pool)
    delivery = taken(sibling)
    job = delivery.job
    fleet.stores[0].copy(job.source, job.destination, job.source_blocks, job.destination_blocks)
    sibling.finish(delivery, ok=True)
    assert first.wait(transfer, WAIT_S).done

    fleet.check(HOST_POOL, stored, hashes)
    os.kill(workers[0].pid, signal.SIGCONT)
    assert workers[0].wait(WAIT_S) == 0
    told = [orjson.loads(line)["event"] for line in fleet.log_of(first, 0).splitlines()]
    assert b'"outcome":"unseated"' in fleet.log_of(first, 0)
    assert sorted(told) == ["not_counted", "ready", "replaced", "stopped"]
    fleet.check(HOST_POOL, stored, hashes)

    assert [fact.transfer for fact in fleet.finishes()] == [transfer]
    assert len(first.allocate("next", GPU_BLOCKS).blocks) == GPU_BLOCKS
    first.release("next")
    sibling.leave()
    fleet.launch(first, takeover=True)
    fleet.compute(first, "b", prompt("b", GPU_BLOCKS))
    _, following = swap_out(fleet, first, "c")
    assert first.wait(following, WAIT_S).done
    fleet.launch(second)
    check_on_the_other(fleet, second, hashes)


def test_a_worker_suspended_past_its_idle_time_goes_on_where_it_was(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a machine that was paused for a minute would lose a transfer, or do it in the wrong blocks (E-32).

    Given a worker suspended in the middle of a copy until its job counts as idle and its heartbeat has run out, when
    others try to start in its place, then they are refused and its blocks stay reserved; when it wakes up, then it
    finishes the same transfer, once, every block on every rank holds its bytes, and it is seen to live again.
    """
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
    first, second = fleet.engine("e0"), fleet.engine("e1")
    workers = fleet.launch(first, HELD)
    fleet.hold()
    hashes, transfer = swap_out(fleet, first)
    stored = fleet.host_blocks(first, transfer)
    for worker in workers:
        fleet.reached(worker)
    os.kill(workers[0].pid, signal.SIGSTOP)
    fleet.go_on()
    seats = fleet.connection.jobs(fleet.index, first.gpu_pool, 0, RANKS, "look")
    eventually(lambda: seats.alive()[0] is None, "its heartbeat runs out")

    with pytest.raises(RuntimeError, match=f"pid ({workers[0].pid}|{workers[1].pid})"):
        fleet.launch(first, HELD)
    assert first.poll(transfer).under_way
    assert first.allocate("next", GPU_BLOCKS).waits_for == (transfer,)
    assert not fleet.stores[0].matches(HOST_POOL, stored[-1], hashes[-16:])
    os.kill(workers[0].pid, signal.SIGCONT)

    assert first.wait(transfer, WAIT_S).done
    fleet.check(HOST_POOL, stored, hashes)
    eventually(lambda: [beat and beat.pid for beat in seats.alive()] == [each.pid for each in workers], "both live")
    assert [fact.transfer for fact in fleet.finishes()] == [transfer]
    assert len(first.allocate("next", GPU_BLOCKS).blocks) == GPU_BLOCKS
    fleet.launch(second)
    check_on_the_other(fleet, second, hashes)


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
    check_on_the_other(fleet, second, hashes)


@pytest.mark.parametrize("store", [HELD, HELD_PADDLE])
def test_a_worker_told_to_stop_ends_its_copy_and_reports(fleet: Fleet, store: str) -> None:
    """Otherwise every restart of the workers would cost the transfers under way.

    Given workers in the middle of a copy, when they get SIGTERM, then the transfer is done, they end with code 0,
    their last line says so, the bytes are right, and their seats are free at once.
    """
    if store == HELD_PADDLE:
        import_paddle()
    engine = fleet.engine("e0")
    workers = fleet.launch(engine, store)
    fleet.hold()
    hashes, transfer = swap_out(fleet, engine)
    stored = fleet.host_blocks(engine, transfer)
    for worker in workers:
        fleet.reached(worker)
        worker.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    assert [worker.poll() for worker in workers] == [None, None]
    fleet.go_on()

    assert [worker.wait(WAIT_S) for worker in workers] == [0, 0]  # a second signal may meet an interpreter that ends
    assert engine.poll(transfer).done
    fleet.check(HOST_POOL, stored, hashes)
    seats = fleet.connection.jobs(fleet.index, engine.gpu_pool, 0, RANKS, "look")
    assert seats.alive() == (None, None)
    lines = fleet.log_of(engine, 1).splitlines()
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


def test_a_cancelled_transfer_is_over_when_its_workers_have_reported(fleet: Fleet) -> None:
    """Otherwise blocks that a worker still writes would be given to somebody else, or never again to anybody.

    Given workers in the middle of a swap-out that is cancelled, when its engine cancels it again, or cancels what is
    finished or never was, then UnknownTransfer and nothing changes; its host blocks belong to nobody until the workers
    have reported; then none is left over, and no byte of what is cached has changed.
    """
    engine = fleet.engine("e0")
    workers = fleet.launch(engine, HELD)
    done_hashes, done = swap_out(fleet, engine)
    stored = fleet.host_blocks(engine, done)
    assert engine.wait(done, WAIT_S).done
    engine.release("next")
    fleet.hold()
    hashes, transfer = swap_out(fleet, engine, "b")
    for worker in workers:
        fleet.reached(worker)

    engine.cancel(transfer)
    before = engine.digest()
    for unknown in (transfer, done, "e0:99", "e9:0"):
        with pytest.raises(UnknownTransfer, match=repr(unknown)):
            engine.cancel(unknown)
    assert engine.digest() == before
    assert engine.wait(transfer, WAIT_S).state == "cancelled"
    assert host_blocks_free(engine) == HOST_BLOCKS - 2 * GPU_BLOCKS
    fleet.go_on()
    eventually(lambda: engine.refresh() and host_blocks_free(engine) == HOST_BLOCKS - GPU_BLOCKS, "all have reported")

    assert engine.inspect(lambda state: len(state.transfers)) == 0
    assert engine.inspect(violations) == []
    fleet.check(HOST_POOL, stored, done_hashes)
    engine.release("next")
    match = engine.match("again", hashes=hashes)
    fleet.check(engine.gpu_pool, match.blocks, hashes)


def host_blocks_free(engine: CacheIndex) -> int:
    return engine.inspect(lambda state: state.pools[HOST_POOL].free.total)


def test_one_tier_needs_no_worker_and_does_not_mind_one(fleet: Fleet) -> None:
    """Otherwise who has no memory for a host pool could not run at all, or would have to start other processes.

    Given an engine with a host pool of 0 blocks and workers beside it, when prompts push each other out, then there is
    no transfer, what is cached is right, and the workers end with code 0.
    """
    engine = fleet.engine("e0", host_blocks=0)
    workers = fleet.launch(engine)
    for name in ("a", "b", "a", "c"):
        hashes = prompt(name, GPU_BLOCKS)
        fleet.check(engine.gpu_pool, fleet.compute(engine, f"r-{name}", hashes), hashes)
    match = engine.match("hit", hashes=prompt("c", GPU_BLOCKS))

    fleet.check(engine.gpu_pool, match.blocks, prompt("c", GPU_BLOCKS))
    assert (match.waits_for, match.host_tokens) == ((), 0)
    assert fleet.finishes() == []
    assert engine.inspect(violations) == []
    assert stop_workers(workers) == [0, 0]
