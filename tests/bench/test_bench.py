"""The bench: it runs, it says what it measures, and both sides of its main comparison do the same work.

No figure is judged here: a test that fails because a machine is slow says nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ops.bench.command import FIGURES, GROUPS, command
from ops.bench.core import ROOMY_BLOCKS
from ops.bench.figure import Budget, Measurement
from ops.bench.follower import record
from ops.bench.reference import NaiveCache, keys_of
from ops.bench.workload import lives_of, new_replica, serve, serve_index, tenants
from ops.trace import generate, write_trace

KEYS = {"name", "value", "unit", "reference", "reference_value", "ratio"}
PROMISED = {
    *("request_us_evict", "request_us_no_evict", "follower_commit_us", "commit_vs_evalsha", "replay_vs_xrange"),
    *("bytes_per_block", "request_us_at_10k", "request_us_at_1m", "commits_per_s_1", "commits_per_s_8"),
    *("transfer_latency_us", "store_vs_memcpy", "swap_jobs_per_s", "transfer_step_us"),
    *("hit_rate_one_tier", "hit_rate_private_tiers", "hit_rate_shared_tier"),
}


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(command, [*arguments])


def test_promised_figures_exist() -> None:
    """Given the list of figures, those that others look for are there, each once, and no budget names another."""
    assert set(FIGURES) >= PROMISED
    assert len(FIGURES) == len(set(FIGURES))
    assert all(group.budgets.keys() <= set(group.figures) for group in GROUPS)


@pytest.mark.parametrize(
    "only",
    [
        ("request_us_evict", "request_us_no_evict"),
        ("request_us_at_10k", "request_us_at_100k"),
        ("hashing_us_per_block*",),
        ("follower_commit_us", "*code_us_per_commit"),
        ("rss_bytes_per_block",),
        ("commit_vs_evalsha", "request_in_redis_us"),
        ("replay_*",),
        ("transfer_step_us", "transfer_commit_us"),
        ("transfer_latency_us*",),
        ("swap_jobs_per_s", "swap_jobs_per_s_tp2"),
        ("store_vs_memcpy*",),
        ("hit_rate_*",),
        ("commits_per_s_shared_2", "conflicts_per_commit_shared_2", "paced_commit_p99_us_2"),
    ],
)
def test_every_group_measures(only: tuple[str, ...]) -> None:
    """Given figures of one group, exactly they come out, as JSON with the agreed keys and numbers that make sense."""
    patterns = [word for name in only for word in ("--only", name)]

    result = bench("--quick", "--json", "-", *patterns)

    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert [figure["name"] for figure in figures] == [
        name for name in FIGURES if any(Path(name).match(pattern) for pattern in only)
    ]
    for figure in figures:
        assert figure.keys() == KEYS
        assert isinstance(figure["unit"], str)
        assert isinstance(figure["reference"], str)
        assert figure["value"] >= 0
        assert figure["reference_value"] >= 0
        if figure["reference_value"]:
            assert figure["ratio"] == pytest.approx(figure["value"] / figure["reference_value"], rel=1e-3)
        else:
            assert figure["ratio"] is None
        if not figure["name"].startswith("conflicts"):
            assert figure["value"] > 0
            assert figure["reference_value"] > 0


def test_table_is_for_people(tmp_path: Path) -> None:
    """Given --json FILE, the table stays on standard output and the file holds the figures."""
    file = tmp_path / "figures.json"

    result = bench("--quick", "--only", "hashing_us_per_block", "--json", str(file))

    assert result.exit_code == 0
    assert "hashing_us_per_block" in result.stdout
    assert "<= 1.5 µs" in result.stdout
    assert [figure["name"] for figure in json.loads(file.read_bytes())] == ["hashing_us_per_block"]


def test_unknown_figure_is_named_with_the_known_ones() -> None:
    """Given a name that is none, the error says it and lists what there is; nothing is measured."""
    result = bench("--quick", "--only", "request_us", "--only", "hashing*")

    assert result.exit_code == 2
    assert "no figure is called 'request_us'" in result.stderr
    assert "request_us_evict" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"{}\n", "line 1"), (b"", "empty"), (None, "200")],
    ids=["not a request", "empty file", "too few requests"],
)
def test_bad_trace_is_a_clear_error(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    """Given a trace that cannot be measured with, one line says why."""
    file = tmp_path / "trace.jsonl"
    if content is None:
        write_trace(file, generate(5, seed=0))
    else:
        file.write_bytes(content)

    result = bench("--quick", "--only", "request_us_evict", "--trace", str(file))

    assert result.exit_code == 1
    assert complaint in result.stderr
    assert "Traceback" not in result.output


def test_unwritable_file_is_refused_first(tmp_path: Path) -> None:
    """Given a file for the JSON that cannot be written, that is said before anything is measured."""
    file = tmp_path / "missing" / "figures.json"

    result = bench("--json", str(file))

    assert result.exit_code == 1
    assert str(file) in result.stderr
    assert "Traceback" not in result.output


def test_trace_file_is_used(tmp_path: Path) -> None:
    """Given a trace file, its requests are measured."""
    file = tmp_path / "trace.jsonl.gz"
    write_trace(file, generate(300, seed=5))

    result = bench("--quick", "--only", "request_us_no_evict", "--trace", str(file))

    assert result.exit_code == 0, result.output
    assert "trace.jsonl.gz" in result.stdout


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_reference_does_the_same_work(seed: int) -> None:
    """Given the same requests and no eviction, the naive cache finds the very same blocks, and both free the same."""
    lives = list(lives_of(None, 400, seed))
    replica, cache = new_replica(ROOMY_BLOCKS), NaiveCache(ROOMY_BLOCKS)

    found = [serve(replica, life) for life in lives]
    found_by_reference = [cache.serve(life, keys_of(life)) for life in lives]

    (pool,) = replica.state.pools.values()
    assert found == found_by_reference
    assert sum(found) > 0
    assert pool.unpinned == len(cache.cached) == len(cache.unused)
    assert pool.free.total == len(cache.free)


def test_reference_evicts_as_much() -> None:
    """Given a pool that is too small for all, both keep it full and find about the same; ties are broken differently."""
    lives = list(lives_of(None, 400, 0, blocks_max=200))
    replica, cache = new_replica(5000), NaiveCache(5000)

    found = sum(serve(replica, life) for life in lives)
    found_by_reference = sum(cache.serve(life, keys_of(life)) for life in lives)

    (pool,) = replica.state.pools.values()
    assert pool.evicted > 0
    assert pool.unpinned + pool.free.total == len(cache.cached) + len(cache.free) == 5000
    assert found == pytest.approx(found_by_reference, rel=0.05)


def test_index_serves_what_the_core_serves() -> None:
    """Given the same requests, the calls of an engine find what the commands of the core bench find."""
    from events import connect
    from statecore import CacheIndex

    lives = list(lives_of(None, 60, 3))
    replica = new_replica(ROOMY_BLOCKS)
    with connect("memory://") as connection:
        index = CacheIndex(connection, name="bench", engine="engine-0", gpu_blocks=ROOMY_BLOCKS)

        found = [serve_index(index, life) for life in lives]

        assert found == [serve(replica, life) for life in lives]


def test_recorded_history_is_the_whole_request() -> None:
    """Given requests that are recorded for a follower, each is one commit that begins and ends its request."""
    history = record(list(lives_of(None, 20, 0)), ROOMY_BLOCKS)

    names = [[type(fact).__name__ for fact in commit.facts] for commit in history.commits]
    assert len(history.stored) == len(names) == 20
    assert all(each[0] == "PrefixMatched" and each[-1] == "RequestReleased" for each in names)


def test_tenants_share_nothing() -> None:
    """Given the same requests for another tenant, no block of the first is found."""
    lives = list(lives_of(None, 30, 0))
    endless = tenants(lambda: lives)
    first, second = ([next(endless) for _ in lives] for _ in range(2))

    replica = new_replica(ROOMY_BLOCKS)
    found_first = [serve(replica, life) for life in first]
    found_second = [serve(replica, life) for life in second]

    assert found_first == found_second


def test_budget_judges_value_or_ratio() -> None:
    """Given a figure, a budget holds on the right side of its bound, and says nothing where there is no ratio."""
    figure = Measurement("x", 3.0, "µs", "y", 2.0)

    assert Budget(3.0).holds(figure)
    assert not Budget(2.9).holds(figure)
    assert Budget(1.5, of="ratio").holds(figure)
    assert Budget(1.5, of="ratio", at_least=True).holds(figure)
    assert not Budget(1.6, of="ratio", at_least=True).holds(figure)
    assert Budget(1.0, of="ratio").holds(Measurement("x", 3.0, "µs", "y", 0)) is None
