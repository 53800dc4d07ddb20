"""The demo's engine with a host pool, on `memory://` and real shared memory: what waits, comes back, and is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from events import connect
from events.facts import TransferStarted
from events.log import LogConnection
from ops.demo.contents import NO_CONTENTS, Contents, SharedContents, of_rank
from ops.demo.drive import Starved, drain, drive
from ops.demo.immediate import ImmediateWorkers
from ops.demo.plan import Outcome
from ops.demo.proofs import Bytes, Replay, replay, tier_proofs
from ops.demo.scheduler import Scheduler
from ops.demo.tally import Limits, Tally
from ops.demo.tiers import HOST_POOL
from ops.trace import generate
from statecore import CacheIndex, Policy
from statecore.invariants import leaked_blocks, violations
from statecore.state import State
from tests.demo.trace_requests import BLOCK, numbered, request
from workers.layout import CacheLayout
from workers.numpy_store import NumpyStore

INDEX = "index"


@pytest.fixture
def connection() -> Iterator[LogConnection]:
    with connect("memory://") as opened:
        yield opened


WHEN_NEEDED = Policy("write_back", 0, 0)


def engine(
    connection: LogConnection,
    name: str = "engine",
    *,
    pool: str | None = None,
    gpu: int,
    host: int,
    policy: Policy | None = WHEN_NEEDED,
    block_size: int = BLOCK,
) -> CacheIndex:
    return CacheIndex(
        connection,
        name=INDEX,
        engine=name,
        gpu_pool=pool,
        gpu_blocks=gpu,
        cpu_blocks=host,
        policy=policy,
        block_size=block_size,
        follow=False,
    )


def workers_of(
    connection: LogConnection, carry_out: Callable[[TransferStarted], str] | None = None
) -> ImmediateWorkers:
    log = connection.log(INDEX, follow=False)
    return ImmediateWorkers(log) if carry_out is None else ImmediateWorkers(log, carry_out)


def serve(workers: ImmediateWorkers, *schedulers: Scheduler) -> None:
    """Steps in turn until all are done; far more steps than any test here needs is a hang."""
    going = list(schedulers)
    for _ in range(20_000):
        if not going:
            return
        for scheduler in tuple(going):
            outcome = scheduler.step()
            workers.work()
            if outcome is Outcome.DONE:
                going.remove(scheduler)
            elif outcome is not Outcome.PROGRESS:
                scheduler.index.refresh()
    raise AssertionError([scheduler.tally for scheduler in going])


def make_room(index: CacheIndex, workers: ImmediateWorkers, blocks: int) -> None:
    """Have so many GPU blocks leave for the host: a swap-in does not wait for room, it takes what is free."""
    assert index.allocate(None, blocks).blocks == []
    workers.work()
    index.refresh()
    index.recycle(None, index.allocate(None, blocks).blocks)


def is_sound(index: CacheIndex) -> bool:
    """Nothing runs, nothing is under way, and every block of both tiers is free or cached."""
    index.refresh()
    return index.inspect(
        lambda state: (
            not state.transfers
            and violations(state) == []
            and leaked_blocks(state) == 0
            and all(pool.free.total + pool.unpinned == pool.blocks for pool in state.pools.values())
        )
    )


class Machine:
    """Shared memory of one host pool and the engines' GPU pools, and workers that copy in it."""

    def __init__(self, folder: Path, gpu: int, host: int, engines: tuple[str, ...]) -> None:
        self.store = NumpyStore(INDEX, 0, folder)
        self._folder = folder
        for name in engines:
            self.store.create(f"gpu:{name}", "gpu", CacheLayout(2, gpu, (4,), "float16"))
        self.store.create(HOST_POOL, "cpu", CacheLayout(2, host, (4,), "float16"))

    def contents(self, name: str) -> Contents:
        return SharedContents(INDEX, f"gpu:{name}", 1, self._folder)

    def copy(self, job: TransferStarted) -> str:
        self.store.copy(job.source, job.destination, job.source_blocks, job.destination_blocks)
        return ""


