"""What ``init`` gives: the distributions that the docstrings name, gate by gate, and learned carries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests import cases

# Large enough for statistics: all of 64 uniform draws lie below 0.75 of their bound once in 5000 seeds.
I, H = 40, 64
KEY = jax.random.key(0)

GATES = {
    "elman": "h",
    "lstm": "ifgo",
    "peephole_lstm": "ifgo",
    "cifg_lstm": "fgo",
    "gru": "rzn",
    "mgu": "fn",
    "ugrnn": "gn",
}
CELLS = {name: getattr(jr, name) for name in GATES}

both_lstms = pytest.mark.parametrize("factory", [jr.lstm, jr.peephole_lstm], ids=lambda f: f.__name__)
every_cell = pytest.mark.parametrize("name", CELLS)


def blocks(name, array):
    """{gate: its block} of an array fused in the documented gate order."""
    return dict(zip(GATES[name], np.split(np.asarray(array), len(GATES[name]), axis=-1), strict=True))


def assert_uniform(values, bound):
    """All within the bound, and spread up to it, so that no smaller bound would do."""
    values = np.asarray(values)
    assert np.abs(values).max() <= bound
    assert values.max() > 0.75 * bound and values.min() < -0.75 * bound


@every_cell
def test_recurrent_blocks_are_orthogonal(name):
    W = blocks(name, CELLS[name](I, H).init(KEY).W_hh)
    for block in W.values():
        # float32 QR of 64 columns: entries good to 1e-6
        np.testing.assert_allclose(block @ block.T, np.eye(H), atol=1e-5)
    first, *others = W.values()
    assert all(np.abs(first - other).max() > 0.1 for other in others)  # each gate is drawn by itself


@every_cell
def test_input_blocks_are_glorot(name):
    """Each gate's (I, H) block by itself; the fused (I, 4H) would have a smaller bound."""
    for block in blocks(name, CELLS[name](I, H).init(KEY).W_xh).values():
        assert_uniform(block, np.sqrt(6 / (I + H)))


@pytest.mark.parametrize("make", [jr.elman, lambda i, h, **kw: jr.gru(i, h, reset="after", **kw)], ids=["elman", "gru"])
def test_biases_are_zero(make):
    params = make(I, H).init(KEY)
    assert not np.asarray(params.b).any()
    assert not np.asarray(getattr(params, "b_hh", 0)).any()


def test_irnn_starts_from_the_identity():
    params = jr.elman(I, H, activation="relu", recurrent_init="identity").init(KEY)
    np.testing.assert_array_equal(params.W_hh, np.eye(H))


def test_identity_holds_gate_by_gate():
    W = jr.gru(I, H, recurrent_init="identity").init(KEY).W_hh
    np.testing.assert_array_equal(W, np.tile(np.eye(H), 3))


PYTORCH = dict(input_init="uniform", recurrent_init="uniform", bias_init="uniform")


@pytest.mark.parametrize(
    "cell",
    [
        jr.elman(I, H, **PYTORCH),
        jr.lstm(I, H, forget_bias=0, **PYTORCH),
        jr.gru(I, H, reset="after", **PYTORCH),
        jr.gru(I, H, reset="before", **PYTORCH),
    ],
    ids=["elman", "lstm", "gru-after", "gru-before"],
)
def test_uniform_is_that_of_pytorch(cell):
    for leaf in jax.tree.leaves(cell.init(KEY)):
        assert_uniform(leaf, H**-0.5)


def test_functions_are_initialisers_too():
    def count(key, shape, dtype):
        return jnp.arange(np.prod(shape), dtype=dtype).reshape(shape)

    params = jr.gru(2, 3, input_init=count, recurrent_init=count, bias_init=count).init(KEY)
    np.testing.assert_array_equal(params.W_xh, np.tile(np.arange(6).reshape(2, 3), 3))
    np.testing.assert_array_equal(params.W_hh, np.tile(np.arange(9).reshape(3, 3), 3))
    np.testing.assert_array_equal(params.b, np.tile(np.arange(3), 3))


