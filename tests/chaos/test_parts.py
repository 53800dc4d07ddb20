"""The parts a chaos run is made of do what the run relies on."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from events import limits
from ops.chaos.cast import EngineActor, state_of
from ops.chaos.engine import EngineSettings
from ops.chaos.network import KINDS, Network
from ops.chaos.proxy import Fault, Proxy
from ops.chaos.recovery import Signs, recovery_s
from ops.chaos.slot import Order, Slot
from ops.chaos.stage import Injury
from ops.chaos.tether import tethered
from ops.chaos.workload import BATCH, Conversations
from tests.servers import RedisServer

SET = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n"
PING = b"*1\r\n$4\r\nPING\r\n"
COMMIT = b"*3\r\n$7\r\nEVALSHA\r\n$1\r\n0\r\n$20\r\nx.1 engine-0#3 1 3 c\r\n"


@pytest.fixture
def server(tmp_path: Path) -> RedisServer:
    return RedisServer(tmp_path)


def test_faults_are_drawn_from_the_seed_and_counted(server: RedisServer) -> None:
    """Given two networks of one seed, the same commands meet the same faults; each kind occurs, and is counted."""
    with server, _network(server) as one, _network(server) as other:
        one.failing = other.failing = True

        drawn = [[network.fault_of("EVALSHA", COMMIT) for _ in range(5000)] for network in (one, other)]

        assert drawn[0] == drawn[1]
        assert one.counts == Counter(fault for fault in drawn[0] if fault is not Fault.NONE)
        assert set(one.counts) == set(KINDS)
        assert 100 < one.counts.total() < 250
        one.failing = False
        assert one.fault_of("EVALSHA", COMMIT) is Fault.NONE


def test_the_next_commit_of_an_engine_is_caught(server: RedisServer) -> None:
    """Given an engine whose next commit is awaited, that one is held back, once; what others and reads say passes."""
    with server, _network(server) as network:
        network.await_commit("engine-0")

        assert network.fault_of("XREAD", COMMIT) is Fault.NONE
        assert network.fault_of("EVALSHA", COMMIT.replace(b"engine-0#", b"engine-00#")) is Fault.NONE
        assert network.caught("engine-0") is None
        assert network.fault_of("EVALSHA", COMMIT) is Fault.HANG
        assert network.fault_of("EVALSHA", COMMIT) is Fault.NONE
        assert network.caught("engine-0") == COMMIT
        assert network.caught("engine-0") is None


def test_a_late_command_arrives_on_another_connection(server: RedisServer) -> None:
    """Given a command that is late, its client's connection breaks, and the command has its effect after that."""
    with server, _LateProxy(server.address) as proxy:
        proxy_client = _connection(proxy)
        proxy_client.sendall(SET)
        assert proxy_client.recv(100) == b""
        proxy_client.close()
        client = server.client()
        assert client.get("k") is None

        assert proxy.deliver(older_than_s=60.0) == 0
        assert proxy.deliver() == 1

        assert client.get("k") == b"v"
        client.close()