# --- reuse ------------------------------------------------------------------------------------------------------------


def test_what_one_engine_computed_another_reuses_through_the_host(connection: LogConnection, tmp_path: Path) -> None:
    """The point of the host pool: a prompt routed to the neighbour would be computed again.

    Given an engine whose first prompt has fallen out of its small GPU pool into the host
    When the engine next door gets a prompt that starts like it
    Then it reuses those blocks, their bytes are what the first one computed, and the log says whose they were.
    """
    machine = Machine(tmp_path, gpu=6, host=20, engines=("first", "second"))
    indexes = [engine(connection, name, gpu=6, host=20) for name in ("first", "second")]
    first = Scheduler(
        indexes[0], numbered(request([1, 2, 3, 4]), request([5, 6, 7, 8, 9])), contents=machine.contents("first")
    )
    second = Scheduler(indexes[1], [(2, request([1, 2, 3, 4, 9]))], contents=machine.contents("second"))
    workers = workers_of(connection, machine.copy)

    serve(workers, first)
    second.index.refresh()
    serve(workers, second)

    assert second.tally.reused_tokens == 4 * BLOCK
    assert (second.tally.verified_blocks, second.tally.mismatches) == (4, 0)
    movements = replay(connection.log(INDEX)).movements
    assert movements.swap_ins == 1
    assert movements.host_tokens == movements.cross_engine_tokens == 4 * BLOCK
    assert is_sound(second.index)


def test_what_an_engine_fetches_back_itself_counts_as_nobody_elses(connection: LogConnection) -> None:
    """The report would credit sharing with what a private host pool gives as well."""
    index, workers = engine(connection, gpu=6, host=20), workers_of(connection)

    serve(workers, Scheduler(index, numbered(request([1, 2, 3, 4]), request([5, 6, 7, 8, 9]))))
    make_room(index, workers, 4)
    serve(workers, Scheduler(index, [(2, request([1, 2, 3, 4, 10]))]))

    movements = replay(connection.log(INDEX)).movements
    assert (movements.host_tokens > 0, movements.cross_engine_tokens) == (True, 0)


@pytest.mark.parametrize("policy", [Policy(), Policy("write_through"), Policy(free_low=20, free_high=40)])
def test_two_tiers_serve_everything_and_no_byte_is_wrong(
    connection: LogConnection, tmp_path: Path, policy: Policy
) -> None:
    """Swaps, evictions in both tiers, preemptions and sharing together would lose a request, a block or a byte."""
    names, gpu, host = ("a", "b", "c"), 260, 600
    machine = Machine(tmp_path, gpu, host, names)
    requests = list(enumerate(generate(60, seed=5)))
    schedulers = [
        Scheduler(
            engine(connection, name, gpu=gpu, host=host, policy=policy, block_size=64),
            requests[place::3],
            Limits(running_max=4),
            contents=machine.contents(name),
        )
        for place, name in enumerate(names)
    ]

    serve(workers_of(connection, machine.copy), *schedulers)

    total = Tally.sum(scheduler.tally for scheduler in schedulers)
    replayed = replay(connection.log(INDEX))
    assert total.requests + total.refused == 60
    assert replayed.movements.swap_outs > 0
    assert (total.mismatches, replayed.open_transfers, replayed.violations) == (0, 0, ())
    assert all(is_sound(scheduler.index) for scheduler in schedulers)
    assert {scheduler.index.digest() for scheduler in schedulers} == {replayed.digest}


# --- waiting ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def swapped_out(connection: LogConnection) -> CacheIndex:
    """An engine of six GPU blocks; the path 1, 2, 3, 4 is in the host pool only."""
    index = engine(connection, gpu=6, host=20)
    serve(workers_of(connection), Scheduler(index, numbered(request([1, 2, 3, 4], 0), request([5, 6, 7, 8, 9, 10], 0))))
    return index


