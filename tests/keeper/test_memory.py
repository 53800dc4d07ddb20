"""What an index and its keeper leave in Redis does not grow, whatever happens (E-29)."""

from __future__ import annotations

import time
from typing import Any
from unittest import mock

import pytest

from events import connect, limits
from events.job_ports import Delivery
from events.job_queue import JobQueue
from statecore import CacheIndex, snapshot
from tests.keeper.given import (
    EVERY,
    MARGIN,
    Clock,
    Dies,
    bounds,
    engine_of,
    keeper_of,
    with_shelf,
    work,
)


def test_one_that_does_not_come_about_fills_no_memory(redis_url: str, index_name: str) -> None:
    """Twenty megabytes at every turn would fill the server within minutes (E-29).

    Given a keeper whose snapshots are never sound, when it takes turn after turn, then it tries seldom, and keeps nothing
    of what it stored; and when they are sound again, it publishes.
    """
    encode = snapshot.encode

    def damaged(state: Any) -> bytes:
        data = bytearray(encode(state))
        data[len(data) // 2] ^= 1
        return bytes(data)

    with connect(redis_url) as connection:
        engine = engine_of(connection, index_name)
        work(engine, 10)
        clock = Clock()
        keeper, said = keeper_of(connection, index_name, clock=clock)
        with mock.patch.object(snapshot, "encode", damaged):
            for _ in range(200):
                keeper.turn()
                clock.now += 0.5

        client: Any = connection.backend._client  # type: ignore[attr-defined]
        assert 2 <= len(said.of("not_published")) <= 5
        assert client.keys(f"kv:{{{index_name}}}:snapshot:*") == []

        clock.now += 100
        keeper.turn()
        assert len(said.of("published")) == 1


def test_memory_in_redis_stays_flat(redis_url: str, index_name: str) -> None:
    """A log that only grows fills the server within days (E-29); so would jobs, reports, seats and names that only grow.

    Given an engine with a host tier and a worker, and engines that come and go under the same few names, when the index runs
    far past several snapshot intervals, then the memory of its keys does not grow.
    """
    with connect(redis_url) as connection, bounds(SNAPSHOT_MARGIN=MARGIN, ACKS_TTL_S=0.05):
        tiers: dict[str, Any] = {"gpu_blocks": 8, "cpu_blocks": 16}
        engine = engine_of(connection, index_name, **tiers)
        keeper, said = keeper_of(connection, index_name)
        client: Any = connection.backend._client  # type: ignore[attr-defined]
        sizes, finished, names = [], 0, []
        for turn in range(14):
            guest = engine_of(connection, index_name, f"guest-{turn % 2}", **tiers)
            for each in (guest, engine):
                moved = connection.jobs(index_name, each.gpu_pool, 0, 1, f"worker-{turn}")
                moved.enter(takeover=True)
                for number in range(EVERY // 4):
                    finished += swapped(each, moved, f"t{turn % 3}-{number}", [number % 3, *([turn % 5] * 11)])
                moved.leave()
            guest.leave()
            keeper.turn()
            time.sleep(0.06)  # reports of what is finished run out
            names = client.keys(f"kv:{{{index_name}}}:*")
            sizes.append(sum(client.memory_usage(name, samples=0) or 0 for name in names))
        kinds = {name.decode().split(":")[2] for name in names}

    assert len(said.of("published")) == 14
    assert finished > 28, "nothing was swapped"
    assert kinds >= {"log", "head", "fence", "snapshot", "jobs", "seats"}
    early, late = max(sizes[3:8]), max(sizes[9:])
    assert late <= early * 1.1, f"memory grew from {early} to {late} bytes: {sizes}"


def swapped(engine: CacheIndex, worker: JobQueue, request: str, tokens: list[int]) -> int:
    """A request that computes what is not there, and the jobs it takes; how many those were."""
    finished = 0
    engine.match(request, tokens)
    for _ in range(2):  # what is swapped in comes first; then room may have to be made
        while isinstance(job := worker.take(0.0), Delivery):
            worker.finish(job, ok=True)
            finished += 1
        engine.refresh()
        if (missing := 3 - len(engine.table(request))) > 0:
            engine.allocate(request, missing)
    engine.extend(request, ready=True)
    engine.release(request)
    return finished


def test_what_nobody_published_runs_out(redis_url: str, index_name: str) -> None:
    """A keeper that dies after storing leaves a blob nobody names: it must not stay for ever."""
    with connect(redis_url) as connection:
        engine = engine_of(connection, index_name)
        work(engine, 10)
        place = with_shelf(connection.keeping(index_name), "upload", after=True)
        mortal, _ = keeper_of(connection, index_name, place=place)
        with pytest.raises(Dies):
            mortal.turn()

        client: Any = connection.backend._client  # type: ignore[attr-defined]
        (orphan,) = client.keys(f"kv:{{{index_name}}}:snapshot:*")
        assert 0 < client.pttl(orphan) <= limits.SNAPSHOT_UPLOAD_TTL_S * 1000
