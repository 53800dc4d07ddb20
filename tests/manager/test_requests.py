"""The life of a request as FastDeploy's scheduler drives it, and what goes wrong elsewhere (numbers of bugs.md)."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from statecore import ForeignBlocks, NeverFits, PrefixCacheManager, RequestExists, UnknownRequest
from statecore.manager.refusals import NotEnoughBlocks
from tests.manager.given import Place, cache, evict, finish, images, must_be_sound, schedule, task, unchanged


def free(manager: PrefixCacheManager) -> int:
    return len(manager.gpu_free_block_list)


def all_of_it_can_be_had(manager: PrefixCacheManager) -> None:
    """Nothing is leaked: everything is free, or cached and evictable."""
    assert manager.index.requests() == ()
    assert manager.can_allocate_gpu_blocks(manager.num_gpu_blocks)
    assert free(manager) == manager.num_gpu_blocks
    must_be_sound(manager)


def test_a_whole_life(place: Place) -> None:
    """Otherwise a drop-in would drop something.

    Given a prompt of 5 tokens in chunks of 3 and 2, a speculative reserve, and 4 tokens of output, when it is served to
    its end, then after each call the first blocks of its table are the tree's, the rest the caller's, and in the end all
    can be had.
    """
    manager = place.manager(num_gpu_blocks=8)
    request = task("life", [1, 2, 3, 4, 5])
    assert manager.request_match_blocks(request, 2)[:2] == ([], 0)
    for computed in (3, 5):
        lacking = manager.get_required_block_num(computed, 2) + 1 - len(request.block_tables)
        request.block_tables += manager.allocate_gpu_blocks(lacking, "life")
        manager.update_cache_blocks(request, 2, computed)
        assert request.num_cached_blocks == manager.index.path_blocks("life") == computed // 2
        assert manager.index.table("life") == request.block_tables[: computed // 2]
    request.block_tables += manager.allocate_gpu_blocks(2, "life")
    request.output_token_ids = [6, 7, 8, 9]

    manager.cache_output_blocks(request, 2)
    assert request.num_cached_blocks == 4
    finish(manager, request)

    assert manager.would_match_blocks(task("next", [1, 2, 3, 4, 5, 6, 7, 8]), 2) == 4
    all_of_it_can_be_had(manager)


def test_a_match_that_cannot_be_scheduled_is_undone(place: Place) -> None:
    """E-21, E-22: otherwise every try of a waiting request would leak, or write to the log.

    Given a cached prompt and a full pool, when the scheduler looks first, then nothing is written; when it matches and
    gives up, then no pin is left; and a try after that is the same.
    """
    manager = place.manager(num_gpu_blocks=6)
    cache(manager, [1, 2, 3, 4])
    held = manager.allocate_gpu_blocks(4)
    request = task("waits", [1, 2, 3, 4, 5, 6])
    with unchanged(manager):
        assert manager.would_match_blocks(request, 2) == 2
        assert not manager.can_allocate_gpu_blocks(3)

    for _ in range(3):
        blocks, _, _ = manager.request_match_blocks(request, 2)
        assert blocks == [0, 1]
        assert not manager.can_allocate_gpu_blocks(1)
        manager.release_block_ids(request)

    manager.recycle_gpu_blocks(held)
    all_of_it_can_be_had(manager)


def test_a_whole_prompt_that_is_cached(place: Place) -> None:
    """Otherwise the last block's logits could not be computed, or its block would be counted twice.

    Given a prompt of whole blocks that is cached, when it is matched, then all of it is; after its last block was
    computed again, over the shared block, the path is as long.
    """
    manager = place.manager()
    cache(manager, [1, 2, 3, 4])
    request = task("again", [1, 2, 3, 4])
    blocks, tokens, _ = manager.request_match_blocks(request, 2)
    assert (blocks, tokens) == ([0, 1], 4)
    request.block_tables = blocks

    manager.update_cache_blocks(request, 2, num_computed_tokens=4)

    assert request.num_cached_blocks == 2
    finish(manager, request)
    all_of_it_can_be_had(manager)


@pytest.mark.parametrize("computed", [2, 4, 6])
def test_a_preempted_request_resumes_with_what_it_had(place: Place, computed: int) -> None:
    """E-49: otherwise a resumed request would be served from a wrong length.

    Given a request preempted during prefill (2 of 4 tokens computed) or decode, when it is matched again, then over
    prompt and output, and what it had computed in whole blocks is a hit.
    """
    manager = place.manager(num_gpu_blocks=8)
    request = task("pre", [1, 2, 3, 4])
    schedule(manager, request, computed=min(computed, 4))
    if computed > 4:
        request.output_token_ids = [5, 6, 7]
        request.block_tables += manager.allocate_gpu_blocks(2, "pre")
        manager.update_cache_blocks(request, 2, computed)
    finish(manager, request)

    blocks, tokens, _ = manager.request_match_blocks(request, 2)

    assert (len(blocks), tokens) == (computed // 2, computed)
    assert request.num_cached_blocks == request.cached_block_num == computed // 2
    request.block_tables = blocks + manager.allocate_gpu_blocks(4 - len(blocks), "pre")
    manager.update_cache_blocks(request, 2, len(request.prompt_token_ids) + len(request.output_token_ids))
    finish(manager, request)
    all_of_it_can_be_had(manager)


def test_blocks_are_given_back_once(place: Place) -> None:
    """E-01, E-05: otherwise two requests would write to one block.

    Given blocks that were given back, when they are given back again, alone or with others, then refused, and nothing is
    freed.
    """
    manager = place.manager()
    held = manager.allocate_gpu_blocks(3)
    manager.recycle_gpu_blocks(held[0])

    for again in (held[0], [held[0]], held, [held[1], held[1]]):
        with unchanged(manager), pytest.raises((ForeignBlocks, ValueError)):
            manager.recycle_gpu_blocks(again)

    assert free(manager) == 4
    manager.recycle_gpu_blocks(held[1:])
    all_of_it_can_be_had(manager)


def test_one_call_gives_back_blocks_of_both_owners(place: Place) -> None:
    """Otherwise an older caller's request and the caller itself could not be freed in one go.

    Given private blocks of a request and blocks of the caller, when recycled together for it, then both are free;
    without the request's name, or with a block on its path among them, none is.
    """
    manager = place.manager()
    request = task("own", [1, 2])
    _, unique, _ = manager.request_block_ids(request, 2, 4)
    held = manager.allocate_gpu_blocks(1)
    assert (unique, held) == ([0, 1, 2], [3])
    with unchanged(manager), pytest.raises(ForeignBlocks):
        manager.recycle_gpu_blocks([1, 2, 3])
    with unchanged(manager), pytest.raises(ForeignBlocks):
        manager.recycle_gpu_blocks([0, 1, 3], "own")

    manager.recycle_gpu_blocks([2, 3], "own")

    assert manager.gpu_free_block_list == [2, 3, 4, 5]
    manager.release_block_ids_async(request).result()
    all_of_it_can_be_had(manager)


@pytest.mark.parametrize("order", list(itertools.permutations(["a", "b"])))
def test_two_requests_produce_the_same_output(place: Place, order: tuple[str, str]) -> None:
    """E-02: otherwise the second's blocks would be lost, or the first's freed under it.

    Given two requests with the same prompt and output, when they end in either order, then both tables stay as they are
    while they live, the output is cached once, and nothing is leaked.
    """
    manager = place.manager(num_gpu_blocks=8)
    requests: dict[str, SimpleNamespace] = {}
    for name in ("a", "b"):
        requests[name] = task(name, [1, 2])
        schedule(manager, requests[name])
        requests[name].block_tables += manager.allocate_gpu_blocks(2, name)
        requests[name].output_token_ids = [3, 4, 5]
    for request in requests.values():
        manager.cache_output_blocks(request, 2)
        assert request.num_cached_blocks == 2
        assert manager.index.table(request.request_id) == request.block_tables[:2]

    for name in order:
        finish(manager, requests[name])
        must_be_sound(manager)

    assert free(manager) == 6
    assert manager.would_match_blocks(task("next", [1, 2, 3, 4]), 2) == 2
    all_of_it_can_be_had(manager)


def test_two_requests_prefill_the_same_in_chunks(place: Place) -> None:
    """E-03: otherwise evicting the loser's block would make the winner's unreachable.

    Given two requests that share the first chunk and both compute the second, when the second to insert it ends and room
    is made, then the first's is still matched, and goes when it may.
    """
    manager = place.manager(num_gpu_blocks=6)
    prompt = [1, 2, 3, 4]
    winner, loser = task("winner", prompt), task("loser", prompt)
    schedule(manager, winner, computed=2)
    schedule(manager, loser, computed=2)
    assert winner.block_tables[:1] == loser.block_tables[:1]
    manager.update_cache_blocks(winner, 2, 4)
    manager.update_cache_blocks(loser, 2, 4)
    assert loser.num_cached_blocks == 2
    assert winner.block_tables[1] != loser.block_tables[1]

    finish(manager, loser)
    assert not manager.can_allocate_gpu_blocks(5)

    assert manager.would_match_blocks(task("look", prompt), 2) == 2
    assert manager.index.table("winner") == winner.block_tables
    finish(manager, winner)
    all_of_it_can_be_had(manager)


def test_free_list_gauge_and_pool_agree(place: Place) -> None:
    """E-05: otherwise a counter would promise blocks that are not there.

    Given a life with every kind of call, when counted anew after each, then free list, gauge and share say the same.
    """
    manager = place.manager(num_gpu_blocks=8)
    request = task("count", [1, 2, 3])
    calls: list[Callable[[], object]] = [
        lambda: manager.request_match_blocks(request, 2),
        lambda: request.block_tables.extend(manager.allocate_gpu_blocks(3, "count")),
        lambda: manager.update_cache_blocks(request, 2, 3),
        lambda: manager.release_block_ids(request),
        lambda: manager.recycle_gpu_blocks(request.block_tables[request.num_cached_blocks :], "count"),
        lambda: manager.can_allocate_gpu_blocks(8),
    ]
    for call in calls:
        call()
        expected = [block for block in range(8) if block in manager.gpu_free_block_list]
        assert manager.gpu_free_block_list == expected
        assert place.sink.free_gpu_block_num.values[-1] == len(expected)
        assert manager.available_gpu_resource == len(expected) / 8
        must_be_sound(manager)
    assert free(manager) == 8


def test_a_late_update_of_a_released_request_is_refused(place: Place) -> None:
    """E-06: otherwise blocks that belong to somebody else by now would be matched as this prompt.

    Given a request released between allocation and update, when the update comes late, then refused; the blocks are
    still the caller's, and of no prefix.
    """
    manager = place.manager()
    request = task("late", [1, 2, 3, 4])
    manager.request_match_blocks(request, 2)
    request.block_tables = manager.allocate_gpu_blocks(2, "late")
    manager.release_block_ids(request)

    with unchanged(manager), pytest.raises(UnknownRequest):
        manager.update_cache_blocks(request, 2, 4)
    with unchanged(manager), pytest.raises(UnknownRequest):
        manager.cache_output_blocks(request, 2)

    manager.recycle_gpu_blocks(request.block_tables)
    assert manager.would_match_blocks(task("look", [1, 2, 3, 4]), 2) == 0
    assert free(manager) == 6


def test_what_was_looked_up_may_be_gone(place: Place) -> None:
    """E-08: otherwise a request would count on blocks that were evicted between the look and the match.

    Given a look that found 2 blocks, when one is evicted before the match, then the match has one block and two tokens.
    """
    manager = place.manager()
    cache(manager, [1, 2, 3, 4])
    request = task("late", [1, 2, 3, 4])
    assert manager.would_match_blocks(request, 2) == 2
    evict(manager, 1)

    blocks, tokens, info = manager.request_match_blocks(request, 2)

    assert (blocks, tokens, info["gpu_match_token_num"]) == ([0], 2, 2)
    assert manager.index.table("late") == [0]


def test_no_more_is_evicted_than_is_missing(place: Place) -> None:
    """E-20: otherwise every allocation would empty the cache. Given 2 free and 4 cached, when 3 are needed, then 1 is
    evicted.
    """
    manager = place.manager()
    cache(manager, [1, 2, 3, 4, 5, 6, 7, 8])

    assert manager.can_allocate_gpu_blocks(3)

    assert free(manager) == 3
    assert manager.would_match_blocks(task("look", [1, 2, 3, 4, 5, 6, 7, 8]), 2) == 3


def test_nothing_is_evicted_in_vain(place: Place) -> None:
    """E-20: otherwise a request that cannot be served would cost others their cache.

    Given 2 held, 2 free and 2 cached blocks, when 5 are asked for, then the answer is no and the cache is as it was.
    """
    manager = place.manager()
    cache(manager, [1, 2, 3, 4])
    manager.allocate_gpu_blocks(2)

    with unchanged(manager):
        assert not manager.can_allocate_gpu_blocks(5)


def test_who_waits_for_room_holds_nothing(place: Place) -> None:
    """E-23: otherwise whoever frees memory would wait for the one who waits for memory.

    Given a thread that waits for a swap-out no worker carries out, when another releases, recycles and allocates, then
    it can at once, and the first goes on when the worker reports.
    """
    manager = place.manager(num_gpu_blocks=4, num_cpu_blocks=4)
    cache(manager, [1, 2, 3, 4])
    other = task("other", [7, 8])
    schedule(manager, other)
    held = manager.allocate_gpu_blocks(1)
    answers: list[bool] = []
    waiter = threading.Thread(target=lambda: answers.append(manager.can_allocate_gpu_blocks(2)))
    waiter.start()
    while not (swaps := manager.index.inspect(lambda state: list(state.transfers))):
        pass

    manager.recycle_gpu_blocks(held)
    assert manager.allocate_gpu_blocks(1) == held
    manager.recycle_gpu_blocks(held)
    finish(manager, other)

    assert waiter.is_alive()
    for transfer in swaps:
        place.report(manager, transfer)
    waiter.join(20.0)
    assert answers == [True]


def test_a_request_that_never_fits_is_refused_at_the_door(place: Place) -> None:
    """E-24: otherwise it would be tried for ever, and every request after it would wait.

    Given a pool of 6 blocks, when a request needs 7, even with nothing else served, then NeverFits says both numbers.
    """
    manager = place.manager()
    large = task("large", list(range(13)))

    calls: list[Callable[[], object]] = [
        lambda: manager.check_admission(large, 2),
        lambda: manager.request_match_blocks(large, 2),
        lambda: manager.request_block_ids(large, 2, 0),
        lambda: manager.check_admission(task("long", [1]), 2, dec_token_num=12),
    ]
    for call in calls:
        with unchanged(manager), pytest.raises(NeverFits, match=r"7 blocks can never fit .* of 6"):
            call()
    assert not manager.can_allocate_gpu_blocks(7)
    manager.check_admission(task("fits", list(range(12))), 2)


def test_a_partial_block_is_never_matched(place: Place) -> None:
    """E-37: otherwise a tail that was computed with other tokens after it would be served.

    Given a prompt whose last block is not full, when longer and shorter prompts come, then only whole equal blocks are
    hits.
    """
    manager = place.manager(num_gpu_blocks=8)
    cache(manager, [1, 2, 3])
    assert manager.would_match_blocks(task("look", [1, 2, 3]), 2) == 1

    cache(manager, [1, 2, 3, 4], "full")

    assert manager.would_match_blocks(task("look", [1, 2, 3, 4]), 2) == 2
    assert manager.would_match_blocks(task("look", [1, 2, 3, 5]), 2) == 1
    assert manager.would_match_blocks(task("look", [1, 2, 3]), 2) == 1


@pytest.mark.parametrize("whole", [True, False])
def test_images_are_cut_only_where_they_may_be(place: Place, whole: bool) -> None:
    """E-48: otherwise a model would get half an image, or one image's keys for another's.

    Given cached prompts with images [1, 3) and [3, 6) of which 2 blocks are left, when they match, then with images
    whole the cut goes before both, for the boundary before the second lies inside the first; otherwise both blocks
    match.
    """
    manager = place.manager(disable_chunked_mm_input=whole)
    inputs = images((1, 2, "first"), (3, 3, "second"))
    cache(manager, [1, 2, 3, 4, 5, 6], multimodal_inputs=inputs)
    evict(manager, 1)
    request = task("mm", [1, 2, 3, 4, 5, 6], multimodal_inputs=inputs)

    blocks, tokens, _ = manager.request_match_blocks(request, 2)

    assert (len(blocks), tokens) == ((0, 0) if whole else (2, 4))


def test_all_blocks_or_none(place: Place) -> None:
    """E-50: otherwise a request that gets half of its blocks would keep them from those that could run.

    Given a cached prefix and too little room for the rest, when all blocks are asked for at once, then none are given,
    and the prefix is as evictable as before.
    """
    manager = place.manager()
    cache(manager, [1, 2, 3, 4])
    manager.allocate_gpu_blocks(3)

    with unchanged(manager), pytest.raises(NotEnoughBlocks, match=r"'greedy' needs 2 more blocks .*: 1 free"):
        manager.request_block_ids(task("greedy", [1, 2, 3, 4, 5, 6]), 2, 2)

    assert manager.can_allocate_gpu_blocks(3)


def test_a_request_begins_once(place: Place) -> None:
    """Otherwise two requests of one name would free each other's blocks. Given one that lives, when begun again, then
    refused.
    """
    manager = place.manager()
    request = task("twice", [1, 2])
    manager.request_match_blocks(request, 2)

    with unchanged(manager), pytest.raises(RequestExists):
        manager.request_block_ids(request, 2, 0)


def test_blocks_of_a_chunk_are_there_for_others_when_spoken_of_again(place: Place) -> None:
    """Otherwise another engine would read blocks before their bytes are written.

    Given a chunk that was scheduled, when the next allocation for the request is made, then the chunk has been computed,
    and an engine of the same pool may match it; not before.
    """
    first, second = place.manager(gpu_pool="gpu"), place.manager("engine-b", gpu_pool="gpu")
    request = task("chunks", [1, 2, 3, 4])
    schedule(first, request, computed=2)
    second.index.refresh()
    assert second.would_match_blocks(task("look", [1, 2]), 2) == 0

    request.block_tables += first.allocate_gpu_blocks(1, "chunks")

    second.index.refresh()
    assert second.would_match_blocks(task("look", [1, 2]), 2) == 1


def test_two_engines_of_a_pool_compute_the_same(place: Place) -> None:
    """Otherwise an engine would own blocks that stand beside the other's unfinished ones, and free them twice.

    Given A is computing a block, when B schedules the same, then B's path stops before it, its block stays B's to
    recycle, and once A's is there B's next chunk goes on.
    """
    first, second = place.manager(gpu_pool="gpu"), place.manager("engine-b", gpu_pool="gpu")
    mine, yours = task("mine", [1, 2, 3, 4]), task("yours", [1, 2, 3, 4])
    schedule(first, mine)
    second.index.refresh()

    schedule(second, yours)

    assert yours.num_cached_blocks == 0
    second.release_block_ids(yours)
    second.recycle_gpu_blocks(yours.block_tables, "yours")
    finish(first, mine)
    second.index.refresh()
    must_be_sound(second)
    assert free(second) == 4


@pytest.mark.parametrize("role", ["decode", "mixed"])
def test_without_caching_nothing_is_in_the_tree(place: Place, role: str) -> None:
    """Otherwise a decode engine would publish blocks another engine is still writing.

    Given the decode role, or caching off, when a request is served, then it matches nothing, its path stays empty, all
    blocks are the caller's; and on the decode role its output cannot be cached.
    """
    manager = place.manager(role=role, enable_prefix_caching=role == "decode")
    for name in ("one", "two"):
        request = task(name, [1, 2, 3, 4])
        schedule(manager, request)
        assert request.num_cached_blocks == 0
        manager.release_block_ids(request)
        manager.recycle_gpu_blocks(request.block_tables, name)
    assert free(manager) == 6
    if role == "decode":
        with unchanged(manager), pytest.raises(ValueError, match="decode role"):
            manager.cache_output_blocks(task("one", [1, 2]), 2)


def test_extend_tables_are_the_callers(place: Place) -> None:
    """Otherwise a second table beside the first would be freed with the request.

    Given a request with blocks for an extended table, when it is released, then these are still held until recycled.
    """
    manager = place.manager()
    request = task("extends", [1, 2, 3])
    schedule(manager, request)
    extended = manager.allocate_gpu_blocks(2, "extends")

    finish(manager, request)

    assert free(manager) == 3
    manager.recycle_gpu_blocks(extended, "extends")
    all_of_it_can_be_had(manager)