def test_a_request_waits_for_its_blocks_and_others_do_not(connection: LogConnection, swapped_out: CacheIndex) -> None:
    """A request would compute on blocks that are not there yet; or everybody would wait for one swap-in.

    Given a request whose first two blocks come from the host, and another behind it
    When the workers take their time
    Then the other is served, the first holds its place, and goes on as soon as its blocks are there.
    """
    workers = workers_of(connection)
    make_room(swapped_out, workers, 4)
    scheduler = Scheduler(swapped_out, [(2, request([1, 2, 20], 0)), (3, request([30], 0))])

    outcomes = [scheduler.step() for _ in range(6)]

    assert [sequence.number for sequence in scheduler.running] == [2]
    assert (scheduler.running[0].computed, scheduler.tally.requests) == (2 * BLOCK, 1)
    assert outcomes[-1] is Outcome.MOVING
    assert scheduler.waits_for is not None
    workers.work()
    assert scheduler.step() is Outcome.PROGRESS
    serve(workers, scheduler)
    assert (scheduler.tally.requests, scheduler.tally.reused_tokens) == (2, 2 * BLOCK)


def test_blocks_that_do_not_come_are_computed(connection: LogConnection, swapped_out: CacheIndex) -> None:
    """A broken host copy would fail the request, or count as reuse.

    Given workers that cannot bring anything back
    Then the request computes what did not come, and is served; no token of it counts as reused.
    """
    workers = workers_of(connection, lambda job: "broken" if job.kind == "swap_in" else "")
    make_room(swapped_out, workers, 5)
    scheduler = Scheduler(swapped_out, [(2, request([1, 2, 3, 4, 20], 1))])

    serve(workers, scheduler)

    assert (scheduler.tally.requests, scheduler.tally.reused_tokens, scheduler.tally.cut) == (1, 0, 1)
    assert replay(connection.log(INDEX)).movements.failed == 1
    assert is_sound(swapped_out)


def test_a_request_that_must_wait_for_room_is_admitted_once(connection: LogConnection, swapped_out: CacheIndex) -> None:
    """Told "not yet", the scheduler would take it for "no", or ask for ever.

    Given a full GPU pool whose blocks the host does not have yet
    When a request needs room
    Then it waits for the swap-outs, nothing is dropped, and it goes on after them.
    """
    scheduler = Scheduler(swapped_out, [(2, request([20, 21, 22, 23], 1))])
    evicted = scheduler.tally.evicted_blocks

    outcomes = [scheduler.step() for _ in range(3)]

    assert outcomes[-1] is Outcome.MOVING
    assert [(sequence.blocks, sequence.computed) for sequence in scheduler.running] == [(0, 0)]
    serve(workers_of(connection), scheduler)
    assert (scheduler.tally.requests, scheduler.tally.evicted_blocks, scheduler.tally.preemptions) == (1, evicted, 0)
    assert is_sound(swapped_out)


def test_what_makes_room_may_be_anothers_by_the_time_the_step_stands(connection: LogConnection) -> None:
    """The engine would ask after transfers that never were, and end.

    Given two engines on one pool, and a request of one that waits for room in it
    When it decides to push out what nobody uses, and the other did so before its step arrived
    Then it waits for what the other began, and is served.
    """
    ours, other = (engine(connection, name, pool="gpu:shared", gpu=8, host=64) for name in ("ours", "other"))
    workers = workers_of(connection)
    serve(workers, Scheduler(other, numbered(request([1, 2, 3], 1), request([4, 5, 6], 1))))
    ours.refresh()
    scheduler = Scheduler(ours, [(2, request([7, 8, 9, 10, 11, 12, 13], 1))])
    assert scheduler.step() is Outcome.PROGRESS, "it is admitted, and has no block yet"
    workers.work()
    serve(workers, Scheduler(other, [(3, request([14, 15, 16], 1)), (4, request([17, 18, 19], 1))]))
    ours.refresh()
    begun = other.make_room(8).waits_for

    assert scheduler.step() is Outcome.MOVING

    assert scheduler.waits_for in begun
    assert ours.wait(scheduler.waits_for, 0.0).under_way
    serve(workers, scheduler)
    assert scheduler.tally.requests == 1
    assert is_sound(ours)


