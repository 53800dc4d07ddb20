"""`statecore demo` from the outside: real processes, a real Redis, exit codes, one line for a mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from events import connect
from events.embedded import EmbeddedRedis
from events.facts import CopyEvicted
from ops.demo.command import command
from ops.demo.tiers import HOST_POOL, gpu_pool
from ops.trace import write_trace
from statecore import CacheIndex
from statecore.replica import Replica
from tests.demo.trace_requests import request
from tests.processes import ENGINE, WORKER, children_of
from workers.rank_lock import RankLock
from workers.segment_header import HEADER_BYTES, index_prefix, segment_name
from workers.shared_memory import SHARED_FOLDER

ROOT = Path(__file__).resolve().parents[2]
ENDS_WITHIN_S = 60
KEYS = {
    *("requests", "engines", "hit_rate", "private_hit_rate", "commits", "conflicts", "commit_p50_us", "commit_p99_us"),
    *("facts", "digests_equal", "replay_equal", "invariants_ok", "leaked_blocks", "position"),
    *("swap_ins", "swap_outs", "rescues", "bytes_moved", "cross_engine_tokens", "bytes_verified", "mismatches"),
    "open_transfers",
}
BLOCK_BYTES = 64


@contextmanager
def demo(*options: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process group of its own; whatever happens, nothing of it is left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ops.demo", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def engines_of(parent: int) -> list[int]:
    return children_of(parent, ENGINE)


def in_shared_memory(index: str) -> set[str]:
    """Segments of an index, and locks of its workers."""
    locks = [RankLock(index, gpu_pool(place), rank)._path for place in range(2) for rank in range(2)]
    segments = SHARED_FOLDER.glob(f"{index_prefix(index)}*")
    return {path.name for path in (*segments, *locks) if path.exists()}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ENDS_WITHIN_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_one_tier_serves_proves_and_reports(tmp_path: Path, embedded_redis: EmbeddedRedis, index_name: str) -> None:
    """Who has no host memory to give would have no demo.

    Given two engines on one GPU pool, one tier, sixty requests and a server of one's own
    Then every request is served, every proof holds, the JSON has its keys, and the log on the server gives the same.
    """
    report = tmp_path / "report.json"
    options = ["--engines", "2", "--requests", "60", "--step-ms", "0", "--gpu-blocks", "3000", "--json", str(report)]

    with demo(*options, "--host-blocks", "0", "--url", embedded_redis.url, "--index", index_name) as process:
        out, err = process.communicate(timeout=ENDS_WITHIN_S)

    assert (process.returncode, err) == (0, "")
    figures = json.loads(report.read_text())
    assert figures.keys() >= KEYS
    assert (figures["requests"], figures["engines"], figures["refused"], figures["leaked_blocks"]) == (60, 2, 0, 0)
    assert [figures[key] for key in ("digests_equal", "replay_equal", "invariants_ok", "ok")] == [True] * 4
    assert 0 < figures["private_hit_rate"] < 1
    assert 0 < figures["hit_rate"] < 1
    assert (figures["swap_outs"], figures["bytes_moved"], figures["open_transfers"]) == (0, 0, 0)
    assert 0 < figures["commit_p50_us"] <= figures["commit_p99_us"]
    assert figures["commits"] == figures["position"] == sum(one["commits"] for one in figures["per_engine"])
    assert out.count("✓") == 5
    assert "✗" not in out
    with connect(embedded_redis.url) as connection:
        replica, entries = Replica(), connection.log(index_name).read(0, 100_000)
    replica.apply_all(entries)
    assert replica.digest() == figures["digest"]
    facts = [fact for entry in entries for fact in entry.facts]
    evicted = sum(count for fact in facts if isinstance(fact, CopyEvicted) for _, count in fact.blocks)
    assert (len(facts), evicted) == (figures["facts"], figures["evicted_blocks"])
    assert evicted > 0


@pytest.fixture
def documents(tmp_path: Path) -> list[str]:
    """Options: sixty prompts over eleven documents, more than the GPU pools hold, and each engine gets each in turn."""
    trace = tmp_path / "documents.jsonl"
    write_trace(
        trace, [request([*range(number % 11 * 100, number % 11 * 100 + 20), 10_000 + number]) for number in range(60)]
    )
    return [
        *("--engines", "2", "--requests", "60", "--step-ms", "0", "--trace", str(trace), "--block-size", "512"),
        *("--gpu-blocks", "160", "--host-blocks", "500", "--watermarks", "25", "50", "--block-bytes", str(BLOCK_BYTES)),
    ]


@pytest.mark.parametrize(("policy", "ranks"), [("write_back", 1), ("write_through", 2)])
def test_two_tiers_serve_prove_and_report(
    tmp_path: Path, documents: list[str], embedded_redis: EmbeddedRedis, index_name: str, policy: str, ranks: int
) -> None:
    """A newcomer's first command would not show what the project is for.

    Given two engines with a GPU pool each, a host pool, and a worker for each rank
    Then blocks go to the host and come back for the other engine, every byte is right, every proof holds, and nothing
    is left of processes and memory.
    """
    report = tmp_path / "report.json"
    options = [*documents, "--policy", policy, "--tp", str(ranks), "--json", str(report)]

    with demo(*options, "--url", embedded_redis.url, "--index", index_name) as process:
        wait_for(lambda: process.poll() is not None or len(children_of(process.pid, WORKER)) == 2 * ranks)
        workers = children_of(process.pid, WORKER)
        out, err = process.communicate(timeout=ENDS_WITHIN_S)

    assert (process.returncode, err) == (0, ""), out
    figures = json.loads(report.read_text())
    assert figures.keys() >= KEYS
    assert (figures["requests"], figures["refused"], figures["leaked_blocks"]) == (60, 0, 0)
    assert [figures[key] for key in ("digests_equal", "replay_equal", "invariants_ok", "ok")] == [True] * 4
    assert (figures["mismatches"], figures["open_transfers"], figures["failed_transfers"]) == (0, 0, 0)
    assert figures["swap_ins"] > 0 < figures["swap_outs"]
    assert 0 < figures["cross_engine_tokens"] <= figures["host_tokens"]
    assert figures["bytes_moved"] % (BLOCK_BYTES * ranks) == 0 < figures["bytes_moved"]
    assert figures["bytes_verified"] % (BLOCK_BYTES * ranks) == 0 < figures["bytes_verified"]
    assert figures["hit_rate"] > figures["gpu_only_hit_rate"]
    assert out.count("✓") == 8
    assert "✗" not in out
    assert len(workers) == 2 * ranks
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert in_shared_memory(index_name) == set()


def test_a_changed_byte_in_the_host_fails_the_demo(
    tmp_path: Path, documents: list[str], embedded_redis: EmbeddedRedis, index_name: str
) -> None:
    """The demo would say ✓ to bytes that are not those that were computed.

    Given somebody who writes into every block of the host pool while all serve
    Then mismatches are counted, that proof fails, and the exit code is 1.
    """
    report, segment = tmp_path / "report.json", SHARED_FOLDER / segment_name(index_name, HOST_POOL, 0)
    options = [*documents, "--json", str(report), "--url", embedded_redis.url, "--index", index_name]

    with demo(*options) as process:
        wait_for(lambda: process.poll() is not None or segment.exists())
        with segment.open("r+b", buffering=0) as memory:
            while process.poll() is None:
                for block in range(500):
                    os.pwrite(memory.fileno(), os.urandom(1), HEADER_BYTES + block * BLOCK_BYTES // 4)
                time.sleep(0.01)
        out, _ = process.communicate(timeout=ENDS_WITHIN_S)

    assert process.returncode == 1
    figures = json.loads(report.read_text())
    assert figures["mismatches"] > 0
    assert (figures["ok"], figures["digests_equal"], figures["open_transfers"]) == (False, True, 0)
    assert "✗ every reused block held its bytes" in out
    assert out.count("✗") == 1
    assert not segment.exists()


def test_the_report_can_be_piped() -> None:
    """`statecore demo --json - | jq` would choke on tables.

    Given JSON on standard output and the embedded server
    Then standard output is JSON and nothing else, and people read the rest on standard error.
    """
    options = ["--engines", "1", "--requests", "5", "--step-ms", "0", "--host-blocks", "0"]
    with demo(*options, "--json", "-") as process:
        out, err = process.communicate(timeout=ENDS_WITHIN_S)

    figures = json.loads(out)
    assert process.returncode == 0
    assert figures["requests"] == 5
    assert figures["hit_rate"] == figures["private_hit_rate"], "alone, shared and private are the same"
    assert err.count("✓") == 5


@pytest.mark.parametrize(
    ("kind", "said"),
    [(ENGINE, "engine-0 (process {}) was ended by SIGKILL"), (WORKER, "ended with code -9")],
)
def test_a_killed_process_ends_the_demo_at_once(kind: bytes, said: str, index_name: str) -> None:
    """The demo would wait for ever for a process that is gone, or leave others and their memory behind.

    Given an engine that is killed while all serve, or a worker, perhaps before it is ready
    Then the command says which and how, in one line, exits with 1, and nothing of it runs on or stays in memory.
    """
    with demo("--engines", "2", "--step-ms", "500", "--index", index_name) as process:
        wait_for(lambda: process.poll() is not None or len(children_of(process.pid, WORKER)) == 2)
        engines, workers = engines_of(process.pid), children_of(process.pid, WORKER)
        time.sleep(1.0)
        killed = (engines if kind == ENGINE else workers)[0]
        os.kill(killed, signal.SIGKILL)
        _, err = process.communicate(timeout=ENDS_WITHIN_S)

    assert process.returncode == 1
    assert said.format(killed) in err
    assert len(err.splitlines()) == 1
    wait_for(lambda: not any(Path(f"/proc/{one}").exists() for one in (*engines, *workers)))
    assert in_shared_memory(index_name) == set()


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="interrupts are ignored here, and inherited"
)
@pytest.mark.parametrize("kind", [ENGINE, WORKER])
def test_ctrl_c_ends_everything(kind: bytes, index_name: str) -> None:
    """Ctrl-C would leave processes or shared memory behind, or print a page of tracebacks.

    Given a demo that is starting its engines, or its workers
    When its process group is interrupted, as a terminal does
    Then it says one line, exits with 130, and no engine, no worker, no embedded server and no memory is left.
    """
    with demo("--engines", "2", "--step-ms", "500", "--index", index_name) as process:
        wait_for(lambda: process.poll() is not None or len(children_of(process.pid, kind)) == 2)
        children = [*engines_of(process.pid), *children_of(process.pid, WORKER)]
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=ENDS_WITHIN_S)

    assert process.returncode == 130
    assert len(err.splitlines()) == 1
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    assert in_shared_memory(index_name) == set()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engines", "0"], "--engines must be from 1 to 64, not 0"),
        (["--engines", "65"], "not 65"),
        (["--requests", "0"], "--requests must be at least 1"),
        (["--seed", "-1"], "--seed"),
        (["--step-ms", "-1"], "--step-ms"),
        (["--step-ms", "nan"], "--step-ms"),
        (["--block-size", "48"], "does not divide 512"),
        (["--block-size", "0"], "does not divide 512"),
        (["--gpu-blocks", "3"], "--gpu-blocks must be from 4"),
        (["--host-blocks", "-1"], "--host-blocks must be from 0"),
        (["--tp", "0"], "--tp must be from 1 to 8, not 0"),
        (["--block-bytes", "12"], "a multiple of 8"),
        (["--block-bytes", "0"], "--block-bytes"),
        (["--block-bytes", "1048576", "--host-blocks", "10000000"], "of /dev/shm, which has"),
        (["--watermarks", "30", "20"], "free_low 30 percent is above free_high 20"),
        (["--trace", "/nowhere/trace.jsonl"], "/nowhere/trace.jsonl"),
        (["--json", "/nowhere/r.json"], "/nowhere/r.json"),
        (["--url", "memory://"], "cannot be shared by processes"),
        (["--url", "http://localhost"], "is no log"),
        (["--url", "redis://["], "--url"),
        (["--url", "redis://:secret@127.0.0.1:1"], "cannot be reached"),
        (["--url", "unix:///nowhere/redis.sock"], "cannot be reached"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(options: list[str], said: str) -> None:
    """A traceback would meet the person who mistyped an option."""
    result = CliRunner().invoke(command, ["--requests", "5", *options])

    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert said in result.stderr
    assert "secret" not in result.stderr


def test_a_used_index_is_refused(embedded_redis: EmbeddedRedis, index_name: str) -> None:
    """Figures of two runs would be mixed, and the pool be another than the one shown."""
    with connect(embedded_redis.url) as connection:
        CacheIndex(connection, name=index_name, engine="e", gpu_blocks=1).close()

    result = CliRunner().invoke(command, ["--url", embedded_redis.url, "--index", index_name])

    assert result.exit_code == 2
    assert "2 commits already" in result.stderr
