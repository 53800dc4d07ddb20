"""What a caller gets wrong is refused with an error that says so, and nothing changes: not the state, not the log."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from events.errors import InvalidInput
from statecore import (
    ForeignBlocks,
    NeverFits,
    NotReceivable,
    PathNotCovered,
    PoolExhausted,
    PrefixCacheManager,
    RequestExists,
    UnknownRequest,
    UnknownTransfer,
)
from tests.manager.given import Place, cache, config, images, schedule, task, unchanged

Call = Callable[[Any], object]
"""Of a manager; what it passes has the wrong type on purpose."""


class Tensor:
    """What paddle calls its arrays, as far as a type check sees."""

    __module__ = "paddle"

    def __len__(self) -> int:
        return 2


def live(**more: object) -> SimpleNamespace:
    """The request that is being served, as its caller knows it."""
    fields = {"prompt_token_ids": [1, 2, 3], "output_token_ids": [], "block_tables": [0, 1], "num_cached_blocks": 1}
    return SimpleNamespace(request_id="live", **{**fields, **more})


@pytest.fixture
def manager(place: Place) -> PrefixCacheManager:
    """A pool of 6: the live request has 0 and 1, the caller holds 1 and 2, block 3 is cached; request "gone" has ended."""
    made = place.manager(num_cpu_blocks=4)
    schedule(made, task("live", [1, 2, 3]))
    made.allocate_gpu_blocks(1)
    cache(made, [5, 6], "gone")
    return made


GPU_COUNTS: dict[str, Callable[[Any], Call]] = {
    "allocate": lambda count: lambda manager: manager.allocate_gpu_blocks(count),
    "can_allocate": lambda count: lambda manager: manager.can_allocate_gpu_blocks(count),
    "cpu": lambda count: lambda manager: manager.allocate_cpu_blocks(count),
    "free": lambda count: lambda manager: manager.free_block_ids(count),
    "free_async": lambda count: lambda manager: manager.free_block_ids_async(count),
    "free_cpu": lambda count: lambda manager: manager.free_cpu_block_ids(count),
    "update": lambda count: lambda manager: manager.update_cache_blocks(live(), 2, count),
    "reserve": lambda count: lambda manager: manager.request_block_ids(task("new", [1]), 2, count),
    "admission": lambda count: lambda manager: manager.check_admission(task("new", [1]), 2, count),
    "required": lambda count: lambda manager: manager.get_required_block_num(count, 2),
    "chunked": lambda count: lambda manager: manager.is_chunked_mm_input(images((1, 2, "i")), count),
    "shape": lambda count: lambda manager: manager.get_kv_cache_shape(count),
}


@pytest.mark.parametrize("count", [-1, True, 1.5, "2", None, 1 << 70], ids=repr)
@pytest.mark.parametrize("name", GPU_COUNTS)
@pytest.mark.parametrize("connection", ["memory"], indirect=True)
def test_a_count_is_a_whole_number(manager: PrefixCacheManager, name: str, count: object) -> None:
    """E-18: otherwise a negative or odd size would give, or take, who knows what.

    Given every call that takes a count, when it is negative, a truth value, a fraction, text, nothing or huge, then it
    is refused.
    """
    if (name, count) == ("can_allocate", -1):
        assert manager.can_allocate_gpu_blocks(-1)
        return
    with unchanged(manager), pytest.raises(InvalidInput, match=r"integer|must be from"):
        GPU_COUNTS[name](count)(manager)


@pytest.mark.parametrize("connection", ["memory"], indirect=True)
def test_nothing_is_asked_for(manager: PrefixCacheManager) -> None:
    """E-18: otherwise asking for no blocks would take all of them.

    Given free blocks, when none are asked for, then none are given, and nothing is written.
    """
    with unchanged(manager):
        assert manager.allocate_gpu_blocks(0) == []
        assert manager.allocate_gpu_blocks(0, "live") == []
        assert manager.allocate_cpu_blocks(0) == []
        assert manager.can_allocate_gpu_blocks(0)
        assert manager.get_required_block_num(0, 2) == 0
        manager.recycle_gpu_blocks([])
        manager.recycle_gpu_blocks([], "live")
        manager.recycle_cpu_blocks([])
        manager.free_block_ids(0)
        assert manager.free_cpu_block_ids(0) == 0


WITH_TASK: dict[str, Callable[[object, object], Call]] = {
    "match": lambda request, size: lambda manager: manager.request_match_blocks(request, size),
    "request": lambda request, size: lambda manager: manager.request_block_ids(request, size, 0),
    "would": lambda request, size: lambda manager: manager.would_match_blocks(request, size),
    "admission": lambda request, size: lambda manager: manager.check_admission(request, size),
    "update": lambda request, size: lambda manager: manager.update_cache_blocks(request, size, 2),
    "output": lambda request, size: lambda manager: manager.cache_output_blocks(request, size),
}


@pytest.mark.parametrize("size", [4, 0, -2, "2", None, True], ids=repr)
@pytest.mark.parametrize("name", WITH_TASK)
@pytest.mark.parametrize("connection", ["memory"], indirect=True)
def test_block_size_is_that_of_the_index(manager: PrefixCacheManager, name: str, size: object) -> None:
    """Otherwise block ids would stand for other tokens than the caller thinks.

    Given an index with blocks of 2 tokens, when a call says another size, or none, then it is refused.
    """
    with unchanged(manager), pytest.raises(InvalidInput, match=r"blocks of 2 tokens|block_size"):
        WITH_TASK[name](live(), size)(manager)


@pytest.mark.parametrize("what", ["prompt_token_ids", "output_token_ids"])
@pytest.mark.parametrize("name", WITH_TASK)
@pytest.mark.parametrize("connection", ["memory"], indirect=True)
def test_a_tensor_is_no_list(manager: PrefixCacheManager, name: str, what: str) -> None:
    """Otherwise tokens would be read from a device one by one, or hashed by address.

    Given tokens as a tensor where a list is expected, when any call reads them, then a TypeError says which and what.
    """
    with unchanged(manager), pytest.raises(TypeError, match=rf"{what} is a list of integers .*, not paddle\.Tensor"):
        WITH_TASK[name](live(**{what: Tensor()}), 2)(manager)


@pytest.mark.parametrize(
    "tokens",
    [[1, -1], [1, 1 << 32], [1, None], [1, "2"], [1, 2.5], np.array([1.0, 2.0]), np.array([[1, 2]]), "12", {1, 2}, 7],
    ids=repr,
)
@pytest.mark.parametrize("name", ["match", "request", "would"])
@pytest.mark.parametrize("connection", ["memory"], indirect=True)
def test_tokens_are_whole_numbers(manager: PrefixCacheManager, name: str, tokens: object) -> None:
    """Otherwise prompts would share a key by accident. Given tokens that are none, when they are matched, then refused."""
    with unchanged(manager), pytest.raises(InvalidInput):
        WITH_TASK[name](task("new", tokens), 2)(manager)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (SimpleNamespace(prompt_token_ids=[1]), "request_id"),
        (SimpleNamespace(request_id="new"), "prompt_token_ids"),
        (SimpleNamespace(request_id="new", prompt_token_ids=None), "prompt_token_ids"),
        (task("", [1]), "request id"),
        (task("x" * 300, [1]), "request id"),
        (SimpleNamespace(request_id=7, prompt_token_ids=[1]), "request id"),
        (None, "request_id"),
        (task("new", [1, 2, 3], multimodal_inputs=[]), "multimodal_inputs"),
        (task("new", [1, 2, 3], multimodal_inputs={"mm_positions": 3}), "mm_positions"),
        (task("new", [1, 2, 3], multimodal_inputs={**images((0, 2, "a")), "mm_hashes": []}), "1 and 0"),
        (task("new", [1, 2, 3], multimodal_inputs=images((0, 0, "a"))), "length"),
        (task("new", [1, 2, 3], multimodal_inputs=images((-1, 2, "a"))), "offset"),
        (task("new", [1, 2, 3], multimodal_inputs={"mm_positions": [{}], "mm_hashes": ["a"]}), "offset"),
        (task("new", [1, 2, 3], multimodal_inputs={**images((0, 2, "a")), "mm_hashes": [None]}), "missing"),
        (task("new", [1, 2, 3], multimodal_inputs={**images((0, 2, "a")), "mm_hashes": [""]}), "missing"),
        (task("new", [1, 2, 3], multimodal_inputs={**images((0, 2, "a")), "mm_hashes": [1.5]}), "mm_hashes"),
        (task("new", [1, 2, 3], lora_id=1.5), "lora_id"),
        (task("new", [1, 2, 3], cache_salt=["tenant"]), "cache_salt"),
    ],
    ids=str,
)
@pytest.mark.parametrize("connection", ["memory"], indirect=True)
def test_a_task_has_what_it_needs(manager: PrefixCacheManager, request_: object, said: str) -> None:
    """E-40: otherwise a missing hash would silently make different images equal, or nothing would ever hit.

    Given a task that lacks a field or has a wrong one, when it is matched, then the error names the field.
    """
    with unchanged(manager), pytest.raises(InvalidInput, match=said):
        manager.request_match_blocks(request_, 2)


CALLS: list[tuple[str, Call, type[Exception], str]] = [
    ("twice", lambda m: m.request_match_blocks(live(), 2), RequestExists, "'live'"),
    ("too large", lambda m: m.request_match_blocks(task("new", [1] * 13), 2), NeverFits, "7 blocks can never fit"),
    ("too large with reserve", lambda m: m.request_block_ids(task("new", [1]), 2, 12), NeverFits, "7 blocks"),
    ("not admitted", lambda m: m.check_admission(task("new", [1] * 13), 2), NeverFits, "7 blocks"),
    ("more than there is", lambda m: m.allocate_gpu_blocks(7), NeverFits, "7 blocks"),
    ("more than is free", lambda m: m.allocate_gpu_blocks(5), PoolExhausted, "cannot give 5"),
    ("more host blocks", lambda m: m.allocate_cpu_blocks(5), NeverFits, "5 blocks"),
    ("cached blocks", lambda m: m.recycle_gpu_blocks([3]), ForeignBlocks, "blocks 3"),
    ("free blocks", lambda m: m.recycle_gpu_blocks([2, 5]), ForeignBlocks, "blocks 5"),
    ("blocks on the path", lambda m: m.recycle_gpu_blocks([0], "live"), ForeignBlocks, "blocks 0"),
    ("one twice", lambda m: m.recycle_gpu_blocks([2, 2]), InvalidInput, "twice"),
    ("no id", lambda m: m.recycle_gpu_blocks([-1]), InvalidInput, "block id"),
    ("text", lambda m: m.recycle_gpu_blocks("2"), InvalidInput, "list of integers"),
    ("nothing", lambda m: m.recycle_gpu_blocks(None), InvalidInput, "list of integers"),
    ("a truth value", lambda m: m.recycle_gpu_blocks(True), InvalidInput, "integer"),
    ("a request id of another type", lambda m: m.recycle_gpu_blocks([2], 7), InvalidInput, "request id"),
    ("allocated for a number", lambda m: m.allocate_gpu_blocks(1, 7), InvalidInput, "request id"),
    ("host blocks of nobody", lambda m: m.recycle_cpu_blocks([0]), ForeignBlocks, "blocks 0"),
    ("update of nobody", lambda m: m.update_cache_blocks(task("who", [1, 2]), 2, 2), UnknownRequest, "'who'"),
    ("update of the released", lambda m: m.update_cache_blocks(task("gone", [5, 6]), 2, 2), UnknownRequest, "'gone'"),
    ("output of the released", lambda m: m.cache_output_blocks(task("gone", [5, 6]), 2), UnknownRequest, "'gone'"),
    ("release of nobody", lambda m: m.release_block_ids(task("who", [])), UnknownRequest, "'who'"),
    ("release of the released", lambda m: m.release_block_ids(task("gone", [])), UnknownRequest, "'gone'"),
    ("the same, later", lambda m: m.release_block_ids_async(task("gone", [])), KeyError, "gone"),
    ("more than it has", lambda m: m.update_cache_blocks(live(), 2, 4), InvalidInput, "3 tokens, of which 4"),
    (
        "fewer tokens than before",
        lambda m: m.update_cache_blocks(live(prompt_token_ids=[1, 2]), 2, 2),
        InvalidInput,
        "had 3 tokens, the task has 2",
    ),
    (
        "a table too short",
        lambda m: m.update_cache_blocks(live(output_token_ids=[4, 5], block_tables=[0]), 2, 4),
        PathNotCovered,
        "2 blocks",
    ),
    (
        "another's block in the table",
        lambda m: m.update_cache_blocks(live(output_token_ids=[4, 5], block_tables=[0, 3]), 2, 4),
        ForeignBlocks,
        "blocks 3",
    ),
    (
        "a table out of order",
        lambda m: m.update_cache_blocks(live(output_token_ids=[4], block_tables=[1, 0]), 2, 4),
        InvalidInput,
        "block 1 at 0, the index knows block 0",
    ),
    (
        "a table with a tensor",
        lambda m: m.update_cache_blocks(live(output_token_ids=[4], block_tables=Tensor()), 2, 4),
        TypeError,
        "block_tables",
    ),
    ("a swap that never was", lambda m: m.sync_swap_task("engine-a:99"), UnknownTransfer, "engine-a:99"),
    ("a swap without a name", lambda m: m.sync_swap_task(""), InvalidInput, "transfer"),
    (
        "issuing a swap of nothing",
        lambda m: m.issue_swap_task("live", [1], [2], [3], "SWAP2GPU", True),
        UnknownTransfer,
        "live",
    ),
    (
        "issuing in no direction",
        lambda m: m.issue_swap_task("live", [1], [2], [3], "GPU", True),
        InvalidInput,
        "SWAP2GPU",
    ),
    (
        "issuing blocks as text",
        lambda m: m.issue_swap_task("live", [1], "2", [3], "SWAP2GPU", True),
        InvalidInput,
        "gpu_block_ids",
    ),
    ("sending to nobody", lambda m: m.send_cache(live(), "engine-x", [0, 1]), NotReceivable, "engine-x"),
    ("sending to too few", lambda m: m.send_cache(live(), "engine-x", [0]), InvalidInput, "fills 2 blocks"),
    ("sending the released", lambda m: m.send_cache(task("gone", [5, 6]), "x", [0]), InvalidInput, "table has 0"),
    ("waiting for ever", lambda m: m.wait_for_cache("live", -1.0), InvalidInput, "timeout"),
    ("waiting for a number", lambda m: m.wait_for_cache(7, 0.0), InvalidInput, "request id"),
    ("asking for CLEARED", lambda m: m.clear_prefix_cache(-2), InvalidInput, "CLEARED is what comes of"),
    ("asking for a status", lambda m: m.clear_prefix_cache(9), InvalidInput, "CLEARING"),
    ("clearing for a reason that is none", lambda m: m.clear_prefix_cache(reason=7), InvalidInput, "reason"),
    ("clearing before time", lambda m: m.clear_prefix_cache(timeout=-1), InvalidInput, "timeout"),
    ("resetting before time", lambda m: m.reset(timeout=-1), InvalidInput, "timeout"),
    ("a configuration of nothing", lambda m: m.update_cache_config(SimpleNamespace()), InvalidInput, "total_block_num"),
    (
        "a configuration of no blocks",
        lambda m: m.update_cache_config(SimpleNamespace(total_block_num=0)),
        InvalidInput,
        "total_block_num must be from 1",
    ),
    ("no images", lambda m: m.is_chunked_mm_input([1], 2), InvalidInput, "multimodal_inputs"),
    (
        "workers of other ranks",
        lambda m: m.launch_cache_manager(m.cache_config, 2, [0, 1]),
        InvalidInput,
        "with 1 ranks, workers for 2",
    ),
    (
        "devices that are none",
        lambda m: m.launch_cache_manager(m.cache_config, 1, "0"),
        InvalidInput,
        "device_ids",
    ),
    (
        "a shape that is none",
        lambda m: m.launch_cache_messager(m.cache_config, 1, [0], "2;3", ""),
        InvalidInput,
        "key cache's shape",
    ),
    ("no shape", lambda m: m.launch_cache_messager(m.cache_config, 1, [0], "", ""), InvalidInput, "dimension"),
    ("no dtype", lambda m: m.launch_cache_manager(SimpleNamespace(), 1, [0]), InvalidInput, "cache_dtype"),
]


@pytest.mark.parametrize(("call", "error", "said"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS])
def test_what_cannot_be_is_refused(manager: PrefixCacheManager, call: Call, error: type[Exception], said: str) -> None:
    """E-01, E-04, E-13: otherwise a caller's mistake would free, share or pin blocks of others.

    Given a call that cannot be carried out, when it is made, then its error says why, and state and log are as before.
    """
    with unchanged(manager), pytest.raises(error, match=said):
        call(manager)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"role": "both"}, "mixed, prefill, decode"),
        ({"role": None}, "splitwise_role"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size"),
        ({"tensor_parallel_size": "1"}, "tensor_parallel_size"),
        ({"swap_timeout_s": -1}, "swap_timeout_s"),
        ({"total_block_num": None}, "no field 'total_block_num'"),
        ({"total_block_num": 0}, "total_block_num"),
        ({"total_block_num": "6"}, "total_block_num"),
        ({"num_cpu_blocks": -1}, "num_cpu_blocks"),
        ({"block_size": 0}, "block_size"),
        ({"enable_prefix_caching": "yes"}, "enable_prefix_caching"),
        ({"disable_chunked_mm_input": []}, "disable_chunked_mm_input"),
        ({"engine": "a b"}, "engine"),
        ({"gpu_pool": 7}, "pool"),
    ],
    ids=str,
)
def test_settings_are_checked(place: Place, wrong: dict[str, object], said: str) -> None:
    """Otherwise an engine would join with a pool or a role that is not its own.

    Given a setting that cannot be, or a field that is missing, when a manager is built, then the error names it, nothing
    joins.
    """
    with pytest.raises(InvalidInput, match=said):
        place.manager(**wrong)  # type: ignore[arg-type]

    assert place.log.log(place.index, follow=False).head().position == 0


@pytest.mark.parametrize("made", [None, SimpleNamespace(), SimpleNamespace(cache_config=None)])
def test_a_configuration_has_a_cache(place: Place, made: object) -> None:
    """Otherwise an AttributeError would tell nobody what to do. Given none, when a manager is built, then the error says
    it.
    """
    with pytest.raises(InvalidInput, match="config has no field 'cache_config'"):
        PrefixCacheManager(made, 1, surroundings=place)


@pytest.mark.parametrize(
    ("variables", "said"),
    [({"ENABLE_V1_KVCACHE_SCHEDULER": "yes"}, "is 0 or 1"), ({"STATECORE_INDEX": "{a}"}, "index name")],
)
def test_the_environment_is_checked(place: Place, variables: dict[str, str], said: str) -> None:
    """Otherwise a typing error in a variable would be another setting. Given one, when built, then the error names it."""
    place.variables.update({"STATECORE_ENGINE": "engine-a", **variables})

    with pytest.raises(InvalidInput, match=said):
        PrefixCacheManager(config(), 1, surroundings=place)


@pytest.mark.parametrize("missing", ["model_config", "num_key_value_heads", "head_dim"])
@pytest.mark.parametrize("connection", ["memory"], indirect=True)
def test_a_shape_needs_the_model(place: Place, missing: str) -> None:
    """Otherwise workers would be given memory of a wrong size. Given no such field, when the shape is asked for, then
    refused.
    """
    made = config()
    if missing == "model_config":
        made.model_config = None
    else:
        delattr(made.model_config, missing)
    manager = PrefixCacheManager(made, 1, surroundings=place)
    place.opened.append(manager)

    with pytest.raises(InvalidInput, match=missing):
        manager.get_kv_cache_shape(4)
