"""`statecore migrate`: an index of layout 1 becomes one of layout 2, whatever happens on the way."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import pytest
import redis

from events import connect, limits
from events.errors import CorruptState, InvalidInput
from events.facts import SCHEMA
from events.keys import LAYOUT, IndexKeys
from migrations import layouts
from ops.migrating import Place, carry_out
from statecore import CacheIndex
from tests.cli.scenario import answer, complaint, rewrite, statecore, with_meta

ROOT: Final = Path(__file__).resolve().parents[2]
SCHEMA_2: Final = ROOT / "tests" / "histories" / "schema-2" / "log.jsonl"
MOVES: Final = [
    "close the index: from here on neither release writes to it",
    "give every engine a lease",
    "open it for releases that speak layout 2",
]

Keys = dict[bytes, Any]


@pytest.fixture
def old(client: redis.Redis, server: str, name: str) -> Iterator[IndexKeys]:
    """An index as the last release of layout 1 leaves it: a log of schema 2, no lease, no life of the server."""
    keys = IndexKeys.of(name)
    assert statecore("import", SCHEMA_2, "--url", server, "--index", name).exit_code == 0
    client.hset(keys.head, "layout", "1")
    client.hdel(keys.head, "life", "opening")
    client.delete(keys.closed, *(keys.lease(engine) for engine in ("a", "b", "twin")))
    yield keys
    client.delete(*client.keys(f"kv:{{{name}}}:*"))


def stored(client: redis.Redis, keys: IndexKeys) -> Keys:
    """Everything the index holds."""
    found: Keys = {}
    for key in sorted(cast("list[bytes]", client.keys(f"kv:{{{keys.name}}}:*"))):
        kind = cast("bytes", client.type(key))
        read: Any = {b"hash": client.hgetall, b"string": client.get, b"stream": client.xrange}[kind]
        found[key] = read(key)
    return found


def migrate(server: str, keys: IndexKeys, *options: str) -> Any:
    return statecore("migrate", "--url", server, "--index", keys.name, *options)


def digest(server: str, keys: IndexKeys) -> str:
    return statecore("replay", "--url", server, "--index", keys.name, "--digest").stdout


def test_a_dry_run_says_what_would_be_done_and_does_nothing(server: str, client: redis.Redis, old: IndexKeys) -> None:
    """An operator cannot know what an upgrade would do to an index before it is done."""
    before = stored(client, old)

    told = migrate(server, old, "--dry-run").stdout.splitlines()

    assert told == [
        f"index {old.name!r}: key layout 1, this release speaks 2",
        f"log: positions 1 (schema 2) to 79 (schema 2): 79 commits of schema 2; this release reads 1 to {SCHEMA}",
        *(f"would: {what}" for what in MOVES),
        "nothing was changed",
    ]
    plain = answer(migrate(server, old, "--dry-run", "--json"))
    assert plain == {
        "index": old.name, "layout": "1", "layout_of_release": LAYOUT, "oldest": {"position": 1, "schema": 2},
        "newest": {"position": 79, "schema": 2}, "entries": {"2": 79}, "schema_of_release": SCHEMA, "snapshots": {},
        "snapshot_schema_of_release": 2, "steps": MOVES, "done": 0, "dry_run": True,
    }  # fmt: skip
    assert stored(client, old) == before


def test_an_index_is_brought_to_todays_layout_and_goes_on(
    server: str, client: redis.Redis, old: IndexKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an upgrade nobody can use the index any more, or it is another."""
    monkeypatch.setattr(limits, "BARRIER_S", 0.1)
    entries = client.xrange(old.log)

    result = migrate(server, old)

    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[2:] == [
        *(f"done: {what}" for what in MOVES),
        f"index {old.name!r} is of layout 2 now",
    ]
    assert client.xrange(old.log) == entries
    assert client.hget(old.head, "layout") == b"2"
    leases = {engine: client.get(old.lease(engine)) for engine in ("a", "b", "twin")}
    assert leases == {engine: client.hget(old.fence, engine) for engine in leases}
    assert all(0 < client.pttl(old.lease(engine)) <= limits.LEASE_TTL_S * 1000 for engine in leases)
    assert digest(server, old) == statecore("replay", "--file", SCHEMA_2, "--digest").stdout
    with (
        connect(server) as connection,
        CacheIndex(
            connection, name=old.name, engine="a", gpu_pool="ga", block_size=4, cpu_pool="host", follow=False
        ) as a,
    ):
        assert a.session == 2
        a.resume("the upgrade is done")
        a.match("one", [1, 2, 3, 4])
    assert statecore("verify", "--url", server, "--index", old.name, "--every", 1).exit_code == 0
    assert answer(migrate(server, old, "--json"))["entries"] == {"2": 79, "3": 4}


def test_a_second_run_has_nothing_to_do(server: str, client: redis.Redis, old: IndexKeys) -> None:
    """Running it twice harms what the first run made."""
    migrate(server, old)
    for engine in ("a", "b", "twin"):
        client.persist(old.lease(engine))
    before = stored(client, old)

    assert migrate(server, old).stdout.splitlines()[-1] == "nothing to do: the index is of today's layout"
    assert stored(client, old) == before


