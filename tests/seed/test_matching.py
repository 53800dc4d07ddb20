"""The seed's tests about requests: matching, images, extending a path, hit counts."""

from __future__ import annotations

import numpy as np
import pytest

from statecore.manager.refusals import NotEnoughBlocks
from tests.manager.given import Place, cache, evict, images, schedule, task, unchanged

IMAGE = images((2, 2, "img"))


def test_check_validity_raises_when_memory_is_insufficient(place: Place) -> None:
    """Better on purpose: nothing of the request has happened when it is refused (E-50).

    Given 2 free blocks of 4, when a request needs 3, then the error names it, the need and what is free.
    """
    manager = place.manager(num_gpu_blocks=4)
    held = manager.allocate_gpu_blocks(2)

    with unchanged(manager), pytest.raises(NotEnoughBlocks, match=r"'req-1' needs 3 more blocks .*: 2 free"):
        manager.request_block_ids(task("req-1", [1, 2, 3, 4]), 2, dec_token_num=2)

    manager.recycle_gpu_blocks(held)


def test_prepare_cache_allocates_for_cpu_matches(place: Place) -> None:
    """The same. Given 1 block of a prompt in the GPU pool and 2 in the host pool, when a request needs 4, then 2 blocks
    receive what is on the host, 1 is added, and a swap-in is dispatched.
    """
    manager = place.manager(num_gpu_blocks=6, num_cpu_blocks=4)
    cache(manager, [1, 2, 3, 4, 5, 6])
    request = task("req-prepare", [1, 2, 3, 4, 5, 6, 7, 8])
    with place.workers(manager):
        evict(manager, 2)
        common, unique, info = manager.request_block_ids(request, 2, 0)

    assert common[:1] == info["match_gpu_block_ids"] == [0]
    assert common[1:] == info["gpu_recv_block_ids"]
    assert (len(common), len(unique)) == (3, 1)
    assert manager.index.inspect(lambda state: state.pools[manager.index.gpu_pool].arrived) == 2


def test_request_block_ids_combines_matched_and_unique_blocks(place: Place) -> None:
    """The same. Given 2 blocks of a prompt in the GPU pool and 1 on the host, when a request with reserve is served,
    then its table is what matched, what was received, and new blocks; counts are per tier, and one request hit.
    """
    manager = place.manager(num_gpu_blocks=6, num_cpu_blocks=4)
    cache(manager, [1, 2, 3, 4, 5, 6])
    request = task("req-2", [1, 2, 3, 4, 5, 6])
    with place.workers(manager):
        evict(manager, 1)
        common, unique, info = manager.request_block_ids(request, 2, dec_token_num=2)

    assert manager.index.table("req-2") == [*common, *unique]
    assert (info["gpu_cache_blocks"], info["cpu_cache_blocks"]) == (2, 1)
    assert common[:2] == [0, 1]
    assert len(unique) == 1
    assert manager.metrics.hit_req_count == 1
    assert manager.index.path_blocks("req-2") == 3


def test_request_match_blocks_raises_when_gpu_unavailable(place: Place) -> None:
    """Better on purpose: the seed's raises after references and statuses were changed (E-13); ours leaves no trace.

    Given a prompt on the host and no room in the GPU pool, when it is matched, then it is refused, by request and
    numbers.
    """
    manager = place.manager(num_cpu_blocks=2)
    cache(manager, [1, 2])
    with place.workers(manager):
        evict(manager, 1)
    held = manager.allocate_gpu_blocks(6)

    with unchanged(manager), pytest.raises(NotEnoughBlocks, match=r"'fail' needs 1 more blocks .*: 0 free"):
        manager.request_match_blocks(task("fail", [1, 2]), 2)

    manager.recycle_gpu_blocks(held)


