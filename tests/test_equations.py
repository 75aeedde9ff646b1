"""Every built-in cell against its docstring's equations, written out in NumPy gate by gate, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr

# Both sides compute in float64 and sum under 10 products: 1e-12 leaves four digits for the order of sums.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
I, H, O, V = 3, 5, 4, 7


pytestmark = pytest.mark.usefixtures("x64")

# ---- the equations: (params, carry, x) -> (carry, y, gates) ---------------------------------------


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def block(order, gate, H):
    """The columns of one gate in an array fused in this order."""
    return slice(order.index(gate) * H, (order.index(gate) + 1) * H)


def elman(act):
    def equations(p, h, x):
        h = act(h @ p.W_hh + x @ p.W_xh + p.b)
        return h, h, {}

    return equations


def elman_with_readout(p, h, x):
    h = np.tanh(h @ p.W_hh + x @ p.W_xh + p.b)
    return h, h @ p.W_hy + p.b_y, {}


def lstm(act=np.tanh, σ=sigmoid):
    def equations(p, carry, x):
        h, c = carry

        def affine(gate):
            at = block("ifgo", gate, c.shape[-1])
            return h @ p.W_hh[:, at] + x @ p.W_xh[:, at] + (0 if p.b is None else p.b[at])

        i, f, o = σ(affine("i")), σ(affine("f")), σ(affine("o"))
        g = act(affine("g"))
        c = f * c + i * g
        h = o * act(c)
        h = h if p.W_hr is None else h @ p.W_hr
        return jr.LSTMCarry(h, c), h, dict(i=i, f=f, g=g, o=o, c=c, h=h)

    return equations


def cifg_lstm(p, carry, x):
    h, c = carry

    def affine(gate):
        at = block("fgo", gate, c.shape[-1])
        return h @ p.W_hh[:, at] + x @ p.W_xh[:, at] + p.b[at]

    f, g, o = sigmoid(affine("f")), np.tanh(affine("g")), sigmoid(affine("o"))
    c = f * c + (1 - f) * g
    h = o * np.tanh(c)
    return jr.LSTMCarry(h, c), h, dict(i=1 - f, f=f, g=g, o=o, c=c, h=h)


def convolved(x, W):
    """x (*B, *S, I) by W (*K, I, O), place by place: y[s] = Σ_k x[s + k - (K - 1) // 2] W[k], 0 beyond the edges."""
    K = W.shape[:-2]
    places = tuple(range(x.ndim - len(K) - 1, x.ndim - 1))
    padding = [(0, 0)] * x.ndim
    for place, k in zip(places, K, strict=True):
        padding[place] = ((k - 1) // 2, k - 1 - (k - 1) // 2)
    padded = np.pad(x, padding)
    windows = np.lib.stride_tricks.sliding_window_view(padded, K, places)  # (*B, *S, I, *K)
    axes = range(windows.ndim - len(K), windows.ndim)
    return np.tensordot(windows, W, ([*axes, windows.ndim - len(K) - 1], [*range(len(K)), len(K)]))


def conv_lstm(p, carry, x):
    h, c = carry

    def affine(gate, peep, U):
        at = block("ifgo", gate, c.shape[-1])
        a = convolved(h, p.W_hh[..., at]) + convolved(x, p.W_xh[..., at]) + p.b[at]
        return a if U is None else a + U * peep

    i, f, g = sigmoid(affine("i", c, p.U_i)), sigmoid(affine("f", c, p.U_f)), np.tanh(affine("g", c, None))
    c = f * c + i * g
    o = sigmoid(affine("o", c, p.U_o))
    h = o * np.tanh(c)
    return jr.LSTMCarry(h, c), h, dict(i=i, f=f, g=g, o=o, c=c, h=h)


def peephole_lstm(peep):
    def equations(p, carry, x):
        h, c = carry

        def affine(gate):
            at = block("ifgo", gate, h.shape[-1])
            return h @ p.W_hh[:, at] + x @ p.W_xh[:, at] + p.b[at]

        i, f = sigmoid(affine("i") + peep(c, p.U_i)), sigmoid(affine("f") + peep(c, p.U_f))
        g = np.tanh(affine("g"))
        c = f * c + i * g
        o = sigmoid(affine("o") + peep(c, p.U_o))
        h = o * np.tanh(c)
        return jr.LSTMCarry(h, c), h, dict(i=i, f=f, g=g, o=o, c=c, h=h)

    return equations


def gru(reset, act=np.tanh, σ=sigmoid):
    def equations(p, h, x):
        if p.b is None:
            p = p._replace(b=np.zeros(p.W_xh.shape[-1]), b_hh=0)
        at_r, at_z, at_n = (block("rzn", gate, h.shape[-1]) for gate in "rzn")
        r = σ(h @ p.W_hh[:, at_r] + x @ p.W_xh[:, at_r] + p.b[at_r])
        z = σ(h @ p.W_hh[:, at_z] + x @ p.W_xh[:, at_z] + p.b[at_z])
        if reset == "before":
            n = act((r * h) @ p.W_hh[:, at_n] + x @ p.W_xh[:, at_n] + p.b[at_n])
        else:
            n = act(x @ p.W_xh[:, at_n] + p.b[at_n] + r * (h @ p.W_hh[:, at_n] + p.b_hh))
        h = (1 - z) * h + z * n
        return h, h, dict(r=r, z=z, n=n, h=h)

    return equations


def mgu(reset, keep):
    def equations(p, h, x):
        at_f, at_n = (block("fn", gate, h.shape[-1]) for gate in "fn")
        f = sigmoid(h @ p.W_hh[:, at_f] + x @ p.W_xh[:, at_f] + p.b[at_f])
        recurrent = {
            "before": lambda: (f * h) @ p.W_hh[:, at_n],
            "after": lambda: f * (h @ p.W_hh[:, at_n] + p.b_hh),
            "none": lambda: h @ p.W_hh[:, at_n],
        }
        n = np.tanh(recurrent[reset]() + x @ p.W_xh[:, at_n] + p.b[at_n])
        h = (1 - f) * h + f * n if keep == "candidate" else f * h + (1 - f) * n
        return h, h, dict(f=f, n=n, h=h)

    return equations


def readout(p, carry, x):
    return carry, x @ p.W_hy + p.b_y, {}


def dense(p, carry, x):
    return carry, relu(x @ p.W_hy + p.b_y), {}


def dense_without_bias(p, carry, x):
    return carry, np.sin(x @ p.W_hy), {}


def readout_without_bias(p, carry, x):
    return carry, x @ p.W_hy, {}


def layer_norm(p, carry, x):
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return carry, (x - mean) / np.sqrt(var + 1e-5) * p.scale + p.shift, {}


def embedding(p, carry, x):
    return carry, p.table[x], {}


def gelu(a):  # the tanh form, jax.nn.gelu's default
    return a / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))


