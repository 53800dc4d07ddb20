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
