"""How long a transfer takes, from the decision to the engine that hears of its end.

`transfer_latency_us` brings a run of blocks in from the host: the clock starts when `match` is called, which decides and
commits, and stops when `wait` has the finish. `transfer_latency_us_out` is the same for a swap-out, which an `allocate`
starts. A real worker process, the embedded Redis, the numpy store; the engine follows the log, as engines do. Before
each there is a rest, as between scheduler steps: the engine's follower then waits for news, and is not resting itself.

The reference is the way alone: a bare XADD, another process that blocks in XREADGROUP and copies as many bytes in one
piece, an answer by another XADD, XREAD. The blocks are small, so that the figure is about the way and not the copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from ops.bench.bare_worker import BareWorkers
from ops.bench.figure import Advance, Group, Measurement, Pair, Settings, undisturbed, wall_us
from ops.bench.moving import Moving, moving, prompts
from workers.layout import CacheLayout

_Argument = TypeVar("_Argument")

_IN: Final = "transfer_latency_us"
_OUT: Final = "transfer_latency_us_out"
_BLOCKS: Final = 16
_LAYOUT: Final = CacheLayout(layers=4, num_blocks=_BLOCKS, block_shape=(1, 64, 64), dtype="float16")
_REST_S: Final = 0.010
_WARM: Final = 3
"""Transfers that are not timed: the first of a worker opens what it needs."""


def measure(settings: Settings, wanted: frozenset[str], advance: Advance) -> list[Measurement]:
    pairs = {_IN: Pair(), _OUT: Pair()}
    rounds = _WARM + settings.count(usual=60, quick=3)
    fresh = prompts(settings.seed, _BLOCKS)
    with moving(_LAYOUT, 2 * _BLOCKS) as there, BareWorkers(there.url, 1, _LAYOUT.total_bytes) as bare, undisturbed():
        for number in range(rounds):
            prompt, before = next(fresh), there.index.position
            there.cache(prompt, f"computes-{number}")  # what was brought in last is in the host, too: it is dropped
            out_us = _swap_out_us(there)
            (job,) = there.jobs_since(before)
            in_us = _swap_in_us(there, prompt, f"reads-{number}")
            if number >= _WARM:
                pairs[_OUT].add(out_us, _rested(bare.round_trip_us, job))
                pairs[_IN].add(in_us, _rested(bare.round_trip_us, job))
            advance((number + 1) / rounds)
    label = f"XADD, XREADGROUP, memcpy, XADD, XREAD; {_BLOCKS} × {_LAYOUT.bytes_per_block >> 10} KiB"
    return [pair.measurement(name, "µs", label) for name, pair in pairs.items() if name in wanted]


def _swap_out_us(there: Moving) -> float:
    """The pool is full of what the host has not: an allocation has to wait until that has left."""

    def leave() -> None:
        (transfer,) = there.index.allocate(None, _BLOCKS).waits_for
        there.wait(transfer)

    return _rested(wall_us, leave)


def _swap_in_us(there: Moving, prompt: bytes, request: str) -> float:
    def come() -> None:
        (transfer,) = there.index.match(request, hashes=prompt).waits_for
        there.wait(transfer)

    spent = _rested(wall_us, come)
    there.index.release(request)
    return spent


def _rested(work: Callable[[_Argument], float], argument: _Argument) -> float:
    time.sleep(_REST_S)
    return work(argument)


GROUP: Final = Group(title="transfers", figures=(_IN, _OUT), seconds=5, measure=measure)
