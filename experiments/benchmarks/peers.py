"""The other JAX libraries, each in the form that its documentation gives, time first where it has that form.

Each function imports its library when it is called: a library that is not installed is no contestant.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.problems import NotOffered, Problem, drawn
from experiments.benchmarks.programs import Model, Stepper


def linen_cell(problem: Problem) -> Any:
    from flax import linen as nn

    return {"elman": nn.SimpleCell, "lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}[problem.cell](problem.H)


def linen(problem: Problem) -> Model:
    from flax import linen as nn

    net: Any
    if problem.variant == "bidirectional":
        net = nn.Bidirectional(nn.RNN(linen_cell(problem)), nn.RNN(linen_cell(problem)), time_major=True)
    else:
        net = nn.RNN(linen_cell(problem), time_major=True)
    xs = jax.ShapeDtypeStruct((problem.T, problem.B, problem.I), jnp.float32)
    params = drawn(jax.eval_shape(net.init, jax.random.key(0), xs), problem.H)
    return Model(params, lambda params, xs, lengths: net.apply(params, xs, seq_lengths=lengths))


def linen_step(problem: Problem) -> Stepper:
    cell = linen_cell(problem)
    x = jnp.zeros((problem.B, problem.I))
    carry = cell.initialize_carry(jax.random.key(0), x.shape)
    params = drawn(jax.eval_shape(cell.init, jax.random.key(0), carry, x), problem.H)
    return Stepper(params, carry, cell.apply)


def nnx_cell(problem: Problem) -> Any:
    from flax import nnx

    cells = {"elman": nnx.SimpleCell, "lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}
    return cells[problem.cell](problem.I, problem.H, rngs=nnx.Rngs(0))


def nnx_model(problem: Problem) -> Model:
    from flax import nnx

    net: Any
    if problem.variant == "bidirectional":
        net = nnx.Bidirectional(nnx.RNN(nnx_cell(problem)), nnx.RNN(nnx_cell(problem)), time_major=True)
    else:
        net = nnx.RNN(nnx_cell(problem), time_major=True)
    definition, params, rest = nnx.split(net, nnx.Param, ...)
    return Model(
        drawn(params, problem.H),
        lambda params, xs, lengths: nnx.merge(definition, params, rest, copy=True)(xs, seq_lengths=lengths),
    )


def nnx_step(problem: Problem) -> Stepper:
    from flax import nnx

    cell = nnx_cell(problem)
    carry = cell.initialize_carry((problem.B, problem.I), nnx.Rngs(0))
    definition, params, rest = nnx.split(cell, nnx.Param, ...)
    return Stepper(
        drawn(params, problem.H),
        carry,
        lambda params, carry, x: nnx.merge(definition, params, rest, copy=True)(carry, x),
    )


def haiku_core(problem: Problem) -> Any:
    import haiku as hk

    return {"elman": hk.VanillaRNN, "lstm": hk.LSTM, "gru": hk.GRU}[problem.cell](problem.H)


def haiku(problem: Problem) -> Model:
    import haiku as hk

    if problem.variant == "masked":
        raise NotOffered("no lengths in hk.dynamic_unroll")

    def run(xs):
        def unroll(reverse):
            core = haiku_core(problem)
            return hk.dynamic_unroll(core, xs, core.initial_state(problem.B), reverse=reverse)[0]

        if problem.variant == "bidirectional":
            return jnp.concatenate([unroll(False), unroll(True)], axis=-1)
        return unroll(False)

    net = hk.without_apply_rng(hk.transform(run))
    xs = jax.ShapeDtypeStruct((problem.T, problem.B, problem.I), jnp.float32)
    params = drawn(jax.eval_shape(net.init, jax.random.key(0), xs), problem.H)
    return Model(params, lambda params, xs, lengths: net.apply(params, xs))


def haiku_step(problem: Problem) -> Stepper:
    import haiku as hk

    net = hk.without_apply_rng(hk.transform(lambda carry, x: haiku_core(problem)(x, carry)))
    start = hk.without_apply_rng(hk.transform(lambda: haiku_core(problem).initial_state(problem.B)))
    carry, x = start.apply({}), jnp.zeros((problem.B, problem.I))
    params = drawn(jax.eval_shape(net.init, jax.random.key(0), carry, x), problem.H)
    return Stepper(params, carry, lambda params, carry, x: net.apply(params, carry, x)[::-1])


def equinox_cell(problem: Problem) -> Any:
    import equinox as eqx

    if problem.cell == "elman":
        raise NotOffered("no Elman cell")
    return {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}[problem.cell](problem.I, problem.H, key=jax.random.key(0))


def equinox_carry(problem: Problem) -> Any:
    h = jnp.zeros((problem.B, problem.H))
    return (h, h) if problem.cell == "lstm" else h


def equinox(problem: Problem) -> Model:
    import equinox as eqx

    if problem.variant == "masked":
        raise NotOffered("no lengths; its user writes the loop")
    arrays, static = eqx.partition([equinox_cell(problem)] * problem.directions, eqx.is_array)

    def apply(params, xs, lengths):
        def run(cell, reverse):
            def step(carry, x):
                carry = jax.vmap(cell)(x, carry)
                return carry, carry[0] if problem.cell == "lstm" else carry

            return jax.lax.scan(step, equinox_carry(problem), xs, reverse=reverse)[1]

        cells = eqx.combine(params, static)
        return jnp.concatenate([run(cell, reverse=n == 1) for n, cell in enumerate(cells)], axis=-1)

    return Model(drawn(arrays, problem.H), apply)


def equinox_step(problem: Problem) -> Stepper:
    import equinox as eqx

    arrays, static = eqx.partition(equinox_cell(problem), eqx.is_array)

    def step(params, carry, x):
        carry = jax.vmap(eqx.combine(params, static))(x, carry)
        return carry, carry[0] if problem.cell == "lstm" else carry

    return Stepper(drawn(arrays, problem.H), equinox_carry(problem), step)


def keras_on_jax() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "jax")  # read at the first import
    import keras

    if keras.backend.backend() != "jax":
        raise NotOffered(f"Keras was imported with the backend {keras.backend.backend()}")
    return keras


def keras(problem: Problem) -> Model:
    """Batch first: Keras has no other form."""
    layers = keras_on_jax().layers
    kind = {"elman": layers.SimpleRNN, "lstm": layers.LSTM, "gru": layers.GRU}[problem.cell]
    net = kind(problem.H, return_sequences=True)
    if problem.variant == "bidirectional":
        net = layers.Bidirectional(net)
    net.build((problem.B, problem.T, problem.I))
    rest = [variable.value for variable in net.non_trainable_variables]

    def apply(params, xs, lengths):
        mask = None if lengths is None else jnp.arange(problem.T) < lengths[:, None]
        return net.stateless_call(params, rest, xs, mask=mask)[0]

    params = drawn([np.asarray(variable.value) for variable in net.trainable_variables], problem.H)
    return Model(params, apply, batch_axis=0)


def keras_step(problem: Problem) -> Stepper:
    layers = keras_on_jax().layers
    kind = {"elman": layers.SimpleRNNCell, "lstm": layers.LSTMCell, "gru": layers.GRUCell}[problem.cell]
    cell = kind(problem.H)
    cell.build((problem.B, problem.I))
    rest = [variable.value for variable in cell.non_trainable_variables]
    carry = [jnp.zeros((problem.B, problem.H))] * (2 if problem.cell == "lstm" else 1)

    def step(params, carry, x):
        y, carry = cell.stateless_call(params, rest, x, carry)[0]
        return carry, y

    params = drawn([np.asarray(variable.value) for variable in cell.trainable_variables], problem.H)
    return Stepper(params, carry, step)


def cudnn(problem: Problem) -> Model:
    """``jax.experimental.rnn.lstm``, batch first; an NVIDIA GPU only."""
    from jax.experimental import rnn

    if jax.default_backend() != "gpu":
        raise NotOffered("off a GPU")
    if problem.cell != "lstm":
        raise NotOffered(f"a cell {problem.cell}")
    if problem.dtype != "float32":
        raise NotOffered(problem.dtype)
    I, H = problem.I, problem.H
    both = problem.variant == "bidirectional"
    zeros = jnp.zeros((problem.directions, problem.B, problem.H))

    def apply(params, xs, lengths):
        valid = jnp.full(problem.B, problem.T, jnp.int32) if lengths is None else lengths
        return rnn.lstm(xs, zeros, zeros, params, valid, I, H, num_layers=1, dropout=0.0, bidirectional=both)[0]

    weights = jax.eval_shape(lambda: rnn.init_lstm_weight(jax.random.key(0), I, H, 1, both))
    return Model(drawn(weights, problem.H), apply, batch_axis=0)
