"""Two releases on one log (bugs E-30): the old one stops at the first thing it cannot read, the new one goes on."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from events import connect
from events.facts import SCHEMA
from events.keys import IndexKeys
from ops.migrating import Place, carry_out, survey
from statecore import CacheIndex
from statecore.invariants import violations
from statecore.replica import Replica

ROOT: Final = Path(__file__).resolve().parents[2]
LAST_OF_SCHEMA_2: Final = "c1f3154"


class Process:
    """A process that answers each line with a line of JSON."""

    def __init__(self, running: subprocess.Popen[str]) -> None:
        self._running = running

    def hears(self) -> dict[str, Any]:
        assert self._running.stdout is not None
        line = self._running.stdout.readline()
        assert line, f"it ended with {self._running.wait()}"
        heard: dict[str, Any] = json.loads(line)
        return heard

    def asks(self, call: str) -> dict[str, Any]:
        assert self._running.stdin is not None
        self._running.stdin.write(call + "\n")
        self._running.stdin.flush()
        return self.hears()

    def ends(self) -> int:
        assert self._running.stdin is not None
        self._running.stdin.close()
        return self._running.wait(20)


@contextmanager
def started(folder: Path, *command: str) -> Iterator[Process]:
    with subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)},
    ) as running:  # fmt: skip
        try:
            yield Process(running)
        finally:
            running.kill()


def engine_of(connection: Any, index: str, name: str) -> CacheIndex:
    return CacheIndex(connection, name=index, engine=name, gpu_pool=name, gpu_blocks=8, block_size=4, follow=False)


def test_the_old_release_stops_at_the_first_fact_it_cannot_read(redis_url: str, index_name: str) -> None:
    """An upgrade engine by engine: the old one guesses at what it reads, or takes the new one down with it.

    Given an engine of schema 2 at work, when one of schema 3 joins and works, then the old one's next call and every further
    one is refused with what to do, and the new one goes on, with what the old one had written until then.
    """
    with started(ROOT, "-m", "tests.multiprocess.old_release", redis_url, index_name) as old:
        assert old.hears() == {"joined": 1}
        assert old.asks("match before") == {"done": "match"}
        with connect(redis_url) as connection:
            new = engine_of(connection, index_name, "new")
            new.match("r", list(range(8)))
            new.allocate("r", 2)
            position = new.refresh()

            for call in ("match after", "refresh", "match again"):
                refused = old.asks(call)
                assert refused["refused"] == "NewerSchema", refused
                assert f"has schema {SCHEMA}, this release reads up to 2: upgrade statecore" in refused["why"]
                assert "at position 3" in refused["why"]
            assert old.ends() == 0

            new.extend("r", ready=True)
            new.release("r")
            assert new.refresh() > position
            assert new.inspect(violations) == []
            log = connection.log(index_name, follow=False)
            replica = Replica()
            replica.apply_all(log.read(0))
            assert replica.digest() == new.digest()
            schemas = [stored.record.schema for stored in log.read_stored(0, 1000)]
            assert schemas[:3] == [2, 2, SCHEMA]
            assert schemas.count(2) <= 3, "the old one went on writing after it met what it cannot read"
            new.close()


OLD_ENGINE: Final = """
import json, sys
from events import connect
from events.errors import StateCoreError
from statecore import CacheIndex
with connect(sys.argv[1]) as connection:
    engine = CacheIndex(connection, name=sys.argv[2], engine="old", gpu_pool="old", gpu_blocks=8, block_size=4, follow=False)
    print(json.dumps({"joined": engine.session, "digest": engine.digest()}), flush=True)
    for line in sys.stdin:
        try:
            engine.match(line.strip(), [1, 2, 3, 4])
            print(json.dumps({"done": engine.digest()}), flush=True)
        except StateCoreError as error:
            print(json.dumps({"refused": type(error).__name__, "why": str(error)}), flush=True)
"""


@pytest.fixture(scope="module")
def last_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the last release of schema 2 and key layout 1, where this checkout has its history."""
    packed = subprocess.run(
        ["git", "archive", LAST_OF_SCHEMA_2, "events", "statecore", "migrations"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if packed.returncode:
        pytest.skip(f"this checkout does not reach back to {LAST_OF_SCHEMA_2}")
    folder = tmp_path_factory.mktemp("last-release")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.usefixtures("impatient")
def test_the_release_before_is_refused_from_the_first_move_on(
    redis_url: str, index_name: str, last_release: Path
) -> None:
    """The last release goes on writing under the layout it knows, and engines are deposed that never had a lease.

    Given the real last release at work on an index it made, when the index is migrated beside it, then it is refused from
    the first move on, and this release continues where it stopped.
    """
    with started(last_release, "-c", OLD_ENGINE, redis_url, index_name) as old, connect(redis_url) as connection:
        assert old.hears()["joined"] == 1
        digest = old.asks("before")["done"]
        place = Place.of(connection, index_name)
        found = survey(place)
        assert (found.layout, found.schemas) == ("1", {2: 2})

        for move in carry_out(place, found.moves):
            refused = old.asks(f"after-{move.end}-{move.leases}")
            assert refused["refused"] == "InvalidInput", refused
            assert f"the index has key layout {move.end!r}, this release speaks '1'" in refused["why"]
        old.ends()

        replica = Replica()
        replica.apply_all(connection.log(index_name, follow=False).read(0))
        assert replica.digest() == digest
        client: Any = connection.backend._client  # type: ignore[attr-defined]
        assert client.get(IndexKeys.of(index_name).lease("old")) == b"1"
        new = engine_of(connection, index_name, "new")
        new.match("r", list(range(8)))
        assert new.inspect(violations) == []
        new.close()
