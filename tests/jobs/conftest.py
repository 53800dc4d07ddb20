"""Short waits for the tests of jobs; servers and connections come from `tests/conftest.py`."""

from __future__ import annotations

import pytest

from events import limits


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs on another worker's list may be taken after 50 ms, and every look for new ones looks for those too."""
    monkeypatch.setattr(limits, "JOB_IDLE_S", 0.05)
    monkeypatch.setattr(limits, "JOB_CLAIM_EVERY_S", 0.0)
