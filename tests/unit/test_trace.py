"""The workload everything is measured with: reading it, hashing it, making it up, describing it.

The published figures below belong to the recorded conversation trace, which is not shipped.
"""

import gzip
import subprocess
import sys
from collections.abc import Iterator
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.trace import (
    TraceError,
    TraceRequest,
    block_hashes,
    generate,
    lru_hit_rate,
    output_hashes,
    read_trace,
    trace_stats,
    write_trace,
)

GOOD_LINE = b'{"timestamp": 3, "input_length": 600, "output_length": 9, "hash_ids": [0, 7]}\n'
GOOD = TraceRequest(3, 600, 9, (0, 7))

RECORDED_REQUESTS = 12_031
RECORDED_LRU_PERCENT = {1_000: 4.4, 5_000: 11.0, 10_000: 21.1, 30_000: 32.6, 100_000: 36.4}
RECORDED_BEST_PERCENT = 36.6
RECORDED_BEST_PERCENT_AFTER = {1_000: 21.2, 3_000: 31.4, 6_000: 34.6}
RECORDED_INPUT_QUANTILES = {10: 964, 50: 6_909, 90: 27_367, 99: 85_400}
RECORDED_OUTPUT_QUANTILES = {10: 24, 50: 350, 90: 597, 99: 1_118}
RECORDED_CONVERSATION_PERCENT = {1: 69.4, 2: 17.8, 3: 6.3, 4: 2.7}
SEEDS = (0, 1, 2)

GOLDEN_START = [
    (0, 2879, 142, 5),
    (0, 17987, 834, 40),
    (0, 14023, 706, 67),
    (0, 9481, 349, 85),
    (0, 6827, 670, 98),
]


@pytest.fixture(scope="module", params=SEEDS)
def hour(request: pytest.FixtureRequest) -> list[TraceRequest]:
    """As many synthetic requests as the recorded hour has."""
    return list(generate(RECORDED_REQUESTS, request.param))


def written(folder: Path, content: bytes, name: str = "t.jsonl") -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


def blocks_of(hashes: bytes) -> list[bytes]:
    return [hashes[at : at + 16] for at in range(0, len(hashes), 16)]


def common_prefix(left: list[bytes], right: list[bytes]) -> int:
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length


def full_blocks(request: TraceRequest) -> int:
    return request.input_tokens // 512


def next_turns(
    requests: list[TraceRequest],
) -> Iterator[tuple[TraceRequest, TraceRequest, int]]:
    """Who goes on from whom, sharing how many blocks (more than the system prompt)."""
    holder: dict[int, TraceRequest] = {}
    for request in requests:
        shared = sum(block in holder for block in request.hash_ids)
        if shared > 1:
            yield holder[request.hash_ids[shared - 1]], request, shared
        holder.update(dict.fromkeys(request.hash_ids, request))


# ---- reading and writing


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_a_written_trace_reads_back(tmp_path: Path, name: str) -> None:
    """A saved workload would not be the one that was measured."""
    given_requests = list(generate(50, seed=1))

    count = write_trace(tmp_path / name, iter(given_requests))

    assert count == 50
    assert list(read_trace(tmp_path / name)) == given_requests
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_equal_requests_make_equal_files(tmp_path: Path) -> None:
    """A checksum of a workload file would change from day to day."""
    one, two = tmp_path / "one.jsonl.gz", tmp_path / "two.jsonl.gz"

    write_trace(one, generate(50, seed=1))
    write_trace(two, generate(50, seed=1))

    assert one.read_bytes() == two.read_bytes()


def test_the_published_line_is_understood_with_further_fields(tmp_path: Path) -> None:
    """The traces that people download would not open."""
    line = GOOD_LINE.replace(b'{"timestamp"', b'{"user": "x", "timestamp"')

    assert list(read_trace(written(tmp_path, line + GOOD_LINE))) == [GOOD, GOOD]


def test_a_limit_stops_before_what_follows(tmp_path: Path) -> None:
    """A quick look at a huge file would read all of it."""
    file = written(tmp_path, GOOD_LINE * 2 + b"nonsense\n")

    assert list(read_trace(file, limit=2)) == [GOOD, GOOD]
    with pytest.raises(TraceError):
        list(read_trace(file, limit=3))


