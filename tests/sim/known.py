"""Defects of the machine that are known and not mended yet: what the campaign steps around until they are.

Owns one switch per defect. Each has its shortest story in `test_tier_defects.py`, marked as failing; when that story
passes, the switch goes, and the campaign goes there too.
"""

from __future__ import annotations

READY_BEHIND_A_DUPLICATE = True
"""Whether a request may say that it is ready while the tree's copy of one of its duplicates is still being computed."""

FINISH_BELOW_A_CANCEL = True
"""Whether a step may cancel a transfer and go on: it may finish before the step lands, and the rest does not fit then."""

ACKS_EXPIRE_UNDER_STALE_JOBS = True
"""Whether `ACKS_TTL_S` may pass while the job of a transfer that is over is still in a stream."""

PINS_OF_THE_SILENT = False
"""Whether a copy that `HistoryLost` leaves because it is pinned may hold other bytes than the log says. Its owner may have
released it in the lost part, and be gone: when it is declared lost, the copy is there for all to match. `HistoryLost` would
have to end, in the same commit, the lives that hold no lease when the log opens."""

LOST_BEFORE_ANYBODY_KNEW = False
"""Whether that may be so after a loss that nobody alive knows of: whoever appended it died with the server, before anybody
read it. There is no one to tell (decision 0016)."""

JOBS_BEFORE_A_LOSS_IS_DEALT_WITH = False
"""Whether a job may be handed out when the log is open, and a loss is noted, and nobody has appended `HistoryLost` yet: its
source may have been given to somebody else, and its finish is not kept out by the loss."""

SILENT_ACROSS_A_LOSS = False
"""Whether a process may wake that was stopped for longer than its lease when the end of the log was lost: in that end it
may have been declared lost, and its blocks given to others. The surviving log calls it alive, and its next renewal
succeeds."""
