"""jaxrnn against torch.nn with the same weights: outputs, final states and every gradient.

What the two call differently, and ``from_torch`` says in code: torch's weights have a row for each output, it
adds two biases of which only the sum matters (but for the GRU's candidate), and its z keeps the old state,
ours takes the candidate, so z blocks are negated: 1 - σ(a) = σ(-a).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr

torch = pytest.importorskip("torch")
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

I, H, T, B = 3, 5, 9, 4

# Relative to the largest entry. Both libraries round some hundred operations, each in its own order: about 10
# to 20 units of the last place (6e-8, 1e-16). The float64 bound is loose for that, yet no wrong term passes.
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}

KINDS = {
    "lstm": (jr.lstm, torch.nn.LSTM, torch.nn.LSTMCell, {}),
    "gru": (lambda i, h: jr.gru(i, h, reset="after"), torch.nn.GRU, torch.nn.GRUCell, {}),
    "tanh": (jr.elman, torch.nn.RNN, torch.nn.RNNCell, {"nonlinearity": "tanh"}),
    "relu": (
        lambda i, h: jr.elman(i, h, activation="relu"),
        torch.nn.RNN,
        torch.nn.RNNCell,
        {"nonlinearity": "relu"},
    ),
}

pytestmark = pytest.mark.usefixtures("x64")


def from_torch(kind, W_ih, W_hh, b_ih, b_hh, *, gradient=False):
    """The parameters of a cell, or the gradient by them, from those of one direction of one torch layer.

    A merged bias b = b_ih + b_hh moves the loss as each of the two does: its gradient is one's, not the sum.
    """
    merged = 2 * H if kind == "gru" else len(b_hh)
    b = b_ih if gradient else b_ih + np.where(np.arange(len(b_hh)) < merged, b_hh, 0)
    if kind == "lstm":
        return jr.LSTMParams(W_ih.T, W_hh.T, b)
    if kind == "gru":
        sign = np.repeat(np.array([1, -1, 1], b.dtype), H)
        return jr.GRUParams(W_ih.T * sign, W_hh.T * sign, b * sign, b_hh[merged:])
    return jr.ElmanParams(W_ih.T, W_hh.T, b)


def by_member(make, layers, directions, pair):
    """What ``stack`` of so many (bi-directional) layers keeps, ``make(layer, direction)`` for each run."""
    if directions == 1:
        return tuple(make(layer, 0) for layer in range(layers))
    return tuple(pair(make(layer, 0), make(layer, 1)) for layer in range(layers))


def params_of(kind, net, layers, directions, *, gradient=False):
    def of_run(layer, direction):
        names = (f"{n}_l{layer}{'_reverse' * direction}" for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        weights = [getattr(net, name) for name in names]
        arrays = [(w.grad if gradient else w.detach()).numpy() for w in weights]
        return from_torch(kind, *arrays, gradient=gradient)

    return by_member(of_run, layers, directions, jr.BiParams)


def carry_of(kind, states, layers, directions):
    """A stack's carry from torch's states, (layers * directions, B, H) each."""

    def of_run(layer, direction):
        run = [s[layer * directions + direction] for s in states]
        return jr.LSTMCarry(*run) if kind == "lstm" else run[0]

    return by_member(of_run, layers, directions, jr.BiCarry)


def assert_close(got, want, dtype):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * np.abs(b).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("layers", "directions", "padded"),
    [(1, 1, False), (1, 1, True), (2, 1, True), (1, 2, True), (2, 2, True)],
    ids=["one layer", "padded", "two layers", "bidirectional", "two bidirectional layers"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_layers(kind, layers, directions, padded, dtype):
    cell, net_class, _, options = KINDS[kind]
    rng = np.random.default_rng(layers + 10 * directions + 100 * padded)
    torch.manual_seed(0)
    net = net_class(I, H, layers, bidirectional=directions == 2, **options).to(getattr(torch, dtype))

    def draw(*shape):
        return rng.normal(size=shape).astype(dtype)

    xs = draw(T, B, I)
    lengths = np.array([5, T, 1, 7]) if padded else None
    if padded:  # what stands in the padding reaches neither library
        xs[np.arange(T)[:, None] >= lengths] = np.nan
    states = [draw(layers * directions, B, H) for _ in range(2 if kind == "lstm" else 1)]
    # The loss weighs every output and every final state differently, so that no two errors cancel.
    w_ys, w_states = draw(T, B, H * directions), [draw(*s.shape) for s in states]

    xs_t, states_t = (
        torch.tensor(xs, requires_grad=True),
        [torch.tensor(s, requires_grad=True) for s in states],
    )
    start = tuple(states_t) if kind == "lstm" else states_t[0]
    if padded:
        packed = pack_padded_sequence(xs_t, torch.tensor(lengths), enforce_sorted=False)
        packed, end = net(packed, start)
        ys_t, _ = pad_packed_sequence(packed, total_length=T)
    else:
        ys_t, end = net(xs_t, start)
    end = end if kind == "lstm" else (end,)
    loss_t = (ys_t * torch.tensor(w_ys)).sum()
    for final, weight in zip(end, w_states, strict=True):
        loss_t = loss_t + (final * torch.tensor(weight)).sum()
    loss_t.backward()

    members, size = [], I
    for _ in range(layers):
        one = cell(size, H)
        members.append(one if directions == 1 else jr.bidirectional(one, cell(size, H), merge="concat"))
        size = H * directions
    model = jr.stack(*members)
    w_carry = carry_of(kind, w_states, layers, directions)

    def loss(inputs, lengths):
        carry, ys = model.apply(*inputs, lengths=lengths)
        total = jnp.vdot(ys, w_ys) + sum(jax.tree.leaves(jax.tree.map(jnp.vdot, carry, w_carry)))
        return total, (carry, ys)

    inputs = (params_of(kind, net, layers, directions), xs, carry_of(kind, states, layers, directions))
    gradients, (carry, ys) = jax.jit(jax.grad(loss, has_aux=True))(inputs, lengths)
    assert_close(ys, ys_t.detach().numpy(), dtype)
    assert_close(carry, carry_of(kind, [s.detach().numpy() for s in end], layers, directions), dtype)
    by_params, by_xs, by_carry = gradients
    assert_close(by_params, params_of(kind, net, layers, directions, gradient=True), dtype)
    assert_close(by_xs, xs_t.grad.numpy(), dtype)
    assert_close(by_carry, carry_of(kind, [s.grad.numpy() for s in states_t], layers, directions), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_cells_one_step(kind, dtype):
    cell, _, cell_class, options = KINDS[kind]
    torch.manual_seed(1)
    theirs = cell_class(I, H, **options).to(getattr(torch, dtype))
    rng = np.random.default_rng(1)
    x, h, c = (rng.normal(size=(B, size)).astype(dtype) for size in (I, H, H))

    states = tuple(map(torch.tensor, (h, c) if kind == "lstm" else (h,)))
    with torch.no_grad():
        end = theirs(torch.tensor(x), states if kind == "lstm" else states[0])
    weights = (theirs.weight_ih, theirs.weight_hh, theirs.bias_ih, theirs.bias_hh)
    params = from_torch(kind, *(w.detach().numpy() for w in weights))

    carry, y = cell(I, H).step(params, jr.LSTMCarry(h, c) if kind == "lstm" else h, x)
    want = jr.LSTMCarry(*(s.numpy() for s in end)) if kind == "lstm" else end.numpy()
    assert_close(carry, want, dtype)
    assert_close(y, want.h if kind == "lstm" else want, dtype)
