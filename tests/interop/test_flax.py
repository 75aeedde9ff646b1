"""jaxrnn.interop.flax against Flax's linen and nnx: values, gradients, lengths, round trips, refusals."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr

pytest.importorskip("flax")
pytest.importorskip("hypothesis")
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrnn.interop.flax import from_linen, from_nnx, to_linen, to_nnx
from tests.interop.comparing import (
    LENGTHS,
    B,
    H,
    I,
    T,
    assert_close,
    assert_same,
    compare,
    drawn,
    drawn_params,
    start_of,
    xs_of,
)
from tests.user_cells import clockwork

LINEN = {
    "simple": nn.SimpleCell(H),
    "residual": nn.SimpleCell(H, residual=True, activation_fn=nn.softplus),
    "lstm": nn.LSTMCell(H),
    "fused lstm": nn.OptimizedLSTMCell(H, activation_fn=nn.soft_sign, gate_fn=nn.hard_sigmoid),
    "gru": nn.GRUCell(H),
    "hard gru": nn.GRUCell(H, activation_fn=jnp.sin, gate_fn=nn.hard_sigmoid),
    "mgu": nn.MGUCell(H),
    "mgu without reset": nn.MGUCell(H, reset_gate=False, gate_fn=jnp.cos),
}
NNX = {
    "simple": (nnx.SimpleCell, {"dtype": None}),
    "residual": (nnx.SimpleCell, {"dtype": None, "residual": True, "activation_fn": nnx.softplus}),
    "lstm": (nnx.LSTMCell, {"activation_fn": nnx.soft_sign, "gate_fn": nnx.hard_sigmoid}),
    "fused lstm": (nnx.OptimizedLSTMCell, {}),
    "gru": (nnx.GRUCell, {}),
}

pytestmark = pytest.mark.usefixtures("x64")


def swapped(carry):
    """(c, h), as Flax has it, and (h, c): each from the other."""
    return jr.LSTMCarry(carry[1], carry[0]) if isinstance(carry, tuple) else carry


def theirs_of(carry):
    return (carry.c, carry.h) if isinstance(carry, jr.LSTMCarry) else carry


def linen_rnn(cell, dtype, **options):
    """An RNN of the cell in that dtype, and random variables."""
    cell = dataclasses.replace(cell, param_dtype=dtype)
    rnn = nn.RNN(cell, time_major=True, return_carry=True, **options)
    shapes = jax.eval_shape(rnn.init, jax.random.key(0), xs_of(dtype))
    return rnn, drawn(shapes, dtype)


def undrawn(made, **options):
    """An nnx cell of zeros; drawing its weights would compile each orthogonal matrix."""
    zeros = dict.fromkeys(("kernel_init", "recurrent_kernel_init"), jax.nn.initializers.zeros)
    return made(I, H, rngs=nnx.Rngs(0), **zeros, **options)


def nnx_rnn(name, dtype, **options):
    made, cell_options = NNX[name]
    cell = undrawn(made, param_dtype=dtype, **cell_options)
    nnx.update(cell, drawn(nnx.state(cell), dtype))
    return nnx.RNN(cell, time_major=True, return_carry=True, **options)


# ---- weights: what Flax computes, jaxrnn computes ------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, "float64") for name in LINEN] + [(name, "float32") for name in ("lstm", "gru")]
)
def test_from_linen(name, dtype):
    rnn, variables = linen_rnn(LINEN[name], dtype)
    cell, params = from_linen(rnn.cell, variables["params"]["cell"])
    layer = jr.scan(cell, plan="plain")

    def theirs(variables, xs, start):
        carry, ys = rnn.apply(variables, xs, initial_carry=theirs_of(start))
        return swapped(carry), ys

    start = start_of(layer, params, dtype)
    compare(layer.apply, theirs, params, variables, xs_of(dtype), start, lambda v: from_linen(rnn, v)[1], dtype)


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, "float64") for name in NNX] + [(name, "float32") for name in ("simple", "lstm", "gru")]
)
def test_from_nnx(name, dtype):
    rnn = nnx_rnn(name, dtype)
    cell, params = from_nnx(rnn.cell)
    layer = jr.scan(cell, plan="plain")
    graph, weights, rest = nnx.split(rnn, nnx.Param, ...)

    def theirs(weights, xs, start):
        carry, ys = nnx.merge(graph, weights, rest)(xs, initial_carry=theirs_of(start))
        return swapped(carry), ys

    def ours(params, xs, start):
        # nnx's GRU has no bias inside the reset product, so nothing to compare its gradient with.
        params = params._replace(b_hh=jax.lax.stop_gradient(params.b_hh)) if hasattr(params, "b_hh") else params
        return layer.apply(params, xs, start)

    def convert(weights):
        return from_nnx(nnx.merge(graph, weights, rest))[1]

    compare(ours, theirs, params, weights, xs_of(dtype), start_of(layer, params, dtype), convert, dtype)


@pytest.mark.parametrize(("library", "reverse"), [("linen", True), ("nnx", False), ("nnx", True)])
def test_lengths(library, reverse):
    """Flax leaves on padding what it computed there; ours are 0."""
    options = {"reverse": reverse, "keep_order": True}
    xs, valid = xs_of("float64"), (np.arange(T)[:, None] < LENGTHS)[..., None]
    if library == "linen":
        rnn, variables = linen_rnn(LINEN["lstm"], "float64", **options)
        layer, params = from_linen(rnn, variables)
        start = start_of(layer, params, "float64")
        want, want_ys = rnn.apply(variables, xs, initial_carry=theirs_of(start), seq_lengths=LENGTHS)
    else:
        rnn = nnx_rnn("lstm", "float64", **options)
        layer, params = from_nnx(rnn)
        start = start_of(layer, params, "float64")
        want, want_ys = rnn(xs, initial_carry=theirs_of(start), seq_lengths=LENGTHS)
    carry, ys = layer.apply(params, xs, start, lengths=LENGTHS)
    assert_close(carry, swapped(want), "float64")
    assert_close(ys, jnp.where(valid, want_ys, 0), "float64")


@pytest.mark.parametrize("merge", ["sum", "mean", "product", jnp.hypot])
def test_merges_keep_their_names(merge):
    layer = jr.bidirectional(jr.elman(I, H), jr.elman(I, H), merge=merge if isinstance(merge, str) else "sum")
    params = drawn_params(layer, "float32")
    module, variables = to_linen(layer, params)
    both = to_nnx(layer, params)
    if not isinstance(merge, str):
        module, both.merge_fn = dataclasses.replace(module, merge_fn=merge), merge
    for again, _ in (from_linen(module, variables), from_nnx(both)):
        assert dict(again.spec.options)["merge"] == merge


def test_bidirectional_both_ways():
    layer = jr.bidirectional(jr.lstm(I, H), jr.gru(I, H, reset="after"))
    params = drawn_params(layer, "float64")
    params = params._replace(backward=params.backward._replace(b_hh=jnp.zeros(H)))  # nnx has none
    xs = xs_of("float64")
    start = start_of(layer, params, "float64")
    carry, ys = layer.apply(params, xs, start, lengths=LENGTHS)
    valid = (np.arange(T)[:, None] < LENGTHS)[..., None]

    module, variables = to_linen(layer, params)
    both = to_nnx(layer, params)
    options = {"initial_carry": tuple(map(theirs_of, start)), "seq_lengths": LENGTHS}
    for want_carry, want_ys in (module.apply(variables, xs, **options), both(xs, **options)):
        assert_close(carry, jr.BiCarry(*map(swapped, want_carry)), "float64")
        assert_close(ys, jnp.where(valid, want_ys, 0), "float64")
    for again, own in (from_linen(module, variables), from_nnx(both)):
        # The spec has the dtype that the parameters were seen to have.
        assert [child.kind for child in again.spec.children] == ["lstm", "gru"]
        assert dict(again.spec.options).get("merge", "concat") == "concat"
        assert_same(own, params)


def test_compute_dtype_goes_over():
    """nnx's SimpleCell computes in float32 unless told otherwise."""
    cell, params = from_nnx(undrawn(nnx.SimpleCell, param_dtype="float64"))
    assert dict(cell.spec.options)["dtype"] == "float32"
    assert cell.step(params, jnp.zeros(H), jnp.ones(I))[1].dtype == "float32"
    assert to_nnx(cell, params).dtype == to_linen(cell, params)[0].dtype == "float32"


