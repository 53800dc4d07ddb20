"""`statecore log`: every commit is there, in words and as JSON, and a filter hides nothing it should show."""

from __future__ import annotations

import re

import pytest
import redis

from events.facts import FACT_TYPES
from events.keys import IndexKeys
from tests.cli.scenario import INDEX, Story, answers, complaint, rewrite, statecore


def positions(story: Story, *options: object) -> list[object]:
    shown = answers(statecore("log", "--url", story.url, "--index", INDEX, "--json", *options))
    return [commit["position"] for commit in shown]


def test_json_has_every_commit_linked_to_the_one_before(story: Story) -> None:
    """A program that audits the log would miss a commit, or could not check the links."""
    shown = answers(statecore("log", "--url", story.url, "--index", INDEX, "--json"))

    assert [commit["position"] for commit in shown] == list(range(1, story.end + 1))
    assert [commit["previous"] for commit in shown] == ["", *(commit["id"] for commit in shown[:-1])]
    assert all(list(commit) == ["position", "id", "previous", "engine", "session", "at", "facts"] for commit in shown)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(shown[0]["at"]))
    assert shown[0]["facts"] == [
        {"fact": "IndexCreated", "block_size": 4, "hash_scheme": "blake2b-128/1"},
        {"fact": "PoolAdded", "pool": "gpu", "tier": "gpu", "blocks": 24},
        {
            "fact": "EngineJoined", "engine": "engine-0", "session": 1, "gpu_pool": "gpu", "cpu_pool": None,
            "tensor_parallel_size": 1,
        },
    ]  # fmt: skip


def test_facts_are_in_words_with_block_ranges_and_short_hashes(story: Story) -> None:
    """A person would read braces and hundreds of hexadecimal digits instead of what happened."""
    result = statecore("log", "--url", story.url, "--index", INDEX, "--from", 3, "--to", 3)

    lines = [re.sub(r"  +", "  ", line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert re.fullmatch(
        r" 3  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z  engine-0#1  PrefixMatched  "
        r"request first, node 0, depth 0, prompt tokens 20",
        lines[0].replace("  3", " 3"),
    )
    assert lines[1:] == [
        "  BlocksAllocated  request first, pool gpu, blocks 0-5",
        "  PathExtended  request first, depth 0, hashes 5 blocks c228cb46…, adopted 0-4, duplicates none",
        "  PathReady  request first, depth 5",
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--request", "first"], [3, 15]),
        (["--engine", "engine-1", "--to", 7], [2, 4, 5, 6, 7]),
        (["--fact", "CopyEvicted"], [17]),
        (["--fact", "copyevicted", "--fact", "RequestReleased"], [15, 17]),
        (["--request", "forked", "--fact", "PathReady"], [7]),
        (["--from", 18], [18, 19]),
        (["--from", 5, "--to", 6], [5, 6]),
        (["--last", 2], [18, 19]),
        (["--last", 2, "--to", 10], [9, 10]),
        (["--limit", 3], [1, 2, 3]),
        (["--fact", "PrefixMatched", "--limit", 2], [3, 4]),
        (["--last", 500], list(range(1, 20))),
    ],
)
def test_a_filter_shows_what_it_says(story: Story, options: list[object], expected: list[int]) -> None:
    """Whoever looks for a request, an engine or a fact would be shown the wrong commits."""
    assert positions(story, *options) == expected


def test_a_filter_shows_only_the_facts_it_is_about(story: Story) -> None:
    """One request would drown in the facts of a thousand others of the same scheduler step."""
    [commit] = answers(
        statecore("log", "--url", story.url, "--index", INDEX, "--fact", "BlocksAllocated", "--to", 3, "--json")
    )

    assert commit["position"] == 3
    assert commit["facts"] == [
        {"fact": "BlocksAllocated", "engine": "engine-0", "request": "first", "pool": "gpu", "blocks": [[0, 6]]}
    ]


def test_nothing_found_is_said(story: Story) -> None:
    """An empty screen would leave it open whether the command worked."""
    result = statecore("log", "--url", story.url, "--index", INDEX, "--request", "nobody")

    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "no commit from 1 to 19 matches\n"


def test_an_exported_file_shows_the_same(story: Story, exported: object) -> None:
    """An incident looked at elsewhere would look different."""
    live = statecore("log", "--url", story.url, "--index", INDEX)
    read = statecore("log", "--file", exported)

    assert read.stdout == live.stdout


def test_commits_before_a_damaged_one_are_shown(story: Story, client: redis.Redis, copy: IndexKeys) -> None:
    """A log would be unreadable as a whole because one entry of it is."""
    rewrite(client, copy, 5, lambda fields: fields.update({b"body": b"[]"}))

    result = statecore("log", "--url", story.url, "--index", copy.name, "--json")

    assert len(result.stdout.splitlines()) == 4
    assert complaint(result, 1).startswith("log entry is damaged: checksum")
    assert complaint(result, 1).endswith("at position 5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", 900], "--from 900 is beyond the end of the log, which is at position 19"),
        (["--to", 900], "--to 900 is beyond the end of the log, which is at position 19"),
        (["--from", 9, "--to", 4], "--to 4 lies before --from 9"),
        (["--from", -1], "Invalid value for '--from': -1 is not in the range x>=1 (see statecore log --help)"),
        (["--from", "x"], "Invalid value for '--from': 'x' is not a valid integer range (see statecore log --help)"),
        (["--from", 2, "--last", 3], "--from and --last both say where to begin: give one of them"),
        (["--limit", 0], "Invalid value for '--limit': 0 is not in the range x>=1 (see statecore log --help)"),
        (["--fact", "PrefixMatch"], "did you mean PrefixMatched"),
        (["--fact", "zzz"], "'zzz' is no fact; known: " + ", ".join(kind.__name__ for kind in FACT_TYPES)),
    ],
)
def test_a_position_or_fact_that_is_not_there_is_refused(story: Story, options: list[object], message: str) -> None:
    """A slip of the finger would show an empty log, as if nothing had happened."""
    assert message in complaint(statecore("log", "--url", story.url, "--index", INDEX, *options), 2)


def test_a_file_cannot_be_followed(exported: object) -> None:
    """The command would wait for ever for a file to grow."""
    message = complaint(statecore("log", "--file", exported, "--follow"), 2)

    assert "--follow needs a server" in message
