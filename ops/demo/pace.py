"""Keeps engines roughly aligned in the order of the trace, through a few shared integers.

Owns the rule that no engine begins a request more than a window ahead of the slowest one. Requests arrive in order at
a real cluster; without this, a process that got more of the processor would serve the end of the trace while another
is still at its beginning, and what they share would depend on chance.
"""

from __future__ import annotations

import ctypes
from multiprocessing.context import SpawnContext
from typing import Final, TypeAlias

WINDOW_PER_ENGINE: Final = 16
"""Requests; about as many as an engine has running."""

_FINISHED: Final = 2**62

Board: TypeAlias = "ctypes.Array[ctypes.c_longlong]"
"""Per engine the number of the request it will begin next. Without a lock: each writes its own word, and one that is
killed must not leave a lock behind."""


def new_board(context: SpawnContext, engines: int) -> Board:
    """A board on which every engine is at the beginning. Made by the parent, handed to its processes."""
    return context.RawArray(ctypes.c_longlong, engines)


class Pace:
    """One engine's view of the board."""

    def __init__(self, board: Board, place: int) -> None:
        self._board = board
        self._place = place
        self._window = WINDOW_PER_ENGINE * len(board)

    def is_due(self, number: int) -> bool:
        """Whether the request with this number in the trace may begin."""
        return number <= min(self._board[:]) + self._window

    def publish(self, next_number: int | None) -> None:
        """Which request this engine will begin next; None when it has begun all."""
        self._board[self._place] = _FINISHED if next_number is None else next_number
