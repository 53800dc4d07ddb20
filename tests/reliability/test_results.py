"""Results travel as files: what is read is what was written, and what is something else is refused."""

from __future__ import annotations

from pathlib import Path

import attrs
import orjson
import pytest

from events.errors import InvalidInput
from ops.reliability.results import (
    ChaosResult,
    CheckResult,
    FaultResult,
    PlantedBug,
    Recoveries,
    SimulatedFault,
    SimulationResult,
    Totals,
    Versions,
    from_json,
    read,
    to_json,
)

NOTHING = Totals(*(0 for _ in attrs.fields(Totals)))
CHAOS = ChaosResult(
    seed=7,
    at="2026-01-02T03:04:05Z",
    duration_s=180.5,
    converged_s=3.0,
    fsync="always",
    versions=Versions("0.1.0", "3.11.7", "7.0.15", "8.1.0", "Linux"),
    processes={"engines": 4},
    positions=6000,
    kills={"engine": 12},
    network={"lost request": 400},
    faults=(FaultResult("engine killed", 12, 12, 9, 0, 4.5), FaultResult("lost request", 400, 400)),
    totals=NOTHING,
)
SIMULATION = SimulationResult(
    first_seed=0,
    seeds=150,
    steps=60,
    at="2026-01-02T03:04:05Z",
    duration_s=12.0,
    versions=Versions.here(),
    positions=9000,
    marks={"conflict": 3},
    faults=(SimulatedFault("lost reply", 90, 88),),
    events={"arrivals: all": 700},
    recoveries=Recoveries(300, 27.5, 70.0),
    checks=(CheckResult("one digest per position", 20_000, 0),),
    totals={"commits acknowledged": 9000},
    planted=(PlantedBug("no fence check", "a session that is over changes nothing", 5003),),
)


@pytest.mark.parametrize("result", [CHAOS, SIMULATION])
def test_what_was_written_is_read(result: ChaosResult | SimulationResult, tmp_path: Path) -> None:
    """Given a result in a file, reading it gives an equal one."""
    (tmp_path / "result.json").write_bytes(to_json(result))

    assert read(tmp_path / "result.json", type(result)) == result


@pytest.mark.parametrize(
    "spoil",
    [
        {"schema": 2},
        {"kind": "simulation"},
        {"seed": "7"},
        {"seed": True},
        {"totals": {"lost": 1}},
        {"faults": [{"fault": "x"}]},
        {"faults": {}},
        {"kills": {"engine": 1.5}},
        {"unheard_of": 1},
    ],
)
def test_something_else_is_refused(spoil: dict[str, object]) -> None:
    """Given a file of another schema, kind or type, it is refused and not guessed at."""
    spoiled = orjson.dumps({**orjson.loads(to_json(CHAOS)), **spoil})

    with pytest.raises(InvalidInput):
        from_json(spoiled, ChaosResult)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"null"])
def test_no_result_at_all_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidInput):
        from_json(content, SimulationResult)


def test_a_result_is_as_good_as_its_worst_part() -> None:
    """Given a violation, a minimum that was missed, a failing seed or a bug nobody caught, the result is not ok."""
    assert CHAOS.ok
    assert SIMULATION.ok
    assert not attrs.evolve(CHAOS, violations=("commit 3 is lost",)).ok
    assert not attrs.evolve(CHAOS, missing=("kills: 29 of 30",)).ok
    assert not attrs.evolve(SIMULATION, failures=("seed 4",)).ok
    assert not attrs.evolve(SIMULATION, missing=("conflict",)).ok
    assert not attrs.evolve(SIMULATION, planted=(PlantedBug("no fence check", "", None),)).ok