MORTAL: Final = """
import os, signal, sys
from events import connect
from ops.migrating import Place, carry_out, survey
url, index, until = sys.argv[1:]
with connect(url) as connection:
    place = Place.of(connection, index)
    moves = survey(place).moves
    for done, move in enumerate([None, *carry_out(place, moves[: int(until)])]):
        if done == int(until):
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("until", "again"), [(0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0)])
def test_killed_anywhere_and_run_again_it_ends_the_same(
    server: str, client: redis.Redis, old: IndexKeys, until: int, again: int
) -> None:
    """An upgrade that is cut off leaves an index that neither release can use.

    Given a run killed after so many moves, and a second one killed too, when it runs a last time, then all is as after one.
    """
    before = stored(client, old)
    for moves in (until, again):
        killed = subprocess.run([sys.executable, "-c", MORTAL, server, old.name, str(moves)], cwd=ROOT, check=False)
        assert killed.returncode == -signal.SIGKILL
        if client.hget(old.head, "layout") != b"2":
            with connect(server) as connection, pytest.raises(InvalidInput, match="layout '1"):
                connection.log(old.name, follow=False).head()

    assert migrate(server, old).exit_code == 0

    expected = dict(before)
    expected[old.head.encode()] = expected[old.head.encode()] | {b"layout": b"2"}
    expected |= {old.lease(engine).encode(): client.hget(old.fence, engine) for engine in ("a", "b", "twin")}
    assert stored(client, old) == expected


def test_a_late_migrator_does_not_close_what_another_opened(server: str, client: redis.Redis, old: IndexKeys) -> None:
    """Two operators upgrade at once, and the slower one takes the index from the engines that have joined since."""
    whole = layouts.remaining("1")
    assert whole is not None
    with connect(server) as connection:
        late = carry_out(Place.of(connection, old.name), whole)
        assert migrate(server, old).exit_code == 0
        client.set(old.lease("a"), "9", px=60_000)
        for _ in late:
            assert client.hget(old.head, "layout") == b"2"
    assert client.get(old.lease("a")) == b"9"


def test_an_index_that_went_elsewhere_is_not_touched(server: str, client: redis.Redis, old: IndexKeys) -> None:
    """A restored backup, or a newer release, comes between two moves, and the run goes on as if nothing were."""
    whole = layouts.remaining("1")
    assert whole is not None
    with connect(server) as connection:
        moves = carry_out(Place.of(connection, old.name), whole)
        next(moves)
        client.hset(old.head, "layout", "7")
        before = stored(client, old)
        with pytest.raises(CorruptState, match="has key layout '7' after a move from '1>2'"):
            next(moves)
    assert stored(client, old) == before


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
@pytest.mark.parametrize("layout", ["3", "2>3", "strange"])
def test_a_newer_layout_is_refused_and_nothing_changes(
    server: str, client: redis.Redis, old: IndexKeys, layout: str, options: tuple[str, ...]
) -> None:
    """An old release pulls an index down that a new one has brought further (bugs E-30)."""
    client.hset(old.head, "layout", layout)
    before = stored(client, old)

    said = complaint(migrate(server, old, *options), 2)

    assert said == (
        f"the index has key layout {layout!r}, this release knows up to '2': upgrade statecore; nothing was changed"
    )
    assert stored(client, old) == before


def test_entries_of_a_newer_release_are_refused_and_nothing_changes(
    server: str, client: redis.Redis, old: IndexKeys
) -> None:
    """The keys are changed under a log that this release cannot even read."""
    rewrite(client, old, 40, with_meta(schema=str(SCHEMA + 1)))
    before = stored(client, old)

    said = complaint(migrate(server, old), 2)

    assert said == (
        f"nothing was changed: this release reads up to schema {SCHEMA}, upgrade statecore; a log entry of schema "
        f"{SCHEMA + 1} stands at position 40"
    )
    assert stored(client, old) == before


def test_what_is_not_migrated_yet_names_the_command(server: str, client: redis.Redis, old: IndexKeys) -> None:
    """Somebody who upgraded does not learn what is left to do; somebody who did not, what to upgrade."""
    for layout in ("1", "1>2"):
        client.hset(old.head, "layout", layout)
        said = complaint(statecore("verify", "--url", server, "--index", old.name), 2)
        assert said == (
            f"the index has key layout {layout!r}, this release speaks '2': stop what still runs of the old release, "
            "then run: statecore migrate"
        )
    client.hset(old.head, "layout", "3")
    said = complaint(statecore("verify", "--url", server, "--index", old.name), 2)
    assert said == "the index has key layout '3', this release speaks '2': upgrade statecore"


def test_there_must_be_an_index(server: str, name: str) -> None:
    """A mistyped name is said to be up to date."""
    assert "there is no index" in complaint(statecore("migrate", "--url", server, "--index", name), 2)
    assert "there is no index" in complaint(statecore("migrate", "--url", "memory://", "--index", name), 2)