def hard_sigmoid(a):
    return np.clip(a / 6 + 0.5, 0, 1)


def relu(a):
    return np.maximum(a, 0)


UNUSUAL = {"activation": "relu", "gate_activation": "hard_sigmoid"}
GATED = {
    "lstm": (jr.lstm(I, H), lstm()),
    "lstm-projected": (jr.lstm(I, H, projection_size=2), lstm()),
    "lstm-unusual": (jr.lstm(I, H, bias=False, **UNUSUAL), lstm(relu, hard_sigmoid)),
    "cifg_lstm": (jr.cifg_lstm(I, H), cifg_lstm),
    "mgu": (jr.mgu(I, H), mgu("before", "candidate")),
    "mgu-after": (jr.mgu(I, H, reset="after", keep="state"), mgu("after", "state")),
    "mgu-none": (jr.mgu(I, H, reset="none", keep="state"), mgu("none", "state")),
    "gru-unusual": (jr.gru(I, H, reset="after", bias=False, **UNUSUAL), gru("after", relu, hard_sigmoid)),
    "gru-before": (jr.gru(I, H), gru("before")),
    "gru-after": (jr.gru(I, H, reset="after"), gru("after")),
    "peephole-diagonal": (jr.peephole_lstm(I, H), peephole_lstm(lambda c, U: c * U)),
    "peephole-full": (jr.peephole_lstm(I, H, peephole="full"), peephole_lstm(lambda c, U: c @ U)),
}
CONVOLUTIONAL = {
    "conv_lstm-1d": (jr.conv_lstm(I, H, spatial_shape=(4,), peephole=True), conv_lstm),
    "conv_lstm-2d": (jr.conv_lstm(I, H, spatial_shape=(4, 3), kernel_size=(3, 2)), conv_lstm),
    "conv_lstm-3d": (jr.conv_lstm(I, 2, spatial_shape=(2, 3, 2), kernel_size=2, peephole=True), conv_lstm),
}
CELLS = (
    GATED
    | CONVOLUTIONAL
    | {
        "elman": (jr.elman(I, H), elman(np.tanh)),
        "elman-relu": (jr.elman(I, H, activation="relu"), elman(relu)),
        "elman-hard_sigmoid": (jr.elman(I, H, activation="hard_sigmoid"), elman(hard_sigmoid)),
        "elman-softsign": (jr.elman(I, H, activation="softsign"), elman(lambda a: a / (1 + abs(a)))),
        "elman-elu": (jr.elman(I, H, activation="elu"), elman(lambda a: np.where(a > 0, a, np.expm1(a)))),
        "elman-silu": (jr.elman(I, H, activation="silu"), elman(lambda a: a * sigmoid(a))),
        "elman-leaky_relu": (jr.elman(I, H, activation="leaky_relu"), elman(lambda a: np.where(a > 0, a, 0.01 * a))),
        "elman-sigmoid": (jr.elman(I, H, activation="sigmoid"), elman(sigmoid)),
        "elman-softplus": (jr.elman(I, H, activation="softplus"), elman(lambda a: np.log1p(np.exp(a)))),
        "elman-gelu": (jr.elman(I, H, activation="gelu"), elman(gelu)),
        "elman-identity": (jr.elman(I, H, activation="identity"), elman(lambda a: a)),
        "elman-function": (jr.elman(I, H, activation=jnp.sin), elman(np.sin)),
        "elman-readout": (jr.elman(I, H, output_size=O), elman_with_readout),
        "readout": (jr.readout(I, O), readout),
        "readout without bias": (jr.readout(I, O, bias=False), readout_without_bias),
        "dense": (jr.dense(I, O, activation="relu"), dense),
        "dense without bias": (jr.dense(I, O, activation=jnp.sin, bias=False), dense_without_bias),
        "layer_norm": (jr.layer_norm(I), layer_norm),
        "embedding": (jr.embedding(V, O), embedding),
    }
)


