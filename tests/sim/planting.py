"""The tables of planted bugs, and the search for a run that notices one.

Owns what counts as caught: a run that ends at a check that is named beside the bug. A bug that makes the machine raise
something else, a TypeError say, is not caught by that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Final
from unittest import mock

import attrs

from events.errors import CorruptState
from tests.sim.accounts import Violation
from tests.sim.story import run

FIRST: Final = 5_000
CORRUPT_STATE: Final = "CorruptState"
"""The machine's own check of its state and its log: it stops."""

Patch = tuple[object, str, object]
Plant = Callable[[], AbstractContextManager[None]]


@attrs.frozen
class Bug:
    """A bug.

    Attributes:
        plant: a context in which it is there.
        checks: those that are known to notice it; one of them must.
        first: seed at which the search begins, later than elsewhere where it would take long otherwise.
    """

    plant: Plant
    checks: tuple[str, ...]
    first: int = FIRST


@attrs.frozen
class Search:
    """How a table's bugs are looked for: which kind of run, and how many at most."""

    runs: int
    steps: int
    tiers: int
    perils: bool | None = None


@attrs.frozen
class Caught:
    """`check` noticed it, in the run of `seed`."""

    seed: int
    check: str


def patches(*patches: Patch) -> Plant:
    @contextmanager
    def planted() -> Iterator[None]:
        with ExitStack() as stack:
            for target, name, value in patches:
                stack.enter_context(mock.patch.object(target, name, value))
            yield

    return planted


def check_of(failure: Exception | None) -> str:
    """The check that a failure comes from; "" for any other error."""
    if isinstance(failure, Violation):
        return failure.check
    return CORRUPT_STATE if isinstance(failure, CorruptState) else ""


def catch(bug: Bug, search: Search) -> Caught | None:
    """The first run that notices the bug as it should, and goes through without it."""
    for seed in range(bug.first, bug.first + search.runs):
        with bug.plant():
            check = check_of(_failure(seed, search))
        if check in bug.checks and _failure(seed, search) is None:
            return Caught(seed, check)
    return None


def _failure(seed: int, search: Search) -> Exception | None:
    return run(seed, search.steps, tiers=search.tiers, perils=search.perils).failure
