"""Wrappers, by hand: what a leaky, normalized or clipped cell computes at each step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import B, H, I, T, draw, randomised
from tests.user_cells import clockwork


def drawn(cell):
    params = randomised(cell.init(jax.random.key(0)), 1)
    return params, randomised(cell.initial_carry(params, (B,)), 2), draw((B, I), 3)


@pytest.mark.parametrize(("rate", "keep"), [(0.1, None), (0.5, 1.0), (1.0, None)])
def test_leaky_moves_part_of_the_way(rate, keep, x64):
    inner = jr.elman(I, H)
    params, h, x = drawn(inner)
    new, y = jr.leaky(inner, rate=rate, keep=keep).step(params, h, x)
    kept = 1 - rate if keep is None else keep
    np.testing.assert_allclose(new, kept * h + rate * inner.step(params, h, x)[0], rtol=1e-12)
    np.testing.assert_array_equal(y, new)


def test_leaky_lstm_blends_both_states_and_the_readout_sees_it(x64):
    inner = jr.chain(jr.lstm(I, H), jr.readout(H, 2))
    params, carry, x = drawn(inner)
    (new, _), y = jr.leaky(inner, rate=0.25).step(params, carry, x)
    (own, _), _ = inner.step(params, carry, x)
    for a, b, c in zip(new, carry[0], own, strict=True):
        np.testing.assert_allclose(a, 0.75 * b + 0.25 * c, rtol=1e-12)
    np.testing.assert_allclose(y, new.h @ params[1].W_hy + params[1].b_y, rtol=1e-12)


def test_leaky_leaves_integers_alone():
    inner = clockwork(I, H)
    params = inner.init(jax.random.key(0))
    carry, _ = jr.leaky(inner, rate=0.5).step(params, inner.initial_carry(params), jnp.ones(I))
    assert carry["clock"].dtype == jnp.int32 and carry["clock"] == 1


def test_leaky_gradient_has_a_way_back():
    """With keep = 1 and no weights at all the gradient of a state 200 steps back is 1."""
    cell = jr.leaky(jr.elman(I, H), rate=0.1, keep=1.0)
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(0)))
    last = lambda h: jr.scan(cell).apply(params, jnp.ones((200, I)), h)[0].sum()  # noqa: E731
    np.testing.assert_array_equal(jax.grad(last)(jnp.zeros(H)), np.ones(H))


@pytest.mark.parametrize("inner", [jr.elman(I, H), jr.lstm(I, H)], ids=["elman", "lstm"])
def test_normalized_reads_its_state_normalized(inner, x64):
    cell = jr.normalized(inner, epsilon=1e-3)
    params, carry, x = drawn(cell)
    h = np.asarray(getattr(carry, "h", carry))
    read = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-3) * params.scale + params.shift
    expected = inner.step(params.cell, carry._replace(h=read) if hasattr(carry, "h") else read, x)
    for a, b in zip(jax.tree.leaves(cell.step(params, carry, x)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_normalized_keeps_gates_and_noise():
    cell = jr.normalized(jr.lstm(I, H))
    params, carry, x = drawn(cell)
    gates = jr.gates(cell, params, carry, x)
    np.testing.assert_allclose(gates.h, cell.step(params, carry, x)[1], rtol=1e-6)


def backward_loop(cell, params, xs, carry, d_ys, clip):
    """∂L/∂(carry at the start, params) by hand: one vjp a step, the carry's gradient clipped before it goes on."""
    carries = [carry]
    for x in xs:
        carries.append(cell.step(params, carries[-1], x)[0])
    d_carry, d_params = jax.tree.map(jnp.zeros_like, carry), jax.tree.map(jnp.zeros_like, params)
    for t in reversed(range(len(xs))):
        back = jax.vjp(lambda p, c, t=t: cell.step(p, c, xs[t]), params, carries[t])[1]
        d_p, d_carry = back((d_carry, d_ys[t]))
        d_params = jax.tree.map(jnp.add, d_params, d_p)
        d_carry = clip(d_carry)
    return d_carry, d_params


def by_norm(limit):
    def clip(tree):
        size = jnp.sqrt(sum((a**2).sum(-1, keepdims=True) for a in jax.tree.leaves(tree)))
        return jax.tree.map(lambda a: a * jnp.minimum(1, limit / size), tree)

    return clip


