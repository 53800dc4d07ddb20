"""Groups of real redis-servers: a cluster, and a primary with a replica that Sentinels watch.

Owns what tests start to see how the log behaves where servers take over from one another. Like `servers.py`: everything
listens on loopback only, and ends with `stop`.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import redis

from tests.servers import LOOPBACK, RedisServer

SLOTS: Final = 16384
SERVICE: Final = "kv-log"
_BUS: Final = 10_000
"""A node talks to its neighbours on its port + 10,000; 6.2 knows no other."""
_SETTLE_S: Final = 20.0
_DOWN_AFTER_MS: Final = 500


def eventually(holds: Callable[[], object], what: str, timeout_s: float = _SETTLE_S) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)


class Cluster:
    """A Redis Cluster of primaries without replicas, each with its third of the slots.

    Attributes:
        nodes: their servers.
    """

    def __init__(self, folder: Path, *options: str, binary: Path | None = None, nodes: int = 3) -> None:
        self.nodes: list[RedisServer] = []
        try:
            for number in range(nodes):
                self.nodes.append(
                    _Node(
                        folder / f"node-{number}",
                        *("--cluster-enabled", "yes", "--cluster-node-timeout", "1000"),
                        *("--cluster-require-full-coverage", "no"),
                        *options,
                        binary=binary,
                    )
                )
            self._join()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"{LOOPBACK}:{node.port}" for node in self.nodes)

    def holder(self, key: str) -> RedisServer:
        """The node that serves a key."""
        slot = self.slot(key)
        for first, last, (_, port, *_), *_ in self._first().execute_command("CLUSTER SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody serves slot {slot}")

    def slot(self, key: str) -> int:
        return int(self._first().execute_command("CLUSTER", "KEYSLOT", key))

    def begin_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """From now on keys of the slot that are not at `source` are asked for at `target`."""
        target.client().execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", _id(source))
        source.client().execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", _id(target))

    def move_keys(self, slot: int, source: RedisServer, target: RedisServer, most: int = 1000) -> int:
        """How many keys went over."""
        keys = source.client().execute_command("CLUSTER", "GETKEYSINSLOT", slot, most)
        for key in keys:
            source.client().execute_command("MIGRATE", LOOPBACK, target.port, key, 0, 5000)
        return len(keys)

    def end_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        for node in (target, source, *self.nodes):
            node.client().execute_command("CLUSTER", "SETSLOT", slot, "NODE", _id(target))

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _first(self) -> Any:
        return self.nodes[0].client()

    def _join(self) -> None:
        edges = [SLOTS * number // len(self.nodes) for number in range(len(self.nodes) + 1)]
        for epoch, (node, (start, end)) in enumerate(zip(self.nodes, itertools.pairwise(edges), strict=True), start=1):
            node.client().execute_command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
            node.client().execute_command("CLUSTER", "ADDSLOTS", *range(start, end))
            if node is not self.nodes[0]:
                node.client().execute_command("CLUSTER", "MEET", *self.nodes[0].address)
        eventually(lambda: all(self._knows_all(node) for node in self.nodes), "the nodes know each other")

    def _knows_all(self, node: RedisServer) -> bool:
        state = node.client().execute_command("CLUSTER INFO")
        known = {port for _, _, (_, port, *_), *_ in node.client().execute_command("CLUSTER SLOTS")}
        return bool(state["cluster_state"] == "ok" and len(known) == len(self.nodes))


class _Node(RedisServer):
    """A server whose port leaves room for its bus."""

    def start(self) -> None:
        first = not (self.folder / "nodes.conf").exists()
        if first and not _is_free(self.port + _BUS):
            raise RuntimeError(f"no room for the bus of port {self.port}")  # the constructor tries another
        super().start()


def _is_free(port: int) -> bool:
    if port >= 1 << 16:
        return False
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind((LOOPBACK, port))
        return True
    return False


def _id(node: RedisServer) -> str:
    return str(node.client().execute_command("CLUSTER MYID").decode())


class Watched:
    """A primary and a replica, and Sentinels that make the replica the primary when the primary has gone.

    Attributes:
        primary, replica: as they began.
    """

    def __init__(self, folder: Path, *, binary: Path | None = None, sentinels: int = 3) -> None:
        self.sentinels: list[_Sentinel] = []
        self.primary = RedisServer(folder / "primary", binary=binary)
        try:
            self.replica = RedisServer(
                folder / "replica", "--replicaof", *map(str, self.primary.address), binary=binary
            )
            eventually(self.is_synced, "the replica follows")
            for number in range(sentinels):
                self.sentinels.append(
                    _Sentinel(folder / f"sentinel-{number}", self.primary, sentinels // 2 + 1, binary)
                )
            eventually(lambda: all(each.knows(1, sentinels - 1) for each in self.sentinels), "Sentinels know all")
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return "redis+sentinel://" + ",".join(f"{LOOPBACK}:{each.port}" for each in self.sentinels) + f"/{SERVICE}"

    def is_synced(self) -> bool:
        """Whether the replica has all that the primary has."""
        there, here = self.primary.client().info("replication"), self.replica.client().info("replication")
        behind = int(there["master_repl_offset"]) - int(here.get("slave_repl_offset", -1))
        return bool(here.get("master_link_status") == "up") and behind == 0

    def follows(self, server: RedisServer) -> bool:
        """Whether it has become a replica. The Sentinel that makes it one cuts off who is connected to it."""
        try:
            return bool(server.client().info("replication")["role"] == "slave")
        except redis.ConnectionError:
            return False

    def current(self) -> RedisServer:
        """The primary the Sentinels name."""
        _, port = self.sentinels[0].client().execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return self.primary if int(port) == self.primary.port else self.replica

    def stop(self) -> None:
        for server in (*self.sentinels, self.primary, getattr(self, "replica", None)):
            if server is not None:
                server.stop()

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


class _Sentinel(RedisServer):
    """A redis-server in the mode of a Sentinel."""

    def __init__(self, folder: Path, primary: RedisServer, quorum: int, binary: Path | None) -> None:
        self._watches, self._quorum = primary, quorum
        super().__init__(folder, binary=binary)

    def knows(self, replicas: int, sentinels: int) -> bool:
        told = self.client().sentinel_master(SERVICE)
        return bool(told["num-slaves"] == replicas and told["num-other-sentinels"] == sentinels)

    def _command(self) -> list[str]:
        config = self.folder / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind {LOOPBACK}\ndir {self.folder}\n"
            f"sentinel monitor {SERVICE} {LOOPBACK} {self._watches.port} {self._quorum}\n"
            f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {SERVICE} 5000\n"
        )
        return [str(self._binary), str(config), "--sentinel"]