def test_request_match_blocks_with_numpy_prompt_and_metric_reset(place: Place) -> None:
    """The same; that counters begin anew is a fact, so every replica does it at the same request.

    Given 9,999 requests, when one with a numpy prompt misses, then it answers ([], 0, zeros), and all counters are 0.
    """
    manager = place.manager()
    with manager.index.step():
        for _ in range(9_999):
            manager.index.match("many", [7, 7, 7])
            manager.index.release("many")
    assert manager.metrics.req_count == 9_999

    common, matched_tokens, info = manager.request_match_blocks(task("np", np.array([1, 2, 3]), [4]), 2)

    assert (common, matched_tokens) == ([], 0)
    assert info["gpu_cache_blocks"] == info["cpu_cache_blocks"] == 0
    metrics = manager.metrics
    assert (metrics.req_count, metrics.total_token_num, metrics.hit_token_ratio) == (0, 0, 0.0)
    manager.release_block_ids(task("np", []))


def test_update_cache_blocks_refreshes_mappings(place: Place) -> None:
    """The same. Given a request on one cached block, when 4 tokens are computed, then its path has 2 blocks, under both
    names.
    """
    manager = place.manager(num_gpu_blocks=2)
    request = task("update-req", [9, 9])
    schedule(manager, request)
    assert manager.index.path_blocks("update-req") == 1
    request.output_token_ids = [1, 2]
    request.block_tables += manager.allocate_gpu_blocks(1, "update-req")

    manager.update_cache_blocks(request, 2, num_computed_tokens=4)

    assert manager.index.path_blocks("update-req") == 2
    assert manager.index.table("update-req") == request.block_tables
    assert request.cached_block_num == request.num_cached_blocks == 2


def test_is_chunked_mm_input_detects_overlap(place: Place) -> None:
    """The same. Given an image at [2, 5), when 3 tokens match, then it is cut in two; at its ends it is not."""
    manager = place.manager()
    inputs = images((2, 3, "img"))

    assert manager.is_chunked_mm_input(inputs, matched_token_num=3) == (True, 0)
    assert manager.is_chunked_mm_input(inputs, matched_token_num=2) == (False, 0)
    assert manager.is_chunked_mm_input(inputs, matched_token_num=5) == (False, 0)


def test_match_block_moves_cpu_nodes_to_swap(place: Place) -> None:
    """The same. Given a block in the GPU pool and the next on the host, when both match, then GPU [0], host [0] with its
    own numbering, and the second is on its way to the GPU.
    """
    manager = place.manager(num_gpu_blocks=4, num_cpu_blocks=2)
    cache(manager, [1, 2, 3, 4])
    with place.workers(manager):
        evict(manager, 1)

    found = manager.index.match("req", [1, 2, 3, 4])

    [swap] = manager.swaps("req")
    assert found.blocks[:1] == [0]
    assert swap.gpu_block_ids == found.blocks[1:]
    assert (swap.cpu_block_ids, swap.direction) == ([0], "SWAP2GPU")
    place.report(manager, swap.transfer)
    assert manager.sync_swap_task(swap.transfer)[0].done
    manager.index.release("req")


def test_build_path_extends_tree(place: Place) -> None:
    """The same. Given a cached block, when a request goes on after it, then the new tokens are its child, with the given
    block.
    """
    manager = place.manager(num_gpu_blocks=4)
    cache(manager, [1, 2])
    request = task("req", [1, 2, 3, 4])

    schedule(manager, request)

    assert request.block_tables == [0, 1]
    leaf = manager.index.inspect(lambda state: state.engines["engine-a"].requests["req"].leaf)
    assert leaf.parent is not None
    assert (leaf.start, leaf.end) == (1, 2)
    assert leaf.copies[manager.index.gpu_pool].blocks == ((1, 1),)


def test_mm_match_block_handles_multimodal_inputs(place: Place) -> None:
    """The same. Given a text block in the GPU pool and an image block on the host, when the prompt comes with that
    image, then both match, 2 + 2 tokens; with another image, or none, the text alone does.
    """
    manager = place.manager(num_gpu_blocks=4, num_cpu_blocks=2)
    cache(manager, [1, 2, 3, 4], multimodal_inputs=IMAGE)
    with place.workers(manager):
        evict(manager, 1)
        for name, inputs in (("other", images((2, 2, "another"))), ("none", None)):
            assert manager.request_match_blocks(task(name, [1, 2, 3, 4], multimodal_inputs=inputs), 2)[0] == [0]
        request = task("mm-req", [1, 2, 3, 4], multimodal_inputs=IMAGE)

        blocks, tokens, info = manager.request_match_blocks(request, 2)

    assert blocks[0] == 0
    assert tokens == 4
    assert (info["gpu_match_token_num"], info["cpu_match_token_num"]) == (2, 2)


