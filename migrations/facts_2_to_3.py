"""Schema 3 says whether an engine's memory outlives it, and why an engine was lost.

Before, nobody had said that memory survives, so nobody may count on it. And nothing but the next life of an engine declared
the one before it lost.
"""

from __future__ import annotations

from typing import Final

from migrations.chain import Misshapen

MEMORY_SURVIVES: Final = False
REASON: Final = "a new life of the engine began"
_ADDED: Final[dict[object, tuple[int, object]]] = {"EngineJoined": (5, MEMORY_SURVIVES), "EngineLost": (2, REASON)}
"""Fact -> how many fields it had, and the value of the one that it got."""


def upcast(fact: list[object]) -> list[object]:
    name = fact[0]
    if name not in _ADDED:
        return fact
    fields, value = _ADDED[name]
    if len(fact) - 1 != fields:
        raise Misshapen(f"{name} has {fields} fields in schema 2, found {len(fact) - 1}")
    return [*fact, value]
