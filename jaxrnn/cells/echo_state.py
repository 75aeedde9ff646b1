"""The echo state network's reservoir."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxrnn._base import Cell
from jaxrnn._dtypes import accumulator
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._options import Initializer, cell_options
from jaxrnn.cells._products import carry_dtype, initial_state, output, plus, project
from jaxrnn.cells.activations import Activation
from jaxrnn.cells.connectivity import check_not_negative, check_positive, in_degree, lowest, per_feature, with_radius


class EchoStateParams(NamedTuple):
    W_xh: jax.Array  # (I, H)
    W_hh: jax.Array  # (H, H), 0 where there is no connection
    b: jax.Array  # (H,)


@built_in
def echo_state(
    input_size: int,
    hidden_size: int,
    *,
    spectral_radius: float = 0.9,
    density: float = 0.1,
    leak: float = 1.0,
    input_scaling: ArrayLike | Sequence[float] = 1.0,
    bias_scaling: float = 0.0,
    activation: str | Activation = "tanh",
    recurrent_init: str | Initializer = "uniform",
    trainable: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """An echo state network's reservoir: a random recurrent network that is left as it is drawn.

        h_t = (1 - leak) h_{t-1} + leak act(W_hh h_{t-1} + W_xh x_t + b)

        W_hh   as recurrent_init draws it, ``density`` of it, scaled to ρ(W_hh) = spectral_radius
        W_xh ~ U(-input_scaling, input_scaling),  b ~ U(-bias_scaling, bias_scaling)

    What is fitted is a readout of h, in one call: ``jr.fit_readout``. Nothing inside learns: the gradient of every
    parameter is 0, that of inputs and carry is the network's own. An optimiser's weight decay would still shrink them,
    so train others apart from them, or give it a mask.

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of the carry, an array ``h`` (*B, H), which is the output too.
        spectral_radius: ρ, above 0. The state forgets where it began, mostly, with ρ up to 1 or a little more.
        density: the share of units that each unit hears, the same number for each, at least one.
        leak: from above 0 to 1.
        input_scaling: one for all inputs, or I of them.
        bias_scaling: of b; 0 makes the network odd where act is: h of -x is then -h.
        activation: act, by name or any function, as for ``elman``.
        recurrent_init: by name or function, as for ``elman``; its scale does not matter.
        trainable: whether parameters have their gradient, to train on from a reservoir.
        dtype, param_dtype: as for ``elman``.

    Returns:
        A Cell with EchoStateParams and the carry h.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, a spectral radius, density or leak out of range, scales
            below 0, an unknown activation or initialiser; while tracing, what does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> layer = jr.scan(jr.echo_state(1, 100, spectral_radius=0.8, input_scaling=0.1))
        >>> params = layer.init(jax.random.key(0))
        >>> xs = jax.random.uniform(jax.random.key(1), (400, 1))
        >>> ys = jnp.roll(xs, 5, axis=0)  # what was read 5 steps ago
        >>> found = jr.fit_readout(layer, params, xs, ys, washout=50)
        >>> model = jr.stack(layer, found.readout)
        >>> carry, got = model.apply((params, found.params), xs)
        >>> bool(jnp.abs(got - ys)[50:].max() < 0.01)
        True

    Differs from Jaeger's first networks in that connections are as many for each unit: every unit is reached, and a
    cycle, so a spectral radius above 0, is certain at any density.

    References:
        Jaeger & Haas, "Harnessing nonlinearity: predicting chaotic systems and saving energy in wireless
        communication", Science 304, 2004.
        Jaeger, Lukoševičius, Popovici & Siewert, "Optimization and applications of echo state networks with
        leaky-integrator neurons", Neural Networks 20, 2007.
        Lukoševičius, "A practical guide to applying echo state networks", 2012.
    """
    H = hidden_size
    check_positive("echo_state", spectral_radius=spectral_radius, leak=leak)
    check_not_negative("echo_state", bias_scaling=bias_scaling)
    if leak > 1:
        raise ValueError(f"echo_state: leak must be at most 1, got {leak!r}; 1 keeps nothing of the old state.")
    heard = in_degree("echo_state", density, H)
    scales = per_feature("echo_state", "input_scaling", input_scaling, input_size, zero=True).reshape(-1, 1)
    act, _, init_h, _ = cell_options("echo_state", H, (activation,), ("zeros", recurrent_init, "zeros"))

    def init(key):
        k_xh, k_hh, k_who, k_b = jax.random.split(key, 4)
        wide = accumulator(param_dtype)
        connected = lowest(jax.random.uniform(k_who, (H, H)), heard)
        W_hh = jnp.where(connected, init_h(k_hh, (H, H), wide), jnp.zeros((), wide))
        W_xh = jnp.asarray(scales, wide) * jax.random.uniform(k_xh, (input_size, H), wide, -1.0, 1.0)
        b = bias_scaling * jax.random.uniform(k_b, (H,), wide, -1.0, 1.0)
        return EchoStateParams._make(a.astype(param_dtype) for a in (W_xh, with_radius(W_hh, spectral_radius), b))

    def initial_carry(params, batch_shape=()):
        return initial_state(None, batch_shape, H, carry_dtype(params.W_hh, dtype))

    def step(params, h, x):
        W_xh, W_hh, b = params if trainable else jax.lax.stop_gradient(params)
        new = act(plus(project(h, W_hh, dtype) + project(x, W_xh, dtype), b))
        h = (1 - leak) * h + leak * new
        return h, output(h, W_hh, dtype)

    return Cell(init, initial_carry, step, input_size=input_size, output_size=H)
