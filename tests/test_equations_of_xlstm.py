"""sLSTM and mLSTM: the paper's equations in NumPy, stabilised and not, gates that no float holds, initial values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn.cells import MLSTMCarry, SLSTMCarry
from tests.cases import draw, randomised

# Both sides compute in float64 and sum under 10 products, over a few steps.
TOLERANCE = {"rtol": 1e-11, "atol": 1e-12}
T, B, I, H = 5, 2, 3, 4
KEY = jax.random.key(0)

# ---- the paper's equations, one sequence, step by step, unit by unit or head by head ----------------------------


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def relu(a):
    return np.where(a.real > 0, a, 0)


def forget(kind):
    """f and log f of the pre-activation."""
    return {"sigmoid": (sigmoid, lambda a: -np.log1p(np.exp(-a))), "exp": (np.exp, lambda a: a)}[kind]


def slstm_gates(p, h, x):
    blocks = p.W_hh if p.W_hh.ndim == 3 else p.W_hh[None]
    heads, d, _ = blocks.shape
    full = np.zeros((heads * d, 4 * heads * d), p.W_hh.dtype)  # the blocks, and 0 beside them
    for place in range(4):
        for head in range(heads):
            units = slice(head * d, (head + 1) * d)
            columns = slice(place * heads * d + head * d, place * heads * d + (head + 1) * d)
            full[units, columns] = blocks[head][:, place * d : (place + 1) * d]
    return dict(zip("ifzo", np.split(x @ p.W_xh + h @ full + (0 if p.b is None else p.b), 4), strict=True))


def slstm_unstabilised(p, carry, x, kind, act):
    h, c, n = carry
    a = slstm_gates(p, h, x)
    i, f, z, o = np.exp(a["i"]), forget(kind)[0](a["f"]), act(a["z"]), sigmoid(a["o"])
    c = f * c + i * z
    n = f * n + i
    h = o * (c / n)
    return (h, c, n), h


def slstm_stabilised(p, carry, x, kind, act):
    h, c, n, m_before = carry
    a = slstm_gates(p, h, x)
    log_i, log_f, z, o = a["i"], forget(kind)[1](a["f"]), act(a["z"]), sigmoid(a["o"])
    m = np.maximum(log_f + m_before, log_i)
    i, f = np.exp(log_i - m), np.exp(log_f + m_before - m)
    c = f * c + i * z
    n = f * n + i
    h = o * (c / n)
    return SLSTMCarry(h, c, n, m), h, dict(i=i, f=f, z=z, o=o, c=c, n=n, m=m, h=h)


def mlstm_gates(p, x):
    heads = p.W_if.shape[-1] // 2
    a, b = x @ p.W_xh, np.zeros(p.W_xh.shape[-1]) if p.b is None else p.b
    d = len(a) // 4 // heads
    q, k, v, o = ((of_W, of_b) for of_W, of_b in zip(np.split(a, 4), np.split(b, 4), strict=True))
    q, k, v = ((W / scale + b).reshape(heads, d) for (W, b), scale in ((q, 1), (k, np.sqrt(d)), (v, 1)))
    i, f = np.split(x @ p.W_if + (0 if p.b_if is None else p.b_if), 2)
    return q, k, v, sigmoid(sum(o)), i, f


def mlstm_unstabilised(p, carry, x, kind, act=None):
    q, k, v, o, log_i, f = mlstm_gates(p, x)
    i, f = np.exp(log_i), forget(kind)[0](f)
    C, n = np.copy(carry[0]), np.copy(carry[1])
    read = np.zeros_like(q)
    for head in range(len(q)):
        C[head] = f[head] * C[head] + i[head] * np.outer(v[head], k[head])
        n[head] = f[head] * n[head] + i[head] * k[head]
        along = n[head] @ q[head]
        along = along if along.real > 0 else -along
        read[head] = C[head] @ q[head] / (along if along.real > 1 else 1)
    return (C, n), o * read.reshape(-1)


def mlstm_stabilised(p, carry, x, kind, act=None):
    q, k, v, o, log_i, f = mlstm_gates(p, x)
    log_f = forget(kind)[1](f)
    m = np.maximum(log_f + carry.m, log_i)
    i, f = np.exp(log_i - m), np.exp(log_f + carry.m - m)
    C, n, read = np.copy(carry.C), np.copy(carry.n), np.zeros_like(q)
    for head in range(len(q)):
        C[head] = f[head] * C[head] + i[head] * np.outer(v[head], k[head])
        n[head] = f[head] * n[head] + i[head] * k[head]
        read[head] = C[head] @ q[head] / max(abs(n[head] @ q[head]), np.exp(-m[head]))
    h = o * read.reshape(-1)
    return MLSTMCarry(C, n, m), h, dict(q=q, k=k, v=v, i=i, f=f, o=o, C=C, n=n, m=m, h=h)


CELLS = {
    "slstm": jr.slstm(I, H, heads=2),
    "slstm, exp": jr.slstm(I, H, forget_gate="exp"),
    "slstm, unusual": jr.slstm(I, H, heads=4, activation="relu", bias=False),
    "mlstm": jr.mlstm(I, H, heads=2),
    "mlstm, exp": jr.mlstm(I, H, forget_gate="exp"),
    "mlstm, unusual": jr.mlstm(I, H, heads=4, forget_gate="exp", bias=False),
}


def transcribed(name, stabilised):
    """``(params, carry, x) -> (carry, h, …)`` of one sequence."""
    made = CELLS[name].spec
    options = dict(made.options)
    equations = {
        ("slstm", True): slstm_stabilised,
        ("slstm", False): slstm_unstabilised,
        ("mlstm", True): mlstm_stabilised,
        ("mlstm", False): mlstm_unstabilised,
    }[made.kind, stabilised]
    act = relu if options.get("activation") == "relu" else np.tanh
    return lambda p, carry, x: equations(p, carry, x, options.get("forget_gate", "sigmoid"), act)


def without_stabiliser(carry):
    """What (h and) the memory and the normaliser are of that size."""
    if isinstance(carry, SLSTMCarry):
        return carry.h, carry.c * np.exp(carry.m), carry.n * np.exp(carry.m)
    return carry.C * np.exp(carry.m)[..., None, None], carry.n * np.exp(carry.m)[..., None]


def problem(cell, batch_shape=()):
    """Params, a carry and inputs, random; an sLSTM's normaliser is positive, as its sums are."""
    params = randomised(jax.eval_shape(cell.init, KEY), 1)
    carry = randomised(jax.eval_shape(lambda p: cell.initial_carry(p, batch_shape), params), 2)
    carry = carry._replace(n=jnp.abs(carry.n) + 0.5) if cell.spec.kind == "slstm" else carry
    return params, carry, draw((T, *batch_shape, I), 3)


