"""Quasi-recurrent neural network."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn._checks import check_choice
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._options import Initializer, initializer, per_gate
from jaxrnn.cells._products import carry_dtype, initial_state, output, plus_bias, project
from jaxrnn.cells.activations import Activation, activation_of
from jaxrnn.cells.fused import by_gate

GATES = ("n", "f", "i", "o")  # the blocks of W_xh and b, in this order; those that the pooling has
BLOCKS = {"f": ("n", "f"), "fo": ("n", "f", "o"), "ifo": GATES}


class QRNNParams(NamedTuple):
    W_xh: jax.Array  # (window * I, 2H, 3H or 4H): the oldest input's rows first
    b: jax.Array | None  # (2H, 3H or 4H,); None without biases


class QRNNCarry(NamedTuple):
    c: jax.Array  # (*B, H), the state
    xs: jax.Array  # (*B, window - 1, I), the last inputs, the oldest first

    @property
    def moves_on(self) -> str:
        """Each is in another place at each step: wrappers that blend states say so."""
        return "the carry of jr.qrnn with a window above 1 holds inputs of several steps"


class QRNNGates(NamedTuple):
    n: jax.Array  # (*B, H) each: candidate, the paper's z
    f: jax.Array  # forget gate
    i: jax.Array  # input gate; 1 - f but with pooling="ifo"
    o: jax.Array  # output gate; 1 with pooling="f"
    c: jax.Array  # the new state
    h: jax.Array  # the output


@built_in
def qrnn(
    input_size: int,
    hidden_size: int,
    *,
    window: int = 1,
    pooling: str = "fo",
    activation: str | Activation = "tanh",
    bias: bool = True,
    input_init: str | Initializer = "glorot_uniform",
    bias_init: str | Initializer = "zeros",
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """Quasi-recurrent neural network: gates are convolutions over the last inputs, the recurrence is a pooling.

        n       = tanh(W [x_{t-window+1}, …, x_t] + b)
        f, i, o = σ(W [x_{t-window+1}, …, x_t] + b)
        c_t     = f * c_{t-1} + i * n            i = 1 - f but with pooling="ifo"
        h_t     = o * c_t                        o = 1 with pooling="f"

    Inputs before the first are zeros. Wider windows are part of the carry: resets clear them, masked steps hold them,
    so that what stands in a gap is as if it had not been there. With ``window=1`` the cell is linear in its
    state: ``jr.parallel(cell, method="associative")`` runs all steps at once.

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of the state ``c`` (*B, H) and of the output ``y = h_t``.
        window: how many inputs the gates see, x_t among them.
        pooling: "f", "fo" or "ifo", the gates that there are.
        activation: in place of tanh, by name or any function, as for ``elman``.
        bias: whether there are biases.
        input_init, bias_init: initialisers by name or function, as for ``elman``; the first is given a gate's matrix
            (window * I, H).
        dtype, param_dtype: as for ``elman``.

    Returns:
        A Cell with QRNNParams and QRNNGates; its carry is the array c, and there is ``affine``, with ``window=1``, else
        QRNNCarry.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, an unknown pooling, activation or initialiser; while
            tracing, inputs, parameters or carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.qrnn(3, 5, window=2)
        >>> carry, ys = jr.scan(cell).apply(cell.init(jax.random.key(0)), jnp.ones((7, 4, 3)))
        >>> carry.c.shape, carry.xs.shape
        ((4, 5), (4, 1, 3))

    Differs from the paper, which initialises by uniform numbers of a width for each task, and drops gates f while
    training (``jr.zoneout`` is the same idea, on a window of 1). torchqrnn multiplies n by f and the old state by
    1 - f, has windows of 1 and 2 with the newest input's columns first, and no pooling "ifo".

    Reference:
        Bradbury, Merity, Xiong & Socher, "Quasi-recurrent neural networks", ICLR 2017.
    """
    H, I = hidden_size, input_size
    check_choice("qrnn", "pooling", pooling, BLOCKS)
    order, act = BLOCKS[pooling], activation_of("qrnn", "activation", activation)
    of_c = tuple(gate for gate in order if gate != "o")
    init_x, init_b = (
        initializer("qrnn", name, init, H) for name, init in (("input_init", input_init), ("bias_init", bias_init))
    )

    def init(key):
        k_xh, k_b = jax.random.split(key)
        return QRNNParams(
            W_xh=per_gate(init_x, k_xh, (window * I, H), order, param_dtype),
            b=per_gate(init_b, k_b, (H,), order, param_dtype) if bias else None,
        )

    def initial_carry(params, batch_shape=()):
        kept = carry_dtype(params.W_xh, dtype)
        c = initial_state(None, batch_shape, H, kept)
        return c if window == 1 else QRNNCarry(c, jnp.zeros((*batch_shape, window - 1, I), kept))

    def windowed(carry, x):
        """The inputs of the window (*B, window, I)."""
        return jnp.concatenate([carry.xs, x.astype(carry.xs.dtype)[..., None, :]], axis=-2)

    def maps(params, xs, columns):
        b = None if params.b is None else params.b[columns]
        return plus_bias(project(xs, params.W_xh, dtype, columns), b)

    def of_state(params, xs):
        """n, f and i of the window's inputs side by side, (*B, window * I)."""
        a = by_gate(of_c, maps(params, xs, slice(0, len(of_c) * H)))
        f = jax.nn.sigmoid(a.f)
        return act(a.n), f, jax.nn.sigmoid(a.i) if "i" in of_c else 1 - f

    def of_output(params, xs, c):
        """o and h."""
        if "o" not in order:
            return jnp.ones_like(c), c
        o = jax.nn.sigmoid(maps(params, xs, slice(len(of_c) * H, None)))
        return o, o * c

    def gates(params, carry, x):
        c, xs = (carry, x) if window == 1 else (carry.c, windowed(carry, x).reshape(*x.shape[:-1], window * I))
        n, f, i = of_state(params, xs)
        c = f * c + i * n
        o, h = of_output(params, xs, c)
        return QRNNGates(n, f, i, o, c, h)

    def step(params, carry, x):
        *_, c, h = gates(params, carry, x)
        return QRNNCarry(c, windowed(carry, x)[..., 1:, :]), output(h, params.W_xh, dtype)

    def affine(params, x):
        n, f, i = of_state(params, x)
        return f, i * n

    def read(params, c, x):
        return output(of_output(params, x, c)[1], params.W_xh, dtype)

    if window > 1:
        return Cell(init, initial_carry, step, gates, input_size=I, output_size=H)
    return Cell(init, initial_carry, gates=gates, affine=affine, output=read, input_size=I, output_size=H)
