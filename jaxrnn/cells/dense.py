"""An affine map of every step, and an activation."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._options import Initializer
from jaxrnn.cells.activations import Activation, activation_of
from jaxrnn.cells.readout import affine


@built_in
def dense(
    input_size: int,
    output_size: int,
    *,
    activation: str | Activation | None = None,
    bias: bool = True,
    kernel_init: str | Initializer = "glorot_uniform",
    bias_init: str | Initializer = "zeros",
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """A dense layer of every step: a ``jr.readout`` with an activation, and with its parameters.

        y_t = act(W_hy h_t + b_y)

    Args:
        input_size: I, the features of the input h (*B, I).
        output_size: O, the features of y (*B, O).
        activation: act, by name or function as for ``elman``; None is the identity.
        bias: whether there is b_y.
        kernel_init, bias_init: initialisers by name or function; "uniform" is U(-1/sqrt(I), 1/sqrt(I)).
        dtype: the compute and output dtype; None computes in the parameters' own. The activation is computed in at
            least float32.
        param_dtype: the dtype of the parameters that ``init`` makes.

    Returns:
        A Cell with ReadoutParams and the carry ().

    Raises:
        ValueError, TypeError: sizes that are not positive ints, an unknown activation or initialiser; while tracing,
            inputs that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> model = jr.stack(jr.dense(3, 8, activation="relu"), jr.gru(8, 8), jr.readout(8, 2))
        >>> carry, ys = model.apply(model.init(jax.random.key(0)), jnp.ones((7, 3)))
        >>> ys.shape
        (7, 2)

    Reference:
        Rosenblatt, "The perceptron", Psychological Review 65, 1958.
    """
    act = activation_of("dense", "activation", "identity" if activation is None else activation)
    return affine("dense", input_size, output_size, act, bias, kernel_init, bias_init, dtype, param_dtype)