def by_value(limit):
    return lambda tree: jax.tree.map(lambda a: jnp.clip(a, -limit, limit), tree)


@pytest.mark.parametrize("name", ["elman", "lstm"])
@pytest.mark.parametrize(
    ("option", "clip"), [({"max_norm": 0.5}, by_norm(0.5)), ({"max_value": 0.2}, by_value(0.2))], ids=["norm", "value"]
)
def test_cotangent_clip(name, option, clip, x64):
    cell = getattr(jr, name)(I, H)
    params, carry, _ = drawn(cell)
    xs, d_ys = draw((T, B, I), 4), draw((T, B, H), 5)
    layer = jr.scan(jr.cotangent_clip(cell, **option))
    run = lambda carry, params: (layer.apply(params, xs, carry)[1] * d_ys).sum()  # noqa: E731
    found = jax.grad(run, (0, 1))(carry, params)
    for a, b in zip(*map(jax.tree.leaves, (found, backward_loop(cell, params, xs, carry, d_ys, clip))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    plain = backward_loop(cell, params, xs, carry, d_ys, lambda tree: tree)
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (found, plain)), strict=True)) > 1e-2
    np.testing.assert_array_equal(layer.apply(params, xs, carry)[1], jr.scan(cell).apply(params, xs, carry)[1])


def test_cotangent_clip_with_integer_parts_and_masks(x64):
    """The clock of a user's cell has no gradient; steps that are not valid pass the gradient on as it is."""
    inner = clockwork(I, H)
    params = randomised(inner.init(jax.random.key(0)), 1)
    xs, mask = draw((T, B, I), 4), jnp.asarray(np.random.default_rng(0).random((T, B)) < 0.6)

    def by_h(cell, weight=1.0):
        def last(h):
            carry = {"h": h, "clock": jnp.zeros(B, jnp.int32)}
            return weight * jr.scan(cell).apply(params, xs, carry, mask=mask)[0]["h"].sum()

        return np.asarray(jax.grad(last)(draw((B, H), 6)))

    np.testing.assert_allclose(by_h(jr.cotangent_clip(inner, max_norm=1e6)), by_h(inner), rtol=1e-12)
    # So large a loss is clipped at the last valid step already; the steps before it shrink what is left.
    tight = by_h(jr.cotangent_clip(inner, max_norm=1e-3), weight=1e6)
    assert (np.linalg.norm(tight, axis=-1) <= 1e-3 + 1e-12).all() and (tight != 0).all()


