"""Several engine processes on one index: commits per second, conflicts and commit times.

1, 2, 4 and 8 processes, each with a pool of its own or all with one, committing as fast as they can or a step every
20 ms (out of phase, as engines are). The reference of the rates and times is as many processes doing the bare EVALSHA of the
same bytes in the same manner; of the conflicts, the same run with the pools the other way round. Every run has a fresh
Redis, so that none pays for the log of the one before. On a machine with fewer cores than processes, times include
waiting for a core, in the reference too.

| name                          | what                                                                            |
|-------------------------------|---------------------------------------------------------------------------------|
| commits_per_s_K               | of all K engines together                                                       |
| conflicts_per_commit_K        | how often a commit was refused and decided again                                |
| commit_p50_us_K, …p99_us_K    | from the end of the step's calls to the answer, its conflicts included          |
| …_shared_K                    | all engines on one pool                                                         |
| paced_…                       | a step every 20 ms                                                              |
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from multiprocessing.connection import Connection
from statistics import median
from typing import Final, TypeAlias

import attrs
import numpy as np

from events.embedded import EmbeddedRedis
from ops.bench.engine import Outcome, Run, engine_process
from ops.bench.figure import Advance, Group, Measurement, Settings, quantile
from ops.bench.workload import Life

ENGINES: Final = (1, 2, 4, 8)
_PACE_S: Final = 0.020
_POOL_BLOCKS: Final = 10_000
"""Per engine; a shared pool has as many for each engine that shares it."""
_PROMPT_BLOCKS_MAX: Final = 64
_LEAD_S: Final = 0.05
"""From the message to the common start, so that every process has it."""

_METRICS: Final = ("commits_per_s", "conflicts_per_commit", "commit_p50_us", "commit_p99_us")
_UNITS: Final = {"commits_per_s": "commits/s", "conflicts_per_commit": "conflicts"}


@attrs.frozen
class Scenario:
    """How the engines run. `pools` is "own", "shared", or "bare" for the reference."""

    engines: int
    paced: bool
    pools: str

    def figure(self, metric: str) -> str:
        return f"{'paced_' if self.paced else ''}{metric}_{'shared_' if self.pools == 'shared' else ''}{self.engines}"

    def reference_of(self, metric: str) -> Scenario:
        if metric != "conflicts_per_commit":
            return attrs.evolve(self, pools="bare")
        return attrs.evolve(self, pools="shared" if self.pools == "own" else "own")


_SCENARIOS: Final = [
    Scenario(engines, paced, pools) for paced, pools, engines in product((False, True), ("own", "shared"), ENGINES)
]
_FIGURES: Final = {
    scenario.figure(metric): (scenario, metric)
    for paced, pools, metric in product((False, True), ("own", "shared"), _METRICS)
    for scenario in _SCENARIOS
    if scenario.paced == paced and scenario.pools == pools
}
_Results: TypeAlias = dict[Scenario, list[dict[str, float]]]


def measure(settings: Settings, wanted: frozenset[str], advance: Advance) -> list[Measurement]:
    figures = {name: found for name, found in _FIGURES.items() if name in wanted}
    scenarios = {scenario: None for scenario, _ in figures.values()}
    scenarios |= {scenario.reference_of(metric): None for scenario, metric in figures.values()}
    in_turn = sorted(scenarios, key=lambda scenario: (scenario.engines, scenario.paced, scenario.pools))
    repetitions = settings.repetitions(3)
    results: _Results = {scenario: [] for scenario in in_turn}
    lives = settings.lives(settings.count(usual=2000, quick=200), blocks_max=_PROMPT_BLOCKS_MAX)
    with _fleet(max(scenario.engines for scenario in in_turn), lives) as fleet:
        for repetition in range(repetitions):
            for number, scenario in enumerate(in_turn):
                phases = np.random.default_rng((settings.seed, repetition)).uniform(0, _PACE_S, scenario.engines)
                seconds = 0.1 if settings.quick else 0.7
                results[scenario].append(_run(scenario, fleet[: scenario.engines], seconds, phases.tolist()))
                advance((repetition + (number + 1) / len(in_turn)) / repetitions)
    return [_measurement(name, *found, results) for name, found in figures.items()]


def _measurement(name: str, scenario: Scenario, metric: str, results: _Results) -> Measurement:
    reference = scenario.reference_of(metric)
    if reference.pools == "bare":
        label = f"bare EVALSHA, {scenario.engines} at once"
    else:
        label = "one shared pool" if reference.pools == "shared" else "pools of their own"
    value, reference_value = (median(run[metric] for run in results[each]) for each in (scenario, reference))
    return Measurement(name, value, _UNITS.get(metric, "µs"), label, reference_value)


def _run(scenario: Scenario, fleet: list[Connection], seconds: float, phases_s: list[float]) -> dict[str, float]:
    shared = scenario.pools == "shared"
    with EmbeddedRedis() as server:
        for number, engine in enumerate(fleet):
            engine.send(
                Run(
                    url=server.url,
                    index=None if scenario.pools == "bare" else "bench-fleet",
                    engine=number,
                    engines=len(fleet),
                    pool="gpu:shared" if shared else f"gpu:{number}",
                    pool_blocks=_POOL_BLOCKS * (len(fleet) if shared else 1),
                    seconds=seconds,
                    pace_s=_PACE_S if scenario.paced else 0.0,
                    phase_s=phases_s[number] if scenario.paced else 0.0,
                )
            )
        for engine in fleet:
            assert _answer(engine) is True
        start = time.monotonic() + _LEAD_S
        for engine in fleet:
            engine.send(start)
        outcomes = [_outcome(engine) for engine in fleet]
        for engine in fleet:
            engine.send(None)
        for engine in fleet:
            assert _answer(engine) is True  # has left: the server may go
    commits = sum(outcome.commits for outcome in outcomes)
    times = [spent for outcome in outcomes for spent in outcome.commit_us]
    return {
        "commits_per_s": commits / seconds,
        "conflicts_per_commit": sum(outcome.conflicts for outcome in outcomes) / max(1, commits),
        "commit_p50_us": quantile(times, 0.5),
        "commit_p99_us": quantile(times, 0.99),
    }


@contextmanager
def _fleet(engines: int, lives: list[Life]) -> Iterator[list[Connection]]:
    """Processes that wait for runs, and end with the block."""
    context = multiprocessing.get_context("spawn")
    ends, processes = [], []
    try:
        for _ in range(engines):
            ours, theirs = context.Pipe()
            process = context.Process(target=engine_process, args=(theirs, lives), daemon=True)
            process.start()
            theirs.close()
            ends.append(ours)
            processes.append(process)
        yield ends
        for end in ends:
            end.send(None)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
        for end in ends:
            end.close()


def _answer(engine: Connection) -> object:
    try:
        return engine.recv()
    except EOFError:
        raise RuntimeError("an engine process of the bench ended; its error is above") from None


def _outcome(engine: Connection) -> Outcome:
    outcome = _answer(engine)
    assert isinstance(outcome, Outcome)
    return outcome


GROUP: Final = Group(title="fleet", figures=tuple(_FIGURES), seconds=75, measure=measure)
