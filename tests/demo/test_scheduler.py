"""The demo's engine, on `memory://`: whom it serves, whom it makes wait, and that its books follow the log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from events import connect
from events.errors import OutcomeUnknown
from events.facts import PrefixMatched
from events.log import LogConnection
from events.ports import AppendReply, Base, Commit
from ops.demo.measured import MeasuredConnection, MeasuredLog
from ops.demo.plan import Outcome
from ops.demo.scheduler import STALLS_MAX, Scheduler
from ops.demo.tally import Limits, Tally
from ops.trace import TraceRequest, block_hashes, generate
from statecore import CacheIndex
from statecore.invariants import leaked_blocks, violations
from tests.demo.trace_requests import BLOCK, numbered, request

POOL = "gpu:shared"


@pytest.fixture
def connection() -> Iterator[LogConnection]:
    with connect("memory://") as opened:
        yield opened


def engine(connection: LogConnection, blocks: int, name: str = "engine", block_size: int = BLOCK) -> CacheIndex:
    return CacheIndex(
        connection, name="index", engine=name, gpu_blocks=blocks, gpu_pool=POOL, block_size=block_size, follow=False
    )


def serve(*schedulers: Scheduler) -> None:
    """Steps in turn until all are done; far more steps than any test here needs is a hang."""
    going = list(schedulers)
    for _ in range(20_000):
        if not going:
            return
        for scheduler in tuple(going):
            match scheduler.step():
                case Outcome.DONE:
                    going.remove(scheduler)
                case Outcome.SHORT:
                    scheduler.index.refresh()
    raise AssertionError([scheduler.tally for scheduler in going])


def nothing_is_left(index: CacheIndex, blocks: int) -> bool:
    index.refresh()
    return (
        index.requests() == ()
        and index.free_blocks + index.cached_blocks == blocks
        and index.inspect(violations) == []
        and index.inspect(leaked_blocks) == 0
    )


def matched_tokens(connection: LogConnection) -> int:
    """What the log says was found, counted from its facts."""
    facts = [fact for entry in connection.log("index").read(0, 100_000) for fact in entry.facts]
    return sum(fact.depth * BLOCK for fact in facts if isinstance(fact, PrefixMatched))


# --- serving ----------------------------------------------------------------------------------------------------------


def test_a_prompt_that_starts_like_an_earlier_one_reuses_its_blocks(connection: LogConnection) -> None:
    """A hit rate that counts other tokens than those not computed would promise users what they do not get.

    Given two prompts that share three blocks of four, served one after the other
    Then the second reuses three blocks, and the log says the same.
    """
    scheduler = Scheduler(
        engine(connection, 100), numbered(request([1, 2, 3, 4]), request([1, 2, 3, 9])), Limits(running_max=1)
    )

    serve(scheduler)

    assert scheduler.tally == Tally(
        requests=2, prompt_tokens=8 * BLOCK, reused_tokens=3 * BLOCK, steps=scheduler.tally.steps
    )
    assert matched_tokens(connection) == 3 * BLOCK


def test_a_prompt_that_is_cached_whole_still_computes_its_last_block(connection: LogConnection) -> None:
    """An engine needs the last token's output to go on: reusing the whole prompt would leave it nothing to start from."""
    scheduler = Scheduler(
        engine(connection, 100), numbered(request([1, 2, 3, 4]), request([1, 2, 3, 4])), Limits(running_max=1)
    )

    serve(scheduler)

    assert scheduler.tally.reused_tokens == 3 * BLOCK


