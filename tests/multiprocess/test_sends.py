"""A request goes from a prefill to a decode engine: engine processes, worker processes, a real Redis, real bytes.

What is killed here is killed in the middle: workers of a `HeldStore` stop after their first block until a test says so.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from events import connect
from events.embedded import EmbeddedRedis
from events.facts import TransferFinished
from events.keys import IndexKeys
from events.log import LogConnection
from statecore.invariants import leaked_blocks, violations
from statecore.replica import Replica
from tests.jobs.given import client_of
from tests.multiprocess.handover_process import Settings
from tests.workers.fleet import HELD, eventually
from tests.workers.held_store import FOLDER_VARIABLE
from workers.launcher import launch_workers, stop_workers
from workers.layout import CacheLayout
from workers.rebuild import ring
from workers.shared_pools import remove_stale
from workers.stores import StoreSettings

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0
BLOCKS = 8
LAYOUT = CacheLayout(layers=2, num_blocks=BLOCKS, block_shape=(2, 8), dtype="float16")

_numbers = itertools.count(1)

Workers = Sequence["subprocess.Popen[bytes]"]


class EngineProcess:
    """A running `handover_process`; a call to it is a call here."""

    def __init__(self, settings: Settings) -> None:
        self.name = settings.engine
        self._said: queue.Queue[str] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.multiprocess.handover_process", json.dumps(attrs.asdict(settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __getattr__(self, call: str) -> Callable[..., Any]:
        def ask(*positional: Any, **named: Any) -> Any:
            assert not positional, "calls are by keyword: they travel as JSON"
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"call": call, **named}) + "\n")
            self._process.stdin.flush()
            try:
                line = self._said.get(timeout=PATIENCE_S)
            except queue.Empty:
                raise AssertionError(f"{self.name} does not answer {call}({named})") from None
            assert line, f"{self.name} ended in {call}({named})"
            return json.loads(line)["answer"]

        return ask

    def kill(self) -> None:
        """SIGKILL; harmless when it has ended."""
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        self.kill()
        self._reader.join(timeout=PATIENCE_S)
        self._process.communicate()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.put(line)
        self._said.put("")


class Stage:
    """An index, and what a test starts on it; `close` ends and removes all of it."""

    def __init__(self, url: str, folder: Path, ranks: int) -> None:
        self.index = f"handover-{os.getpid()}-{next(_numbers)}"
        self.url = url
        self.ranks = ranks
        self.connection: LogConnection = connect(url)
        self._folder = folder
        self._engines: list[EngineProcess] = []
        self._workers: list[subprocess.Popen[bytes]] = []
        os.environ[FOLDER_VARIABLE] = str(folder)

    def engine(self, name: str, layout: CacheLayout = LAYOUT) -> EngineProcess:
        """Started, and its memory there."""
        started = EngineProcess(Settings(self.url, self.index, name, self.ranks, layout.to_json()))
        self._engines.append(started)
        started.state()
        return started

    def launch(self, engine: EngineProcess, store: str = "numpy") -> Workers:
        workers = launch_workers(
            self.url,
            self.index,
            f"gpu:{engine.name}",
            self.ranks,
            StoreSettings(store=store),
            timeout_s=PATIENCE_S,
            log_folder=self._folder,
        )
        self._workers += workers
        return workers

    def hold(self) -> None:
        """From now on copies of a `HeldStore` stop after their first block."""
        (self._folder / "hold").touch()

    def go_on(self) -> None:
        (self._folder / "hold").unlink(missing_ok=True)

    def reached(self, workers: Workers) -> None:
        """Wait until all of them are in the middle of a copy."""
        for worker in workers:
            eventually((self._folder / f"reached-{worker.pid}").exists, f"worker {worker.pid} copies")

    def finishes(self) -> list[TransferFinished]:
        log = self.connection.log(self.index, follow=False)
        return [fact for entry in log.read(0) for fact in entry.facts if isinstance(fact, TransferFinished)]

    def ended(self, transfer: str) -> None:
        """Wait until every rank has reported a transfer."""
        eventually(lambda: transfer in {fact.transfer for fact in self.finishes()}, f"{transfer} is reported")

    def close(self) -> None:
        self.go_on()
        for engine in self._engines:
            engine.end()
        for worker in self._workers:
            worker.kill()
        stop_workers(self._workers, timeout_s=0.0)
        remove_stale(self.index)
        self.connection.close()
        del os.environ[FOLDER_VARIABLE]


@pytest.fixture(params=[1, 2], ids=["tp1", "tp2"])
def stage(request: pytest.FixtureRequest, embedded_redis: EmbeddedRedis, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(embedded_redis.url, tmp_path, request.param)
    yield made
    made.close()


def on_its_way(prefill: EngineProcess, decode: EngineProcess, request: str, blocks: int) -> str:
    """A request computed by one engine and sent to the other; the transfer."""
    prefill.compute(request=request, name=request, blocks=blocks)
    to_blocks = decode.expect(request=request, name=request, blocks=blocks)
    return str(prefill.send(request=request, receiver=decode.name, to_blocks=to_blocks))


def replayed(stage: Stage) -> Replica:
    """A replica made from the log alone, sound after every entry."""
    log, replica = stage.connection.log(stage.index, follow=False), Replica()
    while entries := log.read(replica.state.position):
        for entry in entries:
            replica.apply(entry)
            assert violations(replica.state) == [], f"at {entry.position}"
    return replica


def in_order(stage: Stage, **engines: tuple[EngineProcess, int]) -> None:
    """Nothing is under way, lost or broken; every living engine sees the same, and has so many free blocks."""
    replica = replayed(stage)
    assert leaked_blocks(replica.state) == 0
    assert replica.state.sends == {}
    for name, (engine, free) in engines.items():
        assert engine.state() == {
            "position": replica.state.position,
            "digest": replica.digest(),
            "free": free,
            "sends": [],
            "violations": [],
            "leaked": 0,
        }, name


def test_requests_are_handed_over_with_every_byte(stage: Stage) -> None:
    """Otherwise the decode engine would answer from bytes nobody computed.

    Given two engine processes with a worker each per rank, when six requests are computed by one, most of them found in
    its cache, and sent, then the other hears of each and finds every byte on every rank; when both have released, nothing is
    lost and all replicas agree. The last is decoded from what the receiver has cached by then.
    """
    prefill, decode = stage.engine("P"), stage.engine("D")
    stage.launch(prefill)
    stage.launch(decode)
    for number in range(6):
        request, name = f"r{number}", f"prompt{number // 3}"
        prefill.compute(request=request, name=name, blocks=2)
        to_blocks = decode.expect(request=request, name=name, blocks=2)
        transfer = prefill.send(request=request, receiver="D", to_blocks=to_blocks)
        assert decode.arrived(request=request) == ["done", ""]
        assert decode.wrong(request=request, name=name, blocks=2) == []
        assert decode.cached(request=request) == 2
        assert prefill.wait(transfer=transfer) == ["done", ""]
        prefill.release(request=request)
        decode.release(request=request)

    assert len(stage.finishes()) == 6
    in_order(stage, prefill=(prefill, BLOCKS - 4), decode=(decode, BLOCKS - 4))
    assert decode.compute(request="again", name="prompt1", blocks=2)
    assert decode.wrong(request="again", name="prompt1", blocks=2) == []


def test_a_worker_killed_in_the_middle_is_replaced_and_the_request_arrives(stage: Stage) -> None:
    """Otherwise a request would be lost between the engines with every worker that dies.

    Given a worker killed after the first block (SIGKILL), when the workers are started again, then the same transfer is
    done, reported once, and every byte is there.
    """
    prefill, decode = stage.engine("P"), stage.engine("D")
    workers = stage.launch(prefill, HELD)
    stage.hold()
    transfer = on_its_way(prefill, decode, "r", 5)
    stage.reached(workers)
    workers[0].kill()
    workers[0].wait()
    stage.go_on()
    assert decode.arrived(request="r", patience_s=0.3) == ["under way", ""]
    stop_workers(workers)

    stage.launch(prefill)
    assert decode.arrived(request="r") == ["done", ""]
    assert decode.wrong(request="r", name="r", blocks=5) == []
    prefill.wait(transfer=transfer)
    for engine in (prefill, decode):
        engine.release(request="r")
    assert [fact.transfer for fact in stage.finishes()] == [transfer]
    in_order(stage, prefill=(prefill, BLOCKS - 5), decode=(decode, BLOCKS))


@pytest.mark.parametrize("how", ["leaves", "is killed"])
def test_the_sender_goes_in_the_middle(stage: Stage, how: str) -> None:
    """Otherwise the decode engine would wait for ever, or give blocks away that are still written.

    Given a send in the middle of its copy, when the prefill engine leaves, or is killed and comes back, then the decode
    engine hears "cancelled"; the blocks it gives back are nobody's until the workers have reported; then nothing is lost,
    and it computes the request itself.
    """
    prefill, decode = stage.engine("P"), stage.engine("D")
    workers = stage.launch(prefill, HELD)
    stage.hold()
    transfer = on_its_way(prefill, decode, "r", 5)
    stage.reached(workers)
    if how == "leaves":
        prefill.leave()
    else:
        prefill.kill()
        prefill = stage.engine("P")

    state, reason = decode.arrived(request="r")
    assert (state, "left" in reason, "new life" in reason) == ("cancelled", how == "leaves", how == "is killed")
    decode.release(request="r")
    quarantined = decode.state()
    assert (quarantined["free"], quarantined["sends"]) == (BLOCKS - 5, [transfer])
    decode.compute(request="short", name="short", blocks=3)
    stage.go_on()
    stage.ended(transfer)

    assert decode.wrong(request="short", name="short", blocks=3) == []
    decode.state()
    assert len(decode.compute(request="r", name="r", blocks=5)) == 5
    assert decode.wrong(request="r", name="r", blocks=5) == []
    decode.release(request="r")
    decode.release(request="short")
    living = {"decode": (decode, 0)} | ({} if how == "leaves" else {"prefill": (prefill, BLOCKS - 5)})
    in_order(stage, **living)


@pytest.mark.parametrize("how", ["leaves", "is killed"])
def test_the_receiver_goes_in_the_middle(stage: Stage, how: str) -> None:
    """Otherwise the prefill engine would hold the request for ever, or the next decode engine be written into.

    Given a send in the middle of its copy, when the decode engine leaves, or is killed and comes back, then the prefill
    engine hears "cancelled" and may release; the blocks are free when the workers have reported; and what the next life
    computes into them stays.
    """
    prefill, decode = stage.engine("P"), stage.engine("D")
    workers = stage.launch(prefill, HELD)
    stage.hold()
    transfer = on_its_way(prefill, decode, "r", 5)
    stage.reached(workers)
    if how == "leaves":
        decode.leave()
        decode.kill()
    else:
        decode.kill()
        decode = stage.engine("D")

    prefill.state()
    assert prefill.wait(transfer=transfer)[0] == "cancelled"
    prefill.release(request="r")
    if how == "leaves":
        decode = stage.engine("D")
    assert decode.state()["free"] == BLOCKS - 5
    decode.compute(request="short", name="short", blocks=3)
    stage.go_on()
    stage.ended(transfer)

    decode.state()
    decode.compute(request="long", name="long", blocks=5)
    assert decode.wrong(request="short", name="short", blocks=3) == []
    assert decode.wrong(request="long", name="long", blocks=5) == []
    decode.release(request="short")
    decode.release(request="long")
    in_order(stage, prefill=(prefill, BLOCKS - 5), decode=(decode, 0))


def test_a_lost_stream_is_rung_again(stage: Stage) -> None:
    """Otherwise somebody who deletes a stream would stop all hand-overs under way for ever.

    Given a send whose job stream was deleted before a worker saw it, when rung, then the workers that come carry it out.
    """
    prefill, decode = stage.engine("P"), stage.engine("D")
    transfer = on_its_way(prefill, decode, "r", 5)
    client_of(stage.connection).delete(IndexKeys.of(stage.index).jobs("gpu:P"))
    stage.launch(prefill)
    assert decode.arrived(request="r", patience_s=0.3) == ["under way", ""]

    assert [ring(stage.connection, stage.index) for _ in range(2)] == [1, 0]
    assert decode.arrived(request="r") == ["done", ""]
    assert decode.wrong(request="r", name="r", blocks=5) == []
    assert prefill.wait(transfer=transfer) == ["done", ""]
    for engine in (prefill, decode):
        engine.release(request="r")
    in_order(stage, prefill=(prefill, BLOCKS - 5), decode=(decode, BLOCKS))


def test_engines_of_different_layouts_are_told_and_go_on(stage: Stage) -> None:
    """Otherwise bytes would be read with other strides, or one wrong engine stop the workers of another.

    Given a decode engine of another model, when sent to, then both hear "failed" with both layouts; both go on, and the
    same workers serve a decode engine that fits.
    """
    prefill = stage.engine("P")
    other = stage.engine("other", attrs.evolve(LAYOUT, block_shape=(8, 2)))
    workers = stage.launch(prefill)
    transfer = on_its_way(prefill, other, "r", 3)

    state, reason = other.arrived(request="r")
    assert state == "failed"
    assert "source 2 layers × 8 blocks of [2,8] float16, target 2 layers × 8 blocks of [8,2] float16" in reason
    assert prefill.wait(transfer=transfer) == ["failed", reason]
    prefill.release(request="r")
    other.release(request="r")

    decode = stage.engine("D")
    transfer = on_its_way(prefill, decode, "s", 3)
    assert decode.arrived(request="s") == ["done", ""]
    assert decode.wrong(request="s", name="s", blocks=3) == []
    assert [worker.poll() for worker in workers] == [None] * stage.ranks
    assert prefill.wait(transfer=transfer) == ["done", ""]
    prefill.release(request="s")
    decode.release(request="s")
    in_order(stage, prefill=(prefill, BLOCKS - 6), other=(other, BLOCKS), decode=(decode, BLOCKS))
