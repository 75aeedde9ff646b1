"""Gates of one activation as pieces of one array, in kernels: which, and that no number changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn.planning.constants import DEFAULT, using
from tests.cases import draw, randomised
from tests.programs import gradient
from tests.test_passes import count
from tests.user_cells import textbook_lstm

T, B, I, H = 5, 2, 3, 4
CELLS = {
    "lstm": (jr.lstm(I, H), ["3 of logistic"]),
    "textbook": (textbook_lstm(I, H), ["3 of logistic"]),
    "peephole": (jr.peephole_lstm(I, H), ["2 of logistic"]),  # the third sees the new cell state
    "gru": (jr.gru(I, H), ["2 of logistic"]),
    "after": (jr.gru(I, H, reset="after"), ["2 of logistic"]),
    "normed": (jr.lstm(I, H, layer_norm="ba2016"), ["2 of logistic"]),  # sums, divided: their order is their own
    "elman": (jr.elman(I, H), []),
}


def of_step(step, widths):
    """A cell whose step is given the pieces of ``h @ U`` and of ``x @ W + b``; the last is as wide as h."""
    total, n = sum(widths), widths[-1]
    ends = np.cumsum(widths)[:-1]

    def init(key):
        return randomised({"U": jnp.ones((n, total)), "W": jnp.ones((I, total)), "b": jnp.ones((total,))})

    def run(p, h, x):
        of_h = jnp.split(h @ p["U"], ends, axis=-1)
        of_x = jnp.split(x @ p["W"] + jax.lax.broadcast_to_rank(p["b"], x.ndim), ends, axis=-1)
        new = step(h, of_h, of_x)
        return new, new

    return jr.Cell(init, lambda params, batch: jnp.zeros((*batch, n), params["U"].dtype), run)


def crossed(h, a, b):
    """Pieces of two products meet, two activations take turns, the widths differ."""
    s, t = jnp.tanh(a[0] + b[0]), jax.nn.sigmoid(a[1] + b[1])
    u, v = jnp.tanh(a[2] + b[2]), jax.nn.sigmoid(a[3] + b[3])
    return (s.sum(-1, keepdims=True) + u.mean(-1, keepdims=True)) * t * v + h


def other_pieces(h, a, b):
    """The second piece of one product meets the first of the other, and the other way round."""
    return jnp.sin(a[0] + b[1]) * jnp.sin(a[1] + b[0]) + h * a[2] * b[2]


def read_twice(h, a, b):
    """A piece that something else reads stays where it is."""
    return jnp.tanh(a[0]) * jnp.tanh(a[1]) * a[1] + jnp.tanh(b[2]) + h * a[2] * b[0] * b[1]


def one_column(h, a, b):
    """What is the same for all columns: numbers, which may be others."""
    return jnp.exp(0.2 * a[0]) * jnp.exp(0.1 * a[2]) * jnp.exp(0.1 * a[1]) + jnp.cos(b[0]) + h * b[1] * jnp.cos(b[2])


OWN = {
    "crossed": (of_step(crossed, (2, 4, 3, 4)), ["2 of logistic", "2 of tanh"]),
    "other pieces": (of_step(other_pieces, (4, 4, 4)), ["2 of sin"]),
    "read twice": (of_step(read_twice, (4, 4, 4)), []),
    "one column": (of_step(one_column, (4, 4, 4)), ["2 of cos", "2 of exp"]),
}


def problem(cell, B=B):
    return randomised(cell.init(jax.random.key(0))), draw((T, B, I), 1)


@pytest.mark.parametrize("name", [*CELLS, *OWN])
def test_gates_of_one_activation_are_one(name, x64):
    """Values and gradients stay, of float64, but for the order of sums; under vmap too, where the loop is no kernel."""
    cell, joined = (CELLS | OWN)[name]
    params, xs = problem(cell)
    (scan,) = jr.explain(jr.scan(cell), params, xs).scans
    assert sorted(scan.gates) == joined and scan.one_kernel == ["forward", "backward"]
    before, after = (scan.programs[of].primal.program for of in ("fuse", "join_gates"))
    for line in joined:
        many, _, activation = line.partition(" of ")
        assert count(before.ops, activation) - count(after.ops, activation) == int(many) - 1

    several = jnp.stack([xs, -xs])

    def everything(plan):
        one = gradient(cell, plan)
        return one(params, xs), jax.vmap(one, (None, 0))(params, several), jr.scan(cell, plan=plan).apply(params, xs)

    got, want = jax.jit(lambda: [everything(plan) for plan in ("auto", "plain")])()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), got, want)


def test_only_in_kernels_and_with_a_gradient():
    cell = jr.lstm(I, H)
    params, xs = problem(cell)
    assert jr.explain(jr.scan(cell, plan=jr.Plan(one_kernel=False)), params, xs).scans[0].gates == []
    assert jr.explain(jr.scan(cell), *problem(cell, 64)).scans[0].gates == []
    text = str(jr.explain(jr.scan(cell), params, xs))
    assert "activations of gates done as one: 3 of logistic" in text
    run, train = (jax.jit(f).lower(params, xs).as_text() for f in (jr.scan(cell).apply, gradient(cell, "auto")))
    assert (run.count("stablehlo.exponential"), train.count("stablehlo.exponential")) == (3, 1)


@pytest.mark.parametrize("name, steps, joined", [("lstm", 4, 3), ("lstm", 3, 2), ("textbook", 3, 3)])
def test_weights_are_copied_where_they_are_few(name, steps, joined):
    """128 numbers, where a step makes 32, to bring three gates together; those that fuse copies come in any order."""
    cell, _ = CELLS[name]
    params, xs = problem(cell)
    with using(DEFAULT._replace(fuse_up_to=0)):
        (scan,) = jr.explain(jr.scan(cell, plan=jr.Plan(fuse=None)), params, xs[:steps]).scans
    assert scan.gates == [f"{joined} of logistic"]


@pytest.mark.multidevice
def test_a_batch_over_devices_saves_the_same(x64):
    cell = jr.lstm(I, H)
    params, xs = problem(cell)
    split = jax.device_put(xs, jax.NamedSharding(jr.devices.batch_mesh(2), jax.P(None, "batch")))
    got, want = (jax.jit(gradient(cell, plan))(params, given) for plan, given in (("auto", split), ("plain", xs)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), jax.device_get(got), want)
