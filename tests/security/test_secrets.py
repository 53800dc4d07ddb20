"""TLS and passwords through the URL: they work, they fail clearly, and no password is shown anywhere.

"Anywhere" is what a person or a log collector can see: errors with all their causes, `repr`, what the command line prints,
the log lines of workers, and the command lines of all processes.
"""

from __future__ import annotations

import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from events import connect
from events.client import build_client
from events.errors import Unavailable
from statecore import CacheIndex
from statecore.manager.surroundings import WorkerOrder
from tests.contract.commits import filled
from tests.security.tls import Authority, TlsDoor, serve_over
from tests.servers import LOOPBACK, RedisServer
from workers.launcher import launch_workers, stop_workers
from workers.layout import CacheLayout
from workers.numpy_store import NumpyStore
from workers.shared_pools import remove_stale
from workers.stores import StoreSettings
from workers.surroundings import WorkerLauncher

PASSWORD: Final = "correct-horse-7261"
WRONG: Final = "wrong-horse-9983"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "authority")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server with a password."""
    with RedisServer(tmp_path_factory.mktemp("secured"), "--requirepass", PASSWORD) as server:
        yield server


@pytest.fixture(scope="module")
def door(authority: Authority, secured: RedisServer) -> Iterator[TlsDoor]:
    with TlsDoor(authority, secured.address) as opened:
        yield opened


# --- TLS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [LOOPBACK, "localhost"])
def test_tls_through_the_url(door: TlsDoor, authority: Authority, index_name: str, host: str) -> None:
    """Otherwise an index could not be on a network that others listen to.

    Given a server behind TLS and its authority's certificate in the URL, when an engine works, then all goes well.
    """
    serve_over(f"rediss://:{PASSWORD}@{host}:{door.port}/0?ssl_ca_certs={authority.certificate}", index_name)


@pytest.mark.usefixtures("impatient")
def test_tls_refused(door: TlsDoor, authority: Authority, secured: RedisServer, tmp_path: Path) -> None:
    """Otherwise a stranger's server would be trusted, or the failure be a riddle.

    Given a certificate of another authority, none at all, another host name, no TLS on one of the two sides, or a wrong
    password, when connecting, then Unavailable that says which, within the timeouts, and no password.
    """
    stranger = Authority(tmp_path / "stranger")
    trusted = f"ssl_ca_certs={authority.certificate}"
    for url, says in {
        f"rediss://:{PASSWORD}@{LOOPBACK}:{door.port}?ssl_ca_certs={stranger.certificate}": "certificate verify failed",
        f"rediss://:{PASSWORD}@{LOOPBACK}:{door.port}": "certificate verify failed",
        f"rediss://:{PASSWORD}@127.0.0.2:{door.port}?{trusted}": "127.0.0.2",
        f"rediss://:{PASSWORD}@{LOOPBACK}:{secured.port}?{trusted}": "Timeout|SSL|closed|record",
        f"redis://:{PASSWORD}@{LOOPBACK}:{door.port}": "onnection",
        f"rediss://:{WRONG}@{LOOPBACK}:{door.port}?{trusted}": "password",
        f"rediss://{LOOPBACK}:{door.port}?{trusted}": "password",
    }.items():
        with pytest.raises(Unavailable, match=says) as refused:
            connect(url)
        assert_silent(refused.value)


def test_a_cluster_and_sentinels_over_tls(door: TlsDoor, authority: Authority) -> None:
    """Otherwise `rediss+…` would promise TLS and not speak it.

    Given addresses behind TLS, then the failure is about what is there (no cluster, no Sentinel), not about TLS; and the
    same addresses without TLS are not reached.
    """
    place = f":{PASSWORD}@{LOOPBACK}:{door.port}"
    options = f"?ssl_ca_certs={authority.certificate}"
    for url, says in {
        f"rediss+cluster://{place}{options}": "no node of a cluster",
        f"rediss+sentinel://{place}/kv-log{options}&sentinel_password={PASSWORD}": "no Sentinel",
        f"redis+cluster://{place}": "cannot be reached",
        f"redis+sentinel://{place}/kv-log": "cannot be reached",
    }.items():
        with pytest.raises(Exception, match=says) as refused:
            connect(url)
        assert_silent(refused.value)


# --- nothing shows a password ---------------------------------------------------------------------------------------


def assert_silent(error: BaseException) -> None:
    """No message of an error or of its causes holds a password."""
    told = "".join(traceback.format_exception(error))
    assert PASSWORD not in told
    assert WRONG not in told


@pytest.mark.parametrize("form", ["redis://:{}@{}:{}", "redis://{1}:{2}?password={0}", "redis://default:{}@{}:{}/0"])
def test_no_object_shows_it(secured: RedisServer, form: str, index_name: str) -> None:
    """Otherwise printing an object in a debugger or an error report would print the password.

    Given a connection, its client, logs, queues and an index, when printed, then the password is in none of them.
    """
    url = form.format(PASSWORD, LOOPBACK, secured.port)
    client = build_client(url)
    with connect(url) as connection:
        index = CacheIndex(connection, name=index_name, engine="a", gpu_blocks=8)
        shown = [connection, connection.backend, client, connection.log(index_name), index]
        shown += [connection.jobs(index_name, "p", 0, 1, "w"), connection.keeping(index_name)]
        assert PASSWORD not in " ".join([*map(repr, shown), *map(str, shown), connection.url])
    client.close()


@pytest.mark.parametrize(
    "command",
    [
        ["log", "--index", "nothing"],
        ["verify", "--index", "nothing"],
        ["inspect", "pools", "--index", "nothing"],
        ["worker", "--index", "i", "--pool", "p", "--rank", "3"],
        ["keeper", "--index", "/"],
    ],
)
def test_the_command_line(secured: RedisServer, command: list[str]) -> None:
    """Otherwise a failed command in a ticket would hand out the server.

    Given a URL with a password, right and wrong, when a command fails, then neither output holds it.
    """
    for password in (PASSWORD, WRONG) if command[0] in ("log", "worker") else (PASSWORD,):
        url = f"redis://:{password}@{LOOPBACK}:{secured.port}"
        done = subprocess.run(
            [sys.executable, "-m", "ops.cli", *command, "--url", url], capture_output=True, text=True, check=False
        )
        assert done.returncode != 0, "it was to fail"
        assert (done.stdout + done.stderr).strip()
        assert password not in done.stdout + done.stderr


def test_workers(secured: RedisServer, tmp_path: Path, index_name: str) -> None:
    """Otherwise everybody on the machine would read the password with `ps`, and whoever collects logs would too.

    Given workers launched with a URL that holds a password, and some that cannot start, then no process's command line,
    no log line and no error holds it.
    """
    url = f"redis://:{PASSWORD}@{LOOPBACK}:{secured.port}"
    layout = CacheLayout(layers=1, num_blocks=2, block_shape=(2,), dtype="float16")
    store = NumpyStore(index_name, 0)
    store.create("gpu:a", "gpu", layout)
    store.create("cpu:host", "cpu", layout)
    try:
        workers = launch_workers(url, index_name, "gpu:a", 1, StoreSettings(), log_folder=tmp_path)
        try:
            assert PASSWORD not in command_lines()
        finally:
            stop_workers(workers)
        bad = url.replace(PASSWORD, WRONG)
        with pytest.raises(Exception, match="password") as refused:
            launch_workers(bad, index_name, "gpu:a", 1, StoreSettings(), log_folder=tmp_path)
        assert_silent(refused.value)
        order = WorkerOrder(
            index=index_name, pool="gpu:a", ranks=1, layers=1, key_shape=(2, 2), value_shape=None, dtype="float16",
            host_pool="cpu:host", host_blocks=2, device_ids=(),
        )  # fmt: skip
        with connect(url) as connection, pytest.raises(RuntimeError, match="STATECORE_URL") as hidden:
            WorkerLauncher(connection, {}).launch(order)
        assert_silent(hidden.value)
    finally:
        store.unlink("gpu:a")
        store.unlink("cpu:host")
        store.close()
        remove_stale(index_name)
    logs = b"".join(path.read_bytes() for path in tmp_path.glob("*.log"))
    assert b"ready" in logs
    assert PASSWORD.encode() not in logs
    assert WRONG.encode() not in logs


def command_lines() -> str:
    """Of all processes but the server's own, which this test starts with its password."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "redis-server" not in line:
            lines.append(line)
    assert any("workers.worker_process" in line for line in lines)
    return "\n".join(lines)


def test_what_is_in_the_log(secured: RedisServer, index_name: str) -> None:
    """Otherwise whoever may read the log could write it.

    Given a log made through a URL with a password, when every key is read, then the password is in none.
    """
    with connect(f"redis://:{PASSWORD}@{LOOPBACK}:{secured.port}") as connection:
        filled(connection.log(index_name, follow=False), 3)
    admin = secured.client(password=PASSWORD)
    for key in admin.keys("*"):
        assert PASSWORD.encode() not in admin.dump(key)