@pytest.mark.parametrize("limit", [0, -1, True, 2.0])
def test_a_senseless_limit_is_refused_at_once(tmp_path: Path, limit: int) -> None:
    """A bench over no request at all would print figures."""
    with pytest.raises(ValueError, match=f"limit is {limit}"):
        read_trace(tmp_path / "t.jsonl", limit)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"timestamp": 3, ', b"", "no field timestamp"),
        (b'"input_length": 600, ', b"", "no field input_length"),
        (b'"output_length": 9, ', b"", "no field output_length"),
        (b', "hash_ids": [0, 7]', b"", "no field hash_ids"),
        (b": 3", b": 3.0", r"timestamp is 3\.0, not an integer"),
        (b": 3", b": true", "timestamp is True, not an integer"),
        (b": 3", b": null", "timestamp is None, not an integer"),
        (b": 600", b': "600"', "input_length is '600', not an integer"),
        (b": 9", b": -9", "output_length is -9, which is negative"),
        (b": 600", b": -600", "input_length is -600, which is negative"),
        (b"[0, 7]", b"[0]", "1 hash_ids for a prompt of 600 tokens, which has 2 blocks of 512"),
        (b"[0, 7]", b"[0, 7, 8]", "3 hash_ids for a prompt of 600 tokens"),
        (b": 600", b": 512", "2 hash_ids for a prompt of 512 tokens, which has 1"),
        (b"[0, 7]", b"[0, -7]", "hash id -7 is not an integer from 0"),
        (b"[0, 7]", b"[0, 7.5]", r"hash id 7\.5 is not an integer"),
        (b"[0, 7]", b"[0, false]", "hash id False is not an integer"),
        (b"[0, 7]", b"[0, 36028797018963968]", "hash id 36028797018963968 is not"),
        (b"[0, 7]", b'"07"', "hash_ids is '07', not a list"),
        (GOOD_LINE, b"[1, 2]\n", "not a JSON object"),
        (GOOD_LINE, b"\n", "not JSON"),
        (b"}", b"", "not JSON"),
    ],
)
def test_a_wrong_line_is_named_with_its_reason(tmp_path: Path, old: bytes, new: bytes, reason: str) -> None:
    """A damaged workload would be measured as if it were whole."""
    assert old in GOOD_LINE
    file = written(tmp_path, GOOD_LINE + GOOD_LINE.replace(old, new) + GOOD_LINE)
    requests = read_trace(file)

    assert next(requests) == GOOD
    with pytest.raises(TraceError, match=reason) as refusal:
        next(requests)

    assert str(refusal.value).startswith(f"{file}, line 2: ")


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    """A download that failed would look like a workload without requests."""
    content = gzip.compress(b"") if name.endswith("gz") else b""

    with pytest.raises(TraceError, match=r"line 1: the file is empty"):
        list(read_trace(written(tmp_path, content, name)))


def test_a_file_that_is_not_gzip_is_refused(tmp_path: Path) -> None:
    """A web page saved under the trace's name would be a mystery."""
    with pytest.raises(TraceError, match=r"line 1: not gzip, or damaged"):
        list(read_trace(written(tmp_path, GOOD_LINE, "t.jsonl.gz")))


def test_a_torn_gzip_is_refused_after_its_good_lines(tmp_path: Path) -> None:
    """Half a download would be measured as the whole."""
    packed = gzip.compress(GOOD_LINE * 3)
    requests = read_trace(written(tmp_path, packed[:-4], "t.jsonl.gz"))

    with pytest.raises(TraceError, match=r"line \d: torn gzip"):
        list(requests)


def test_a_gzip_with_flipped_bits_is_refused(tmp_path: Path) -> None:
    """A bad disk would change the workload unnoticed."""
    packed = bytearray(gzip.compress(GOOD_LINE * 3))
    packed[-8] ^= 1  # in the checksum

    with pytest.raises(TraceError, match="damaged"):
        list(read_trace(written(tmp_path, bytes(packed), "t.jsonl.gz")))


