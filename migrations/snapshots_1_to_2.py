"""Schema 2 says of an engine whether its memory outlives it; see `facts_2_to_3.py`."""

from __future__ import annotations

from typing import Any, Final

from migrations.chain import Misshapen
from migrations.facts_2_to_3 import MEMORY_SURVIVES

_FIELDS: Final = 11
"""Fields an engine had in schema 1; the new one stands after them."""


def upcast(header: dict[str, Any]) -> dict[str, Any]:
    engines = header.get("engines")
    if type(engines) is not list:
        raise Misshapen(f"engines are {engines!r:.80}, not a list")
    return {**header, "engines": [_engine(engine) for engine in engines]}


def _engine(engine: object) -> list[object]:
    match engine:
        case [name, [*fields], *rest] if len(fields) == _FIELDS:
            return [name, [*fields, MEMORY_SURVIVES], *rest]
        case _:
            raise Misshapen(f"{engine!r:.80} is no engine of schema 1, which has {_FIELDS} fields")
