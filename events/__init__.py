"""The log: facts, their codec, the ports the machine needs, and the log on three backends.

`connect` opens the place where logs are. Everything else here is for those who extend the project.
"""

from events.connect import connect
from events.errors import (
    CorruptState,
    InvalidInput,
    NewerSchema,
    OutcomeUnknown,
    RolledBack,
    StateCoreError,
    Unavailable,
)

__all__ = [
    "CorruptState",
    "InvalidInput",
    "NewerSchema",
    "OutcomeUnknown",
    "RolledBack",
    "StateCoreError",
    "Unavailable",
    "connect",
]