def test_another_file_name_is_refused_both_ways(tmp_path: Path) -> None:
    """A trace written as .json could not be read again."""
    with pytest.raises(TraceError, match=r"named \.jsonl or \.jsonl\.gz"):
        read_trace(tmp_path / "t.json")
    with pytest.raises(TraceError, match=r"named \.jsonl or \.jsonl\.gz"):
        write_trace(tmp_path / "t.json", [GOOD])


def test_writing_nothing_leaves_the_old_file_alone(tmp_path: Path) -> None:
    """A failed generator would replace a good workload with an empty one."""
    file = written(tmp_path, GOOD_LINE)

    with pytest.raises(TraceError, match="no request to write"):
        write_trace(file, [])

    assert [found.read_bytes() for found in tmp_path.iterdir()] == [GOOD_LINE]


def test_a_generator_that_fails_half_way_leaves_the_old_file_alone(tmp_path: Path) -> None:
    """Half a workload would stand under the name of a whole one."""
    file = written(tmp_path, GOOD_LINE, "t.jsonl.gz")

    def failing() -> Iterator[TraceRequest]:
        yield GOOD
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        write_trace(file, failing())

    assert [found.read_bytes() for found in tmp_path.iterdir()] == [GOOD_LINE]


# ---- block hashes


def test_hashes_are_the_same_in_every_process() -> None:
    """Engines that replay one workload in two processes would share nothing."""
    request = TraceRequest(0, 1100, 300, (0, 1, 2))
    program = (
        "from ops.trace import *; r = TraceRequest(0, 1100, 300, (0, 1, 2));"
        "print(block_hashes(r, 256).hex(), output_hashes(7, r, 256).hex())"
    )
    root = Path(__file__).resolve().parents[2]

    elsewhere = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)

    assert block_hashes(request, 256).hex() == (
        "4c3a04a4ff7205e0e0d69b5a248c45c23fbbd4223828fe140663ce9064c1c821"
        "46f548a4d270061f9a0ecd7ca0a8f80986797bd1ed984c4a07b9c99c5f357b5f"
    )
    assert block_hashes(request, 512, b"tenant").hex() == (
        "5dd083651566c4ca7f1db3e1300bdd44b76534013c45f2b64b37e1a2622663a3"
    )
    assert output_hashes(7, request, 256).hex() == "c766a5615abac86f69d2a0776e1687c0"
    assert elsewhere.stdout.split() == [
        block_hashes(request, 256).hex(),
        output_hashes(7, request, 256).hex(),
    ]