def test_an_engine_whose_workers_do_nothing_says_so(swapped_out: CacheIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo would hang silently when a worker has died."""
    monkeypatch.setattr("ops.demo.drive.MOVE_S", 0.001)
    passed = iter(range(0, 10_000, 5))

    with pytest.raises(Starved, match="waited for transfer engine:"):
        drive(Scheduler(swapped_out, [(2, request([20, 21, 22, 23], 1))]), now=lambda: float(next(passed)))


def test_transfers_that_do_not_end_are_counted(swapped_out: CacheIndex) -> None:
    """The demo would call a log complete that still has something under way; or wait for it for ever."""
    scheduler = Scheduler(swapped_out, [(2, request([20, 21, 22, 23], 1))])
    scheduler.step()

    assert drain(swapped_out, timeout_s=0.01) > 0


# --- proof --------------------------------------------------------------------------------------------------------------


def _first_host_block(state: State) -> int:
    """Where the host keeps the first block of the path that has been there for longest."""
    node = next(node for node in state.nodes.values() if node.parent is state.root and HOST_POOL in node.copies)
    return node.copies[HOST_POOL].blocks[0][0]


def _failed(replayed: Replay, held: Bytes) -> list[str]:
    return [proof.claim for proof in tier_proofs(replayed, held) if not proof.holds]


def test_a_byte_that_changed_in_the_host_is_found(connection: LogConnection, tmp_path: Path) -> None:
    """The check would pass on anything.

    Given a block in the host pool of which somebody changed one byte
    When it is brought back
    Then exactly that block is a mismatch, and the proof fails.
    """
    machine = Machine(tmp_path, gpu=6, host=20, engines=("engine",))
    index = engine(connection, gpu=6, host=20)
    workers = workers_of(connection, machine.copy)
    contents = machine.contents("engine")
    serve(workers, Scheduler(index, numbered(request([1, 2, 3, 4]), request([5, 6, 7, 8, 9])), contents=contents))
    make_room(index, workers, 4)
    taken = index.inspect(_first_host_block)
    content = bytearray(machine.store.read(HOST_POOL, taken))
    content[-1] ^= 1
    machine.store.write(HOST_POOL, taken, bytes(content))
    scheduler = Scheduler(index, [(2, request([1, 2, 3, 4, 10]))], contents=contents)

    serve(workers, scheduler)

    assert scheduler.tally.mismatches == 1
    held = Bytes(scheduler.tally.verified_blocks, scheduler.tally.mismatches, 32)
    assert _failed(replay(connection.log(INDEX)), held) == ["every reused block held its bytes"]


def test_a_transfer_that_is_open_at_the_end_fails_its_proof(connection: LogConnection, swapped_out: CacheIndex) -> None:
    """A log with something under way would pass for complete."""
    Scheduler(swapped_out, [(2, request([20, 21, 22, 23], 1))]).step()

    assert _failed(replay(connection.log(INDEX)), Bytes(0, 0, 0)) == ["every transfer ended"]


def test_a_shard_of_another_rank_does_not_match(tmp_path: Path) -> None:
    """Workers that mix ranks up would go unnoticed: both shards belong to the same block."""
    layout = CacheLayout(2, 4, (4,), "float16")
    stores = [NumpyStore(INDEX, rank, tmp_path) for rank in range(2)]
    for store in stores:
        store.create("gpu:engine", "gpu", layout)
    contents, block_hash = SharedContents(INDEX, "gpu:engine", 2, tmp_path), bytes(range(16))
    contents.fill([3], block_hash)

    assert contents.wrong([3], block_hash) == 0
    stores[1].write("gpu:engine", 3, stores[0].read("gpu:engine", 3))
    assert contents.wrong([3], block_hash) == 1
    assert of_rank(block_hash, 0) == block_hash != of_rank(block_hash, 1)
    assert NO_CONTENTS.wrong([3], block_hash) == 0
