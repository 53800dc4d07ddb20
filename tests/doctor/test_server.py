"""What the doctor says of servers: each setting in the good state and in the bad one, on real servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakeredis
import pytest
from click.testing import CliRunner

from events import connect
from ops.cli import main
from ops.doctor.command import examined as examine
from statecore import CacheIndex
from tests.cli.scenario import complaint, statecore
from tests.doctor.given import examined
from tests.servers import Proxy, RedisServer, binary_of

Change = Callable[[Any], object]


@pytest.fixture(scope="module", params=["embedded", "system"])
def binary(request: pytest.FixtureRequest) -> Path:
    found = binary_of(request.param)
    if found is None:
        pytest.skip("this machine has no redis-server on its PATH")
    return found


@pytest.fixture(scope="module")
def shared(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server per version; a test puts back what it changed."""
    with RedisServer(tmp_path_factory.mktemp("redis"), "--maxmemory", "200mb", binary=binary) as server:
        yield server


def config(**settings: str) -> Change:
    return lambda client: [client.config_set(name.replace("_", "-"), value) for name, value in settings.items()]


def test_a_good_server_has_nothing_to_complain_of(shared: RedisServer) -> None:
    """Every server would be ill, and nobody would read on."""
    found = examined(shared.url)

    assert {each["severity"] for each in found.found} == {"ok"}
    assert found.exit_code == 0
    assert found.graded("ok") == {
        "version", "role", "eviction", "memory", "clock", "append-only file", "fsync", "last saves", "replicas", "scripts"
    }  # fmt: skip


BAD: dict[str, tuple[dict[str, str], str, str, str]] = {
    "evicts": ({"maxmemory-policy": "allkeys-lru"}, "eviction", "error", "maxmemory-policy allkeys-lru"),
    "full": ({"maxmemory": "1mb"}, "memory", "error", "of maxmemory 1 MiB used"),
    "no maxmemory": ({"maxmemory": "0"}, "memory", "warning", "no maxmemory"),
    "no append-only file": ({"appendonly": "no"}, "append-only file", "error", "off"),
    "never synced": ({"appendfsync": "no"}, "fsync", "warning", "appendfsync no"),
    "every second": ({"appendfsync": "everysec"}, "fsync", "ok", "appendfsync everysec"),
    "too few replicas": ({"min-replicas-to-write": "1"}, "replicas", "error", "0 connected, min-replicas-to-write 1"),
}


@pytest.mark.parametrize(("settings", "what", "severity", "words"), BAD.values(), ids=BAD.keys())
def test_a_setting_is_graded(
    shared: RedisServer, settings: dict[str, str], what: str, severity: str, words: str
) -> None:
    """A server that loses or refuses what is written would be called well."""
    with shared.client() as client:
        before = {}
        for name, value in settings.items():
            before[name] = next(iter(client.config_get(name).values()))
            client.config_set(name, value)
        try:
            finding = examined(shared.url).of(what)
        finally:
            for name, value in before.items():
                client.config_set(name, value)

    assert finding["severity"] == severity
    assert words in finding["found"]
    assert examined(shared.url).of(what)["severity"] == "ok"


def test_a_failed_save_is_found(shared: RedisServer) -> None:
    """A full disk would be noticed when the server refuses every commit."""
    in_the_way = shared.folder / "dump.rdb"
    in_the_way.mkdir()
    with shared.client() as client:
        saved(client, "err")
        finding = examined(shared.url).of("last saves")
        in_the_way.rmdir()
        saved(client, "ok")

    assert finding["severity"] == "error"
    assert "the last background save failed" in finding["found"]
    assert examined(shared.url).of("last saves")["severity"] == "ok"