@both_lstms
@pytest.mark.parametrize(
    ("options", "bias"), [({}, 1), ({"forget_bias": 0.0}, 0), ({"forget_bias": 2.5}, 2.5)], ids=str
)
def test_forget_bias_stands_in_the_forget_block_alone(factory, options, bias):
    b = blocks("lstm", factory(I, H, **options).init(KEY).b)
    assert {gate: set(block.tolist()) for gate, block in b.items()} == {
        "i": {0},
        "f": {bias},
        "g": {0},
        "o": {0},
    }


def test_forget_bias_is_added_to_what_bias_init_draws():
    options = dict(bias_init=lambda key, shape, dtype: jnp.full(shape, 0.25, dtype))
    b = blocks("lstm", jr.lstm(I, H, **options).init(KEY).b)
    assert {gate: set(block.tolist()) for gate, block in b.items()} == {
        "i": {0.25},
        "f": {1.25},
        "g": {0.25},
        "o": {0.25},
    }


def test_forget_bias_of_coupled_gates():
    b = blocks("cifg_lstm", jr.cifg_lstm(I, H, forget_bias=2.0).init(KEY).b)
    assert {gate: set(block.tolist()) for gate, block in b.items()} == {"f": {2}, "g": {0}, "o": {0}}
    chrono = blocks("cifg_lstm", jr.cifg_lstm(I, H, T_max=100).init(KEY).b)
    assert_chrono(chrono["f"], 100)
    assert not chrono["g"].any() and not chrono["o"].any()


@every_cell
def test_without_biases_there_are_none(name):
    params = CELLS[name](I, H, bias=False).init(KEY)
    assert params.b is None and getattr(params, "b_hh", None) is None
    with_biases = CELLS[name](I, H).init(KEY)
    for a, b in zip(params[:2], with_biases[:2], strict=True):  # the weights are the same draw
        np.testing.assert_array_equal(a, b)


def test_projection_is_drawn_like_the_recurrent_weights():
    params = jr.lstm(I, H, projection_size=16, learned_carry=True).init(KEY)
    assert params.W_hh.shape == (16, 4 * H) and [a.shape for a in params.initial] == [(16,), (H,)]
    np.testing.assert_allclose(params.W_hr.T @ params.W_hr, np.eye(16), atol=1e-5)


def assert_chrono(bias, T_max):
    """log U(1, T_max - 1)."""
    times = np.exp(np.asarray(bias, np.float64))
    assert times.min() >= 1 - 1e-6 and times.max() <= (T_max - 1) * (1 + 1e-6)  # exp(log) in float32
    # The mean of 64 draws from U(1, T_max - 1): beyond 4 standard errors once in 15 000 seeds.
    assert abs(times.mean() - T_max / 2) < 4 * (T_max - 2) / np.sqrt(12 * H)


@both_lstms
@pytest.mark.parametrize("T_max", [10, 784.0])
def test_chrono_of_lstms(factory, T_max):
    b = blocks("lstm", factory(I, H, T_max=T_max).init(KEY).b)
    assert_chrono(b["f"], T_max)
    np.testing.assert_array_equal(b["i"], -b["f"])
    assert not b["g"].any() and not b["o"].any()


@pytest.mark.parametrize("reset", ["before", "after"])
def test_chrono_of_grus(reset):
    """z is the share of the candidate here, so that its bias is negative where memory is long."""
    b = blocks("gru", jr.gru(I, H, reset=reset, T_max=100).init(KEY).b)
    assert_chrono(-b["z"], 100)
    assert not b["r"].any() and not b["n"].any()


@pytest.mark.parametrize("factory", [jr.lstm, jr.peephole_lstm, jr.ugrnn], ids=lambda f: f.__name__)
def test_forget_bias_and_T_max_exclude_each_other(factory):
    with pytest.raises(ValueError, match=rf"{factory.__name__}: forget_bias=1\.0 and T_max=50 .* give one"):
        factory(I, H, forget_bias=1.0, T_max=50)


@pytest.mark.parametrize("factory", [jr.lstm, jr.peephole_lstm, jr.gru, jr.ugrnn], ids=lambda f: f.__name__)
@pytest.mark.parametrize("T_max", [2, 0.5, -3])
def test_T_max_without_room_is_refused(factory, T_max):
    with pytest.raises(ValueError, match=rf"{factory.__name__}: T_max must be above 2 .* got {T_max}"):
        factory(I, H, T_max=T_max)


