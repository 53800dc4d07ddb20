"""FastDeploy's scheduler contract, driven end to end: `python -m ops.examples.fastdeploy`.

Owns an example that is also a check. `scheduler.py` is a scheduler loop written after the contract (no code of
FastDeploy's); it drives `statecore.PrefixCacheManager` by the names FastDeploy calls, with the requests of a trace, on two
engine processes that share one index. `checker.py` looks after every step whether the contract still holds. How to plug
statecore into FastDeploy itself is in the README beside this file.
"""
