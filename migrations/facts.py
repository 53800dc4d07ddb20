"""Facts of every schema there was, into facts of today's.

Owns the order of the steps. A fact is what an entry's body holds: a list of its name and its fields, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from migrations import facts_1_to_2, facts_2_to_3
from migrations.chain import end_of, lifted

WrittenFact: TypeAlias = list[object]

STEPS: Final[Mapping[int, Callable[[WrittenFact], WrittenFact]]] = {
    1: facts_1_to_2.upcast,
    2: facts_2_to_3.upcast,
}
SCHEMA: Final = end_of(STEPS)
"""The schema the last step leads to."""


def upcast(fact: WrittenFact, schema: int) -> WrittenFact:
    """A fact of `schema` as today's would write it; its name is a string.

    Raises:
        Misshapen: no release of that schema wrote it.
    """
    return lifted(fact, schema, STEPS)
