"""What a run leaves behind for `ops/RELIABILITY.md`: records, and the JSON files they travel in.

Owns the schemas of both kinds of run, and their reading: a file of another kind or another schema is refused, never
guessed at. Knows no run.

    chaos.json        ChaosResult        real processes, a real Redis, a network that fails (ops/chaos)
    simulation.json   SimulationResult   one thread, a seed, every fault that can be simulated (tests/sim)

Counts are of what happened in the run, never what was meant to happen. A fault that was meant and never occurred stands
there with 0, and fails the run that left it out.
"""

from __future__ import annotations

import platform
import sys
import types
import typing
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import orjson

from events.errors import InvalidInput

CHAOS: Final = "chaos"
SIMULATION: Final = "simulation"

Result = TypeVar("Result", bound="ChaosResult | SimulationResult")


@attrs.frozen
class FaultResult:
    """One kind of fault and what became of it.

    Attributes:
        fault: in words, as reliability.md lists it or more exactly.
        injected: how often it happened.
        survived: after how many of them everything affected went on.
        checks: how many recoveries from it were measured; 0 where only the totals were checked.
        violations: how many of them did.
        slowest_recovery_s: from the fault to the last one affected being at work again; None where nobody measured.
    """

    fault: str
    injected: int
    survived: int
    checks: int = 0
    violations: int = 0
    slowest_recovery_s: float | None = None


@attrs.frozen
class Totals:
    """Over a whole run. A `violation` is anything that contradicts a promise, in words, with its numbers.

    Attributes:
        commits_acknowledged: told "it is in the log" to the one who asked.
        lost: of those, not in the log where it was said.
        duplicated: commit ids that are in the log more than once.
        out_of_order: acknowledged before another was begun, and after it in the log.
        ambiguous_landed, ambiguous_not_landed: outcomes that were unknown and found out; ambiguous_wrong: untruly.
        fenced_refused: appends of sessions that were over.
        transfers_finished, effects_doubled: ends of transfers in the log; those that are there twice.
        replicas_compared, digests_different: digests told by replicas and held against a replay at the same position.
        blocks_verified, blocks_wrong: whose bytes were looked at; which held something else.
        blocks_leaked: that belong to nobody in the end.
        transfers_open: that never ended.
        invariants_broken: found by recounting.
    """

    commits_acknowledged: int
    lost: int
    duplicated: int
    out_of_order: int
    ambiguous_landed: int
    ambiguous_not_landed: int
    ambiguous_wrong: int
    fenced_refused: int
    transfers_finished: int
    effects_doubled: int
    replicas_compared: int
    digests_different: int
    blocks_verified: int
    blocks_wrong: int
    blocks_leaked: int
    transfers_open: int
    invariants_broken: int


@attrs.frozen
class Versions:
    """What ran. `redis` is "" where no server did."""

    statecore: str
    python: str
    redis: str
    redis_py: str
    system: str

    @classmethod
    def here(cls, redis: str = "") -> Versions:
        return cls(
            statecore=metadata.version("statecore"),
            python=platform.python_version(),
            redis=redis,
            redis_py=metadata.version("redis"),
            system=f"{sys.platform} {platform.machine()}",
        )


@attrs.frozen
class ChaosResult:
    """One run of `statecore chaos`.

    Attributes:
        seed: of the order and times of faults; where they hit a process differs from run to run.
        duration_s: of the part with faults. converged_s: from their end until all was quiet and equal.
        fsync: Redis' appendfsync.
        processes: what ran, by role.
        kills: SIGKILLs by whom they met.
        network: faults of the proxy by kind.
        faults: one line each, kills and network faults among them.
        violations: in words; the run failed if there is one.
        missing: minimums that were not reached, in words; the run failed if there is one.
    """

    seed: int
    at: str
    duration_s: float
    converged_s: float
    fsync: str
    versions: Versions
    processes: dict[str, int]
    positions: int
    kills: dict[str, int]
    network: dict[str, int]
    faults: tuple[FaultResult, ...]
    totals: Totals
    violations: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.violations and not self.missing


@attrs.frozen
class PlantedBug:
    """A bug put in on purpose.

    Attributes:
        bug: what is wrong, in words.
        caught_by: the check that noticed, in its own words; "" if none did.
        seed: in which run it did; None if none did.
    """

    bug: str
    caught_by: str
    seed: int | None


