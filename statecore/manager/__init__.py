"""FastDeploy's `PrefixCacheManager` on top of one `CacheIndex`: its names, arguments, answers and attributes.

Owns the translation between the two. It keeps nothing that the log does not hold: an index, settings, and the doors to
the process it runs in. The contract is `PrefixCacheManager` of FastDeploy (Apache-2.0) as its scheduler uses it; the code
is ours.

| file               | holds                                                             |
|--------------------|-------------------------------------------------------------------|
| `manager.py`       | the class: how it is built, and its attributes                    |
| `requests.py`      | the life of a request                                             |
| `allocation.py`    | blocks that the caller holds itself, and making room              |
| `swaps.py`         | transfers by name, and handing requests over                      |
| `upkeep.py`        | clearing, new sizes                                               |
| `launching.py`     | worker processes                                                  |
| `base.py`          | what these share: one step, one bounded wait, published metrics   |
| `tasks.py`, `settings.py`, `shapes.py`, `metrics.py`, `hits.py`, `refusals.py` | what goes in and comes out   |
| `surroundings.py`  | the doors to the process                                          |
"""

from statecore.manager.manager import PrefixCacheManager

__all__ = ["PrefixCacheManager"]
