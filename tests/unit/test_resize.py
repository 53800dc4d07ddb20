"""Pools that change size: what would go and is in use is named, what is only cached is forgotten, nothing else moves."""

from __future__ import annotations

import pytest

from statecore.commands import Allocate, MakeRoom, Recycle, Resize
from statecore.rejections import InUse
from tests.unit.given import Machine, join


def leaving_below_high_blocks() -> Machine:
    """The path 1 2 3 4 of pool g: 1 2 in blocks 6 and 7, below them 3 4 in blocks 0 and 1, which leave by a:0."""
    machine = Machine(join("a", host=6))
    machine.do(Allocate("a", None, 6))
    machine.cache("a", 1, 2)
    machine.do(Recycle("a", None, ((0, 4),)))
    machine.cache("a", 1, 2, 3, 4)
    machine.do(Allocate("a", None, 2), MakeRoom("a", "gpu", 2))
    assert list(machine.state.transfers) == ["a:0"]
    return machine


@pytest.mark.parametrize("size", [7, 6])
def test_what_hangs_below_blocks_that_would_go_may_be_in_use_too(size: int) -> None:
    """E-09, E-19: a shrink takes a copy from under one that a worker reads: the fact fits no replica, the engine ends."""
    machine = leaving_below_high_blocks()

    machine.refuses(Resize("a", "gpu", size), InUse, "a:0")