def saved(client: Any, expected: str) -> None:
    """Save in the background until it ends in this way."""
    client.bgsave()
    deadline = time.monotonic() + 10
    while client.info("persistence")["rdb_last_bgsave_status"] != expected:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_replicas_without_a_guard_are_found(binary: Path, tmp_path: Path) -> None:
    """A primary that was cut off would renew leases while its successor opens the log (decision 0016)."""
    with (
        RedisServer(
            tmp_path / "primary", "--maxmemory", "200mb", "--repl-diskless-sync-delay", "0", binary=binary
        ) as primary,
        RedisServer(tmp_path / "replica", "--replicaof", "127.0.0.1", str(primary.port), binary=binary) as replica,
        primary.client() as client,
    ):
        deadline = time.monotonic() + 20
        while (
            client.info("replication")["connected_slaves"] < 1
            or client.info("replication")["slave0"]["state"] != "online"
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        unguarded = examined(primary.url).of("replicas")
        client.config_set("min-replicas-to-write", 1)
        too_late = examined(primary.url).of("replicas")
        client.config_set("min-replicas-max-lag", 5)
        guarded = examined(primary.url).of("replicas")
        of_replica = examined(replica.url)

    assert (unguarded["severity"], too_late["severity"], guarded["severity"]) == ("error", "error", "ok")
    assert "1 replica, min-replicas-to-write 1, min-replicas-max-lag 10 s; a lease runs 6 s" in too_late["found"]
    assert "min-replicas-max-lag 5" in too_late["remedy"]
    assert of_replica.of("role")["severity"] == "error"
    assert of_replica.exit_code == 1


def test_an_old_server_is_found(shared: RedisServer) -> None:
    """A server without XAUTOCLAIM would fail in the middle of the night instead of at once."""
    info = b"# Server\r\nredis_version:5.0.14\r\n"
    with Proxy(shared.address) as proxy:
        proxy.answer = lambda command: b"$%d\r\n%s\r\n" % (len(info), info) if command == "INFO" else None
        found = examined(proxy.url)

    assert found.of("version")["severity"] == "error"
    assert found.of("version")["found"] == "5.0.14, 6.2 or newer is needed"
    assert found.of("memory")["severity"] == "unknown", "it does not say, and nobody guesses"


def test_a_server_that_takes_no_scripts_is_found(shared: RedisServer) -> None:
    """A managed service without Lua would look like a Redis until the first commit."""
    with Proxy(shared.address) as proxy:
        proxy.answer = lambda command: b"-ERR Lua is switched off\r\n" if command == "SCRIPT" else None
        finding = examined(proxy.url).of("scripts")

    assert finding["severity"] == "error"
    assert "commit: Lua is switched off" in finding["found"]


def test_a_server_out_of_reach_is_told_from_an_ill_one(tmp_path: Path) -> None:
    """A monitor would page somebody for the wrong thing."""
    message = complaint(statecore("doctor", "--url", f"unix://{tmp_path}/none.sock"), 2)

    assert "cannot be reached" in message


def test_a_hanging_server_is_out_of_reach(shared: RedisServer, impatient: None) -> None:  # noqa: ARG001
    """The doctor would hang as well."""
    shared.suspend()
    try:
        message = complaint(statecore("doctor", "--url", shared.url), 2)
    finally:
        shared.resume()

    assert "cannot be reached" in message


def test_the_doctor_needs_a_server() -> None:
    """A mistake in the call would look like a healthy system."""
    assert "which server?" in complaint(statecore("doctor"), 2)
    assert "memory:// has no server" in complaint(statecore("doctor", "--url", "memory://"), 2)


# --- what cannot be told


def test_what_fakeredis_does_not_say_is_not_guessed() -> None:
    """A fake would be called well for what it has not got."""
    with (
        connect(client=fakeredis.FakeRedis(server=fakeredis.FakeServer())) as connection,
        CacheIndex(connection, name="faked", engine="engine-0", gpu_blocks=8, block_size=4) as engine,
    ):
        engine.match("a", [1] * 8)
        found = examine(connection, None)
    grades = {finding.what: finding.severity for section in found for finding in section.findings}

    assert {name for name, grade in grades.items() if grade == "unknown"} == {
        "version", "role", "eviction", "memory", "append only file", "background saves", "replicas"
    }  # fmt: skip
    assert (grades["links"], grades["invariants"], grades["lease"]) == ("ok", "ok", "ok")


def test_what_this_user_may_not_ask_is_said(shared: RedisServer) -> None:
    """A reader would be told that the server is ill, because it may not look."""
    with shared.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "outsider", "on", ">secret", "~kv:*", "-@all", "+ping", "+scan", "+select"
        )
        found = examined(shared.url.replace("redis://", "redis://outsider:secret@"))
        client.execute_command("ACL", "DELUSER", "outsider")

    assert found.exit_code == 0
    assert {each["severity"] for each in found.found} == {"unknown"}
    assert all(each["found"].startswith("cannot tell: ") for each in found.found)


def test_the_table_for_people_ends_with_a_verdict(shared: RedisServer) -> None:
    """Whoever reads ten lines would not know whether it is bad."""
    with shared.client() as client:
        well = CliRunner().invoke(main, ["doctor", "--url", shared.url])
        client.config_set("maxmemory-policy", "allkeys-lru")
        ill = CliRunner().invoke(main, ["doctor", "--url", shared.url])
        client.config_set("maxmemory-policy", "noeviction")

    assert (well.exit_code, well.stdout.splitlines()[-1]) == (0, "10 findings: all well")
    assert (ill.exit_code, ill.stdout.splitlines()[-1]) == (1, "10 findings: 1 error")
    assert "  error: eviction: CONFIG SET maxmemory-policy noeviction" in ill.stdout
    assert "(E-42)" in ill.stdout
