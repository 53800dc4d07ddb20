"""The machine: one KV-cache index as a pure, deterministic state machine over a log of facts.

`CacheIndex` is what an engine embeds. Everything it needs from outside comes through `events.ports`.
"""

from statecore.hashing import ExtraKey, HashedTokens
from statecore.index import CacheIndex
from statecore.policy import Policy
from statecore.rejections import (
    Contended,
    DifferentIndex,
    ForeignBlocks,
    NeverFits,
    PathDiffers,
    PathInUse,
    PathNotCovered,
    PathNotFilled,
    PathShorter,
    PoolExhausted,
    Rejection,
    RequestExists,
    SessionOver,
    StepConflict,
    UnknownPool,
    UnknownRequest,
    UnknownTransfer,
)
from statecore.results import Allocation, Extension, Match, TransferState

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
    "PathInUse",
    "PathNotCovered",
    "PathNotFilled",
    "PathShorter",
    "Policy",
    "PoolExhausted",
    "Rejection",
    "RequestExists",
    "SessionOver",
    "StepConflict",
    "TransferState",
    "UnknownPool",
    "UnknownRequest",
    "UnknownTransfer",
]