@pytest.mark.parametrize("block_size", [1, 16, 64, 256, 512])
@pytest.mark.parametrize("tokens", [0, 1, 63, 64, 511, 512, 513, 1023, 1024, 1025])
def test_only_full_blocks_have_hashes(block_size: int, tokens: int) -> None:
    """A partial block would be cached, and another prompt would get its wrong end."""
    request = TraceRequest(0, tokens, 0, tuple(range(-(-tokens // 512))))

    hashes = blocks_of(block_hashes(request, block_size))

    assert len(hashes) == tokens // block_size
    assert len(set(hashes)) == len(hashes)
    assert all(len(block) == 16 for block in hashes)


def test_equal_prefixes_and_only_they_have_equal_hashes() -> None:
    """The index would share blocks of different prompts, or miss those of equal ones."""
    requests = list(generate(300, seed=3))

    for block_size in (64, 512):
        parts = 512 // block_size
        hashes = [blocks_of(block_hashes(request, block_size)) for request in requests]
        for left, right in zip(range(150), range(150, 300), strict=True):
            for other in (right, max(left - 1, 0)):
                a, b = requests[left], requests[other]
                ids = 0
                while a.hash_ids[ids : ids + 1] == b.hash_ids[ids : ids + 1] != ():
                    ids += 1
                full = min(a.input_tokens, b.input_tokens) // block_size
                expected = min(ids * parts, full)
                assert common_prefix(hashes[left], hashes[other]) == expected


@given(st.lists(st.integers(0, 2**55 - 1), min_size=1, max_size=6, unique=True))
def test_different_ids_never_share_a_block(ids: list[int]) -> None:
    """Two tenants' overlaid workloads would hit each other's blocks."""
    request = TraceRequest(0, 512 * len(ids), 0, tuple(ids))

    hashes = blocks_of(block_hashes(request, 128))

    assert len(set(hashes)) == 4 * len(ids)


def test_seeds_and_block_sizes_keep_apart() -> None:
    """An overlaid copy of the workload would hit the blocks of the first."""
    request = TraceRequest(0, 1024, 0, (0, 1))

    kinds = [
        blocks_of(block_hashes(request, block_size, seed)) for block_size in (256, 512) for seed in (b"", b"a", b"b")
    ]

    flat = [block for blocks in kinds for block in blocks]
    assert len(set(flat)) == len(flat)


def test_output_fills_the_blocks_that_the_prompt_left() -> None:
    """Generated tokens would be cached in too few blocks, or twice."""
    request = TraceRequest(0, 1000, 100, (0, 1))  # 15.6 blocks of 64, then 17.2

    filled = blocks_of(output_hashes(0, request, 64))

    assert len(blocks_of(block_hashes(request, 64))) == 15
    assert len(filled) == 2
    assert output_hashes(0, TraceRequest(0, 1000, 23, (0, 1)), 64) == b""
    assert len(output_hashes(0, TraceRequest(0, 1000, 24, (0, 1)), 64)) == 16


def test_nobody_shares_generated_text() -> None:
    """A request would hit an answer that was given to another."""
    request = TraceRequest(0, 1000, 5000, (0, 1))

    all_hashes = [
        *blocks_of(block_hashes(request, 64)),
        *(block for index in range(20) for block in blocks_of(output_hashes(index, request, 64))),
        *blocks_of(output_hashes(0, request, 64, b"other")),
    ]

    assert len(set(all_hashes)) == len(all_hashes)
    assert output_hashes(5, request, 64) == output_hashes(5, request, 64)


@pytest.mark.parametrize("block_size", [0, -64, 48, 1024, True, 64.0])
def test_a_block_size_that_cannot_cut_512_is_refused(block_size: int) -> None:
    """Sub-blocks would straddle two ids, and hits would be made up."""
    for hashes in (block_hashes, lambda request, size: output_hashes(0, request, size)):
        with pytest.raises(ValueError, match=f"block_size is {block_size}, needs a divisor of 512"):
            hashes(GOOD, block_size)


@pytest.mark.parametrize("request_index", [-1, 2**40, True])
def test_a_request_index_out_of_range_is_refused(request_index: int) -> None:
    """Two requests would generate the same text."""
    with pytest.raises(ValueError, match=f"request_index is {request_index}"):
        output_hashes(request_index, GOOD, 64)


# ---- the generator


def test_the_same_seed_makes_the_same_trace() -> None:
    """Two runs of a bench could not be compared."""
    first = list(generate(500, seed=7))

    assert list(generate(500, seed=7)) == first
    assert list(generate(120, seed=7)) == first[:120]
    assert list(generate(500, seed=8)) != first


def test_the_trace_of_a_seed_never_changes() -> None:
    """Figures in the changelog would be about another workload than today's."""
    requests = list(generate(3000, seed=0))

    digest = blake2b(repr([attrs.astuple(r) for r in requests]).encode(), digest_size=8)
    assert digest.hexdigest() == "4931e561147d61ef"
    assert [(r.arrival_ms, r.input_tokens, r.output_tokens, r.hash_ids[-1]) for r in requests[:5]] == GOLDEN_START


@pytest.mark.parametrize("count", [1, 10, 1000])
def test_small_traces_are_whole(count: int) -> None:
    """A demo with ten requests would crash, or contain none of what it shows."""
    requests = list(generate(count, seed=4))

    assert len(requests) == count
    assert requests[0].arrival_ms < 10_000
    assert requests[0].hash_ids[0] == 0
    assert all(891 <= r.input_tokens <= 126_195 for r in requests)
    assert all(1 <= r.output_tokens <= 2_000 for r in requests)


@pytest.mark.parametrize("wrong", [-1, True, 1.0, "1", None])
def test_senseless_arguments_are_refused_at_once(wrong: int) -> None:
    """A typing error would show up as an empty bench, far from where it was made."""
    with pytest.raises(ValueError, match=f"requests is {wrong!r}, needs an integer of at least 1"):
        generate(wrong, 0)
    with pytest.raises(ValueError, match=f"seed is {wrong!r}, needs an integer of at least 0"):
        generate(1, wrong)
    with pytest.raises(ValueError, match="requests is 0"):
        generate(0, 0)


def test_an_id_stands_for_its_whole_prefix(hour: list[TraceRequest]) -> None:
    """Equal hashes would not mean equal prefixes: no index could be right about such a trace."""
    before: dict[int, int] = {}

    for request in hour:
        assert len(set(request.hash_ids)) == len(request.hash_ids)
        for previous, block in pairwise(request.hash_ids):
            assert before.setdefault(block, previous) == previous


def test_ids_appear_in_order_without_gaps(hour: list[TraceRequest]) -> None:
    """Copies could not be overlaid by adding an offset to the ids."""
    highest = -1
    for request in hour:
        for block in request.hash_ids:
            assert block <= highest + 1
            highest = max(highest, block)

    assert highest + 1 == trace_stats(hour).distinct_blocks


def test_partial_blocks_are_shared_by_repeats_only(hour: list[TraceRequest]) -> None:
    """A half-full block would be served to a prompt that goes on differently."""
    length_of: dict[int, int] = {}

    for request in hour:
        if request.input_tokens % 512:
            last = request.hash_ids[-1]
            assert length_of.setdefault(last, request.input_tokens) == request.input_tokens
        for block in request.hash_ids[:-1]:
            assert block not in length_of


def test_requests_arrive_as_recorded(hour: list[TraceRequest]) -> None:
    """Load and its bursts, and so queues and evictions, would be another service's."""
    arrivals = np.array([request.arrival_ms for request in hour])
    per_tick = np.bincount(arrivals // 3000)[:-1]

    assert (np.diff(arrivals) >= 0).all()
    assert (arrivals % 3000 == 0).all()
    assert arrivals[-1] / 1000 == pytest.approx(3537, rel=0.05)
    assert 0.85 < per_tick.var() / per_tick.mean() < 1.25


def test_prompts_and_outputs_are_as_long_as_recorded(hour: list[TraceRequest]) -> None:
    """Memory pressure would be another service's."""
    inputs = [request.input_tokens for request in hour]
    outputs = [request.output_tokens for request in hour]
    stats = trace_stats(hour)

    assert stats.prompt_tokens / stats.requests == pytest.approx(12_035, rel=0.1)
    assert stats.output_tokens / stats.requests == pytest.approx(342.6, rel=0.05)
    for percent, tokens in RECORDED_INPUT_QUANTILES.items():
        assert np.percentile(inputs, percent) == pytest.approx(tokens, rel=0.15), percent
    for percent, tokens in RECORDED_OUTPUT_QUANTILES.items():
        assert np.percentile(outputs, percent) == pytest.approx(tokens, rel=0.15), percent
    assert stats.block_visits == pytest.approx(288_500, rel=0.1)
    assert stats.distinct_blocks == pytest.approx(182_790, rel=0.08)
    assert stats.prompt_blocks_p50 == pytest.approx(14, abs=1)
    assert stats.prompt_blocks_p90 == pytest.approx(54, abs=6)
    assert stats.prompt_blocks_max == pytest.approx(247, abs=7)


def test_hit_rates_are_as_recorded_at_every_cache_size(hour: list[TraceRequest]) -> None:
    """A cache would look better or worse on the synthetic trace than in production."""
    for blocks, percent in RECORDED_LRU_PERCENT.items():
        tolerance = 1.0 if blocks == 1_000 else 3.0
        assert 100 * lru_hit_rate(hour, blocks) == pytest.approx(percent, abs=tolerance), blocks

    assert 100 * trace_stats(hour).best_hit_rate == pytest.approx(RECORDED_BEST_PERCENT, abs=3)


def test_a_beginning_hits_as_rarely_as_the_recorded_one(hour: list[TraceRequest]) -> None:
    """Short benches would start with a warmth that no service has."""
    for count, percent in RECORDED_BEST_PERCENT_AFTER.items():
        best = 100 * trace_stats(hour[:count]).best_hit_rate
        assert best == pytest.approx(percent, abs=5 if count < 3_000 else 4), count


def test_conversations_have_as_many_turns_as_recorded(hour: list[TraceRequest]) -> None:
    """Hits would come from a few endless conversations instead of many short ones."""
    conversation = [request.hash_ids[1] for request in hour]
    turns = np.unique(conversation, return_counts=True)[1]

    assert 100 * len(turns) / len(hour) == pytest.approx(61.3, abs=3)
    for count, percent in RECORDED_CONVERSATION_PERCENT.items():
        assert 100 * (turns == count).mean() == pytest.approx(percent, abs=2), count


def test_next_turns_grow_repeat_and_fork_as_recorded(hour: list[TraceRequest]) -> None:
    """The tree of prefixes would have another shape: all chains and no branches, or no reuse."""
    turns = list(next_turns(hour))

    extensions = [(before, now) for before, now, shared in turns if shared == full_blocks(before)]
    repeats = [now for _, now, shared in turns if shared > full_blocks(now)]
    forked = [shared for before, _, shared in turns if shared < full_blocks(before)]
    grown = [now.input_tokens - before.input_tokens for before, now in extensions]
    assert 100 * len(extensions) / len(hour) == pytest.approx(31.9, abs=2)
    assert 100 * len(repeats) / len(hour) == pytest.approx(1.0, abs=0.4)
    assert 100 * len(forked) / len(hour) == pytest.approx(5.8, abs=1.5)
    assert np.mean(forked) == pytest.approx(12.6, rel=0.35)
    assert np.median(grown) == pytest.approx(480, rel=0.1)


# ---- statistics


def test_statistics_count_every_visit() -> None:
    """The figures that describe a workload would be wrong."""
    requests = [
        TraceRequest(0, 1024, 5, (0, 1)),
        TraceRequest(0, 1025, 6, (0, 1, 2)),
        TraceRequest(0, 100, 7, (3,)),
    ]

    stats = trace_stats(iter(requests))

    assert (stats.requests, stats.prompt_tokens, stats.output_tokens) == (3, 2149, 18)
    assert (stats.block_visits, stats.distinct_blocks) == (6, 4)
    assert stats.best_hit_rate == pytest.approx(2 / 6)
    quantiles = (stats.prompt_blocks_p50, stats.prompt_blocks_p90, stats.prompt_blocks_max)
    assert quantiles == (2, 3, 3)


def test_the_oldest_block_goes_first() -> None:
    """The hit-rate curve would be that of another policy."""
    singles = [TraceRequest(0, 512, 0, (block,)) for block in (1, 2, 1, 3, 2, 1)]

    assert lru_hit_rate(singles, 1) == 0
    assert lru_hit_rate(singles, 2) == pytest.approx(1 / 6)  # 2 made room for 3, and 1 for 2
    assert lru_hit_rate(singles, 3) == pytest.approx(3 / 6)


def test_a_large_cache_reaches_the_best_hit_rate() -> None:
    """The curve and its limit would contradict each other."""
    requests = list(generate(1000, seed=2))

    best = trace_stats(requests).best_hit_rate

    assert lru_hit_rate(requests, 1_000_000) == best
    assert lru_hit_rate(requests, 1_000) < best


def test_statistics_of_nothing_and_caches_of_nothing_are_refused() -> None:
    """A mistake would read as a hit rate of zero."""
    with pytest.raises(ValueError, match="0 requests"):
        trace_stats([])
    for blocks in (0, -1, True):
        with pytest.raises(ValueError, match=f"blocks is {blocks}"):
            lru_hit_rate([GOOD], blocks)
