"""The layouts of keys there were, and the way from each to today's.

Owns the order of the moves. The layout of an index is a field of its head that every script compares with the one it speaks,
so an index between two layouts ("1>2") is written by nobody. A move is a plan: `events/redis_layout.py` carries it out, in
one script that does nothing unless the index is where the move starts. So whoever dies between two moves, or does one twice,
or does it beside somebody else, leaves an index that the next run brings to the same end.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Final

from migrations import layout_1_to_2
from migrations.move import Move

MOVES: Final[Mapping[int, tuple[Move, ...]]] = {1: layout_1_to_2.MOVES}
LAYOUT: Final = str(len(MOVES) + 1)
"""The layout the last move leads to."""

_ALL: Final = tuple(move for number in sorted(MOVES) for move in MOVES[number])

assert sorted(MOVES) == list(range(1, len(MOVES) + 1)), f"there are moves from {sorted(MOVES)}: one is missing"
assert all(before.end == after.start for before, after in itertools.pairwise(_ALL)), "a move starts elsewhere"
assert (_ALL[0].start, _ALL[-1].end) == ("1", LAYOUT), "the moves do not lead from the first layout to the last"


def remaining(layout: str) -> tuple[Move, ...] | None:
    """What is left to do from `layout` on; None if this release does not know it."""
    if layout == LAYOUT:
        return ()
    starts = [place for place, move in enumerate(_ALL) if move.start == layout]
    return _ALL[starts[0] :] if starts else None
