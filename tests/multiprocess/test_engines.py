"""Several engine processes on one real Redis, one of them killed: the others go on, and every replica agrees."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from events import connect
from events.embedded import EmbeddedRedis
from events.log import LogConnection
from statecore.invariants import leaked_blocks, violations
from statecore.replica import Replica
from tests.multiprocess.engine_process import Settings

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 25.0


class EngineProcess:
    """A running `engine_process`; everything it says is read in the background, so it never blocks on us."""

    def __init__(self, settings: Settings, hash_seed: str) -> None:
        self.name = settings.engine
        self._said: queue.Queue[dict[str, Any]] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.multiprocess.engine_process", json.dumps(attrs.asdict(settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, event: str, **details: Any) -> dict[str, Any]:
        """The next thing it says of that kind (and with these details)."""
        while True:
            try:
                said = self._said.get(timeout=PATIENCE_S)
            except queue.Empty:
                raise AssertionError(f"{self.name} did not say {event!r} {details}") from None
            assert said["event"] != "ended" or event == "ended", f"{self.name} ended instead of saying {event!r}"
            if said["event"] == event and all(said[key] == value for key, value in details.items()):
                return said

    def state(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("state\n")
        self.process.stdin.flush()
        return self.wait_for("state")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.process.kill()
        self._reader.join(timeout=PATIENCE_S)
        self.process.communicate()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(json.loads(line))
        self._said.put({"event": "ended"})


Start = Callable[..., EngineProcess]


@pytest.fixture
def start(embedded_redis: EmbeddedRedis, index_name: str) -> Iterator[Start]:
    """Starts engines of one index; none outlives the test."""
    started: list[EngineProcess] = []

    def begin(
        engine: str,
        *,
        pool: str = "shared",
        blocks: int = 96,
        requests: int = 0,
        meets: bool = False,
        hash_seed: str = "0",
    ) -> EngineProcess:
        settings = Settings(
            url=embedded_redis.url,
            index=index_name,
            engine=engine,
            pool=pool,
            blocks=blocks,
            seed=len(started),
            requests=requests,
            meets=meets,
        )
        started.append(EngineProcess(settings, hash_seed))
        return started[-1]

    yield begin
    for process in started:
        process.end()


@pytest.fixture
def connection(embedded_redis: EmbeddedRedis) -> Iterator[LogConnection]:
    with connect(embedded_redis.url) as opened:
        yield opened


def replayed(connection: LogConnection, index: str) -> Replica:
    """A replica made from the log alone; every invariant is checked now and then on the way."""
    log, replica = connection.log(index, follow=False), Replica()
    while entries := log.read(replica.state.position):
        for entry in entries:
            replica.apply(entry)
            if entry.position % 25 == 0:
                assert violations(replica.state) == []
    return replica


def test_one_of_several_engines_is_killed(start: Start, connection: LogConnection, index_name: str) -> None:
    """Otherwise the crash of one engine would take its neighbours along, or their blocks.

    Given three engines on a shared pool and one with its own, each with another hash seed, when one is killed in the
    middle of its work, then the others go on; when a new process joins under its name, then all that the dead one held is
    free; in the end nothing is leaked and every replica, and a replay of the log, has the same digest.
    """
    victim = start("victim", hash_seed="1")
    engines = [
        start("engine-1", requests=60, meets=True, hash_seed="2"),
        start("engine-2", requests=60, meets=True, hash_seed="random"),
        start("engine-3", pool="own", blocks=40, requests=60, hash_seed="4242"),
    ]
    for engine in (victim, *engines):
        assert engine.wait_for("joined")["session"] == 1
    victim.wait_for("progress", served=10)
    victim.kill()

    held = replayed(connection, index_name).state.engines["victim"]
    assert held.alive
    assert held.requests, "it died with requests, and nobody has declared it lost yet"

    for engine in engines:
        engine.wait_for("progress", served=30)
    heir = start("victim", requests=20, hash_seed="7")
    assert heir.wait_for("joined")["session"] == 2
    done = [engine.wait_for("done") for engine in (*engines, heir)]
    states = [engine.state() for engine in (*engines, heir)]

    replica = replayed(connection, index_name)
    assert {state["position"] for state in states} == {replica.state.position}
    assert {state["digest"] for state in states} == {replica.digest()}
    assert violations(replica.state) == []
    assert leaked_blocks(replica.state) == 0
    for pool in replica.state.pools.values():
        assert pool.free.total + pool.unpinned == pool.blocks, "nothing is live, so all is free or evictable"
    assert replica.state.engines["victim"].session == 2
    assert all(report["reused"] for report in done), "prompts share beginnings, across processes"
    assert sum(report["conflicts"] for report in done[:2]) > 0, "two engines at once on one pool do meet"
    assert done[2]["conflicts"] == 0, "an engine with a pool of its own has nobody to conflict with"


def test_two_processes_of_one_name(start: Start, connection: LogConnection, index_name: str) -> None:
    """Otherwise an engine started twice by mistake would use every block twice.

    Given an engine at work, when a second process joins under its name, then the first one's life is over and it ends;
    the second works on, and replay agrees with it.
    """
    first = start("twin", hash_seed="1")
    first.wait_for("progress", served=5)

    second = start("twin", requests=30, hash_seed="2")

    assert second.wait_for("joined")["session"] == 2
    first.wait_for("ended")
    assert first.process.wait(timeout=PATIENCE_S) != 0
    second.wait_for("done")
    state = second.state()
    replica = replayed(connection, index_name)
    assert (state["position"], state["digest"]) == (replica.state.position, replica.digest())
    assert violations(replica.state) == []
    assert leaked_blocks(replica.state) == 0
