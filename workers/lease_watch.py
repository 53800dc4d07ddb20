"""Which engines have given no sign of life for too long, as far as one keeper can tell.

Owns the patience between "its lease is gone" and "it is lost". A server that was away took everybody's leases along, so what
counts is how long a lease has been seen missing in unbroken contact; a look that failed begins it anew.
"""

from __future__ import annotations

from collections.abc import Iterable


class LeaseWatch:
    """Remembers since when the lease of each (engine, session) has been missing. Seconds of any steady clock."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._missing_since: dict[tuple[str, int], float] = {}

    def look(self, alive: Iterable[tuple[str, int, bool]], now: float) -> list[tuple[str, int, float]]:
        """Take down who of those alive by the log (engine, session, holds its lease) is missing.

        Returns:
            Those to be declared lost, with the seconds they have been missing.
        """
        before, self._missing_since = self._missing_since, {}
        lost = []
        for engine, session, held in alive:
            if not held:
                since = self._missing_since[engine, session] = before.get((engine, session), now)
                if now - since >= self._patience_s:
                    lost.append((engine, session, now - since))
        return lost

    def lost_contact(self) -> None:
        """The server did not answer: nothing seen before counts any more."""
        self._missing_since.clear()
