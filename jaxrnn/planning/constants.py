"""The constants of the rules by which plans choose (``_rules.py``), in one table, and which of them apply."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax

from jaxrnn.planning.tuning_file import read_constants


class Constants(NamedTuple):
    """What the rules know of a CPU. The defaults were measured on one; ``python -m jaxrnn tune`` measures another.

    Fields:
        contract_from: weights for each output of a product (numbers / numbers) from which the gradient of the weights
            is contracted after the backward loop. Added up in the loop, the gradient, of the size of the weights, is
            read and written at every step, in cache. Contracted later, the cotangent of the product's output is written
            by every step and read once more, T steps long and so out of cache. With a time a for each weight and step
            of the one, and b for each output and step of the other, contraction pays where weights · a ≥ outputs · b:
            the constant is b / a. From more than an eighth of it on, and more weights than outputs, contraction, in
            parts where much would be stacked, loses little at most, and is done too. Measured on two AVX-512 cores (H²
            weights, batch B; contracted / added): H/B = 16 to 32: 0.4 to 0.95; H/B = 4: 0.7 to 1.4; H/B below 1: 1.0 to
            1.5. With contractions in their fastest form, on two other AVX-512 cores, H/B = 1, 2, 4, 8, 16: LSTM-128
            0.99, 0.96, 0.89, 0.66, 0.52; GRU-64 1.12, 1.06, 0.91, 0.75, 0.59, from 4 on. Where another process kept one
            of the cores busy, GRU-64 had 1.63, 1.52, 1.35, 1.05, 0.79.
        left_from: weights of a product (numbers) from which the forward loop computes ``(Σ Wᵀ xᵀ)ᵀ``. A CPU's matrix
            product packs its right operand anew at every call, which costs their size; the transposes cost the sizes
            of input and output, and the product runs along the shorter axis. Measured on two AVX-512 cores, LSTM
            (32, 128, 512, 512), weights 512 × 2048: forward 89 against 125 ms, training step 250 against 303; at
            256 × 1024 nothing is gained, at 128 × 512 a fifth is lost. On two AVX2 cores busy with other work, weights
            512 × 2048, T = 32, left / right: B = 1, 2, 8, 32, 64, 96, 128 forward 0.97, 1.4, 0.60, 0.50, 0.99, 1.1,
            1.1; training step 0.96, 0.84, 0.56, 0.66, 1.0, 1.05, 1.0.
        hoist_row_from: weights of a product of one row (B = 1) with the inputs, from which it is done for all steps at
            once. In the loop each step reads all weights to multiply one row. Measured on two AVX-512 cores, hoisted /
            in the loop, forward and training step: LSTM 16: 0.69, 1.0; 64: 0.85, 0.95; 256: 0.78, 0.76; 512: 0.44,
            0.65; GRU 64: 0.83, 1.0; 256: 0.62, 0.83; but GRU 16, whose weights are 16 × 48: 1.1. With B = 2 nothing is
            gained.
        kernel_up_to: weights that a step of one row multiplies in all, up to which its loops are one kernel. A product
            of more gains from two cores, and a kernel has one. Measured on two AVX-512 cores, training step, one kernel
            / plain scan, jaxlib 0.10.1: Elman 16: 0.20; GRU 16: 0.28, 64: 0.55, 256: 0.49; LSTM 16: 0.33, 64: 0.53,
            256: 0.44.
        kernel_of_rows_up_to: the same with several rows, rows times weights: a kernel multiplies them one by one, a
            library multiplies many at once. Measured there, forward and training step: GRU 16, B = 4: 0.52, 0.18; LSTM
            16, B = 4: 0.60, 0.35; GRU 32, B = 8: 0.89, 0.48; but LSTM 32, B = 16: 2.2, 1.16; GRU 64, B = 8: 2.4, 0.9.
        step_kernel_up_to: weights up to which a single step of one row (``jr.stream``) is one kernel: so far it was
            measured, and gained. On two AVX-512 cores, dispatched in turn, as one kernel / as it stands, µs: LSTM 16:
            12.6 / 13.0; 64: 14.4 / 15.1; 128: 21.4 / 22.6; 256: 45.8 / 48.7; 512: 137 / 181; 1024: 1100 / 1313.
        stack_up_to: cotangents of products over all steps (numbers) up to which, if at all, they are contracted after
            the backward loop, in one piece. Of more, parts of the steps are faster, and hold less, but take longer to
            compile: measured in ``steps_of_a_contraction``.
        spare: numbers that the forward loop may hold more than that of the step as it stands where it is faster so:
            64 KiB in float32. Measured on two cores (AMD EPYC), both busy with other work, forward / plain scan. Sums
            of two products as one product: LSTM (B, T, I, H) = (256, 64, 64, 64), whose elementwise kernels then run
            on one thread, 0.81 to 0.88; (256, 64, 2, 64) 0.73; (16, 100, 2, 64) 0.96; (20, 100, 16, 16) 0.84; (256,
            100, 16, 16) 0.89; (1024, 16, 64, 64) and (512, 20, 128, 128) 0.98. Weights cut once: GRU (reset before)
            (16, 100, 2, 64) 0.83.
        fuse_up_to: weights (numbers) that a run may put side by side so that its products are one, whatever it gains.
            Put together they are a copy, which costs memory and the time to write it. Measured on two cores (AMD EPYC)
            beside other work, forward, an LSTM of eight products, put together / not: (B, T, I, H) = (8, 1000, 2, 16)
            and (2, 500, 32, 32), two devices, 0.28, 0.49; but (2, 20, 512, 64) 1.16, two devices 1.58; (32, 128, 128,
            128) and (256, 64, 64, 64) 0.95 to 1.0; as kernels of one row, (1, 1000, 64, 64) and (1, 100, 256, 256),
            1.2, 1.3. In a training step the contractions become one, too: there more pays, where what comes of all
            steps is more than the copy.
    """

    contract_from: float = 8
    left_from: float = 2**20
    hoist_row_from: float = 2**10
    kernel_up_to: float = 2**19
    kernel_of_rows_up_to: float = 2**15
    step_kernel_up_to: float = 2**23
    stack_up_to: float = 2**21
    spare: float = 2**14
    fuse_up_to: float = 2**14


DEFAULT = Constants()

_planted: contextvars.ContextVar[Constants | None] = contextvars.ContextVar("planted", default=None)


def constants() -> Constants:
    """Those by which plans choose now, in this process: the defaults, or what the user's file says.

    The file is read once, when a plan first asks. It is left alone where the job has several processes, which must
    compile one program, and where no CPU computes.
    """
    planted = _planted.get()
    return _of_this_process()[0] if planted is None else planted


def constants_from() -> str | None:
    """The file that they are from; None for the defaults."""
    return _of_this_process()[1] if _planted.get() is None else None


@contextlib.contextmanager
def using(planted: Constants) -> Iterator[None]:
    """Plans choose by these constants, whatever any file says: to compare choices."""
    token = _planted.set(planted)
    try:
        yield
    finally:
        _planted.reset(token)


def _of_this_process() -> tuple[Constants, str | None]:
    if jax.process_count() > 1 or jax.default_backend() != "cpu":
        return DEFAULT, None
    return _read_once()


@functools.cache
def _read_once() -> tuple[Constants, str | None]:
    found = read_constants(Constants._fields)
    return (DEFAULT, None) if found is None else (DEFAULT._replace(**found.constants), found.path)
