"""What the demo says of the workers: summed up from their own log lines."""

from __future__ import annotations

import io

from ops.demo.movers import Moved, moved
from workers.log_lines import LogLines


def log_of(*events: tuple[str, dict[str, object]]) -> bytes:
    """As a worker writes it."""
    written = io.BytesIO()
    say = LogLines(written, index="i", pool="gpu:engine-0", rank=0)
    for event, details in events:
        say(event, **details)
    return written.getvalue()


def test_copies_of_all_workers_are_summed_up() -> None:
    """The speed in the report would be that of one worker, or of none."""
    first = log_of(
        ("ready", {"pid": 1}), ("copied", {"bytes": 4000, "seconds": 0.5}), ("failed", {"bytes": 0, "seconds": 0.1})
    )
    second = log_of(("copied", {"bytes": 1000, "seconds": 0}), ("skipped", {"bytes": 0, "seconds": 0.0}))

    total = moved([first, second])

    assert total == Moved(copies=2, failed=1, moved_bytes=5000, seconds=0.5)
    assert total.bytes_per_s == 10_000


def test_a_torn_line_and_a_traceback_are_skipped() -> None:
    """A worker that was killed while it wrote would break the report of all others."""
    assert moved([b'{"event": "copied", "byt', b"Traceback (most recent call last):", b"[]", b""]) == Moved()
    assert Moved().bytes_per_s == 0