def in_numpy(tree, dtype=None):
    return jax.tree.map(lambda a: np.asarray(a, dtype), tree)


def assert_trees_close(got, want, **tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, **(tolerance or TOLERANCE))


@pytest.mark.parametrize(
    ("name", "start"),
    [(name, "given") for name in CELLS]
    + [
        pytest.param(name, "initial", marks=[pytest.mark.full] * ("unusual" in name or name == "slstm"))
        for name in CELLS
    ],
)
def test_the_run_is_that_of_both_recursions(name, start, x64):
    """Every gate and the carry are the stabilised one's; outputs and the memory in its size the other's."""
    cell = CELLS[name]
    params, carry, xs = problem(cell)
    carry = carry if start == "given" else cell.initial_carry(params)
    gates, (end, ys) = jax.jit(lambda *a: (jr.trace_gates(cell, *a), jr.scan(cell).apply(*a)))(params, xs, carry)
    p, stable = in_numpy((params, carry))
    if start == "initial" and (cell.spec.kind == "slstm" or "exp" in name or "unusual" in name):
        stable = stable._replace(m=np.full_like(stable.m, -np.inf))  # what n = 0 stands for
    plain = without_stabiliser(stable)
    for t, x in enumerate(np.asarray(xs)):
        stable, h, want = transcribed(name, True)(p, stable, x)
        plain, same_h = transcribed(name, False)(p, plain, x)
        assert_trees_close((h, without_stabiliser(stable)), (same_h, plain))
        np.testing.assert_allclose(ys[t], h, **TOLERANCE)
        assert gates._fields == tuple(gates._asdict()) and set(want) == set(gates._fields)
        for gate, value in want.items():
            np.testing.assert_allclose(getattr(gates, gate)[t], value, err_msg=gate, **TOLERANCE)
    assert_trees_close(end, stable)


# ---- gates that no float holds --------------------------------------------------------------------------------------


