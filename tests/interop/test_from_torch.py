"""from_torch and to_torch against torch.nn: outputs, final states, every gradient; round trips; what is refused."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrnn as jr
from tests.interop.comparing import B, H, I, T, assert_close, assert_same, drawn_params, quick_jit

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

from jaxrnn.interop.torch import from_torch, to_torch  # noqa: E402

LENGTHS = np.array([3, T, 1])

MODULES = {
    "tanh": (nn.RNN, {}),
    "relu, two layers": (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
    "lstm, two layers, both directions": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "lstm, no bias": (nn.LSTM, {"bias": False}),
    "lstm, projected, two layers, both directions": (
        nn.LSTM,
        {"proj_size": 2, "num_layers": 2, "bidirectional": True},
    ),
    "gru, two layers": (nn.GRU, {"num_layers": 2}),
    "gru, no bias, both directions": (nn.GRU, {"bias": False, "bidirectional": True}),
}
CELLS = {
    "tanh": (nn.RNNCell, {}),
    "relu, no bias": (nn.RNNCell, {"nonlinearity": "relu", "bias": False}),
    "lstm": (nn.LSTMCell, {}),
    "gru": (nn.GRUCell, {}),
    "gru, no bias": (nn.GRUCell, {"bias": False}),
}

pytestmark = pytest.mark.usefixtures("x64")


def made(module_class, options, dtype="float64", seed=0):
    torch.manual_seed(seed)
    return module_class(I, H, **options).to(getattr(torch, dtype))


def drawn(module, dtype, seed=1):
    """Inputs, initial states, and a weight for every output and final state, so that no two errors cancel."""
    rng = np.random.default_rng(seed)
    runs = module.num_layers * (1 + module.bidirectional)
    out = module.proj_size or H
    sizes = [out, H] if isinstance(module, nn.LSTM) else [H]

    def draw(*shape):
        return rng.normal(size=shape).astype(dtype)

    def states():
        return [draw(runs, B, size) for size in sizes]

    return draw(T, B, I), states(), draw(T, B, out * (1 + module.bidirectional)), states()


def carry_of(module, states):
    """The carry of our layer from torch's states, (layers * directions, B, H) each."""

    def of_run(k):
        run = [s[k] for s in states]
        return jr.LSTMCarry(*run) if len(run) == 2 else run[0]

    layers = range(module.num_layers)
    if module.bidirectional:
        carry = tuple(jr.BiCarry(of_run(2 * k), of_run(2 * k + 1)) for k in layers)
    else:
        carry = tuple(of_run(k) for k in layers)
    return carry if len(carry) > 1 else carry[0]


def gradients_of(module):
    """The gradient by our parameters: the conversion is linear, but a merged bias's gradient is one's, not the sum."""
    state = {name: w.grad.clone() for name, w in module.named_parameters()}
    merged = 2 * H if isinstance(module, nn.GRU) else None
    for name in state:
        if name.startswith("bias_hh"):
            state[name][:merged] = 0
    return from_torch(state)[1]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float64") for name in MODULES] + [(name, "float32") for name in ("lstm, no bias", "gru, two layers")],
)
def test_module(name, dtype):
    """float64 with lengths, float32 without."""
    module = made(*MODULES[name], dtype)
    xs, states, w_ys, w_states = drawn(module, dtype)
    lengths = LENGTHS if dtype == "float64" else None

    xs_t = torch.tensor(xs, requires_grad=True)
    states_t = [torch.tensor(s, requires_grad=True) for s in states]
    start = tuple(states_t) if len(states_t) == 2 else states_t[0]
    if lengths is None:
        ys_t, end = module(xs_t, start)
    else:
        packed = pack_padded_sequence(xs_t, torch.tensor(lengths), enforce_sorted=False)
        packed, end = module(packed, start)
        ys_t, _ = pad_packed_sequence(packed, total_length=T)
    end = end if len(states_t) == 2 else (end,)
    loss_t = (ys_t * torch.tensor(w_ys)).sum()
    for final, weight in zip(end, w_states, strict=True):
        loss_t = loss_t + (final * torch.tensor(weight)).sum()
    loss_t.backward()

    layer, params = from_torch(module)
    w_carry = carry_of(module, w_states)

    def loss(inputs):
        carry, ys = layer.apply(*inputs, lengths=lengths)
        total = jnp.vdot(ys, w_ys) + sum(jax.tree.leaves(jax.tree.map(jnp.vdot, carry, w_carry)))
        return total, (carry, ys)

    gradients, (carry, ys) = quick_jit(jax.grad(loss, has_aux=True))((params, xs, carry_of(module, states)))
    by_params, by_xs, by_carry = gradients
    assert_close(ys, ys_t.detach().numpy(), dtype)
    assert_close(carry, carry_of(module, [s.detach().numpy() for s in end]), dtype)
    assert_close(by_params, gradients_of(module), dtype)
    assert_close(by_xs, xs_t.grad.numpy(), dtype)
    assert_close(by_carry, carry_of(module, [s.grad.numpy() for s in states_t]), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CELLS)