WRAPS = {
    "leaky": lambda cell: jr.leaky(cell, rate=0.5),
    "normalized": jr.normalized,
    "cotangent_clip": lambda cell: jr.cotangent_clip(cell, max_norm=1),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_spec_rebuilds(wrap):
    cell = wrap(jr.lstm(I, H))
    again = jr.build(cell.spec.to_dict())
    assert again.spec == cell.spec
    params, carry, x = drawn(cell)
    for a, b in zip(*(jax.tree.leaves(c.step(params, carry, x)) for c in (cell, again)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("max_value", [0.2, 1e6])
def test_clip_state_of_an_lstm(max_value, x64):
    """The memory is clipped where it is computed: the output sees the clipped one."""
    inner = jr.lstm(I, H)
    params, carry, x = drawn(inner)
    new, y = jr.clip_state(inner, max_value=max_value).step(params, carry, x)
    gates = jr.gates(inner, params, carry, x)
    c = np.clip(gates.c, -max_value, max_value)
    np.testing.assert_array_equal(new.c, c)
    np.testing.assert_allclose(new.h, np.clip(gates.o * np.tanh(c), -max_value, max_value), rtol=1e-12)
    np.testing.assert_array_equal(y, new.h)


def masks(shape, rate, key=5):
    """A mask as one is drawn: 0 or 1 / (1 - rate)."""
    return np.where(np.random.default_rng(key).random(shape) < rate, 0, 1 / (1 - rate))


@pytest.mark.parametrize(
    ("make", "reads"),
    [
        (lambda: jr.elman(I, H), lambda p, h, x, m: np.tanh((m * h) @ p.W_hh + x @ p.W_xh + p.b)),
        (lambda: jr.elman(I, H, output_size=H), lambda p, h, x, m: np.tanh((m * h) @ p.W_hh + x @ p.W_xh + p.b)),
    ],
    ids=["elman", "elman with a readout"],
)
def test_recurrent_dropout_by_hand(make, reads, x64):
    inner = make()
    params, h, x = drawn(inner)
    keep_h, keep_x = masks((B, H), 0.5) > 0, masks((B, I), 0.2, 6) > 0
    cell = jr.recurrent_dropout(inner, rate=0.5, input_rate=0.2)
    new, y = cell.step(params, h, x, ((keep_h, keep_x), None))
    np.testing.assert_allclose(new, reads(params, h, keep_x / 0.8 * x, keep_h / 0.5), rtol=1e-12)
    readout = new if params.W_hy is None else new @ params.W_hy + params.b_y
    np.testing.assert_allclose(y, readout, rtol=1e-12)  # its product reads the new state, whole


def test_recurrent_dropout_leaves_what_no_product_reads(x64):
    """A GRU's (1 - z) * h takes h whole, its r * h goes into a product, through the mask."""
    inner = jr.gru(I, H)
    params, h, x = drawn(inner)
    m = masks((B, H), 0.5)
    new, _ = jr.recurrent_dropout(inner, rate=0.5).step(params, h, x, ((m > 0, None), None))
    _, z, n, _ = jr.gates(inner, params, m * h, x)
    np.testing.assert_allclose(new, (1 - z) * h + z * n, rtol=1e-12)


def joined(input_size, hidden_size):
    """A user's cell with one product, of [h, x]."""
    W_shape = (hidden_size + input_size, hidden_size)

    def step(W, h, x):
        h = 0.5 * h + jnp.tanh(jnp.concatenate([h, x], axis=-1) @ W)
        return h, h

    initial_carry = lambda W, batch_shape=(): jnp.zeros((*batch_shape, hidden_size), W.dtype)  # noqa: E731
    return jr.Cell(lambda key: jax.random.normal(key, W_shape), initial_carry, step)


def test_recurrent_dropout_of_a_users_cell(x64):
    inner = joined(I, H)
    W, h, x = drawn(inner)
    keep_h, keep_x = masks((B, H), 0.5) > 0, masks((B, I), 0.2, 6) > 0
    cell = jr.recurrent_dropout(inner, rate=0.5, input_rate=0.2)
    new, _ = cell.step(W, h, x, ((keep_h, keep_x), None))
    read = np.concatenate([keep_h / 0.5 * h, keep_x / 0.8 * x], axis=-1)
    np.testing.assert_allclose(new, 0.5 * h + np.tanh(read @ W), rtol=1e-12)


@pytest.mark.parametrize("make", [jr.lstm, joined, jr.mgu], ids=["lstm", "user", "mgu"])
def test_recurrent_dropout_draws_once_for_a_sequence(make, x64):
    """A run is that of the steps with the masks of one draw, the same for every step; chunks of it agree."""
    cell = jr.recurrent_dropout(make(I, H), rate=0.5)
    params, carry, _ = drawn(cell)
    xs, key = draw((T, B, I), 4), jax.random.key(3)
    (keep, _), _ = cell.noise(params, key, jnp.arange(T), xs[0])
    assert keep.shape == (1, B, H) and 0 < keep.sum() < keep.size
    noise = ((keep[0], None), None)
    want, held = [], carry
    for t in range(T):
        held, y = cell.step(params, held, xs[t], noise)
        want.append(y)
    layer = jr.scan(cell)
    _, ys = jax.jit(layer.apply)(params, xs, carry, key=key)
    np.testing.assert_allclose(ys, np.stack(want), rtol=1e-12, atol=1e-14)
    half, first = layer.apply(params, xs[:4], carry, key=key)
    _, rest = layer.apply(params, xs[4:], half, key=key, start=4)
    np.testing.assert_allclose(ys, np.concatenate([first, rest]), rtol=1e-12, atol=1e-14)


def test_zoneout_keeps_units_at_random(x64):
    inner = jr.lstm(I, H)
    params, carry, x = drawn(inner)
    keep_h, keep_c = masks((B, H), 0.5) > 0, masks((B, H), 0.2, 6) > 0
    cell = jr.zoneout(inner, rate=0.5, c_rate=0.2)
    new, y = cell.step(params, carry, x, ([keep_h, keep_c], None))
    own, _ = inner.step(params, carry, x)
    np.testing.assert_array_equal(new.h, np.where(keep_h, carry.h, own.h))
    np.testing.assert_array_equal(new.c, np.where(keep_c, carry.c, own.c))
    np.testing.assert_array_equal(y, new.h)


def test_zoneout_in_evaluation_is_its_mean(x64):
    inner = jr.lstm(I, H)
    params, carry, x = drawn(inner)
    new, _ = jr.zoneout(inner, rate=0.5, c_rate=0.2).step(params, carry, x)
    own, _ = inner.step(params, carry, x)
    np.testing.assert_allclose(new.h, 0.5 * carry.h + 0.5 * own.h, rtol=1e-12)
    np.testing.assert_allclose(new.c, 0.2 * carry.c + 0.8 * own.c, rtol=1e-12)


def test_zoneout_draws_its_rates_anew_at_each_step():
    cell = jr.zoneout(jr.lstm(I, 50), rate=0.1, c_rate=0.6)
    params = cell.init(jax.random.key(0))
    (keep_h, keep_c), _ = cell.noise(params, jax.random.key(1), jnp.arange(20), jnp.zeros((4, I)))
    assert keep_h.shape == keep_c.shape == (20, 4, 50)
    # 4,000 draws: a standard error of 0.005 and 0.008, five of them.
    np.testing.assert_allclose([keep_h.mean(), keep_c.mean()], [0.1, 0.6], atol=0.04)
    assert (keep_h[0] != keep_h[1]).any() and (keep_h != keep_c).any()
    (later, _), _ = cell.noise(params, jax.random.key(1), jnp.arange(5, 10), jnp.zeros((4, I)))
    np.testing.assert_array_equal(later, keep_h[5:10])  # a function of absolute time


def test_held_steps_override_zoneout():
    cell = jr.zoneout(jr.gru(I, H), rate=0.5)
    params = randomised(cell.init(jax.random.key(0)), 1)
    xs, h = draw((4, B, I), 2).astype(jnp.float32), jnp.ones((B, H))
    layer, key = jr.scan(cell), jax.random.key(1)
    held, _ = layer.apply(params, xs, h, lengths=jnp.array([0, 2, 4]), key=key)
    np.testing.assert_array_equal(held[0], h[0])
    np.testing.assert_allclose(held[1], layer.apply(params, xs, h, key=key)[1][1, 1], rtol=1e-6)  # float32


def test_noise_of_wrappers_and_of_what_they_wrap_are_two():
    """A zoneout around a recurrent dropout: the inner one's mask is drawn, and is what its own key gives."""
    inner = jr.recurrent_dropout(jr.gru(I, H), rate=0.5)
    cell = jr.zoneout(inner, rate=0.5)
    params, x = cell.init(jax.random.key(0)), jnp.ones((B, I))
    (kept,), ((mask, _), _) = cell.noise(params, jax.random.key(1), jnp.arange(3), x)
    assert kept.shape == (3, B, H) and mask.shape == (1, B, H)
    h, _ = cell.step(params, jnp.ones((B, H)), x, ([kept[0]], ((mask[0], None), None)))
    own, _ = inner.step(params, jnp.ones((B, H)), x, ((mask[0], None), None))
    np.testing.assert_array_equal(h, jnp.where(kept[0], 1.0, own))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: jr.clip_state(jr.gru(I, H), max_value=0), ValueError, "clip_state: max_value must be positive, got 0"),
        (
            lambda: jr.clip_state(jr.scan(jr.gru(I, H)), max_value=1),
            TypeError,
            r"clip_state: expected a Cell, got scan\(gru\), a Layer; wrap the cell",
        ),
        (lambda: jr.zoneout(jr.gru(I, H), rate=1.0), ValueError, "zoneout: rate must be at least 0 and below 1, got 1"),
        (lambda: jr.zoneout(jr.lstm(I, H), rate=0.1, c_rate=-1), ValueError, "zoneout: c_rate must be .* got -1"),
        (lambda: jr.zoneout(jr.gru(I, H), rate=jnp.ones(())), TypeError, "zoneout: rate must be a Python number"),
        (
            lambda: step_of(jr.zoneout(jr.gru(I, H), rate=0.1, c_rate=0.1)),
            TypeError,
            "zoneout: c_rate=0.1 is for the memory c of a NamedTuple, which the carry of gru lacks",
        ),
        (
            lambda: jr.recurrent_dropout(jr.gru(I, H), rate=0.1, input_rate=1),
            ValueError,
            "recurrent_dropout: input_rate must be at least 0 and below 1, got 1",
        ),
        (
            lambda: jr.scan(jr.recurrent_dropout(jr.chain(jr.gru(I, H), jr.gru(H, H)), rate=0.1)).apply(
                jr.chain(jr.gru(I, H), jr.gru(H, H)).init(jax.random.key(0)), jnp.ones((T, I)), key=jax.random.key(0)
            ),
            TypeError,
            "recurrent_dropout: the carry of chain must be one array of floats",
        ),
    ],
)
def test_wrappers_refuse(call, error, words):
    with pytest.raises(error, match=words):
        call()