def with_large_gates(cell, params, factor, offset):
    """Weights and biases of the input and forget gates times a factor, the biases of the input gates plus an offset."""
    if cell.spec.kind == "mlstm":
        W_if, b_if = factor * params.W_if, params.b_if
        if b_if is not None:
            b_if = factor * b_if + offset * np.repeat([1, 0], len(b_if) // 2)
        return params._replace(W_if=W_if, b_if=b_if)
    factors = np.repeat([factor, factor, 1, 1], H)
    of_heads = factors[: params.W_hh.shape[-1] * 4 : 4 * H // params.W_hh.shape[-1]]
    b = None if params.b is None else factors * params.b + offset * np.repeat([1, 0, 0, 0], H)
    return params._replace(W_xh=factors * params.W_xh, W_hh=of_heads * params.W_hh, b=b)


LARGE = [
    ("slstm", "float32", 1, 300, 1e-4),  # exp(300) is infinite in float32, and so is its inverse
    ("slstm, exp", "float32", 1, -300, 1e-4),
    ("mlstm", "float32", 1, 300, 1e-4),
    ("mlstm, exp", "float32", 150, 0, 2e-3),
    *(
        pytest.param(name, *rest, marks=pytest.mark.full)
        for name in CELLS
        for rest in [("float32", 150, 0, 2e-3), ("float64", 800, 0, 1e-9)]
    ),
]


@pytest.mark.parametrize(("name", "dtype", "factor", "offset", "rtol"), LARGE)
def test_large_gates_overflow_nothing(name, dtype, factor, offset, rtol, x64):
    """Values and gradients are those of the unstabilised recursion in numbers with exponents up to ± 4932.

    The derivatives are complex steps: exact. The tolerance is what rounding makes of pre-activations of that size.
    """
    if np.finfo(np.longdouble).maxexp < 16000:
        pytest.skip("longdouble is float64 here")
    cell = jr.build(CELLS[name].spec)
    params, _, xs = problem(cell)
    large = with_large_gates(cell, params, factor, offset)
    params, xs = jax.tree.map(lambda a: a.astype(dtype), (large, xs))
    weights = np.asarray(draw((T, H), 7), dtype)

    def loss(params, xs):
        ys = jr.scan(cell).apply(params, xs)[1]
        return (ys * weights).sum(), ys

    (_, ys), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, xs)
    assert ys.dtype == dtype
    leaves, treedef = jax.tree.flatten((params, xs))
    exact = [np.asarray(a, np.clongdouble) for a in leaves]
    start = [np.zeros(a.shape, np.clongdouble) for a in without_stabiliser(cell.initial_carry(params))]

    def run(leaves):
        p, xs = treedef.unflatten(leaves)
        carry, rows = tuple(start), []
        for x in xs:
            carry, h = transcribed(name, False)(p, carry, x)
            rows.append(h)
        return np.stack(rows)

    assert_near(ys, run(exact).real, rtol)
    found, want = [], []
    for place, (a, by) in enumerate(zip(leaves, jax.tree.leaves(gradients), strict=True)):
        direction, step = draw(a.shape, (8, place)), np.longdouble("1e-300")
        moved = [b + 1j * step * np.asarray(direction) if n == place else b for n, b in enumerate(exact)]
        found.append((by * direction).sum())
        want.append((run(moved).imag * weights).sum() / step)
    assert_near(found, want, rtol)


def assert_near(found, want, rtol):
    """Beside the largest of them."""
    want = np.asarray(want, float)
    np.testing.assert_allclose(np.asarray(found, float), want, rtol=rtol, atol=rtol * np.abs(want).max())


def test_a_query_of_zero_reads_zero():
    """exp(-m) is 0 in float32, and so is what it stands beside: derivatives, also second ones, are finite."""
    cell = jr.mlstm(2, H, heads=2, bias=False)
    params = randomised(jax.eval_shape(cell.init, KEY), 1)
    carry = MLSTMCarry(draw((2, 2, 2), 2), draw((2, 2), 3), jnp.array([300.0, 30.0]))
    loss = lambda x, carry: (cell.step(params, carry, x)[1] ** 2).sum()
    y, first, second = jax.jit(
        lambda x: (cell.step(params, carry, x)[1], jax.grad(loss, (0, 1))(x, carry), jax.hessian(loss)(x, carry))
    )(jnp.zeros(2))
    np.testing.assert_array_equal(y, 0)
    assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves((first, second)))


# ---- where a run starts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["slstm", "mlstm, exp"])
def test_an_empty_memory_has_no_size(name):
    """Where nothing is stored the stabiliser may be anything: the outputs are those of a start at zeros."""
    cell = CELLS[name]
    params, _, xs = problem(cell)
    carry = cell.initial_carry(params)
    assert all(not a.any() for a in jax.tree.leaves(carry))
    run = jax.jit(lambda m: jr.scan(cell).apply(params, xs, carry._replace(m=m))[1])
    for m in (-20.0, 20.0):
        np.testing.assert_allclose(run(jnp.full_like(carry.m, m)), run(carry.m), rtol=1e-5, atol=1e-6)


