"""What the demo and its engine processes say to each other, over one pipe per engine.

Owns the records. The conversation is in step: the demo gives an order to every engine, each answers once, with signs of
life in between; so no engine leaves while another still serves, and no digest is taken while anybody writes.

| order   | answer     | meanwhile  |
|---------|------------|------------|
| (start) | Joined     |            |
| SERVE   | Served     | Progress   |
| LEAVE   | Left       |            |
| READ    | Replicated |            |
| COMPARE | Compared   | Progress   |

An engine that cannot go on answers `Failed`, once, and ends. One whose pipe closes ends without a word.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TypeAlias

import attrs

from ops.demo.tally import Limits, Tally
from ops.trace import TraceRequest
from statecore import Policy


@attrs.frozen
class EngineSpec:
    """Everything an engine process is told at its start.

    Attributes:
        url: of the log's server, password and all: it travels through a pipe, not through the command line.
        place: which of the engines it is, from 0.
        gpu_blocks: of its GPU pool, which with one tier all share.
        host_blocks: of the host pool all share; 0: one tier.
        ranks: tensor-parallel ranks that each hold a shard of every block.
        policy: of the host tier.
        private_gpu_blocks, private_host_blocks: of the pools it would have had alone.
        step_s: least time of a step.
        requests: with their numbers in the trace.
    """

    url: str
    index: str
    engine: str
    gpu_pool: str
    place: int
    gpu_blocks: int
    host_blocks: int
    ranks: int
    policy: Policy
    private_gpu_blocks: int
    private_host_blocks: int
    block_size: int
    step_s: float
    limits: Limits
    requests: list[tuple[int, TraceRequest]]


class Order(Enum):
    """What an engine does next."""

    SERVE = auto()
    LEAVE = auto()
    READ = auto()
    COMPARE = auto()


@attrs.frozen
class Joined:
    """The engine is in the index."""


@attrs.frozen
class Progress:
    """A sign of life."""

    tally: Tally
    commits: int
    conflicts: int


@attrs.frozen
class Served:
    """All its requests are released or refused, and its transfers have ended: all but `open_transfers`."""

    tally: Tally
    open_transfers: int


@attrs.frozen
class Left:
    """It left the index. Durations as in `measured.py`, in seconds."""

    commits: int
    conflicts: int
    commits_s: list[float]
    round_trips_s: list[float]


@attrs.frozen
class Replicated:
    """Its replica, read to the end of the log."""

    position: int
    digest: str


@attrs.frozen
class Compared:
    """What the same scheduler did with the same requests and a private index.

    Attributes:
        private: over its share of all blocks.
        gpu_only: over its share of the GPU blocks, without a second tier; with one tier the same.
    """

    private: Tally
    gpu_only: Tally


@attrs.frozen
class Failed:
    """Last words, one line."""

    why: str


Message: TypeAlias = Joined | Progress | Served | Left | Replicated | Compared | Failed
