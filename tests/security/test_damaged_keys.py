"""What stands beside the log is damaged: each field of head, fence, seats, snapshot pointer and the keeper's key.

Real servers. Whoever meets the damage gets a clear error, or goes on rightly where it does not matter; nobody ends with a
traceback, the log stays whole, and the doctor says what is wrong and what helps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import attrs
import pytest

from events import connect, limits
from events.errors import StateCoreError
from events.job_ports import Delivery
from events.keys import IndexKeys
from events.lease import Lease
from events.log import LogConnection
from events.ports import Base
from statecore import CacheIndex
from tests.doctor.given import examined
from tests.security.everyday import fill
from tests.servers import RedisServer, binary_of
from tests.workers.fleet import prompt
from workers.keeper import Keeper
from workers.keeper_totals import KeeperSettings

INDEX: Final = "damaged"
KEYS: Final = IndexKeys.of(INDEX)
POOL: Final = "gpu:a"
POINTER: Final = ("position", "commit", "digest", "schema", "blob", "bytes", "at_ms")
FIELDS: Final = {
    KEYS.head: (
        *("position", "commit", "layout", "life", "opening", "lost", "forgot"),
        *("engine:a", f"pool:{POOL}", "pool:cpu:host", "ends:a", "index"),
    ),
    KEYS.fence: ("a", "new"),
    KEYS.seats: (f"0:{POOL}", "no rank", "x:y"),
    KEYS.snapshot: (*POINTER, *(f"previous_{field}" for field in POINTER)),
}
TEXTS: Final = {"commit", "layout", "life", "opening", "lost", "forgot", "digest", "blob", f"0:{POOL}"}
"""Of the fields those where a text may be right; all others are numbers, or no fields of ours."""

VALUES: Final = (b"\xff\xfe", b"abc", b"", b"9" * 30, b"90071992547", b"-5", b"nan", b"1.5", b"\x00" * 200)
EACH_MEETS: Final = 2
"""Of the values: each actor meets that many in each field, and over the fields every one."""

STRINGS: Final = (KEYS.keeper, KEYS.closed, KEYS.lease("a"), KEYS.worker(POOL, 0))
OTHER_TYPES: Final = (*FIELDS, *STRINGS, KEYS.log, KEYS.jobs(POOL), KEYS.acks("a:0"))

NO_WORKER: Final = {"transfer a:0"}
"""What is wrong with the index as it is."""


@attrs.frozen
class Place:
    """An index with two snapshots, an engine of yesterday, a job; as often as wanted as it was at first."""

    url: str
    client: Any
    whole: dict[bytes, bytes]

    def restore(self) -> None:
        self.client.flushdb()
        for key, value in self.whole.items():
            self.client.restore(key, 0, value, replace=True)  # an engine of before may have renewed its lease meanwhile

    def log(self) -> Any:
        return self.client.xrange(KEYS.log)


@pytest.fixture(scope="module", autouse=True)
def hasty() -> Iterator[None]:
    """Short deadlines: a damage that looks like a server that is away is waited for."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"APPEND_DEADLINE_S": 0.4, "READ_DEADLINE_S": 0.4, "BARRIER_S": 0.05}.items():
            patch.setattr(limits, name, value)
        patch.setattr(limits, "SNAPSHOT_MARGIN", 10_000)
        yield


