"""What a `PrefixCacheManager` takes from the process it runs in, as protocols.

Owns these doors. `statecore` starts no process and knows no metrics library; who installs statecore names, under the entry
point group `statecore.surroundings`, what does (`pyproject.toml`; ours is in `workers/surroundings.py`), and a test or a
program of one's own passes something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Final, Protocol, runtime_checkable

import attrs

from events.errors import InvalidInput
from events.ports import Connection

ENTRY_POINTS: Final = "statecore.surroundings"


class Process(Protocol):
    """A started worker; `subprocess.Popen` is one."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code, or None while it lives."""
        ...


@attrs.frozen
class WorkerOrder:
    """Which workers to start: one per tensor-parallel rank of an engine's pool. They carry out swaps and sends alike.

    Attributes:
        key_shape, value_shape: of one layer's cache, `[num_blocks, …]`; the value shape None where there is no value cache.
        host_pool, host_blocks: the host pool and its size; 0: none.
        device_ids: of the ranks, in order.
        sends: the engine's role hands requests over.
    """

    index: str
    pool: str
    ranks: int
    layers: int
    dtype: str
    key_shape: tuple[int, ...]
    value_shape: tuple[int, ...] | None
    host_pool: str | None
    host_blocks: int
    device_ids: tuple[int, ...] = ()
    sends: bool = False


class Launcher(Protocol):
    """Starts workers."""

    def launch(self, order: WorkerOrder) -> Sequence[Process]:
        """Start one worker per rank; return, in the order of ranks, when all are ready.

        Raises:
            RuntimeError: one ended or was not ready in time; its last output is in the message; none is left behind.
        """
        ...


@runtime_checkable
class Metric(Protocol):
    """A gauge, counter or histogram."""

    def set(self, value: float) -> None: ...
    def inc(self, value: float = 1) -> None: ...
    def dec(self, value: float = 1) -> None: ...
    def observe(self, value: float) -> None: ...


class MetricsSink(Protocol):
    """Metrics by name, as attributes: `sink.free_gpu_block_num.set(4)`."""

    def __getattr__(self, name: str) -> Metric: ...


class Surroundings(Protocol):
    """Everything at once."""

    def settings(self) -> Mapping[str, str]:
        """The environment variables of this process."""
        ...

    def connection(self) -> Connection:
        """Where the log is, by these settings; a log in memory where they name none."""
        ...

    def metrics(self) -> MetricsSink: ...

    def launcher(self, connection: Connection) -> Launcher: ...

    def notice(self, text: str) -> None:
        """Tell the operator."""
        ...


def installed() -> Surroundings:
    """The surroundings this installation names.

    Raises:
        InvalidInput: none, or more than one.
    """
    found = tuple(entry_points(group=ENTRY_POINTS))
    if len(found) != 1:
        names = ", ".join(point.value for point in found) or "none"
        raise InvalidInput(f"one entry point of group {ENTRY_POINTS!r} is needed, not {len(found)} ({names})")
    made: Surroundings = found[0].load()()
    return made
