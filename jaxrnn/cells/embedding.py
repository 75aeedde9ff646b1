"""A table of vectors for integer tokens."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxrnn._base import Cell
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._options import Initializer, initializer
from jaxrnn.cells._products import empty_carry, output


class EmbeddingParams(NamedTuple):
    table: jax.Array  # (V, O), a row for each token


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

        y_t = table[x_t]        NaN where x_t is not from 0 to V - 1

    A token out of range gives a row of NaN, never another token's, and no row gets a gradient from it: a compiled
    program cannot refuse it. Where ``lengths`` or ``mask`` tell that it is padding, -1 say, it does no harm. On the
    host ``jr.training.padded(…, below=V)`` refuses it, with the number of its example.

    Args:
        vocabulary_size: V; tokens run from 0 to V - 1.
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
    if table_init is None:
        init_table: Initializer = jax.nn.initializers.normal(1 / math.sqrt(output_size))
    else:
        init_table = initializer("embedding", "table_init", table_init, output_size)

    def init(key):
        return EmbeddingParams(init_table(key, (vocabulary_size, output_size), param_dtype))

    def step(params, carry, x):
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"embedding: expected integer tokens, got {x.dtype}; cast them with x.astype('int32').")
        last = min(vocabulary_size - 1, jnp.iinfo(x.dtype).max)  # a small dtype cannot hold every token
        inside = (x >= 0) & (x <= last)
        y = _rows(params.table, jnp.where(inside, x, 0).astype(jnp.int32))
        return carry, output(jnp.where(inside[..., None], y, jnp.nan), params.table, dtype)

    return Cell(init, empty_carry, step, x_ndim=0, output_size=output_size)


def _rows(table: jax.Array, index: jax.Array) -> jax.Array:
    """``table[index]``, sharded as the index is, where types show shardings: a gather there has to be told."""
    sharding = jax.typeof(index).sharding
    if not any(sharding.spec):
        return table[index]
    spec = PartitionSpec(*sharding.spec, *jax.typeof(table).sharding.spec[1:])
    return table.at[index].get(out_sharding=NamedSharding(sharding.mesh, spec))
