"""Sizes, clearing, hit counts, and how a manager finds its log."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from events import connect
from events.errors import InvalidInput
from events.facts import BLOCK_HASH_BYTES
from statecore import InUse, PrefixCacheManager, RequestExists
from statecore.manager.upkeep import PrefixTreeStatus
from tests.manager.given import ON_DEMAND, Place, cache, config, finish, schedule, task, unchanged

PROMPT = [1, 2, 3, 4]


def sized(blocks: int) -> SimpleNamespace:
    return SimpleNamespace(total_block_num=blocks)


def test_a_pool_grows_at_once_and_shrinks_when_it_can(place: Place) -> None:
    """E-19: otherwise ids above the new size would come back as free blocks of memory that is gone.

    Given a pool of 6 of which a request uses 0 to 2, when it grows, then it has more; when it shrinks to 2, then it says
    who holds what; after the release the cached block above goes, and no id above is ever given.
    """
    manager = place.manager()
    manager.update_cache_config(sized(8))
    assert len(manager.gpu_free_block_list) == 8
    request = task("long", [1, 2, 3, 4, 5, 6])
    schedule(manager, request)
    with unchanged(manager), pytest.raises(InUse, match="'long' of engine 'engine-a' \\(1 block\\)"):
        manager.update_cache_config(sized(2))

    finish(manager, request)
    manager.update_cache_config(sized(2))

    assert manager.num_gpu_blocks == 2
    assert manager.would_match_blocks(task("look", [1, 2, 3, 4, 5, 6]), 2) == 2
    assert manager.allocate_gpu_blocks(2) == [0, 1]


def test_an_engine_that_starts_again_gets_the_size_it_says(place: Place) -> None:
    """Otherwise a restart after profiling would be refused: it begins with the size before profiling.

    Given a pool that was resized to 3, when its engine begins a new life with 6, then it has 6. Another engine that
    names the same shared pool with another size is refused as before.
    """
    manager = place.manager()
    manager.update_cache_config(sized(3))
    manager.close()
    place.opened.remove(manager)

    again = place.manager()

    assert again.num_gpu_blocks == len(again.gpu_free_block_list) == 6


@pytest.mark.parametrize("wait", [True, False])
def test_reset_with_transfers_under_way(place: Place, wait: bool) -> None:
    """E-39: otherwise a late result would bring back what was computed with the old weights.

    Given a swap-out under way, when reset, waiting for it or not, then nothing is cached, and its result changes nothing.
    """
    manager = place.manager(num_cpu_blocks=4)
    cache(manager, PROMPT)
    manager.free_block_ids_async(6)

    with place.workers(manager):
        manager.reset(wait_for_tasks_done=wait)
        while manager.index.inspect(lambda state: len(state.transfers)):
            manager.index.refresh()

    assert (len(manager.gpu_free_block_list), len(manager.cpu_free_block_list)) == (6, 4)
    assert manager.would_match_blocks(task("look", PROMPT), 2) == 0
    assert manager.prefix_tree_status is PrefixTreeStatus.NORMAL


def test_reset_waits_for_other_engines(place: Place) -> None:
    """Otherwise their requests would lose blocks they compute on.

    Given another engine's request, when reset, then refused by name; this engine's own request lives on, and service too.
    """
    manager, other = place.manager(), place.manager("engine-b")
    own, foreign = task("own", [1, 2]), task("foreign", [3, 4])
    schedule(manager, own)
    schedule(other, foreign)

    with pytest.raises(InUse, match="engine 'engine-b' \\(1 request"):
        manager.reset(timeout=0.05)

    assert manager.index.requests() == ("own",)
    assert manager.prefix_tree_status is PrefixTreeStatus.NORMAL
    finish(other, foreign)
    manager.reset()
    assert manager.index.requests() == ()


def test_updating_clears_what_nobody_cleared(place: Place) -> None:
    """E-38: otherwise new weights would be served old keys and values.

    Given a cached prompt, when UPDATING is asked for at once, by number, then it is gone and requests may begin.
    """
    manager = place.manager()
    cache(manager, PROMPT)

    assert manager.clear_prefix_cache(1) is PrefixTreeStatus.NORMAL

    assert manager.index.clears == 1
    assert manager.request_match_blocks(task("new", PROMPT), 2)[0] == []


@pytest.mark.parametrize("connection", ["memory"], indirect=True)
def test_hits_are_counted_from_facts(place: Place) -> None:
    """Otherwise two replicas would show two hit rates.

    Given requests that miss and hit, and one that is refused, when counted, then the refused one is not, and rates are
    right.
    """
    manager = place.manager()
    cache(manager, PROMPT)
    again = task("again", [*PROMPT, 5, 6])
    manager.request_match_blocks(again, 2)
    with pytest.raises(RequestExists):
        manager.request_match_blocks(again, 2)

    metrics = manager.metrics

    assert (metrics.req_count, metrics.hit_req_count, metrics.hit_req_ratio) == (2, 1, 0.5)
    assert (metrics.total_token_num, metrics.matched_token_num, metrics.hit_token_ratio) == (10, 4, 0.4)
    assert (metrics.gpu_hit_token_ratio, metrics.cpu_hit_token_ratio) == (0.4, 0.0)


@pytest.mark.parametrize("connection", ["memory"], indirect=True)
def test_where_a_manager_finds_its_log(place: Place) -> None:
    """Otherwise an engine would begin an index of its own, or end the life of another with the same name.

    Given nothing, then an index "fastdeploy" in memory, and an engine by its number; given variables, then by these;
    given arguments, then by those.
    """
    with PrefixCacheManager(config(), 1, local_data_parallel_id=3, surroundings=place) as plain:
        assert (plain.index.name, plain.index.engine, plain.index.gpu_pool) == (
            "fastdeploy",
            "engine-3",
            "gpu:engine-3",
        )
    place.variables.update(STATECORE_INDEX="there", STATECORE_ENGINE="me", STATECORE_GPU_POOL="ours")
    with PrefixCacheManager(config(), 1, surroundings=Place(connect("memory://"), "", place.variables)) as named:
        assert (named.index.name, named.index.engine, named.index.gpu_pool) == ("there", "me", "ours")
        second = PrefixCacheManager(
            config(), 1, local_data_parallel_id=1, connection=named._connection, surroundings=place, policy=ON_DEMAND
        )
        assert second.index.engine == "me-1"
        second.close()
        third = PrefixCacheManager(
            config(), 1, connection=named._connection, index="here", engine="you", gpu_pool="mine", surroundings=place
        )
        assert (third.index.name, third.index.engine, third.index.gpu_pool) == ("here", "you", "mine")
        third.close()


@pytest.mark.parametrize("connection", ["fakeredis"], indirect=True)
def test_an_engine_on_a_shared_log_has_a_name(place: Place) -> None:
    """Otherwise every engine would be engine-0 and end the others' lives. Given a shared log, when unnamed, then
    refused.
    """
    with pytest.raises(InvalidInput, match="STATECORE_ENGINE"):
        PrefixCacheManager(config(), 1, surroundings=place, connection=place.log)


@pytest.mark.parametrize("connection", ["memory"], indirect=True)
def test_the_usual_shape(place: Place) -> None:
    """Otherwise workers without a backend would be given memory of a wrong size.

    Given 4 heads of 8 over 2 ranks, when no backend knows better, then blocks, heads per rank, tokens, width; halved for
    int4.
    """
    plain = place.manager("a", tensor_parallel_size=2)
    packed = place.manager("b", tensor_parallel_size=2, quantization="int4")

    assert plain.get_kv_cache_shape(6) == ([6, 2, 2, 8], [6, 2, 2, 8])
    assert packed.get_kv_cache_shape(6)[0] == [6, 2, 2, 4]


@pytest.mark.parametrize("connection", ["memory"], indirect=True)
def test_a_manager_keeps_nothing_the_log_does_not_hold(place: Place) -> None:
    """Otherwise a restart or a replica would know less than the process that died.

    Given a manager that served requests, when its attributes are looked at, then there are an index, settings, and doors.
    """
    manager = place.manager()
    before = {name: id(value) for name, value in vars(manager).items()}
    cache(manager, PROMPT)
    schedule(manager, task("live", PROMPT))

    assert {name: id(value) for name, value in vars(manager).items()} == before
    assert len(manager.index.inspect(lambda state: state.nodes[1].hashes)) == 2 * BLOCK_HASH_BYTES
