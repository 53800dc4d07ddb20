"""`statecore log`: every commit is there, in words and as JSON, and a filter hides nothing it should show."""

from __future__ import annotations

import re

import pytest
import redis

from events.facts import (
    FACT_TYPES,
    CacheCleared,
    Fact,
    PolicyChosen,
    PoolResized,
    RequestReleased,
    SendStarted,
    ServicePaused,
    ServiceResumed,
    TransferCancelled,
    TransferFinished,
    TransferStarted,
)
from events.keys import IndexKeys
from ops.cli.words import fact_words
from tests.cli.scenario import INDEX, TIERS, Story, Tiers, answers, complaint, rewrite, statecore


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
            "tensor_parallel_size": 1, "memory_survives": False,
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


# --- two tiers


def test_transfers_and_the_policy_are_in_sentences(tiers: Tiers) -> None:
    """Whoever follows a block between the tiers would have to put ten fields together in his head."""
    result = statecore("log", "--url", tiers.url, "--index", TIERS)

    lines = [re.sub(r"  +", "  ", line) for line in result.stdout.splitlines()]
    shown = {line.partition(fact)[2].strip() for line in lines for fact in TOLD if f"  {fact}  " in line}
    assert shown == {
        "write back, swap-outs only when blocks are needed",
        "engine-0:0: swap out, gpu 0-3 → cpu:host 0-3, blocks 0-3 of the path to node 1",
        "engine-0:0: done",
        "engine-0:1: swap in for request hasty, cpu:host 0-3 → gpu 0-3, blocks 0-3 of the path to node 1",
        "engine-0:1: failed (rank 1: no such file)",
        "engine-0:2: swap in for request patient, cpu:host 0-3 → gpu 0-3, blocks 0-3 of the path to node 1",
        "engine-0:2: done",
        "engine-0:3: swap out, gpu 4-7 → cpu:host 4-7, blocks 0-3 of the path to node 2",
        "engine-0:3: done",
        "engine-0:4: swap out, gpu 8-11 → cpu:host 8-11, blocks 0-3 of the path to node 3",
        "engine-0:4: the engine is in a hurry",
        "engine-0:5: swap in for request waiting, cpu:host 0-3 → gpu 0-3, blocks 0-3 of the path to node 1",
    }
    [finished] = [line for line in lines if "engine-0:0: done" in line]
    assert "  worker:gpu#0  TransferFinished  " in finished


TOLD = ("PolicyChosen", "TransferStarted", "TransferFinished", "TransferCancelled")


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        (PolicyChosen("write_through", 10, 25), "write through, swap-outs under 10 % free until 25 %"),
        (TransferFinished("a:b:7", False, ""), "a:b:7: failed (no reason given)"),
        (TransferCancelled("a:7", ""), "a:7: no reason given"),
        (
            TransferStarted("b:0", "write_through", "b", None, -1, 2, 3, "gpu", ((4, 1),), "cpu", ((0, 1),)),
            "b:0: write through, gpu 4 → cpu 0, blocks 2 of the path to node -1, engine b",
        ),
        (RequestReleased("b", "r", ()), "engine b, request r, freed none"),
        (
            SendStarted("b:7", "b", "r", "d", "gpu:b", ((4, 2), (9, 1)), "gpu:d", ((0, 3),)),
            "b:7: send of request r to engine d, gpu:b 4-5, 9 → gpu:d 0-2, engine b",
        ),
        (PoolResized("gpu", 1), "pool gpu has 1 block from now on"),
        (ServicePaused("a", "new weights"), "no request may begin: new weights"),
        (ServicePaused("b", ""), "no request may begin: no reason given, engine b"),
        (ServiceResumed("a", "they are here"), "requests may begin again: they are here"),
        (CacheCleared("a", "new weights"), "all that was cached is forgotten: new weights"),
    ],
)
def test_a_fact_in_words(fact: Fact, words: str) -> None:
    """An odd case would show an empty reason, or hide whose fact it is."""
    assert fact_words(fact, "a") == words


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--request", "hasty"], ["swap-in", "failed", "released"]),
        (["--request", "hasty", "--fact", "TransferFinished"], ["failed"]),
        (["--engine", "engine-0", "--fact", "TransferFinished"], ["swapped out", "failed", "swapped in", "rescued"]),
        (["--engine", "worker:gpu"], ["swapped out", "failed", "swapped in", "rescued"]),
        (["--engine", "engine-1"], []),
    ],
)
def test_the_end_of_a_transfer_belongs_to_who_asked_for_it(
    tiers: Tiers, options: list[object], expected: list[str]
) -> None:
    """What became of a swap-in would be missing from the story of the request that waited for it."""
    shown = answers(statecore("log", "--url", tiers.url, "--index", TIERS, "--json", *options))

    known = {**tiers.at, "released": tiers.at["failed"] + 1}
    assert [commit["position"] for commit in shown] == [known[name] for name in expected]


def test_a_transfer_as_json_has_its_fields(tiers: Tiers) -> None:
    """A program would have to read sentences."""
    at = tiers.at["swap-out"]
    [commit] = answers(statecore("log", "--url", tiers.url, "--index", TIERS, "--from", at, "--to", at, "--json"))

    assert commit["facts"] == [
        {
            "fact": "TransferStarted", "transfer": "engine-0:0", "kind": "swap_out", "engine": "engine-0", "request": None,
            "node": 1, "start": 0, "end": 4, "source": "gpu", "source_blocks": [[0, 4]], "destination": "cpu:host",
            "destination_blocks": [[0, 4]],
        }
    ]  # fmt: skip
