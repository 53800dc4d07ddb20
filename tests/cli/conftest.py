"""One server with the told stories for the whole folder; damage goes into copies of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from events import connect
from events.keys import IndexKeys
from tests.cli import handover, scenario
from tests.cli.handover import SPLIT
from tests.cli.scenario import INDEX, TIERS, Story, Tiers, clone, statecore

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """URL of a real redis-server."""
    with connect("embedded://") as connection:
        yield connection.url


@pytest.fixture(scope="session")
def story(server: str) -> Story:
    return scenario.tell(server)


@pytest.fixture(scope="session")
def tiers(server: str) -> Tiers:
    return scenario.tell_tiers(server)


@pytest.fixture(scope="session")
def split(server: str) -> Tiers:
    return handover.tell_split(server)


@pytest.fixture(scope="session")
def exported_split(split: Tiers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The story of the requests that are handed over as a file."""
    file = tmp_path_factory.mktemp("exported") / "split.jsonl"
    assert statecore("export", file, "--url", split.url, "--index", SPLIT).exit_code == 0
    return file


@pytest.fixture(scope="session")
def exported_tiers(tiers: Tiers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The story of the two tiers as a file."""
    file = tmp_path_factory.mktemp("exported") / "tiers.jsonl"
    assert statecore("export", file, "--url", tiers.url, "--index", TIERS).exit_code == 0
    return file


@pytest.fixture(scope="session")
def exported(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The story as a file."""
    file = tmp_path_factory.mktemp("exported") / "story.jsonl"
    assert statecore("export", file, "--url", story.url, "--index", INDEX).exit_code == 0
    return file


@pytest.fixture
def client(server: str) -> Iterator[redis.Redis]:
    """A bare client, to look at keys and to damage them."""
    with redis.Redis.from_url(server) as bare:
        yield bare


@pytest.fixture
def copy(client: redis.Redis, story: Story) -> Iterator[IndexKeys]:
    """A copy of the story to damage."""
    keys = clone(client, INDEX, f"copy-{next(_numbers)}-to-{story.end}")
    yield keys
    client.delete(keys.log, keys.head, keys.fence)


@pytest.fixture
def copied_tiers(client: redis.Redis, tiers: Tiers) -> Iterator[IndexKeys]:
    """A copy of the story of the two tiers to damage."""
    keys = clone(client, TIERS, f"copy-{next(_numbers)}-to-{tiers.end}")
    yield keys
    client.delete(keys.log, keys.head, keys.fence)


@pytest.fixture
def copied_split(client: redis.Redis, split: Tiers) -> Iterator[IndexKeys]:
    """A copy of the story of the requests that are handed over to damage."""
    keys = clone(client, SPLIT, f"copy-{next(_numbers)}-to-{split.end}")
    yield keys
    client.delete(keys.log, keys.head, keys.fence)


@pytest.fixture
def name(client: redis.Redis) -> Iterator[str]:
    """An index nobody has joined."""
    chosen = f"empty-{next(_numbers)}"
    yield chosen
    keys = IndexKeys.of(chosen)
    client.delete(keys.log, keys.head, keys.fence)
