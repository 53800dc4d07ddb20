"""`statecore replay`: the state it rebuilds is the one the engines had."""

from __future__ import annotations

import io
import sys
from typing import Any, cast

import pytest

from events import connect
from ops.cli import output, replaying
from statecore import CacheIndex
from tests.cli.scenario import INDEX, TIERS, Story, Tiers, answer, complaint, statecore


def test_the_digest_is_the_one_the_engines_had(story: Story) -> None:
    """A replay would prove nothing about the processes that served."""
    for position, digest in story.digests.items():
        result = statecore("replay", "--url", story.url, "--index", INDEX, "--to", position, "--digest")
        assert (result.exit_code, result.stdout) == (0, f"{digest}\n")


def test_the_digest_as_json_says_where(story: Story) -> None:
    """A program that compares replicas could not tell which position a digest is of."""
    assert answer(statecore("replay", "--url", story.url, "--index", INDEX, "--to", 7, "--digest", "--json")) == {
        "position": 7,
        "digest": story.digests[7],
    }


def test_the_summary_counts_every_block_once(story: Story) -> None:
    """An operator would size a pool by numbers that do not add up."""
    summary = answer(statecore("replay", "--url", story.url, "--index", INDEX, "--to", story.before_end, "--json"))

    assert summary["index"] == INDEX
    assert summary["position"] == story.before_end
    assert summary["digest"] == story.digests[story.before_end]
    assert summary["pools"] == [
        {
            "pool": "gpu", "tier": "gpu", "blocks": 24, "free": 0, "cached": 1, "pinned": 10, "private": 13,
            "filling": 0, "quarantined": 0, "used": 23, "leaving": 0, "evicted": 1, "arrived": 0, "rescued": 0,
        }
    ]  # fmt: skip
    assert summary["requests"] == 4
    assert summary["counters"] == {
        "requests_seen": 5, "requests_hit": 1, "prompt_tokens": 160, "matched_tokens": 12, "host_tokens": 0,
        "hit_rate": 12 / 160, "transfers": 0,
    }  # fmt: skip
    engines = summary["engines"]
    assert isinstance(engines, list)
    assert [(engine["engine"], engine["session"], engine["alive"], engine["requests"]) for engine in engines] == [
        ("engine-0", 1, True, 1),
        ("engine-1", 1, True, 3),
    ]


def test_the_summary_reads_well_in_a_pipe(story: Story) -> None:
    """In a pipe or a ticket the tables would be cut off, or full of control characters."""
    result = statecore("replay", "--url", story.url, "--index", INDEX)

    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "\u2026" not in result.stdout
    lines = result.stdout.splitlines()
    assert lines[1].split() == ["position", "19"]
    assert lines[3].split() == ["digest", story.digests[19]]
    assert "engine-1        2  alive  gpu" in result.stdout
    assert all(line == line.rstrip() for line in lines)


def test_an_exported_file_leads_to_the_same_state(story: Story, exported: object) -> None:
    """A colleague without access to the server would debug another state."""
    result = statecore("replay", "--file", exported, "--digest")

    assert result.stdout.strip() == story.digests[story.end]


def test_position_zero_is_the_state_before_everything(story: Story) -> None:
    """Looking at the beginning would fail on an index that has nothing yet."""
    result = statecore("replay", "--url", story.url, "--index", INDEX, "--to", 0)

    assert result.exit_code == 0
    assert "Pools: none yet" in result.stdout
    assert "Engines: none yet" in result.stdout


@pytest.mark.parametrize(("position", "code"), [(20, 2), (-1, 2)])
def test_a_position_outside_the_log_is_refused(story: Story, position: int, code: int) -> None:
    """The state of a position that does not exist would be taken for the state of one that does."""
    message = complaint(statecore("replay", "--url", story.url, "--index", INDEX, "--to", position), code)

    assert str(position) in message


