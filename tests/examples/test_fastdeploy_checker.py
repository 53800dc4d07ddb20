"""The checker of the FastDeploy example finds a manager that breaks the contract; an honest one passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest

from ops.examples.fastdeploy.plug import Plugged
from ops.examples.fastdeploy.serve import Served, Serving
from ops.examples.fastdeploy.settings import Settings
from ops.examples.fastdeploy.task import Task
from tests.examples.engines import Faulty, engine, spec

SPEC = spec(Settings(block_size=16, num_speculative_tokens=2), gpu_blocks=300, requests=60, abort_every=9)
Blocks = Callable[..., list[int]]


def served(plug: Plugged, **faults: Callable[..., Any]) -> Served:
    """All requests, with a manager that has these faults."""
    tasks = plug.spec.work.tasks(0, 1)
    manager = Faulty(plug.manager, **faults)
    return Serving(manager, plug.index, plug.spec.settings, tasks, abort_every=plug.spec.abort_every).run()


def test_an_honest_manager_passes() -> None:
    with engine(SPEC) as plug:
        result = served(plug)
    assert result.violations == ()
    assert result.counts.ended == 60
    assert result.checked.tables >= result.steps
    assert result.checked.states > 60
    assert min(result.counts.aborted, result.counts.whole_prompt_hits, result.computed.speculative_steps) > 0
    assert result.free_blocks + result.cached_blocks == result.gpu_blocks == 300


def gives_a_block_twice() -> dict[str, Callable[..., Any]]:
    given: list[int] = []

    def allocate(real: Blocks, blocks: int, request: str) -> list[int]:
        fresh = real(blocks, request)
        told = [given[0], *fresh[1:]] if len(given) > 40 else fresh
        given.extend(fresh)
        return told

    return {"allocate_gpu_blocks": allocate}


def gives_a_free_block() -> dict[str, Callable[..., Any]]:
    return {"allocate_gpu_blocks": lambda real, blocks, request: [*real(blocks, request)[:-1], 299]}


def matches_in_another_order() -> dict[str, Callable[..., Any]]:
    def match(real: Callable[..., Any], task: Task, block_size: int) -> Any:
        blocks, tokens, info = real(task, block_size)
        return blocks[::-1], tokens, info

    return {"request_match_blocks": match}


def matches_too_much() -> dict[str, Callable[..., Any]]:
    def match(real: Callable[..., Any], task: Task, block_size: int) -> Any:
        blocks, tokens, info = real(task, block_size)
        return blocks + blocks[:1], tokens + block_size * bool(blocks), info

    return {"request_match_blocks": match}


def counts_a_private_block_as_cached() -> dict[str, Callable[..., Any]]:
    def update(real: Callable[..., None], task: Task, block_size: int, computed: int) -> None:
        real(task, block_size, computed)
        task.num_cached_blocks += 1

    return {"update_cache_blocks": update}


def forgets_to_recycle() -> dict[str, Callable[..., Any]]:
    return {"recycle_gpu_blocks": lambda _real, _blocks, _request: None}


def forgets_to_release() -> dict[str, Callable[..., Any]]:
    return {"release_block_ids": lambda _real, _task: None}


@pytest.mark.parametrize(
    "fault",
    [
        gives_a_block_twice,
        gives_a_free_block,
        matches_in_another_order,
        matches_too_much,
        counts_a_private_block_as_cached,
        forgets_to_recycle,
        forgets_to_release,
    ],
)
def test_a_fault_is_found(fault: Callable[[], dict[str, Callable[..., Any]]]) -> None:
    with engine(SPEC) as plug:
        result = served(plug, **fault())
    assert result.violations
    assert result.counts.ended < 60, "found when it happened, not at the end"


def test_a_batch_beyond_the_budget_is_found() -> None:
    """The checker knows the budget; the scheduler is given another one."""
    with engine(SPEC) as plug:
        serving = Serving(plug.manager, plug.index, SPEC.settings, SPEC.work.tasks(0, 1))
        serving.scheduler.settings = attrs.evolve(SPEC.settings, max_num_batched_tokens=4096)
        result = serving.run()
    assert any("1024 are allowed" in violation for violation in result.violations)


def test_what_a_reused_block_holds_is_looked_at() -> None:
    class Wrong:
        def fill(self, blocks: Sequence[int], hashes: bytes) -> None: ...

        def wrong(self, blocks: Sequence[int], hashes: bytes) -> int:
            assert len(hashes) == 16 * len(blocks)
            return 1

    with engine(SPEC) as plug:
        result = Serving(plug.manager, plug.index, SPEC.settings, SPEC.work.tasks(0, 1), contents=Wrong()).run()
    assert result.violations == ("1 reused blocks held something else",)
