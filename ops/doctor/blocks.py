"""Where every block is: the invariants of the state, blocks that leaked, blocks that wait for a worker's word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ops.cli.output import count, number
from ops.cli.summary import count_pools
from ops.doctor.finding import OK, WARNING, Finding, graded
from ops.doctor.patient import Patient
from statecore.invariants import leaked_blocks, violations

_SHOWN: Final = 3
_RUNBOOK: Final = "runbook: ops/runbooks/pool-leak.md"


def invariants(patient: Patient) -> Iterator[Finding]:
    found = violations(patient.state)
    more = f" (and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
    yield graded(
        "invariants",
        bool(found),
        "; ".join(found[:_SHOWN]) + more if found else f"hold at position {number(patient.state.position)}",
        f"stop the engines; keep a copy (statecore export); {_RUNBOOK}",
    )


def leaks(patient: Patient) -> Iterator[Finding]:
    leaked = leaked_blocks(patient.state)
    yield graded("leaked blocks", leaked != 0, number(leaked), f"a defect: keep a copy (statecore export); {_RUNBOOK}")


def pools(patient: Patient) -> Iterator[Finding]:
    for pool in count_pools(patient.state):
        uses = (("blocks", pool.blocks), ("free", pool.free), ("cached", pool.cached), ("used", pool.used))
        words = ", ".join(f"{number(value)} {name}" for name, value in uses)
        waits = bool(pool.quarantined)
        yield Finding(
            f"pool {pool.pool}",
            WARNING if waits else OK,
            f"{words}, {count(pool.quarantined, 'block')} in quarantine" if waits else words,
            f"they are free when every rank has reported: see the transfers above; {_RUNBOOK}" if waits else "",
        )


CHECKS: Final = (invariants, leaks, pools)
