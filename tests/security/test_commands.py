"""Which commands we send: nothing whose cost grows with the number of keys on the server, and nothing we did not mean to."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.security.everyday import a_keeper, engines_and_workers, hurried
from tests.security.roles import ROLES, acl_text
from tests.servers import RedisServer
from tests.workers.fleet import Fleet

WHOLE_KEYSPACE = {
    "keys", "scan", "sscan", "hscan", "zscan", "randomkey", "dbsize", "flushall", "flushdb", "swapdb", "sort", "smembers",
    "sunion", "sinter", "sdiff", "hkeys", "hvals", "lrange", "object", "debug", "memory", "script",
}  # fmt: skip
RARE = {
    *("asking", "cluster", "select", "ping"),  # clusters, other databases, the library's health checks
    *("xautoclaim", "xpending", "xack"),  # a worker died before
    *("xinfo", "xrange", "xclaim"),  # a consumer was deleted
    "pttl",  # the server began a new life a moment ago
}  # fmt: skip
BY_THE_LIBRARY = {"auth", "hello", "client", "select", "ping", "command"}


class Overheard:
    """Commands a server carried out, those of scripts too, by MONITOR."""

    def __init__(self) -> None:
        self.text = b""

    def words(self) -> list[list[str]]:
        """Each command's words, as far as MONITOR prints them readably."""
        lines = self.text.decode(errors="replace").splitlines()
        return [re.findall(r'"((?:[^"\\]|\\.)*)"', line) for line in lines if line.startswith("+1") and '"' in line]

    def names(self) -> set[str]:
        return {words[0].lower() for words in self.words()}


@contextmanager
def overheard(server: RedisServer) -> Iterator[Overheard]:
    heard, enough = Overheard(), threading.Event()

    def listen() -> None:
        try:
            while data := ear.recv(1 << 16):
                heard.text += data
        except ConnectionResetError:  # the server was still talking when we hung up
            if not enough.is_set():
                raise

    with socket.create_connection(server.address) as ear:
        ear.sendall(b"MONITOR\r\n")
        assert ear.recv(5) == b"+OK\r\n"
        listener = threading.Thread(target=listen)
        listener.start()
        yield heard
        enough.set()
        ear.shutdown(socket.SHUT_RDWR)
        listener.join()


def granted(role: str) -> set[str]:
    line = next(line for line in acl_text(modern=True).splitlines() if f"statecore-{role} " in line)
    return {word.partition("|")[0] for word in re.findall(r"\+([a-z|]+)", line)}


def test_no_command_walks_the_keyspace(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index_name: str
) -> None:
    """E-44: an engine that scans the server's keys to clear or rebuild takes everybody's time, the more keys the more.

    Given engines, workers and a keeper that do all they do, joining, rebuilding, clearing up and snapshots included, when
    every command is overheard, then none of them walks the keyspace; and what they send and what they may send
    (`ops/acl/`) is the same, but for rare moments.
    """
    hurried(monkeypatch)
    fleet = Fleet(server.url, tmp_path)
    with overheard(server) as heard:
        try:
            engines_and_workers(fleet, server.url)
            assert a_keeper(server.url, server.url, server.client(), index_name).published == 2
        finally:
            fleet.close()

    ours = heard.names() - BY_THE_LIBRARY
    assert {"evalsha", "xadd", "xreadgroup", "xtrim", "setrange"} <= ours, "all roles were heard"
    assert ours & WHOLE_KEYSPACE == set()
    may = set().union(*(granted(role) for role in ROLES if role != "reader"))
    assert len(may) > 30
    assert ours - may == set(), "a right is missing"
    assert may - heard.names() - RARE == set(), "a right is given for nothing"