def test_narrow_dtype():
    """Flax rounds every sum to bfloat16, jaxrnn the operands of its products alone: they differ by its few digits."""
    cell = jr.lstm(I, H, dtype="bfloat16")
    params, x = drawn_params(cell, "float32"), xs_of("float32")[0]
    carry = drawn(jax.eval_shape(lambda: cell.initial_carry(params, (B,))), "float32", seed=2)
    y = cell.step(params, carry, x)[1]
    module, variables = to_linen(cell, params)
    for want in (module.apply(variables, theirs_of(carry), x)[1], to_nnx(cell, params)(theirs_of(carry), x)[1]):
        np.testing.assert_allclose(np.float32(y), np.float32(want), atol=2**-7)
    assert from_linen(module, variables)[0].spec == cell.spec == from_nnx(to_nnx(cell, params))[0].spec


def test_functions_keep_their_names():
    cell, _ = from_nnx(undrawn(nnx.OptimizedLSTMCell, activation_fn=nnx.softplus, gate_fn=jnp.sin))
    options = dict(cell.spec.options)
    assert (options["activation"], options["gate_activation"]) == ("softplus", jnp.sin)


# ---- round trips --------------------------------------------------------------------------------

OPTIONS = st.sampled_from([{}, {"param_dtype": "float64"}, {"param_dtype": "bfloat16"}])
SETTINGS = settings(max_examples=8, deadline=None, derandomize=True)


