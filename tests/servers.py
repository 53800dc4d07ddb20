"""Real redis-servers, and a network between them and us that fails on request.

Owns what tests start outside their own process: a redis-server with any options on a loopback port, which can be
killed, suspended and started again, and a proxy in front of a server that loses, delays or holds back commands. Knows
nothing of the log. Everything listens on loopback only and ends with `stop` / `close`.
"""

from __future__ import annotations

import contextlib
import enum
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

import attrs
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from events.embedded import redis_server_binary

LOOPBACK: Final = "127.0.0.1"
_START_TIMEOUT_S: Final = 10.0
_STOP_TIMEOUT_S: Final = 1.0
_START_ATTEMPTS: Final = 5


def binary_of(kind: str) -> Path | None:
    """The redis-server to test against: "embedded" from the wheel, "system" from the PATH, None where there is none."""
    if kind == "embedded":
        return redis_server_binary()
    found = shutil.which("redis-server")
    return Path(found) if found else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """A redis-server over `folder`, append-only file synced always; `options` as on its command line (`"--port", "1"`)."""

    def __init__(self, folder: Path, *options: str, binary: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._options = options
        self._binary = binary or redis_server_binary()
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

    def client(self, **settings: Any) -> Any:
        """A plain client, for what a test does beside the log."""
        return redis.Redis(host=LOOPBACK, port=self.port, retry=Retry(NoBackoff(), 0), **{"protocol": 2, **settings})

    def start(self) -> None:
        """Start it, also again over the data it left; returns when it answers (or says why it does not serve)."""
        with (self.folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                last = (self.folder / "server.log").read_text(errors="replace")[-500:]
                raise RuntimeError(f"{self._binary} did not start: {last}")
            time.sleep(0.01)

    def _command(self) -> list[str]:
        return [
            str(self._binary), "--port", str(self.port), "--bind", LOOPBACK, "--dir", str(self.folder),
            "--appendonly", "yes", "--appendfsync", "always", "--save", "", *self._options,
        ]  # fmt: skip

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

    def __enter__(self) -> RedisServer:
        return self

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


# --- a network that fails -------------------------------------------------------------------------------------------


class Fault(enum.Enum):
    """What happens to one command on its way."""

    NONE = enum.auto()
    LOSE_REQUEST = enum.auto()
    """The connection breaks before the server sees the command."""
    LOSE_REPLY = enum.auto()
    """The server carries it out; the connection breaks before its reply arrives."""
    HANG = enum.auto()
    """The command disappears, the connection stays open: the client waits for its timeout."""
    LATE = enum.auto()
    """The connection breaks; the command reaches the server when the test calls `deliver`."""


Rule = Callable[[str], Fault]


def healthy(_command: str) -> Fault:
    return Fault.NONE


def commits(fault: Fault) -> Rule:
    """Every append meets this fault, all else passes."""
    return lambda command: fault if command.startswith("EVAL") else Fault.NONE


def everything(fault: Fault) -> Rule:
    return lambda _command: fault


@attrs.define(eq=False)
class _Link:
    """One client's connection and the proxy's own to the server."""

    client: socket.socket
    server: socket.socket
    swallow: bool = False

    def cut(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        self.client.close()
        self.server.close()


class Proxy:
    """Stands between clients and a server at `target` (a unix socket's path, or host and port).

    Attributes:
        target: may change; new connections go there.
        rule: what happens to a command, by its name in capitals; called in the thread of its connection.
        answer: what the proxy answers itself, in the server's place; None to pass the command on.
        seen: names of all commands that came, in order.
    """

    def __init__(self, target: str | tuple[str, int]) -> None:
        self.target = target
        self.rule: Rule = healthy
        self.answer: Callable[[str], bytes | None] = lambda _command: None
        self.seen: list[str] = []
        self._held: list[bytes] = []
        self._links: set[_Link] = set()
        self._threads: list[threading.Thread] = []
        self._mutex = threading.Lock()
        self._closed = False
        self._listener = socket.create_server((LOOPBACK, 0))
        self._begin(self._accept)

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Break every connection there is now."""
        with self._mutex:
            links = list(self._links)
        for link in links:
            link.cut()

    def deliver(self) -> int:
        """Let what was held back arrive, each on a connection of its own; returns how many commands that were."""
        held, self._held = self._held, []
        for request in held:
            with self._connect() as late:
                late.sendall(request)
                assert late.recv(1 << 16), "the server answers, though nobody is left to hear it"
        return len(held)

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join(timeout=_START_TIMEOUT_S)
        self._listener.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _begin(self, work: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _connect(self) -> socket.socket:
        if isinstance(self.target, str):
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.settimeout(_START_TIMEOUT_S)
            server.connect(self.target)
        else:
            server = socket.create_connection(self.target, timeout=_START_TIMEOUT_S)
        return server

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._begin(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        try:
            server = self._connect()
        except OSError:
            client.close()
            return
        server.settimeout(None)
        link = _Link(client, server)
        with self._mutex:
            self._links.add(link)
        replies = self._begin(self._pump_replies, link)
        with contextlib.suppress(OSError), client.makefile("rb") as requests:
            while not self._closed and (request := _read_request(requests)) and self._pass_on(link, *request):
                continue
        link.cut()
        replies.join()
        link.close()
        with self._mutex:
            self._links.discard(link)

    def _pass_on(self, link: _Link, name: str, request: bytes) -> bool:
        """False when the connection ends here."""
        self.seen.append(name)
        if (answer := self.answer(name)) is not None:
            link.client.sendall(answer)
            return True
        match self.rule(name):
            case Fault.NONE:
                link.server.sendall(request)
            case Fault.HANG:
                return True
            case Fault.LOSE_REQUEST:
                return False
            case Fault.LATE:
                self._held.append(request)
                return False
            case Fault.LOSE_REPLY:
                link.swallow = True
                link.server.sendall(request)
        return True

    def _pump_replies(self, link: _Link) -> None:
        with contextlib.suppress(OSError):
            while (data := link.server.recv(1 << 16)) and not link.swallow:
                link.client.sendall(data)
        link.cut()


def _read_request(requests: BinaryIO) -> tuple[str, bytes] | None:
    """One command as its client sent it, and its name; None at the end."""
    header = requests.readline()
    if not header.startswith(b"*"):
        return None
    parts = [header]
    name = ""
    for number in range(int(header[1:])):
        length = requests.readline()
        word = requests.read(int(length[1:]) + 2)
        parts += [length, word]
        if number == 0:
            name = word.strip().decode("ascii").upper()
    return name, b"".join(parts)
