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
from statecore import CacheIndex
from statecore.replica import Replica

ROOT = Path(__file__).resolve().parents[2]
ENDS_WITHIN_S = 60
KEYS = {
    *("requests", "engines", "hit_rate", "private_hit_rate", "commits", "conflicts", "commit_p50_us", "commit_p99_us"),
    *("facts", "digests_equal", "replay_equal", "invariants_ok", "leaked_blocks", "position"),
}


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
    """Engine processes that run now."""
    tasks = Path(f"/proc/{parent}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ENDS_WITHIN_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_demo_serves_proves_and_reports(tmp_path: Path, embedded_redis: EmbeddedRedis, index_name: str) -> None:
    """A newcomer's first command would not show what the project is for.

    Given two engines, sixty requests and a server of one's own
    Then every request is served, every proof holds, the JSON has its keys, and the log on the server gives the same.
    """
    report = tmp_path / "report.json"
    options = ["--engines", "2", "--requests", "60", "--step-ms", "0", "--gpu-blocks", "3000", "--json", str(report)]

    with demo(*options, "--url", embedded_redis.url, "--index", index_name) as process:
        out, err = process.communicate(timeout=ENDS_WITHIN_S)

    assert (process.returncode, err) == (0, "")
    figures = json.loads(report.read_text())
    assert figures.keys() >= KEYS
    assert (figures["requests"], figures["engines"], figures["refused"], figures["leaked_blocks"]) == (60, 2, 0, 0)
    assert [figures[key] for key in ("digests_equal", "replay_equal", "invariants_ok", "ok")] == [True] * 4
    assert 0 < figures["private_hit_rate"] <= figures["hit_rate"] < 1
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


def test_the_report_can_be_piped() -> None:
    """`statecore demo --json - | jq` would choke on tables.

    Given JSON on standard output and the embedded server
    Then standard output is JSON and nothing else, and people read the rest on standard error.
    """
    with demo("--engines", "1", "--requests", "5", "--step-ms", "0", "--json", "-") as process:
        out, err = process.communicate(timeout=ENDS_WITHIN_S)

    figures = json.loads(out)
    assert process.returncode == 0
    assert figures["requests"] == 5
    assert figures["hit_rate"] == figures["private_hit_rate"], "alone, shared and private are the same"
    assert err.count("✓") == 5


def test_a_killed_engine_ends_the_demo_at_once() -> None:
    """The demo would wait for ever for a process that is gone, or leave others behind.

    Given an engine that is killed while all serve
    Then the command says which and how, in one line, exits with 1, and nothing of it runs on.
    """
    with demo("--engines", "2", "--requests", "20000") as process:
        wait_for(lambda: process.poll() is not None or len(engines_of(process.pid)) == 2)
        engines = engines_of(process.pid)
        time.sleep(1.0)
        os.kill(engines[0], signal.SIGKILL)
        _, err = process.communicate(timeout=ENDS_WITHIN_S)

    assert process.returncode == 1
    assert f"engine-0 (process {engines[0]}) was ended by SIGKILL" in err
    assert len(err.splitlines()) == 1
    wait_for(lambda: not Path(f"/proc/{engines[1]}").exists())


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="interrupts are ignored here, and inherited"
)
def test_ctrl_c_ends_engines_and_server() -> None:
    """Ctrl-C would leave processes behind, or print a page of tracebacks.

    Given a demo at work
    When its process group is interrupted, as a terminal does
    Then it says one line, exits with 130, and no engine and no embedded server runs on.
    """
    with demo("--engines", "2", "--requests", "20000") as process:
        wait_for(lambda: process.poll() is not None or len(engines_of(process.pid)) == 2)
        engines = engines_of(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=ENDS_WITHIN_S)

    assert process.returncode == 130
    assert len(err.splitlines()) == 1
    wait_for(lambda: not any(Path(f"/proc/{engine}").exists() for engine in engines))


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
