"""A short chaos run: real processes, a real Redis, everything on the list goes wrong, and every promise is kept.

The long one is `make chaos`. What its checks can find is in `test_checks.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ops.chaos.cast import state_of
from ops.chaos.network import KINDS
from ops.chaos.tormentor import dealt
from ops.reliability.results import ChaosResult, read
from workers.segment_header import index_prefix, lock_prefix
from workers.shared_memory import SHARED_FOLDER

SECONDS = 30
COMMITS, NETWORK, KILLS = 300, 40, 5
COMMAND = (
    *("-m", "ops.cli", "chaos", "--seconds", str(SECONDS), "--tp", "1"),
    *("--commits", str(COMMITS), "--network", str(NETWORK), "--kills", str(KILLS)),
)
TIMEOUT_S = 280


@pytest.mark.slow
def test_everything_goes_wrong_and_nothing_is_lost(tmp_path: Path) -> None:
    """Given engines, workers, keepers and Redis that are killed, stopped, cut off and starved, nothing acknowledged is lost
    or doubled, no block leaks, every byte is right; each fault has occurred, and each check has looked at something.
    """
    path = tmp_path / "chaos.json"

    done = subprocess.run(
        [sys.executable, *COMMAND, "--json", str(path)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )

    result = read(path, ChaosResult)
    assert (result.violations, result.missing) == ((), ()), done.stdout
    assert done.returncode == 0
    assert sum(result.kills.values()) >= KILLS
    assert set(result.kills) == {"engine", "worker", "keeper", "redis"}
    assert sum(result.network.values()) >= NETWORK
    assert {fault.fault for fault in result.faults if fault.injected} == {
        *dealt(SECONDS),
        *(kind.value for kind in KINDS),
    }
    totals = result.totals
    assert totals.commits_acknowledged >= COMMITS
    assert (totals.lost, totals.duplicated, totals.blocks_leaked, totals.effects_doubled) == (0, 0, 0, 0)
    assert totals.ambiguous_landed + totals.ambiguous_not_landed > 0
    assert totals.fenced_refused > 0


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_who_ends_it_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Otherwise stopped engines, a redis-server and shared memory would stay on the machine for ever.

    Given a run whose processes are up, when it is interrupted, terminated or killed, then it has ended soon, and so has
    every process it started; its folder and its shared memory are gone.
    """
    index = f"chaos-test-{os.getpid()}-{number.name}"
    ours = [f"{index_prefix(index)}*", f"{lock_prefix(index)}*"]
    run = subprocess.Popen(
        [sys.executable, *COMMAND, "--index", index],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        start_new_session=True,
    )
    assert run.stderr is not None
    for line in run.stderr:
        if "starting" not in line:
            break  # the first fault: everybody is there
    children = _descendants(run.pid)
    assert len(children) >= 10, children  # 4 engines, 3 workers, 2 keepers, redis-server

    run.send_signal(number)

    assert run.wait(60) == code
    run.stderr.close()
    _wait_until(lambda: not [pid for pid in children if _lives(pid)])
    _wait_until(lambda: not list(tmp_path.iterdir()))
    _wait_until(lambda: not [path for pattern in ours for path in SHARED_FOLDER.glob(pattern)])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--seconds", "5"], "at least 15"),
        (["--seconds", "nan"], "at least 15"),
        (["--engines", "0"], "engines"),
        (["--fsync", "sometimes"], "fsync"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: list[str], says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ops.cli", "chaos", *options], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 2
    assert says in done.stderr


def _descendants(pid: int) -> list[int]:
    """Of all generations; a process that is coming or going may be missed."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, of in parents.items() if of == parent]
    return found[1:]


def _lives(pid: int) -> bool:
    return state_of(pid) not in {"", "Z", "X"}


def _wait_until(done: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)
