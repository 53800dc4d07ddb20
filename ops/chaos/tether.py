"""Children that die with their parent, however it ends, also while they are stopped.

Owns a small program that asks the kernel for a SIGKILL at the death of the thread that started it and then becomes the
command it was given: same pid, and the request survives the exec. So children are started by a thread that lives as
long as they may. Imports nothing of ours: it runs before every process of a chaos run.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def tethered(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` tied to this process."""
    return [sys.executable, "-S", "-E", __file__, str(os.getpid()), *command]


def main(parent: int, command: Sequence[str]) -> None:
    """Become the command, or end if the parent is dead already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:
        os.execvp(command[0], list(command))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