def test_the_hit_rate_is_that_of_an_independent_count(connection: LogConnection) -> None:
    """The demo's headline figure would be wrong.

    Given a generated trace, a pool that never evicts, and one request at a time
    Then the reused tokens are those of the longest prefix of blocks seen before, counted with a set of hashes.
    """
    requests, size = list(generate(150, seed=3)), 64
    scheduler = Scheduler(engine(connection, 10**6, block_size=size), numbered(*requests), Limits(running_max=1))
    expected, seen = 0, set[bytes]()
    for one in requests:
        joined = block_hashes(one, size)
        hashes = [joined[start : start + 16] for start in range(0, len(joined), 16)]
        usable = hashes[: (one.input_tokens - 1) // size]
        expected += size * next((depth for depth, found in enumerate(usable) if found not in seen), len(usable))
        seen.update(hashes)

    serve(scheduler)

    assert scheduler.tally.reused_tokens == expected > 0
    assert scheduler.tally.prompt_tokens == sum(one.input_tokens for one in requests)
    assert scheduler.tally.evicted_blocks == 0


def test_engines_of_one_pool_reuse_each_others_blocks(connection: LogConnection) -> None:
    """Sharing would bring nothing: the point of the whole index.

    Given an engine that has served a prompt
    When the engine next door gets the same prompt
    Then it reuses what it did not compute.
    """
    first = Scheduler(engine(connection, 100, "first"), [(0, request([1, 2, 3, 4]))])
    second = Scheduler(engine(connection, 100, "second"), [(1, request([1, 2, 3, 4, 5]))])

    serve(first)
    second.index.refresh()
    serve(second)

    assert second.tally.reused_tokens == 4 * BLOCK
    assert nothing_is_left(second.index, 100)


def test_a_long_prompt_is_computed_in_chunks(connection: LogConnection) -> None:
    """One long prompt would stop everybody else's output for as long as it takes.

    Given a prompt of ten blocks, chunks of two, and a short request that arrives behind it
    When one step has passed
    Then the long prompt is two blocks on its way and the short one has begun too.
    """
    scheduler = Scheduler(
        engine(connection, 100),
        numbered(request(range(10)), request([90, 91])),
        Limits(step_tokens=3 * BLOCK, chunk_tokens=2 * BLOCK),
    )

    scheduler.step()

    assert [sequence.computed for sequence in scheduler.running] == [2 * BLOCK, BLOCK]
    serve(scheduler)
    assert scheduler.tally.requests == 2


@pytest.mark.parametrize(
    ("prompt", "output"), [(0, 0), (0, 5), (1, 0), (1, 1), (511, 1), (512, 0), (512, 512), (513, 2000)]
)
def test_every_length_comes_to_its_end(connection: LogConnection, prompt: int, output: int) -> None:
    """A request at the edge of a block would hang, or leave a block behind."""
    ids = tuple(range(-(-prompt // BLOCK)))
    scheduler = Scheduler(engine(connection, 20), numbered(TraceRequest(0, prompt, output, ids)))

    serve(scheduler)

    assert scheduler.tally.requests == 1
    assert nothing_is_left(scheduler.index, 20)


# --- when blocks are short --------------------------------------------------------------------------------------------


def test_the_newest_request_gives_way_when_the_pool_is_exhausted(connection: LogConnection) -> None:
    """Everybody would wait for ever for a block that nobody gives back.

    Given a pool of ten blocks and two requests that need eight each in the end
    When both run and the older one needs a block that is not there
    Then the newer one gives its blocks back, goes to the front of the line, and is served in the end; its second
    admission counts no reuse.
    """
    scheduler = Scheduler(
        engine(connection, 10), numbered(request([1, 2, 3, 4], 4), request([5, 6, 7, 8], 4), request([9], 1))
    )
    seen = []

    while not scheduler.tally.preemptions:
        assert scheduler.step() is Outcome.PROGRESS
        seen.append([sequence.number for sequence in scheduler.running])

    assert [0, 1] in [running[:2] for running in seen]
    assert scheduler.waiting[0].number == (2 if 2 in seen[-2] else 1)
    serve(scheduler)
    assert scheduler.tally.requests == 3
    assert scheduler.tally.reused_tokens == 0
    assert nothing_is_left(scheduler.index, 10)


def test_a_request_that_can_never_fit_is_refused(connection: LogConnection) -> None:
    """It would run until its last block and then wait for ever, with everybody behind it.

    Given a pool of four blocks and a request whose prompt fits, but not its output
    Then it is refused and counted, and those behind it are served.
    """
    scheduler = Scheduler(engine(connection, 4), numbered(request([1, 2, 3], 2), request([4], 1)))

    serve(scheduler)

    assert (scheduler.tally.refused, scheduler.tally.requests) == (1, 1)
    assert scheduler.tally.prompt_tokens == BLOCK
    assert nothing_is_left(scheduler.index, 4)


def test_a_lone_request_waits_for_other_engines_and_then_gives_way(connection: LogConnection) -> None:
    """Two engines, each holding what the other needs, would wait for each other for ever.

    Given the only request of an engine, and another engine that holds the block it needs
    Then it waits a bounded number of steps, gives its blocks back, and is served once the other lets go.
    """
    other = engine(connection, 5, "other")
    scheduler = Scheduler(engine(connection, 5), numbered(request([1, 2, 3], 2)))
    scheduler.step()
    held = other.allocate(None, 2).blocks
    scheduler.index.refresh()

    outcomes = [scheduler.step() for _ in range(STALLS_MAX + 2)]

    assert outcomes.count(Outcome.SHORT) == STALLS_MAX
    assert scheduler.tally.preemptions == 1
    other.recycle(None, held)
    scheduler.index.refresh()
    serve(scheduler)
    assert scheduler.tally.requests == 1
    assert nothing_is_left(scheduler.index, 5)


def test_engines_fighting_for_a_small_pool_serve_everything(connection: LogConnection) -> None:
    """Conflicts, evictions and preemptions together would lose a request or a block.

    Given three engines on a pool that hardly holds the biggest request
    Then every request is served or refused, and every block is free or cached at the end.
    """
    blocks, requests = 260, list(enumerate(generate(60, seed=5)))
    schedulers = [
        Scheduler(engine(connection, blocks, f"engine-{place}"), requests[place::3], Limits(running_max=4))
        for place in range(3)
    ]

    serve(*schedulers)

    total = Tally.sum(scheduler.tally for scheduler in schedulers)
    assert total.requests + total.refused == 60
    assert total.evicted_blocks > 0
    assert all(nothing_is_left(scheduler.index, blocks) for scheduler in schedulers)
    assert len({scheduler.index.digest() for scheduler in schedulers}) == 1


# --- steps that do not happen -------------------------------------------------------------------------------------------


def test_a_lost_step_leaves_the_books_untouched(connection: LogConnection) -> None:
    """The scheduler would believe in blocks it never got.

    Given a step that admits a request, and another engine that takes the blocks while it is planned
    Then the step is lost, the request still waits as if nothing had been, and goes on when there is room.
    """
    other, held = engine(connection, 10, "other"), list[int]()

    def while_planning(_number: int) -> bool:
        if not held:
            held.extend(other.allocate(None, 6).blocks)
        return True

    scheduler = Scheduler(engine(connection, 10), numbered(request([1, 2, 3, 4, 5, 6], 1)), is_due=while_planning)
    before = list(scheduler.waiting)

    assert scheduler.step() is Outcome.LOST

    assert list(scheduler.waiting) == before
    assert scheduler.running == []
    assert scheduler.tally == Tally(lost_steps=1)
    assert (before[0].computed, before[0].blocks, before[0].hashed, before[0].admissions) == (0, 0, 0, 0)
    assert scheduler.index.requests() == ()
    other.recycle(None, held)
    serve(scheduler)
    assert scheduler.tally.requests == 1


class _LosesOneReply(MeasuredLog):
    """Keeps one reply back, of an append that arrived or of one that did not."""

    arrives: bool | None = None

    def append(self, commit: Commit, base: Base) -> AppendReply:
        arrives, self.arrives = self.arrives, None
        if arrives:
            super().append(commit, base)
        if arrives is not None:
            raise OutcomeUnknown("no reply", commit.id)
        return super().append(commit, base)


@pytest.mark.parametrize("arrives", [True, False])
def test_a_lost_reply_is_resolved_before_the_books_change(connection: LogConnection, arrives: bool) -> None:
    """After a network error the scheduler would run a request twice, or forget one that runs.

    Given a step whose reply never came, whether it arrived or not
    Then the books hold what the log holds.
    """

    class _Connection(MeasuredConnection):
        def log(self, index: str, *, follow: bool = True) -> MeasuredLog:
            log = _LosesOneReply(connection.log(index, follow=follow))
            self.logs.append(log)
            return log

    lossy = _Connection(connection)
    index = CacheIndex(lossy, name="index", engine="engine", gpu_blocks=10, block_size=BLOCK)
    scheduler = Scheduler(index, numbered(request([1, 2], 1)))
    (log,) = lossy.logs
    assert isinstance(log, _LosesOneReply)
    log.arrives = arrives

    outcome = scheduler.step()

    assert [sequence.id for sequence in scheduler.running] == list(index.requests())
    assert (outcome is Outcome.PROGRESS) == bool(scheduler.running)
    serve(scheduler)
    assert scheduler.tally.requests == 1
    assert nothing_is_left(index, 10)


def test_a_request_that_is_not_due_does_not_begin(connection: LogConnection) -> None:
    """One engine would serve the end of the trace while another is at its beginning."""
    index = engine(connection, 10)
    scheduler = Scheduler(index, numbered(request([1])), is_due=lambda _number: False)
    position = index.position

    assert scheduler.step() is Outcome.AHEAD

    assert scheduler.is_ahead
    assert index.refresh() == position