def test_a_late_reply_comes_when_nobody_waits_any_more(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a command whose reply is late, it has its effect at once, its client gives up and goes on over another
    connection; the reply comes after that, on the old one, and to nobody else.
    """
    monkeypatch.setattr(limits, "SOCKET_TIMEOUT_S", 0.3)
    with server, _LateReplies(server.address) as proxy, _connection(proxy) as patient:
        asked_at = time.monotonic()
        patient.sendall(SET)
        client = server.client()
        _wait_until(lambda: client.get("k") == b"v")
        assert time.monotonic() - asked_at < 0.3
        client.close()
        patient.settimeout(0.3)
        with pytest.raises(TimeoutError):
            patient.recv(100)
        with _connection(proxy) as again:
            again.sendall(PING)
            assert again.recv(100) == b"+PONG\r\n"

        patient.settimeout(5.0)
        assert patient.recv(100) == b"+OK\r\n"
        assert time.monotonic() - asked_at >= 0.3 * 1.3
        patient.sendall(PING)
        assert patient.recv(100) == b"+PONG\r\n"


def test_children_die_with_their_parent_also_while_stopped() -> None:
    """Given a parent that is killed, its tethered child is gone, although it was stopped."""
    script = (
        "import subprocess, sys, time; from ops.chaos.tether import tethered; "
        "child = subprocess.Popen(tethered(['/bin/sleep', '600'])); print(child.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    _wait_for(child, {"S"})
    subprocess.run(["/bin/kill", "-STOP", str(child)], check=True)
    _wait_for(child, {"T"})

    parent.kill()
    parent.wait()
    parent.stdout.close()

    _wait_for(child, {"", "Z", "X"})


def test_who_comes_too_late_does_not_begin() -> None:
    """Given a parent that is dead already, a tethered command is not run."""
    command = tethered(["/bin/echo", "ran"])
    command[4] = "1"  # somebody else's child

    assert subprocess.run(command, capture_output=True, check=False).stdout == b""


def test_a_slot_is_seen_by_both_sides(tmp_path: Path) -> None:
    mine, theirs = Slot(tmp_path / "slot"), Slot(tmp_path / "slot")

    mine.order = Order.FINISH

    assert theirs.order is Order.FINISH
    with theirs.device():
        assert mine.busy
    assert not mine.busy


def test_an_engine_is_not_stopped_while_its_device_works(tmp_path: Path) -> None:
    """Otherwise it would write into blocks of others when it wakes up.

    Given an engine that is busy, stopping it waits until it is not.
    """
    engine = _BusyEngine(_settings(tmp_path), tmp_path)
    engine.start()
    assert engine.slot is not None
    _wait_until(lambda: engine.slot is not None and engine.slot.busy)

    assert engine.stop()

    assert not engine.slot.busy
    engine.kill()


def test_two_processes_of_one_engine_ask_for_different_things() -> None:
    """Given the lives of an engine, no request number comes twice, and what they ask for begins alike."""
    first, second, again = Conversations(1, 0, 0), Conversations(1, 0, 1), Conversations(1, 0, 0)
    asked = first.batch() + first.batch()

    assert again.batch() == asked[:BATCH]
    assert not {number for number, _ in asked} & {number for number, _ in second.batch()}
    assert {request.hash_ids[0] for _, request in asked} & {request.hash_ids[0] for _, request in second.batch()}


SIGNS = Signs(
    engines={"a": [1.0, 5.0, 9.0], "b": [2.0, 6.5, float("inf")]},
    transfers={"gpu:a": [(1.0, 8.0), (3.0, 3.5), (4.5, 20.0)], "gpu:b": [(1.0, float("inf"))]},
)


@pytest.mark.parametrize(
    ("injury", "recovery"),
    [
        (Injury("engine killed", 3.0, 4.0, engines=("a",)), 2.0),
        (Injury("out of memory", 3.0, 4.0), 3.5),  # the slower of both
        (Injury("engine killed", 3.0, 9.5, engines=("a",)), float("inf")),  # it never came back
        (Injury("engine killed", 3.0, 9.5, engines=("b",)), 0.0),  # it had left
        (Injury("worker killed", 2.0, 4.0, pool="gpu:a"), 6.0),  # of the transfers open then, the last to end
        (Injury("worker killed", 2.0, 30.0, pool="gpu:a"), None),  # none was
        (Injury("worker killed", 2.0, 4.0, pool="gpu:b"), float("inf")),
        (Injury("keeper killed", 2.0, 4.0), None),
    ],
)
def test_recovery_is_that_of_the_last_one_affected(injury: Injury, recovery: float | None) -> None:
    assert recovery_s(injury, SIGNS) == recovery


class _LateProxy(Proxy):
    def fault_of(self, name: str, _request: bytes) -> Fault:
        return Fault.LATE if name == "SET" else Fault.NONE


class _LateReplies(Proxy):
    def fault_of(self, name: str, _request: bytes) -> Fault:
        return Fault.LATE_REPLY if name == "SET" else Fault.NONE


class _BusyEngine(EngineActor):
    """A process that is busy for 0.2 s, then rests for a moment, again and again."""

    def command(self) -> list[str]:
        super().command()
        work = (
            "import sys, time; from pathlib import Path; from ops.chaos.slot import Slot; slot = Slot(Path(sys.argv[1]))\n"
            "while True:\n"
            "    with slot.device(): time.sleep(0.2)\n"
            "    time.sleep(0.05)"
        )
        return ["-c", work, str(self.settings.slot)]


def _settings(folder: Path) -> EngineSettings:
    return EngineSettings("", "i", "engine-0", "gpu:a", 1, 1, 1, 16, True, 0, 0, 0, 0.0, str(folder))


@contextmanager
def _network(server: RedisServer) -> Iterator[Network]:
    network = Network(server.address, seed=5)
    try:
        yield network
    finally:
        network.close()


def _connection(proxy: Proxy) -> socket.socket:
    host, port = proxy.url.removeprefix("redis://").split(":")
    return socket.create_connection((host, int(port)))


def _wait_for(pid: int, states: set[str]) -> None:
    _wait_until(lambda: state_of(pid) in states)


def _wait_until(done: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)
