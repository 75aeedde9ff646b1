"""A function of every step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell, PyTree
from jaxrnn._checks import check_leads_with_batch
from jaxrnn._spec import specified
from jaxrnn.cells._products import empty_carry
from jaxrnn.cells.activations import activation_of


@specified
def pointwise(f: str | Callable[[PyTree], PyTree], *, x_ndim: int = 1) -> Cell:
    """A function of every step, without parameters.

        y_t = f(x_t)

    Args:
        f: an activation by name, as for ``elman``, or a function of x (*B, I), or of whatever arrives there, a tuple
            say; what it returns leads with *B.
        x_ndim: the number of feature axes of x: 0 for integer tokens, 3 for images.

    Returns:
        A Cell with no parameters, ``()``, and the carry (). On steps that are not valid the output is 0, whatever f(0)
        is; f is called there with zeros, where it has to have finite derivatives.

    Raises:
        ValueError: an unknown activation; an f that drops the batch. TypeError: an x_ndim that is no count.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> model = jr.stack(jr.pointwise(lambda token: jax.nn.one_hot(token, 5), x_ndim=0), jr.lstm(5, 8))
        >>> carry, ys = model.apply(model.init(jax.random.key(0)), jnp.array([3, 1, 4]))
        >>> ys.shape
        (3, 8)
    """
    function = activation_of("pointwise", "f", f)

    def step(params, carry, x):
        y = function(x)
        first = jnp.shape(jax.tree.leaves(x)[0])
        check_leads_with_batch("pointwise", "what f returned", y, first[: len(first) - x_ndim])
        return carry, y

    return Cell(lambda key: (), empty_carry, step, x_ndim=x_ndim)