def test_cell(name, dtype):
    theirs = made(*CELLS[name], dtype)
    rng = np.random.default_rng(1)
    x, h, c = (rng.normal(size=(B, size)).astype(dtype) for size in (I, H, H))
    is_lstm = isinstance(theirs, nn.LSTMCell)
    start = tuple(map(torch.tensor, (h, c))) if is_lstm else torch.tensor(h)
    with torch.no_grad():
        end = theirs(torch.tensor(x), start)
    cell, params = from_torch(theirs)
    assert isinstance(cell, jr.Cell)
    carry, y = cell.step(params, jr.LSTMCarry(h, c) if is_lstm else h, x)
    want = jr.LSTMCarry(*(s.numpy() for s in end)) if is_lstm else end.numpy()
    assert_close(carry, want, dtype)
    assert_close(y, want.h if is_lstm else want, dtype)


def test_bfloat16_comes_as_it_is():
    module = made(nn.GRU, {}, "bfloat16")
    layer, params = from_torch(module)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    np.testing.assert_array_equal(
        np.asarray(params.W_xh[:, :H], np.float32), module.weight_ih_l0[:H].T.detach().float().numpy()
    )
    back = to_torch(layer, params)
    assert back["weight_hh_l0"].dtype == torch.bfloat16
    assert torch.equal(back["weight_hh_l0"], module.weight_hh_l0)


def test_a_part_of_a_larger_state_dict():
    """Also as NumPy arrays, as safetensors reads them."""
    model = nn.Sequential(nn.Linear(2, I), made(nn.GRU, {}))
    state = {name: w.numpy() for name, w in model.state_dict().items()}
    _, want = from_torch(model[1])
    assert_same(from_torch(state, prefix="1.")[1], want)


def test_options_that_a_state_dict_does_not_hold():
    module = made(nn.RNN, {"nonlinearity": "relu", "num_layers": 3, "dropout": 0.25})
    layer, params = from_torch(module)
    again, same = from_torch(module.state_dict(), nonlinearity="relu", dropout=0.25)
    assert again.spec == layer.spec
    assert_same(same, params)
    cell = dict(activation="relu", param_dtype="float64")
    first, other = jr.elman(I, H, **cell), jr.elman(H, H, **cell)
    drop = jr.dropout(0.25)
    assert layer.spec == jr.stack(jr.scan(first), drop, jr.scan(other), drop, jr.scan(other)).spec


def test_weights_are_copies():
    module = made(nn.RNN, {"bias": False})
    _, params = from_torch(module)
    before = jax.tree.map(np.array, params)
    tensors = to_torch(*from_torch(module))
    for w in (*module.parameters(), *tensors.values()):
        w.data.zero_()
    assert_same(params, before)


@st.composite
def configurations(draw):
    """The options of a torch module, and its class."""
    kind = draw(st.sampled_from(["RNN", "LSTM", "GRU"]))
    options = {
        "num_layers": draw(st.integers(1, 3)),
        "bidirectional": draw(st.booleans()),
        "bias": draw(st.booleans()),
    }
    if kind == "RNN":
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    if kind == "LSTM":
        options["proj_size"] = draw(st.sampled_from([0, 1, 3]))
    if options["num_layers"] > 1:
        options["dropout"] = draw(st.sampled_from([0.0, 0.5]))
    return getattr(nn, kind), options


