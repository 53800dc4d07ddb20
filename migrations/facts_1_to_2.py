"""Schema 2 let pools change size, serving pause, caches be cleared, prefill send to decode. What 1 had is as it was."""

from __future__ import annotations

from typing import Final

from migrations.chain import Misshapen

_ADDED: Final = frozenset(
    {"PoolResized", "PoolDropped", "SendStarted", "ServicePaused", "ServiceResumed", "CacheCleared"}
)


def upcast(fact: list[object]) -> list[object]:
    if fact[0] in _ADDED:
        raise Misshapen(f"{fact[0]} is no fact of schema 1")
    return fact
