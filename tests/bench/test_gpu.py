"""The bench of a GPU: it measures every figure, gives back what it took, and says where it cannot run.

No figure is judged here. The GPU is pretended, as in `tests/stores`; on a machine with one `statecore bench` shows it.
"""

from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner

from ops.bench import command, gpu, hashing
from tests.stores.pretended_cuda import PretendedDriver, PretendedRuntime


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> PretendedRuntime:
    runtime = PretendedRuntime()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", PretendedDriver(runtime))
    return runtime


def test_figures_come_out_and_nothing_is_left(pretended: PretendedRuntime) -> None:
    """Given a GPU, every figure is measured beside its reference, and no memory, stream or page stays taken."""
    result = CliRunner().invoke(command.command, ["--quick", "--json", "-", "--only", "gpu_*"])

    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert [figure["name"] for figure in figures] == list(gpu.GROUP.figures)
    assert all(figure["value"] > 0 and figure["reference_value"] > 0 for figure in figures)
    assert (pretended.allocated, pretended.pinned, pretended.streams) == ({}, {}, {})


def test_without_a_gpu_who_asks_for_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given no cuda-python, when its figures are asked for by name, then one line says what is missing."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)

    result = CliRunner().invoke(command.command, ["--quick", "--only", "gpu_swap_in*"])

    assert result.exit_code == 1
    assert "gpu_swap_in_vs_memcpy, gpu_swap_in_vs_memcpy_16k cannot be measured: no GPU here" in result.stderr
    assert "Traceback" not in result.output


def test_without_a_gpu_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given no cuda-python, when all is asked for, then the figures of the GPU are left out, which is said, and no other."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setattr(command, "GROUPS", (hashing.GROUP, gpu.GROUP))
    monkeypatch.setattr(command, "FIGURES", hashing.GROUP.figures + gpu.GROUP.figures)

    result = CliRunner().invoke(command.command, ["--quick", "--json", "-"])

    assert result.exit_code == 0, result.output
    assert [figure["name"] for figure in json.loads(result.stdout)] == list(hashing.GROUP.figures)
    assert "cannot be measured: no GPU here" in result.stderr


def test_a_pattern_that_names_others_too_measures_those(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given no cuda-python, when a pattern fits figures of the GPU and others, then the others are measured."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)

    result = CliRunner().invoke(command.command, ["--quick", "--json", "-", "--only", "*_vs_memcpy"])

    assert result.exit_code == 0, result.output
    assert [figure["name"] for figure in json.loads(result.stdout)] == ["store_vs_memcpy"]
    assert "gpu_swap_in_vs_memcpy, gpu_swap_out_vs_memcpy cannot be measured" in result.stderr