def test_peepholes():
    """Diagonal ones N(0, 1/H); full ones as the recurrent weights; three different draws."""
    params = jr.peephole_lstm(1, 1024, recurrent_init="zeros").init(KEY)
    for U in (params.U_i, params.U_f, params.U_o):
        # Standard errors of 1024 draws: 2.2 % of the deviation, 1 / 1024 for the mean; 4.5 of each.
        np.testing.assert_allclose(np.std(U), 1024**-0.5, rtol=0.1)
        np.testing.assert_allclose(np.mean(U), 0, atol=4.5 / 1024)
    full = jr.peephole_lstm(I, H, peephole="full").init(KEY)
    for U in (full.U_i, full.U_f, full.U_o):
        np.testing.assert_allclose(U @ U.T, np.eye(H), atol=1e-5)
    for p in (params, full):
        assert np.abs(p.U_i - p.U_f).max() > 0.01 and np.abs(p.U_f - p.U_o).max() > 0.01


def test_memoryless_cells():
    W, b = jr.readout(I, H).init(KEY)
    assert_uniform(W, np.sqrt(6 / (I + H)))
    assert not b.any()
    assert jr.readout(I, H, bias=False).init(KEY).b_y is None and jr.dense(I, H, bias=False).init(KEY).b_y is None
    np.testing.assert_array_equal(jr.dense(I, H, activation="relu").init(KEY).W_hy, W)
    for leaf in jr.readout(I, H, kernel_init="uniform", bias_init="uniform").init(KEY):
        assert_uniform(leaf, I**-0.5)
    scale, shift = jr.layer_norm(I).init(KEY)
    np.testing.assert_array_equal(scale, np.ones(I))
    np.testing.assert_array_equal(shift, np.zeros(I))
    (table,) = jr.embedding(500, 16).init(KEY)
    np.testing.assert_allclose(np.std(table), 16**-0.5, rtol=0.05)  # 8000 draws: good to 0.8 %


EVERY_FACTORY = {
    "elman": lambda **kw: jr.elman(3, 5, output_size=2, learned_carry=True, **kw),
    "lstm": lambda **kw: jr.lstm(3, 5, learned_carry=True, **kw),
    "lstm-chrono": lambda **kw: jr.lstm(3, 5, T_max=20, **kw),
    "gru": lambda **kw: jr.gru(3, 5, reset="after", learned_carry=True, T_max=20, **kw),
    "mgu": lambda **kw: jr.mgu(3, 5, reset="after", learned_carry=True, **kw),
    "cifg_lstm": lambda **kw: jr.cifg_lstm(3, 5, learned_carry=True, T_max=20, **kw),
    "lstm-projected": lambda **kw: jr.lstm(3, 5, projection_size=2, learned_carry=True, **kw),
    "antisymmetric_rnn": lambda **kw: jr.antisymmetric_rnn(3, 5, gated=True, learned_carry=True, **kw),
    "ugrnn": lambda **kw: jr.ugrnn(3, 5, learned_carry=True, T_max=20, **kw),
    "indrnn": lambda **kw: jr.indrnn(3, 5, recurrent_max=1.1, learned_carry=True, **kw),
    "lem": lambda **kw: jr.lem(3, 5, learned_carry=True, **kw),
    "conv_lstm": lambda **kw: jr.conv_lstm(3, 5, spatial_shape=(4, 2), peephole=True, **kw),
    "conv_gru": lambda **kw: jr.conv_gru(3, 5, spatial_shape=(4, 2), reset="after", **kw),
    "peephole-diagonal": lambda **kw: jr.peephole_lstm(3, 5, **kw),
    "peephole-full": lambda **kw: jr.peephole_lstm(3, 5, peephole="full", **kw),
    "readout": lambda **kw: jr.readout(3, 5, **kw),
    "layer_norm": lambda **kw: jr.layer_norm(3, **kw),
    "embedding": lambda **kw: jr.embedding(7, 5, **kw),
}


# The built-in cells of tests/cases.py, a new one among them.
IN_CASES = {
    f"{name} of the cases": functools.partial(getattr(jr, cell.spec.kind), **dict(cell.spec.options))
    for name, cell in cases.CELLS.items()
    if cell.spec is not None and not cell.spec.children
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", EVERY_FACTORY | IN_CASES)
def test_param_dtype_is_honoured(name, dtype, x64):
    init = (EVERY_FACTORY | IN_CASES)[name](param_dtype=dtype).init
    assert {leaf.dtype.name for leaf in jax.tree.leaves(jax.eval_shape(init, KEY))} == {dtype}
    if dtype == "float16":  # where numbers end soonest
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(init(KEY)))


