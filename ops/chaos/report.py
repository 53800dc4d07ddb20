"""What a chaos run tells a person. What it tells a machine is `ops/reliability/results.py`.

Owns tables and wording; computes nothing.
"""

from __future__ import annotations

import attrs
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ops.reliability.results import ChaosResult, FaultResult, Totals

_MUST_BE_NONE = frozenset({
    *("lost", "duplicated", "out_of_order", "ambiguous_wrong", "effects_doubled", "digests_different", "blocks_wrong"),
    *("blocks_leaked", "transfers_open", "invariants_broken"),
})  # fmt: skip


def opening(seed: int, duration_s: float, fsync: str, server: str) -> Text:
    """What is about to happen, before it does."""
    return Text(
        f"Real engines, workers and keepers on {server} with appendfsync {fsync}, through a network that fails: "
        f"{duration_s:.0f} s of faults, seed {seed}."
    )


def show(console: Console, result: ChaosResult) -> None:
    console.print(_faults(result.faults))
    console.print(_totals(result.totals))
    console.print(Text(_what_ran(result), style="dim"), soft_wrap=True)
    for sentence in (*result.violations, *result.missing):
        console.print(Text.assemble(("✗ ", "bold red"), sentence), soft_wrap=True)
    if result.ok:
        killed = sum(result.kills.values())
        console.print(
            Text.assemble(
                ("✓ ", "bold green"),
                f"{killed} kills and {sum(result.network.values()):,} faults of the network: of "
                f"{result.totals.commits_acknowledged:,} acknowledged commits 0 are lost, 0 duplicated; 0 blocks leaked.",
            ),
            soft_wrap=True,
        )


def _faults(faults: tuple[FaultResult, ...]) -> Table:
    table = _table("fault", "injected", "survived", "recovery at most")
    for fault in faults:
        slowest = "" if fault.slowest_recovery_s is None else f"{fault.slowest_recovery_s:.1f} s"
        table.add_row(
            fault.fault,
            f"{fault.injected:,}",
            f"{fault.survived:,}",
            slowest,
            style=None if fault.injected and fault.survived == fault.injected else "red",
        )
    return table


def _totals(totals: Totals) -> Table:
    table = _table("over all", "count")
    for name, count in attrs.asdict(totals).items():
        table.add_row(name.replace("_", " "), f"{count:,}", style="red" if name in _MUST_BE_NONE and count else None)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="dim", border_style="dim", pad_edge=False, collapse_padding=True)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _what_ran(result: ChaosResult) -> str:
    ran = ", ".join(f"{count} {role}s" for role, count in result.processes.items())
    killed = ", ".join(f"{count} {role}" for role, count in result.kills.items())
    versions = result.versions
    return (
        f"{ran}; {result.positions:,} positions; killed: {killed}. {result.duration_s:.0f} s of faults, quiet "
        f"{result.converged_s:.0f} s later. Redis {versions.redis}, appendfsync {result.fsync}; Python {versions.python}, "
        f"redis-py {versions.redis_py}; seed {result.seed}."
    )
