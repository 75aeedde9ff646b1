"""What the built-in cells share: products in the compute dtype, initial values, checked arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
from jax.nn import initializers

from jaxrnn._base import Cell, PyTree
from jaxrnn._checks import check_batch_shape, check_carry, check_choice, check_features, check_params, check_real
from jaxrnn._spec import specified

Initializer = Callable[..., jax.Array]

# ---- products ----------------------------------------------------------------------------------


def accumulator(dtype: Any) -> Any:
    """The dtype in which sums, gates and carries are kept: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def project(x: jax.Array, W: jax.Array, dtype: Any) -> jax.Array:
    """``x @ W`` with both sides in the compute dtype (None: that of W), summed in at least float32.

    The cast of W stands here, inside the step, so that its gradient accumulates in the dtype of W.
    """
    dtype = W.dtype if dtype is None else dtype
    return jnp.dot(x.astype(dtype), W.astype(dtype), preferred_element_type=accumulator(dtype))


def carry_dtype(W: jax.Array, dtype: Any) -> Any:
    """What a cell carries its state in: at least float32, and as wide as its weights and its compute dtype."""
    return accumulator(W.dtype if dtype is None else jnp.promote_types(W.dtype, dtype))


def plus_bias(a: jax.Array, b: jax.Array | None) -> jax.Array:
    """``a + b``; without a bias ``a``."""
    return a if b is None else a + b


def output(h: jax.Array, W: jax.Array, dtype: Any) -> jax.Array:
    """``h`` in the declared output dtype: the compute dtype, or that of the weights."""
    return h.astype(W.dtype if dtype is None else dtype)


def initial_state(learned: jax.Array | None, batch_shape: tuple[int, ...], size: int, dtype: Any) -> jax.Array:
    """(*B, size): zeros, or the learned initial state for every sequence of the batch."""
    if learned is None:
        return jnp.zeros((*batch_shape, size), dtype)
    return jnp.broadcast_to(learned.astype(dtype), (*batch_shape, size))


def empty_carry(params: PyTree, batch_shape: tuple[int, ...] = ()) -> tuple[()]:
    """The carry of a cell that remembers nothing."""
    return ()


# ---- initial values ----------------------------------------------------------------------------

INITIALIZERS: dict[str, Initializer] = {
    "glorot_uniform": initializers.glorot_uniform(),
    "glorot_normal": initializers.glorot_normal(),
    "lecun_normal": initializers.lecun_normal(),
    "he_normal": initializers.he_normal(),
    "normal": initializers.normal(0.01),
    "orthogonal": initializers.orthogonal(),
    "zeros": initializers.zeros,
    "identity": lambda key, shape, dtype: jnp.eye(shape[0], shape[1], dtype=dtype),
}


def initializer(who: str, option: str, value: str | Initializer, hidden_size: int) -> Initializer:
    """The initialiser ``init(key, shape, dtype)`` that an option names, or is.

    ``"uniform"`` is PyTorch's: U(-1/sqrt(H), 1/sqrt(H)) for every parameter of a recurrent cell.
    """
    check_choice(who, option, value, (*INITIALIZERS, "uniform"), or_function=True)
    if callable(value):
        return value
    bound = hidden_size**-0.5
    known = INITIALIZERS | {"uniform": lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)}
    # Drawn in at least float32 (an orthogonal matrix needs it), then rounded.
    return lambda key, shape, dtype: known[value](key, shape, accumulator(dtype)).astype(dtype)


def per_gate(init: Initializer, key: jax.Array, shape: tuple[int, ...], gates: int, dtype: Any) -> jax.Array:
    """(…, gates * H): one draw of ``init`` for each gate's block, so that each block is orthogonal, say."""
    keys = jax.random.split(key, gates)
    return jnp.concatenate([init(k, shape, dtype) for k in keys], axis=-1)


def chrono_bias(T_max: float, key: jax.Array, size: int, dtype: Any) -> jax.Array:
    """log U(1, T_max - 1): the forget bias under which time constants spread up to T_max.

    Tallec & Ollivier, "Can recurrent neural networks warp time?", ICLR 2018.
    """
    return jnp.log(jax.random.uniform(key, (size,), dtype, 1.0, T_max - 1.0))


def check_bias(who: str, bias: bool) -> None:
    if not isinstance(bias, bool):
        raise TypeError(f"{who}: bias must be True or False, got {bias!r}; how biases start is bias_init.")


def check_T_max(who: str, T_max: float | None) -> None:
    if T_max is not None and not T_max > 2:
        raise ValueError(
            f"{who}: T_max must be above 2 (time constants are drawn from 1 to T_max - 1 steps), got {T_max!r}."
        )


# ---- checked arguments -------------------------------------------------------------------------


P = ParamSpec("P")


def built_in(factory: Callable[P, Cell]) -> Callable[P, Cell]:
    """Give a factory's cell its spec, and let its functions check what they are given.

    The checks compare shapes in Python while tracing; nothing of them is left in the compiled program.
    """
    who = factory.__name__

    @functools.wraps(factory)
    def checked_factory(*args: P.args, **kwargs: P.kwargs) -> Cell:
        return _checked(who, factory(*args, **kwargs), kwargs.get("dtype"))

    return specified(checked_factory)


def _checked(who: str, cell: Cell, dtype: Any) -> Cell:
    expected: list[PyTree] = []  # what init gives, traced once, when it is first needed

    def params_expected() -> PyTree:
        if not expected:
            expected.append(jax.eval_shape(cell.init, jax.random.key(0)))
        return expected[0]

    def check(params: PyTree, carry: PyTree, x: Any) -> None:
        check_params(who, params, params_expected())
        if cell.input_size is not None and cell.x_ndim == 1:
            check_features(who, x, cell.input_size)
            weights = jax.tree.leaves(params)[0].dtype
            check_real(who, x, weights if dtype is None else dtype, declared=dtype is not None)
        batch_shape = jnp.shape(x)[: jnp.ndim(x) - cell.x_ndim]
        check_carry(who, carry, jax.eval_shape(lambda p: cell.initial_carry(p, batch_shape), params), batch_shape)

    def initial_carry(params, batch_shape=()):
        check_params(who, params, params_expected())
        check_batch_shape(who, batch_shape)
        return cell.initial_carry(params, tuple(batch_shape))

    def step(params, carry, x, *noise):
        check(params, carry, x)
        return cell.step(params, carry, x, *noise)

    def gates(params, carry, x):
        check(params, carry, x)
        return cell.gates(params, carry, x)  # type: ignore[misc]

    return cell._replace(initial_carry=initial_carry, step=step, gates=gates if cell.gates else None)
