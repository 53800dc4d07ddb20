"""The command as a process of its own: entry points, pipes, signals and terminals."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path

import orjson
import pytest

from events import connect
from statecore import CacheIndex
from tests.cli.scenario import BLOCK_SIZE, INDEX, Story, statecore

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = Path(sys.executable).with_name("statecore")

# A shell without job control starts background processes with SIGINT ignored; the tests may run in one.
INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from ops.cli import main; main(prog_name='statecore')"
)


def test_the_installed_command_and_the_module_are_one(story: Story, exported: Path) -> None:
    """The entry point would be missing after installation."""
    for command in ([str(INSTALLED)], [sys.executable, "-m", "ops.cli"]):
        done = subprocess.run(
            [*command, "replay", "--file", str(exported), "--digest"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        )
        assert (done.stdout, done.stderr) == (f"{story.digests[19]}\n", "")


def test_a_reader_that_goes_away_ends_it_quietly(story: Story, tmp_path: Path) -> None:
    """`statecore log | head -1` would end in a traceback, or look like a broken log."""
    reading, writing = os.pipe()
    os.close(reading)
    errors = tmp_path / "errors"
    command = [sys.executable, "-m", "ops.cli", "log", "--url", story.url, "--index", INDEX]

    for options in ([], ["--json"]):
        with errors.open("wb") as complaints:
            done = subprocess.run([*command, *options], stdout=writing, stderr=complaints, cwd=ROOT, check=False)
        assert (done.returncode, errors.read_bytes()) == (141, b"")
    os.close(writing)


def test_following_shows_what_comes_and_ends_with_ctrl_c(story: Story, exported: Path, name: str) -> None:
    """Whoever watches a live index would see nothing, or a traceback when they stop."""
    assert statecore("import", exported, "--url", story.url, "--index", name).exit_code == 0
    follower = subprocess.Popen(
        [
            *(sys.executable, "-c", INTERRUPTIBLE, "log", "--follow", "--json", "--last", "1"),
            *("--url", story.url, "--index", name),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        assert follower.stdout is not None
        last = orjson.loads(follower.stdout.readline())
        with connect(story.url) as connection:
            CacheIndex(connection, name=name, engine="engine-9", gpu_pool="gpu", block_size=BLOCK_SIZE, follow=False)
        joined = orjson.loads(follower.stdout.readline())
        follower.send_signal(signal.SIGINT)
        rest, errors = follower.communicate(timeout=10)
    finally:
        follower.kill()

    assert (last["position"], joined["position"], joined["engine"]) == (19, 20, "engine-9")
    assert follower.returncode == 130
    assert (rest, errors.strip()) == (b"", b"")


@pytest.mark.parametrize("width", [60, 100])
@pytest.mark.parametrize("command", [["replay"], ["inspect", "pools"], ["inspect", "transfers"]], ids=" ".join)
def test_a_table_too_wide_for_the_terminal_goes_on_below(exported_tiers: Path, command: list[str], width: int) -> None:
    """Columns that do not fit would shrink to nothing, the names of pools and engines first."""
    piped = statecore(*command, "--file", exported_tiers).stdout
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, width))
    done = subprocess.Popen(
        [sys.executable, "-m", "ops.cli", *command, "--file", str(exported_tiers)],
        stdout=theirs, env={"PATH": os.environ["PATH"], "TERM": "xterm"}, cwd=ROOT,
    )  # fmt: skip
    os.close(theirs)
    with open(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):  # EIO: the other side has closed
        seen = bytearray()
        while data := terminal.read(4096):
            seen += data
    assert done.wait(timeout=10) == 0

    lines = re.sub(r"\x1b\[[0-9;]*m", "", seen.decode()).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert not [line for line in lines if "…" in line]
    words = {word for line in lines for word in line.split()}
    assert {word for word in piped.split() if str(exported_tiers) not in word} <= words
    assert sum(line.startswith("Transfers") for line in lines) == ("pools" not in command)


def test_an_error_is_red_on_a_terminal_and_plain_elsewhere() -> None:
    """Error lines in a job's log would be full of control characters, or go unseen on a screen."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ops.cli", "log", "--file", "/nowhere.jsonl"]

    on_terminal = subprocess.run(command, stderr=theirs, stdout=subprocess.DEVNULL, cwd=ROOT, check=False)
    os.close(theirs)
    seen = os.read(ours, 1000)
    os.close(ours)
    piped = subprocess.run(command, capture_output=True, cwd=ROOT, check=False)

    assert on_terminal.returncode == piped.returncode == 2
    assert seen.startswith(b"\x1b[31merror: /nowhere.jsonl: No such file or directory\x1b[0m")
    assert piped.stderr == b"error: /nowhere.jsonl: No such file or directory\n"
