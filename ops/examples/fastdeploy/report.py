"""What the example tells a person, and what it tells a machine.

Owns wording and JSON keys; computes sums and rates only.
"""

from __future__ import annotations

import attrs
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ops.demo.proofs import leaked
from ops.examples.fastdeploy.run import Result, RolesResult
from ops.examples.fastdeploy.serve import Served


@attrs.frozen
class _Row:
    """One engine, or all together."""

    name: str
    requests: int
    finished: int
    aborted: int
    refused: int
    preempted: int
    resumed: int
    whole_prompt_hits: int
    undone: int
    no_room: int
    put_off: int
    steps: int
    speculative_steps: int
    accepted_tokens: int
    generated_tokens: int
    prompt_tokens: int
    gpu_tokens: int
    host_tokens: int
    commits: int
    conflicts: int
    tables_checked: int
    states_checked: int
    violations: int
    seconds: float

    @property
    def steps_per_s(self) -> float:
        return self.steps / self.seconds if self.seconds else 0.0

    @property
    def gpu_hit_rate(self) -> float:
        return self.gpu_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def host_hit_rate(self) -> float:
        return self.host_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


def figures(result: Result | RolesResult) -> dict[str, object]:
    """For machines. Rates are shares of the tokens that were matched for, 0 to 1; times in seconds."""
    if isinstance(result, RolesResult):
        return {**attrs.asdict(result), "ok": result.ok}
    replayed, spec = result.replay, result.specs[0]
    rows = _rows(result)
    return {
        **_figures(rows[-1]),
        "ok": result.ok,
        "proofs": [attrs.asdict(proof) for proof in result.proofs],
        "leaked_blocks": leaked(replayed),
        "swap_ins": replayed.movements.swap_ins,
        "swap_outs": replayed.movements.swap_outs,
        "cross_engine_tokens": replayed.movements.cross_engine_tokens,
        "position": replayed.position,
        "digest": replayed.digest,
        "trace": spec.work.source,
        "engines": len(result.specs),
        "gpu_blocks": spec.gpu_blocks,
        "host_blocks": spec.host_blocks,
        "block_size": spec.settings.block_size,
        "num_speculative_tokens": spec.settings.num_speculative_tokens,
        "index": spec.index,
        "per_engine": [_figures(row) for row in rows[:-1]],
    }


def show(console: Console, result: Result | RolesResult) -> None:
    """Tables, proofs, and what the figures leave out."""
    lines = _show_roles(console, result) if isinstance(result, RolesResult) else _show_engines(console, result)
    for proof in result.proofs:
        mark, style = ("✓ ", "bold green") if proof.holds else ("✗ ", "bold red")
        shown = Text.assemble((mark, style), f"{proof.claim:<34}", (proof.shown_by, "dim" if proof.holds else "red"))
        console.print(shown, soft_wrap=True)
    console.print()
    for line in lines:
        console.print(line, style="dim", soft_wrap=True)


def _show_roles(console: Console, result: RolesResult) -> list[str]:
    table = _table("", "finished", "aborted", "sent", "not sent", "reused tokens", "steps")
    table.add_row(
        "prefill to decode",
        *_numbers(result.finished, result.aborted, result.sent, result.unsent, result.reused_tokens, result.steps),
    )
    console.print(table)
    return [
        f"{result.seconds:.1f} s, the checks included; both engines are stepped in this process, workers send the bytes.",
        "reused: what the prefill engine had in its cache and did not compute again.",
    ]


