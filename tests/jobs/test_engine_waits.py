"""What an engine hears of its transfers when workers report, on every backend."""

from __future__ import annotations

import threading
import time

import pytest

from events.log import LogConnection
from statecore import CacheIndex
from tests.jobs.given import seated, taken

BLOCK = 4


def prompt(name: str, blocks: int) -> bytes:
    """Hashes of a prompt that shares nothing with others."""
    return b"".join(f"{name}{number}".encode().ljust(16, b".")[:16] for number in range(blocks))


def engine(connection: LogConnection, index: str, name: str = "e0", gpu_blocks: int = 4) -> CacheIndex:
    return CacheIndex(
        connection, name=index, engine=name, gpu_blocks=gpu_blocks, cpu_blocks=16, block_size=BLOCK, follow=False
    )


def cached(index: CacheIndex, name: str, blocks: int) -> None:
    """A prompt that was computed and released."""
    index.match(name, hashes=prompt(name, blocks))
    assert len(index.allocate(name, blocks).blocks) == blocks
    index.extend(name, ready=True)
    index.release(name)


def swapping_out(index: CacheIndex, name: str = "one") -> str:
    """The transfer that makes room for a second request; the first one's blocks fill the pool."""
    cached(index, name, 4)
    index.match("two", hashes=prompt("two", 4))
    waits_for = index.allocate("two", 4).waits_for
    assert len(waits_for) == 1
    return waits_for[0]


def test_a_finished_swap_out_wakes_its_engine(connection: LogConnection, index_name: str) -> None:
    """Otherwise a request would wait its whole timeout for room that is there.

    Given an allocation that waits for a swap-out, when the worker reports while the engine waits, then the engine goes
    on at once, and gets its blocks.
    """
    with engine(connection, index_name) as index:
        transfer = swapping_out(index)
        mine = seated(connection, index_name, 0, 1, pool=index.gpu_pool)

        def work() -> None:
            time.sleep(0.1)
            mine.finish(taken(mine, timeout_s=5.0), ok=True)

        thread = threading.Thread(target=work)
        thread.start()
        begun = time.monotonic()
        state = index.wait(transfer, timeout=10.0)
        thread.join()

        assert state.done
        assert time.monotonic() - begun < 3.0
        assert len(index.allocate("two", 4).blocks) == 4


def test_a_failed_transfer_says_why(connection: LogConnection, index_name: str) -> None:
    """Otherwise a waiter would hang, or not know what to do (E-12).

    Given a swap-out whose copy fails, when the engine waits, then it hears "failed" and the reason, and its pool has
    lost nothing: the victim is still cached.
    """
    with engine(connection, index_name) as index:
        transfer = swapping_out(index)
        mine = seated(connection, index_name, 0, 1, pool=index.gpu_pool)
        mine.finish(taken(mine), ok=False, reason="the disk of the GPU is full")

        state = index.wait(transfer, timeout=5.0)

        assert (state.state, state.reason) == ("failed", "rank 0: the disk of the GPU is full")
        assert index.would_match(hashes=prompt("one", 4)) == 4


def test_waiting_in_vain_ends_when_the_time_is_over(connection: LogConnection, index_name: str) -> None:
    """Otherwise an engine without workers would hang.

    Given a transfer nobody works on, when the engine waits 0.2 s, then "under way" by then.
    """
    with engine(connection, index_name) as index:
        transfer = swapping_out(index)
        begun = time.monotonic()

        assert index.wait(transfer, timeout=0.2).under_way
        assert 0.1 < time.monotonic() - begun < 2.0


def test_a_swap_in_brings_back_what_another_engine_swapped_out(connection: LogConnection, index_name: str) -> None:
    """Otherwise a prompt routed to the neighbour would be computed again.

    Given an engine's prompt in the host pool, when another engine matches it, then a swap-in is its answer, the job
    goes to its own workers, and when they have reported, the blocks are its own.
    """
    with engine(connection, index_name) as first, engine(connection, index_name, "e1") as second:
        transfer = swapping_out(first)
        mine = seated(connection, index_name, 0, 1, pool=first.gpu_pool)
        mine.finish(taken(mine), ok=True)
        assert first.wait(transfer, timeout=5.0).done

        second.refresh()
        match = second.match("r", hashes=prompt("one", 4))
        assert (match.tokens, match.host_tokens) == (4 * BLOCK, 4 * BLOCK)
        theirs = seated(connection, index_name, 0, 1, pool=second.gpu_pool)
        delivery = taken(theirs)
        assert mine.take(0.0) is None
        job = delivery.job
        assert (job.kind, job.source, job.destination) == ("swap_in", "cpu:host", second.gpu_pool)
        theirs.finish(delivery, ok=True)

        assert second.wait(match.waits_for[0], timeout=5.0).done
        assert second.table("r") == match.blocks


@pytest.mark.parametrize("ok", [True, False])
def test_a_decision_taken_before_a_finish_is_decided_again(
    connection: LogConnection, index_name: str, ok: bool
) -> None:
    """Otherwise an engine could match a copy that the finish has just dropped, or its replica would break.

    Given an engine that has not seen a finish, when it allocates, matches and releases, then it conflicts at most,
    goes on, and another replica agrees with it to the last bit.
    """
    with engine(connection, index_name) as index, engine(connection, index_name, "e1") as other:
        transfer = swapping_out(index)
        mine = seated(connection, index_name, 0, 1, pool=index.gpu_pool)
        mine.finish(taken(mine), ok=ok, reason="broken")

        index.match("three", hashes=prompt("one", 4))
        index.release("three")

        assert index.poll(transfer).state == ("done" if ok else "failed")
        other.refresh()
        index.refresh()
        assert other.position == index.position
        assert other.digest() == index.digest()


def test_late_reports_of_a_cancelled_transfer_end_its_quarantine(connection: LogConnection, index_name: str) -> None:
    """Otherwise a cancelled transfer's blocks would be lost, or given out while a worker still writes them (E-11).

    Given a swap-out that was cancelled while both ranks copied, when one has reported, then its host blocks are kept
    apart; when both have, they are free; a third report changes nothing.
    """
    with CacheIndex(
        connection,
        name=index_name,
        engine="e0",
        gpu_blocks=4,
        cpu_blocks=16,
        block_size=BLOCK,
        tensor_parallel_size=2,
        follow=False,
    ) as index:
        transfer = swapping_out(index)
        workers = [seated(connection, index_name, rank, 2, pool=index.gpu_pool) for rank in range(2)]
        deliveries = [taken(each) for each in workers]
        index.cancel(transfer)

        def free() -> int:
            return index.inspect(lambda state: state.pools["cpu:host"].free.total)

        workers[0].finish(deliveries[0], ok=True)
        index.refresh()
        assert free() == 12
        workers[1].finish(deliveries[1], ok=True)
        assert workers[1].finish(deliveries[1], ok=True).outcome == "duplicate"
        index.refresh()

        assert free() == 16
        assert index.poll(transfer).state == "cancelled"


def test_an_engines_workers_are_named_by_its_pool(connection: LogConnection, index_name: str) -> None:
    """Otherwise a worker would carry out the jobs of a pool whose memory it does not have.

    Given two engines that swap out, when the first one's worker takes, then it gets the first one's job only.
    """
    with engine(connection, index_name) as first, engine(connection, index_name, "e1") as second:
        transfers = [swapping_out(index, index.engine) for index in (first, second)]
        mine = seated(connection, index_name, 0, 1, pool=first.gpu_pool)

        assert taken(mine).job.transfer == transfers[0]
        assert mine.take(0.0) is None