@pytest.mark.parametrize("name", EVERY_FACTORY)
def test_the_key_decides(name):
    """The same key gives the same parameters; two keys give different ones wherever something is drawn."""
    cell = EVERY_FACTORY[name]()
    first, again, other = cell.init(KEY), cell.init(jax.random.key(0)), cell.init(jax.random.key(1))
    assert jax.tree.structure(first) == jax.tree.structure(other)
    fixed = {"b", "b_y", "b_hh", "h0", "h", "c", "z", "scale", "shift"}
    if "T_max" in dict(cell.spec.options) or cell.spec.kind == "lem":  # whose biases are drawn
        fixed -= {"b"}
    for (path, a), b, c in zip(
        jax.tree_util.tree_leaves_with_path(first),
        jax.tree.leaves(again),
        jax.tree.leaves(other),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
        assert np.array_equal(a, c) == (path[-1].name in fixed), path


def test_members_get_keys_of_their_own():
    """Two equal layers do not start from equal weights."""
    pairs = [
        jr.stack(jr.gru(H, H), jr.gru(H, H)).init(KEY),
        jr.chain(jr.gru(H, H), jr.gru(H, H)).init(KEY),
        jr.branch(jr.gru(H, H), jr.gru(H, H)).init(KEY),
        jr.bidirectional(jr.gru(H, H), jr.gru(H, H)).init(KEY),
    ]
    for first, second in pairs:
        assert np.abs(first.W_xh - second.W_xh).max() > 0.1
        assert np.abs(first.W_hh - second.W_hh).max() > 0.1


def learned(params):
    return params.initial if hasattr(params, "initial") else params.h0


@pytest.mark.parametrize(
    ("name", "batch_shape"),
    [("elman", ()), ("elman", (4,)), ("lstm", (2, 3)), ("peephole_lstm", (4,)), ("gru", (4,))],
)
def test_learned_carry(name, batch_shape, x64):
    """Zero at first, given to every sequence of the batch, and its gradient is the sum of theirs."""
    cell = CELLS[name](3, 5, learned_carry=True, param_dtype=jnp.float64)
    params = cell.init(KEY)
    assert all(not leaf.any() for leaf in jax.tree.leaves(learned(params)))
    start = cell.initial_carry(params, batch_shape)
    assert {leaf.shape for leaf in jax.tree.leaves(start)} == {(*batch_shape, 5)}
    assert all(not leaf.any() for leaf in jax.tree.leaves(start))

    xs = jax.random.normal(jax.random.key(2), (4, *batch_shape, 3))

    def loss(params, carry):
        return jnp.sum(jr.scan(cell).apply(params, xs, carry)[1] ** 2)

    by_learned = learned(jax.jit(jax.grad(loss))(params, None))
    by_given = jax.jit(jax.grad(loss, argnums=1))(params, start)
    for ours, given in zip(jax.tree.leaves(by_learned), jax.tree.leaves(by_given), strict=True):
        assert np.abs(ours).max() > 1e-3
        # float64, and the same sums in another order
        np.testing.assert_allclose(ours, given.reshape(-1, 5).sum(axis=0), rtol=1e-10, atol=1e-12)


@every_cell
def test_learned_carry_is_where_a_run_starts(name):
    cell = CELLS[name](3, 5, learned_carry=True)
    params = cell.init(KEY)
    values = jax.tree.map(lambda a: jnp.arange(5.0), learned(params))
    params = params._replace(**{"initial" if hasattr(params, "initial") else "h0": values})
    for leaf in jax.tree.leaves(cell.initial_carry(params, (2,))):
        np.testing.assert_array_equal(leaf, [np.arange(5.0)] * 2)


@every_cell
def test_without_learned_carry_there_is_no_such_parameter(name):
    cell = CELLS[name](3, 5)
    params = cell.init(KEY)
    assert learned(params) is None
    assert all(not leaf.any() for leaf in jax.tree.leaves(cell.initial_carry(params, (2,))))
