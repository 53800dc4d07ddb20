"""Processes that copy bytes for the bench, started the way swap workers are.

Owns their environment, which is what it is about: from which size on glibc writes past the caches is read once, at the
start of a process, and `workers.launcher` sets it. What is compared with a worker must run under the same setting.
"""

from __future__ import annotations

import os
import subprocess
import sys

from workers.stores import StoreSettings


def start(module: str, *words: str) -> subprocess.Popen[bytes]:
    """`python -m module words`, with its standard output for us to read."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        env={**StoreSettings().environment(), **os.environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
