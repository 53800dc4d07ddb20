"""Chaos: real processes and a real Redis under every fault that can be made on one machine, and the checks of what is left.

| module            | owns                                                                                   |
|-------------------|----------------------------------------------------------------------------------------|
| proxy.py          | a network that fails: what it does to one command                                      |
| network.py        | the same at random, from a seed, counted                                               |
| redis_process.py  | one redis-server: started, killed, stopped, started again                              |
| server.py         | the Redis of a run, and what is done to it past the network                            |
| tether.py         | children that die with their parent                                                    |
| slot.py           | what an engine and the tormentor tell each other without a network                     |
| workload.py       | what is asked of the engines                                                           |
| recorded.py       | a log that writes down what it was answered                                            |
| engine.py         | the engine process: a scheduler on a CacheIndex with real bytes, through every error   |
| history.py        | what a process writes down of what it was told, line by line                           |
| cast.py           | the processes: starting, killing, stopping, starting again                             |
| stage.py          | who is there, who is down, what is still to happen                                     |
| moves.py          | every fault that is made by hand                                                       |
| tormentor.py      | which fault comes when, from a seed                                                    |
| auditor.py        | the log, read continuously by somebody who does not write                              |
| checks.py         | what must be true of all histories and the log; replayed.py: of the state it gives     |
| recovery.py       | how long everything affected by a fault took to be at work again                       |
| leftovers.py      | what a run leaves on the machine, and that it goes with it                             |
| run.py            | the order of a run; report.py, command.py: telling it                                  |
"""
