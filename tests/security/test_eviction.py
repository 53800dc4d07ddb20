"""A server that evicts keys (E-42): refused where we can see it, and noticed where somebody turns it on later."""

from __future__ import annotations

from contextlib import suppress

import pytest
from redis.exceptions import OutOfMemoryError

from events import connect
from events.errors import CorruptState, InvalidInput
from events.keys import IndexKeys
from statecore import CacheIndex
from tests.servers import RedisServer

POLICIES = (
    *("allkeys-lru", "allkeys-lfu", "allkeys-random"),
    *("volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"),
)


@pytest.mark.parametrize("policy", POLICIES)
def test_any_policy_that_evicts_is_refused(server: RedisServer, policy: str) -> None:
    """E-42: a log and its head are keys of their own; one of them evicted is a history that contradicts itself.

    Given a server that may evict, also only keys with a time to live (leases, acknowledgements), when connecting, then
    InvalidInput names the policy and the remedy; with noeviction it works.
    """
    server.client().config_set("maxmemory-policy", policy)
    with pytest.raises(InvalidInput, match=f"{policy}.*noeviction"):
        connect(server.url)

    server.client().config_set("maxmemory-policy", "noeviction")
    connect(server.url).close()


@pytest.mark.parametrize("victim", ["log", "head"])
def test_eviction_that_was_turned_on_later_is_noticed(server: RedisServer, index_name: str, victim: str) -> None:
    """E-42: an engine that goes on after one of the two keys has vanished would give away blocks that are in use.

    Given an engine at work, when the server is made to evict and the log, or its head, has gone, then the engine's next
    commit is refused as a broken history, nothing is begun anew in its place, and new connections are refused.
    """
    keys = IndexKeys.of(index_name)
    gone = keys.log if victim == "log" else keys.head
    admin = server.client()
    with connect(server.url) as connection:
        index = CacheIndex(connection, name=index_name, engine="a", gpu_blocks=64, block_size=4)
        index.match("r", list(range(32)))
        admin.config_set("maxmemory-policy", "allkeys-random")
        while admin.exists(gone):
            kept = {name: admin.dump(name) for name in (keys.log, keys.head, keys.fence) if name != gone}
            filled_until_something_goes(server)
            for name, dump in kept.items():
                if not admin.exists(name):
                    admin.restore(name, 0, dump)

        with pytest.raises(CorruptState):
            index.allocate("r", 8)
        assert not admin.exists(gone), "nothing was begun anew"
    with pytest.raises(InvalidInput, match="noeviction"):
        connect(server.url)


def filled_until_something_goes(server: RedisServer) -> None:
    """Little memory, many keys, then room again."""
    admin = server.client()
    before = admin.info("stats")["evicted_keys"]
    admin.config_set("maxmemory", admin.info("memory")["used_memory"])
    for number in range(2000):
        if admin.info("stats")["evicted_keys"] > before:
            break
        with suppress(OutOfMemoryError):  # for a moment there is nothing left to evict; it goes on
            admin.set(f"filler:{number}", b"x" * 4000)
    admin.config_set("maxmemory", 0)
