"""The contract's cases in float32 on the device, beside plain loops over ``step`` in float64 on the CPU.

``tests/cases.py`` has the cases; this is its first rule, "the run equals a plain loop, values and gradients", for every
cell, wrapper, direction and stack: without flags, with lengths, with gaps in a mask, with resets, and with all of them.
A case has two programs, one without flags and one that takes all of them, each compiled for either precision.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks.measuring import first_line
from experiments.gpu.deadline import LEAST, Deadline
from jaxrnn.doctor import TOLERANCES, furthest
from tests.cases import CASES, FLAGS, Case, Flags, T, differentiated, everything, problem, reference
from tests.evaluating import evaluated

PyTree = Any

SETS = FLAGS[:5]  # the sixth has the masks and resets of the fifth, and would be a third program
# How far an array may lie from the loop's, relative to its largest entry, by jax_default_matmul_precision.
#
# "highest": TF32 off, the doctor's for float32. Over six steps a gradient has some hundred roundings of 2^-24 = 6e-8
# behind it: over three draws of all cases CPUs come to 3e-6, and tanh and exp of a GPU are right to several units in
# the last place.
#
# "default": TF32 on. The operands of products keep 11 significant bits, off by at most 2^-11 = 5e-4 where they are
# rounded and 2^-10 where they are cut off; sums stay float32. That is 2^13 times the rounding of float32, so 3e-6
# becomes 2.5e-2. Simulated on a CPU, rounded and cut off, over the same draws, it came to 4e-3 for values and 1.1e-2
# for gradients. Allowed are a hundred roundings. A wrong mask, gate or weight is off by 0.1 to 1.
ALLOWED = {"highest": TOLERANCES["float32"], "default": 100 * 2.0**-11}
PRECISIONS = tuple(ALLOWED)
SHARE = 0.45  # of the time limit; the benchmark has the rest


class Outcome(NamedTuple):
    """A case under one set of flags and one setting of the products."""

    case: str
    flags: str
    precision: str
    value: float = np.nan  # the largest relative difference of outputs and final carry
    gradient: float = np.nan  # that of the gradients by parameters, inputs and initial carry
    note: str = ""  # why nothing was compared

    @property
    def ok(self) -> bool:
        """Both differences are allowed, as NaN never is; a note leaves NaN."""
        return all(apart <= ALLOWED[self.precision] for apart in (self.value, self.gradient))

    @property
    def skipped(self) -> bool:
        return self.note.startswith("skipped")

    @property
    def wrong(self) -> bool:
        return not (self.ok or self.skipped)


class Inputs(NamedTuple):
    """What a program takes, as NumPy arrays in float32."""

    params: PyTree
    xs: np.ndarray
    carry: PyTree
    options: dict[str, np.ndarray]
    by_step: np.ndarray
    by_end: np.float32


def inputs(case: Case, flags: Flags) -> Inputs:
    """Drawn on the CPU: a GPU would compile a program for each small array."""
    with jax.default_device(cpu()):
        params, xs, carry = jax.tree.map(np.asarray, problem(case, flags))
    return Inputs(params, xs, carry, flags.all_options, np.ones(T, np.float32), np.float32(1))


def cpu() -> jax.Device:
    return jax.devices("cpu")[0]


def expected(case: Case, flags: Flags, given: Inputs) -> tuple[PyTree, PyTree]:
    """``(outputs, gradients)`` of the loop, in float64 by NumPy from the same float32 numbers."""
    args = jax.tree.map(lambda a: a.astype(np.float64) if a.dtype == np.float32 else a, tuple(given[:3]))
    with jax.enable_x64(True), jax.default_device(cpu()):
        run = lambda params, xs, carry: reference(case, params, xs, carry, flags)
        loop = evaluated(lambda *args: differentiated(run, *args))
        (_, outputs), gradients = loop(*args)
    return outputs, gradients


def compared(
    deadline: Deadline, cases: Iterable[Case] = CASES, way: Callable[..., Any] = jax.jit
) -> Iterator[list[Outcome]]:
    """The outcomes of each case, case by case: all with TF32 off first, then all with it on.

    Args:
        deadline: cases that are not begun by then are skipped.
        cases: of ``tests/cases.py``.
        way: what compiles a program for the device that is tested.
    """
    cases = list(cases)
    loops = functools.cache(lambda index, flags: _loop(cases[index], SETS[flags]))
    for precision in PRECISIONS:
        for index, case in enumerate(cases):
            if deadline.left() < LEAST:
                note = "skipped: the time limit is used up"
                yield [Outcome(case.name, flags.name, precision, note=note) for flags in SETS]
                continue
            run = way(everything(case))
            yield [
                _outcome(case, flags, precision, run, functools.partial(loops, index, number))
                for number, flags in enumerate(SETS)
            ]


def _loop(case: Case, flags: Flags) -> tuple[Inputs, PyTree, PyTree]:
    given = inputs(case, flags)
    return given, *expected(case, flags, given)


def _outcome(
    case: Case, flags: Flags, precision: str, run: Callable[..., Any], loop: Callable[[], tuple[Inputs, PyTree, PyTree]]
) -> Outcome:
    try:
        given, outputs, gradients = loop()
        with jax.default_matmul_precision(precision):
            got_outputs, _, got_gradients = jax.block_until_ready(run(*given))
        value, gradient = furthest(got_outputs, outputs), furthest(got_gradients, gradients)
    except Exception as error:  # a compiler can fail in any way; the other cases still say something
        note = f"failed: {type(error).__name__}: {first_line(error)}"
        return Outcome(case.name, flags.name, precision, note=note)
    return Outcome(case.name, flags.name, precision, value, gradient)