def step_of(cell):
    return cell.step(cell.init(jax.random.key(0)), cell.initial_carry(cell.init(jax.random.key(0))), jnp.ones(I))


# ---- cells whose steps are written in other ways ---------------------------------------------------


def written(step, carry=lambda h: h, dtype=None):
    """A user's cell of 2 units that starts from ones, the identity its weight."""
    start = lambda W, batch_shape=(): carry(jnp.ones((*batch_shape, 2), dtype))  # noqa: E731
    return jr.Cell(lambda key: jnp.eye(2), start, step)


@jax.custom_jvp
def ruled(h, W):
    return 0.5 * h + jnp.tanh(h @ W)


ruled.defjvp(lambda primals, tangents: (ruled(*primals), tangents[0]))


def dropped(cell, rate=0.5, **options):
    xs = jnp.array([[0.5, -0.5], [0.1, 0.2], [-0.3, 0.4]])
    return jr.scan(jr.recurrent_dropout(cell, rate=rate, **options)).apply(jnp.eye(2), xs, key=jax.random.key(0))


@pytest.mark.parametrize(
    "inside",
    [
        lambda W, h, x: jax.lax.cond(x[0] > 0, lambda h: jnp.tanh(h @ W + x), lambda h: h, h),
        lambda W, h, x: jax.lax.fori_loop(0, 2, lambda _, h: 0.9 * h + 0.1 * jnp.tanh(h @ W), h),
        lambda W, h, x: ruled(h, W),
    ],
    ids=["cond", "loop", "custom_jvp"],
)
def test_recurrent_dropout_refuses_products_that_it_cannot_tell_apart(inside):
    cell = written(lambda W, h, x: (inside(W, h, x),) * 2)
    with pytest.raises(ValueError, match=r"recurrent_dropout\(user cell\): the step reads its state or input inside"):
        dropped(cell)


