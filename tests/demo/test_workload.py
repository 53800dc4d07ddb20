"""What the demo serves: sizes and shares, and what is said when they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.demo import tiers as sizing
from ops.demo.tiers import BLOCK_BYTES_DEFAULT, BLOCK_BYTES_LEAST, MEMORY_DEFAULT, Tiers, tiers
from ops.demo.workload import Workload, WorkloadError, workload
from ops.trace import generate, write_trace
from statecore import Policy


def chosen(
    trace: Path | None = None,
    requests: int = 200,
    engines: int = 4,
    block_size: int = 64,
    gpu_blocks: int | None = None,
    host_blocks: int | None = None,
) -> Workload:
    return workload(
        trace=trace,
        seed=0,
        requests=requests,
        engines=engines,
        block_size=block_size,
        gpu_blocks=gpu_blocks,
        host_blocks=host_blocks,
    )


def test_requests_are_dealt_round_robin_in_order_of_arrival() -> None:
    """Engines would serve something else than what the private comparison serves."""
    work = chosen(requests=10, engines=4)

    dealt = work.dealt(4)

    assert [[number for number, _ in share] for share in dealt] == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]
    assert all(work.requests[number] is request for share in dealt for number, request in share)


@pytest.mark.parametrize("requests", [1, 60, 1000])
@pytest.mark.parametrize("block_size", [16, 64, 512])
def test_the_default_pool_holds_the_biggest_request_even_privately(requests: int, block_size: int) -> None:
    """The default demo would refuse requests."""
    work = chosen(requests=requests, block_size=block_size)

    assert work.gpu_blocks // 4 >= work.biggest


def test_the_default_pool_is_smaller_than_what_the_prompts_hold() -> None:
    """The default demo would show no eviction."""
    work = chosen(requests=1000)

    assert work.gpu_blocks * 3 < sum(request.input_tokens for request in work.requests) // 64


def test_one_tier_has_one_pool_and_two_have_one_each() -> None:
    """The comparison would be between different amounts of memory."""
    one, two = chosen(host_blocks=0, gpu_blocks=4000), chosen(host_blocks=9000, gpu_blocks=4000)

    assert (one.two_tiers, one.pool_blocks(4)) == (False, 4000)
    assert (two.two_tiers, two.pool_blocks(4)) == (True, 1000)


def test_the_host_pool_is_larger_than_the_gpu_pools_but_not_endless() -> None:
    """The default demo would show no host eviction, or nothing that comes back."""
    work = chosen(requests=1000)

    assert work.gpu_blocks < work.host_blocks < sum(request.input_tokens for request in work.requests) // 64


def in_memory(monkeypatch: pytest.MonkeyPatch, free: int, block_bytes: int | None = None, ranks: int = 1) -> Tiers:
    monkeypatch.setattr(sizing, "free_bytes", lambda: free)
    work = chosen(gpu_blocks=20_000, host_blocks=60_000)
    return tiers(work, engines=4, ranks=ranks, block_bytes=block_bytes, policy=Policy())


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize(("free", "least"), [(1 << 40, 1024), (512 << 20, 512), (100 << 20, BLOCK_BYTES_LEAST)])
def test_blocks_are_as_large_as_the_memory_allows(
    monkeypatch: pytest.MonkeyPatch, free: int, least: int, ranks: int
) -> None:
    """`make demo` would fail in a container whose /dev/shm is small, or take all of a large one."""
    found = in_memory(monkeypatch, free, ranks=ranks)

    assert BLOCK_BYTES_LEAST <= found.layout.bytes_per_block <= BLOCK_BYTES_DEFAULT
    assert found.layout.bytes_per_block >= least // ranks
    assert found.memory_bytes(4) <= min(free, MEMORY_DEFAULT)
    assert found.block_bytes == ranks * found.layout.bytes_per_block


@pytest.mark.parametrize(("free", "block_bytes"), [(1 << 30, 1 << 16), (1 << 20, None)])
def test_memory_that_does_not_suffice_is_said_in_numbers(
    monkeypatch: pytest.MonkeyPatch, free: int, block_bytes: int | None
) -> None:
    """The first process would be killed in the middle of the run, or a person be told of a system call."""
    with pytest.raises(WorkloadError, match=r"20,000 GPU and 60,000 host blocks .* need .* of /dev/shm, which has"):
        in_memory(monkeypatch, free, block_bytes)


def test_a_trace_is_read_and_cut(tmp_path: Path) -> None:
    """`--trace FILE --requests N` would serve something else."""
    requests = list(generate(20, seed=4))
    write_trace(tmp_path / "t.jsonl.gz", requests)

    assert list(chosen(tmp_path / "t.jsonl.gz", requests=7).requests) == requests[:7]
    assert list(chosen(tmp_path / "t.jsonl.gz", requests=100).requests) == requests


@pytest.mark.parametrize("block_size", [-64, 0, 3, 48, 1024])
def test_a_block_size_must_divide_that_of_the_trace(block_size: int) -> None:
    """Hashes would be made of parts of blocks that the trace knows nothing of."""
    with pytest.raises(WorkloadError, match="divide"):
        chosen(block_size=block_size)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gone.jsonl", None, "No such file"),
        ("trace.csv", b"", "is named .jsonl"),
        ("empty.jsonl", b"", "empty"),
        ("torn.jsonl.gz", b"\x1f\x8b\x08\x00", "gzip"),
        ("wrong.jsonl", b'{"timestamp": 0}\n', "line 1"),
    ],
)
def test_a_damaged_trace_is_named(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    """A person would search for the file that is wrong, and for what is wrong with it."""
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(WorkloadError, match=said) as caught:
        chosen(tmp_path / name)

    assert name in str(caught.value)
