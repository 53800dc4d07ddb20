"""A chain of steps, each from one number to the next.

Owns that a chain has no hole: a step that is missing would be noticed years later, by whoever kept an old log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

Written = TypeVar("Written")


class Misshapen(ValueError):
    """What was written is not of the shape that its schema number promises."""


def end_of(steps: Mapping[int, Callable[[Written], Written]]) -> int:
    """The number the last step leads to; steps are named by the number they start from, beginning with 1."""
    assert sorted(steps) == list(range(1, len(steps) + 1)), f"there are steps from {sorted(steps)}: one is missing"
    return len(steps) + 1


def lifted(written: Written, start: int, steps: Mapping[int, Callable[[Written], Written]]) -> Written:
    """`written`, of schema `start`, in the shape of the last one.

    Raises:
        Misshapen: it is not of schema `start`.
    """
    for number in range(start, len(steps) + 1):
        written = steps[number](written)
    return written
