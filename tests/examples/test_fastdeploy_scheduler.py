"""The scheduler of the FastDeploy example, call by call, against the real manager on a log in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from ops.examples.fastdeploy.checker import Checker
from ops.examples.fastdeploy.plug import Plugged
from ops.examples.fastdeploy.scheduler import Scheduler
from ops.examples.fastdeploy.settings import Settings, SettingsError
from ops.examples.fastdeploy.task import Status
from statecore import HashedTokens
from tests.examples.engines import BLOCK_SIZE, SMALL, Faulty, engine, run, scheduler, spec, task


def violations(plug: Plugged, of: Scheduler) -> list[str]:
    """What the checker says now."""

    def hashes(of_task: Any) -> bytes:
        begun = HashedTokens.begin(BLOCK_SIZE)
        return begun.extend([*of_task.prompt_token_ids, *of_task.output_token_ids]).hashes

    return Checker(of.manager, plug.index, plug.spec.settings, hashes).now(of.running, of.waiting)


def test_a_prompt_is_computed_in_chunks_that_fit_into_the_budget() -> None:
    with engine(spec(gpu_blocks=32)) as plug:
        loop = scheduler(plug)
        loop.add(long := task(1, 60))
        loop.add(task(2, 10))
        spans = []
        while not long.decoding:
            batch = loop.schedule()
            spans += [(chunk.task.number, chunk.start, chunk.end) for chunk in batch.prefills]
            assert sum(chunk.end - chunk.start for chunk in batch.prefills) <= SMALL.max_num_batched_tokens
            assert violations(plug, loop) == []
            run(batch, loop)
        assert spans == [(1, 0, 24), (1, 24, 48), (1, 48, 60), (2, 0, 10)]


def test_decodes_come_out_of_the_budget_before_prompts_do() -> None:
    with engine(spec(gpu_blocks=32)) as plug:
        loop = scheduler(plug)
        for number in (1, 2, 3):
            loop.add(task(number, 4))
        run(loop.schedule(), loop)
        loop.add(task(4, 30))
        batch = loop.schedule()
        assert [each.number for each in batch.decodes] == [1, 2, 3]
        assert [(chunk.start, chunk.end) for chunk in batch.prefills] == [(0, 21)]


def test_a_table_holds_shared_blocks_first_and_the_reserve_last() -> None:
    with engine() as plug:
        loop = scheduler(plug)
        loop.add(one := task(1, 10, output=8))
        run(loop.schedule(), loop)
        assert (len(one.block_tables), one.num_cached_blocks) == (3, 2)
        run(loop.schedule(), loop)  # 11 tokens: a place is left, no more than the threshold
        assert len(one.block_tables) == 4
        assert plug.index.table(one.request_id) == one.block_tables[: one.num_cached_blocks]
        assert violations(plug, loop) == []


def test_the_newest_gives_way_and_the_oldest_of_them_comes_back_first() -> None:
    with engine(spec(gpu_blocks=12)) as plug:
        loop = scheduler(plug)
        tasks = [task(number, 12, output=16) for number in (1, 2, 3, 4)]
        for each in tasks:
            loop.add(each)
        order: list[list[int]] = []
        while len(order) < 3:
            batch = loop.schedule()
            if batch.preempted:
                order.append([each.number for each in batch.preempted])
                assert not [chunk for chunk in batch.prefills if chunk.first], "nobody is admitted in such a step"
                run(batch, loop)
                newest_first = [each.number for each in reversed(batch.preempted)]
                assert [each.number for each in loop.waiting][: len(newest_first)] == newest_first
            else:
                run(batch, loop)
            assert violations(plug, loop) == []
            if all(each.status is Status.FINISHED for each in tasks):
                break
        assert order
        assert all(numbers == sorted(numbers, reverse=True) for numbers in order)
        assert 1 not in order[0], "the oldest goes on as long as somebody newer can give way"


def test_who_comes_back_computes_its_prompt_and_what_it_generated() -> None:
    """E-49: a resumed request whose prefill length is that of its prompt loses what it said."""
    with engine(spec(gpu_blocks=12)) as plug:
        loop = scheduler(plug)
        tasks = [task(number, 12, output=16) for number in (1, 2, 3)]
        for each in tasks:
            loop.add(each)
        resumed = []
        while loop.running or loop.waiting:
            batch = loop.schedule()
            resumed += [chunk for chunk in batch.prefills if chunk.first and chunk.task.preemptions]
            run(batch, loop)
            assert violations(plug, loop) == []
        assert resumed
        assert any(chunk.end > len(chunk.task.prompt_token_ids) for chunk in resumed)
        assert all(len(each.output_token_ids) == 16 for each in tasks)
        assert loop.counts.preempted == loop.counts.resumed > 0


def test_what_does_not_fit_is_asked_for_again_and_again_without_a_word_to_the_log() -> None:
    with engine(spec(gpu_blocks=10)) as plug:
        loop = scheduler(plug)
        loop.add(task(1, 24))
        run(loop.schedule(), loop)
        loop.add(task(2, 24))
        loop.schedule()  # 1 decodes: its reserve is allocated
        position = plug.index.position
        for _ in range(5):
            assert not loop.schedule().prefills
        assert plug.index.position == position
        assert loop.counts.put_off == 6
        assert loop.counts.undone == 0


def test_a_match_that_cannot_be_scheduled_is_undone() -> None:
    """The replica said yes, and the blocks went elsewhere before they were allocated."""

    def never(_real: Callable[..., bool], *_given: object) -> bool:
        return False

    with engine() as plug:
        loop = scheduler(plug)
        loop.add(task(1, 12, output=1, first_token=0))
        run(loop.schedule(), loop)
        free = plug.index.free_blocks
        loop.manager = Faulty(plug.manager, can_allocate_gpu_blocks=never)
        loop.add(again := task(2, 20, first_token=0))
        batch = loop.schedule()
        assert batch.idle
        assert loop.counts.undone == 1
        assert (again.status, again.block_tables, again.num_cached_blocks) == (Status.WAITING, [], 0)
        assert plug.index.requests() == ()
        assert plug.index.free_blocks == free
        loop.manager = plug.manager
        assert [chunk.start for chunk in loop.schedule().prefills] == [12]
        assert violations(plug, loop) == []


def test_a_prompt_that_is_cached_whole_computes_its_last_block_again() -> None:
    with engine() as plug:
        loop = scheduler(plug)
        loop.add(task(1, 12, output=1, first_token=0))
        run(loop.schedule(), loop)
        loop.add(again := task(2, 12, output=1, first_token=0))
        batch = loop.schedule()
        assert [(chunk.start, chunk.end) for chunk in batch.prefills] == [(8, 12)]
        assert (again.num_cached_tokens, again.num_cached_blocks) == (12, 3)
        assert plug.index.table("request-2") == again.block_tables[:3]
        assert loop.counts.whole_prompt_hits == 1
        assert violations(plug, loop) == []


def test_what_was_generated_is_a_hit_for_the_next_turn() -> None:
    with engine() as plug:
        loop = scheduler(plug)
        loop.add(first := task(1, 8, output=9))
        while loop.running or loop.waiting:
            run(loop.schedule(), loop)
        turn = task(2, 1)
        turn.prompt_token_ids[:] = [*first.prompt_token_ids, *first.output_token_ids, 5, 5, 5]
        turn.restart()
        loop.add(turn)
        loop.schedule()
        assert turn.num_cached_tokens == 16, "the last token was generated and never computed"


def test_drafted_tokens_have_a_place() -> None:
    settings = attrs.evolve(
        SMALL, num_speculative_tokens=3, prealloc_dec_block_slot_num_threshold=4, enc_dec_block_num=2
    )
    with engine(spec(settings)) as plug:
        loop = scheduler(plug)
        loop.add(one := task(1, 12, output=12))
        batch = loop.schedule()
        assert len(one.block_tables) == 4, "one more than the prompt fills"
        while loop.running:
            for each in batch.decodes:
                assert len(each.block_tables) * BLOCK_SIZE >= each.num_total_tokens + 3
            run(batch, loop)
            batch = loop.schedule()
        assert one.status is Status.FINISHED


@pytest.mark.parametrize("steps", [0, 1, 3], ids=["waiting", "in its prompt", "decoding"])
def test_an_aborted_request_leaves_nothing(steps: int) -> None:
    with engine() as plug:
        loop = scheduler(plug)
        loop.add(one := task(1, 30))
        for _ in range(steps):
            run(loop.schedule(), loop)
        assert loop.abort("request-1")
        batch = loop.schedule()
        assert batch.aborted == [one]
        assert (one.status, one.block_tables) == (Status.ABORTED, [])
        assert plug.index.requests() == ()
        assert plug.index.free_blocks + plug.index.cached_blocks == 16
        assert not loop.abort("request-1")
        assert violations(plug, loop) == []


def test_what_can_never_fit_is_refused_and_the_next_one_runs() -> None:
    """E-24: admitted, it would preempt itself for ever."""
    with engine() as plug:
        loop = scheduler(plug)
        loop.add(big := task(1, 40, output=40))
        loop.add(small := task(2, 4))
        batch = loop.schedule()
        assert (batch.refused, big.status) == ([big], Status.REFUSED)
        assert small.status is Status.RUNNING


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"block_size": 0}, "block_size must be at least 1, not 0"),
        ({"num_speculative_tokens": -1}, "num_speculative_tokens must be at least 0, not -1"),
        ({"num_speculative_tokens": 2}, "threshold must be at least that, not 2"),
        (
            {"enc_dec_block_num": 1, "num_speculative_tokens": 3, "prealloc_dec_block_slot_num_threshold": 9},
            "raise enc_",
        ),
        ({"max_num_batched_tokens": 4}, "max_num_batched_tokens 4 is too small"),
    ],
)
def test_numbers_that_cannot_work_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        attrs.evolve(SMALL, **changes)


def test_the_defaults_can_work() -> None:
    assert Settings().tokens_per_decode == 1
