"""Snapshots of every schema there was, into today's.

Owns the order of the steps. A step gets the header of a snapshot: a dict, as JSON holds it. The columns beside it are as
schema 1 had them; the first schema that changes them brings a step that sees them too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from migrations import snapshots_1_to_2
from migrations.chain import end_of, lifted

WrittenHeader: TypeAlias = dict[str, Any]

STEPS: Final[Mapping[int, Callable[[WrittenHeader], WrittenHeader]]] = {1: snapshots_1_to_2.upcast}
SCHEMA: Final = end_of(STEPS)
"""The schema the last step leads to."""


def upcast(header: WrittenHeader, schema: int) -> WrittenHeader:
    """The header of a snapshot of `schema` as today's would write it; `schema` in it stays as it was written.

    Raises:
        Misshapen: no release of that schema wrote it.
    """
    return lifted(header, schema, STEPS)
