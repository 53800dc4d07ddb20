"""An engine over a bad network or a server that goes away: what `CacheIndex` promises when the log does not answer."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from events import CorruptState, OutcomeUnknown, Unavailable, connect, limits
from events.embedded import EmbeddedRedis
from statecore import CacheIndex
from statecore.invariants import leaked_blocks, violations
from statecore.results import Allocation, Match
from tests.contract.test_read import until
from tests.servers import Fault, Proxy, RedisServer, Rule, commits, healthy

pytestmark = pytest.mark.usefixtures("impatient")

TOKENS = list(range(40))


@pytest.fixture
def engine(proxy: Proxy, index_name: str) -> Iterator[CacheIndex]:
    """Engine a over the failing network, pool p of 16 blocks of 4 tokens."""
    with connect(proxy.url) as connection:
        yield CacheIndex(
            connection, name=index_name, engine="a", gpu_pool="p", gpu_blocks=16, block_size=4, follow=False
        )


@pytest.fixture
def neighbour(embedded_redis: EmbeddedRedis, index_name: str, engine: CacheIndex) -> Iterator[CacheIndex]:
    """Engine b on the same pool with a good connection."""
    assert engine.session == 1
    with connect(embedded_redis.url) as connection:
        yield CacheIndex(connection, name=index_name, engine="b", gpu_pool="p", block_size=4, follow=False)


def sound(*indexes: CacheIndex) -> None:
    """All replicas read to the end, are equal, break no invariant and leak nothing."""
    assert len({index.refresh() for index in indexes}) == 1
    assert len({index.digest() for index in indexes}) == 1
    for index in indexes:
        assert index.inspect(violations) == []
        assert index.inspect(leaked_blocks) == 0


def begin(index: CacheIndex, request: str, answers: list[Match | Allocation] | None = None) -> None:
    """Three blocks for a new request, two of them on its path, as one step; the answers as they are given."""
    told = [] if answers is None else answers
    with index.step():
        told.append(index.match(request, TOKENS))
        told.append(index.allocate(request, 3))
        index.extend(request, blocks=2)


@pytest.mark.parametrize("landed", [True, False])
def test_resolve_says_that_the_step_stands(
    engine: CacheIndex, neighbour: CacheIndex, proxy: Proxy, landed: bool
) -> None:
    """Otherwise an engine would have to drop all its requests after a hiccup.

    Given a step whose outcome is unknown (it landed, or it did not), when the network heals and nobody was faster, then
    resolve is True, and everything answered inside the step holds.
    """
    engine.match("r0", TOKENS)
    engine.refresh()
    first = [Fault.LOSE_REPLY if landed else Fault.LOSE_REQUEST]
    proxy.rule = lambda command: (first or [Fault.HANG]).pop() if command.startswith("EVAL") else Fault.HANG

    answers: list[Match | Allocation] = []
    with pytest.raises(OutcomeUnknown):
        begin(engine, "r1", answers)

    with pytest.raises(Unavailable, match="resolve"):
        engine.allocate("r0", 1)
    proxy.rule = healthy
    assert engine.resolve() is True
    assert engine.table("r1") == [block for answer in answers for block in answer.blocks]
    assert engine.path_blocks("r1") == 2
    engine.extend("r1", blocks=3, ready=True)
    engine.release("r1")
    sound(engine, neighbour)


def test_resolve_says_that_the_step_never_happened(engine: CacheIndex, neighbour: CacheIndex, proxy: Proxy) -> None:
    """Otherwise an engine would use blocks that a neighbour was given.

    Given a step whose request was lost, and a neighbour that took from the pool, when resolved, then False, no trace.
    """
    engine.refresh()
    proxy.rule = lambda command: Fault.LOSE_REQUEST if command.startswith("EVAL") else Fault.HANG
    with pytest.raises(OutcomeUnknown):
        begin(engine, "r1")
    neighbour.match("r2", TOKENS)
    theirs = neighbour.allocate("r2", 3)
    proxy.rule = healthy

    assert engine.resolve() is False

    assert engine.requests() == ()
    engine.match("r1", TOKENS)
    assert not set(engine.allocate("r1", 3).blocks) & set(theirs.blocks)
    sound(engine, neighbour)


def test_resolve_without_doubt(engine: CacheIndex) -> None:
    """Otherwise callers would need to remember whether there is something to resolve.

    Given nothing in doubt, when resolved, then True.
    """
    assert engine.resolve() is True


def test_refresh_while_in_doubt(engine: CacheIndex, neighbour: CacheIndex, proxy: Proxy) -> None:
    """Otherwise a monitoring call between the doubt and its end would corrupt the replica.

    Given a landed step in doubt and a neighbour's entry behind it, when refreshed and then resolved, then the step counts
    once, or refresh was refused.
    """
    engine.refresh()
    proxy.rule = lambda command: Fault.LOSE_REPLY if command.startswith("EVAL") else Fault.HANG
    with pytest.raises(OutcomeUnknown):
        begin(engine, "r1")
    neighbour.match("r2", TOKENS)
    proxy.rule = healthy

    with contextlib.suppress(Unavailable):
        engine.refresh()

    assert engine.resolve() is True
    assert len(engine.table("r1")) == 3
    sound(engine, neighbour)


def test_rejoin_instead_of_resolve(engine: CacheIndex, neighbour: CacheIndex, proxy: Proxy) -> None:
    """Otherwise an engine that cannot wait could not be sure that its step will never take effect.

    Given steps in doubt whose copies are still in the network, when the engine joins anew and the copies arrive, then
    nothing of them is in the index.
    """
    engine.refresh()
    proxy.rule = commits(Fault.LATE)
    with pytest.raises(OutcomeUnknown):
        begin(engine, "r1")
    proxy.rule = healthy

    engine.rejoin()
    assert proxy.deliver() >= 1

    assert engine.session == 2
    assert engine.requests() == ()
    sound(engine, neighbour)
    engine.match("r1", TOKENS)
    sound(engine, neighbour)


def test_the_join_itself_in_doubt(proxy: Proxy, index_name: str, embedded_redis: EmbeddedRedis) -> None:
    """Otherwise a process that starts during a hiccup would leave two lives of one engine.

    Given a join whose reply was lost until the deadline, when the process tries again, then one life is left, the others
    are fenced.
    """
    with connect(proxy.url) as connection, connect(embedded_redis.url) as direct:
        proxy.rule = _lose_replies_then_everything()
        with pytest.raises(OutcomeUnknown):
            CacheIndex(connection, name=index_name, engine="a", gpu_blocks=16)
        proxy.rule = healthy

        again = CacheIndex(connection, name=index_name, engine="a", gpu_blocks=16)
        other = CacheIndex(direct, name=index_name, engine="b", gpu_pool="gpu:a")

        again.match("r1", TOKENS)
        assert again.session == 2
        sound(again, other)


def _lose_replies_then_everything() -> Rule:
    """The first append lands and its reply is lost; nothing gets through after it."""
    sent: list[str] = []

    def rule(command: str) -> Fault:
        if sent:
            return Fault.HANG
        if command.startswith("EVAL"):
            sent.append(command)
            return Fault.LOSE_REPLY
        return Fault.NONE

    return rule


# --- the server goes away -------------------------------------------------------------------------------------------


@pytest.fixture
def alone(server: RedisServer, index_name: str) -> Iterator[CacheIndex]:
    """One engine on a server of the test's own, following it."""
    with connect(server.url) as connection:
        yield CacheIndex(connection, name=index_name, engine="a", gpu_blocks=16, block_size=4)