def test_invariants_are_checked_every_so_many_commits(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that breaks in the middle and looks whole at the end would pass."""
    checked: list[int] = []

    def violations(state: object) -> list[str]:
        checked.append(getattr(state, "position", -1))
        return ["block 3 is nowhere", "so is 4"] if checked[-1] == 12 else []

    monkeypatch.setattr(replaying, "violations", violations)

    result = statecore("replay", "--url", story.url, "--index", INDEX, "--check-invariants", 4)

    assert complaint(result, 1) == "an invariant does not hold: block 3 is nowhere (and 1 more) at position 12"
    assert checked == [4, 8, 12]


def test_a_long_replay_shows_its_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay of a million commits would look as if it hung."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(output, "_QUIET_S", 0.0)

    assert list(output.progress(iter("abc"), 3, "replaying")) == ["a", "b", "c"]
    assert "replaying" in terminal.getvalue()


def test_no_progress_bar_ends_up_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of a nightly job would fill with bars."""
    collected = io.StringIO()
    monkeypatch.setattr(sys, "stderr", collected)
    monkeypatch.setattr(output, "_QUIET_S", 0.0)

    assert list(output.progress(iter("abc"), 3, "replaying")) == ["a", "b", "c"]
    assert collected.getvalue() == ""


# --- two tiers


def test_every_moment_between_the_tiers_has_the_digest_its_engine_had(tiers: Tiers) -> None:
    """A replay would prove nothing where bytes move."""
    for position, digest in tiers.digests.items():
        result = statecore("replay", "--url", tiers.url, "--index", TIERS, "--to", position, "--digest")
        assert (result.exit_code, result.stdout) == (0, f"{digest}\n")


def test_the_summary_has_the_host_tier(tiers: Tiers) -> None:
    """An operator could not see how the host tier is set up, what is under way, and what it is good for."""
    where = ("--url", tiers.url, "--index", TIERS)
    summary = answer(statecore("replay", *where, "--json"))

    assert summary["policy"] == {"write": "write_back", "free_low": 0, "free_high": 0, "chosen": True}
    assert [transfer["transfer"] for transfer in cast("list[dict[str, Any]]", summary["transfers"])] == [
        "engine-0:4",
        "engine-0:5",
    ]
    assert summary["counters"] == {
        "requests_seen": 9, "requests_hit": 4, "prompt_tokens": 212, "matched_tokens": 48, "host_tokens": 32,
        "hit_rate": 48 / 212, "transfers": 6,
    }  # fmt: skip
    text = statecore("replay", *where).stdout
    assert "host tier  write back, swap-outs only when blocks are needed\n" in text
    assert "transfers  2 not over, 6 so far\n" in text
    assert "(48 of 212 prompt tokens reused, 32 from the host; 4 of 9 requests hit)" in text
    assert "engine-0:5  swap in   under way" in text
    assert "Transfers\n" not in statecore("replay", *where, "--to", tiers.at["rescued"]).stdout


def test_the_policy_an_index_got_with_its_first_host_pool_is_shown(server: str, name: str) -> None:
    """Copies would leave for the host, and nobody could see by which rule."""
    with connect(server) as connection:
        CacheIndex(connection, name=name, engine="a", gpu_blocks=4, cpu_blocks=4, block_size=4, follow=False)
        where = ("--url", server, "--index", name)
        text = statecore("replay", *where).stdout
        summary = answer(statecore("replay", *where, "--json"))

    assert "host tier  write back, swap-outs under 10 % free until 20 %\n" in text
    assert summary["policy"] == {"write": "write_back", "free_low": 10, "free_high": 20, "chosen": True}


def test_one_tier_shows_no_columns_of_the_other(story: Story) -> None:
    """Whoever has no host memory would read past eight columns of zeros."""
    text = statecore("replay", "--url", story.url, "--index", INDEX).stdout

    assert not [word for word in ("host", "transfer", "filling", "rescued") if word in text]
