"""What a restart costs in reuse: every engine's process dies with its GPU memory, and starts again.

Engines, pools and requests as in `hit_rate.py`, one host pool for all. The first half of the requests is served, then
every process ends without a word and a new one begins under the same name; the share of prompt tokens found is that of
the requests after it, as many as there were engines times 50.

| figure                   | after the restart                                            | reference               |
|--------------------------|--------------------------------------------------------------|-------------------------|
| hit_rate_restarted_warm  | the index is what the log says: host copies are still known  | hit_rate_restarted_cold |
| hit_rate_restarted_cold  | an empty index: the bookkeeping died with the process        | no restart              |
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from ops.bench.figure import Advance, Group, Measurement, Settings
from ops.bench.hit_rate import ENGINES, SHARED, Engine, begin_again, engines_of
from ops.bench.workload import Life

_WARM: Final = "hit_rate_restarted_warm"
_COLD: Final = "hit_rate_restarted_cold"
_NONE: Final = "no restart"
_AFTER: Final = ENGINES * 50


def measure(settings: Settings, wanted: frozenset[str], advance: Advance) -> list[Measurement]:
    lives = settings.lives(settings.count(usual=4000, quick=600))
    rates = {}
    for number, kind in enumerate((_WARM, _COLD, _NONE)):
        rates[kind] = _share_after(lives, kind)
        advance((number + 1) / 3)
    compared = {_WARM: _COLD, _COLD: _NONE}
    return [
        Measurement(
            name, rates[name], "of tokens", f"{compared[name]}; {_AFTER} requests after it", rates[compared[name]]
        )
        for name in compared
        if name in wanted
    ]


def _share_after(lives: Sequence[Life], kind: str) -> float:
    half = len(lives) // 2
    after = lives[half : half + _AFTER]
    with ExitStack() as stack:
        engines = engines_of(stack, SHARED)
        _serve(engines, lives[:half])
        if kind == _WARM:
            engines = [begin_again(stack, engine, SHARED) for engine in engines]
        elif kind == _COLD:
            engines = engines_of(stack, SHARED)
        reused = _serve(engines, after)
    return reused / sum(life.prompt_tokens for life in after)


def _serve(engines: Sequence[Engine], lives: Sequence[Life]) -> int:
    return sum(engines[number % len(engines)].serve(life) for number, life in enumerate(lives))


GROUP: Final = Group(title="after a restart", figures=(_WARM, _COLD), seconds=12, measure=measure)
