"""The continuous-time recurrent network of rates, of neuroscience."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, draw_each_step, name_of
from jaxrnn._checks import check_choice, check_params
from jaxrnn._dtypes import accumulator
from jaxrnn._spec import defaults_of
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._options import Initializer, cell_options
from jaxrnn.cells._products import carry_dtype, initial_state, output, plus_bias, project, times
from jaxrnn.cells.activations import Activation
from jaxrnn.cells.connectivity import (
    balanced,
    check_not_negative,
    check_positive,
    connections_of,
    dale_signs,
    per_feature,
    wired,
    with_radius,
)


class CTRNNParams(NamedTuple):
    W_xh: jax.Array  # (I, H)
    W_hh: jax.Array  # (H, H), from and to; under Dale's law and masks the step reads |W_hh| with signs and zeros
    b: jax.Array | None  # (H,); None without biases
    h0: jax.Array | None = None  # (H,), where the initial carry is learned


@built_in
def ctrnn(
    input_size: int,
    hidden_size: int,
    *,
    form: str = "rate",
    method: str = "euler",
    tau: ArrayLike | Sequence[float] = 100.0,
    dt: float = 20.0,
    noise: float = 0.0,
    dale: float | None = None,
    excitatory_input: bool = False,
    density: float = 1.0,
    seed: int = 0,
    connections: Any = None,
    self_connections: bool = True,
    spectral_radius: float | None = None,
    activation: str | Activation = "relu",
    bias: bool = True,
    input_init: str | Initializer = "glorot_uniform",
    recurrent_init: str | Initializer = "orthogonal",
    bias_init: str | Initializer = "zeros",
    learned_carry: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """A continuous-time recurrent network, taken in steps of Δt: firing rates r, or currents x, with time constants τ.

        τ dr/dt = -r + f(W_hh r + W_xh u + b + noise)         form="rate"
        τ dx/dt = -x + W_hh f(x) + W_xh u + b + noise         form="current"

        r_t = (1 - α) r_{t-1} + α f(W_hh r_{t-1} + W_xh u_t + b + s/α ξ_t),                  y_t = r_t
        x_t = (1 - α) x_{t-1} + α (W_hh f(x_{t-1}) + W_xh u_t + b) + s ξ_t,   ξ ~ N(0, 1),   y_t = f(x_t)
        α = Δt/τ,            s = σ √(2 α)                 method="euler"
        α = 1 - exp(-Δt/τ),  s = σ √(1 - exp(-2 Δt/τ))    method="exponential": exact between inputs that stand still

    σ is the standard deviation of a current without W_hh and inputs: exactly under "exponential", with Δt → 0 under
    "euler". Noise is drawn for each unit and step, by the key and absolute time; ``key=None`` means none.

    Dale's law: the first ``dale`` of the units excite and the others inhibit. The step reads |W_hh| with the sender's
    sign, so no training breaks it. A connection that is not there is 0 in the step: its weight gets the gradient 0,
    and what an optimiser makes of the weight does not matter. Signs and connections are no parameters but part of the
    spec, which files hold; ``jr.cells.effective_weights`` shows the weights that the step reads.

    Args:
        input_size: I, the features of u (*B, I).
        hidden_size: H, the units of the carry, an array r or x (*B, H), and of the output.
        form: "rate" or "current".
        method: "euler" or "exponential".
        tau, dt: τ, one for all units or H of them, and Δt, in the same unit, such as ms.
        noise: σ.
        dale: the fraction of units that excite, as 0.8; None leaves the signs to training.
        excitatory_input: whether the step reads |W_xh|, as inputs from afar are excitatory.
        density: the share of units that each unit hears, the same number for each, at least one.
        seed: which of those random connections; ``init``'s key draws the weights alone.
        connections: in place of ``density``, booleans (H, H): [i, j] is True where unit j hears unit i.
        self_connections: whether units hear themselves.
        spectral_radius: what W_hh is scaled to at first; None leaves it as it is drawn.
        activation: f, by name or any function, as for ``elman``.
        bias: whether there is b.
        input_init, recurrent_init, bias_init, learned_carry, dtype, param_dtype: as for ``elman``. Under Dale's law
            inhibition is scaled, unit by unit, to what excitation sums to.

    Returns:
        A Cell with CTRNNParams and the carry r or x.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, an unknown form, method, activation or initialiser,
            τ, Δt or σ out of range, Δt > τ with "euler", a Dale fraction that leaves a sign empty, connections that
            are not (H, H); while tracing, inputs, parameters or carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.ctrnn(3, 10, dale=0.8, density=0.5, self_connections=False, noise=0.1)
        >>> params = cell.init(jax.random.key(0))
        >>> carry, ys = jr.scan(cell).apply(params, jnp.ones((7, 2, 3)), key=jax.random.key(1))
        >>> W = jr.cells.effective_weights(cell, params).W_hh
        >>> bool((W[:8] >= 0).all() & (W[8:] <= 0).all()), (W != 0).sum(0).tolist()
        (True, [4, 4, 4, 4, 4, 4, 4, 4, 4, 4])

    Differs from Song et al., who rectify: there a weight that has reached 0 stays, |W| grows again. Their weights
    start as gamma variates, scaled to ``spectral_radius=1.5``; ``recurrent_init`` takes any function.

    References:
        Song, Yang & Wang, "Training excitatory-inhibitory recurrent neural networks for cognitive tasks", PLOS
        Computational Biology 12, 2016 (current, Dale's law).
        Yang, Joglekar, Song, Newsome & Wang, "Task representations in neural networks trained to perform many
        cognitive tasks", Nature Neuroscience 22, 2019 (rate).
        Rajan & Abbott, "Eigenvalue spectra of random matrices for neural networks", Physical Review Letters 97, 2006
        (balance).
    """
    H = hidden_size
    check_choice("ctrnn", "form", form, ("rate", "current"))
    check_choice("ctrnn", "method", method, ("euler", "exponential"))
    check_positive("ctrnn", dt=dt, spectral_radius=spectral_radius)
    check_not_negative("ctrnn", noise=noise)
    τ = per_feature("ctrnn", "tau", tau, H)
    if method == "euler" and (dt > τ).any():
        raise ValueError(
            f"ctrnn: Euler steps need dt <= tau, got dt={dt!r} and tau={τ.min():g}, which overshoots; give smaller "
            f"steps, or method='exponential'."
        )
    if method == "euler":
        α, s = dt / τ, noise * np.sqrt(2 * dt / τ)
    else:
        α, s = -np.expm1(-dt / τ), noise * np.sqrt(-np.expm1(-2 * dt / τ))
    f, init_x, init_h, init_b = cell_options("ctrnn", H, (activation,), (input_init, recurrent_init, bias_init))
    signs = dale_signs("ctrnn", dale, H)
    mask = connections_of("ctrnn", H, density, seed, connections, self_connections)

    def init(key):
        k_xh, k_hh, k_b = jax.random.split(key, 3)
        W_hh = wired(init_h(k_hh, (H, H), accumulator(param_dtype)), signs, mask)
        W_hh = with_radius(W_hh if signs is None else balanced(W_hh), spectral_radius)
        params = CTRNNParams(
            W_xh=init_x(k_xh, (input_size, H), param_dtype),
            W_hh=W_hh.astype(param_dtype),
            b=init_b(k_b, (H,), param_dtype) if bias else None,
            h0=jnp.zeros((H,), param_dtype) if learned_carry else None,
        )
        return _effective(params, signs, mask, excitatory_input)

    def initial_carry(params, batch_shape=()):
        return initial_state(params.h0, batch_shape, H, carry_dtype(params.W_hh, dtype))

    def draw_noise(params, key, steps, x):
        kept = carry_dtype(params.W_hh, dtype)
        return draw_each_step(lambda k: jax.random.normal(k, (*x.shape[:-1], H), kept), key, steps)

    def step(params, carry, x, ξ=None):
        W_xh, W_hh, b, _ = _effective(params, signs, mask, excitatory_input)
        each = [jnp.asarray(a, carry.dtype) for a in (α, s, s / α)]
        share, jump, jump_inside = (jnp.broadcast_to(a, (H,)) for a in each)
        r = carry if form == "rate" else f(carry)
        current = plus_bias(project(r, W_hh, dtype) + project(x, W_xh, dtype), b)
        if form == "rate":
            current = f(current if ξ is None else current + times(ξ, jump_inside))
        new = times(carry, 1 - share) + times(current, share)
        if form == "current":
            new = new if ξ is None else new + times(ξ, jump)
        return new, output(new if form == "rate" else f(new), W_hh, dtype)

    return Cell(init, initial_carry, step, noise=draw_noise if noise else None, input_size=input_size, output_size=H)


def _effective(params: CTRNNParams, signs: Any, mask: Any, excitatory_input: bool) -> CTRNNParams:
    W_xh = jnp.abs(params.W_xh) if excitatory_input else params.W_xh
    return params._replace(W_xh=W_xh, W_hh=wired(params.W_hh, signs, mask))


@checks_arguments
def effective_weights(cell: Cell, params: CTRNNParams) -> CTRNNParams:
    """The weights that a ctrnn's step reads: with Dale's signs, and 0 where there is no connection.

        W_hh = signs * |W_hh|  where connected, else 0        W_xh = |W_xh|  with ``excitatory_input``

    They are parameters of the same network: a step with them is the same.

    Args:
        cell: a ``jr.ctrnn``.
        params: its parameters.

    Returns:
        CTRNNParams.

    Raises:
        TypeError, ValueError: another cell, parameters that are not its own.

    Example:
        >>> import jax, jaxrnn as jr
        >>> cell = jr.ctrnn(1, 5, dale=0.8)
        >>> params = cell.init(jax.random.key(0))._replace(W_hh=-jax.numpy.ones((5, 5)))  # as if training had
        >>> jr.cells.effective_weights(cell, params).W_hh[:, 0].tolist()
        [1.0, 1.0, 1.0, 1.0, -1.0]
    """
    if not isinstance(cell, Cell) or cell.spec is None or cell.spec.kind != "ctrnn":
        came = name_of(cell) if hasattr(cell, "spec") else type(cell).__name__
        raise TypeError(f"effective_weights: expected cell to be a ctrnn, got {came}; give the cell that it wraps.")
    check_params("effective_weights", params, jax.eval_shape(cell.init, jax.random.key(0)))
    options = defaults_of("ctrnn") | dict(cell.spec.options)
    H = options["hidden_size"]
    names = ("density", "seed", "connections", "self_connections")
    mask = connections_of("ctrnn", H, *(options[name] for name in names))
    return _effective(params, dale_signs("ctrnn", options["dale"], H), mask, options["excitatory_input"])