def test_recurrent_dropout_allows_elementwise_rules_of_their_own():
    """relu has a derivative of its own, and no product: it is computed of both."""
    inline = written(lambda W, h, x: (jnp.maximum(h, 0) @ W + x,) * 2)
    by_rule = written(lambda W, h, x: (jax.nn.relu(h) @ W + x,) * 2)
    np.testing.assert_allclose(dropped(inline)[1], dropped(by_rule)[1], rtol=1e-6)  # two programs, float32


def test_recurrent_dropout_around_a_clip_is_refused():
    inner = jr.cotangent_clip(jr.gru(I, H), max_norm=1.0)
    layer = jr.scan(jr.recurrent_dropout(inner, rate=0.5))
    with pytest.raises(ValueError, match=r"inside 'custom_vjp.* wrap jr\.cotangent_clip around this"):
        layer.apply(layer.init(jax.random.key(0)), jnp.ones((T, I)), key=jax.random.key(0))


def test_recurrent_dropout_reads_the_new_state_whole():
    """Whatever is done to the new state before it is carried, the readout's product reads it as it is."""

    def step(W, h, x):
        new = 0.5 * h + 0.5 * jnp.tanh(h @ W + x)
        return jnp.clip(new, -5, 5), new @ jnp.eye(2)

    h, ys = dropped(written(step))
    np.testing.assert_allclose(ys[-1], h, rtol=1e-6)  # float32


