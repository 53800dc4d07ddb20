"""A cancel and the finish of its transfer, at the same moment: whichever is first in the log, every replica goes on.

A step that cancels decides what follows as if nobody would report any more; a worker's report asks nobody. So such a step
stands as it was decided, or it never happened (`StepConflict`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from events.facts import TransferStarted
from events.log import EventLog
from statecore import CacheIndex, Policy, StepConflict
from statecore.invariants import leaked_blocks, violations
from statecore.replica import Replica
from tests.property.interrupted import Connected, Interrupted

BLOCKS = 6
ON_DEMAND = Policy(free_low=0, free_high=0)


class Race:
    """Engine a of a pool of six blocks and a host of eight."""

    def __init__(self, policy: Policy = ON_DEMAND) -> None:
        self.transport = Interrupted()
        self.log = EventLog("i", self.transport)
        self.index = CacheIndex(
            Connected(self.transport), name="i", engine="a", gpu_pool="g", gpu_blocks=BLOCKS, cpu_blocks=8, block_size=1,
            policy=policy,
        )  # fmt: skip

    def cache(self, *tokens: int) -> None:
        with self.index.step():
            self.index.match("warm", list(tokens))
            self.index.allocate("warm", len(tokens))
            self.index.extend("warm", ready=True)
            self.index.release("warm")

    def started(self) -> list[TransferStarted]:
        entries = self.log.read(0)
        return [fact for entry in entries for fact in entry.facts if isinstance(fact, TransferStarted)]

    def report(self, *, ok: bool) -> None:
        """Workers report the first transfer."""
        self.transport.report(self.started()[0], ok=ok)

    def must_agree(self) -> None:
        """The log is readable to its end, and says what the engine holds."""
        replayed = Replica()
        while entries := self.log.read(replayed.state.position):
            replayed.apply_all(entries)
        assert violations(replayed.state) == []
        assert leaked_blocks(replayed.state) == 0
        self.index.refresh()
        assert self.index.digest() == replayed.digest()


def swapping_out() -> Race:
    """1 2 3 4 leave for the host by a:0."""
    race = Race()
    race.cache(1, 2, 3, 4)
    race.index.make_room(BLOCKS)
    return race


def swapping_in() -> Race:
    """1 2 3 4 are in the host; request r fetches them by a:1."""
    race = swapping_out()
    race.report(ok=True)
    race.index.match("r", [1, 2, 3, 4])
    return race


THEN: dict[str, Callable[[CacheIndex], object]] = {
    "match": lambda index: index.match("s", [1, 2, 3, 4, 5]),
    "allocate": lambda index: index.allocate(None, BLOCKS - 1),
    "make room": lambda index: index.make_room(BLOCKS),
    "shrink": lambda index: index.resize(1),
    "nothing": lambda _: None,
}


@pytest.mark.parametrize("ok", [True, False], ids=["done", "failed"])
@pytest.mark.parametrize("then", THEN.values(), ids=THEN.keys())
def test_a_cancelled_swap_out_that_had_ended(then: Callable[[CacheIndex], object], ok: bool) -> None:
    """E-11: the step counts on the copy that its cancel keeps, the finish has taken it: the log can never be read again."""
    race = swapping_out()
    race.transport.between = lambda: race.report(ok=ok)

    with suppress(StepConflict), race.index.step():
        race.index.cancel("a:0")
        then(race.index)

    race.must_agree()


@pytest.mark.parametrize("ok", [True, False], ids=["done", "failed"])
def test_a_cancelled_swap_in_that_had_ended(ok: bool) -> None:
    """E-11: the step grows a path that its cancel cut, the finish made it whole: the log can never be read again."""
    race = swapping_in()
    fetched = race.started()[1]
    race.transport.between = lambda: race.transport.report(fetched, ok=ok)

    with suppress(StepConflict), race.index.step():
        race.index.cancel(fetched.transfer)
        race.index.allocate("r", 2)
        race.index.extend("r", blocks=2)

    race.must_agree()


@pytest.mark.parametrize("ok", [True, False], ids=["done", "failed"])
def test_a_cancelled_write_through_that_had_ended(ok: bool) -> None:
    """E-11: the step writes again what its cancel took off the host, the finish left it there."""
    race = Race(Policy("write_through", 0, 0))
    race.cache(1, 2, 3, 4)
    race.transport.between = lambda: race.report(ok=ok)

    with suppress(StepConflict), race.index.step():
        race.index.cancel("a:0")
        race.index.make_room(BLOCKS)

    race.must_agree()
