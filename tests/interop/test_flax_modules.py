"""Any jaxrnn cell or layer as a Flax module, linen's and nnx's: runs, draws, trains, holds its state."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrnn as jr

pytest.importorskip("flax")
from flax import linen as nn
from flax import nnx

from jaxrnn.interop.flax import from_linen, from_nnx, linen_cell, linen_variables, nnx_cell, nnx_layer
from tests.interop.comparing import (
    LENGTHS,
    B,
    H,
    I,
    T,
    assert_close,
    assert_same,
    drawn_params,
    quick_jit,
    start_of,
    xs_of,
)
from tests.user_cells import clockwork

pytestmark = pytest.mark.usefixtures("x64")


def own_cell():
    """A user's cell: parameters as a dict with a None and a list in it, a learned initial state."""

    def init(key):
        return {"W": [jax.random.normal(key, (I, H)), None], "start": jnp.full(H, 0.5)}

    def initial_carry(params, batch_shape=()):
        return (jnp.broadcast_to(params["start"], (*batch_shape, H)),)

    def step(params, carry, x):
        h = jnp.tanh(carry[0] + x @ params["W"][0])
        return (h,), (h, h.sum(-1))

    return jr.Cell(init, initial_carry, step)


MODULES = {"peephole lstm": jr.peephole_lstm(I, H, learned_carry=True), "own": own_cell(), "clockwork": clockwork(I, H)}


@pytest.mark.parametrize("library", ["linen", "nnx"])
@pytest.mark.parametrize(("name", "reverse"), [("peephole lstm", True), ("own", False), ("clockwork", False)])
def test_cells_in_their_rnn(name, library, reverse):
    """nn.RNN and nnx.RNN of any cell run as jr.scan does: values, final carry, gradients."""
    cell = MODULES[name]
    params = drawn_params(cell, "float32")
    xs = xs_of("float32")
    options = {"time_major": True, "return_carry": True, "reverse": reverse, "keep_order": True}
    layer = jr.scan(cell, reverse=reverse, plan="plain")
    valid = np.arange(T)[:, None] < LENGTHS

    def theirs(params, xs):
        if library == "linen":
            rnn = nn.RNN(linen_cell(cell), **options)
            variables = {"params": {"cell": linen_variables(params)["params"]}}
            return rnn.apply(variables, xs, seq_lengths=LENGTHS)
        return nnx.RNN(nnx_cell(cell, params), **options)(xs, seq_lengths=LENGTHS)

    def loss(run, params, xs):
        carry, ys = run(params, xs)
        ys = jax.tree.map(lambda a: jnp.where(valid.reshape(valid.shape + (1,) * (a.ndim - 2)), a, 0), ys)
        return sum(jnp.sin(a).sum() for a in jax.tree.leaves((carry, ys))), (carry, ys)

    def grad(run):
        return quick_jit(jax.grad(lambda *inputs: loss(run, *inputs), argnums=(0, 1), has_aux=True))(params, xs)

    def ours(params, xs):
        return layer.apply(params, xs, lengths=LENGTHS)

    assert_close(grad(theirs), grad(ours), "float32")


def test_linen_cell_draws_as_init_does():
    """Shapes, names and laws of the cell's own init; from_linen takes them back."""
    cell = jr.lstm(I, H, forget_bias=3.0)
    rnn = nn.RNN(linen_cell(cell))
    variables = rnn.init(jax.random.key(0), jnp.ones((B, T, I), "float32"))
    own = variables["params"]["cell"]
    back, params = from_linen(rnn.cell, own)
    assert back is cell
    np.testing.assert_array_equal(params.b, np.repeat([0.0, 3.0, 0.0, 0.0], H))
    np.testing.assert_allclose(params.W_hh[:, :H] @ params.W_hh[:, :H].T, np.eye(H), atol=1e-6)  # orthogonal
    assert_same(linen_variables(params)["params"], own)
    with pytest.raises(ValueError, match="expected the parameters W_xh, W_hh, b, but 'b' is not among those given"):
        from_linen(rnn.cell, {name: own[name] for name in ("W_xh", "W_hh")})


def test_bare_arrays_and_none_survive():
    cell = own_cell()
    module = nnx_cell(cell, rngs=nnx.Rngs(0))
    assert sorted(".".join(map(str, path)) for path in nnx.to_flat_state(nnx.state(module)).paths) == [
        "params.W.0",
        "params.start",
    ]
    back, params = from_nnx(module)
    assert back is cell
    assert params["W"][1] is None
    bare = jr.Cell(lambda key: jnp.ones(()), lambda p, b=(): jnp.zeros((*b, I)), lambda p, c, x: (c + p * x, c))
    assert from_nnx(nnx_cell(bare, jnp.asarray(2.0)))[1] == 2.0


