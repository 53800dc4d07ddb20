"""Managers with a host pool: swaps that fail, come late or meet; nothing is leaked and nobody waits for ever."""

from __future__ import annotations

import time
from typing import Any

import pytest

from statecore import ForeignBlocks, PoolExhausted
from statecore.manager.refusals import NotEnoughBlocks
from tests.jobs.given import seated
from tests.manager.given import Place, cache, evict, finish, must_be_sound, schedule, task, unchanged

PROMPT = [1, 2, 3, 4]


def test_a_failed_swap_in_makes_the_match_shorter(place: Place) -> None:
    """E-12, E-13: otherwise a request would compute after blocks that hold nothing.

    Given one block in the GPU pool and one on the host, when the worker fails to fetch it, then the answer is the first
    alone, the counts are of what is there, and the destination is free.
    """
    manager = place.manager(num_cpu_blocks=4)
    cache(manager, PROMPT)
    with place.workers(manager):
        evict(manager, 1)
    request = task("unlucky", PROMPT)

    with place.workers(manager, fails="out of sorts"):
        blocks, tokens, info = manager.request_match_blocks(request, 2)

    assert (blocks, tokens) == ([0], 2)
    assert (info["gpu_cache_blocks"], info["cpu_cache_blocks"]) == (1, 0)
    assert manager.metrics.matched_token_num == 2
    assert len(manager.gpu_free_block_list) == 5
    request.block_tables = blocks + manager.allocate_gpu_blocks(1, "unlucky")
    manager.update_cache_blocks(request, 2, 4)
    finish(manager, request)
    must_be_sound(manager)


def test_a_failed_swap_in_of_a_request_with_all_blocks(place: Place) -> None:
    """E-50: otherwise a request would have fewer blocks than it asked for.

    Given a prompt on the host, when the worker fails to fetch it, then all its blocks are new ones.
    """
    manager = place.manager(num_cpu_blocks=4)
    cache(manager, PROMPT)
    with place.workers(manager):
        evict(manager, 2)
    request = task("unlucky", PROMPT)

    with place.workers(manager, fails="out of sorts"):
        common, unique, info = manager.request_block_ids(request, 2, 2)

    assert (common, info["cpu_cache_blocks"], len(unique)) == ([], 0, 3)
    assert manager.index.path_blocks("unlucky") == 2
    manager.release_block_ids(request)
    assert len(manager.gpu_free_block_list) == 4


@pytest.mark.parametrize("older", [False, True])
def test_a_swap_in_that_does_not_come_is_given_up(place: Place, older: bool) -> None:
    """E-12: otherwise a scheduler would hang where a worker has died.

    Given a prompt on the host and no worker, when it is matched, then the call ends in time with nothing of it; the late
    result changes nothing but that the blocks are free again.
    """
    manager = place.manager(num_cpu_blocks=4, swap_timeout_s=0.3)
    cache(manager, PROMPT)
    with place.workers(manager):
        evict(manager, 2)
    request = task("patient", PROMPT)
    began = time.monotonic()

    if older:
        common, unique, _ = manager.request_block_ids(request, 2, 0)
        assert (common, len(unique)) == ([], 2)
    else:
        assert manager.request_match_blocks(request, 2)[:2] == ([], 0)

    assert time.monotonic() - began < 10.0
    must_be_sound(manager)
    assert len(manager.gpu_free_block_list) == (2 if older else 4)
    with place.workers(manager):
        while manager.index.inspect(lambda state: len(state.transfers)):
            manager.index.refresh()
    manager.release_block_ids(request)
    assert len(manager.gpu_free_block_list) == (4 if older else 6)


def test_two_engines_of_a_pool_wait_for_one_fetch(place: Place) -> None:
    """E-12: otherwise an engine that joined another's fetch would hang with it, or take its blocks away.

    Given A fetches a prompt into the pool it shares with B, when B matches it and no worker comes, then B goes on
    without, and A's fetch is still under way.
    """
    first = place.manager(gpu_pool="gpu", num_cpu_blocks=4)
    second = place.manager("engine-b", gpu_pool="gpu", num_cpu_blocks=4, swap_timeout_s=0.3)
    cache(first, PROMPT)
    with place.workers(first):
        evict(first, 2)
    found = first.index.match("a", PROMPT)
    second.index.refresh()

    assert second.request_match_blocks(task("b", PROMPT), 2)[:2] == ([], 0)

    assert first.index.poll(found.waits_for[0]).under_way
    with place.workers(first):
        assert first.sync_swap_task("a")[0].done
    assert first.index.table("a") == found.blocks
    second.index.refresh()
    must_be_sound(second)


