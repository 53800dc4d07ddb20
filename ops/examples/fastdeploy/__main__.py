"""`python -m ops.examples.fastdeploy`. Engine processes import this file too."""

from __future__ import annotations

import signal
import sys
from typing import Final

TERMINATED: Final = 143

if __name__ == "__main__":
    from ops.examples.fastdeploy.command import command

    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(TERMINATED))  # unwind: engines and workers end, too
    command(prog_name="python -m ops.examples.fastdeploy")
