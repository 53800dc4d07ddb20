"""How many transfers per second go through the job stream when their bytes weigh nothing.

One step of the engine starts hundreds of swap-outs of one tiny block each, so the jobs are in the stream at once and a
worker never waits. The figure is the rate at which the finishes come into the log while that lasts: taking, looking
whether it was reported, copying, finish_transfer.lua. `…_tp2` has two ranks, a worker each, and counts a transfer when
both have reported. The decision is not in it (see `transfer_step_us`).

The reference is the same messages through a bare stream: added at once, taken one by one with XREADGROUP in another
process (two with two ranks), acknowledged with XACK.
"""

from __future__ import annotations

from itertools import islice
from time import perf_counter
from typing import Final

from events import limits
from events.client import build_client
from events.keys import IndexKeys, entry_id
from ops.bench.bare_worker import BareWorkers
from ops.bench.figure import Advance, Group, Measurement, Pair, Settings, undisturbed
from ops.bench.moving import Moving, moving, prompts
from workers.layout import CacheLayout

_RANKS: Final = {"swap_jobs_per_s": 1, "swap_jobs_per_s_tp2": 2}
_ELEMENTS: Final = 32
_DEADLINE_S: Final = 30.0


def measure(settings: Settings, wanted: frozenset[str], advance: Advance) -> list[Measurement]:
    found = []
    jobs, repetitions = settings.count(usual=600, quick=60), settings.repetitions(5)
    chosen = [name for name in _RANKS if name in wanted]
    for number, name in enumerate(chosen):
        ranks, pair = _RANKS[name], Pair()
        layout = CacheLayout(layers=1, num_blocks=jobs, block_shape=(_ELEMENTS,), dtype="float16")
        with (
            moving(layout, host_blocks=jobs * (repetitions + 1), ranks=ranks) as there,
            BareWorkers(there.url, ranks, layout.bytes_per_block) as bare,
            undisturbed(),
        ):
            fresh = prompts(settings.seed, 1)
            for repetition in range(repetitions):
                before = there.index.position
                rate = _finishes_per_s(there, list(islice(fresh, jobs)), f"{repetition}")
                pair.add(rate, bare.jobs_per_s(there.jobs_since(before)))
                advance((number + (repetition + 1) / repetitions) / len(chosen))
        found.append(pair.measurement(name, "jobs/s", f"XADD, XREADGROUP, XACK of the same {jobs} messages"))
    return found


def _finishes_per_s(there: Moving, contents: list[bytes], name: str) -> float:
    """Fill the pool with a block for each content, ask for all of it, see them leave."""
    index = there.index
    with index.step():
        for number, content in enumerate(contents):
            there.cache(content, f"{name}-{number}")
    index.allocate(None, len(contents))
    last = index.position + len(contents)
    begin, seen = perf_counter(), there.log.head().position
    _wait_for(there, last)
    rate = (last - seen) / (perf_counter() - begin)
    index.refresh()
    return rate


def _wait_for(there: Moving, position: int) -> None:
    """Block until the log has come so far, on a connection of its own: nothing is asked again and again."""
    client = build_client(there.url)
    log, before = IndexKeys.of(there.index.name).log, entry_id(position - 1)
    end = perf_counter() + _DEADLINE_S
    while not client.xread({log: before}, count=1, block=int(limits.JOB_BLOCK_S * 1000)):
        if perf_counter() > end:
            raise RuntimeError(f"{position} entries of a bench were not in the log within {_DEADLINE_S:g} s")
    client.close()


GROUP: Final = Group(title="swap jobs", figures=tuple(_RANKS), seconds=8, measure=measure)
