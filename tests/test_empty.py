"""Sequences of no steps, batches of no sequences: values and gradients of every case, and what builds upon them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn as jr
from jaxrnn import gradients, training
from tests.cases import (
    CASES,
    CELLS,
    RUNS,
    WRAPPERS,
    B,
    Case,
    H,
    I,
    differentiable,
    draw,
    of_cell,
    over_time,
    randomised,
)
from tests.turns import in_turn

KEY = jax.random.key(0)
CLIP, CLIPPED = WRAPPERS["cotangent_clip"]
MORE = [
    of_cell("cotangent_clip", CLIP(CLIPPED)),
    of_cell("cotangent_clip, values", jr.cotangent_clip(jr.gru(I, H, learned_carry=True), max_value=0.5), reverse=True),
    of_cell("dropout", jr.dropout(0.5)),
    Case("residual layer", lambda **options: jr.residual(over_time(jr.lstm(I, I), **options)), None, "none"),
    Case("tbptt", lambda **options: jr.tbptt(over_time(jr.gru(I, H), **options), window=3, stride=1), None, "none"),
    Case("tbptt, blocks", lambda **options: jr.tbptt(over_time(jr.gru(I, H), **options), window=1), None, "none"),
]
SHAPES = [(0, (B,)), (3, (0,)), (3, (2, 0)), (3, (0, 2)), (0, ()), (0, (0,))]


def cases():
    """Every case with one or two of the shapes in turn, T = 0 or B = 0; the other pairs under ``--full``."""
    of_each = [(case, 6) for case in in_turn(CASES, 2)] + [(case, 2) for case in in_turn(MORE)]
    for (n, (case, period)), (m, shape) in itertools.product(enumerate(of_each), enumerate(SHAPES)):
        marks = case.marks if (n // len(RUNS) - m) % period == 0 else pytest.mark.full
        yield pytest.param(*case.values, *shape, bool((n + m) % 2), id=f"{case.id}-{shape[0]}-{shape[1]}", marks=marks)


@pytest.mark.parametrize(("case", "T", "batch_shape", "given"), list(cases()))
def test_every_case_and_its_gradient(case, T, batch_shape, given):
    """Of no steps: the carry is that of the start, and so is its gradient; of no sequences: nothing, and zeros."""
    layer = case.layer
    params = randomised(jax.eval_shape(layer.init, KEY))
    start = randomised(layer.initial_carry(params, batch_shape), 1)
    flags = {
        "lengths": jnp.ones(batch_shape, int),
        "mask": jnp.ones((T, *batch_shape), bool),
        "resets": jnp.zeros((T, *batch_shape), bool),
        "key": KEY,
    }
    floats, join = differentiable((params, start))
    xs = draw((T, *batch_shape, *case.x_shape))

    def start_of(floats):
        params, start = join(floats)
        return start if given else layer.initial_carry(params, batch_shape)

    @jax.jit
    def run(floats, xs):
        def loss(floats, xs):
            params, start = join(floats)
            carry, ys = layer.apply(params, xs, start, **flags) if given else layer.apply(params, xs)
            return sum(a.sum().real for a in differentiable((carry, ys))[0]), (carry, ys)

        grads, outcome = jax.grad(loss, argnums=(0, 1), has_aux=True)(floats, xs)
        return grads, outcome, (start_of(floats), jax.grad(lambda floats: total(start_of(floats)))(floats))

    (grads, by_xs), (carry, ys), (expected, expected_grads) = run(floats, xs)
    assert by_xs.shape == xs.shape and jax.tree.leaves(ys)[0].shape[: 1 + len(batch_shape)] == (T, *batch_shape)
    for a, b in zip(jax.tree.leaves((carry, grads)), jax.tree.leaves((expected, expected_grads)), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def total(tree):
    return sum((a.sum().real for a in differentiable(tree)[0]), jnp.zeros(()))


# ---- what is built upon runs ---------------------------------------------------------------------


LSTM = CELLS["lstm"]
PARAMS = randomised(jax.eval_shape(LSTM.init, KEY))
OF_NONE = {
    "gradient_flow": lambda xs: gradients.gradient_flow(LSTM, PARAMS, xs, lambda *run: total(run)),
    "bptt_contributions": lambda xs: gradients.bptt_contributions(LSTM, PARAMS, xs, lambda *run: total(run)),
    "jacobian_penalty": lambda xs: gradients.jacobian_penalty(LSTM, PARAMS, xs, lambda *run: total(run)),
    "lyapunov_spectrum": lambda xs: gradients.lyapunov_spectrum(LSTM, PARAMS, xs, k=2),
    "log_singular_values": lambda xs: gradients.log_singular_values(LSTM, PARAMS, xs, lag=2),
    "step_jacobian": lambda xs: gradients.step_jacobian(
        LSTM, PARAMS, LSTM.initial_carry(PARAMS, xs.shape[1:-1]), xs[0]
    ),
    "trace_gates": lambda xs: jr.trace_gates(LSTM, PARAMS, xs, lengths=jnp.ones(xs.shape[1:-1], int)),
    "last": lambda xs: jr.last(xs),
    "mean_pool": lambda xs: jr.mean_pool(xs),
    "max_pool": lambda xs: jr.max_pool(xs, mask=jnp.ones(xs.shape[:-1], bool)),
}


@pytest.mark.parametrize("batch_shape", [(0,), (2, 0)])
@pytest.mark.parametrize("name", OF_NONE)
def test_measures_of_no_sequences(name, batch_shape):
    """Traced: there is no number to compute but the zeros that sums over nothing are."""
    found = jax.eval_shape(OF_NONE[name], jax.ShapeDtypeStruct((3, *batch_shape, I), jnp.float32))
    assert all(0 in a.shape or a.shape[:1] == (3,) or a.shape == () for a in jax.tree.leaves(found))


@pytest.mark.parametrize("name", ["gradient_flow", "bptt_contributions", "jacobian_penalty", "lyapunov_spectrum"])
def test_measures_of_no_steps_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name}: xs has T = 0 steps.*; give at least 1"):
        OF_NONE[name](jnp.ones((0, 2, I)))


def test_a_diagnosis_of_no_sequences_is_refused():
    with pytest.raises(ValueError, match=r"diagnose: xs holds no sequence, its batch is \(2, 0\); give at least one"):
        gradients.diagnose(LSTM, PARAMS, jnp.ones((3, 2, 0, I)))


def test_a_training_step_on_nothing_changes_nothing():
    def loss(params, xs, key):
        return jr.masked_mean(jr.scan(LSTM).apply(params, xs)[1].sum(-1)), {}

    learn = training.loop(LSTM.init, loss, optax.sgd(0.1))
    state = learn.init(KEY)
    after, measures = jax.jit(learn.step)(state, jnp.ones((3, 0, I)))
    assert measures == {"loss": 0, "grad_norm": 0}
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
