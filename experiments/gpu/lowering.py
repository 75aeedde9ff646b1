"""Every program of a GPU's run, lowered for CUDA on a machine that has none; nothing is compiled or run.

Plans look at ``jax.default_backend()``: here it says "gpu", so that the programs are those that a GPU would get.
cuDNN's LSTM in JAX asks the GPU for sizes while it is lowered, so it is left out; torch has nothing to lower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.export

from experiments.benchmarks.measuring import first_line
from experiments.benchmarks.programs import QUANTITIES
from experiments.benchmarks.suites import title
from experiments.gpu import contract, speed
from tests.cases import CASES, Case, everything

PyTree = Any
PLATFORM = "cuda"


class Lowerable(NamedTuple):
    name: str
    function: Callable[..., Any]
    args: tuple[PyTree, ...]
    precision: str = "default"


class Lowered(NamedTuple):
    name: str
    text: str = ""  # StableHLO
    error: str = ""


def of_contract(cases: Iterable[Case] = CASES) -> Iterator[Lowerable]:
    """Outputs and gradients of each case, without flags and with all of them."""
    for case in cases:
        for flags in (contract.SETS[0], contract.SETS[-1]):
            given = contract.inputs(case, flags)
            for precision in contract.PRECISIONS:
                yield Lowerable(f"{case.name} {flags.name} {precision}", everything(case), tuple(given), precision)


def of_benchmark(settings: speed.Settings) -> Iterator[Lowerable]:
    """jaxrnn's forward passes and training steps, at their shapes and dtypes."""
    for problem in (problem for together in speed.problems(settings) for problem in together):
        for contestant in speed.contestants(problem, settings):
            if contestant.model is None or contestant.gpu:
                continue
            for quantity in settings.quantities:
                traced = QUANTITIES[quantity](problem, contestant.model(problem))
                name = f"{title(problem, quantity)} {problem.dtype} {contestant.name}"
                yield Lowerable(name, traced.function, traced.args)


def lowered(programs: Iterable[Lowerable]) -> Iterator[Lowered]:
    """Each of them for CUDA: its text, or why there is none."""
    with mock.patch.object(jax, "default_backend", return_value="gpu"):
        for program in programs:
            shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), program.args)
            try:
                with jax.default_matmul_precision(program.precision):
                    exported = jax.export.export(jax.jit(program.function), platforms=[PLATFORM])(*shapes)
                yield Lowered(program.name, exported.mlir_module())
            except Exception as error:
                yield Lowered(program.name, error=f"{type(error).__name__}: {first_line(error)}")