def test_room_is_made_for_what_is_fetched(place: Place) -> None:
    """Otherwise a prompt on the host would be computed again because the pool is full of what nobody uses.

    Given a prompt on the host and a pool full of another that nobody uses, when it is matched, then the other leaves.
    """
    manager = place.manager(num_gpu_blocks=2, num_cpu_blocks=8)
    cache(manager, PROMPT)
    with place.workers(manager):
        evict(manager, 2)
        cache(manager, [5, 6, 7, 8], "other")

        blocks, tokens, info = manager.request_match_blocks(task("back", PROMPT), 2)

        assert (len(blocks), tokens, info["cpu_cache_blocks"]) == (2, 4, 2)
        manager.release_block_ids(task("back", []))
    must_be_sound(manager)


def test_a_fetch_without_room_is_refused_before_anything(place: Place) -> None:
    """E-13: otherwise pins and statuses would be left behind.

    Given one block in the GPU pool, one on the host, and the rest held, when the prompt is matched, then refused without
    a trace, though the first block is evictable: it is part of what is wanted.
    """
    manager = place.manager(num_cpu_blocks=4)
    cache(manager, PROMPT)
    with place.workers(manager):
        evict(manager, 1)
    manager.allocate_gpu_blocks(5)

    with unchanged(manager), pytest.raises(NotEnoughBlocks, match="'full' needs 1 more blocks"):
        manager.request_match_blocks(task("full", PROMPT), 2)


def test_a_match_from_the_host_that_cannot_be_scheduled(place: Place) -> None:
    """E-21: otherwise what was fetched for a request that cannot run would be lost.

    Given a prompt fetched from the host, when its request cannot be scheduled and is released, then its blocks are
    cached in both pools, pinned in none.
    """
    manager = place.manager(num_cpu_blocks=4)
    cache(manager, PROMPT)
    with place.workers(manager):
        evict(manager, 2)
        request = task("gives up", PROMPT)
        manager.request_match_blocks(request, 2)

    manager.release_block_ids(request)

    assert manager.free_cpu_block_ids(4) == 2
    assert manager.would_match_blocks(request, 2) == 2
    with place.workers(manager):
        assert manager.can_allocate_gpu_blocks(6)
    must_be_sound(manager)


def test_one_copy_goes_and_another_stays(place: Place) -> None:
    """E-35: otherwise evicting one physical copy would make a prefix unfindable that lives elsewhere.

    Given copies in two GPU pools and the host, when one after the other is evicted, then the prefix is found while one
    is left within reach.
    """
    first = place.manager(num_gpu_blocks=2, num_cpu_blocks=4)
    second = place.manager("engine-b", num_gpu_blocks=2, num_cpu_blocks=4)
    look = task("look", PROMPT)
    cache(first, PROMPT)
    with place.workers(first, second):
        evict(first, 2)
        second.index.refresh()
        second.request_match_blocks(task("b", PROMPT), 2)
        second.release_block_ids(task("b", []))
    first.index.refresh()
    assert first.would_match_blocks(look, 2) == second.would_match_blocks(look, 2) == 2

    assert first.free_cpu_block_ids(4) == 2

    second.index.refresh()
    assert (first.would_match_blocks(look, 2), second.would_match_blocks(look, 2)) == (0, 2)
    must_be_sound(second)


@pytest.mark.parametrize("sent_first", [True, False])
def test_two_transfers_read_one_block(place: Place, sent_first: bool) -> None:
    """E-07: otherwise the end of one transfer would free a block the other still reads.

    Given a block that is leaving for the host, when a request uses it again and is sent to another engine, and the two
    end in either order, then the block stays while it is used, and every block is accounted for.
    """
    manager = place.manager(role="prefill", num_gpu_blocks=2, num_cpu_blocks=2)
    receiver = place.manager("engine-b", "decode", num_gpu_blocks=2)
    cache(manager, PROMPT)
    [out] = manager.free_block_ids_async(2).waits_for
    request = task("again", PROMPT)
    request.block_tables, _, _ = manager.request_match_blocks(request, 2)
    handover = manager.send_cache(request, "engine-b", receiver.allocate_gpu_blocks(2))
    seat = seated(place.log, place.index, name="worker", pool=manager.index.gpu_pool)
    jobs = [seat.take(5.0), seat.take(5.0)]

    for job in jobs[::-1] if sent_first else jobs:
        seat.finish(job, True)  # type: ignore[arg-type]
        manager.index.refresh()
        must_be_sound(manager)

    assert manager.index.poll(out).done
    assert manager.index.poll(handover.transfer).done
    assert manager.index.table("again") == request.block_tables
    finish(manager, request)
    must_be_sound(manager)


