"""Stores that stop in the middle of a copy while a test wants them to, and stores that cannot be made.

Named on a worker's command line as `tests.workers.held_store:HeldStore`. While the file `hold` is in the folder that
`STATECORE_TEST_FOLDER` names, a copy moves its first block, writes `reached-<pid>`, and waits until `hold` is gone.
`STATECORE_TEST_PATIENCE_S` shortens, in the worker, how long a job and a heartbeat live without a word; and
`STATECORE_TEST_BARRIER_S` how long the log stays closed after its server began a new life.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from events import limits
from events.facts import BlockRanges
from statecore.ranges import split
from workers.numpy_store import NumpyStore
from workers.paddle_store import PaddleStore

FOLDER_VARIABLE: Final = "STATECORE_TEST_FOLDER"
PATIENCE_VARIABLE: Final = "STATECORE_TEST_PATIENCE_S"
BARRIER_VARIABLE: Final = "STATECORE_TEST_BARRIER_S"

if PATIENCE_VARIABLE in os.environ:
    limits.JOB_IDLE_S = limits.HEARTBEAT_TTL_S = float(os.environ[PATIENCE_VARIABLE])  # type: ignore[misc]
    limits.HEARTBEAT_EVERY_S = limits.HEARTBEAT_TTL_S / 5  # type: ignore[misc]
if BARRIER_VARIABLE in os.environ:
    limits.BARRIER_S = float(os.environ[BARRIER_VARIABLE])  # type: ignore[misc]


def copied_in_two_parts(copy: Callable[..., int], *pools: str, blocks: tuple[BlockRanges, BlockRanges]) -> int:
    """While a test holds: the first block, `reached`, and a wait. Then all."""
    folder = Path(os.environ[FOLDER_VARIABLE])
    if (folder / "hold").exists():
        copy(*pools, *(split(each, 1)[0] for each in blocks))
        (folder / f"reached-{os.getpid()}").touch()
        while (folder / "hold").exists():
            time.sleep(0.005)
    return copy(*pools, *blocks)


class HeldStore(NumpyStore):
    """Copies in two parts, and can be held between them."""

    def copy(
        self,
        source_pool: str,
        destination_pool: str,
        source_blocks: BlockRanges,
        destination_blocks: BlockRanges,
    ) -> int:
        blocks = source_blocks, destination_blocks
        return copied_in_two_parts(super().copy, source_pool, destination_pool, blocks=blocks)


class HeldPaddleStore(PaddleStore):
    """The same with paddle."""

    def copy(
        self,
        source_pool: str,
        destination_pool: str,
        source_blocks: BlockRanges,
        destination_blocks: BlockRanges,
    ) -> int:
        blocks = source_blocks, destination_blocks
        return copied_in_two_parts(super().copy, source_pool, destination_pool, blocks=blocks)


class BrokenStore:
    """A store whose library is missing."""

    def __init__(self, index: str, rank: int) -> None:
        raise RuntimeError(f"libcuda.so.1 is missing, says rank {rank} of {index}")


class KilledStore:
    """A store whose process is killed while it is made, as by the kernel when memory runs out."""

    def __init__(self, index: str, rank: int) -> None:
        sys.stderr.write(f"taking 900 GB, says rank {rank} of {index}\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)


class EndlessStore:
    """A store that never gets ready."""

    def __init__(self, index: str, rank: int) -> None:
        sys.stderr.write(f"waiting for the driver, says rank {rank} of {index}\n")
        sys.stderr.flush()
        time.sleep(600)
