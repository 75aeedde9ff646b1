"""Long short-term memory, with forget gates."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn._base import Cell
from jaxrnn._checks import check_choice
from jaxrnn.cells._built_in import built_in
from jaxrnn.cells._options import Initializer, cell_options, check_heads, per_gate, per_head
from jaxrnn.cells._products import output, plus_bias, project, project_heads
from jaxrnn.cells.activations import Activation
from jaxrnn.cells.fused import by_gate
from jaxrnn.cells.layer_normed import layer_normed_lstm, lstm_memory, lstm_sum
from jaxrnn.cells.lstm_family import (
    GATES,
    LSTMCarry,
    LSTMGates,
    forget_bias_of,
    learned_lstm_carry,
    lstm_initial_carry,
)


class LSTMParams(NamedTuple):
    W_xh: jax.Array  # (I, 4H), blocks i, f, g, o: GATES
    W_hh: jax.Array  # (H, 4H), or (R, 4H), so too; of several heads (heads, R / heads, 4H / heads)
    b: jax.Array | None  # (4H,), so too; None without biases
    W_hr: jax.Array | None = None  # (H, R), where projection_size is given
    initial: LSTMCarry | None = None  # (H,) each, h (R,) where it is projected, where the initial carry is learned


@built_in
def lstm(
    input_size: int,
    hidden_size: int,
    *,
    projection_size: int | None = None,
    layer_norm: str | None = None,
    heads: int = 1,
    activation: str | Activation = "tanh",
    gate_activation: str | Activation = "sigmoid",
    bias: bool = True,
    forget_bias: float | None = None,
    T_max: float | None = None,
    input_init: str | Initializer = "glorot_uniform",
    recurrent_init: str | Initializer = "orthogonal",
    bias_init: str | Initializer = "zeros",
    learned_carry: bool = False,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
) -> Cell:
    """Long short-term memory with forget gates.

        i, f, o = σ(W [h_{t-1}, x_t] + b)
        g       = tanh(W [h_{t-1}, x_t] + b)
        c_t     = f * c_{t-1} + i * g
        h_t     = o * tanh(c_t),  or  h_t = (o * tanh(c_t)) W_hr  with ``projection_size``

    With LN(a) = scale * (a - mean(a)) / sqrt(var(a) + 1e-5), and for c_t a shift,

        LN(W_hh h_{t-1}) + LN(W_xh x_t) + b, all gates together; o * tanh(LN(c_t))     layer_norm="ba2016"
        LN(W [h_{t-1}, x_t]) + b, each gate by itself; c_t = LN(f * c_{t-1} + i * g)   layer_norm="per_gate"

    Args:
        input_size: I, the features of ``x`` (*B, I).
        hidden_size: H, the units of ``LSTMCarry(h, c)``, (*B, H) each, and of the output ``y = h_t``.
        projection_size: R; h and y are projections (*B, R) of the H units.
        layer_norm: "ba2016", the paper's, whose normalised memory only the output reads, or "per_gate", as TensorFlow's
            contrib has it, whose normalised memory is carried.
        heads: W_hh is block-diagonal: the units of each of so many heads, which divide R and H, read those of the same
            head alone.
        activation, gate_activation: in place of both tanh and of σ, by name or any function, as for ``elman``.
        bias: whether there are biases.
        forget_bias: added to the forget gate's initial bias; None means 1 (0 under ``T_max``).
        T_max: chrono initialisation: forget biases log U(1, T_max - 1), input biases their negative, for
            dependencies of up to T_max steps.
        input_init, recurrent_init, bias_init: initialisers by name ("glorot_uniform", "orthogonal", "uniform" as
            PyTorch's …) or functions ``init(key, shape, dtype)``; drawn for each gate by itself.
        learned_carry: makes the initial carry a parameter, ``initial``, zero at first.
        dtype: the compute and output dtype; None computes in the parameters' own. The carry, the gates and every
            sum are kept in at least float32.
        param_dtype: the dtype of the parameters that ``init`` makes.

    Returns:
        A Cell with LSTMParams, or with ``layer_norm`` LayerNormLSTMParams, with LSTMCarry and LSTMGates.

    Raises:
        ValueError, TypeError: sizes that are not positive ints, an unknown initialiser, activation or layer_norm, heads
            that do not divide, more than one of ``forget_bias``, ``T_max`` and ``bias=False``; while tracing, inputs,
            parameters or carries that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.lstm(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> carry, y = cell.step(params, cell.initial_carry(params, (2,)), jnp.ones((2, 3)))
        >>> bool((carry.h == y).all())
        True

    Differs from: PyTorch (two biases, uniform at first), Flax (carry (c, h), forget bias 0), Haiku (gate order
    i g f o, forget bias added at every step), ONNX (gate order i o f c). In LN:
    TensorFlow (epsilon 1e-12), Ba et al. (three shifts in each gate, of which b is the sum).

    References:
        Hochreiter & Schmidhuber, "Long short-term memory", Neural Computation 9, 1997.
        Gers, Schmidhuber & Cummins, "Learning to forget", Neural Computation 12, 2000 (the forget gate).
        Tallec & Ollivier, "Can recurrent neural networks warp time?", ICLR 2018 (T_max).
        Sak, Senior & Beaufays, "Long short-term memory recurrent neural network architectures for large scale
        acoustic modeling", Interspeech 2014 (projection_size).
        Ba, Kiros & Hinton, "Layer normalization", 2016 (layer_norm).
    """
    H, R = hidden_size, hidden_size if projection_size is None else projection_size
    if layer_norm is not None:
        check_choice("lstm", "layer_norm", layer_norm, ("ba2016", "per_gate"))
    check_heads("lstm", heads, hidden_size=H, projection_size=R)
    act, σ, init_x, init_h, init_b = cell_options(
        "lstm", H, (activation, gate_activation), (input_init, recurrent_init, bias_init)
    )
    add_forget_bias = forget_bias_of("lstm", GATES, H, bias, forget_bias, T_max)

    def init(key):
        k_xh, k_hh, k_b, k_f, k_hr = jax.random.split(key, 5)
        params = LSTMParams(
            W_xh=per_gate(init_x, k_xh, (input_size, H), GATES, param_dtype),
            W_hh=per_head(init_h, k_hh, (R, H), GATES, heads, param_dtype),
            b=add_forget_bias(k_f, per_gate(init_b, k_b, (H,), GATES, param_dtype)),
            W_hr=None if projection_size is None else init_h(k_hr, (H, R), param_dtype),
            initial=learned_lstm_carry(H, param_dtype, R) if learned_carry else None,
        )
        return params if layer_norm is None else layer_normed_lstm(params, layer_norm, H, param_dtype)

    def initial_carry(params, batch_shape=()):
        return lstm_initial_carry(params, batch_shape, H, dtype, R)

    def gates(params, carry, x):
        h, c = carry
        a = lstm_sum(params, project_heads(h, params.W_hh, 4, dtype), project(x, params.W_xh, dtype))
        a = by_gate(GATES, plus_bias(a, params.b))
        i, f, g, o = σ(a.i), σ(a.f), act(a.g), σ(a.o)
        c, read = lstm_memory(params, f * c + i * g)
        h = o * act(read)
        h = h if params.W_hr is None else project(h, params.W_hr, dtype)
        return LSTMGates(i, f, g, o, c, h)

    def step(params, carry, x):
        *_, c, h = gates(params, carry, x)
        return LSTMCarry(h, c), output(h, params.W_hh, dtype)

    return Cell(init, initial_carry, step, gates, input_size=input_size, output_size=R)