def random_like(rng, tree):
    """A tree of those shapes, every entry random: no zero bias hides a term."""
    return jax.tree.map(lambda a: rng.normal(size=a.shape), tree)


def random_problem(rng, cell, batch_shape, time=()):
    """Params, a carry and inputs (*time, *B, …)."""
    params = random_like(rng, jax.eval_shape(cell.init, jax.random.key(0)))
    carry = random_like(rng, jax.eval_shape(lambda p: cell.initial_carry(p, batch_shape), params))
    shape = (*time, *batch_shape)
    space = dict(cell.spec.options).get("spatial_shape", ())
    x = rng.integers(0, V, shape) if cell.x_ndim == 0 else rng.normal(size=(*shape, *space, cell.input_size))
    return params, carry, x


def assert_trees_close(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, **TOLERANCE)


@pytest.mark.parametrize("batch_shape", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_step_is_the_equations(name, batch_shape):
    cell, equations = CELLS[name]
    params, carry, x = random_problem(np.random.default_rng(1), cell, batch_shape)
    want_carry, want_y, _ = equations(params, carry, x)
    got_carry, got_y = jax.jit(cell.step)(params, carry, x)
    assert_trees_close(got_carry, want_carry)
    assert_trees_close(got_y, want_y)


@pytest.mark.parametrize("name", [*GATED, *CONVOLUTIONAL])
def test_gates_are_those_of_the_equations(name):
    cell, equations = CELLS[name]
    params, carry, x = random_problem(np.random.default_rng(2), cell, (4,))
    _, _, want = equations(params, carry, x)
    got = jax.jit(lambda *args: jr.gates(cell, *args))(params, carry, x)
    assert_trees_close(got._asdict(), want)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", GATED)
def test_traced_gates_are_those_of_the_equations(name, reverse):
    """Over time, from a given carry, with lengths and gaps in a mask: 0 and a held state where not valid."""
    T, B = 6, 4
    cell, equations = GATED[name]
    rng = np.random.default_rng(3)
    params, carry, xs = random_problem(rng, cell, (B,), (T,))
    lengths = np.array([T, 0, 4, T + 3])
    mask = rng.random((T, B)) < 0.7
    on = mask & (np.arange(T)[:, None] < lengths)
    assert on.any() and not on.all()

    held, rows = carry, [{}] * T
    for t in reversed(range(T)) if reverse else range(T):
        new, _, gates = equations(params, held, xs[t])
        held = jax.tree.map(lambda n, old, on_t=on[t, :, None]: np.where(on_t, n, old), new, held)
        rows[t] = {gate: np.where(on[t, :, None], value, 0) for gate, value in gates.items()}
    want = {gate: np.stack([row[gate] for row in rows]) for gate in rows[0]}

    @jax.jit
    def run(params, xs, carry, lengths, mask):
        traced = jr.trace_gates(cell, params, xs, carry, reverse=reverse, lengths=lengths, mask=mask)
        return traced, jr.scan(cell, reverse=reverse).apply(params, xs, carry, lengths=lengths, mask=mask)

    traced, (final, ys) = run(params, xs, carry, lengths, mask)
    assert_trees_close(traced._asdict(), want)
    assert_trees_close(final, held)
    assert_trees_close(ys, want["h"])


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.int8])
@pytest.mark.parametrize("jit", [False, True], ids=["op by op", "jit"])
def test_embedding_reads_its_rows_in_every_integer_dtype(dtype, jit):
    """A vocabulary of 256 does not fit into the dtype of byte tokens: the comparison must not wrap round."""
    cell = jr.embedding(256, O)
    table = np.random.default_rng(4).normal(size=(256, O))
    tokens = np.array([0, 1, 127, np.iinfo(dtype).max % 256]).astype(dtype)
    step = jax.jit(cell.step) if jit else cell.step
    np.testing.assert_array_equal(step(jr.cells.EmbeddingParams(table), (), jnp.asarray(tokens))[1], table[tokens])


