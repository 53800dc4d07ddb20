"""`python -m ops.examples.fastdeploy` from outside: processes on a real Redis, exit codes, what it says and leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ops.demo.tiers import left_behind
from ops.examples.fastdeploy import plug as plugging
from ops.examples.fastdeploy.command import command
from ops.trace import TraceRequest, write_trace
from statecore import PrefixCacheManager
from tests.examples.engines import Faulty
from tests.processes import ENGINE, WORKER, children_of
from workers.segment_header import Process
from workers.worker_process import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
ENDS_WITHIN_S = 60


def test_two_engines_share_an_index_and_keep_the_contract() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "ops.examples.fastdeploy", "--requests", "240", "--gpu-blocks", "560", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert all(proof["holds"] for proof in report["proofs"])
    assert report["finished"] + report["aborted"] + report["refused"] == 240
    assert report["violations"] == report["leaked_blocks"] == 0
    assert report["tables_checked"] >= report["steps"] > 0
    assert min(report[name] for name in ("aborted", "whole_prompt_hits", "speculative_steps", "swap_outs")) > 0
    assert [row["engine"] for row in report["per_engine"]] == ["engine-0", "engine-1"]
    assert left_behind(report["index"]) == []


def test_one_engine_needs_no_redis() -> None:
    result = CliRunner().invoke(command, ["--single", "--requests", "150", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["engines"], report["host_blocks"], report["conflicts"]) == (1, 0, 0)
    assert "✓ replaying the log gives it again" in result.stderr


def test_a_violation_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(*given: Any, **named: Any) -> Faulty:
        return Faulty(PrefixCacheManager(*given, **named), recycle_gpu_blocks=lambda _real, _blocks, _request: None)

    monkeypatch.setattr(plugging, "PrefixCacheManager", forgetful)
    result = CliRunner().invoke(command, ["--single", "--requests", "40"])
    assert result.exit_code == 1
    assert "✗ the contract held at every step" in result.stdout


def test_a_trace_can_be_given(tmp_path: Path) -> None:
    write_trace(tmp_path / "own.jsonl", [TraceRequest(0, 700, 30, (0, 1))] * 6)
    result = CliRunner().invoke(
        command,
        ["--single", "--trace", str(tmp_path / "own.jsonl"), "--abort-every", "0", "--shrink", "1", "1", "--json"],
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["finished"] == 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--requests", "0"], "--requests"),
        (["--shrink", "3", "1"], "a divisor of 512, not 3"),
        (["--trace", "nowhere.jsonl"], "cannot read the trace 'nowhere.jsonl'"),
        (["--speculative", "20"], "prealloc_dec_block_slot_num_threshold must be at least that"),
        (["--max-num-batched-tokens", "8"], "too small"),
        (["--engines", "3", "--requests", "2"], "3 engines for 2 requests"),
        (["--url", "memory://"], "cannot be shared by processes"),
        (["--roles", "--single"], "choose one"),
        (["--roles", "--gpu-blocks", "50"], "more than --gpu-blocks 50"),
        (["--url", "unix:///nowhere/redis.sock"], "--url"),
        (["--url", "gopher://x"], "--url"),
    ],
)
def test_options_that_make_no_sense_are_one_line(options: list[str], said: str) -> None:
    result = CliRunner().invoke(command, options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_a_prefill_engine_hands_requests_to_a_decode_engine() -> None:
    result = CliRunner().invoke(
        command, ["--roles", "--requests", "80", "--again-every", "4", "--abort-every", "7", "--json"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["finished"], report["aborted"]) == (68, 12)
    assert report["sent"] + report["unsent"] == 80
    assert report["sent"] >= 68
    assert report["reused_tokens"] > 0


def test_an_engine_that_is_killed_ends_the_run_and_nothing_is_left() -> None:
    run = subprocess.Popen(
        [sys.executable, "-m", "ops.examples.fastdeploy", "--requests", "3000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + ENDS_WITHIN_S
        while not (workers := workers_of(run.pid)) and time.monotonic() < end:
            time.sleep(0.1)
        settings = Path(f"/proc/{workers[0]}/cmdline").read_bytes().split(b"\0")[-2]
        os.kill(children_of(run.pid, ENGINE)[0], signal.SIGKILL)
        _, said = run.communicate(timeout=ENDS_WITHIN_S)
    finally:
        run.kill()
        run.communicate()
    assert run.returncode == 1
    assert "engine-" in said
    assert "Traceback" not in said
    assert workers
    assert not [worker for worker in workers if Process.of(worker)]
    assert left_behind(WorkerSettings.from_json(settings.decode()).index) == []


def workers_of(parent: int) -> list[int]:
    return [worker for engine in children_of(parent, ENGINE) for worker in children_of(engine, WORKER)]
