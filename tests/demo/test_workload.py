"""What the demo serves: sizes and shares, and what is said when they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.demo.workload import Workload, WorkloadError, workload
from ops.trace import generate, write_trace


def chosen(
    trace: Path | None = None,
    requests: int = 200,
    engines: int = 4,
    block_size: int = 64,
    gpu_blocks: int | None = None,
) -> Workload:
    return workload(
        trace=trace, seed=0, requests=requests, engines=engines, block_size=block_size, gpu_blocks=gpu_blocks
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
