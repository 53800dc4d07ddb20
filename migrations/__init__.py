"""What older releases wrote, into the shapes of today: the lowest layer, pure functions over what was written.

Knows nothing of ours, not even the facts: a step must go on saying what it said when the facts have long changed. Works on
the *written* form, plain lists and dicts as JSON holds them, before anything is made of it.

| chain                          | one step                 | who calls it                                  |
|--------------------------------|--------------------------|-----------------------------------------------|
| `facts.py`                     | one fact, n -> n+1       | `events/codec.py`, entries of an older schema |
| `snapshots.py`                 | one snapshot, n -> n+1   | `statecore/snapshot.py`                       |
| `layouts.py`                   | the keys of an index     | the command `statecore migrate`               |

Facts and snapshots are lifted whenever they are read and stay on disk as they were written: a checksum is over what the
writer decided. Keys are changed once, in place. Why so: ops/decisions/0019.
"""
