"""What a figure is, and how two things are timed side by side.

Owns the records that cross the bench (`Measurement`, `Budget`, `Group`, `Settings`) and the way of measuring: the thing
and its reference take turns, repetition by repetition, so that a machine that slows down slows both; each is reported
as the median of its repetitions, and the ratio is the ratio of the medians. What only computes is timed by the clock of
its thread, which stands still while another process has the core; what talks to Redis by the clock on the wall. The
garbage collector is off while something is timed, as in `timeit`: the naive reference keeps millions of objects in the
same process.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Literal, ParamSpec, TypeAlias

import attrs

from ops.bench.workload import Life, lives_of

_Arguments = ParamSpec("_Arguments")

Advance: TypeAlias = Callable[[float], None]
"""Tells the progress bar which share of a group (0 … 1) is done."""


@attrs.frozen
class Measurement:
    """One figure beside its reference; the fields are the keys of the JSON.

    Attributes:
        reference: what the reference is, for people.
        reference_value: in the same unit; None where there is nothing to compare with.
    """

    name: str
    value: float
    unit: str
    reference: str
    reference_value: float | None

    @property
    def ratio(self) -> float | None:
        """`value` over `reference_value`; None without a reference, or when it is 0."""
        return self.value / self.reference_value if self.reference_value else None


@attrs.frozen
class Budget:
    """What the design (section 10) asks of a figure: a bound on its value or on its ratio."""

    bound: float
    of: Literal["value", "ratio"] = "value"
    at_least: bool = False

    def holds(self, measurement: Measurement) -> bool | None:
        """None when the figure has no ratio to judge."""
        found = measurement.value if self.of == "value" else measurement.ratio
        if found is None:
            return None
        return found >= self.bound if self.at_least else found <= self.bound


@attrs.frozen
class Settings:
    """What the command line asked for.

    Attributes:
        quick: small counts, one repetition: shows that everything runs, not how fast.
        seed: of the generated requests.
        trace: a file to take the requests from instead.
    """

    quick: bool = False
    seed: int = 0
    trace: Path | None = None

    def repetitions(self, usual: int) -> int:
        return 1 if self.quick else usual

    def count(self, usual: int, quick: int) -> int:
        return quick if self.quick else usual

    def lives(self, requests: int, *, blocks_max: int | None = None) -> list[Life]:
        """At most so many requests of the trace, or that many of the generator."""
        return list(lives_of(self.trace, requests, self.seed, blocks_max=blocks_max))


@attrs.frozen
class Group:
    """Figures that are measured together.

    Attributes:
        figures: their names, in order.
        seconds: how long a usual run takes, for the progress bar.
        measure: settings, names that are wanted, progress -> figures; it may return more than what is wanted.
        missing: why they cannot be measured on this machine; "" where they can.
    """

    title: str
    figures: tuple[str, ...]
    seconds: float
    measure: Callable[[Settings, frozenset[str], Advance], list[Measurement]]
    budgets: dict[str, Budget] = attrs.Factory(dict)
    missing: Callable[[], str] = str  # which says "": nothing is


@attrs.define
class Pair:
    """Repetitions of something and of its reference, in one unit."""

    values: list[float] = attrs.Factory(list)
    references: list[float] = attrs.Factory(list)

    def add(self, value: float, reference: float) -> None:
        self.values.append(value)
        self.references.append(reference)

    def measurement(self, name: str, unit: str, reference: str) -> Measurement:
        return Measurement(name, median(self.values), unit, reference, median(self.references))


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection inside."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def wall_us(work: Callable[_Arguments, object], *arguments: _Arguments.args, **named: _Arguments.kwargs) -> float:
    """How long `work(*arguments)` takes, waiting included."""
    begin = perf_counter()
    work(*arguments, **named)
    return (perf_counter() - begin) * 1e6


def computing_us(work: Callable[_Arguments, object], *arguments: _Arguments.args, **named: _Arguments.kwargs) -> float:
    """How long this thread computes for `work(*arguments)`."""
    begin = thread_time()
    work(*arguments, **named)
    return (thread_time() - begin) * 1e6


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
