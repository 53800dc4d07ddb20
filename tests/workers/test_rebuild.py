"""Jobs that got lost are made again from the state, exactly as they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from events import connect
from events.jobs import decode_job
from events.log import LogConnection
from events.memory import MemoryBackend
from events.ports import Job
from statecore import CacheIndex, Policy
from tests.jobs.given import seated
from workers.rebuild import missing_jobs, ring, ring_missing

BLOCK = 4
INDEX = "rebuild"


def prompt(name: str, blocks: int) -> bytes:
    return b"".join(f"{name}{number}".encode().ljust(16, b".")[:16] for number in range(blocks))


@pytest.fixture
def connection() -> Iterator[LogConnection]:
    with connect("memory://") as opened:
        yield opened


def engine(
    connection: LogConnection, name: str = "e0", gpu_blocks: int = 8, policy: Policy | None = None
) -> CacheIndex:
    return CacheIndex(
        connection,
        name=INDEX,
        engine=name,
        gpu_blocks=gpu_blocks,
        cpu_blocks=32,
        block_size=BLOCK,
        tensor_parallel_size=2,
        policy=policy,
    )


def cached(index: CacheIndex, request: str, hashes: bytes) -> None:
    """A prompt that was computed and released."""
    found = len(index.match(request, hashes=hashes).blocks)
    index.allocate(request, len(hashes) // 16 - found)
    index.extend(request, ready=True)
    index.release(request)


def rung(connection: LogConnection, pool: str) -> list[Job]:
    """What commits have put into a pool's stream."""
    assert isinstance(connection.backend, MemoryBackend)
    return connection.backend.transport(INDEX).jobs[pool]


def lose(connection: LogConnection, *pools: str) -> None:
    assert isinstance(connection.backend, MemoryBackend)
    for pool in pools:
        connection.backend.jobs(INDEX).lose(pool, lists=True)


def rebuilt(index: CacheIndex) -> list[Job]:
    return list(index.inspect(lambda state: missing_jobs(state, ())))


def finish_all(connection: LogConnection, index: CacheIndex, *, ok: bool = True) -> None:
    for rank in range(2):
        mine = seated(connection, INDEX, rank, 2, pool=index.gpu_pool)
        while (delivery := mine.take(0.0)) is not None:
            mine.finish(delivery, ok=ok)  # type: ignore[arg-type]
    index.refresh()


def test_a_swap_out_is_rung_as_it_was(connection: LogConnection) -> None:
    """Otherwise a rung job would move other blocks than the decision meant.

    Given swap-outs of two prompts, when their jobs are made again, then they equal those of the commit, byte by byte.
    """
    with engine(connection) as index:
        cached(index, "a", prompt("a", 3))
        cached(index, "b", prompt("b", 5))
        index.match("c", hashes=prompt("c", 8))
        assert len(index.allocate("c", 8).waits_for) == 2

        assert rebuilt(index) == rung(connection, index.gpu_pool)


def test_a_swap_in_is_rung_as_it_was(connection: LogConnection) -> None:
    """Otherwise a request could wait for ever for a prefix whose job was lost.

    Given a swap-in of a part of a prompt that another engine swapped out, when made again, then equal; it goes to the
    stream of the engine that reads.
    """
    with engine(connection) as first, engine(connection, "e1") as second:
        cached(first, "a", prompt("a", 8))
        first.match("c", hashes=prompt("c", 8))
        first.allocate("c", 8)
        finish_all(connection, first)
        second.refresh()
        other = prompt("a", 5) + prompt("x", 2)  # cuts the run in two
        assert second.match("r", hashes=other).host_tokens == 5 * BLOCK

        assert rebuilt(second) == rung(connection, second.gpu_pool)
        assert len(rebuilt(second)) == 1


def test_a_transfer_whose_run_was_cut_in_flight_is_rung_whole(connection: LogConnection) -> None:
    """Otherwise a rung job would move the lower part only, and the finish would make garbage ready (E-09).

    Given a write-through of a run, when another prompt splits the run meanwhile, then the job made again is the same.
    """
    with engine(connection, gpu_blocks=16, policy=Policy(write="write_through")) as index:
        cached(index, "a", prompt("a", 6))
        before = rebuilt(index)
        assert before == rung(connection, index.gpu_pool)
        index.match("b", hashes=prompt("a", 2) + prompt("b", 2))

        assert rebuilt(index) == before


def test_a_cancelled_transfer_is_rung_without_blocks(connection: LogConnection) -> None:
    """Otherwise its quarantine would never end, or a worker would write blocks nobody asked for.

    Given a cancelled swap-out whose jobs were lost, when rung and carried out, then no block was named, and the host
    blocks are free.
    """
    with engine(connection) as index:
        cached(index, "a", prompt("a", 8))
        index.match("c", hashes=prompt("c", 8))
        (transfer,) = index.allocate("c", 8).waits_for
        index.cancel(transfer)
        lose(connection, index.gpu_pool)

        assert ring(connection, INDEX) == 1
        assert decode_job(rung(connection, index.gpu_pool)[-1].body).source_blocks == ()
        finish_all(connection, index, ok=False)

        assert index.inspect(lambda state: state.pools["cpu:host"].free.total) == 32


def test_only_what_is_missing_is_rung(connection: LogConnection) -> None:
    """Otherwise every look would double the jobs.

    Given two open transfers of two engines, when one engine's stream is lost, then one job is rung, once; the transfers
    end as if nothing had happened.
    """
    with engine(connection) as first, engine(connection, "e1") as second:
        for index in (first, second):
            cached(index, "a", prompt(index.engine, 8))
            index.match("c", hashes=prompt("c", 8))
            assert index.allocate("c", 8).waits_for
        assert ring(connection, INDEX) == 0
        lose(connection, first.gpu_pool)

        assert [ring(connection, INDEX) for _ in range(2)] == [1, 0]
        finish_all(connection, first)
        finish_all(connection, second)

        assert ring(connection, INDEX) == 0
        for index in (first, second):
            index.refresh()
            assert len(index.allocate("c", 8).blocks) == 8


def test_a_state_that_is_behind_rings_nothing_that_is_over(connection: LogConnection) -> None:
    """Otherwise a slow keeper would have blocks overwritten that belong to somebody else (E-10).

    Given a replica that still sees a transfer under way that is finished, when it rings, then nothing is rung.
    """
    with engine(connection) as index, engine(connection, "e1") as other:
        cached(index, "a", prompt("a", 8))
        index.match("c", hashes=prompt("c", 8))
        index.allocate("c", 8)
        other.refresh()
        finish_all(connection, index)

        assert other.inspect(lambda state: len(missing_jobs(state, ()))) == 1
        assert other.inspect(lambda state: ring_missing(connection, INDEX, state)) == 0


def test_without_transfers_there_is_nothing_to_ring(connection: LogConnection) -> None:
    """Otherwise a keeper would fail on a fresh index.

    Given an index without transfers, or none at all, when asked to ring, then nothing.
    """
    assert ring(connection, "nobody") == 0
    with engine(connection):
        assert ring(connection, INDEX) == 0
