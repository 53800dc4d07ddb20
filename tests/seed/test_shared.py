"""The seed's situations on one index that two engines share: what the project is for."""

from __future__ import annotations

import threading

from tests.manager.given import Place, cache, evict, finish, schedule, task, unchanged


def test_two_engines_of_one_pool_get_different_blocks(place: Place) -> None:
    """Otherwise two engines would write into each other's blocks.

    Given engines A and B of one GPU pool, when each allocates 2, then A has [0, 1] and B has [2, 3]; B cannot give A's
    back.
    """
    first, second = place.manager(gpu_pool="gpu"), place.manager("engine-b", gpu_pool="gpu")

    assert first.allocate_gpu_blocks(2) == [0, 1]
    assert second.allocate_gpu_blocks(2) == [2, 3]

    assert second.index.refresh() >= first.index.position
    assert second.gpu_free_block_list == [4, 5]


def test_a_prefix_one_engine_computed_is_a_hit_for_the_other(place: Place) -> None:
    """Otherwise every engine would compute every prompt.

    Given A computes a prefix, when B matches it before it is there, then it is no hit; afterwards it is, with A's blocks.
    """
    first, second = place.manager(gpu_pool="gpu"), place.manager("engine-b", gpu_pool="gpu")
    request = task("a", [1, 2, 3, 4])
    schedule(first, request)
    table = list(request.block_tables)
    second.index.refresh()
    early = task("early", [1, 2, 3, 4])
    assert second.request_match_blocks(early, 2)[0] == []
    second.release_block_ids(early)

    finish(first, request)
    second.index.refresh()

    assert second.request_match_blocks(task("b", [1, 2, 3, 4, 5]), 2)[0] == table


def test_a_prefix_one_engine_computed_reaches_the_other_through_the_host(place: Place) -> None:
    """Otherwise engines with GPUs of their own would share nothing.

    Given A's prompt was swapped out, when B matches it, then B fetches it into its own pool.
    """
    first = place.manager(num_gpu_blocks=2, num_cpu_blocks=4)
    second = place.manager("engine-b", num_gpu_blocks=4, num_cpu_blocks=4)
    cache(first, [1, 2, 3, 4])
    with place.workers(first, second):
        evict(first, 2)
        second.index.refresh()

        blocks, tokens, info = second.request_match_blocks(task("b", [1, 2, 3, 4]), 2)

    assert (blocks, tokens, info["cpu_cache_blocks"]) == ([0, 1], 4, 2)


def test_a_swap_result_of_one_engine_wakes_the_other(place: Place) -> None:
    """Otherwise an engine would time out for room that is there.

    Given A begins a swap-out in the pool it shares with B, when B needs the room and waits, then A's result wakes it.
    """
    first = place.manager(gpu_pool="gpu", num_gpu_blocks=1, num_cpu_blocks=2)
    second = place.manager("engine-b", gpu_pool="gpu", num_gpu_blocks=1, num_cpu_blocks=2)
    cache(first, [1, 2])
    [transfer] = first.free_block_ids_async(1).waits_for
    second.index.refresh()
    heard: list[bool] = []
    waiter = threading.Thread(target=lambda: heard.append(second.can_allocate_gpu_blocks(1)))
    waiter.start()

    place.report(first, transfer)
    waiter.join(20.0)

    assert heard == [True]


def test_two_replicas_have_the_same_metrics(place: Place) -> None:
    """Otherwise a dashboard would show different hit rates depending on whom it asks.

    Given requests of both engines, when both have read all, then each computes the same numbers for either, and digests
    agree.
    """
    first, second = place.manager(), place.manager("engine-b")
    cache(first, [1, 2, 3, 4])
    cache(first, [1, 2, 5, 6], "hit")
    cache(second, [1, 2])

    assert first.index.refresh() == second.index.refresh()
    with unchanged(first):
        assert first.index.digest() == second.index.digest()
    assert (first.metrics.req_count, first.metrics.hit_req_count, second.metrics.req_count) == (2, 1, 1)
