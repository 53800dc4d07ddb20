"""What a check found.

Owns the four grades. `UNKNOWN` is no verdict: the server, or the rights of this user, do not let it be told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import attrs

from ops.doctor.patient import Patient

OK: Final = "ok"
WARNING: Final = "warning"
ERROR: Final = "error"
UNKNOWN: Final = "unknown"


@attrs.frozen
class Finding:
    """One sentence about one thing.

    Attributes:
        what: the thing, in two or three words; the same word in good days and bad.
        severity: OK, WARNING (nothing is lost yet), ERROR (a promise does not hold, or will not), UNKNOWN.
        found: with numbers.
        remedy: what to do; "" where nothing is to be done.
    """

    what: str
    severity: str
    found: str
    remedy: str = ""


Check: TypeAlias = Callable[[Patient], Iterator[Finding]]
"""Looks at one group of things. Raises `CannotTell` where it may not look."""


def graded(what: str, bad: bool, found: str, remedy: str, severity: str = ERROR) -> Finding:
    """A finding that is fine, or of `severity` with a remedy."""
    return Finding(what, severity, found, remedy) if bad else Finding(what, OK, found)
