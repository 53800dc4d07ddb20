"""What is known to be able to go wrong and is not mended: what the campaign steps around until it is.

Owns one switch per case; decision 0016 says why each is left. With a switch on, the campaign goes there, and fails.
"""

from __future__ import annotations

PINS_OF_THE_SILENT = False
"""Whether a copy that `HistoryLost` leaves because it is pinned may hold other bytes than the log says. Its owner may have
released it in the lost part, and be gone: when it is declared lost, the copy is there for all to match. `HistoryLost` would
have to end, in the same commit, the lives that hold no lease when the log opens."""

LOST_BEFORE_ANYBODY_KNEW = False
"""Whether that may be so after a loss that nobody alive knows of: whoever appended it died with the server, before anybody
read it. There is no one to tell (decision 0016)."""

SILENT_ACROSS_A_LOSS = False
"""Whether a process may wake that was stopped for longer than its lease when the end of the log was lost: in that end it
may have been declared lost, and its blocks given to others. The surviving log calls it alive, and its next renewal
succeeds."""
