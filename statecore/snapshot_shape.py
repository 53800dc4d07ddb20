"""What a snapshot looks like, checked before anything in it is believed.

Owns the shape of the header (which value is of which type, how many there are, no number negative or beyond what a column
holds) and the bounds of the columns. Whether the parts fit together `invariants.py` finds out, of the restored state.

A shape is a type; a `tuple` of shapes for a list of exactly so many; a `list` of one shape for a list of any number; a
`dict` of shapes for exactly these fields; a `frozenset` for one of these values; `Maybe(shape)` for the shape or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import attrs
import numpy.typing as npt

from events.limits import POOL_BLOCKS_MAX
from statecore.state import ROOT_ID, TIERS, Engine, State

NUMBER_MAX: Final = (1 << 63) - 1


@attrs.frozen
class Maybe:
    """The shape, or null."""

    shape: Shape


Shape: TypeAlias = "type | tuple[Shape, ...] | list[Shape] | dict[str, Shape] | frozenset[str] | Maybe"

_RANGES: Final[Shape] = [(int, int)]
_TRANSFER: Final[Shape] = (str, str, str, (int, int, int), (str, str), int, bool, _RANGES)
_SEND: Final[Shape] = (str, str, str, str, (str, _RANGES, str, _RANGES), int, bool, _RANGES)
_REQUEST: Final[Shape] = (str, int, int, _RANGES, [(int, _RANGES)])


def header_shape(scalars: Sequence[str], engine_fields: Sequence[str], counters: int, columns: int) -> Shape:
    """Of a header whose state, engines, pools and columns have these parts, in this order."""
    state, engine = State(), Engine("")
    fields = tuple(_shape_of(getattr(engine, name)) for name in engine_fields)
    return {
        "schema": int,
        "digest": str,
        "state": {name: _shape_of(getattr(state, name)) for name in scalars},
        "pools": [(str, frozenset(TIERS), int, int, (int,) * counters)],
        "engines": [(str, fields, (int,) * len(engine.window), [(str, _RANGES)], [_REQUEST])],
        "transfers": [_TRANSFER],
        "sends": [_SEND],
        "names": [str],
        "lengths": (int,) * columns,
    }


def _shape_of(default: object) -> Shape:
    """A field that is None at birth names somebody later."""
    return Maybe(str) if default is None else type(default)


def mismatch(value: object, shape: Shape, where: str = "header") -> str:
    """Where a value is not of its shape, in words; "" when it is."""
    match shape:
        case Maybe():
            return "" if value is None else mismatch(value, shape.shape, where)
        case frozenset():
            return "" if isinstance(value, str) and value in shape else f"{where} is {value!r:.80}"
        case dict():
            if type(value) is not dict or value.keys() != shape.keys():
                return f"{where} has not the fields {', '.join(sorted(shape))}"
            parts = [(value[name], each, f"{name} of {where}") for name, each in shape.items()]
        case tuple():
            if type(value) is not list or len(value) != len(shape):
                return f"{where} is not a list of {len(shape)}"
            parts = [
                (part, each, f"{where}[{number}]") for number, (part, each) in enumerate(zip(value, shape, strict=True))
            ]
        case list():
            if type(value) is not list:
                return f"{where} is not a list"
            parts = [(part, shape[0], f"{where}[{number}]") for number, part in enumerate(value)]
        case _:
            fits = type(value) is shape and not (type(value) is int and not 0 <= value <= NUMBER_MAX)
            return "" if fits else f"{where} is {value!r:.80}, no {shape.__name__}"
    for part, each, place in parts:
        if found := mismatch(part, each, place):
            return found
    return ""


def check_columns(columns: dict[str, npt.NDArray[Any]], pools: int, names: int, next_node: int) -> None:
    """Every number of a column lies in what it counts or points at."""
    name = (-1, names - 1)
    allowed = {
        "node_id": (ROOT_ID + 1, next_node - 1), "node_parent": (ROOT_ID, next_node - 1), "node_blocks": (1, NUMBER_MAX),
        "copy_pool": (0, pools - 1), "copy_pending": name, "copy_filling": name, "copy_leaving": name,
        "copy_unwritable": (0, 1), "copy_ranges": (1, NUMBER_MAX), "range_start": (0, POOL_BLOCKS_MAX),
        "range_count": (1, POOL_BLOCKS_MAX),
    }  # fmt: skip
    for column, values in columns.items():
        least, most = allowed.get(column, (0, NUMBER_MAX))
        if len(values) and not (least <= int(values.min()) and int(values.max()) <= most):
            raise ValueError(
                f"{column} holds {int(values.min())} to {int(values.max())}, allowed are {least} to {most}"
            )
