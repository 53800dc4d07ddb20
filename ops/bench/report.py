"""How figures are shown: a table for people, a list of objects for machines.

Owns the wording and the columns. A tick says that the budget of the design holds in this run, a cross that it does not;
neither is a verdict on the code when the machine is busy, which is why the ratio stands beside it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from typing import Final

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ops.bench.figure import Budget, Group, Measurement, Settings

_WIDTH_MIN: Final = 132
"""Where nobody watches (a pipe, a file) the table is as wide as it needs to be."""


def as_json(measurements: Iterable[Measurement]) -> bytes:
    """`[{name, value, unit, reference, reference_value, ratio}, …]`; null where there is nothing to compare with."""
    plain = [
        {
            "name": each.name,
            "value": _rounded(each.value),
            "unit": each.unit,
            "reference": each.reference,
            "reference_value": _rounded(each.reference_value),
            "ratio": _rounded(each.ratio),
        }
        for each in measurements
    ]
    return orjson.dumps(plain, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def print_table(console: Console, groups: Sequence[tuple[Group, list[Measurement]]], settings: Settings) -> None:
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH_MIN)
    table = Table(title=_title(settings), title_justify="left", title_style="bold", caption_justify="left")
    table.add_column("figure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit")
    table.add_column("reference")
    table.add_column("its value", justify="right", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("budget", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for group, measurements in groups:
        for each in measurements:
            budget = group.budgets.get(each.name)
            table.add_row(
                each.name,
                _number(each.value),
                each.unit,
                each.reference,
                _number(each.reference_value),
                _number(each.ratio),
                "" if budget is None else _bound(budget, each.unit),
                "" if budget is None else _mark(budget.holds(each)),
            )
        table.add_section()
    table.caption = (
        "Medians; figure and reference took turns in this run. The machine may drift by 2x: compare ratios, not times."
    )
    console.print(table)


def _title(settings: Settings) -> str:
    source = settings.trace.name if settings.trace else f"generated requests, seed {settings.seed}"
    mode = "QUICK: shows that it runs, not how fast · " if settings.quick else ""
    return f"{mode}{source} · 64-token blocks · Python {platform.python_version()} · {os.cpu_count()} cores"


def _bound(budget: Budget, unit: str) -> str:
    relation = ">=" if budget.at_least else "<="
    return f"{relation} {_number(budget.bound)}{' ' + unit if budget.of == 'value' else 'x'}"


def _mark(holds: bool | None) -> Text:
    if holds is None:
        return Text("")
    return Text("✓", style="green") if holds else Text("✗", style="bold red")


def _number(value: float | None) -> str:
    """Three digits that say something; thousands apart."""
    if value is None:
        return "–"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
