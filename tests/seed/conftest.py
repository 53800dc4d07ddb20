"""A place for managers, once per log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from events.log import LogConnection
from tests.manager.given import Place


@pytest.fixture
def place(connection: LogConnection, index_name: str) -> Iterator[Place]:
    """On every backend; parametrise `connection` indirectly to run on one only."""
    made = Place(connection, index_name)
    yield made
    made.close()
