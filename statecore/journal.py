"""Undo: every change evolve makes is remembered until the commit it belongs to has its place in the log.

Owns the inverse of each primitive change, so that a conflict, a refusal or a broken fact leaves the state exactly as it
was. Evolve changes state only through here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_MISSING: Final = object()
_ASSIGNMENT: Final = 3
"""Length of an entry (object, attribute, value before); others are (inverse, its arguments)."""


class Journal:
    """Changes since the last `clear`, newest last."""

    __slots__ = ("_undo",)

    def __init__(self) -> None:
        self._undo: list[tuple[Any, ...]] = []

    def set(self, target: object, name: str, value: object) -> None:
        """Assign an attribute."""
        self._undo.append((target, name, getattr(target, name)))
        setattr(target, name, value)

    def put(self, mapping: dict[K, V], key: K, value: V) -> None:
        """Assign a key."""
        before = mapping.get(key, _MISSING)
        if before is _MISSING:
            self._undo.append((mapping.__delitem__, (key,)))
        else:
            self._undo.append((mapping.__setitem__, (key, before)))
        mapping[key] = value

    def drop(self, mapping: dict[K, V], key: K) -> None:
        """Delete a key that is there."""
        self._undo.append((mapping.__setitem__, (key, mapping.pop(key))))

    def call(self, change: Callable[..., object], inverse: Callable[..., object], *arguments: object) -> None:
        """Run `change(*arguments)`; `inverse(*arguments)` takes it back."""
        change(*arguments)
        self._undo.append((inverse, arguments))

    def undo(self) -> None:
        """Take everything back, newest first."""
        undo = self._undo
        while undo:
            change = undo.pop()
            if len(change) == _ASSIGNMENT:
                setattr(*change)
            else:
                inverse, arguments = change
                inverse(*arguments)

    def clear(self) -> None:
        """Everything since the last clear stands."""
        self._undo.clear()
