"""One redis-server on a loopback port: started, killed, stopped, and started again over what it left.

Owns the life of the process, its options and its folder. Knows nothing of the log; builds no client.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

from events.embedded import redis_server_binary
from ops.chaos.proxy import LOOPBACK
from ops.chaos.tether import tethered

_START_TIMEOUT_S: Final = 10.0
_STOP_TIMEOUT_S: Final = 1.0
_START_ATTEMPTS: Final = 5
_POLL_S: Final = 0.01


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


class RedisProcess:
    """A redis-server over `folder` with an append-only file; `options` as on its command line (`"--port", "1"`)."""

    def __init__(
        self, folder: Path, *options: str, binary: Path | None = None, fsync: str = "always", tether: bool = False
    ) -> None:
        """`tether`: it dies with the thread that starts it.

        Raises:
            RuntimeError: it does not start; its last lines are in the message.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._fsync = fsync
        self._options = options
        self._binary = binary or redis_server_binary()
        self._tether = tether
        self._process: subprocess.Popen[bytes] | None = None
        for attempt in range(_START_ATTEMPTS):
            self.port = free_port()
            try:
                self.start()
            except RuntimeError:  # somebody else took the port meanwhile
                if attempt == _START_ATTEMPTS - 1:
                    raise
            else:
                break

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}"

    @property
    def address(self) -> tuple[str, int]:
        return (LOOPBACK, self.port)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def _command(self) -> list[str]:
        return [
            str(self._binary), "--port", str(self.port), "--bind", LOOPBACK, "--dir", str(self.folder),
            "--appendonly", "yes", "--appendfsync", self._fsync, "--save", "", *self._options,
        ]  # fmt: skip

    def start(self) -> None:
        """Start it, also again over the data it left; returns when it answers (or says why it does not serve)."""
        command = self._command()
        with (self.folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen(
                tethered(command) if self._tether else command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=self._tether,
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                last = (self.folder / "server.log").read_text(errors="replace")[-500:]
                raise RuntimeError(f"{self._binary} did not start: {last}")
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """SIGKILL: what is not in the append-only file is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def suspend(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(timeout=_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(self.address, timeout=1.0) as probe:
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith((b"+PONG", b"-NOAUTH", b"-MASTERDOWN"))
        return False
