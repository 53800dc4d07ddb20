"""`python -m ops.cli`: the command where the entry point is not on the path."""

from ops.cli import main

main(prog_name="statecore")
