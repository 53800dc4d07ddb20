"""All planted bugs, by the kind of run that looks for them.

Owns the kinds of run: how many seeds, how long, with how many tiers, with or without perils.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from ops.reliability.results import PlantedBug
from tests.sim.planted import PLANTED
from tests.sim.planted_lives import PLANTED_LIVES
from tests.sim.planted_tiers import PLANTED_TIERS
from tests.sim.planting import Bug, Search, catch

ONE_TIER: Final = Search(runs=150, steps=60, tiers=1)
TWO_TIERS: Final = Search(runs=600, steps=100, tiers=2)
PERILS: Final = Search(runs=300, steps=100, tiers=2, perils=True)
TABLES: Final[tuple[tuple[Mapping[str, Bug], Search], ...]] = (
    (PLANTED, ONE_TIER),
    (PLANTED_TIERS, TWO_TIERS),
    (PLANTED_LIVES, PERILS),
)


def plant_all() -> Iterator[PlantedBug]:
    """Look for each of them; some take seconds."""
    for bugs, search in TABLES:
        for name, bug in bugs.items():
            caught = catch(bug, search)
            yield PlantedBug(name, "", None) if caught is None else PlantedBug(name, caught.check, caught.seed)
