"""Layout 2 has a lease per engine, seats of workers, and the server's life in the head.

Seats are taken by workers when they start, and the life is written by the first commit, which waits for the barrier: under
layout 1 nobody noted in which life of the server the log was last open. What has to be there before is the leases: an engine
without one is deposed, and nobody is to be deposed before it could have renewed its own.
"""

from __future__ import annotations

from typing import Final

from migrations.move import Move

MOVES: Final = (
    Move("1", "1>2", leases=False, what="close the index: from here on neither release writes to it"),
    Move("1>2", "1>2", leases=True, what="give every engine a lease"),
    Move("1>2", "2", leases=False, what="open it for releases that speak layout 2"),
)
