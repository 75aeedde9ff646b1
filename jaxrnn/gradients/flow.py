"""Gradient flow: how far back the gradient of a loss reaches, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, Layer, PyTree, flatten, is_float, is_inexact
from jaxrnn._checks import check_finite, check_scalar_loss
from jaxrnn._narrowing import as_lengths, as_start
from jaxrnn.devices.placement import vary_alike
from jaxrnn.gradients._state_space import check_not_explicit
from jaxrnn.instruments import NormProbe, PerturbedState, norm, probe_zeros
from jaxrnn.running.scan import as_layer, check_inputs, valid_steps


class StateFlow(NamedTuple):
    """∂L/∂h_t for one array of the carry; of complex numbers (∂L/∂Re h_t, ∂L/∂Im h_t), by its modulus."""

    norm: jax.Array  # (T, *B): over the units of each sequence; 0 on steps that are not valid
    mean: jax.Array  # (T,): of the norm, over the sequences that are valid at t
    sd: jax.Array  # (T,): its standard deviation over them
    per_unit: jax.Array  # (T, H): the root mean square over them, for each unit


class Flow(NamedTuple):
    """What ``gradient_flow`` found."""

    loss: jax.Array  # ()
    states: PyTree  # the tree of the carry: one entry for each layer, direction and state, each a StateFlow
    params: PyTree  # the tree of the parameters, each leaf (T,): the norm of what step t adds to the gradient by it


@checks_arguments
def gradient_flow(
    model: Cell | Layer,
    params: PyTree,
    xs: PyTree,
    loss: Callable[[PyTree, PyTree], jax.Array],
    carry: PyTree = None,
    **options: Any,
) -> Flow:
    """How much of the gradient arrives at every step of a run, and what every step adds to it.

        states    ‖∂L/∂h_t‖, ‖∂L/∂c_t‖ …         along every path from the state of step t to the loss
        params    ‖∂L/∂W_t‖                      W_t: the W that step t uses; ∂L/∂W = Σ_t ∂L/∂W_t

    With a loss of the last step alone, ‖∂L/∂h_t‖ over T - 1 - t is the curve that vanishes or explodes;
    :func:`norm_by_lag` counts it that way, each sequence from its own end.

    Args:
        model: a Cell, or a Layer made of ``jr.scan``, ``stack``, ``bidirectional`` and ``residual``.
        params, xs, carry: as for ``apply``: xs (T, *B, I).
        loss: ``loss(carry, ys)`` -> a scalar, of the final carry and the outputs. A mean over the batch divides every
            sequence's gradient by its size, a sum does not.
        options: ``lengths``, ``mask``, ``resets``, ``key``, ``start``, as ``jr.scan`` documents them.

    Returns:
        A :class:`Flow`. ``states`` has the tree of the carry, so that a stack's second layer stands at ``states[1]``, a
        backward direction at ``.backward``, an LSTM's two at ``.h`` and ``.c``; integer leaves are None. Where a step
        returns one value as two leaves, the first counts the paths through both. xLSTM's memories are those that are
        carried, in units of exp(m): ∂L/∂c = exp(m) ∂L/∂C of the memory C = exp(m) c. ``params`` has the tree of the
        parameters. Norms of contributions are of the whole batch's (in ``shard_map``, of the device's part);
        ``jax.vmap`` this function over sequences for those of each. A learned initial carry contributes at the step
        that reads it.

    Cost: under ``jit``, of which what is not used is left out, the states cost less than a gradient by the parameters,
    states and params 0.9 to 1.5 of it (Elman, LSTM and GRU on a CPU, the sizes of the benchmark; the median is 1.2; up
    to 2 where batch and layer are of one small size, 64 say). No array is larger than (T, *B, H) of the largest
    product. For the contributions themselves, T times the parameters, see :func:`bptt_contributions`.

    Raises:
        ValueError, TypeError: T = 0, a loss that is not one float, a layer that ``jr.tbptt`` made; outside ``jit``
            also values or gradients that are not finite, with the first step at which they are not.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> cell = jr.elman(3, 5, recurrent_init="identity", activation="identity")
        >>> params = cell.init(jax.random.key(0))
        >>> flow = jr.gradients.gradient_flow(cell, params, jnp.ones((4, 2, 3)), lambda carry, ys: ys[-1, :, 0].sum())
        >>> flow.states.mean.tolist()  # with W_hh = 1 the gradient neither vanishes nor explodes
        [1.0, 1.0, 1.0, 1.0]

    References:
        Hochreiter, "Untersuchungen zu dynamischen neuronalen Netzen", diploma thesis, TU München, 1991.
        Bengio, Simard & Frasconi, "Learning long-term dependencies with gradient descent is difficult", IEEE
        Transactions on Neural Networks 5, 1994.
    """
    layer = as_layer("gradient_flow", model)
    given = (options.get(name) for name in ("lengths", "mask", "resets"))
    T, batch_shape, (lengths, mask, _) = check_inputs("gradient_flow", layer, xs, *given)
    if T == 0:
        raise ValueError("gradient_flow: xs has T = 0 steps, so nothing flows; give at least 1.")
    start = jax.eval_shape(lambda p: layer.initial_carry(p, batch_shape), params) if carry is None else carry
    states, states_tree = flatten(start)
    for path, a in jax.tree_util.tree_leaves_with_path(params):
        if jnp.iscomplexobj(a):
            raise TypeError(
                f"gradient_flow: params{jax.tree_util.keystr(path)} is {jnp.result_type(a)}, and parameters must be "
                f"real; give real and imaginary parts, as jr.lru has them."
            )
    leaves, params_tree = flatten(params)
    check_not_explicit("gradient_flow", xs, params, carry)
    to_states = [jnp.zeros((T, *a.shape), a.dtype) if is_inexact(a) else None for a in states]
    to_params = [probe_zeros(T, jnp.result_type(a)) if is_float(a) else None for a in leaves]
    # Without this shard_map would add the gradients of all devices, each by its own sequences, where the zeros spread.
    to_states, to_params, *_ = vary_alike(to_states, to_params, xs, params)

    def loss_of(to_states, to_params):
        perturbed = [PerturbedState(None if carry is None else a, z) for a, z in zip(states, to_states, strict=True)]
        probed = [a if z is None else NormProbe(a, z) for a, z in zip(leaves, to_params, strict=True)]
        end, ys = layer.apply(params_tree.unflatten(probed), xs, states_tree.unflatten(perturbed), **options)
        value = loss(end, ys)
        check_scalar_loss("gradient_flow", value)
        return value, ys

    (value, ys), (by_states, norms) = jax.value_and_grad(loss_of, (0, 1), has_aux=True)(to_states, to_params)
    start_time = as_start("gradient_flow", options.get("start", 0), T)
    on = valid_steps(start_time + jnp.arange(T, dtype=jnp.int32), lengths, mask)
    on = jnp.ones((T, *batch_shape), bool) if on is None else on
    by_states = states_tree.unflatten([None if g is None else _state_flow(g, on) for g in by_states])
    check_finite("gradient_flow", "ys", ys, "look at the inputs, the parameters and the initial carry")
    check_finite("gradient_flow", "the loss", value[None], "the outputs are finite, so look at the loss")
    exploded = "the run is finite, so the gradient exploded on its way: see jr.cotangent_clip"
    by_params = params_tree.unflatten([None if a is None else norm(a, axis=-1) for a in norms])
    check_finite("gradient_flow", "the gradient by carry", by_states, exploded)
    check_finite("gradient_flow", "the gradient by params", by_params, exploded)
    return Flow(value, by_states, by_params)


@checks_arguments
def norm_by_lag(norm: jax.Array, *, lengths: jax.Array | None = None, reverse: bool = False) -> jax.Array:
    """The mean norm over the lag, that is, over how many steps lie between a step and the end of its sequence's run.

        lag = length - 1 - t,  or  t  where the run is reversed

    Args:
        norm: (T, *B), such as ``flow.states.norm``; integers and booleans count as float32.
        lengths: (*B) integers, clamped to T; None means T.
        reverse: whether the layer ran in reverse, so that its last step is step 0.

    Returns:
        (T,): the mean over the sequences that are longer than the lag; NaN where there is none.

    Raises:
        ValueError, TypeError: lengths that do not fit.

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> norm = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 0.0]])  # (T=3, B=2)
        >>> jr.gradients.norm_by_lag(norm, lengths=jnp.array([3, 2])).tolist()
        [4.5, 2.5, 1.0]
    """
    norm = jnp.asarray(norm)
    if norm.ndim == 0:
        raise ValueError("norm_by_lag: expected norms (T, *B), such as flow.states.norm, got a scalar.")
    norm = norm if jnp.issubdtype(norm.dtype, jnp.inexact) else norm.astype(jnp.float32)
    T, batch_shape = norm.shape[0], norm.shape[1:]
    lengths = as_lengths("norm_by_lag", np.full(batch_shape, T) if lengths is None else lengths, batch_shape)
    lengths = lengths[None]
    lag = jnp.arange(T, dtype=jnp.int32).reshape(-1, *(1,) * len(batch_shape))
    t = jnp.broadcast_to(lag, norm.shape) if reverse else jnp.minimum(lengths, T) - 1 - lag
    reached = (lag < lengths) & (t >= 0)
    values = jnp.take_along_axis(norm, jnp.maximum(t, 0), axis=0)
    return _mean_over_batch(values, reached, empty=jnp.nan)


def _state_flow(gradient: jax.Array, on: jax.Array) -> StateFlow:
    """Of ∂L/∂h (T, *B, …), the steps (T, *B) being valid where ``on``."""
    batch = tuple(range(1, on.ndim))
    flat = jax.lax.collapse(jnp.abs(gradient) if jnp.iscomplexobj(gradient) else gradient, on.ndim)
    norms = norm(flat, axis=-1)
    mean = _mean_over_batch(norms, on)
    sd = jnp.sqrt(_mean_over_batch(jnp.square(norms - mean.reshape(-1, *(1,) * len(batch))), on))
    count = jnp.maximum(on.sum(batch), 1)[:, None].astype(flat.dtype)
    per_unit = norm(flat, axis=batch) / jnp.sqrt(count) if batch else jnp.abs(flat)
    return StateFlow(norms, mean, sd, per_unit.reshape(gradient.shape[0], *gradient.shape[on.ndim :]))


def _mean_over_batch(values: jax.Array, on: jax.Array, empty: float = 0.0) -> jax.Array:
    """(T,): the mean of values (T, *B) over where ``on``."""
    batch = tuple(range(1, on.ndim))
    count = on.sum(batch)
    mean = jnp.where(on, values, 0).sum(batch) / jnp.maximum(count, 1).astype(values.dtype)
    return jnp.where(count > 0, mean, jnp.asarray(empty, values.dtype))
