"""ops/redis.conf: every version at hand starts with it, takes every line of it, and has nothing the doctor complains of."""

from __future__ import annotations

import itertools
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from events import connect
from statecore import CacheIndex
from tests.doctor.given import examined
from tests.servers import LOOPBACK, free_port

CONFIGURATION = Path(__file__).parents[2] / "ops" / "redis.conf"
OVERRIDDEN = {"bind", "port"}
SELF_EXPLAINING = {"port", "loglevel"}


def directives() -> dict[str, str]:
    """Name and value of every line that is one."""
    lines = [line for line in CONFIGURATION.read_text().splitlines() if line and not line.startswith("#")]
    pairs = [line.split(" ", 1) for line in lines]
    assert len({name for name, _ in pairs}) == len(pairs), "a setting stands there twice"
    return {name: value.strip('"') for name, value in pairs}


@pytest.fixture
def configured(redis_binary: Path, tmp_path: Path) -> Iterator[Any]:
    """A client of a server with this configuration, on a loopback port and a folder of its own."""
    port = free_port()
    command = [str(redis_binary), str(CONFIGURATION), "--port", str(port), "--bind", LOOPBACK, "--dir", str(tmp_path)]
    with (tmp_path / "server.log").open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        with redis.Redis(host=LOOPBACK, port=port, protocol=2) as client:
            deadline = time.monotonic() + 10
            while not _answers(client):
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield client
    finally:
        process.terminate()
        process.wait(timeout=10)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def test_a_server_takes_every_line_and_the_doctor_is_content(configured: Any) -> None:
    """An operator who does as we say would be told off, or start nothing."""
    url = f"redis://{LOOPBACK}:{configured.connection_pool.connection_kwargs['port']}"
    with (
        connect(url) as connection,
        CacheIndex(connection, name="first", engine="engine-0", gpu_blocks=8, block_size=4) as engine,
    ):
        engine.match("a", [1] * 8)
        found = examined(url)

    assert found.exit_code == 0
    assert found.graded("error") == set()
    assert found.graded("warning") == {"keeper"}, "none was started"
    for name, value in directives().items():
        if name not in OVERRIDDEN:
            [stored] = cast("dict[str, str]", configured.config_get(name)).values()
            assert in_bytes(stored) == in_bytes(value), name


def in_bytes(value: Any) -> str:
    """A size as the server says it."""
    text = value.decode() if isinstance(value, bytes) else str(value)
    found = re.fullmatch(r"(\d+)(gb|mb)", text)
    return text if found is None else str(int(found[1]) << {"gb": 30, "mb": 20}[found[2]])


def test_every_line_says_why() -> None:
    """A setting without a reason is changed by the next person, or never again."""
    lines = CONFIGURATION.read_text().splitlines()

    bare = [
        line
        for before, line in itertools.pairwise(lines)
        if line and not line.startswith("#") and not before.startswith("# ") and line.split()[0] not in SELF_EXPLAINING
    ]
    assert bare == []
