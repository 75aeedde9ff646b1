"""The choices that a plan leaves open: rules that were measured, from shapes and platform.

Each says what was measured and where, so that it can be measured again; numbers that depend on the processor stand in
``constants.py``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import jax
import jaxlib

from jaxrnn.planning.constants import constants
from jaxrnn.planning.one_device import devices
from jaxrnn.planning.plan import Plan

# The releases of jaxlib with which loops were made one kernel and compared. Not 0.11.1: see least_bytes_to_stack.
KERNEL_RELEASES = ("0.10.0", "0.10.1", "0.11.2", "0.12.0", "0.12.0.1")


def fuses(plan: Plan, weights: int, outputs: int, *, steps: int | None, gradient: bool) -> bool:
    """Whether products that share operands, with so many weights and outputs together, become one for each operand;
    and whether gates are brought together (``join_gates``), whose weights are copied then.

    On a CPU where their weights, which are copied, are few, ``Constants.fuse_up_to``, or, where there is a gradient,
    fewer than the outputs of all steps. An accelerator gains by launching less inside the loop.
    """
    if plan.fuse is not None:
        return plan.fuse
    if jax.default_backend() != "cpu" or weights <= constants().fuse_up_to:
        return True
    return gradient and (steps is None or weights <= steps * outputs)


def hoists(plan: Plan, weights: int, outputs: int) -> bool:
    """Whether a product of the forward pass is done for all steps at once, before the loop.

    On a CPU none: the array (T, B, outputs) is written and read again, where the weight stays in cache. Measured on
    two AVX-512 cores, LSTM forward, hoisted / in the loop: I = H = 64: 1.8; 128: 1.2; 256: 1.1 to 1.5; 512: 1.35
    (0.95 before large weights stood on the left); of all cells only the Elman network at 512 gains, 0.8. An
    accelerator gains by launching less inside the loop.
    """
    if plan.hoist is not None:
        return plan.hoist
    return jax.default_backend() != "cpu"


def hoists_of_one_row(weights: int) -> bool:
    """Whether products with the inputs, of a step of one row on a CPU, are done for all steps at once, before the loop.

    From a size of the weights on, ``Constants.hoist_row_from``.
    """
    return weights >= constants().hoist_row_from


def steps_of_a_block(outputs: int) -> int:
    """For how many steps products are done at once, before these, in a run without a gradient.

    As many as keep these outputs in 24 KiB, which stay in a fast cache beside the inputs of these steps and, where the
    loop is no kernel, the sums of the outputs; at least 4, which read the weights once.
    """
    return max(4, 6 * 2**10 // outputs)


def makes_one_kernel(weights: int, rows: int) -> bool:
    """Whether the loops of a step that multiplies so many rows by so many weights in all become one kernel.

    Where rows times weights are few, ``Constants.kernel_up_to`` and ``kernel_of_rows_up_to``.
    """
    most = constants().kernel_up_to if rows == 1 else constants().kernel_of_rows_up_to
    return weights * rows <= most and _kernels_are_known()


def _kernels_are_known() -> bool:
    """Whether this release, with its flags, was seen to compile kernels: it may give other products to a library."""
    return jaxlib.__version__ in KERNEL_RELEASES and "fusion_type" not in os.environ.get("XLA_FLAGS", "")


def makes_step_one_kernel(weights: int) -> bool:
    """Whether a single step of one row, with so many weights in all, is one kernel: ``Constants.step_kernel_up_to``."""
    return weights <= constants().step_kernel_up_to and _kernels_are_known()


def puts_weights_on_the_left(weights: int, outputs: int, inputs: int, *, gradient: bool) -> bool:
    """Whether the forward loop computes sums of products ``x @ W`` with large weights as ``(Σ Wᵀ xᵀ)ᵀ``.

    On a CPU from a size on, ``Constants.left_from``, for up to 64 rows, where there is a gradient; elsewhere never. The
    rows are those of one device of all that there are. The transposed weights are copies, many times what a run without
    a gradient holds beside its outputs. What that would gain varies: LSTM forward, on the left / on the right, two
    cores (AMD EPYC), idle, on one device and on two: (B, T, I, H) = (32, 64, 512, 512) 1.00, 0.87; (64, 32, 512, 512)
    0.94, 0.85; (32, 32, 768, 768) 0.83, 0.82; (8, 64, 512, 512) 1.12, 0.99; their training steps 0.90 to 1.00.
    """
    if not gradient or jax.default_backend() != "cpu" or weights < constants().left_from:
        return False
    rows = math.isqrt(outputs * inputs // weights) // devices()  # of inputs (rows, n), weights (n, m)
    return rows <= 64


def joins_products(rows: int, inner: int, outputs: int, *, gradient: bool) -> bool:
    """Whether ``h @ W + x @ V`` is one product, where h and x have so many rows and, in all, so many columns.

    On a CPU where the weights and the operands side by side take no more memory than the product that is saved, but for
    ``Constants.spare``; the rows are those of one device of all that there are. Not where the operands are wider than
    the outputs, as in an Elman network: to put them side by side costs more than one product less saves. Measured
    there, forward / plain scan, idle: (B, T, I, H) = (32, 300, 1, 32) 1.46, (256, 64, 64, 64) 0.99, (16, 100, 2, 64)
    0.96. Nor for one row without a gradient, on two devices: LSTM (2, 500, 32, 32) 1.01 to 1.07, (2, 300, 1, 8) 0.99.
    Nor for more than 256 rows where there is a gradient. Measured there, training step of an LSTM and of one with
    peepholes, one product, two: (512, 10, 2, 64) 0.92, 0.89; 1.08, 0.90. (512, 20, 32, 32) 0.95, 0.89; 0.90, 0.88.
    (256, 64, 64, 64) 0.85, 0.85; 0.83, 0.87. On two devices all are alike.
    """
    of_one = rows // devices()
    if of_one > 256 if gradient else of_one == 1 < rows:  # a single row in all may be one of many, under vmap
        return False
    more = inner * (outputs + of_one) - of_one * outputs
    return jax.default_backend() == "cpu" and inner <= outputs and more <= constants().spare


def sums_by_product(features: int) -> bool:
    """Whether the loops sum so many features as a product with ones: on a CPU, where XLA would do it by two kernels.

    Measured on two cores (AMD EPYC), both busy with other work, as products / as sums, CPU time. Training step of a
    layer-normed LSTM, "ba2016": (B, T, I, H) = (32, 128, 128, 128) 0.94, (16, 100, 2, 64) 0.97; "per_gate" there 0.99,
    0.98; GRU at the second 0.91. Forward there: LSTM "ba2016" 1.0, "per_gate" 0.89, GRU 0.87.
    """
    return jax.default_backend() == "cpu" and features > 32


def cuts_once(weights: int, outputs: int) -> bool:
    """Whether a step that cuts so many numbers of weights cuts them once, before the loop, which then keeps the pieces.

    The outputs are those of the products with them. On a CPU where the loop then holds an eighth of the pieces more, or
    ``Constants.spare``. It holds the pieces anyway, but in memory that it needs for other values in turn, up to about
    twice the outputs. Measured on two cores (AMD EPYC), idle, forward, cut once / plain scan, temporaries, time: GRU
    (B, T, I, H) = (8, 64, 256, 256) 1.05, 0.58; (32, 32, 512, 512) 1.10, 0.89; (4, 100, 128, 128) 1.05, 0.73; (8, 100,
    128, 128) 1.10, 0.82; (16, 100, 128, 128) 1.19, 0.89; (32, 128, 128, 128) 1.33, 0.95; (64, 64, 256, 256) 1.33, 0.89;
    (16, 100, 2, 64) 1.33, 0.82; (256, 64, 64, 64) 1.06, 0.99.
    """
    more = min(weights, 2 * outputs // devices())
    return jax.default_backend() == "cpu" and more <= max(constants().spare, weights // 8)


def steps_of_a_contraction(
    plan: Plan, cotangents: Sequence[tuple[int, int]], *, steps: int | None, carried: int = 0
) -> int | None:
    """For how many steps at once gradients of weights are contracted; None: for all, after the backward loop; 0: for
    none, they are added up at every step.

    With several devices for all: a batch sharded over them would be summed over devices at every step. On a single CPU
    adding a weight costs its size, keeping the cotangents for later theirs. For none where the weights are no more than
    the cotangents of a step, or than an eighth of ``Constants.contract_from`` times these; or less than half of that
    times these, where the cotangents of all steps are fewer than a 64th of ``stack_up_to``. Else for all where these
    are few, ``stack_up_to``, or else for a part of the steps at a time, whose cotangents stay in cache: as many as
    divide the steps, 4 to 32 and up to a quarter of them, that stack up to 2¹⁹ numbers, and at least a 32nd of
    ``stack_up_to``: fewer are not worth a loop of their own. Where there are no such parts, for all from half of
    ``contract_from`` on, or up to twice ``stack_up_to``; else for none. Never in parts where the cotangents are no more
    than the carry, as in an Elman network: its parts held no less, and were no faster, see below.

    Measured on one device, two cores (AMD EPYC), idle, training step / that of a plain scan: for none; for all; in
    parts of so many. By weights / cotangents of a step, (B, T, I, H):

        1/16  (512, 20, 32, 32): GRU 0.81, 0.85; 5 0.84. LSTM 0.94, 0.95; 5 0.95. Elman 0.84, 1.01; 5 1.14
        1/4   (256, 64, 64, 64): GRU 0.69, 0.88; 16 0.63; reset="after" 0.73, 0.90; 16 0.86. LSTM 0.67, 0.91; 16 0.87
        1     (32, 300, 1, 32): GRU 0.78, 0.78; 30 0.87. LSTM 0.83, 0.86; 30 1.00. Elman 0.79, 0.75; 30 0.94.
              (128, 50, 16, 128): GRU 0.72, 0.71; 10 0.65; reset="after" 0.81, 0.94; 10 0.71. LSTM 0.69, 0.96; 10 0.71.
              (64, 100, 64, 64): GRU 0.92, 0.85; 25 0.87. LSTM 0.94, 0.84; 25 0.87. Elman 0.97, 0.98; 25 1.20
        2     (32, 10, 64, 64): GRU 0.99, 0.97. LSTM 0.96, 0.91. Elman 0.97, 1.13. Elman (32, 10, 96, 96) 0.98, 1.02
        4     (16, 100, 2, 64): GRU 0.91, 0.82; 25 0.88. LSTM 0.89, 0.88; 25 0.85. (32, 128, 128, 128): GRU 0.88, 0.66;
              32 0.71; reset="after" 0.97, 0.58; 32 0.66. LSTM 0.97, 0.76; 32 0.77. Elman 0.94, 0.83; 32 0.90.
              (64, 256, 256, 256): GRU 0.96, 0.88; 16 0.81. LSTM 0.92, 0.86; 16 0.86.
              (16, 1000, 64, 64): GRU 0.72, 0.75; 25 0.63. LSTM 0.72, 0.76; 25 0.57
        16    (8, 100, 128, 128): GRU 0.88, 0.44; 25 0.55. LSTM 0.85, 0.43; 25 0.44. Elman 0.94, 0.62; 25 0.75
        32    (8, 64, 32, 256): GRU 0.88, 0.60; 16 0.60. LSTM 0.90, 0.72; 16 0.73

    Elman networks, for all, in parts, time, temporaries and seconds to compile: (64, 256, 256, 256) 0.80, 0.88; 0.60,
    0.61; 0.33, 0.52. (64, 512, 256, 256) 0.87, 0.90; 0.60, 0.60; 0.30, 0.37. (32, 1000, 128, 128) 0.74, 0.75; 0.60,
    0.60; 0.25, 0.44. (16, 1000, 256, 256) 0.58, 0.60; 0.60, 0.61; 0.30, 0.38. (32, 128, 1024, 1024) 0.71, 0.74; 0.65,
    0.65; 0.28, 0.38.

    Parts gain where what is stacked would be many megabytes, which are not in cache. Temporaries are 0.55 to 0.72 of a
    plain scan's for none, 0.60 to 1.10 for all, 0.55 to 0.91 in these parts, which take 0.1 s more to compile, and copy
    what they read of the saved values; read in place, parts gained up to 0.07 once, and nothing when measured again.

    Args:
        plan: of the user.
        cotangents: of each that the products wait for: the weights of one of these, and its own size at one step.
        steps: of the run; None where that is open.
        carried: how many numbers the carry has.
    """
    if plan.contract is not None:
        return None if plan.contract else 0
    if not cotangents or devices() > 1 or jax.default_backend() != "cpu":
        return None
    weights, size = sum(n for n, _ in cotangents), sum(n for _, n in cotangents)
    ratio = constants().contract_from
    enough = ratio * size
    if steps is None:
        return None if weights >= enough else 0
    little = 64 * steps * size < constants().stack_up_to and 2 * weights < enough
    if weights <= max(ratio / 8, min(ratio, 1)) * size or little:
        return 0
    if steps * size <= constants().stack_up_to or size <= carried:
        return None
    most = min(32, 2**19 // size, steps // 4)
    parts = [n for n in range(4, most + 1) if steps % n == 0 and 32 * n * size >= constants().stack_up_to]
    if parts:
        return max(parts)
    return None if 2 * weights >= enough or steps * size <= 2 * constants().stack_up_to else 0


def contracts_as_one(features: Sequence[int], outputs: int, *, in_loop: bool, in_parts: bool) -> int:
    """How many of the products that meet in a sum share their gradients' contraction, ``[x, h, 1]ᵀ d``, with the bias.

    On a CPU: in the loop all, and where gradients are contracted in parts and two meet. Outside, where the rows of all
    steps are copied, the first, if it has at most an eighth as many features as outputs.

    Measured on two cores (AMD EPYC), training step, as one / each by itself. In the loop: (B, T, I, H) = (256, 64, 64,
    64) LSTM 0.89, with peepholes 0.89, GRU 0.98, Elman 1.00; (512, 20, 32, 32) 0.97, 0.96, 1.01, 0.96; (32, 300, 1, 32)
    0.97, 0.96, 0.97, 0.97; (128, 50, 16, 128) 0.96, 0.97, 0.99, 0.98. In parts: (64, 256, 256, 256) LSTM 0.97, in eight
    products 0.97; (32, 128, 512, 512) 0.96, 0.94; (32, 1000, 128, 128) 1.01, 0.99; the bias alone, GRU there, 1.03,
    0.99, 1.03. Outside: (16, 100, 2, 64) LSTM 0.96, GRU 0.97, Elman 0.95; (8, 1000, 2, 16) 0.92, 0.89, 1.00; (2, 300,
    1, 8) 0.90, 0.97, 0.96; on two devices (16, 100, 2, 64) 0.93, 1.03, 0.92; (2, 300, 1, 8) 0.90, 0.98, 0.80. Wider
    rows, outside: LSTM (1, 10000, 8, 8) 1.05; (32, 128, 128, 128), all of the sum, 1.00, Elman 0.93 with twice the
    memory.

    Args:
        features: of the rows of each product, the fewest first.
        outputs: of the sum.
        in_loop: whether they are added up at every step.
        in_parts: whether they are contracted for some steps at a time.
    """
    if jax.default_backend() != "cpu":
        return 0
    if in_loop or (in_parts and len(features) > 1):
        return len(features)
    return int(8 * features[0] <= outputs)


def keeps_elementwise_in_loop() -> bool:
    """Whether what is elementwise or a sum over features stays in the tangent loop, though its operands leave it.

    On a CPU, where no more enters the loop then: there the operands are in cache, while for all steps at once each
    operation writes and reads an array, and the sums for gradients of what scales a product go over T B rows. Measured
    on two cores (AMD EPYC), both busy, training step of an LSTM with layer_norm="ba2016", in the loop / outside, CPU
    time: (B, T, I, H) = (16, 100, 2, 64) 0.75; (32, 128, 128, 128), with sums saved, 0.75.
    """
    return jax.default_backend() == "cpu"


def splits_sums() -> bool:
    """Whether sums of the tangent that are split into pieces are split first: with several devices, or on accelerators.

    Less is stacked then, and more products are done, each on its own. Measured on two cores (AMD EPYC), training step
    of a GRU, split first / not. Two devices: (32, 128, 128, 128) 0.86 to 0.96, (64, 64, 256, 256) 0.94,
    (256, 64, 64, 64) 0.89 to 0.92, (16, 100, 2, 64) 1.05 to 1.32. One device: 1.14 to 1.17, 1.04 to 1.14, 1.05 to 1.13,
    1.04 to 1.10.
    """
    return devices() > 1 or jax.default_backend() != "cpu"


def least_bytes_to_stack() -> int:
    """What a loop stacks at each step is padded to so many bytes.

    On the CPU jaxlib 0.11.1 writes all that a loop has stacked at every step, where a step's part is small and the loop
    becomes one kernel (jax-ml/jax#40101): four times as many steps take 16 times as long. Measured there at 8,000
    steps, B = 1, in ms, padded to 512 bytes / not: an elementwise cell with 16 units 1.1 / 280, its training step 5.7 /
    568; LSTM-2 3.6 / 35; Elman-4's training step 7.9 / 176, forward 18 / 70, not rid of it; GRU-8, which
    never had it, 4.2 / 6.4 and 14 / 11. With 256 bytes, the size that the thread names, more was left of it.
    """
    affected = jaxlib.__version__.partition("+")[0] == "0.11.1"
    return 512 if affected and jax.default_backend() == "cpu" and devices() == 1 else 0
