"""Under jax.numpy_rank_promotion("raise") and jax.numpy_dtype_promotion("strict") everything runs: nothing is left to
NumPy's silent rules, and who turns them off in his own program may use ours.

What the switches forbid is refused while tracing, so what can be traced is not compiled here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn as jr
from jaxrnn import devices, gradients, training
from tests.cases import CASES, CELLS, FLAGS, WRAPPERS, B, H, I, T, differentiable, x_shape
from tests.turns import case_by_flags, in_turn

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def strict(request):
    with (
        jax.enable_x64(getattr(request, "param", False)),
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        yield


def floats():
    return jnp.float64 if jax.config.jax_enable_x64 else jnp.float32


def shapes(tree):
    """Shapes of a tree whose floats are of the widest dtype, as ``draw`` makes them."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, floats() if jnp.issubdtype(a.dtype, jnp.floating) else a.dtype), tree
    )


def total(tree):
    return sum(jnp.sum(a).real for a in differentiable(tree)[0])


def gradient_of(layer, params, xs, carry, options):
    def loss(params, xs, carry, options):
        return total(layer.apply(params, xs, carry, **options))

    return jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2), allow_int=True))(params, xs, carry, options)


# float64 on gives integers of two widths, and so more to refuse.
BITS = [pytest.param(False, marks=pytest.mark.full, id=""), pytest.param(True, id="x64")]


@pytest.mark.parametrize(
    ("case", "flags", "strict"),
    [
        pytest.param(*row.values, bool(n % 2), id=row.id, marks=row.marks)  # with and without float64 in turn
        for n, row in enumerate(case_by_flags(FLAGS, list(in_turn(CASES, 3))).args[1])
    ],
    indirect=["strict"],
)
def test_every_case_and_its_gradient(case, flags):
    layer = case.layer
    params = shapes(jax.eval_shape(layer.init, KEY))
    carry = shapes(jax.eval_shape(lambda p: layer.initial_carry(p, (B,)), params)) if flags.given_carry else None
    options = {name: np.asarray(a) for name, a in flags.options.items()}  # lengths int64, under x64
    gradient_of(layer, params, jax.ShapeDtypeStruct((T, B, *case.x_shape), floats()), carry, options)


def xs(*shape):
    return jax.ShapeDtypeStruct(shape or (T, B, I), floats())


def run_with(cell, xs, **options):
    layer = cell if isinstance(cell, jr.Layer) else jr.scan(cell)
    return layer.apply(layer.init(KEY), xs.astype(jnp.float32), **options)


def stepped(cell, x):
    params = cell.init(KEY)
    carry = cell.initial_carry(params, (B,))
    outputs = cell.step(params, carry, x)
    return outputs, cell.gates(params, carry, x) if cell.gates else None


def of_gradients(name, **options):
    """One of ``jr.gradients`` on an LSTM and its parameters, (T, B, I) and, where it takes one, a loss."""

    def call(xs):
        cell = jr.scan(CELLS["gru_after"]) if name in ("gradient_flow", "bptt_contributions") else CELLS["lstm"]
        given = (cell, cell.init(KEY), xs.astype(jnp.float32))
        losses = ("gradient_flow", "bptt_contributions", "jacobian_penalty")
        return getattr(gradients, name)(*given, *((lambda carry, ys: total(ys),) if name in losses else ()), **options)

    return call


def at_one_step(xs, batch_shape=()):
    """``(cell, params, carry, x)``"""
    cell = CELLS["lstm"]
    params = cell.init(KEY)
    return cell, params, cell.initial_carry(params, batch_shape), xs[0, 0].astype(jnp.float32)


def streamed(xs):
    cell = jr.chain(CELLS["gru_after"], jr.readout(H, 2))
    params, served = cell.init(KEY), jr.stream(cell)
    flags = jnp.array([True, False, True])
    return served.step(params, served.initial_carry(params, (B,)), xs[0].astype(jnp.float32), mask=flags, resets=flags)


def learning(accumulate, nonfinite):
    def call(xs):
        model = jr.stack(jr.gru(I, H), jr.dropout(0.1), jr.readout(H, 2))

        def loss(params, xs, key):
            ys = model.apply(params, xs, key=key)[1]
            return jr.masked_mean(jnp.square(ys).sum(-1), lengths=np.array([2, 3, 0])), {"n": jnp.ones((), jnp.int32)}

        learn = training.loop(model.init, loss, optax.sgd(0.1), accumulate=accumulate, nonfinite=nonfinite)
        state = learn.init(KEY)
        best = training.init_best(state.params)
        state, measures = learn.run(state, lambda key, n: xs.astype(jnp.float32) * n.astype(jnp.float32), 2)
        best = training.update_best(best, measures["loss"][0], state.step, state.params)
        return state, measures, best, training.first_nonfinite(measures["loss"])

    return call


