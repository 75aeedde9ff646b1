"""Layer normalisation of every step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn._dtypes import accumulator
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._products import empty_carry, output, plus, times


class LayerNormParams(NamedTuple):
    scale: jax.Array  # (I,)
    shift: jax.Array  # (I,)


@built_in
def layer_norm(input_size: int, *, epsilon: float = 1e-5, dtype: Any = None, param_dtype: Any = jnp.float32) -> Cell:
    """Layer normalisation of the features of every step.

        y = (x - mean(x)) / sqrt(var(x) + epsilon) * scale + shift

    Args:
        input_size: I, the features of x and y (*B, I), over which mean and (biased) variance are taken.
        epsilon: keeps the square root away from zero.
        dtype: the output dtype; None gives that of the parameters. Mean and variance are taken in at least float32.
        param_dtype: the dtype of the parameters that ``init`` makes.

    Returns:
        A Cell with LayerNormParams and the carry ().

    Raises:
        ValueError, TypeError: a size that is not a positive int, an epsilon that is not positive; while tracing,
            inputs that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.layer_norm(2)
        >>> cell.step(cell.init(jax.random.key(0)), (), jnp.array([1.0, 3.0]))[1].round(3).tolist()
        [-1.0, 1.0]

    Reference:
        Ba, Kiros & Hinton, "Layer normalization", 2016.
    """
    if not epsilon > 0:
        raise ValueError(f"layer_norm: epsilon must be positive, got {epsilon!r}; 1e-5 is usual.")

    def init(key):
        return LayerNormParams(jnp.ones((input_size,), param_dtype), jnp.zeros((input_size,), param_dtype))

    def step(params, carry, x):
        scale, shift = params
        x = x.astype(accumulator(scale.dtype))
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return carry, output(plus(times((x - mean) / jnp.sqrt(var + epsilon), scale), shift), scale, dtype)

    return Cell(init, empty_carry, step, input_size=input_size, output_size=input_size)
