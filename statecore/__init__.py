"""The machine: one KV-cache index as a pure, deterministic state machine over a log of facts.

`CacheIndex` is what an engine embeds. Everything it needs from outside comes through `events.ports`.
"""

from statecore.hashing import ExtraKey, HashedTokens
from statecore.index import CacheIndex
from statecore.manager import PrefixCacheManager
from statecore.policy import Policy
from statecore.rejections import (
    Contended,
    DifferentIndex,
    ForeignBlocks,
    InUse,
    NeverFits,
    NotReceivable,
    PathDiffers,
    PathInUse,
    PathNotCovered,
    PathNotFilled,
    PathShorter,
    Paused,
    PoolExhausted,
    Rejection,
    RequestExists,
    Sending,
    SessionOver,
    StepConflict,
    UnknownPool,
    UnknownRequest,
    UnknownTransfer,
)
from statecore.results import Allocation, Extension, Handover, Match, Room, TransferState

__all__ = [
    "Allocation",
    "CacheIndex",
    "Contended",
    "DifferentIndex",
    "Extension",
    "ExtraKey",
    "ForeignBlocks",
    "Handover",
    "HashedTokens",
    "InUse",
    "Match",
    "NeverFits",
    "NotReceivable",
    "PathDiffers",
    "PathInUse",
    "PathNotCovered",
    "PathNotFilled",
    "PathShorter",
    "Paused",
    "Policy",
    "PoolExhausted",
    "PrefixCacheManager",
    "Rejection",
    "RequestExists",
    "Room",
    "Sending",
    "SessionOver",
    "StepConflict",
    "TransferState",
    "UnknownPool",
    "UnknownRequest",
    "UnknownTransfer",
]
