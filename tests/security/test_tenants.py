"""Tenants keep apart: the same prompt under another salt, adapter or extra key shares nothing, and gives nothing away."""

from __future__ import annotations

import itertools
from typing import Any, Final

import pytest

from events import connect
from statecore import CacheIndex, ExtraKey, PrefixCacheManager
from statecore.invariants import violations
from tests.manager.given import BLOCK as BLOCK_OF_MANAGER
from tests.manager.given import Place, cache, config, task

PROMPT: Final = list(range(40))
BLOCK: Final = 4
CONTEXTS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"salt": b"tenant-a"},
    {"salt": b"tenant-b"},
    {"salt": b"tenant-a\0"},
    {"salt": b"", "adapter": b"tenant-a"},
    {"salt": b"tenant", "adapter": b"-a"},
    {"salt": b"tenant-a", "adapter": b"lora-1"},
    {"salt": b"tenant-a", "adapter": b"lora-2"},
    {"extra": [ExtraKey(b"tenant-a", 0, 40)]},
    {"extra": [ExtraKey(b"image-1", 0, 8)]},
    {"salt": b"tenant-a", "extra": [ExtraKey(b"image-1", 0, 8)]},
    {"salt": b"tenant-b", "extra": [ExtraKey(b"image-1", 0, 8)]},
)


def index_on(connection: Any, engine: str = "a", **more: Any) -> CacheIndex:
    return CacheIndex(connection, name="i", engine=engine, gpu_blocks=512, block_size=BLOCK, **more)


def cached(index: CacheIndex, request: str, context: dict[str, Any]) -> int:
    """Tokens of the prompt found in the cache; afterwards it is there."""
    match = index.match(request, PROMPT, **context)
    if missing := len(PROMPT) // BLOCK - len(match.blocks):
        index.allocate(request, missing)
        index.extend(request, ready=True)
    index.release(request)
    return match.tokens


PAIRS: Final = list(itertools.combinations(range(len(CONTEXTS)), 2))


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_the_same_prompt_elsewhere(one: int, other: int) -> None:
    """Otherwise a tenant would be served another's cached blocks, and learn by the time it takes what others asked.

    Given a prompt that one tenant has cached, when another asks for the very same one, then nothing of it is a hit; its
    own owner finds all of it.
    """
    mine, theirs = CONTEXTS[one], CONTEXTS[other]
    with connect("memory://") as connection:
        index = index_on(connection)
        assert cached(index, "first", mine) == 0
        assert index.would_match(PROMPT, **theirs) == 0
        assert cached(index, "second", theirs) == 0

        assert cached(index, "third", mine) == cached(index, "fourth", theirs) >= len(PROMPT) - BLOCK
        assert index.inspect(violations) == []


def test_the_same_prompt_on_another_engine() -> None:
    """Otherwise tenants would be apart on one engine and together on the next.

    Given two engines of one index and pool, when one serves tenant a and the other tenant b, then b finds nothing of a's.
    """
    with connect("memory://") as connection:
        one, two = index_on(connection, "a", gpu_pool="p"), index_on(connection, "b", gpu_pool="p")
        assert cached(one, "r", {"salt": b"tenant-a"}) == 0
        two.refresh()

        assert cached(two, "r", {"salt": b"tenant-b"}) == 0
        assert cached(two, "s", {"salt": b"tenant-a"}) >= len(PROMPT) - BLOCK


def test_another_block_of_an_image_only_changes_what_follows() -> None:
    """Otherwise text before an image would never be shared.

    Given an extra key over the middle of a prompt, when asked with another one there, then what lies before is a hit and
    nothing from there on.
    """
    with connect("memory://") as connection:
        index = index_on(connection)
        cached(index, "first", {"extra": [ExtraKey(b"image-1", 16, 24)]})

        assert index.would_match(PROMPT, extra=[ExtraKey(b"image-2", 16, 24)]) == 16 // BLOCK


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(range(5), 2)))
def test_the_same_task_at_a_manager(one: int, other: int) -> None:
    """Otherwise FastDeploy's tenants would be served each other's blocks.

    Given a task of one tenant and adapter that is cached, when the same prompt comes with another, then nothing of it is a
    hit; with its own, all of it is.
    """
    tasks: list[dict[str, Any]] = [
        {}, {"cache_salt": "a"}, {"cache_salt": "b"}, {"cache_salt": "a", "lora_id": "l"}, {"lora_id": "a"},
    ]  # fmt: skip
    with connect("memory://") as connection:
        place = Place(connection, "i", {"STATECORE_ENGINE": "e0"})
        with PrefixCacheManager(config(num_gpu_blocks=64), 1, surroundings=place) as manager:
            cache(manager, PROMPT, "first", **tasks[one])
            _, theirs, _ = manager.request_match_blocks(task("second", PROMPT, **tasks[other]), BLOCK_OF_MANAGER)
            _, mine, _ = manager.request_match_blocks(task("third", PROMPT, **tasks[one]), BLOCK_OF_MANAGER)

            assert (theirs, mine >= len(PROMPT) - BLOCK_OF_MANAGER) == (0, True)
