"""A network that is encrypted: certificates made on the spot, and a door that speaks TLS in front of a plain server.

Owns what the tests of TLS need: an authority of their own and a terminator on loopback. The machine's redis-server need not
have been built with TLS.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Final

import pytest

from events import connect
from statecore import CacheIndex
from tests.servers import LOOPBACK

_DAYS: Final = "2"


class Authority:
    """Signs certificates for this machine's loopback.

    Attributes:
        certificate: what a client trusts.
        door: certificate and key of a server.
    """

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("this machine has no openssl command to make certificates with")
        folder.mkdir(parents=True)
        self.certificate = folder / "ca.crt"
        key, request = folder / "ca.key", folder / "door.csr"
        self.door = (folder / "door.crt", folder / "door.key")
        names = folder / "names"
        names.write_text(f"subjectAltName=IP:{LOOPBACK},DNS:localhost\n")
        new = ("req", "-newkey", "rsa:2048", "-nodes")
        self._run(*new, "-x509", "-days", _DAYS, "-subj", "/CN=tests", "-keyout", key, "-out", self.certificate)
        self._run(*new, "-subj", f"/CN={LOOPBACK}", "-keyout", self.door[1], "-out", request)
        self._run(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", key, "-CAcreateserial"),
            *("-days", _DAYS, "-extfile", names, "-out", self.door[0]),
        )

    def _run(self, *words: object) -> None:
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


class TlsDoor:
    """Takes encrypted connections, passes what they say to a server in the clear."""

    def __init__(self, authority: Authority, target: tuple[str, int]) -> None:
        self._target = target
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*authority.door)
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port = int(self._listener.getsockname()[1])
        self._closed = False
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closed = True
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def __enter__(self) -> TlsDoor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                outside, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(outside,), daemon=True).start()

    def _serve(self, outside: socket.socket) -> None:
        try:
            encrypted = self._context.wrap_socket(outside, server_side=True)
        except OSError:  # no TLS, or a client that does not trust us
            outside.close()
            return
        self._pass(encrypted)

    def _pass(self, outside: socket.socket) -> None:
        inside = socket.create_connection(self._target)
        self._sockets += [outside, inside]
        back = threading.Thread(target=_pump, args=(inside, outside), daemon=True)
        back.start()
        _pump(outside, inside)
        back.join()
        outside.close()
        inside.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for each in (source, sink):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def serve_over(url: str, index_name: str) -> None:
    """What an engine does, and what a second process reads of it."""
    with connect(url) as connection, connect(url) as reader:
        index = CacheIndex(connection, name=index_name, engine="a", gpu_blocks=8, block_size=4)
        index.match("r", list(range(16)))
        index.allocate("r", 4)
        index.extend("r", ready=True)
        index.release("r")
        index.leave()
        assert len(reader.log(index_name, follow=False).read(0)) == index.position
