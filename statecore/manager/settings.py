"""What a manager is told by FastDeploy's configuration objects and by the environment.

Owns the names of the fields and of the variables, and their checks. Fields are attributes.

| field                       | of                  | means                                           | missing |
|-----------------------------|---------------------|-------------------------------------------------|---------|
| `cache_config`              | config              | the fields below                                | refused |
| `total_block_num`           | cache_config        | GPU blocks, with the V1 scheduler               | refused |
| `prefill_kvcache_block_num` | cache_config        | GPU blocks, without it                          | refused |
| `num_cpu_blocks`            | cache_config        | host blocks, shared by the engines of an index  | 0       |
| `block_size`                | cache_config        | tokens in a block                               | 64      |
| `enable_prefix_caching`     | cache_config        | whether anything is cached                      | yes     |
| `disable_chunked_mm_input`  | cache_config        | a match ends inside of no image                 | no      |
| `kv_cache_quant_type`       | config.quant_config | see `shapes.py`                                 | none    |

| variable                      | means                                                           | missing           |
|-------------------------------|-----------------------------------------------------------------|-------------------|
| `STATECORE_INDEX`             | the index                                                       | fastdeploy        |
| `STATECORE_ENGINE`            | this engine; data-parallel ranks from 1 on append their number  | see `engine_name` |
| `STATECORE_GPU_POOL`          | the GPU pool, where engines share one                           | one of its own    |
| `ENABLE_V1_KVCACHE_SCHEDULER` | 0: blocks for prefill only                                      | 1                 |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from events.errors import InvalidInput
from events.limits import BLOCK_SIZE_MAX, POOL_BLOCKS_MAX
from events.ports import Connection
from statecore import door
from statecore.manager.refusals import WrongType

MIXED: Final = "mixed"
PREFILL: Final = "prefill"
DECODE: Final = "decode"
ROLES: Final = (MIXED, PREFILL, DECODE)

INDEX_VARIABLE: Final = "STATECORE_INDEX"
ENGINE_VARIABLE: Final = "STATECORE_ENGINE"
GPU_POOL_VARIABLE: Final = "STATECORE_GPU_POOL"
V1_SCHEDULER_VARIABLE: Final = "ENABLE_V1_KVCACHE_SCHEDULER"
DEFAULT_INDEX: Final = "fastdeploy"
DEFAULT_BLOCK_SIZE: Final = 64
_MEMORY: Final = "memory:"
_RANKS_MAX: Final = 1024


@attrs.frozen
class CacheSettings:
    """What `cache_config` says; see the table of this module."""

    gpu_blocks: int
    cpu_blocks: int
    block_size: int
    caching: bool
    whole_images: bool


def read_cache_config(cache_config: object, variables: Mapping[str, str]) -> CacheSettings:
    """Check a `cache_config`.

    Raises:
        InvalidInput: a field is missing or is not what it should be.
    """
    return CacheSettings(
        gpu_blocks=gpu_blocks_of(cache_config, variables),
        cpu_blocks=_whole(cache_config, "num_cpu_blocks", default=0, least=0, most=POOL_BLOCKS_MAX),
        block_size=_whole(cache_config, "block_size", default=DEFAULT_BLOCK_SIZE, least=1, most=BLOCK_SIZE_MAX),
        caching=_truth(cache_config, "enable_prefix_caching", default=True),
        whole_images=_truth(cache_config, "disable_chunked_mm_input", default=False),
    )


def gpu_blocks_of(cache_config: object, variables: Mapping[str, str]) -> int:
    """The size of the GPU pool, by the scheduler in use."""
    flag = variables.get(V1_SCHEDULER_VARIABLE) or "1"
    if flag not in ("0", "1"):
        raise InvalidInput(f"{V1_SCHEDULER_VARIABLE} is 0 or 1, not {door.shown(flag)}")
    name = "total_block_num" if flag == "1" else "prefill_kvcache_block_num"
    return _whole(cache_config, name, default=None, least=1, most=POOL_BLOCKS_MAX)


def role_of(value: object) -> str:
    if value not in ROLES:
        raise InvalidInput(f"splitwise_role is one of {', '.join(ROLES)}, not {door.shown(value)}")
    return str(value)


def rank_of(value: object) -> int:
    return door.whole(value, "local_data_parallel_id", least=0, most=_RANKS_MAX)


def index_name(given: object, variables: Mapping[str, str]) -> object:
    return given if given is not None else variables.get(INDEX_VARIABLE) or DEFAULT_INDEX


def pool_name(given: object, variables: Mapping[str, str]) -> object:
    return given if given is not None else variables.get(GPU_POOL_VARIABLE) or None


def engine_name(given: object, variables: Mapping[str, str], rank: int, connection: Connection) -> object:
    """Who this engine is: what was given, else what the environment says, else, for a log in memory, `engine-<rank>`.

    Raises:
        InvalidInput: the log is shared and nobody said who this is: two engines of one name end each other's lives.
    """
    if given is not None:
        return given
    named = variables.get(ENGINE_VARIABLE)
    if named:
        return f"{named}-{rank}" if rank else named
    if str(getattr(connection, "url", "")).startswith(_MEMORY):
        return f"engine-{rank}"
    raise InvalidInput(
        f"an engine on a shared log has a name, stable over restarts: set {ENGINE_VARIABLE}, or pass engine="
    )


def required(record: object, name: str, of: str) -> object:
    """A field that must be there and not None."""
    value = getattr(record, name, None)
    if value is None:
        raise InvalidInput(f"{of} has no field {name!r} (it is {type(record).__name__} {door.shown(record)})")
    return value


# --- inside ---------------------------------------------------------------------------------------------------------


def _whole(record: object, name: str, *, default: int | None, least: int, most: int) -> int:
    value = getattr(record, name, None)
    if value is None:
        value = required(record, name, "cache_config") if default is None else default
    return door.whole(value, f"cache_config.{name}", least=least, most=most)


def _truth(record: object, name: str, *, default: bool) -> bool:
    value = getattr(record, name, None)
    if value is None:
        return default
    if not isinstance(value, bool | int):
        raise WrongType(f"cache_config.{name} is true or false, not {type(value).__name__} {door.shown(value)}")
    return bool(value)