def test_the_server_is_killed_and_comes_back(server: RedisServer, alone: CacheIndex, index_name: str) -> None:
    """Otherwise a restart of Redis would restart every engine.

    Given a server with its append-only file, when it is killed and started again, then the engine goes on at the same
    position without a word, its follower too, and everything acknowledged is there.
    """
    alone.match("r1", TOKENS)
    before = alone.position
    server.kill()
    server.start()

    alone.allocate("r1", 2)

    assert alone.position == before + 1
    with connect(server.url) as connection:
        other = CacheIndex(connection, name=index_name, engine="b", gpu_pool="gpu:a", block_size=4)
        joined = other.position
        assert _follower_position(alone, joined) == joined
        sound(alone, other)


def _follower_position(index: CacheIndex, position: int) -> int:
    """Where the replica is once its follower has brought that position; steps that change nothing apply what arrived."""

    def there() -> bool:
        with index.step():
            return index.position >= position

    until(there)
    return index.position


def test_a_step_waits_for_a_restart(server: RedisServer, alone: CacheIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every engine would fail a step when Redis restarts.

    Given a server that is down, when a step begins and the server comes back within the deadline, then the step stands.
    """
    monkeypatch.setattr(limits, "APPEND_DEADLINE_S", 10.0)
    alone.match("r1", TOKENS)
    server.kill()
    back = threading.Timer(0.3, server.start)
    back.start()

    given = alone.allocate("r1", 2)

    back.join()
    assert alone.table("r1") == given.blocks
    sound(alone)


def test_nobody_there_any_more(server: RedisServer, alone: CacheIndex) -> None:
    """Otherwise an engine would be left in doubt about a step that was never sent.

    Given the server is gone, when a step is tried, then Unavailable within bounded time, nothing changed, nothing in
    doubt; when it is back, the same step succeeds.
    """
    alone.match("r1", TOKENS)
    digest = alone.digest()
    server.kill()
    with contextlib.suppress(Unavailable):  # the first try may meet the broken connection of the last one
        alone.allocate("r1", 1)
    with contextlib.suppress(Unavailable):
        alone.resolve()
    began = time.monotonic()

    with pytest.raises(Unavailable) as gone:
        alone.allocate("r1", 2)

    assert time.monotonic() - began < 3.0
    assert not isinstance(gone.value, OutcomeUnknown)
    assert alone.digest() == digest
    server.start()
    alone.resolve()
    alone.allocate("r1", 2)
    sound(alone)


def test_the_server_stands_still(server: RedisServer, alone: CacheIndex) -> None:
    """Otherwise a swapping or suspended Redis would hang every engine.

    Given a suspended server, when a step is tried, then OutcomeUnknown within bounded time, while questions are answered
    at once; when the server wakes up, resolve says that the step stands, once.
    """
    alone.match("r1", TOKENS)
    server.suspend()
    began = time.monotonic()

    with pytest.raises(OutcomeUnknown), alone.step():
        alone.allocate("r1", 2)

    assert time.monotonic() - began < 5.0
    assert alone.table("r1") == []
    server.resume()
    assert alone.resolve() is True
    assert len(alone.table("r1")) == 2
    sound(alone)


def test_questions_do_not_wait(server: RedisServer, alone: CacheIndex) -> None:
    """Otherwise a scheduler's cheap look would stall behind a slow Redis.

    Given another thread's commit waits for a suspended server, when questions are asked, then they are answered meanwhile.
    """
    alone.match("r1", TOKENS)
    server.suspend()
    outcomes: list[Exception] = []

    def commit() -> None:
        try:
            alone.allocate("r1", 2)
        except OutcomeUnknown as unknown:
            outcomes.append(unknown)

    thread = threading.Thread(target=commit)
    thread.start()
    until(lambda: len(alone.table("r1")) == 2)  # decided, and on its way to the log

    assert alone.would_match(TOKENS) == 0
    assert alone.can_allocate(1)
    assert alone.requests() == ("r1",)
    assert thread.is_alive(), "it was answered while the commit waited"
    thread.join()
    assert len(outcomes) == 1
    server.resume()
    alone.resolve()
    sound(alone)


def test_a_short_pause_is_not_noticed(server: RedisServer, alone: CacheIndex) -> None:
    """Otherwise a hiccup of Redis would fail steps.

    Given the server pauses its clients for less than a timeout, when a step is tried, then it stands.
    """
    server.client().execute_command("CLIENT", "PAUSE", "150", "ALL")

    alone.match("r1", TOKENS)

    sound(alone)


def test_the_log_was_rolled_back(server: RedisServer, alone: CacheIndex, index_name: str) -> None:
    """Otherwise an engine would go on with blocks that the surviving history gave to somebody else.

    Given Redis lost everything and somebody began anew, when the engine steps, then CorruptState now and from now on;
    after rejoin it works on the new history.
    """
    alone.match("r1", TOKENS)
    alone.allocate("r1", 2)
    server.client().flushall()
    with connect(server.url) as connection:
        other = CacheIndex(connection, name=index_name, engine="b", gpu_pool="gpu:a", gpu_blocks=16, block_size=4)
        for _ in range(2):
            with pytest.raises(CorruptState):
                alone.allocate("r1", 1)

        alone.rejoin()

        alone.match("r1", TOKENS)
        sound(alone, other)


def test_closing_without_a_server(server: RedisServer, index_name: str) -> None:
    """Otherwise an engine could not shut down while Redis is down.

    Given the server is gone, when the index is closed, then Unavailable (or nothing) within bounded time, no thread left.
    """
    threads = threading.active_count()
    connection = connect(server.url)
    index = CacheIndex(connection, name=index_name, engine="a", gpu_blocks=16)
    server.kill()
    began = time.monotonic()

    with contextlib.suppress(Unavailable):
        index.close()
    connection.close()

    assert time.monotonic() - began < 5.0
    until(lambda: threading.active_count() <= threads)
