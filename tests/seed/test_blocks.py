"""The seed's tests about blocks: giving, taking back, evicting, sizes. See /work/shared/seed-parity.md for the numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from statecore import ForeignBlocks, InUse
from tests.manager.given import Place, cache, evict, finish, must_be_sound, schedule, task, unchanged


def test_allocate_and_recycle_gpu_blocks_update_metrics(place: Place) -> None:
    """The same: lowest ids first, and the gauges follow.

    Given 4 free blocks, when 2 are allocated and recycled, then they are [0, 1], half is available meanwhile, and all
    after.
    """
    manager = place.manager(num_gpu_blocks=4)

    allocated = manager.allocate_gpu_blocks(2)

    assert allocated == [0, 1]
    assert manager.available_gpu_resource == 0.5
    manager.recycle_gpu_blocks(allocated)
    assert len(manager.gpu_free_block_list) == 4
    assert place.sink.free_gpu_block_num.values[-1] == 4
    assert place.sink.available_gpu_resource.values[-1] == 1.0


@pytest.mark.parametrize(("flag", "blocks"), [("0", 3), ("1", 5), (None, 5)])
def test_init_uses_prefill_blocks_when_scheduler_disabled(place: Place, flag: str | None, blocks: int) -> None:
    """The same.

    Given 5 blocks in all and 3 for prefill, when the V1 scheduler is off, then the pool has the 3, else the 5.
    """
    if flag is not None:
        place.variables["ENABLE_V1_KVCACHE_SCHEDULER"] = flag

    manager = place.manager(total_block_num=5, prefill_kvcache_block_num=3)

    assert manager.num_gpu_blocks == blocks
    assert len(manager.gpu_free_block_list) == blocks


def test_can_allocate_gpu_blocks_triggers_free_when_prefix_enabled(place: Place) -> None:
    """Better on purpose: it evicts what is missing and no more (E-20); the seed's asks for all of it again.

    Given 1 free block and 2 that hold a prompt nobody uses, when 2 are asked for, then 1 is evicted and the answer is
    yes. With caching off, or told not to, the answer is no, and nothing happens.
    """
    manager = place.manager(num_gpu_blocks=3)
    cache(manager, [1, 2, 3, 4])
    with unchanged(manager):
        assert not manager.can_allocate_gpu_blocks(2, try_free_gpu_blocks=False)

    assert manager.can_allocate_gpu_blocks(2)

    assert len(manager.gpu_free_block_list) == 2
    assert manager.would_match_blocks(task("look", [1, 2, 3, 4]), 2) == 1
    without = place.manager("engine-b", num_gpu_blocks=2, enable_prefix_caching=False)
    without.allocate_gpu_blocks(2)
    with unchanged(without):
        assert not without.can_allocate_gpu_blocks(1)


def test_get_required_block_num_rounds_up(place: Place) -> None:
    """The same. Given 0, 7 and 8 tokens, when in blocks of 4, then 0, 2 and 2 blocks."""
    manager = place.manager()

    assert [manager.get_required_block_num(tokens, 4) for tokens in (0, 7, 8)] == [0, 2, 2]


def test_update_cache_config_adjusts_gpu_pool_based_on_scheduler_flag(place: Place) -> None:
    """Better on purpose: the seed's rebuilds the free list whoever has blocks; ours refuses to take what is in use
    (E-19).

    Given a pool of 6, when a new configuration says 5 or, without the V1 scheduler, 3, then it has so many, all free.
    When one above the new size is held, then it says by whom and nothing changes.
    """
    manager = place.manager(num_gpu_blocks=6)
    update = SimpleNamespace(total_block_num=5, prefill_kvcache_block_num=3)

    manager.update_cache_config(update)

    assert (manager.num_gpu_blocks, len(manager.gpu_free_block_list)) == (5, 5)
    held = manager.allocate_gpu_blocks(4)
    place.variables["ENABLE_V1_KVCACHE_SCHEDULER"] = "0"
    with unchanged(manager), pytest.raises(InUse, match="engine 'engine-a' \\(1 block\\)"):
        manager.update_cache_config(update)
    manager.recycle_gpu_blocks(held)
    manager.update_cache_config(update)
    assert (manager.num_gpu_blocks, manager.gpu_free_block_list) == (3, [0, 1, 2])
    assert manager.cache_config is update


def test_allocate_and_recycle_cpu_blocks(place: Place) -> None:
    """The same. Given 3 host blocks, when 2 are allocated and recycled, then they are [0, 1], one is left, and three
    after.
    """
    manager = place.manager(num_gpu_blocks=2, num_cpu_blocks=3)

    allocated = manager.allocate_cpu_blocks(2)

    assert allocated == [0, 1]
    assert len(manager.cpu_free_block_list) == 1
    manager.recycle_cpu_blocks(allocated)
    assert len(manager.cpu_free_block_list) == 3


def test_release_block_ids_recycles_unfilled_blocks_for_root(place: Place) -> None:
    """The same. Given a request too short to cache anything, when it is released, then its blocks are free again."""
    manager = place.manager()
    request = task("root-release", [5])
    common, unique, _ = manager.request_block_ids(request, 2, dec_token_num=2)
    assert (common, unique) == ([], [0, 1])

    manager.release_block_ids(request)

    assert len(manager.gpu_free_block_list) == 6
    with unchanged(manager), pytest.raises(ForeignBlocks):
        manager.recycle_gpu_blocks(unique)


def test_free_nodes_directly_handles_gpu_leafs(place: Place) -> None:
    """Better on purpose: decode-reserved blocks are free at the release already, not only when the leaf is evicted.

    Given a released request with one cached and one reserved block, when the leaf is evicted, then both are free.
    """
    manager = place.manager(num_gpu_blocks=2)
    request = task("leaf", [7, 8])
    common, unique, _ = manager.request_block_ids(request, 2, dec_token_num=2)
    assert (common, unique) == ([], [0, 1])
    manager.release_block_ids(request)
    assert manager.gpu_free_block_list == [1]

    manager.free_block_ids(2)

    assert manager.gpu_free_block_list == [0, 1]


def test_free_block_ids_async_recycles_gpu_nodes(place: Place) -> None:
    """The same. Given a cached block and no host tier, when its eviction is begun, then it is free at once."""
    manager = place.manager(num_gpu_blocks=1)
    cache(manager, [1, 2])
    assert manager.gpu_free_block_list == []

    room = manager.free_block_ids_async(1)

    assert (room.evicted, room.leaving, room.waits_for) == (1, 0, ())
    assert manager.gpu_free_block_list == [0]


def test_free_block_ids_async_swaps_to_cpu(place: Place) -> None:
    """The same. Given a cached block and a host tier, when its eviction is begun, then a swap-out moves it to the host."""
    manager = place.manager(num_gpu_blocks=2, num_cpu_blocks=2)
    cache(manager, [3, 4])
    taken = manager.allocate_gpu_blocks(1)

    room = manager.free_block_ids_async(1)

    [transfer] = room.waits_for
    [swap] = manager.swaps(transfer)
    assert (swap.gpu_block_ids, swap.cpu_block_ids, swap.direction) == ([0], [0], "SWAP2CPU")
    place.report(manager, transfer)
    assert manager.sync_swap_task(transfer)[0].done
    assert manager.gpu_free_block_list == [0]
    assert manager.would_match_blocks(task("look", [3, 4]), 2) == 1
    manager.recycle_gpu_blocks(taken)


def test_free_cpu_block_ids_eviction(place: Place) -> None:
    """Better on purpose: it says how many it evicted, and that is what was missing; the seed's may evict too many or
    none.

    Given a full host pool of 2 that nobody uses, when 1 shall be free, then 1 is evicted, and then none.
    """
    manager = place.manager(num_gpu_blocks=2, num_cpu_blocks=2)
    cache(manager, [1, 2, 3, 4])
    with place.workers(manager):
        evict(manager, 2)
    assert manager.cpu_free_block_list == []

    assert manager.free_cpu_block_ids(1) == 1

    assert len(manager.cpu_free_block_list) == 1
    assert manager.free_cpu_block_ids(1) == 0
    assert manager.would_match_blocks(task("look", [1, 2, 3, 4]), 2) == 1


def test_free_nodes_directly_recovers_chain(place: Place) -> None:
    """The same. Given a prompt cached in two parts, when all shall be free, then child and parent both go."""
    manager = place.manager(num_gpu_blocks=4)
    cache(manager, [1, 2], "parent")
    cache(manager, [1, 2, 3, 4], "child")
    assert len(manager.gpu_free_block_list) == 2

    manager.free_block_ids(4)

    assert manager.gpu_free_block_list == [0, 1, 2, 3]
    assert manager.would_match_blocks(task("look", [1, 2, 3, 4]), 2) == 0


def test_free_block_ids_async_returns_for_pending_future(place: Place) -> None:
    """The same. Given an eviction in progress, when the same is asked for again, then none is started."""
    manager = place.manager(num_gpu_blocks=2, num_cpu_blocks=2)
    cache(manager, [1, 2, 3, 4])
    [transfer] = manager.free_block_ids_async(1).waits_for

    with unchanged(manager):
        again = manager.free_block_ids_async(1)

    assert (again.leaving, again.waits_for) == (0, ())
    place.report(manager, transfer)


def test_free_block_ids_async_consumes_finished_future(place: Place) -> None:
    """The same. Given an eviction that has ended, when more shall be free, then only the rest is evicted."""
    manager = place.manager(num_gpu_blocks=2, num_cpu_blocks=2)
    cache(manager, [1, 2, 3, 4])
    [first] = manager.free_block_ids_async(1).waits_for
    place.report(manager, first)
    manager.sync_swap_task(first)

    room = manager.free_block_ids_async(2)

    assert (room.evicted, room.leaving) == (0, 1)
    [second] = room.waits_for
    place.report(manager, second)
    manager.sync_swap_task(second)
    assert manager.gpu_free_block_list == [0, 1]


def test_release_block_ids_cleans_request_state(place: Place) -> None:
    """The same. Given a request that ends, when it is released, then nothing of it is left, and its prompt is cached."""
    manager = place.manager(num_gpu_blocks=4)
    request = task("release-req", [1, 2])
    schedule(manager, request)

    finish(manager, request)

    assert manager.index.requests() == ()
    assert manager.can_allocate_gpu_blocks(4)
    with unchanged(manager), pytest.raises(KeyError):
        manager.release_block_ids(request)
    must_be_sound(manager)