def _show_engines(console: Console, result: Result) -> list[str]:
    """The tables; what is to be said after the proofs."""
    rows = _rows(result)
    requests = _table("engine", "finished", "aborted", "refused", "preempted", "resumed", "undone", "steps", "per s")
    for row in rows:
        requests.add_row(
            row.name,
            *_numbers(row.finished, row.aborted, row.refused, row.preempted, row.resumed, row.undone, row.steps),
            f"{row.steps_per_s:,.0f}",
        )
    tokens = _table("engine", "tokens", "GPU hit", "host hit", "generated", "kept drafts", "commits", "conflicts")
    for row in rows:
        tokens.add_row(
            row.name,
            *_numbers(row.prompt_tokens),
            f"{row.gpu_hit_rate:.1%}",
            f"{row.host_hit_rate:.1%}",
            *_numbers(row.generated_tokens, row.accepted_tokens, row.commits, row.conflicts),
        )
    console.print(requests)
    console.print(tokens)
    return _notes(result, rows[-1])


def _notes(result: Result, total: _Row) -> list[str]:
    spec, shape = result.specs[0], result.specs[0].work.shape
    moves = result.replay.movements
    again = f", and one request of {shape.again_every} asks an earlier prompt again" if shape.again_every else ""
    lines = [
        f"{result.seconds:.1f} s of serving, the checks included; no model runs, so that is what scheduler, manager, log "
        "and checks cost together.",
        f"Prompts are 1/{shape.shrink_prompt} and outputs 1/{shape.shrink_output} as long as in the trace"
        f"{again}: hit rates are this workload's, not the trace's.",
        f"tokens: that were matched for, those of {total.resumed:,} resumed requests included; "
        f"{total.whole_prompt_hits:,} matches covered everything, and the last block was computed again.",
    ]
    if total.speculative_steps:
        drafted = total.speculative_steps * spec.settings.num_speculative_tokens
        lines.append(
            f"{total.speculative_steps:,} speculative steps drafted {drafted:,} tokens and kept {total.accepted_tokens:,}."
        )
    if spec.host_blocks:
        lines.append(
            f"{moves.swap_outs:,} swap-outs and {moves.swap_ins:,} swap-ins; {moves.cross_engine_tokens:,} of the "
            f"{moves.host_tokens:,} tokens from the host were computed by another engine."
        )
    return lines


def _rows(result: Result) -> list[_Row]:
    """The engines', then the sum."""
    rows = [
        _row(spec.engine, len(range(place, len(spec.work.requests), len(result.specs))), served)
        for place, (spec, served) in enumerate(zip(result.specs, result.served, strict=True))
    ]
    names = [field.name for field in attrs.fields(_Row) if field.name not in {"name", "seconds"}]
    sums = {name: sum(getattr(row, name) for row in rows) for name in names}
    return [*rows, _Row(name="all", seconds=result.seconds, **sums)]


def _row(name: str, requests: int, served: Served) -> _Row:
    counts, computed, tokens = served.counts, served.computed, served.tokens
    return _Row(
        name=name,
        requests=requests,
        finished=counts.finished,
        aborted=counts.aborted,
        refused=counts.refused,
        preempted=counts.preempted,
        resumed=counts.resumed,
        whole_prompt_hits=counts.whole_prompt_hits,
        undone=counts.undone,
        no_room=counts.no_room,
        put_off=counts.put_off,
        steps=served.steps,
        speculative_steps=computed.speculative_steps,
        accepted_tokens=computed.accepted_tokens,
        generated_tokens=computed.generated_tokens,
        prompt_tokens=tokens.asked,
        gpu_tokens=tokens.from_gpu,
        host_tokens=tokens.from_host,
        commits=served.commits,
        conflicts=served.conflicts,
        tables_checked=served.checked.tables,
        states_checked=served.checked.states,
        violations=len(served.violations),
        seconds=served.seconds,
    )


def _figures(row: _Row) -> dict[str, object]:
    named = attrs.asdict(row)
    named["engine"] = named.pop("name")
    return {
        **named,
        "steps_per_s": row.steps_per_s,
        "gpu_hit_rate": row.gpu_hit_rate,
        "host_hit_rate": row.host_hit_rate,
    }


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="dim", border_style="dim", pad_edge=False, collapse_padding=True)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _numbers(*values: int) -> list[str]:
    return [f"{value:,}" for value in values]
