"""nnx_layer beside Flax's own layers: carries given, bare tuples, tokens, fields with padding; carry_init converted."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr

pytest.importorskip("flax")
from flax import linen as nn
from flax import nnx

from jaxrnn.interop.flax import from_linen, from_nnx, nnx_layer
from tests.interop.comparing import LENGTHS, B, H, I, T, assert_close, drawn, drawn_params, quick_jit, xs_of

VALID = (np.arange(T)[:, None] < LENGTHS)[..., None]
FLAX = {"simple": nnx.SimpleCell, "lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}


def filled(kind, seed=0, **options):
    """A cell of Flax's, undrawn, then with random weights, biases too."""
    zeros = dict.fromkeys(("kernel_init", "recurrent_kernel_init"), jax.nn.initializers.zeros)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Flax's own, of carry_init
        cell = FLAX[kind](I, H, rngs=nnx.Rngs(0), **zeros, **options)
    nnx.update(cell, drawn(nnx.state(cell), "float32", seed=seed))
    return cell


def state(seed, size=H):
    return drawn(np.zeros((B, size)), "float32", seed=seed)


def swapped(carry):
    """(c, h) as ours, in whatever it stands; a state alone as it is."""
    if not isinstance(carry, tuple):
        return carry
    return jr.LSTMCarry(carry[1], carry[0])


@pytest.mark.parametrize(("kind", "reverse"), [("simple", False), ("lstm", True), ("gru", False)])
def test_the_initial_carry_given(kind, reverse):
    """Values, final carry and the gradients by the initial one, with padding."""
    rnn = nnx.RNN(filled(kind), time_major=True, return_carry=True, reverse=reverse, keep_order=reverse)
    module = nnx_layer(*from_nnx(rnn))
    theirs_start = (state(3), state(4)) if kind == "lstm" else state(3)
    weights = drawn(np.zeros((T, B, H)), "float32", seed=5)

    def loss(run, start):
        carry, ys = run(start)
        ys = jnp.where(VALID, ys, 0)
        return jnp.vdot(ys, weights) + sum(jnp.sin(a).sum() for a in jax.tree.leaves(carry)), (carry, ys)

    def gradient(module, run, start):
        graph, weights, rest = nnx.split(module, nnx.Param, ...)

        @quick_jit
        def of(weights, start):
            def of_both(weights, start):
                return loss(lambda start: run(nnx.merge(graph, weights, rest), start), start)

            return jax.grad(of_both, argnums=(0, 1), has_aux=True)(weights, start)

        ((_, by_start), found) = of(weights, start)
        return by_start, found

    xs = xs_of("float32")
    by_start, (carry, ys) = gradient(module, lambda m, s: m(xs, s, lengths=LENGTHS), swapped(theirs_start))
    want_by_start, (want_carry, want) = gradient(
        rnn, lambda m, s: m(xs, initial_carry=s, seq_lengths=LENGTHS), theirs_start
    )
    assert_close((by_start, carry, ys), (swapped(want_by_start), swapped(want_carry), want))


@pytest.mark.parametrize("bare", [tuple, list])
def test_bare_tuples_in_a_carry(bare):
    """Both directions, and a stack: as nnx.Bidirectional takes and gives them."""
    both = nnx.Bidirectional(
        *(nnx.RNN(filled("gru", seed)) for seed in (0, 1)), time_major=True, return_carry=True, rngs=nnx.Rngs(0)
    )
    layer, params = from_nnx(both)
    start, xs = (state(3), state(4)), xs_of("float32")
    want_carry, want = nnx.jit(lambda both, xs, start: both(xs, initial_carry=start))(both, xs, start)
    run = nnx.jit(lambda module, xs, carry: module(xs, carry))
    carry, ys = run(nnx_layer(layer, params), xs, bare(start))
    assert isinstance(carry, jr.BiCarry)
    assert_close((tuple(carry), ys), (want_carry, want))
    stacked = nnx_layer(jr.stack(layer), (params,))
    assert_close(run(stacked, xs, bare([bare(start)]))[1], want)


def test_a_bare_pair_for_an_lstm_is_refused():
    """(h, c) and (c, h) have the same shapes: nobody would see the wrong one."""
    layer = jr.stack(jr.lstm(I, H))
    module = nnx_layer(layer, drawn_params(layer))
    with pytest.raises(
        ValueError, match=r"nnx_layer: .* a bare pair, which may be \(h, c\), .* pass jr\.LSTMCarry\(h="
    ):
        module(xs_of("float32"), ((state(3), state(4)),))
    given = (jr.LSTMCarry(h=state(3), c=state(4)),)
    assert isinstance(jax.eval_shape(lambda xs: module(xs, given), xs_of("float32"))[0][0], jr.LSTMCarry)