def test_host_blocks_are_given_back_once(place: Place) -> None:
    """E-01 in the other tier: otherwise two transfers would write to one host block."""
    manager = place.manager(num_cpu_blocks=2)
    held = manager.allocate_cpu_blocks(2)
    manager.recycle_cpu_blocks(held[0])

    with unchanged(manager), pytest.raises(ForeignBlocks):
        manager.recycle_cpu_blocks(held)

    assert manager.cpu_free_block_list == [0]


def test_room_that_does_not_come_in_time(place: Place) -> None:
    """E-12: otherwise an allocation would hang where a worker has died.

    Given a pool whose blocks are leaving and no worker, when blocks are asked for, then the answers are no, in time.
    """
    manager = place.manager(num_gpu_blocks=2, num_cpu_blocks=2, swap_timeout_s=0.2)
    cache(manager, PROMPT)
    began = time.monotonic()

    assert not manager.can_allocate_gpu_blocks(1)
    with pytest.raises(PoolExhausted, match="cannot give 1"):
        manager.allocate_gpu_blocks(1)
    with pytest.raises(TimeoutError):
        manager.sync_swap_task(manager.index.inspect(lambda state: next(iter(state.transfers))))

    assert time.monotonic() - began < 10.0
    with place.workers(manager):
        while manager.index.inspect(lambda state: len(state.transfers)):
            manager.index.refresh()
    assert manager.allocate_gpu_blocks(1) != []


def test_an_allocation_waits_for_what_leaves(place: Place) -> None:
    """Otherwise a caller that does not ask first would be refused though there is room. Given a full cache, when
    allocated, then what nobody uses leaves, and the blocks are given.
    """
    manager = place.manager(num_gpu_blocks=2, num_cpu_blocks=2)
    cache(manager, PROMPT)

    with place.workers(manager):
        assert manager.allocate_gpu_blocks(2) == [0, 1]

        assert manager.would_match_blocks(task("look", PROMPT), 2) == 2


def test_a_request_with_all_blocks_waits_for_what_leaves(place: Place) -> None:
    """The same for older callers."""
    manager = place.manager(num_gpu_blocks=2, num_cpu_blocks=2)
    cache(manager, PROMPT)

    with place.workers(manager):
        common, unique, _ = manager.request_block_ids(task("new", [7, 8, 9]), 2, 0)

    assert (common, unique) == ([], [0, 1])


def test_issuing_a_swap_checks_what_it_moves(place: Place) -> None:
    """Otherwise an engine and its log would disagree about which blocks are being written.

    Given a swap under way, when it is issued with another block, node or direction, then refused with both; a direction
    may be an enum member.
    """
    manager = place.manager(num_gpu_blocks=2, num_cpu_blocks=2)
    cache(manager, PROMPT)
    [transfer] = manager.free_block_ids_async(2).waits_for
    [swap] = manager.swaps(transfer)
    right: list[Any] = [swap.node_ids, swap.gpu_block_ids, swap.cpu_block_ids, "SWAP2CPU"]
    for at, other in ((0, [99]), (1, [1, 0]), (2, [0]), (3, "SWAP2GPU")):
        wrong = [*right[:at], other, *right[at + 1 :]]
        with unchanged(manager), pytest.raises(ValueError, match="the swap under way is"):
            manager.issue_swap_task(transfer, wrong[0], wrong[1], wrong[2], wrong[3], False)

    class Status:
        name = "SWAP2CPU"

    manager.issue_swap_task(transfer, right[0], right[1], right[2], Status(), False)
    place.report(manager, transfer)


def test_a_request_that_is_alive_has_no_swaps(place: Place) -> None:
    """Otherwise a caller could not wait for a request without knowing whether anything of it is swapped."""
    manager = place.manager()
    schedule(manager, task("here", PROMPT))

    assert manager.sync_swap_task("here") == ()
