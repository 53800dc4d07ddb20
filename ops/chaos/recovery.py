"""How long everything affected by a fault took to be at work again, read from the histories.

Owns what "at work again" means for each kind of victim:

    an engine, or everybody      each engine affected has had a commit acknowledged, or a life begun, after the healing
    a pool's workers             a transfer of the pool that was open in between has ended
    a keeper                     not measured: nobody waits for it

Nothing left to do is recovered, too: a worker that no transfer needed any more, an engine that had left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import attrs

from ops.chaos.auditor import Seen
from ops.chaos.history import Acknowledged, Began, Ended, History
from ops.chaos.network import Network
from ops.chaos.replayed import Replayed
from ops.chaos.stage import Injury
from ops.reliability.results import FaultResult

_NEVER = float("inf")


@attrs.frozen
class Signs:
    """When there was a sign of work: of each engine, and the lives of each pool's transfers (begun, ended)."""

    engines: dict[str, list[float]]
    transfers: dict[str, list[tuple[float, float]]]


def signs(histories: Iterable[History], seen: Sequence[Seen], replayed: Replayed) -> Signs:
    engines: dict[str, list[float]] = defaultdict(list)
    for history in histories:
        for line in history.lines:
            if isinstance(line, Acknowledged):
                engines[history.engine].append(line.ended)
            elif isinstance(line, Began):
                engines[history.engine].append(line.at)
            elif isinstance(line, Ended):
                engines[history.engine].append(_NEVER)  # it left in order: from now on nothing is asked of it
    transfers: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, (position, pool) in replayed.starts.items():
        ended = replayed.ends.get(name)
        transfers[pool].append((seen[position - 1].at, _NEVER if ended is None else seen[ended - 1].at))
    return Signs({name: sorted(times) for name, times in engines.items()}, transfers)


def recovery_s(injury: Injury, signs: Signs) -> float | None:
    """From the fault to the last one affected being at work again; None where that is not measured, inf for never."""
    if injury.pool:
        open_then = [
            ended for begun, ended in signs.transfers.get(injury.pool, []) if begun <= injury.healed_at < ended
        ]
        return max(open_then) - injury.at if open_then else None
    if injury.fault.startswith("keeper"):
        return None
    affected = injury.engines or tuple(signs.engines)
    worst = 0.0
    for engine in affected:
        after = next((time for time in signs.engines.get(engine, []) if time >= injury.healed_at), None)
        if after is None:
            return _NEVER
        if after != _NEVER:
            worst = max(worst, after - injury.at)
    return worst


def fault_results(dealt: Iterable[str], injuries: Sequence[Injury], known: Signs, bound_s: float) -> list[FaultResult]:
    """One line for each kind of fault, those that never happened, too."""
    results = []
    for fault in dict.fromkeys(dealt):
        made = [injury for injury in injuries if injury.fault == fault]
        times = [(injury, recovery_s(injury, known)) for injury in made]
        survived = sum(not injury.wrong and (time is None or time <= bound_s) for injury, time in times)
        measured = [time for _, time in times if time is not None]
        results.append(
            FaultResult(
                fault=fault,
                injected=len(made),
                survived=survived,
                checks=len(measured),
                violations=len(made) - survived,
                slowest_recovery_s=round(max(measured), 2) if measured else None,
            )
        )
    return results


def network_results(network: Network) -> list[FaultResult]:
    """Of the network's faults nobody can say which delayed whom; what they might have broken is in the totals."""
    return [FaultResult(fault.value, count, count) for fault, count in sorted(network.counts.items(), key=str)]
