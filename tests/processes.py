"""The processes that a command of ours has started, told apart by what they run."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ENGINE: Final = b"spawn_main"
WORKER: Final = b"workers.worker_process"


def children_of(parent: int, kind: bytes) -> list[int]:
    """Process ids of the living children that run `kind`; one that is between fork and exec is not among them yet."""
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return [child for child in children if kind in _command_line(child)]


def _command_line(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except FileNotFoundError:  # it ended since it was listed
        return b""
