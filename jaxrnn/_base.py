"""Cell and Layer, the two records that everything else in jaxrnn takes and returns.

Shapes, everywhere in this library:

    T   time, always axis 0            I   input features
    *B  any number of batch axes       H   hidden units
    O   output features                x   (*B, I) one step    xs  (T, *B, I) a sequence
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._spec import Spec

PyTree = Any


class Cell(NamedTuple):
    """A recurrence, as pure functions: what happens at one time step.

    Three functions make a cell; the other fields have defaults.

        init(key) -> params                            any pytree of arrays
        initial_carry(params, batch_shape=()) -> carry  any pytree; every leaf leads with ``*B``
        step(params, carry, x) -> (carry, y)            the new carry has the old one's shapes and dtypes

    ``functools.partial(cell.step, params)`` is the body of a ``jax.lax.scan``.

    Fields:
        gates: ``gates(params, carry, x)`` -> a NamedTuple of named arrays, computed by the code of ``step``. Entries
            named as the carry's fields (h where the carry is one array) are the new state; wrappers that change the
            state need them.
        noise: ``noise(params, key, times, x)`` -> a pytree that ``step`` receives as its fourth argument, drawn
            once for the whole run. ``times`` (T,) are *absolute* time indices, ``x`` describes the input of one
            step (shape and dtype). Each leaf leads with T, or with 1 where one draw serves the whole sequence.
            A cell with ``noise`` takes ``step(params, carry, x, noise=None)``; None means evaluation.
        x_ndim: the number of feature axes of ``x``: 1 for vectors, 0 for integer tokens, 3 for images; where ``x`` is a
            pytree of different arrays, a pytree of such numbers.
        input_size, output_size: the last feature axis of ``x`` and ``y`` where known; ``stack`` and the error
            messages read them.
        spec: what ``jr.build`` rebuilds this cell from; None for a user's own cell.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> def init(key):  # a leaky integrator: c_t = a * c_{t-1} + x_t
        ...     return {"a": jnp.asarray(0.9)}
        >>> def initial_carry(params, batch_shape=()):
        ...     return jnp.zeros((*batch_shape, 1))
        >>> def step(params, carry, x):
        ...     carry = params["a"] * carry + x
        ...     return carry, carry
        >>> layer = jr.scan(jr.Cell(init, initial_carry, step))
        >>> params = layer.init(jax.random.key(0))
        >>> carry, ys = layer.apply(params, jnp.ones((3, 2, 1)))
        >>> ys[:, 0, 0].round(2).tolist()
        [1.0, 1.899999976158142, 2.7100000381469727]
    """

    init: Callable[[jax.Array], PyTree]
    initial_carry: Callable[..., PyTree]
    step: Callable[..., tuple[PyTree, PyTree]]
    gates: Callable[..., Any] | None = None
    noise: Callable[..., PyTree] | None = None
    x_ndim: Any = 1
    input_size: int | None = None
    output_size: int | None = None
    spec: Spec | None = None


class Layer(NamedTuple):
    """A recurrence run over time, as pure functions. ``jr.scan`` makes one from a Cell.

        init(key) -> params
        initial_carry(params, batch_shape=()) -> carry
        apply(params, xs, carry=None, *, lengths=None, mask=None, resets=None, key=None, start=0) -> (carry, ys)

    ``jr.scan`` documents the arguments of ``apply``; the further fields are those of :class:`Cell`.
    """

    init: Callable[[jax.Array], PyTree]
    initial_carry: Callable[..., PyTree]
    apply: Callable[..., tuple[PyTree, PyTree]]
    x_ndim: Any = 1
    input_size: int | None = None
    output_size: int | None = None
    spec: Spec | None = None


def name_of(member: Cell | Layer) -> str:
    """The name that error messages use: ``lstm``, ``scan(lstm)`` …, or ``user cell`` where there is no spec."""
    if member.spec is None:
        return "user cell" if isinstance(member, Cell) else "user layer"
    if member.spec.kind == "scan":
        return f"scan({member.spec.children[0].kind})"
    return member.spec.kind


def check_cell(
    who: str, cell: Any, *, if_layer: str = "give the Cell that it runs, and jr.chain in place of jr.stack"
) -> None:
    """Raise where something else than a Cell is given; ``if_layer`` is the fix for a Layer."""
    if isinstance(cell, Layer):
        raise TypeError(f"{who}: expected a Cell, got {name_of(cell)}, a Layer; {if_layer}.")
    if not isinstance(cell, Cell):
        raise TypeError(f"{who}: expected a Cell, got {type(cell).__name__}.")


def check_model(who: str, model: Any) -> None:
    """Raise where something else than a Cell or a Layer is given."""
    if not isinstance(model, Cell | Layer):
        raise TypeError(f"{who}: expected a Cell or a Layer, got {type(model).__name__}.")


def flatten(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Any], Any]:
    """``jax.tree.flatten``: the leaves, and the structure that puts them back."""
    return jax.tree.flatten(tree, is_leaf=is_leaf)


def is_float(a: Any) -> bool:
    """Whether something is real numbers, which have a derivative; integers and keys are not."""
    return jnp.issubdtype(jnp.result_type(a), jnp.floating)


def is_narrow(a: Any) -> bool:
    """Whether an array holds floats of less than 32 bits, in which long sums stall."""
    dtype = getattr(a, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def draw_each_step(draw: Callable[[jax.Array], PyTree], key: jax.Array, times: jax.Array) -> PyTree:
    """``draw(key_t)`` for each absolute time, so that a chunk draws what the whole run would draw there."""
    return jax.vmap(lambda time: draw(jax.random.fold_in(key, time)))(times)


def select(flag: jax.Array, on_true: PyTree, on_false: PyTree) -> PyTree:
    """``where(flag, on_true, on_false)`` leaf by leaf, the flag (…,) covering each leaf's leading axes."""

    def leaf(a, b):
        wide = flag.reshape(flag.shape + (1,) * (jnp.ndim(a) - flag.ndim))
        return jnp.where(wide, a, b)

    return jax.tree.map(leaf, on_true, on_false)