@attrs.frozen
class SimulatedFault:
    """One kind of fault in a campaign.

    Attributes:
        fault: in words, as reliability.md lists it or more exactly.
        injected: how often it happened.
        survived: of those, how many in runs that came to their end with every check kept and everybody at work again.
    """

    fault: str
    injected: int
    survived: int


@attrs.frozen
class CheckResult:
    """One check of the simulator.

    Attributes:
        check: what must hold, in words.
        made: how often it was looked at.
        broken: runs that it ended. A run ends at the first check that fails.
    """

    check: str
    made: int
    broken: int


@attrs.frozen
class Recoveries:
    """What came right after all faults of a run had stopped: everybody agrees, nothing is open, the dead are declared lost.

    Attributes:
        measured: how many. slowest_s, bound_s: in simulated seconds.
    """

    measured: int
    slowest_s: float
    bound_s: float


@attrs.frozen
class SimulationResult:
    """One campaign of the simulator.

    Attributes:
        first_seed, seeds: the seeds that ran are first_seed … first_seed + seeds - 1.
        steps: of each seed.
        positions: commits that landed in all of them.
        marks: how often each thing that occurred did: commands, refusals, faults, turns, ends.
        faults: the marks that are faults. events: those that are not, and are worth a line.
        checks: every check that was made.
        totals: words -> count, counted where it happened or where it was checked.
        failures: seeds that failed, in words.
        missing: marks that must occur and never did.
    """

    first_seed: int
    seeds: int
    steps: int
    at: str
    duration_s: float
    versions: Versions
    positions: int
    marks: dict[str, int]
    faults: tuple[SimulatedFault, ...]
    events: dict[str, int]
    recoveries: Recoveries
    checks: tuple[CheckResult, ...]
    totals: dict[str, int]
    planted: tuple[PlantedBug, ...]
    failures: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.failures and not self.missing and all(bug.caught_by for bug in self.planted)


_KINDS: Final[Mapping[type, tuple[str, int]]] = {ChaosResult: (CHAOS, 1), SimulationResult: (SIMULATION, 2)}
"""Kind and schema."""


def to_json(result: ChaosResult | SimulationResult) -> bytes:
    """The file's content."""
    kind, schema = _KINDS[type(result)]
    told = {"kind": kind, "schema": schema, "ok": result.ok, **attrs.asdict(result)}
    return orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def from_json(content: bytes, kind: type[Result]) -> Result:
    """
    Raises:
        InvalidInput: it is not a result of this kind and schema; says where it differs.
    """
    try:
        told = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"not a result: {error}") from None
    if not isinstance(told, dict):
        raise InvalidInput(f"not a result: {content!r:.80}")
    stated = (told.pop("kind", None), told.pop("schema", None))
    if stated != _KINDS[kind]:
        raise InvalidInput(f"a result of kind and schema {stated}, not {_KINDS[kind]}")
    told.pop("ok", None)  # it follows from the rest
    made = _made(kind, told, kind.__name__)
    assert isinstance(made, kind)
    return made


def read(path: Path, kind: type[Result]) -> Result:
    """As `from_json`; InvalidInput, too, for a file that cannot be read."""
    try:
        return from_json(path.read_bytes(), kind)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror or error}") from None
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def _made(wanted: Any, told: Any, where: str) -> object:
    """A value of the type `wanted` from what JSON makes of it."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if attrs.has(wanted):
        return _record(wanted, told, where)
    if origin is tuple and isinstance(told, list):
        return tuple(_made(arguments[0], each, f"{where}[{place}]") for place, each in enumerate(told))
    if origin is dict and isinstance(told, dict):
        return {name: _made(arguments[1], each, f"{where}.{name}") for name, each in told.items()}
    if origin is types.UnionType:
        return None if told is None else _made(arguments[0], told, where)
    if wanted is float and type(told) is int:
        return float(told)
    if origin is None and type(told) is wanted:
        return told
    raise InvalidInput(f"{where} is {told!r:.60}, not {wanted}")


def _record(wanted: type, told: Any, where: str) -> object:
    hints = typing.get_type_hints(wanted)
    if not isinstance(told, dict) or not told.keys() <= hints.keys():
        raise InvalidInput(f"{where} is {told!r:.120}, not a {wanted.__name__}")
    try:
        return wanted(**{name: _made(hints[name], each, f"{where}.{name}") for name, each in told.items()})
    except TypeError as error:
        raise InvalidInput(f"{where}: {error}") from None
