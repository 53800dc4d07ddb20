"""What the demo tells a person, and what it tells a machine.

Owns tables, wording and JSON keys; computes nothing but sums, rates and percentiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ops.demo.messages import Left
from ops.demo.proofs import Proof, digests_equal, leaked, replay_equal
from ops.demo.run import Result
from ops.demo.tally import Tally
from ops.demo.tiers import Tiers, in_units
from ops.demo.workload import GPU_SHARE_PERCENT, HOST_SHARE_PERCENT, POOL_SHARE_PERCENT, Workload


@attrs.frozen
class _Row:
    """One engine, or all of them together."""

    name: str
    shared: Tally
    private: Tally
    gpu_only: Tally
    left: Left

    @property
    def private_hit_rate(self) -> float:
        return self._rate(self.private)

    @property
    def gpu_only_hit_rate(self) -> float:
        return self._rate(self.gpu_only)

    def _rate(self, alone: Tally) -> float:
        """Of the same prompt tokens; what a private pool has to refuse is a miss."""
        return alone.reused_tokens / self.shared.prompt_tokens if self.shared.prompt_tokens else 0.0

    @property
    def figures(self) -> dict[str, object]:
        """For machines; durations in microseconds."""
        return {
            "engine": self.name,
            "requests": self.shared.requests,
            "refused": self.shared.refused,
            "prompt_tokens": self.shared.prompt_tokens,
            "reused_tokens": self.shared.reused_tokens,
            "hit_rate": self.shared.hit_rate,
            "private_hit_rate": self.private_hit_rate,
            "gpu_only_hit_rate": self.gpu_only_hit_rate,
            "private_refused": self.private.refused,
            "commits": self.left.commits,
            "conflicts": self.left.conflicts,
            "commit_p50_us": percentile_us(self.left.commits_s, 50),
            "commit_p99_us": percentile_us(self.left.commits_s, 99),
            "round_trip_p50_us": percentile_us(self.left.round_trips_s, 50),
            "round_trip_p99_us": percentile_us(self.left.round_trips_s, 99),
            "evicted_blocks": self.shared.evicted_blocks,
            "preemptions": self.shared.preemptions,
            "lost_steps": self.shared.lost_steps,
            "mismatches": self.shared.mismatches,
        }


def figures(result: Result) -> dict[str, object]:
    """The report as JSON. `requests` are those served to the end; rates are shares of the prompt tokens, 0 to 1."""
    work, replayed = result.workload, result.replay
    total = _total(result).figures
    del total["engine"]
    return {
        **total,
        "engines": len(result.engines),
        "facts": replayed.facts,
        "digests_equal": digests_equal(result.replicas),
        "replay_equal": replay_equal(result.replicas, replayed),
        "invariants_ok": not replayed.violations,
        "leaked_blocks": leaked(replayed),
        "position": replayed.position,
        "digest": replayed.digest,
        "ok": result.ok,
        **_tier_figures(result),
        "index": result.index,
        "trace": work.source,
        "gpu_blocks": work.gpu_blocks,
        "host_blocks": work.host_blocks,
        "private_blocks": result.private_gpu_blocks,
        "private_host_blocks": result.private_host_blocks,
        "block_size": work.block_size,
        "step_ms": result.step_s * 1000,
        "duration_s": result.duration_s,
        "per_engine": [row.figures for row in _rows(result)],
    }


def _tier_figures(result: Result) -> dict[str, object]:
    """All 0 with one tier. `swap_outs` counts write-throughs too; speeds in bytes a second."""
    movements, moved, tiers = result.replay.movements, result.moved, result.tiers
    block_bytes = 0 if tiers is None else tiers.block_bytes
    return {
        "swap_ins": movements.swap_ins,
        "swap_outs": movements.swap_outs,
        "rescues": movements.rescues,
        "failed_transfers": movements.failed,
        "bytes_moved": movements.moved_blocks * block_bytes,
        "host_tokens": movements.host_tokens,
        "cross_engine_tokens": movements.cross_engine_tokens,
        "bytes_verified": result.held.verified_bytes,
        "open_transfers": result.open_transfers,
        "copy_bytes_per_s": round(moved.bytes_per_s),
        "memcpy_bytes_per_s": round(result.memcpy_bytes_per_s),
        "block_bytes": block_bytes,
        "tensor_parallel_size": 1 if tiers is None else tiers.ranks,
        "policy": None if tiers is None else tiers.policy.write,
        "watermarks": None if tiers is None else [tiers.policy.free_low, tiers.policy.free_high],
    }


def show(console: Console, result: Result) -> None:
    """Tables, what they say in one line, proofs, and what the figures leave out."""
    rows, total = _rows(result), _total(result)
    console.print(_sharing(rows, total, two_tiers=result.tiers is not None))
    console.print(_costs(rows, total))
    if result.tiers is not None:
        for label, line in _movements(result, result.tiers):
            console.print(Text.assemble((f"{label:<11}", "dim"), line), soft_wrap=True)
        console.print()
    console.print(_conclusion(total, len(rows), two_tiers=result.tiers is not None), soft_wrap=True)
    console.print()
    for proof in result.proofs:
        console.print(_proof(proof), soft_wrap=True)
    console.print()
    for line in _notes(result, total):
        console.print(line, style="dim", soft_wrap=True)


# --- tables ---------------------------------------------------------------------------------------------------------


def _sharing(rows: Sequence[_Row], total: _Row, *, two_tiers: bool) -> Table:
    alone = ("private", "GPU only") if two_tiers else ("private",)
    table = _table("engine", "requests", "prompt tokens", "reused", "hit rate", *alone)
    for row in (*rows, total):
        table.add_row(
            row.name,
            f"{row.shared.requests:,}",
            f"{row.shared.prompt_tokens:,}",
            f"{row.shared.reused_tokens:,}",
            _percent(row.shared.hit_rate),
            _percent(row.private_hit_rate),
            *([_percent(row.gpu_only_hit_rate)] if two_tiers else []),
            style="bold" if row is total else None,
        )
    return table


def _costs(rows: Sequence[_Row], total: _Row) -> Table:
    table = _table("engine", "commits", "conflicts", "commit p50", "p99", "append", "evicted", "preempted")
    for row in (*rows, total):
        table.add_row(
            row.name,
            f"{row.left.commits:,}",
            f"{row.left.conflicts:,}",
            duration(percentile_us(row.left.commits_s, 50)),
            duration(percentile_us(row.left.commits_s, 99)),
            duration(percentile_us(row.left.round_trips_s, 50)),
            f"{row.shared.evicted_blocks:,}",
            f"{row.shared.preemptions:,}",
            style="bold" if row is total else None,
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="dim", border_style="dim", pad_edge=False, collapse_padding=True)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _movements(result: Result, tiers: Tiers) -> list[tuple[str, str]]:
    """What went between the tiers, in a few lines."""
    moves, moved = result.replay.movements, result.moved
    workers = len(result.engines) * tiers.ranks
    piece = in_units(moved.moved_bytes / moved.copies) if moved.copies else "0 B"
    others = moves.cross_engine_tokens / moves.host_tokens if moves.host_tokens else 0.0
    failed = f", {moves.failed:,} failed" if moves.failed else ""
    return [
        (
            "transfers",
            f"{_count(moves.swap_outs, 'swap-out')}, {_count(moves.swap_ins, 'swap-in')}, "
            f"{moves.rescues:,} rescued{failed}",
        ),
        ("host tier", f"{moves.host_tokens:,} tokens came back from it, {_percent(others)} computed by another engine"),
        (
            "copies",
            f"{in_units(moves.moved_blocks * tiers.block_bytes)} by {_count(workers, 'worker')}, {piece} each: "
            f"{moved.bytes_per_s / 1e9:.1f} GB/s; one large memcpy: {result.memcpy_bytes_per_s / 1e9:.1f} GB/s",
        ),
        ("verified", f"{in_units(result.held.verified_bytes)} in reused blocks, {result.held.mismatches:,} mismatches"),
    ]


def _conclusion(total: _Row, engines: int, *, two_tiers: bool) -> Text:
    rate, alone = _percent(total.shared.hit_rate), _percent(total.private_hit_rate)
    none = _percent(total.gpu_only_hit_rate)
    if engines == 1:
        return Text(
            f"One engine shares with nobody: hit rate {rate}{f', without a host pool {none}' if two_tiers else ''}."
        )
    gained = total.shared.reused_tokens - total.private.reused_tokens
    if gained <= 0:
        return Text(f"Sharing gains these requests nothing: hit rate {rate}, privately {alone}.")
    fewer = f"{gained:,} prompt tokens fewer to compute."
    if two_tiers:
        return Text.assemble(
            "One host pool for all: hit rate ", (rate, "bold"), f"; private ones {alone}, none {none}. {fewer}"
        )
    return Text.assemble("Sharing: hit rate ", (rate, "bold"), f" instead of {alone}, {fewer}")


def _proof(proof: Proof) -> Text:
    mark, style = ("✓ ", "bold green") if proof.holds else ("✗ ", "bold red")
    return Text.assemble((mark, style), f"{proof.claim:<34}", (proof.shown_by, "dim" if proof.holds else "red"))


# --- words ----------------------------------------------------------------------------------------------------------


def opening(work: Workload, tiers: Tiers | None, engines: int, where: str, step_s: float) -> Text:
    """What is about to happen, before it does."""
    pace = f"at least {step_s * 1000:g} ms a scheduler step" if step_s else "as fast as the index goes"
    lines = [
        ("engines", f"{engines} processes, {pace}" if engines > 1 else f"1 process, {pace}"),
        ("index", where),
        ("requests", f"{len(work.requests):,} of {work.source}, dealt round-robin"),
        *(_one_tier(work) if tiers is None else _two_tiers(work, tiers, engines)),
    ]
    if work.biggest > work.pool_blocks(engines):
        lines.append(("", f"too small for the biggest request, {work.biggest:,} blocks: what never fits is refused"))
    return Text("\n").join(Text.assemble((f"{label:<11}", "dim"), line) for label, line in lines)


def _one_tier(work: Workload) -> list[tuple[str, str]]:
    sized = f"{POOL_SHARE_PERCENT} % of what the prompts hold, so that it evicts; --gpu-blocks sets it"
    return [
        ("GPU pool", f"{work.gpu_blocks:,} blocks of {work.block_size} tokens, shared by all"),
        *([("", sized)] if work.sized_by_us else []),
    ]


def _two_tiers(work: Workload, tiers: Tiers, engines: int) -> list[tuple[str, str]]:
    policy, workers = tiers.policy, engines * tiers.ranks
    marks = f"; below {policy.free_low} % free, until {policy.free_high} % is" if policy.free_low else ""
    sized = (
        f"{GPU_SHARE_PERCENT} % and {HOST_SHARE_PERCENT} % of what the prompts hold, or as much as one request needs"
    )
    memory = in_units(tiers.memory_bytes(engines))
    return [
        ("GPU pools", f"{work.gpu_blocks // engines:,} blocks of {work.block_size} tokens for each engine"),
        ("host pool", f"{work.host_blocks:,} blocks, shared by all; {policy.write.replace('_', '-')}{marks}"),
        *([("", sized)] if work.sized_by_us else []),
        ("bytes", f"{tiers.block_bytes:,} a block, {memory} of /dev/shm; moved by {_count(workers, 'worker')}"),
    ]


def _notes(result: Result, total: _Row) -> list[str]:
    work = result.workload
    stand_in = f"{result.step_s * 1000:g} ms stand for it" if result.step_s else "nothing stands for it"
    each = f"{result.private_gpu_blocks:,} blocks each"
    if result.tiers is not None:
        each = f"{result.private_gpu_blocks:,} GPU and {result.private_host_blocks:,} host blocks each, copies at once"
    lines = [
        f"{result.duration_s:.1f} s of serving. A trace is lengths and block hashes: no model runs, {stand_in}.",
        f"private: the same scheduler on the same round-robin share, {each}.",
        "commit: from its first append until the log has it, conflicts and waits included; append: one try, p50.",
    ]
    if total.shared.refused:
        lines.append(
            f"Refused: {total.shared.refused:,} requests, which need up to {work.biggest:,} blocks; no rate counts them."
        )
    if total.private.refused > total.shared.refused:
        lines.append(f"A private pool is too small for {total.private.refused:,} requests: they count as misses there.")
    return lines


def duration(microseconds: float) -> str:
    """As a person reads it."""
    if microseconds < 1000:
        return f"{microseconds:.0f} µs"
    milliseconds = microseconds / 1000
    return f"{milliseconds:.1f} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"


def percentile_us(durations_s: Sequence[float], percent: int) -> float:
    """Nearest rank, in microseconds; 0 when there is none."""
    if not durations_s:
        return 0.0
    ordered = sorted(durations_s)
    return round(ordered[-(-len(ordered) * percent // 100) - 1] * 1e6, 1)


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


# --- rows -----------------------------------------------------------------------------------------------------------


def _rows(result: Result) -> list[_Row]:
    return [_Row(engine.name, engine.shared, engine.private, engine.gpu_only, engine.left) for engine in result.engines]


def _total(result: Result) -> _Row:
    rows = _rows(result)
    left = Left(
        commits=sum(row.left.commits for row in rows),
        conflicts=sum(row.left.conflicts for row in rows),
        commits_s=[duration for row in rows for duration in row.left.commits_s],
        round_trips_s=[duration for row in rows for duration in row.left.round_trips_s],
    )
    shared, private, gpu_only = (
        Tally.sum(tallies) for tallies in zip(*((row.shared, row.private, row.gpu_only) for row in rows), strict=True)
    )
    return _Row("all", shared, private, gpu_only, left)
