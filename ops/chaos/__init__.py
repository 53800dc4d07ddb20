"""Chaos: real processes and a real Redis under every fault that can be made on one machine, and the checks of what is left.

| module            | owns                                                                                   |
|-------------------|----------------------------------------------------------------------------------------|
| proxy.py          | a network that fails: what it does to one command                                      |
| network.py        | the same at random, from a seed, counted                                               |
| redis_process.py  | one redis-server: started, killed, stopped, started again                              |
| tether.py         | children that die with their parent                                                    |
| slot.py           | what an engine and the tormentor tell each other without a network                     |
| engine.py         | the engine process: a scheduler on a CacheIndex with real bytes, through every error   |
| history.py        | what a process writes down of what it was told, line by line                           |
| cast.py           | the processes: starting, killing, stopping, starting again                             |
| tormentor.py      | which fault comes when, from a seed, and healing them                                  |
| auditor.py        | the log, read continuously by somebody who does not write                              |
| checks.py         | what must be true of all histories and the log                                         |
| run.py            | the order of a run; report.py, command.py: telling it                                  |
"""
