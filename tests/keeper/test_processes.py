"""Real processes: an engine killed, an engine stopped beyond its lease, a keeper that minds them, and its command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from events import connect, limits
from events.embedded import EmbeddedRedis
from events.facts import EngineLost
from statecore.invariants import leaked_blocks, violations
from statecore.restoring import up_to_date
from tests.multiprocess.engine_process import Settings
from tests.multiprocess.test_engines import EngineProcess
from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0
BLOCKS = 64


class KeeperProcess:
    """A running `statecore keeper`."""

    def __init__(self, url: str, index: str, folder: Path, *options: str) -> None:
        self.log = folder / f"keeper-{time.monotonic_ns()}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ops.cli", "keeper", "--index", index, "--every", "30", *options],
                stderr=output,
                cwd=ROOT,
                env={**os.environ, "STATECORE_URL": url},
            )

    def said(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    def wait_for(self, event: str, times: int = 1) -> list[dict[str, Any]]:
        end = time.monotonic() + PATIENCE_S
        while len(found := self.said(event)) < times:
            assert self.process.poll() is None, f"the keeper ended: {self.log.read_text()}"
            assert time.monotonic() < end, f"no {event!r} within {PATIENCE_S} s: {self.log.read_text()}"
            time.sleep(0.05)
        return found

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def keeper(embedded_redis: EmbeddedRedis, index_name: str, tmp_path: Path) -> Iterator[KeeperProcess]:
    running = KeeperProcess(embedded_redis.url, index_name, tmp_path)
    yield running
    running.process.kill()
    running.process.wait()


def test_killed_and_stopped_engines(
    keeper: KeeperProcess, embedded_redis: EmbeddedRedis, index_name: str, tmp_path: Path
) -> None:
    """What a dead engine had must not be lost for ever, and one that wakes must change nothing (E-25, E-45).

    Given three engines on one GPU pool, one killed, one stopped beyond its lease, then both are declared lost, their blocks
    are free, the third goes on; the stopped one wakes, is refused, and ends; nothing is leaked. The keeper is killed in
    between, and the next one goes on from its snapshots.
    """
    engines = []
    for number, name in enumerate(("killed", "stopped", "working")):
        settings = Settings(embedded_redis.url, index_name, name, "gpu:shared", BLOCKS, number, requests=0)
        engines.append(EngineProcess(settings, str(number)))
        engines[-1].wait_for("progress")
    killed, stopped, working = engines
    keeper.wait_for("published", times=2)
    killed.kill()
    stopped.process.send_signal(signal.SIGSTOP)
    keeper.process.kill()
    successor = KeeperProcess(embedded_redis.url, index_name, tmp_path)
    try:
        lost = successor.wait_for("deposed", times=2)
        assert {line["engine"] for line in lost} == {"killed", "stopped"}
        stopped.process.send_signal(signal.SIGCONT)
        assert stopped.process.wait(PATIENCE_S) != 0, "its life is over, and it found out"
        working.wait_for("progress")
        working.kill()
        with connect(embedded_redis.url) as connection:
            state = up_to_date(connection.log(index_name)).state
            assert violations(state) == []
            assert leaked_blocks(state) == 0
            for name in ("killed", "stopped"):
                assert not state.engines[name].alive
                assert not state.engines[name].requests
            reasons = [
                fact.reason
                for entry in connection.log(index_name).read(max(0, state.position - 500))
                for fact in entry.facts
                if isinstance(fact, EngineLost)
            ]
            assert all("no sign of life" in reason for reason in reasons)
        assert successor.stop() == 0
    finally:
        successor.process.kill()
        successor.process.wait()
        for engine in engines:
            engine.end()


def test_the_command(embedded_redis: EmbeddedRedis, index_name: str, tmp_path: Path) -> None:
    """An operator starts it, sees what it does, scrapes it, stops it."""
    port = free_port()
    keeper = KeeperProcess(embedded_redis.url, index_name, tmp_path, "--metrics-port", str(port))
    try:
        keeper.wait_for("acts")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
            assert f'statecore:keeper_acting{{index="{index_name}"}} 1.0' in page.read().decode()
        assert keeper.stop() == 0
        assert keeper.said("stopped")
    finally:
        keeper.process.kill()
        keeper.process.wait()


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("unix:///nowhere/redis.sock", [], "cannot be reached"),
        ("memory://", [], "a process of its own"),
        ("", ["--every", "0"], "at least 1 commit"),
        ("", ["--age", "-1"], "more than 0 s"),
        ("", ["--metrics-port", "0"], "metrics-port"),
    ],
)
def test_what_the_command_refuses(
    embedded_redis: EmbeddedRedis, index_name: str, url: str, options: list[str], message: str
) -> None:
    """Wrong settings must be told at once, with exit code 2, and not run for a night."""
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "ops.cli",
            "keeper",
            "--url",
            url or embedded_redis.url,
            "--index",
            index_name,
            *options,
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE_S,
        check=False,
    )

    assert ended.returncode == 2
    assert message in ended.stderr


def test_bounds_hold_together() -> None:
    """A keeper that is slower than the leases it minds would depose the living."""
    assert limits.KEEPER_EVERY_S * 4 <= limits.LEASE_GRACE_S