@settings(max_examples=15, deadline=None, derandomize=True)
@given(configurations(), st.sampled_from(["float32", "float64", "bfloat16"]))
def test_round_trip_from_jaxrnn_is_bitwise(configuration, dtype):
    module_class, options = configuration
    theirs = made(module_class, options, dtype)
    layer, _ = from_torch(theirs)
    params = drawn_params(layer, seed=3)
    theirs.load_state_dict(to_torch(layer, params), strict=True)
    again, came = from_torch(theirs)
    assert again.spec == layer.spec
    assert_same(came, params)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(configurations())
def test_round_trip_from_torch_computes_the_same(configuration):
    module_class, options = configuration
    theirs, other = (made(module_class, options, seed=seed).eval() for seed in (0, 1))
    other.load_state_dict(to_torch(*from_torch(theirs)), strict=True)
    xs = torch.tensor(drawn(theirs, "float64")[0])
    with torch.no_grad():
        np.testing.assert_allclose(other(xs)[0], theirs(xs)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CELLS)
def test_round_trip_of_cells(name):
    theirs = made(*CELLS[name])
    cell, _ = from_torch(theirs)
    params = drawn_params(cell, seed=4)
    theirs.load_state_dict(to_torch(cell, params), strict=True)
    again, came = from_torch(theirs)
    assert again.spec == cell.spec
    assert_same(came, params)


GRU = jr.gru(I, H, reset="after")


def zoned(cell, reverse=False):
    return jr.scan(jr.zoneout(cell, rate=0.5), reverse=reverse)