def cells(*, kinds):
    sizes = st.tuples(st.integers(1, 4), st.integers(1, 4))
    activations = st.sampled_from(["tanh", "softsign", "gelu"])

    def make(kind, size, activation, options):
        return kind(*size, activation=activation, **options)

    return st.builds(make, st.sampled_from(kinds), sizes, activations, OPTIONS)


BOTH = [jr.elman, jr.lstm, lambda I, H, **options: jr.gru(I, H, reset="after", **options)]
LINEN_ALONE = [
    lambda I, H, **options: jr.mgu(I, H, reset="after", keep="state", **options),
    lambda I, H, **options: jr.mgu(I, H, reset="none", keep="state", gate_activation="softplus", **options),
]


@SETTINGS
@given(cell=cells(kinds=[*BOTH, *LINEN_ALONE]), seed=st.integers(0, 9))
def test_linen_round_trip(cell, seed):
    """jaxrnn -> linen -> jaxrnn, and then -> linen, changes nothing."""
    with jax.enable_x64(True):
        params = drawn_params(cell, dict(cell.spec.options).get("param_dtype", "float32"), seed)
        module, variables = to_linen(cell, params)
        again, own = from_linen(module, variables)
        assert again.spec == cell.spec
        assert_same(own, params)
        assert_same(to_linen(again, own)[1], variables)


@SETTINGS
@given(cell=cells(kinds=BOTH), seed=st.integers(0, 9))
def test_nnx_round_trip(cell, seed):
    with jax.enable_x64(True):
        params = drawn_params(cell, dict(cell.spec.options).get("param_dtype", "float32"), seed)
        params = params._replace(b_hh=jnp.zeros_like(params.b_hh)) if cell.spec.kind == "gru" else params
        module = to_nnx(cell, params)
        again, own = from_nnx(module)
        assert again.spec == cell.spec
        assert_same(own, params)
        assert_same(nnx.state(to_nnx(again, own)), nnx.state(module))


def test_residual_comes_back_as_a_matrix():
    cell = dataclasses.replace(LINEN["residual"], param_dtype="float64")
    rnn, variables = linen_rnn(cell, "float64")
    module, again = to_linen(*from_linen(rnn, variables))
    assert not module.cell.residual
    assert_close(module.apply(again, xs_of("float64")), rnn.apply(variables, xs_of("float64")), "float64")


@pytest.mark.parametrize("reset", ["none", "after"])
def test_without_biases(reset):
    """Flax always has biases: zeros compute the same."""
    cell = jr.mgu(I, H, reset="none", bias=False) if reset == "none" else jr.gru(I, H, reset="after", bias=False)
    params = drawn_params(cell, "float32")
    module, variables = to_linen(cell, params)
    h, x = drawn(jnp.zeros((B, H)), "float32"), drawn(jnp.zeros((B, I)), "float32")
    assert_close(cell.step(params, h, x)[1], module.apply(variables, h, x)[1], "float32")
    if reset == "after":
        assert_close(cell.step(params, h, x)[1], to_nnx(cell, params)(h, x)[1], "float32")


# ---- refusals -----------------------------------------------------------------------------------


