"""A network that fails on request: a TCP proxy in front of a Redis server that understands where a command ends.

Owns the connections through it and what one fault does to one command. Which command meets which fault is the `rule` of
whoever uses it: a test names it, a chaos run draws it (`network.py`). Knows nothing of the log. Listens on loopback only
and ends with `close`.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import threading
import time
from collections.abc import Callable
from typing import BinaryIO, Final

import attrs

from events import limits

LOOPBACK: Final = "127.0.0.1"
_CONNECT_TIMEOUT_S: Final = 10.0
_LATE_REPLY: Final = 1.3
"""Of the time that a client waits for a reply."""

_THREADS_KEPT: Final = 256
"""Ended threads are forgotten from so many on: a chaos run opens thousands of connections."""


class Fault(enum.Enum):
    """What happens to one command on its way."""

    NONE = "none"
    LOSE_REQUEST = "lost request"
    """The connection breaks before the server sees the command."""
    LOSE_REPLY = "lost reply"
    """The server carries it out; the connection breaks before its reply arrives."""
    HANG = "hanging connection"
    """The command disappears, the connection stays open: the client waits for its timeout."""
    LATE = "late request"
    """The connection breaks; the command reaches the server at the next `deliver`, on another connection."""
    LATE_REPLY = "late reply"
    """The server carries it out; its reply arrives when the client has given up waiting."""
    DELAY = "slow request"
    """The command waits for `delay_s` in front of the server."""


@attrs.define(eq=False)
class _Link:
    """One client's connection and the proxy's own to the server."""

    client: socket.socket
    server: socket.socket
    swallow: bool = False
    reply_late: bool = False

    def cut(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        self.client.close()
        self.server.close()


@attrs.frozen
class Held:
    """A command that will arrive late, and since when it is on its way (monotonic seconds)."""

    since: float
    request: bytes


class Proxy:
    """Stands between clients and a server at `target` (a unix socket's path, or host and port)."""

    def __init__(self, target: str | tuple[str, int]) -> None:
        self.target = target
        self._held: list[Held] = []
        self._links: set[_Link] = set()
        self._threads: list[threading.Thread] = []
        self._mutex = threading.Lock()
        self._closed = threading.Event()
        self._listener = socket.create_server((LOOPBACK, 0), backlog=128)
        self._begin(self._accept)

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self._listener.getsockname()[1]}"

    # --- what a user of it decides; called in the thread of the command's connection ------------------------------

    def fault_of(self, _name: str, _request: bytes) -> Fault:
        """What happens to this command."""
        return Fault.NONE

    def answer_of(self, _name: str) -> bytes | None:
        """What the proxy answers itself, in the server's place; None to pass the command on."""
        return None

    def delay_s(self) -> float:
        """How long a slow request waits."""
        return 0.0

    def late_reply_s(self) -> float:
        """How long a late reply takes."""
        return _LATE_REPLY * limits.SOCKET_TIMEOUT_S

    def heard(self, _reply: bytes) -> None:
        """The first bytes of a reply the server gave, whether or not anybody gets to see it."""

    # --- by hand ------------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Break every connection there is now."""
        with self._mutex:
            links = list(self._links)
        for link in links:
            link.cut()

    def deliver(self, older_than_s: float = 0.0) -> int:
        """Let what is on its way for so long arrive, each on a connection of its own; returns how many did."""
        due = self.due(older_than_s)
        for held in due:
            self.send(held.request)
        return len(due)

    def due(self, older_than_s: float) -> list[Held]:
        """Take what is on its way for so long."""
        before = time.monotonic() - older_than_s
        with self._mutex:
            due = [held for held in self._held if held.since <= before]
            self._held = [held for held in self._held if held.since > before]
        return due

    def send(self, request: bytes) -> bytes:
        """Send bytes on a connection of their own; the first bytes of the reply.

        Raises:
            OSError: the server cannot be reached, or ends the connection without a word.
        """
        with self._connect() as late:
            late.sendall(request)
            reply = late.recv(1 << 16)
        if not reply:
            raise ConnectionResetError("the server ended the connection of a late request")
        self.heard(reply)
        return reply

    def close(self) -> None:
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join(timeout=_CONNECT_TIMEOUT_S)
        self._listener.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _begin(self, work: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        with self._mutex:
            if len(self._threads) > _THREADS_KEPT:
                self._threads = [each for each in self._threads if each.is_alive()]
            self._threads.append(thread)
            thread.start()
        return thread

    def _connect(self) -> socket.socket:
        if isinstance(self.target, str):
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.settimeout(_CONNECT_TIMEOUT_S)
            server.connect(self.target)
        else:
            server = socket.create_connection(self.target, timeout=_CONNECT_TIMEOUT_S)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return server

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
            while not self._closed.is_set() and (request := _read_request(requests)) and self._pass_on(link, *request):
                continue
        link.cut()
        replies.join()
        link.close()
        with self._mutex:
            self._links.discard(link)

    def _pass_on(self, link: _Link, name: str, request: bytes) -> bool:
        """False when the connection ends here."""
        if (answer := self.answer_of(name)) is not None:
            link.client.sendall(answer)
            return True
        match self.fault_of(name, request):
            case Fault.NONE:
                link.server.sendall(request)
            case Fault.HANG:
                return True
            case Fault.LOSE_REQUEST:
                return False
            case Fault.LATE:
                with self._mutex:
                    self._held.append(Held(time.monotonic(), request))
                return False
            case Fault.LOSE_REPLY:
                link.swallow = True
                link.server.sendall(request)
            case Fault.LATE_REPLY:
                link.reply_late = True
                link.server.sendall(request)
            case Fault.DELAY:
                time.sleep(self.delay_s())
                link.server.sendall(request)
        return True

    def _pump_replies(self, link: _Link) -> None:
        with contextlib.suppress(OSError):
            while data := link.server.recv(1 << 16):
                self.heard(data)
                if link.swallow:
                    break
                if link.reply_late:
                    link.reply_late = False
                    self._closed.wait(self.late_reply_s())
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
        if not length:
            return None
        word = requests.read(int(length[1:]) + 2)
        parts += [length, word]
        if number == 0:
            name = word.strip().decode("ascii").upper()
    return name, b"".join(parts)
