"""A cluster and Sentinels over TLS: an index works, and every connection was encrypted.

Owns the success of `rediss+cluster://` and `rediss+sentinel://`; their failures are in `test_secrets.py`. The servers speak
in the clear behind doors (`tls.py`), and name the doors' ports, so whoever finds them through one another meets TLS again.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final, Self

import pytest

from events.keys import IndexKeys
from tests.security.tls import Authority, TlsDoor, serve_over
from tests.servers import LOOPBACK
from tests.topologies import SERVICE, SLOTS, Cluster, Watched, eventually

_HANDSHAKE: Final = b"\x16"
"""The first byte of a client that speaks TLS; no command of Redis begins with it."""


class CountingDoor(TlsDoor):
    """Counts who came encrypted; lets servers, which speak in the clear to each other, in as well.

    Attributes:
        encrypted, plain: connections so far.
    """

    encrypted = plain = 0

    def __enter__(self) -> Self:
        return self

    def _serve(self, outside: socket.socket) -> None:
        if outside.recv(1, socket.MSG_PEEK) == _HANDSHAKE:
            self.encrypted += 1
            super()._serve(outside)
        else:
            self.plain += 1
            self._pass(outside)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "authority")


class ClusterBehindDoors(Cluster):
    """Its nodes name each other's doors, from before they meet: Redis 6.2 tells nobody of a port that changes later."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.doors: list[CountingDoor] = []
        self._authority = authority
        super().__init__(folder)

    def _join(self) -> None:
        for node in self.nodes:
            self.doors.append(CountingDoor(self._authority, node.address))
            node.stop()
            node._options += ("--cluster-announce-port", str(self.doors[-1].port))
            node.start()
        super()._join()

    def __enter__(self) -> Self:
        return self

    def stop(self) -> None:
        for door in self.doors:
            door.close()
        super().stop()


def test_a_cluster_over_tls(authority: Authority, tmp_path: Path, index_name: str) -> None:
    """Otherwise the nodes that the first one names would be spoken to in the clear, or not be reached.

    Given three nodes behind TLS, when indexes on all of them are used by the URL of one, then all goes well, and nobody came
    unencrypted.
    """
    with ClusterBehindDoors(tmp_path, authority) as cluster:
        url = f"rediss+cluster://{LOOPBACK}:{cluster.doors[0].port}?ssl_ca_certs={authority.certificate}"
        names = [f"{index_name}-{number}" for number in range(40)]
        one_on_each_node = {cluster.slot(IndexKeys.of(name).log) * 3 // SLOTS: name for name in names}
        for name in one_on_each_node.values():
            serve_over(url, name)

        stored = [node.client().dbsize() for node in cluster.nodes]
        assert all(stored), f"a node holds no index: {stored}"
        assert all(door.encrypted for door in cluster.doors)
        assert not any(door.plain for door in cluster.doors)


def test_sentinels_over_tls(authority: Authority, tmp_path: Path, index_name: str) -> None:
    """Otherwise the Sentinel would be asked, or the primary that it names be used, in the clear.

    Given a Sentinel behind TLS that names the door of its primary, when an index is used, then all goes well, and both were
    spoken to over TLS.
    """
    with (
        Watched(tmp_path, sentinels=1) as watched,
        CountingDoor(authority, watched.sentinels[0].address) as ask,
        CountingDoor(authority, watched.primary.address) as serve,
    ):
        sentinel = watched.sentinels[0].client()
        sentinel.execute_command("SENTINEL", "REMOVE", SERVICE)
        sentinel.execute_command("SENTINEL", "MONITOR", SERVICE, LOOPBACK, serve.port, 1)
        eventually(lambda: sentinel.sentinel_master(SERVICE)["flags"] == "master", "the Sentinel sees the primary")

        serve_over(
            f"rediss+sentinel://{LOOPBACK}:{ask.port}/{SERVICE}?ssl_ca_certs={authority.certificate}", index_name
        )

        assert ask.encrypted
        assert not ask.plain
        assert serve.encrypted