def test_a_memory_of_opposites_is_not_empty():
    """Keys that cancel in n alone, under gates that are all 1: C is kept."""
    cell = jr.mlstm(1, 1, forget_gate="exp", bias=False)
    params = cell.init(KEY)._replace(W_xh=jnp.ones((1, 4)))
    carry, _ = jr.scan(cell).apply(params, jnp.array([[1.0], [-1.0], [1.0]]))
    np.testing.assert_array_equal((carry.C[0, 0, 0], carry.n[0, 0], carry.m[0]), (3, 1, 0))


# ---- what init gives -------------------------------------------------------------------------------------------------


def log_sigmoid(a):
    return -np.log1p(np.exp(-np.asarray(a)))


@pytest.mark.parametrize(("forget_gate", "of"), [("sigmoid", np.asarray), ("exp", log_sigmoid)])
def test_initial_values(forget_gate, of):
    """The authors' code has these."""
    slstm = jr.slstm(500, 9, heads=3, forget_gate=forget_gate).init(KEY)
    i, f, z, o = np.split(np.asarray(slstm.b), 4)
    np.testing.assert_allclose(f, np.tile(of([5, 5 - 12 * 0.5**0.3, -7]), 3), rtol=1e-5)
    assert not i.any() and not z.any() and not o.any() and not slstm.W_hh.any()
    mlstm = jr.mlstm(500, 900, heads=300, forget_gate=forget_gate).init(KEY)
    i, f = np.split(np.asarray(mlstm.b_if), 2)
    np.testing.assert_allclose(f, of(np.linspace(3, 6, 300)), rtol=1e-4)
    assert abs(i.std() - 0.1) < 0.02 and abs(i.mean()) < 0.025  # of 300 numbers: more than 4 standard errors
    assert not mlstm.b.any() and not mlstm.W_if.any()
    for W in (slstm.W_xh, mlstm.W_xh):  # 18,000 numbers or more
        np.testing.assert_allclose(np.std(W), np.sqrt(2 / 5 / 500), rtol=0.03)


def test_the_forget_bias_is_added_to_what_bias_init_draws():
    quarter = lambda key, shape, dtype: jnp.full(shape, 0.25, dtype)
    b = jr.slstm(I, H, forget_bias=2.0, bias_init=quarter).init(KEY).b
    assert b.reshape(4, H)[:, 0].tolist() == [0.25, 2.25, 0.25, 0.25]
    params = jr.mlstm(I, H, heads=2, forget_bias=2.0, bias_init=quarter).init(KEY)
    assert params.b.tolist() == [0.25] * 4 * H and params.b_if[2:].tolist() == [2.25] * 2
    assert jr.slstm(I, 2, heads=2).init(KEY).b[2:4].tolist() == [5, 5]  # heads of one unit
    W = np.asarray(jr.slstm(I, H, heads=2, recurrent_init="orthogonal").init(KEY).W_hh)  # each head's block of a gate
    for block in W.reshape(2, 2, 4, 2).transpose(0, 2, 1, 3).reshape(8, 2, 2):
        np.testing.assert_allclose(block @ block.T, np.eye(2), atol=1e-6)


@pytest.mark.parametrize("make", [jr.slstm, jr.mlstm])
def test_what_does_not_go_together_is_refused(make):
    who = make.__name__
    with pytest.raises(ValueError, match=rf"{who}: heads must divide hidden_size=4, got 3; 1 is one head"):
        make(I, H, heads=3)
    with pytest.raises(ValueError, match=rf"{who}: forget_bias=1\.0 sets the forget gate's bias, but bias=False"):
        make(I, H, forget_bias=1.0, bias=False)
    with pytest.raises(ValueError, match=rf"{who}: forget_gate must be one of 'sigmoid', 'exp', got 'relu'"):
        make(I, H, forget_gate="relu")


@pytest.mark.parametrize("make", [jr.slstm, jr.mlstm])
@pytest.mark.parametrize(
    "wrap",
    [
        functools.partial(jr.leaky, rate=0.5),
        functools.partial(jr.zoneout, rate=0.5),
        functools.partial(jr.clip_state, max_value=1.0),
    ],
    ids=["leaky", "zoneout", "clip_state"],
)
def test_memories_in_other_units_are_not_blended(wrap, make):
    inner = make(I, H)
    cell = wrap(jr.chain(inner, jr.readout(H, 2)))
    params = jax.eval_shape(cell.init, KEY)
    who = wrap.func.__name__
    with pytest.raises(TypeError, match=rf"{who}: the memory of chain \([SM]LSTMCarry\) is in units of exp"):
        jax.eval_shape(lambda p, x: jr.scan(cell).apply(p, x), params, jnp.ones((T, I)))
    with pytest.raises(TypeError, match=rf"{who}: the memory of {inner.spec.kind} "):
        jax.eval_shape(lambda p, x: jr.trace_gates(wrap(inner), p, x), params[0], jnp.ones((T, I)))