def to_both(model, params=None):
    params = drawn_params(model, "float32") if params is None else params
    for to in (to_linen, to_nnx):
        yield lambda to=to: to(model, params)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (jr.peephole_lstm(I, H), "peephole_lstm has no counterpart: Flax has simple cells, LSTMs, GRUs and MGUs"),
        (jr.gru(I, H), "gru with reset='before' has no counterpart: Flax's GRU has 'after'"),
        (jr.mgu(I, H), "mgu with reset='before' has no counterpart: Flax's MGU has 'after' or 'none'"),
        (jr.mgu(I, H, reset="after"), "mgu with keep='candidate' has no counterpart: Flax's MGU has 'state'"),
        (jr.lstm(I, H, learned_carry=True), "a learned initial carry has no counterpart"),
        (jr.lstm(I, H, projection_size=2), "lstm with projection_size=2 has no counterpart"),
        (jr.elman(I, H, output_size=2), "elman with output_size=2 has no counterpart"),
        (jr.gru(I, H, reset="after", gate_activation="softplus"), "gru with gate_activation='softplus'"),
        (jr.stack(jr.lstm(I, H), jr.lstm(H, H)), "a stack has no counterpart: Flax's RNN is one layer"),
        (jr.zoneout(jr.lstm(I, H), rate=0.5), "zoneout has no counterpart"),
        (clockwork(I, H), "a user's own cell or layer has no counterpart"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_not_to_flax(model, message):
    for to in to_both(model):
        with pytest.raises(ValueError, match=re.escape(message)):
            to()


def test_not_to_nnx():
    cell = jr.gru(I, H, reset="after")
    params = drawn_params(cell, "float32")
    with pytest.raises(ValueError, match="a b_hh other than 0 has no counterpart: nnx's GRU has no bias inside"):
        to_nnx(cell, params._replace(b_hh=jnp.ones(H)))
    cell = jr.mgu(I, H, reset="none")
    with pytest.raises(ValueError, match="an MGU has no counterpart: nnx has no such cell; linen has one"):
        to_nnx(cell, drawn_params(cell, "float32"))


def test_not_from_linen():
    def refused(module, params, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            from_linen(module, params)

    gru = to_linen(jr.gru(I, H, reset="after"), drawn_params(jr.gru(I, H, reset="after"), "float32"))[1]
    simple = to_linen(jr.elman(I, H), drawn_params(jr.elman(I, H), "float32"))[1]
    own = nn.SimpleCell(H, carry_init=jax.nn.initializers.normal())
    refused(own, simple, "from_linen: a carry_init that draws has no counterpart: pass the initial carry")
    refused(nn.GRUCell(H, gate_fn=nn.softplus), gru, "from_linen: a GRU with gate_fn='softplus' has no counterpart: z")
    refused(nn.ConvLSTMCell(H, (3,)), {}, "from_linen: a ConvLSTMCell has no counterpart: known are SimpleCell")
    refused(nn.RNN(nn.GRUCell(H), reverse=True), {}, "an RNN with reverse=True and keep_order=False has no counterpart")
    rnn = nn.RNN(nn.GRUCell(H))
    refused(nn.Bidirectional(rnn, rnn), {"forward_rnn": gru}, "got forward_rnn; pass those of this very module (one")
    refused(
        nn.GRUCell(H), {"ir": {"kernel": 0}}, "expected the parameters hn.bias, hn.kernel, hr.kernel, hz.kernel, in"
    )
    refused(nn.RNN(nn.GRUCell(H)), {"other": gru}, "got other.params; pass the parameters of this very module")
    refused(nn.GRUCell(H + 1), gru, "hn.bias must have the shape (5,), got (4,)")
    with pytest.raises(TypeError, match=r"from_linen: params must be a dict, got 3 \(int\)"):
        from_linen(nn.LSTMCell(H), 3)


def test_not_from_nnx():
    def refused(module, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            from_nnx(module)

    with pytest.warns(UserWarning, match="carry_init"):
        refused(undrawn(nnx.SimpleCell, carry_init=jax.nn.initializers.normal()), "a carry_init that draws")
    own = undrawn(nnx.LSTMCell, promote_dtype=lambda a, dtype=None: a)
    refused(own, "a promote_dtype of your own has no counterpart")
    refused(undrawn(nnx.GRUCell, gate_fn=nnx.softplus), "a GRU with gate_fn='softplus' has no counterpart")
    refused(nnx.Linear(I, H, rngs=nnx.Rngs(0)), "a Linear has no counterpart: known are SimpleCell, LSTMCell")
    rnn = nnx.RNN(undrawn(nnx.GRUCell), reverse=True)
    refused(rnn, "an RNN with reverse=True and keep_order=False has no counterpart")
    refused(nnx.Bidirectional(rnn, rnn), "one RNN for both directions has no counterpart")


def test_float64_weights_need_x64():
    cell = nn.SimpleCell(H)
    weights = {"i": {"kernel": np.zeros((I, H)), "bias": np.zeros(H)}, "h": {"kernel": np.zeros((H, H))}}
    with jax.enable_x64(False), pytest.raises(TypeError, match="the weights are float64 but JAX would make them"):
        from_linen(cell, weights)
