"""Simple recurrent unit."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn._checks import check_choice
from jaxrnn._dtypes import accumulator
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._options import Initializer, check_gate_bias, initializer, per_gate
from jaxrnn.cells._products import carry_dtype, initial_state, output, plus, project, times
from jaxrnn.cells.activations import Activation, activation_of
from jaxrnn.cells.fused import block, by_gate

GATES = ("n", "f", "r")  # the blocks of W_xh, in this order
GATED = GATES[1:]  # those of b and v


class SRUParams(NamedTuple):
    W_xh: jax.Array  # (I, 3H), blocks n, f, r
    b: jax.Array | None  # (2H,), blocks f, r; None without biases
    v: jax.Array | None = None  # (2H,), so too, for form="2018"
    W_s: jax.Array | None = None  # (I, H), where I is not H


class SRUGates(NamedTuple):
    n: jax.Array  # (*B, H) each: candidate, the paper's x with a tilde
    f: jax.Array  # forget gate
    r: jax.Array  # highway gate
    c: jax.Array  # the new state
    h: jax.Array  # the output


@built_in
def sru(
    input_size: int,
    hidden_size: int,
    *,
    form: str = "2017",
    activation: str | Activation | None = None,
    bias: bool = True,
    highway_bias: float | None = None,
    input_init: str | Initializer = "lecun_uniform",
    bias_init: str | Initializer = "zeros",
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """Simple recurrent unit: all its products read the input alone, and a highway leads round it.

        n    = W x_t
        f, r = σ(W x_t + b)                        form="2017"
        f, r = σ(W x_t + v * c_{t-1} + b)          form="2018"
        c_t  = f * c_{t-1} + (1 - f) * n
        h_t  = r * act(c_t) + (1 - r) * s_t        act: tanh in the form of 2017, the identity in that of 2018
        s_t  = x_t, in the form of 2018 √(1 + 2 e^highway_bias) x_t; where I is not H, W_s x_t

    The form of 2017 is linear in its state: ``jr.parallel(cell, method="associative")`` runs all steps at once.

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of the carry, an array ``c`` (*B, H), and of the output ``y = h_t``.
        form: "2017", that of the first version of the paper, or "2018", whose gates see the state too.
        activation: in place of act, by name or any function, as for ``elman``; None is the form's own.
        bias: whether f and r have biases.
        highway_bias: added to the initial bias of r; None means 0. Below 0 more of the input passes.
        input_init, bias_init: initialisers by name or function, as for ``elman``; "lecun_uniform" is the paper's, of
            variance 1/I. In the form of 2018 the weights of f and r are then divided by √2, v starts with variance
            1/2, and W_s is multiplied by the factor of the highway.
        dtype, param_dtype: as for ``elman``.

    Returns:
        A Cell with SRUParams, the carry c and SRUGates; in the form of 2017 with ``affine``.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, an unknown form, activation or initialiser, both
            ``highway_bias`` and ``bias=False``; while tracing, inputs, parameters or carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer = jr.parallel(jr.sru(3, 5), method="associative")
        >>> c, ys = layer.apply(layer.init(jax.random.key(0)), jnp.ones((7, 2, 3)))
        >>> ys.shape, jr.sru(3, 5, form="2018").affine
        ((7, 2, 5), None)

    Differs from the authors' code, which has the identity for act in both forms unless it is told otherwise, and whose
    ``v1=True``, the form of 2017, keeps the highway's factor unless ``rescale=False``; its matrices have n, f, r and
    W_s side by side for each unit.

    References:
        Lei, Zhang & Artzi, "Training RNNs as fast as CNNs", 2017 (the first version).
        Lei, Zhang, Wang, Dai & Artzi, "Simple recurrent units for highly parallelizable recurrence", EMNLP 2018.
    """
    H, I = hidden_size, input_size
    check_choice("sru", "form", form, ("2017", "2018"))
    check_gate_bias("sru", "highway", bias, highway_bias=highway_bias)
    sees_state, highway_bias = form == "2018", highway_bias or 0.0
    act = activation_of("sru", "activation", activation or ("identity" if sees_state else "tanh"))
    init_x, init_b = (
        initializer("sru", name, init, H) for name, init in (("input_init", input_init), ("bias_init", bias_init))
    )
    α = math.sqrt(1 + 2 * math.exp(highway_bias)) if sees_state else 1.0

    def init(key):
        k_xh, k_b, k_v, k_s = jax.random.split(key, 4)
        W_xh = per_gate(init_x, k_xh, (I, H), GATES, param_dtype)
        b = per_gate(init_b, k_b, (H,), GATED, param_dtype) if bias else None
        v = jax.random.uniform(k_v, (2 * H,), accumulator(param_dtype), -math.sqrt(1.5), math.sqrt(1.5))
        return SRUParams(
            W_xh=W_xh.at[:, H:].multiply(math.sqrt(0.5)) if sees_state else W_xh,
            b=None if b is None else b.at[block(GATED, "r", H)].add(highway_bias),
            v=v.astype(param_dtype) if sees_state else None,
            W_s=None if I == H else α * init_x(k_s, (I, H), param_dtype),
        )

    def initial_carry(params, batch_shape=()):
        return initial_state(None, batch_shape, H, carry_dtype(params.W_xh, dtype))

    def gate(name, a, params, c):
        own = block(GATED, name, H)
        a = a if params.v is None else a + times(c, params.v[own])
        return jax.nn.sigmoid(a if params.b is None else plus(a, params.b[own]))

    def of_state(params, c, x):
        """n and f; c is the old state, which the form of 2017 does not need."""
        a = by_gate(("n", "f"), project(x, params.W_xh, dtype, jnp.s_[: 2 * H]))
        return a.n, gate("f", a.f, params, c)

    def of_output(params, c_old, c, x):
        """r and h."""
        r = gate("r", project(x, params.W_xh, dtype, jnp.s_[2 * H :]), params, c_old)
        s = α * x.astype(r.dtype) if params.W_s is None else project(x, params.W_s, dtype)
        return r, r * act(c) + (1 - r) * s

    def gates(params, c_old, x):
        n, f = of_state(params, c_old, x)
        c = f * c_old + (1 - f) * n
        r, h = of_output(params, c_old, c, x)
        return SRUGates(n, f, r, c, h)

    def step(params, c, x):
        *_, c, h = gates(params, c, x)
        return c, output(h, params.W_xh, dtype)

    def affine(params, x):
        n, f = of_state(params, None, x)
        return f, (1 - f) * n

    def read(params, c, x):
        return output(of_output(params, None, c, x)[1], params.W_xh, dtype)

    if sees_state:
        return Cell(init, initial_carry, step, gates, input_size=I, output_size=H)
    return Cell(init, initial_carry, gates=gates, affine=affine, output=read, input_size=I, output_size=H)
