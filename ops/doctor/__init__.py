"""`statecore doctor`: what is wrong with a server and an index, and what helps.

| module          | looks at                                                                                    |
|-----------------|---------------------------------------------------------------------------------------------|
| `finding.py`    | what a check says: what, how bad, with which numbers, what to do                            |
| `patient.py`    | a server and an index, asked once; what may not be asked is said, not guessed               |
| `server.py`     | version, eviction, memory, clocks                                                           |
| `durability.py` | the append-only file, background saves, replicas                                            |
| `rights.py`     | what this user may do, whether the scripts load                                             |
| `history.py`    | layout, life of the server, links and checksums, head                                       |
| `snapshots.py`  | the snapshots beside the log, the trim behind them, the keeper                              |
| `engines.py`    | leases, fences                                                                              |
| `transfers.py`  | transfers that are not over, workers, job streams                                           |
| `blocks.py`     | invariants, leaked and quarantined blocks                                                   |
| `command.py`    | runs them and shows what they found                                                         |

A check only reads. It never walks the keyspace (E-44): what cannot be named by a key of the index is not looked for.
"""
