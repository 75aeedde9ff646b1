"""The choices that a plan leaves open: rules that were measured, from shapes and platform.

Each says what was measured and where, so that it can be measured again.
"""

from __future__ import annotations

import os

import jax
import jaxlib

from jaxrnn.planning.plan import Plan

# The releases of jaxlib with which loops were made one kernel and compared. Not 0.11.1: see least_bytes_to_stack.
KERNEL_RELEASES = ("0.10.0", "0.10.1", "0.11.2", "0.12.0", "0.12.0.1")


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

    In the loop each step reads all weights to multiply one row. Measured on two AVX-512 cores at B = 1, hoisted / in
    the loop, forward and training step: LSTM 16: 0.69, 1.0; 64: 0.85, 0.95; 256: 0.78, 0.76; 512: 0.44, 0.65; GRU 64:
    0.83, 1.0; 256: 0.62, 0.83; but GRU 16, whose weights are 16 × 48: 1.1. With B = 2 nothing is gained.
    """
    return weights >= 2**10


def makes_one_kernel(weights: int, rows: int) -> bool:
    """Whether the loops of a step that multiplies so many rows by so many weights in all become one kernel.

    Measured on two AVX-512 cores at B = 1, training step, one kernel / plain scan, jaxlib 0.10.1: Elman 16: 0.20; GRU
    16: 0.28, 64: 0.55, 256: 0.49; LSTM 16: 0.33, 64: 0.53, 256: 0.44. A product of more weights gains from two cores,
    and a kernel has one.
    """
    return weights * rows <= (2**19 if rows == 1 else 2**15) and _kernels_are_known()


def _kernels_are_known() -> bool:
    """Whether this release, with its flags, was seen to compile kernels: it may give other products to a library."""
    return jaxlib.__version__ in KERNEL_RELEASES and "fusion_type" not in os.environ.get("XLA_FLAGS", "")


def makes_step_one_kernel(weights: int) -> bool:
    """Whether a single step of one row, with so many weights in all, is one kernel."""
    return weights <= 2**30 and _kernels_are_known()


def puts_weights_on_the_left(weights: int) -> bool:
    """Whether the forward loop computes sums of products with large weights as ``(Σ Wᵀ xᵀ)ᵀ``.

    A CPU's matrix product packs its right operand anew at every call, here the weight at every step. Measured on
    two AVX-512 cores, LSTM (32, 128, 512, 512), weights 512 × 2048: forward 89 against 125 ms, training step 250
    against 303; at 256 × 1024 nothing is gained, at 128 × 512 a fifth is lost.
    """
    return jax.default_backend() == "cpu" and weights >= 2**20


def contracts(plan: Plan, weights: int, outputs: int) -> bool:
    """Whether the gradient of a product's weights is contracted after the backward loop.

    With several devices always: a batch sharded over them would be summed over devices at every step. On a single
    CPU adding a weight costs its size, keeping the cotangents for later the size of the product's output. Measured
    on two AVX-512 cores before contractions took their fastest form (H² weights, batch B; contracted / added):
    H/B = 16 to 32: 0.4 to 0.95; H/B = 4: 0.7 to 1.4; H/B below 1: 1.0 to 1.5. So from 8 on.
    """
    if plan.contract is not None:
        return plan.contract
    if jax.device_count() > 1 or jax.default_backend() != "cpu":
        return True
    return weights >= 8 * outputs


def least_bytes_to_stack() -> int:
    """What a loop stacks at each step is padded to so many bytes.

    On the CPU jaxlib 0.11.1 writes all that a loop has stacked at every step, where a step's part is small and the loop
    becomes one kernel (jax-ml/jax#40101): four times as many steps take 16 times as long. Measured there at 8,000
    steps, B = 1, in ms, padded to 512 bytes / not: an elementwise cell with 16 units 1.1 / 280, its training step 5.7 /
    568; LSTM-2 3.6 / 35; Elman-4's training step 7.9 / 176, forward 18 / 70, not rid of it; GRU-8, which
    never had it, 4.2 / 6.4 and 14 / 11. With 256 bytes, the size that the thread names, more was left of it.
    """
    affected = jaxlib.__version__.partition("+")[0] == "0.11.1"
    return 512 if affected and jax.default_backend() == "cpu" and jax.device_count() == 1 else 0