@pytest.mark.parametrize("options", [{"rate": 0.9}, {"rate": 0.0, "input_rate": 0.9}], ids=["state", "input"])
def test_recurrent_dropout_without_products_is_refused(options):
    cell = written(lambda W, h, x: (jnp.tanh(W[0] * h + x),) * 2)
    with pytest.raises(ValueError, match=r"no product of the step .* reads the state or the input"):
        dropped(cell, **options)


def test_recurrent_dropout_leaves_a_skip_connection_alone():
    skip = jr.residual(jr.elman(2, 2))
    params = jax.tree.map(jnp.zeros_like, skip.init(jax.random.key(0)))
    layer = jr.scan(jr.recurrent_dropout(skip, rate=0.0, input_rate=0.5))
    _, ys = layer.apply(params, jnp.ones((4, 3, 2)), key=jax.random.key(1))
    np.testing.assert_array_equal(ys, np.ones((4, 3, 2)))


@pytest.mark.parametrize(
    "wrap",
    [lambda cell: jr.clip_state(cell, max_value=100), lambda cell: jr.zoneout(cell, rate=0.0)],
    ids=["clip_state", "zoneout"],
)
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16], ids=["int32", "bfloat16"])
def test_a_leaf_that_is_a_cast_of_the_state_does_not_round_it(wrap, dtype):
    def step(W, carry, x):
        v = 0.9 * carry["v"] + x @ W
        return {"cast": v.astype(dtype), "v": v}, v

    cell = written(step, lambda h: {"cast": h.astype(dtype), "v": h})
    xs = jnp.array([[0.72, 0.1], [1.31, 0.2]])
    runs = (jax.tree.leaves(jr.scan(c).apply(jnp.eye(2), xs)) for c in (wrap(cell), cell))
    for a, b in zip(*runs, strict=True):
        assert a.dtype == b.dtype
        # Two programs, in float32; a bfloat16 of a number that differs in its last digit may be the next one.
        np.testing.assert_allclose(*(v.astype(float) for v in (a, b)), rtol=1e-6 if a.dtype == jnp.float32 else 8e-3)


def test_states_cast_out_of_an_inner_program_are_refused_too():
    """A cond that computes both states: what h owes to the clipped c cannot be told, in bfloat16 as in float32."""

    def step(W, carry, x):
        both = lambda h, c: (jnp.tanh(c + x), c + x)  # noqa: E731
        h, c = jax.lax.cond(x[0] > 0, both, lambda h, c: (h, c), *(a.astype(jnp.float32) for a in carry))
        return jr.LSTMCarry(h.astype(jnp.bfloat16), c.astype(jnp.bfloat16)), h

    cell = jr.clip_state(written(step, lambda h: jr.LSTMCarry(h, h), jnp.bfloat16), max_value=0.5)
    with pytest.raises(ValueError, match="clip_state"):
        cell.step(jnp.eye(2), cell.initial_carry(jnp.eye(2)), jnp.ones(2))


def test_a_record_of_another_class_is_refused():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class State:
        c: jax.Array
        h: jax.Array

    cell = written(lambda W, s, x: (State(s.h @ W, s.c @ W), s.h), lambda h: State(h, h))
    with pytest.raises(TypeError, match=r"recurrent_dropout: the carry of user cell must be .* or a NamedTuple"):
        dropped(cell)


@pytest.mark.parametrize("x", [{"a": jnp.ones((T, 2))}, jnp.ones((T, 2), int)], ids=["dict", "integers"])
def test_inputs_that_cannot_be_dropped_are_refused(x):
    cell = written(lambda W, h, x: (h @ W,) * 2)._replace(x_ndim=jax.tree.map(lambda a: 1, x))
    with pytest.raises(TypeError, match=r"input_rate=0\.5 needs x to be one array of floats"):
        jr.scan(jr.recurrent_dropout(cell, rate=0.1, input_rate=0.5)).apply(jnp.eye(2), x, key=jax.random.key(0))