REFUSED = {
    "bidirectional with a run of its own has no counterpart": jr.bidirectional(jr.lstm(I, H), jr.lstm(I, H), run=zoned),
    "dtype='bfloat16' with weights in float": jr.scan(jr.lstm(I, H, dtype="bfloat16")),
    'to_torch: a gru with reset="before" has no counterpart: PyTorch resets after': jr.gru(I, H),
    "to_torch: a learned initial carry has no counterpart": jr.scan(jr.lstm(I, H, learned_carry=True)),
    "merge='sum' has no counterpart: torch.nn concatenates": jr.bidirectional(GRU, GRU, merge="sum"),
    "to_torch: a model of different cells, elman(activation=tanh, hidden_size=4) and elman(activation=tanh, "
    "hidden_size=5), has no counterpart": jr.stack(jr.elman(I, H), jr.elman(H, 5)),
    "and lstm(activation=tanh, hidden_size=4), has no": jr.bidirectional(GRU, jr.lstm(I, H)),
    "elman's activation='softplus' has no counterpart": jr.elman(I, H, activation="softplus"),
    "lstm's activation='relu' has no counterpart": jr.lstm(I, H, activation="relu"),
    "lstm's gate_activation='hard_sigmoid' has no": jr.lstm(I, H, gate_activation="hard_sigmoid"),
    "elman's output_size=2 has no counterpart": jr.elman(I, H, output_size=2),
    "to_torch: peephole_lstm has no counterpart": jr.peephole_lstm(I, H),
    "to_torch: readout has no counterpart": jr.stack(GRU, jr.readout(H, 2)),
    "to_torch: chain has no counterpart": jr.chain(GRU, jr.gru(H, H, reset="after")),
    "a reversed run by itself has no counterpart": jr.scan(GRU, reverse=True),
    "a stack of layers in one and in both directions": jr.stack(
        jr.bidirectional(GRU, GRU), jr.gru(2 * H, H, reset="after")
    ),
    "dropout after the last layer has no counterpart": jr.stack(GRU, jr.dropout(0.1)),
    "dropout before the first layer has no": jr.stack(jr.dropout(0.1), GRU),
    "dropout twice in a row has no counterpart": jr.stack(GRU, jr.dropout(0.1), jr.dropout(0.1)),
    "dropout of different rates (0.1, 0.0) has no counterpart": jr.stack(
        *(jr.elman(H, H), jr.dropout(0.1), jr.elman(H, H), jr.elman(H, H))
    ),
    "an lstm Cell with projection_size has no counterpart": jr.lstm(I, H, projection_size=2),
    "a user's own cell or layer has no counterpart": GRU._replace(spec=None),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    model = REFUSED[message]
    with pytest.raises(ValueError, match=re.escape(message)):
        to_torch(model, drawn_params(model, seed=0))


def test_params_of_another_layer():
    with pytest.raises(ValueError, match=r"to_torch: params should be GRUParams\("):
        to_torch(jr.scan(GRU), drawn_params(jr.lstm(I, H), seed=0))


def state_of(module_class, options=None, drop=(), **more):
    state = made(module_class, options or {}).state_dict()
    return {name: w for name, w in state.items() if name not in drop} | more


MISREAD = {
    "unknown keys 'head.weight'; pass the state dict of one recurrent module, without others.": (
        state_of(nn.GRU, **{"head.weight": torch.ones(2, 2)}),
        {},
    ),
    "unknown keys 'rnn.head.weight'; pass the state dict of one recurrent module, without others.": (
        {f"rnn.{name}": w for name, w in state_of(nn.GRU, **{"head.weight": torch.ones(2, 2)}).items()},
        {"prefix": "rnn."},
    ),
    "the state dict has no 'bias_hh_l0'": (state_of(nn.GRU, drop=["bias_hh_l0"]), {}),
    "no recurrent module is called 'rnn.'; the names of the only one stand alone; leave it out": (
        state_of(nn.GRU),
        {"prefix": "rnn."},
    ),
    "the state dict has no 'weight_hh_l0', 'bias_hh_l0' under prefix='rnn.'": (
        {"rnn.weight_ih_l0": torch.ones(12, 3), "rnn.bias_ih_l0": torch.ones(12)},
        {},
    ),
    "there is no recurrent module: no tensor is called weight_ih_l0": ({"head.weight": torch.ones(2, 2)}, {}),
    "weight_hh has shape (8, 4), but an nn.RNN has": (
        {"weight_ih": torch.ones(8, 3), "weight_hh": torch.ones(8, 4)},
        {},
    ),
    "weight_ih_l0 has shape (8, 3), but weight_hh_l0, (12, 4), goes with (12, 3)": (
        state_of(nn.GRU, drop=["weight_ih_l0"], weight_ih_l0=torch.ones(8, 3)),
        {},
    ),
    "nonlinearity='relu' is for nn.RNN, but the shapes are those of an nn.LSTM": (
        state_of(nn.LSTM),
        {"nonlinearity": "relu"},
    ),
    "nonlinearity must be one of 'tanh', 'relu', got 'Relu'; did you mean 'relu'?": (
        state_of(nn.RNN),
        {"nonlinearity": "Relu"},
    ),
    "dropout=0.5 stands between layers, but there is one": (state_of(nn.RNN), {"dropout": 0.5}),
    "nonlinearity, dropout say what a state dict does not; a module says it itself": (
        nn.RNN(I, H),
        {"nonlinearity": "tanh", "dropout": 0.0},
    ),
}


@pytest.mark.parametrize("message", MISREAD)
def test_misread(message):
    source, options = MISREAD[message]
    with pytest.raises(ValueError, match=re.escape(message)):
        from_torch(source, **options)


def test_a_planned_run_of_both_directions():
    run = functools.partial(jr.scan, plan="plain", checkpoint=2)
    model = jr.bidirectional(jr.lstm(I, H), jr.lstm(I, H), run=run)
    assert len(to_torch(model, drawn_params(model, seed=0))) == 8


def test_other_modules():
    class Own(nn.LSTM):
        """May compute anything."""

    with pytest.raises(TypeError, match=r"from_torch: expected nn\.RNN, .* got Own"):
        from_torch(Own(2, 2))
    with pytest.raises(TypeError, match=r"from_torch: expected nn\.RNN, .* got Linear; pass the recurrent module"):
        from_torch(nn.Linear(2, 2))


def test_float64_without_64_bits():
    with jax.enable_x64(False), pytest.raises(TypeError, match="the weights are float64 but JAX would make them"):
        from_torch(made(nn.GRU, {}))
