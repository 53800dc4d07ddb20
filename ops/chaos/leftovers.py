"""Everything a run leaves on the machine, and that it goes with the run, also when the run is killed.

Owns the temporary folder, and the files of the index in shared memory. A shell waits for the end of a pipe: when its other
end is closed, however that came about, it removes both. By then the children are dead (`tether.py`).
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final

from workers.segment_header import index_prefix, lock_prefix
from workers.shared_memory import SHARED_FOLDER

_REMOVE: Final = """
read -r line
sleep "$4"
rm -rf -- "$1"
rm -f -- "$2"* "$3"*
"""
_CHILDREN_DIE_S: Final = "0.2"
_REMOVE_TIMEOUT_S: Final = 10.0


class Leftovers:
    """Use as a context, around everything else. `folder` is the run's."""

    def __init__(self, index: str) -> None:
        self._index = index
        self.folder = Path(tempfile.mkdtemp(prefix="statecore-chaos-"))
        prefixes = [str(SHARED_FOLDER / index_prefix(index)), str(SHARED_FOLDER / lock_prefix(index))]
        self._remover = subprocess.Popen(
            ["/bin/sh", "-c", _REMOVE, "chaos", str(self.folder), *prefixes, _CHILDREN_DIE_S],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> Leftovers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._remover.stdin is not None
        self._remover.stdin.close()
        self._remover.wait(_REMOVE_TIMEOUT_S)
