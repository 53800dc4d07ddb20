"""A numpy store that stops in the middle of a copy while a test wants it to, and one that cannot be made.

Named on a worker's command line as `tests.workers.held_store:HeldStore`. While the file `hold` is in the folder that
`STATECORE_TEST_FOLDER` names, a copy moves its first block, writes `reached-<pid>`, and waits until `hold` is gone.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from events.facts import BlockRanges
from statecore.ranges import split
from workers.numpy_store import NumpyStore

FOLDER_VARIABLE: Final = "STATECORE_TEST_FOLDER"


class HeldStore(NumpyStore):
    """Copies in two parts, and can be held between them."""

    def copy(
        self,
        source_pool: str,
        destination_pool: str,
        source_blocks: BlockRanges,
        destination_blocks: BlockRanges,
    ) -> int:
        folder = Path(os.environ[FOLDER_VARIABLE])
        if (folder / "hold").exists():
            first = split(source_blocks, 1)[0], split(destination_blocks, 1)[0]
            super().copy(source_pool, destination_pool, *first)
            (folder / f"reached-{os.getpid()}").touch()
            while (folder / "hold").exists():
                time.sleep(0.005)
        return super().copy(source_pool, destination_pool, source_blocks, destination_blocks)


class BrokenStore:
    """A store whose library is missing."""

    def __init__(self, index: str, rank: int) -> None:
        raise RuntimeError(f"libcuda.so.1 is missing, says rank {rank} of {index}")