def test_embedding_outside_its_vocabulary_is_nan():
    cell = jr.embedding(V, O)
    table = np.ones((V, O))
    y = cell.step(jr.cells.EmbeddingParams(table), (), jnp.array([-1, 0, V - 1, V]))[1]
    np.testing.assert_array_equal(y[:, 0], [np.nan, 1, 1, np.nan])
    of_one = [cell.step(jr.cells.EmbeddingParams(table), (), token)[1] for token in (V - 1, V)]  # Python's own integers
    np.testing.assert_array_equal(of_one, np.stack([np.ones(O), np.full(O, np.nan)]))


@pytest.mark.parametrize("name", [*GATED, "elman", "elman-readout", "readout", "dense", "layer_norm", "embedding"])
def test_a_compute_dtype_wider_than_the_parameters_keeps_the_carry(name):
    """float32 parameters, ``dtype=float64``: the output is float64, the carry is as initial_carry made it."""
    made, _ = CELLS[name]
    kind = getattr(jr, made.spec.kind)
    cell = kind(**{**dict(made.spec.options), "dtype": jnp.float64})
    params = cell.init(jax.random.key(0))
    x = jnp.zeros((2,), int) if cell.x_ndim == 0 else jnp.ones((2, I))
    start = cell.initial_carry(params, (2,))
    carry, ys = jr.scan(cell).apply(params, x[None])
    assert ys.dtype == jnp.float64
    assert [a.dtype for a in jax.tree.leaves(carry)] == [a.dtype for a in jax.tree.leaves(start)]
