"""The cells with an empty carry, ``()``: what stands before, between and after the recurrent ones."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, draw_each_step
from jaxrnn._checks import check_sizes
from jaxrnn.cells._shared import Initializer, accumulator, built_in, initializer, output, project


class ReadoutParams(NamedTuple):
    W_hy: jax.Array  # (I, O)
    b_y: jax.Array  # (O,)


class LayerNormParams(NamedTuple):
    scale: jax.Array  # (I,)
    shift: jax.Array  # (I,)


class EmbeddingParams(NamedTuple):
    table: jax.Array  # (V, O), a row for each token


def empty_carry(params: Any, batch_shape: tuple[int, ...] = ()) -> tuple[()]:
    """The carry of a cell that remembers nothing."""
    return ()


@built_in
def readout(
    input_size: int,
    output_size: int,
    *,
    kernel_init: str | Initializer = "glorot_uniform",
    bias_init: str | Initializer = "zeros",
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """An affine map of every step.

        y_t = W_hy h_t + b_y

    Args:
        input_size: I, the features of the input h (*B, I).
        output_size: O, the features of y (*B, O).
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
    check_sizes("readout", input_size=input_size, output_size=output_size)
    init_W = initializer("readout", "kernel_init", kernel_init, input_size)
    init_b = initializer("readout", "bias_init", bias_init, input_size)

    def init(key):
        k_W, k_b = jax.random.split(key)
        return ReadoutParams(
            W_hy=init_W(k_W, (input_size, output_size), param_dtype),
            b_y=init_b(k_b, (output_size,), param_dtype),
        )

    def step(params, carry, h):
        W_hy, b_y = params
        return carry, output(project(h, W_hy, dtype) + b_y, W_hy, dtype)

    return Cell(init, empty_carry, step, input_size=input_size, output_size=output_size)


@built_in
def dropout(rate: float) -> Cell:
    """Dropout: each feature of each step is zeroed with probability ``rate``, the others scaled by 1 / (1 - rate).

    With ``key=None`` (evaluation) it is the identity. The masks are a function of the key and of absolute time, so
    a sequence run in chunks drops what the whole run drops. Features, not whole sequences, are masked.

    Args:
        rate: the probability of a zero, from 0 to below 1.

    Returns:
        A Cell with no parameters, ``()``, and the carry ().

    Raises:
        ValueError: a rate outside [0, 1).

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer = jr.scan(jr.dropout(0.5))
        >>> carry, ys = layer.apply((), jnp.ones((4, 3)), key=jax.random.key(0))
        >>> sorted(set(ys.ravel().tolist()))
        [0.0, 2.0]

    Reference:
        Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15, 2014.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: rate must be at least 0 and below 1, got {rate!r}.")

    def noise(params, key, times, x):
        return draw_each_step(lambda k: jax.random.bernoulli(k, 1 - rate, x.shape), key, times)

    def step(params, carry, x, keep=None):
        return carry, x if keep is None else jnp.where(keep, x / (1 - rate), 0)

    return Cell(lambda key: (), empty_carry, step, noise=noise)


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
    check_sizes("layer_norm", input_size=input_size)
    if not epsilon > 0:
        raise ValueError(f"layer_norm: epsilon must be positive, got {epsilon!r}; 1e-5 is usual.")

    def init(key):
        return LayerNormParams(jnp.ones((input_size,), param_dtype), jnp.zeros((input_size,), param_dtype))

    def step(params, carry, x):
        scale, shift = params
        x = x.astype(accumulator(scale.dtype))
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return carry, output((x - mean) / jnp.sqrt(var + epsilon) * scale + shift, scale, dtype)

    return Cell(init, empty_carry, step, input_size=input_size, output_size=input_size)


@built_in
def embedding(
    vocabulary_size: int,
    output_size: int,
    *,
    table_init: str | Initializer | None = None,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """A table of vectors, one for each integer token.

        y_t = table[x_t]

    Args:
        vocabulary_size: V; tokens run from 0 to V - 1. A token outside gives a row of NaN, never another token's.
        output_size: O, the features of y (*B, O); x is (*B), integer.
        table_init: an initialiser by name or function; None draws from N(0, 1/O).
        dtype: the output dtype; None gives that of the table.
        param_dtype: the dtype of the table that ``init`` makes.

    Returns:
        A Cell with EmbeddingParams and the carry (), whose x_ndim is 0.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, an unknown initialiser; while tracing, tokens that
            are not integers.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> model = jr.stack(jr.embedding(10, 4), jr.lstm(4, 8))
        >>> carry, ys = model.apply(model.init(jax.random.key(0)), jnp.array([3, 1, 4]))
        >>> ys.shape
        (3, 8)

    Reference:
        Bengio et al., "A neural probabilistic language model", JMLR 3, 2003.
    """
    check_sizes("embedding", vocabulary_size=vocabulary_size, output_size=output_size)
    if table_init is None:
        init_table: Initializer = jax.nn.initializers.normal(1 / math.sqrt(output_size))
    else:
        init_table = initializer("embedding", "table_init", table_init, output_size)

    def init(key):
        return EmbeddingParams(init_table(key, (vocabulary_size, output_size), param_dtype))

    def step(params, carry, x):
        if not jnp.issubdtype(jnp.result_type(x), jnp.integer):
            raise TypeError(
                f"embedding: expected integer tokens, got {jnp.result_type(x)}; cast them with x.astype('int32')."
            )
        last = min(vocabulary_size - 1, jnp.iinfo(x.dtype).max)  # a small dtype cannot hold every token
        inside = (x >= 0) & (x <= last)
        y = params.table[jnp.where(inside, x, 0).astype(jnp.int32)]
        return carry, output(jnp.where(inside[..., None], y, jnp.nan), params.table, dtype)

    return Cell(init, empty_carry, step, x_ndim=0, output_size=output_size)