MODEL = jr.stack(
    jr.bidirectional(jr.gru(I, H, learned_carry=True), jr.lstm(I, H), merge="sum"), jr.dropout(0.5), jr.readout(H, 2)
)


def test_layer_trains_as_the_functional_step():
    """One step of nnx.Optimizer under nnx.jit gives the parameters of the functional step."""
    model = jr.stack(jr.elman(I, H, learned_carry=True), jr.readout(H, 2))
    params = drawn_params(model, "float32")
    xs = xs_of("float32")

    def loss(ys):
        return jnp.square(ys).mean()

    module = nnx_layer(model, params)
    optimizer = nnx.Optimizer(module, optax.sgd(0.5), wrt=nnx.Param)

    @nnx.jit
    def train(module, optimizer, xs):
        optimizer.update(module, nnx.grad(lambda module: loss(module(xs, lengths=LENGTHS)[1]))(module))

    train(module, optimizer, xs)

    @jax.jit
    def functional(params, xs):
        gradient = jax.grad(lambda params: loss(model.apply(params, xs, lengths=LENGTHS)[1]))(params)
        updates, _ = optax.sgd(0.5).update(gradient, optax.sgd(0.5).init(params))
        return optax.apply_updates(params, updates)

    assert_close(module.jaxrnn_params(), functional(params, xs), "float32")


def test_layer_state_goes_round():
    module = nnx_layer(MODEL, rngs=nnx.Rngs(0, dropout=1))
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    paths = {".".join(map(str, path)) for path in nnx.to_flat_state(params).paths}
    assert {"params.0.forward.W_xh", "params.0.forward.h0", "params.0.backward.b", "params.2.W_hy"} <= paths
    assert_same(from_nnx(nnx.merge(graph, params, rest))[1], module.jaxrnn_params())
    other = nnx_layer(MODEL, rngs=nnx.Rngs(7))
    nnx.update(other, params)
    assert_same(other.jaxrnn_params(), module.jaxrnn_params())


def test_layer_options_reach_apply():
    layer = jr.scan(jr.lstm(I, H))
    module = nnx_layer(jr.lstm(I, H), rngs=nnx.Rngs(0))
    params, xs = module.jaxrnn_params(), xs_of("float32")
    start = start_of(layer, params, "float32")
    options = {
        "lengths": LENGTHS,
        "mask": np.arange(T)[:, None] != [2, 0, 9],
        "resets": np.arange(T)[:, None] == [1, 3, 2],
    }
    want = jax.jit(layer.apply)(params, xs, start, **options)
    assert_close(nnx.jit(lambda module, xs, start: module(xs, start, **options))(module, xs, start), want, "float32")


def test_layer_noise():
    """A stream's keys in train mode, none in evaluation, the caller's where given."""
    model = jr.stack(jr.elman(I, H), jr.dropout(0.5))
    params, xs, key = drawn_params(model, "float32"), xs_of("float32"), jax.random.key(5)
    module = nnx_layer(model, params, rngs=nnx.Rngs(0))
    run = nnx.jit(lambda module, xs, key=None: module(xs, key=key)[1])
    apply = jax.jit(lambda key=None: model.apply(params, xs, key=key)[1])
    first, second = run(module, xs), run(module, xs)
    assert (first != second).any()
    assert_close(run(module, xs, key), apply(key), "float32")
    module.eval()
    assert_close(run(module, xs), apply(), "float32")
    module.train()
    third = run(module, xs)
    assert (third != first).any() and (third != second).any()


def test_layer_holds_a_stream_only_for_noise():
    assert not nnx.state(nnx_layer(jr.lstm(I, H), rngs=nnx.Rngs(0)), nnx.RngState)
    assert nnx.state(nnx_layer(clockwork(I, H), rngs=nnx.Rngs(0)), nnx.RngState)  # its step may be anything


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nnx_cell(jr.lstm(I, H)), "nnx_cell: expected params, or rngs to draw them from, got neither"),
        (lambda: nnx_layer(jr.lstm(I, H)), "nnx_layer: expected params, or rngs to draw them from, got neither"),
        (lambda: nnx_cell(jr.dropout(0.5), rngs=nnx.Rngs(0)), "nnx_cell: the noise of dropout has no counterpart"),
        (lambda: linen_cell(jr.dropout(0.5)), "linen_cell: the noise of dropout has no counterpart: it is drawn for a"),
        (lambda: linen_cell(jr.embedding(5, H)), "linen_cell: x_ndim=0 of embedding has no counterpart"),
        (
            lambda: nnx_layer(MODEL, drawn_params(MODEL, "float32"))(jnp.zeros((T, I), "float32")),
            "nnx_layer: stack in train mode draws from a stream, but was made without rngs",
        ),
    ],
    ids=["no params", "layer without params", "noise", "linen noise", "tokens", "no stream"],
)
def test_refused_modules(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