def test_tokens():
    """Embed and an RNN of Flax's; values and the gradient by the table, with padding."""
    rnn = nnx.RNN(filled("gru"), time_major=True)
    table = drawn(np.zeros((7, I)), "float32", seed=6)
    embed = nnx.Embed(7, I, rngs=nnx.Rngs(0), embedding_init=lambda *_: table)
    tokens = np.random.default_rng(0).integers(0, 7, (T, B)).astype("uint8")
    cell, params = from_nnx(rnn.cell)
    module = nnx_layer(jr.stack(jr.embedding(7, I), cell), (jr.cells.EmbeddingParams(table), params))

    def loss(ys):
        return jnp.sin(jnp.where(VALID, ys, 0)).sum()

    graph, weights, rest = nnx.split(rnn, nnx.Param, ...)

    @quick_jit
    def theirs(table, weights, tokens):
        def of(table, weights):
            return loss(nnx.merge(graph, weights, rest)(table[tokens], initial_carry=state(3), seq_lengths=LENGTHS))

        return jax.grad(of, argnums=(0, 1))(table, weights)[0]

    @nnx.jit
    def ours(module, tokens):
        return nnx.grad(lambda module: loss(module(tokens, ((), state(3)), lengths=LENGTHS)[1]))(module)

    by_table = ours(module, tokens)["params"]["0"]["table"][...]
    assert_close(by_table, theirs(embed(np.arange(7)), weights, tokens))
    assert np.abs(by_table).max() > 0.1


@pytest.mark.parametrize("padding", ["lengths", "mask"])
def test_fields_with_padding(padding):
    """conv_lstm beside linen's ConvLSTMCell: gates i, g, f, o there, and 1 added to f at every step."""
    S = (4, 3)
    theirs = nn.RNN(nn.ConvLSTMCell(H, (3, 3)), time_major=True, return_carry=True)
    xs = drawn(np.zeros((T, B, *S, I)), "float32", seed=1)
    shapes = jax.eval_shape(theirs.init, jax.random.key(0), xs)
    weights = drawn(shapes, "float32")

    def ours(kernels, biases=()):
        i, g, f, o = np.split(np.asarray(kernels), 4, axis=-1)
        return np.concatenate([i, f, g, o], axis=-1)

    held = weights["params"]["cell"]
    b = ours(held["ih"]["bias"] + held["hh"]["bias"])
    b[H : 2 * H] += 1
    cell = jr.conv_lstm(I, H, spatial_shape=S)
    params = jax.tree.map(
        jnp.asarray, jr.cells.ConvLSTMParams(ours(held["ih"]["kernel"]), ours(held["hh"]["kernel"]), b)
    )
    h, c = (drawn(np.zeros((B, *S, H)), "float32", seed=seed) for seed in (3, 4))
    want_carry, want = quick_jit(lambda w, xs: theirs.apply(w, xs, initial_carry=(c, h), seq_lengths=LENGTHS))(
        weights, xs
    )
    valid = VALID[..., None, None]
    spoilt = jnp.where(valid, xs, jnp.nan)  # padding may hold anything
    options = {"lengths": LENGTHS} if padding == "lengths" else {"mask": VALID[..., 0]}
    module = nnx_layer(cell, params)
    carry, ys = nnx.jit(lambda m, xs: m(xs, jr.LSTMCarry(h, c), **options))(module, spoilt)
    assert_close(ys, jnp.where(valid, want, 0))
    assert_close(carry, swapped(want_carry))


# ---- carry_init ---------------------------------------------------------------------------------

ROW = np.linspace(-1, 1, H, dtype="float32")
INITS = {
    "ones": jax.nn.initializers.ones,
    "constant": jax.nn.initializers.constant(0.3),
    "row": lambda key, shape, dtype: jnp.broadcast_to(jnp.asarray(ROW, dtype), shape),
}


@pytest.mark.parametrize(("kind", "init"), [("simple", "row"), ("lstm", "constant"), ("gru", "ones")])
@pytest.mark.parametrize("library", ["nnx", "linen"])
def test_a_fixed_carry_init_becomes_a_learned_carry(kind, init, library):
    xs = xs_of("float32")
    if library == "nnx":
        theirs = nnx.RNN(filled(kind, carry_init=INITS[init]), time_major=True, return_carry=True, rngs=nnx.Rngs(0))
        want_carry, want = theirs(xs)
        layer, params = from_nnx(theirs)
    else:
        made = {"simple": nn.SimpleCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}[kind]
        theirs = nn.RNN(made(H, carry_init=INITS[init]), time_major=True, return_carry=True)
        weights = drawn(jax.eval_shape(theirs.init, jax.random.key(0), xs), "float32")
        want_carry, want = quick_jit(theirs.apply)(weights, xs)
        layer, params = from_linen(theirs, weights)
    assert dict(layer.spec.children[0].options)["learned_carry"] is True
    carry, ys = quick_jit(layer.apply)(params, xs)
    assert_close((carry, ys), (swapped(want_carry), want))


def test_a_carry_init_of_zeros_is_none():
    """However it is written: nothing is learned that was not."""
    for zeros in (None, jax.nn.initializers.zeros, nn.initializers.zeros_init(), jax.nn.initializers.constant(0.0)):
        cell, params = from_nnx(filled("gru", carry_init=zeros))
        assert params.h0 is None and cell.spec == jr.gru(I, H, reset="after").spec


def test_what_became_learned_trains():
    """As any learned carry of ours: its gradient is not 0, and nnx_layer holds it as a Param."""
    layer, params = from_nnx(nnx.RNN(filled("gru", carry_init=INITS["row"])))
    module = nnx_layer(layer, params)
    gradient = nnx.jit(nnx.grad(lambda module: module(xs_of("float32"))[1].sum()))
    by_h0 = gradient(module)["params"]["h0"][...]
    assert np.abs(by_h0).max() > 0.1
    assert drawn_params(layer).h0.shape == (H,)
