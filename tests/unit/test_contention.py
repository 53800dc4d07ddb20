"""Who is always too late: a step gives up, nothing has happened; a life that begins outlasts the one before."""

from __future__ import annotations

import pytest

from events import limits
from events.log import EventLog
from statecore import CacheIndex, Contended, SessionOver
from statecore.invariants import violations
from statecore.replica import Replica
from tests.property.interrupted import Connected, Interrupted


class Busy(Interrupted):
    """A log in which `rival` commits before each of the next `times` appends of somebody else arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.served = 0

    def keep_busy(self, rival: CacheIndex, times: int) -> None:
        def act() -> None:
            request = f"r{self.served}"
            with rival.step():
                rival.match(request, [self.served])
                rival.allocate(request, 1)
                rival.release(request)
            self.served += 1
            self.between = act if self.served < times else None

        self.between = act


def engine(log: Busy, name: str) -> CacheIndex:
    return CacheIndex(Connected(log), name="i", engine=name, gpu_pool="g", gpu_blocks=8, block_size=1)


def test_a_step_that_is_always_too_late(subtests: pytest.Subtests) -> None:
    """A scheduler would hang in one call for as long as its neighbour is busy.

    Given a neighbour that takes from the pool before every append, when a step is tried, then Contended with how often
    and where, nothing of the step has happened, and the same step succeeds when the neighbour rests.
    """
    log = Busy()
    ours, rival = engine(log, "a"), engine(log, "b")
    log.keep_busy(rival, times=1 << 30)

    with pytest.raises(Contended) as refused:
        ours.allocate(None, 2)
    log.between = None

    with subtests.test("how often, and where"):
        assert (refused.value.attempts, refused.value.scope) == (limits.CONFLICT_ATTEMPTS_MAX, "pool:g")
        assert ours.conflicts == log.served == limits.CONFLICT_ATTEMPTS_MAX
    with subtests.test("nothing has happened"):
        ours.refresh()
        assert ours.digest() == rival.digest()
        assert ours.free_blocks == 8
    with subtests.test("it may be tried again"):
        assert len(ours.allocate(None, 2).blocks) == 2


def test_a_life_begins_although_the_one_before_commits_without_a_pause() -> None:
    """An engine that was started twice, or hangs in a loop, could not be replaced as long as it is busy.

    Given a life whose process commits before every append of its successor, many more times than a step would be tried,
    when the next life begins, then it does; the one before is over, and the state is sound.
    """
    log, times = Busy(), 4 * limits.CONFLICT_ATTEMPTS_MAX
    before = engine(log, "twin")
    log.keep_busy(before, times)

    after = engine(log, "twin")

    assert (after.session, after.conflicts) == (2, times)
    with pytest.raises(SessionOver):
        before.match("r", [1])
    replica = Replica()
    replica.apply_all(EventLog("i", log, follow=False).read(0))
    assert replica.digest() == after.digest()
    assert violations(replica.state) == []
