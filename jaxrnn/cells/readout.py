"""An affine map of every step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._options import Initializer, initializer
from jaxrnn.cells._products import empty_carry, output, plus_bias, project
from jaxrnn.cells.activations import ACTIVATIONS, Function


class ReadoutParams(NamedTuple):
    W_hy: jax.Array  # (I, O)
    b_y: jax.Array | None  # (O,); None without biases


@built_in
def readout(
    input_size: int,
    output_size: int,
    *,
    bias: bool = True,
    kernel_init: str | Initializer = "glorot_uniform",
    bias_init: str | Initializer = "zeros",
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """An affine map of every step: ``jr.dense`` without an activation.

        y_t = W_hy h_t + b_y

    Args:
        input_size: I, the features of the input h (*B, I).
        output_size: O, the features of y (*B, O).
        bias: whether there is b_y.
        kernel_init, bias_init: initialisers by name or function; "uniform" is U(-1/sqrt(I), 1/sqrt(I)).
        dtype: the compute and output dtype; None computes in the parameters' own.
        param_dtype: the dtype of the parameters that ``init`` makes.

    Returns:
        A Cell with ReadoutParams and the carry ().

    Raises:
        ValueError, TypeError: sizes that are not positive ints, an unknown initialiser; while tracing, inputs
            that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> model = jr.stack(jr.gru(3, 8), jr.readout(8, 2))
        >>> carry, ys = model.apply(model.init(jax.random.key(0)), jnp.ones((7, 3)))
        >>> ys.shape
        (7, 2)

    Reference:
        The output equation of Elman, "Finding structure in time", Cognitive Science 14, 1990.
    """
    act = ACTIVATIONS["identity"]
    return affine("readout", input_size, output_size, act, bias, kernel_init, bias_init, dtype, param_dtype)


def affine(
    who: str,
    input_size: int,
    output_size: int,
    act: Function,
    bias: bool,
    kernel_init: str | Initializer,
    bias_init: str | Initializer,
    dtype: Any,
    param_dtype: Any,
) -> Cell:
    """The cell ``y_t = act(W_hy h_t + b_y)``, which ``readout`` and ``dense`` are."""
    init_W = initializer(who, "kernel_init", kernel_init, input_size)
    init_b = initializer(who, "bias_init", bias_init, input_size)

    def init(key):
        k_W, k_b = jax.random.split(key)
        return ReadoutParams(
            W_hy=init_W(k_W, (input_size, output_size), param_dtype),
            b_y=init_b(k_b, (output_size,), param_dtype) if bias else None,
        )

    def step(params, carry, h):
        W_hy, b_y = params
        return carry, output(act(plus_bias(project(h, W_hy, dtype), b_y)), W_hy, dtype)

    return Cell(init, empty_carry, step, input_size=input_size, output_size=output_size)
