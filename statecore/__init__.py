"""The machine: one KV-cache index as a pure, deterministic state machine over a log of facts.

`CacheIndex` is what an engine embeds. Everything it needs from outside comes through `events.ports`.
"""

from statecore.hashing import ExtraKey, HashedTokens
from statecore.index import CacheIndex
from statecore.rejections import (
    Contended,
    DifferentIndex,
    ForeignBlocks,
    NeverFits,
    PathDiffers,
    PathNotCovered,
    PoolExhausted,
    Rejection,
    RequestExists,
    SessionOver,
    StepConflict,
    UnknownPool,
    UnknownRequest,
)
from statecore.results import Allocation, Extension, Match

__all__ = [
    "Allocation",
    "CacheIndex",
    "Contended",
    "DifferentIndex",
    "Extension",
    "ExtraKey",
    "ForeignBlocks",
    "HashedTokens",
    "Match",
    "NeverFits",
    "PathDiffers",
    "PathNotCovered",
    "PoolExhausted",
    "Rejection",
    "RequestExists",
    "SessionOver",
    "StepConflict",
    "UnknownPool",
    "UnknownRequest",
]