def test_request_match_blocks_updates_metrics(place: Place) -> None:
    """The same. Given one block in each tier, when the prompt is matched, then info and gauges count one block of each."""
    manager = place.manager(num_gpu_blocks=6, num_cpu_blocks=2)
    cache(manager, [1, 2, 3, 4], multimodal_inputs=IMAGE)
    with place.workers(manager):
        evict(manager, 1)
        request = task("match-req", [1, 2, 3, 4], multimodal_inputs=IMAGE)

        blocks, tokens, info = manager.request_match_blocks(request, 2)

    assert blocks[0] == 0
    assert tokens == 4
    assert (info["gpu_cache_blocks"], info["cpu_cache_blocks"]) == (1, 1)
    metrics = manager.metrics
    assert (metrics.req_count, metrics.hit_req_count) == (2, 1)
    assert (metrics.total_gpu_matched_token_num, metrics.total_cpu_matched_token_num) == (2, 2)
    assert place.sink.hit_req_rate.values[-1] == 0.5
    assert place.sink.hit_token_rate.values[-1] == 0.5
    assert place.sink.prefix_cpu_cache_token_num.values[-1] == ("inc", 2)


def test_mm_match_block_reverts_chunked_inputs(place: Place) -> None:
    """The same. Given a match that ends inside an image at [1, 4), when images are not to be cut, then nothing matches;
    when they may be, the first block does.
    """
    inputs = images((1, 3, "img"))
    found = []
    for engine, whole in (("engine-a", True), ("engine-b", False)):
        manager = place.manager(engine, num_gpu_blocks=4, disable_chunked_mm_input=whole)
        cache(manager, [1, 2, 3, 4], multimodal_inputs=inputs)
        evict(manager, 1)
        found.append(manager.request_match_blocks(task("chunk-req", [1, 2, 3, 4], multimodal_inputs=inputs), 2)[0])

    assert found == [[], [0]]


def test_mm_build_path_creates_new_nodes(place: Place) -> None:
    """The same; the last output token was never computed, so it takes one more than in the seed.

    Given a prompt of one block and 3 tokens of output, when the output is cached, then a later prompt finds 2 blocks.
    """
    manager = place.manager(num_gpu_blocks=6)
    request = task("mm-build", [1, 2], multimodal_inputs=images())
    schedule(manager, request)
    request.block_tables += manager.allocate_gpu_blocks(2, "mm-build")
    request.output_token_ids = [3, 4, 5]

    manager.cache_output_blocks(request, 2)

    assert manager.index.path_blocks("mm-build") == request.num_cached_blocks == 2
    assert manager.would_match_blocks(task("look", [1, 2, 3, 4, 5, 6]), 2) == 2


def test_revert_match_blocks_adjusts_lists(place: Place) -> None:
    """The same, in one decision: a match is never longer first and cut back later.

    Given 2 cached blocks that end inside an image at [2, 5), when images are not to be cut, then blocks, tokens and the
    request's path all end before it.
    """
    inputs = images((2, 3, "img"))
    manager = place.manager(disable_chunked_mm_input=True)
    cache(manager, [1, 2, 3, 4, 5, 6], multimodal_inputs=inputs)
    evict(manager, 1)

    blocks, tokens, info = manager.request_match_blocks(task("revert", [1, 2, 3, 4, 5, 6], multimodal_inputs=inputs), 2)

    assert (blocks, tokens) == ([0], 2)
    assert info["gpu_match_token_num"] == 2
    assert manager.index.path_blocks("revert") == 1
    assert manager.metrics.matched_token_num == 2