@pytest.fixture(scope="module", params=["embedded", "system"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    binary = binary_of(request.param)
    if binary is None:
        pytest.skip("this machine has no redis-server on its PATH")
    folder = tmp_path_factory.mktemp("redis")
    with RedisServer(folder, "--appendfsync", "no", binary=binary) as server, connect(server.url) as connection:
        engine = engine_of(connection, "a")
        fill(engine)
        keeper = keeper_of(connection)
        for _ in range(2):
            keeper.turn()
            worked(engine)
        engine.close()
        client = server.client()
        client.delete(KEYS.keeper)
        yield Place(server.url, client, {key: client.dump(key) for key in client.keys("*")})


def engine_of(connection: LogConnection, name: str) -> CacheIndex:
    pool: dict[str, Any] = {"gpu_pool": POOL, "gpu_blocks": 4, "cpu_blocks": 8, "block_size": 4, "follow": False}
    return CacheIndex(connection, name=INDEX, engine=name, **pool)


def worked(engine: CacheIndex) -> None:
    engine.match("z", hashes=prompt("z", 1))
    engine.release("z")


def keeper_of(connection: LogConnection) -> Keeper:
    return Keeper(connection.keeping(INDEX), KeeperSettings(every=1), lambda *_, **__: None)


# --- who meets it ---------------------------------------------------------------------------------------------------

Damage = Callable[[], object]


def joins(connection: LogConnection, damage: Damage, name: str = "new") -> None:
    damage()
    worked(engine_of(connection, name))


def joins_again(connection: LogConnection, damage: Damage) -> None:
    joins(connection, damage, "a")


def steps(connection: LogConnection, damage: Damage) -> None:
    engine = engine_of(connection, "a")
    damage()
    worked(engine)


def refreshes(connection: LogConnection, damage: Damage) -> None:
    engine = engine_of(connection, "a")
    damage()
    engine.refresh()


def renews(connection: LogConnection, damage: Damage) -> None:
    """What a lease's thread does again and again."""
    engine = engine_of(connection, "a")
    base = Base(engine.position, engine.inspect(lambda state: state.last_commit_id))
    lease = Lease(connection.backend.transport(INDEX), "a", engine.session, lambda: base, lambda: 0.0)
    damage()
    lease.renew()


def keeps(connection: LogConnection, damage: Damage) -> None:
    keeper = keeper_of(connection)
    damage()
    keeper.turn()
    worked(engine_of(connection, "new"))
    keeper.turn()


def works(connection: LogConnection, damage: Damage) -> None:
    jobs = connection.jobs(INDEX, POOL, 0, 1, "w")
    damage()
    jobs.enter(takeover=True)
    delivery = jobs.take(0.02)
    if isinstance(delivery, Delivery):
        jobs.finish(delivery, ok=True)
    jobs.beat("ready")


def sits(connection: LogConnection, damage: Damage) -> None:
    """Damaged while it copies."""
    jobs = connection.jobs(INDEX, POOL, 0, 1, "w")
    jobs.enter(takeover=True)
    delivery = jobs.take(0.02)
    assert isinstance(delivery, Delivery)
    damage()
    jobs.finish(delivery, ok=True)


ACTORS: Final = (joins, joins_again, steps, refreshes, renews, keeps, works, sits)


def met(place: Place, actor: Callable[[LogConnection, Damage], None], damage: Damage) -> str:
    """What it came to; "" when it went on or was told clearly."""
    place.restore()
    before: list[Any] = []

    def damaged() -> None:
        damage()
        before[:] = place.log() if place.client.type(KEYS.log) == b"stream" else []

    with connect(place.url) as connection:
        try:
            actor(connection, damaged)
        except StateCoreError as error:
            if place.client.type(KEYS.log) == b"stream" and place.log()[: len(before)] != before:
                return "the log is not what it was"
            return "" if len(str(error)) < 500 else f"told in {len(str(error))} characters"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""


CASES: Final = [(key, field) for key, fields in FIELDS.items() for field in fields]


def values_for(number: int) -> list[bytes]:
    """Others for the next number."""
    return [VALUES[(EACH_MEETS * number + each) % len(VALUES)] for each in range(EACH_MEETS)]


def test_undamaged(place: Place) -> None:
    """Otherwise everything below would be refused for another reason.

    Given the index as it is, when each does his work, then it is done.
    """
    for actor in ACTORS:
        place.restore()
        with connect(place.url) as connection:
            actor(connection, lambda: None)

    place.restore()
    assert examined(place.url, "--index", INDEX).graded("error") == NO_WORKER


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{key.rpartition(':')[2]} {field}" for key, field in CASES])
def test_a_damaged_field(place: Place, number: int) -> None:
    """Otherwise one flipped bit would end engines, keepers and workers with tracebacks that name neither key nor value.

    Given a field with a value that none of us wrote, when somebody joins, steps, reads, renews a lease, keeps or works, then
    a clear error and no entry, or none; the doctor says so where it can be no right value.
    """
    key, field = CASES[number]
    found = {}
    for actor_number, actor in enumerate(ACTORS):
        for value in values_for(number + actor_number):
            if said := met(place, actor, lambda: place.client.hset(key, field, value)):  # noqa: B023
                found[f"{actor.__name__} {value!r:.20}"] = said
    assert found == {}

    for value in {b"\xff\xfe", *values_for(number)}:
        place.restore()
        place.client.hset(key, field, value)
        errors = examined(place.url, "--index", INDEX).graded("error") - NO_WORKER
        if not value.isdigit() and field.removeprefix("previous_") not in TEXTS:
            assert errors, value


@pytest.mark.parametrize("key", OTHER_TYPES)
@pytest.mark.parametrize("command", ["SADD", "SET", "DEL"])
def test_a_key_of_another_type_or_gone(place: Place, key: str, command: str) -> None:
    """Otherwise a key that somebody else uses would end everybody with the words of the server.

    Given a key of another type, or none, when somebody does his work, then a clear error and no entry, or none; the doctor
    says so where the type is wrong.
    """

    def damage() -> None:
        place.client.delete(key)
        if command != "DEL":
            place.client.execute_command(command, key, "x")

    found = {actor.__name__: said for actor in ACTORS if (said := met(place, actor, damage))}
    assert found == {}

    place.restore()
    damage()
    errors = examined(place.url, "--index", INDEX).graded("error") - NO_WORKER
    nobody_looks = key == KEYS.worker(POOL, 0)  # the seat is empty
    assert errors or nobody_looks or command == "DEL" or (command == "SET" and key in STRINGS)


# --- the lease's thread ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["position", "commit"])
def test_the_thread_of_a_lease_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    """Otherwise an engine would be declared lost while it serves, and nobody would have heard why.

    Given an engine whose lease met a damaged field, when the field is right again, then its lease is renewed as before.
    """
    monkeypatch.setattr(limits, "LEASE_EVERY_S", 0.01)
    place.restore()
    with connect(place.url) as connection, engine_of(connection, "a"):
        right = place.client.hget(KEYS.head, field)
        place.client.hset(KEYS.head, field, b"\xff")
        time.sleep(0.1)
        place.client.hset(KEYS.head, field, right)
        place.client.hdel(KEYS.head, "lost")
        place.client.delete(KEYS.lease("a"))

        until = time.monotonic() + 5.0
        while not place.client.exists(KEYS.lease("a")):
            assert time.monotonic() < until
            time.sleep(0.01)
