"""A keeper, engines and commands at once on a real server: what is kept can be shown and taken elsewhere."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import attrs
import pytest

from events import connect, limits
from events.embedded import EmbeddedRedis
from events.log import LogConnection
from ops.cli.source import LiveSource
from ops.cli.starting import kept
from statecore import CacheIndex
from tests.cli.scenario import statecore
from tests.doctor.given import examined
from workers.keeper import Keeper
from workers.keeper_totals import KeeperSettings

EVERY, MARGIN = 40, 10


@pytest.fixture
def url(redis_binary: Path) -> object:
    with EmbeddedRedis(binary=redis_binary) as server:
        yield server.url


@attrs.define
class Work:
    """An engine that goes on, commit by commit, and takes down its digests."""

    engine: CacheIndex
    digests: dict[int, str] = attrs.field(factory=dict)
    _names: itertools.count[int] = attrs.field(factory=itertools.count)

    def commits(self, number: int) -> None:
        for _ in range(number // 4):
            name = f"request-{next(self._names)}"
            prompt = [hash_of % 7 for hash_of in range(len(name), len(name) + 16)]
            for call in (
                lambda: self.engine.match(name, prompt),  # noqa: B023
                lambda: self.engine.allocate(name, 4),  # noqa: B023
                lambda: self.engine.extend(name, ready=True),  # noqa: B023
                lambda: self.engine.release(name),  # noqa: B023
            ):
                call()
                self.digests[self.engine.refresh()] = self.engine.digest()


def engine_on(connection: LogConnection) -> CacheIndex:
    return CacheIndex(connection, name="live", engine="engine-0", gpu_blocks=24, block_size=4, follow=False)


def test_what_a_keeper_left_goes_round_the_world(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After the first week, an incident could not be taken home, or would be another one there.

    Given an engine and a keeper that has trimmed the log, when the log is exported, imported into another server, and one
    state taken as a file, then every kept position has the digest the engine had there, and neither index has an error.
    """
    monkeypatch.setattr(limits, "SNAPSHOT_MARGIN", MARGIN)
    file, taken = tmp_path / "live.jsonl.gz", tmp_path / "then.snapshot"
    with connect(url) as connection, engine_on(connection) as engine, EmbeddedRedis() as elsewhere:
        keeper = Keeper(connection.keeping("live"), KeeperSettings(every=EVERY), lambda *_, **__: None)
        work = Work(engine)
        for _ in range(4):
            work.commits(EVERY)
            keeper.turn()
        work.commits(8)
        here = kept(LiveSource.of(connection, "live"))
        assert here.first > 1, "the keeper trimmed nothing"
        positions = range(here.pointers[0].position, here.head.position + 1)

        sound = examined(url, "--index", "live")
        assert sound.exit_code == 0, sound.graded("error")
        assert sound.graded("warning") <= {"memory"}
        assert statecore("export", file, "--url", url, "--index", "live").exit_code == 0
        assert statecore("import", file, "--url", elsewhere.url).exit_code == 0
        at = positions[len(positions) // 2]
        assert statecore("snapshot", "export", taken, "--url", url, "--index", "live", "--at", at).exit_code == 0
        began = statecore("snapshot", "import", taken, "--tail", file, "--url", elsewhere.url, "--index", "from-file")
        assert began.exit_code == 0, began.output

        for position in positions:
            for source in (
                ("--url", url, "--index", "live"),
                ("--file", file),
                ("--url", elsewhere.url, "--index", "live"),
            ):
                shown = statecore("replay", *source, "--to", position, "--digest")
                assert shown.stdout.strip() == work.digests[position], (source, position)
        for index in ("live", "from-file"):
            assert statecore("verify", "--url", elsewhere.url, "--index", index, "--every", 1).exit_code == 0
            assert examined(elsewhere.url, "--index", index).graded("error") <= {"lease"}, "nobody runs there"


def test_nobody_is_called_ill_while_engine_and_keeper_work(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second look would raise a false alarm: what is read first is old when the rest is read.

    Given an engine that commits and a keeper that publishes and trims all the time, when the doctor and verify look again
    and again, then they find nothing, or say that the log was trimmed while it was read.
    """
    monkeypatch.setattr(limits, "SNAPSHOT_MARGIN", MARGIN)
    stop = threading.Event()
    failures: list[BaseException] = []

    def work_on() -> None:
        try:
            with connect(url) as connection, engine_on(connection) as engine:
                keeper = Keeper(connection.keeping("live"), KeeperSettings(every=EVERY), lambda *_, **__: None)
                work = Work(engine)
                while not stop.is_set():
                    work.commits(EVERY)
                    keeper.turn()
        except BaseException as error:
            failures.append(error)

    with connect(url) as connection, engine_on(connection) as engine:
        Work(engine).commits(EVERY)
    thread = threading.Thread(target=work_on)
    thread.start()
    try:
        looked = 0
        while looked < 12:
            for result in (
                statecore("doctor", "--url", url, "--index", "live"),
                statecore("verify", "--url", url, "--index", "live"),
                statecore("replay", "--url", url, "--index", "live"),
            ):
                meanwhile = result.exit_code == 2 and "was trimmed while it was read" in result.stderr
                assert result.exit_code == 0 or meanwhile, result.output
            looked += 1
    finally:
        stop.set()
        thread.join()
    assert failures == []