LENGTHS = np.array([2, 3, 0])
OPTIONS = {"lengths": LENGTHS, "start": np.int64(2), "key": KEY}
CALLS = {
    **{
        f"run with noise, {name}": functools.partial(run_with, wrap(cell), **OPTIONS)
        for name, (wrap, cell) in WRAPPERS.items()
    },
    "dropout": lambda xs: jr.scan(jr.dropout(0.5)).apply((), xs, **OPTIONS),
    "chain": functools.partial(run_with, CELLS["chain"], **OPTIONS),
    "residual": functools.partial(run_with, jr.residual(jr.scan(jr.lstm(I, I), reverse=True)), **OPTIONS),
    "tbptt": functools.partial(run_with, jr.tbptt(jr.gru(I, H), window=3, stride=2, checkpoint=True), **OPTIONS),
    "bidirectional": functools.partial(run_with, jr.bidirectional(jr.gru(I, H), jr.lstm(I, H), merge="mean")),
    "trace_gates": lambda xs: jr.trace_gates(
        CELLS["lstm"], CELLS["lstm"].init(KEY), xs.astype(jnp.float32), lengths=LENGTHS
    ),
    "stream": streamed,
    "last": lambda xs: jr.last(xs, LENGTHS),
    "mean_pool": lambda xs: jr.mean_pool(xs, lengths=LENGTHS, mask=jnp.ones((T, B), bool)),
    "max_pool": lambda xs: jr.max_pool(xs, lengths=LENGTHS),
    "masked_mean": lambda xs: jr.masked_mean(xs[..., 0], lengths=LENGTHS),
    "masked_mean of booleans": lambda xs: jr.masked_mean(xs[..., 0] > 0, lengths=LENGTHS),
    "gradient_flow": of_gradients("gradient_flow", lengths=LENGTHS),
    "norm_by_lag": lambda xs: gradients.norm_by_lag(xs[..., 0], lengths=LENGTHS),
    "step_jacobian": lambda xs: gradients.step_jacobian(*at_one_step(xs)),
    "linear_analysis": lambda xs: gradients.linear_analysis(*at_one_step(xs, (B,))),
    "bptt_contributions": of_gradients("bptt_contributions", lengths=LENGTHS),
    "jacobian_penalty": of_gradients("jacobian_penalty", lengths=LENGTHS),
    "lyapunov_spectrum": of_gradients("lyapunov_spectrum", k=2, burn_in=1),
    "log_singular_values": of_gradients("log_singular_values", lag=2),
    "learning": learning(1, "keep"),
    "learning, accumulated": learning(2, "skip"),
}


@pytest.mark.parametrize("strict", BITS, indirect=True)
@pytest.mark.parametrize("name", CALLS)
def test_other_calls(name):
    jax.eval_shape(CALLS[name], xs())


@pytest.mark.parametrize("method", ["adam", pytest.param("newton", marks=pytest.mark.full)])
def test_calls_that_need_values(method):
    cell, starts = jr.elman(1, 2), jnp.zeros((3, 2))
    found = gradients.find_fixed_points(cell, cell.init(KEY), starts, jnp.zeros(1), method=method, steps=2)
    assert found.carry.shape == (1, 2)
    assert devices.ensemble(lambda a, b: a + b)(jnp.ones((3, 2)), jnp.ones(2)).shape == (3, 2)


KINDS = (
    *("elman", "lstm", "gru", "peephole_lstm", "cifg_lstm", "mgu", "ugrnn", "indrnn", "antisymmetric_rnn", "lem"),
    *("conv_lstm", "conv_gru"),
)
CONVOLUTIONAL = {"conv_lstm": {"spatial_shape": 4, "peephole": True}, "conv_gru": {"spatial_shape": 4}}
DTYPES = (("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", None))


@pytest.mark.parametrize(
    ("kind", "param_dtype", "dtype"),
    [
        pytest.param(kind, *dtypes, marks=() if (n - m) % len(DTYPES) == 0 else pytest.mark.full)
        for n, kind in enumerate(KINDS)
        for m, dtypes in enumerate(DTYPES)
    ],
)
def test_other_dtypes(kind, param_dtype, dtype):
    own = CONVOLUTIONAL.get(kind, {"learned_carry": True})
    cell = getattr(jr, kind)(I, H, param_dtype=param_dtype, dtype=dtype, **own)
    x = jax.ShapeDtypeStruct((B, *x_shape(cell)), dtype or param_dtype)
    jax.eval_shape(functools.partial(stepped, cell), x)
