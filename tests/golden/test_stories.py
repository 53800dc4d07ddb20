"""The golden stories: what engines see, told in text files, line by line.

`REWRITE=1 pytest tests/golden` writes what happens into the files instead of comparing; read every line of the
difference before it is committed, for a wrong behaviour in a golden file is a defect that defends itself.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.golden.runner import Story, paragraphs, play, stories

FOLDER = Path(__file__).parent / "stories"
REWRITE = bool(os.environ.get("REWRITE"))


@pytest.mark.parametrize("story", stories(FOLDER), ids=lambda story: story.stem)
def test_story(story: Path) -> None:
    """An engine author who read the story sees something else happen."""
    told = story.read_text(encoding="utf-8")

    happened = play(told)

    if REWRITE:
        story.write_text(happened, encoding="utf-8")
        return
    assert happened == told


def test_every_story_opens_with_its_moral() -> None:
    """A reader cannot tell what a story is for."""
    for story in stories(FOLDER):
        assert paragraphs(story.read_text(encoding="utf-8"))[0].comments, story.name


def test_a_story_that_tells_a_lie_is_noticed() -> None:
    """A changed behaviour passes unseen because the runner compares nothing."""
    told = "join a pool=g gpu=8\n----\n1: index of 5-token blocks\n"

    assert play(told) != told


def test_a_command_nobody_knows_is_not_skipped() -> None:
    """A misspelt command makes a story pass that tests nothing."""
    with pytest.raises(AttributeError, match="_do_mach"):
        Story().run("mach a r1 tokens=1..4")
