"""Wrapper around wrapper: a run equals a plain loop of the step with what they draw, and gates are the step's."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import draw, randomised

T, B, I, H = 3, 2, 3, 4
KEY = jax.random.key(3)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32
CELLS = jr.gru(I, H), jr.lstm(I, H)
WRAPPERS = {
    "leaky": functools.partial(jr.leaky, rate=0.3),
    "normalized": jr.normalized,
    "clip_state": functools.partial(jr.clip_state, max_value=0.5),
    "gal": functools.partial(jr.recurrent_dropout, rate=0.5, input_rate=0.2),
    "semeniuta": functools.partial(jr.recurrent_dropout, rate=0.5, kind="semeniuta2016"),
    "moon": functools.partial(jr.recurrent_dropout, rate=0.5, kind="moon2015"),
    "zoneout": functools.partial(jr.zoneout, rate=0.3),
    "cotangent_clip": functools.partial(jr.cotangent_clip, max_norm=1.0),
    "weight_drop": functools.partial(jr.weight_drop, rate=0.5),
    "weight_noise": functools.partial(jr.weight_noise, std=0.5),
    "weight_norm": jr.weight_norm,
    "spectral_norm": functools.partial(jr.spectral_norm, scale=0.9, iterations=2),
    "masked_weights": functools.partial(jr.masked_weights, density=0.5),
    "noisy_state": functools.partial(jr.noisy_state, std=0.5),
    "dilated": functools.partial(jr.dilated, dilation=2),
    "every": functools.partial(jr.every, period=2),
}
NOISY = ("gal", "semeniuta", "moon", "zoneout", "weight_drop", "weight_noise", "noisy_state")

# (outer, inner): what the error says.
REFUSED = {
    **dict.fromkeys(
        itertools.product(("leaky", "clip_state", "zoneout", "noisy_state"), ("dilated",)),
        "holds the states of several steps",
    ),
    **{
        pair: "of jr.every and jr.dilated the cell inside"
        for pair in itertools.product(("normalized", "gal", "moon"), ("dilated", "every"))
    },
    ("gal", "cotangent_clip"): "wrap jr.cotangent_clip around this, not inside",
    **{("semeniuta", inner): "without its noise; wrap the cell inside" for inner in NOISY},
    ("semeniuta", "dilated"): "the new state of dilated, which its gates",
    ("every", "dilated"): "the new state of dilated, which its gates",  # of the gates alone
}
BY_DEFAULT = [
    *(("leaky", "every"), ("clip_state", "every"), ("semeniuta", "every"), ("every", "dilated"), ("gal", "every")),
    *(("weight_noise", "masked_weights"), ("dilated", "zoneout"), ("spectral_norm", "weight_norm")),
]


def plain(cell, params, carry, xs, key):
    noise = None
    if cell.noise is not None and key is not None:
        noise = cell.noise(params, key, jnp.arange(T, dtype=jnp.int32), xs[0])
    ys = []
    for t in range(T):
        own = () if noise is None else (jax.tree.map(lambda a, t=t: a[t] if a.shape[0] == T else a[0], noise),)
        carry, y = cell.step(params, carry, xs[t], *own)
        ys.append(y)
    return carry, jnp.stack(ys)


def rows():
    for number, pair in enumerate(itertools.product(WRAPPERS, repeat=2)):
        place = number // len(WRAPPERS) + number
        marks = () if pair in BY_DEFAULT else pytest.mark.full
        yield pytest.param(*pair, CELLS[place % 2], id="-".join(pair), marks=marks)


@pytest.mark.parametrize(("outer", "inner", "cell"), list(rows()))
def test_a_wrapper_around_a_wrapper(outer, inner, cell, traced, tmp_path, request):
    xs = draw((T, B, I), 4).astype(jnp.float32)

    def runs(params, xs):
        carry = cell.initial_carry(params, (B,))
        return [(jr.scan(cell).apply(params, xs, carry, key=k), plain(cell, params, carry, xs, k)) for k in (None, KEY)]

    def gates_and_steps(params, xs):
        carry, _ = cell.step(params, cell.initial_carry(params, (B,)), xs[0])
        return cell.gates(params, carry, xs[1]), cell.step(params, carry, xs[1])[0]

    def check():
        params = randomised(jax.eval_shape(cell.init, KEY), 5)
        for ours, loop in traced(runs)(params, xs):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), ours, loop)
        if request.config.getoption("--full"):
            own = cell.init(KEY)
            jr.save(tmp_path / "pair.safetensors", cell, own)
            loaded, of_file, _ = jr.load(tmp_path / "pair.safetensors")
            assert loaded.spec == cell.spec
            jax.tree.map(np.testing.assert_array_equal, of_file, own)
        gates, carry = traced(gates_and_steps)(params, xs)
        state = getattr(carry, "cell", carry)
        if outer not in ("dilated", "weight_drop") and hasattr(getattr(state, "h", state), "shape"):
            np.testing.assert_allclose(gates.h, getattr(state, "h", state), **CLOSE)

    if (outer, inner) in REFUSED:
        with pytest.raises((TypeError, ValueError), match=REFUSED[outer, inner]):
            cell = WRAPPERS[outer](WRAPPERS[inner](cell))
            check()
    else:
        cell = WRAPPERS[outer](WRAPPERS[inner](cell))
        check()


def test_a_count_goes_on_where_candidates_are_dropped(traced):
    """Integers are not among the gates, by which the new state is computed."""
    cell = jr.recurrent_dropout(jr.every(jr.gru(I, H), period=3), rate=0.5, kind="semeniuta2016")
    params = randomised(jax.eval_shape(cell.init, KEY), 5)
    run = lambda params, xs: jr.scan(cell).apply(params, xs, key=KEY)
    carry, ys = traced(run)(params, jnp.ones((5, I)))
    assert carry.clock == 5 % 3
    np.testing.assert_array_equal(ys[[1, 2, 4]], ys[[0, 0, 3]])
    assert (ys[3] != ys[0]).any()
