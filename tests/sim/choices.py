"""Where chance comes from: every choice of a run is drawn here, recorded, and can be played back.

A run is a list of actions, and each action owns the list of numbers drawn while it went on. A failure shrinks by taking
actions out and by making numbers smaller: 0 is always the dull choice (no fault, nobody in between, the first engine),
and a script that has run out goes on with zeros.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Script: TypeAlias = list[list[int]]


class Choices:
    """Draws from a seed, or from a script that an earlier run recorded.

    Attributes:
        made: what was drawn, by action.
        dull: from now on draw nothing and take 0 everywhere: all faults have stopped.
    """

    def __init__(self, seed: int, script: Sequence[Sequence[int]] | None = None) -> None:
        self._random = random.Random(seed)
        self._script = script
        self._left: list[int] = []
        self.made: Script = []
        self.dull = False

    def begin_action(self) -> bool:
        """The next action; False when the script has no more."""
        if self._script is not None:
            if len(self.made) >= len(self._script):
                return False
            self._left = list(reversed(self._script[len(self.made)]))
        self.made.append([])
        return True

    def draw(self, count: int) -> int:
        """A number from 0 to `count` - 1."""
        if self.dull:
            return 0
        number = self._random.randrange(count) if self._script is None else self._played(count)
        self.made[-1].append(number)
        return number

    def chance(self, percent: int) -> bool:
        """True that often; False is the dull side."""
        if self.dull:
            return False
        number = int(self._random.randrange(100) < percent) if self._script is None else self._played(2)
        self.made[-1].append(number)
        return bool(number)

    def decided(self, number: int) -> int:
        """A number that the caller of this run has chosen; recorded, so that a script plays it again."""
        if self._script is not None:
            number = self._left.pop() if self._left else 0
        self.made[-1].append(number)
        return number

    def one_of(self, options: Sequence[T]) -> T:
        return options[self.draw(len(options))]

    def weighted(self, options: Sequence[tuple[int, T]]) -> T:
        """One of the options; the number recorded is its place in the list, so put the dull one first."""
        if self.dull:
            return options[0][1]
        if self._script is None:
            number = self._random.choices(range(len(options)), [weight for weight, _ in options])[0]
        else:
            number = self._played(len(options))
        self.made[-1].append(number)
        return options[number][1]

    def _played(self, count: int) -> int:
        return self._left.pop() % count if self._left else 0
