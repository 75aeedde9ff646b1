"""Every cell × the dtypes of its parameters, of computing and of x, with and without biases: the carry keeps its."""

import functools
import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import SPACE, B, H, I, draw

DTYPES = ("float64", "float32", "bfloat16", "float16")
SPATIAL = {"spatial_shape": (SPACE,)}
CELLS = {
    "elman": functools.partial(jr.elman, output_size=2, learned_carry=True),
    "lstm": jr.lstm,
    "lstm, projected": functools.partial(jr.lstm, projection_size=2, learned_carry=True),
    "gru": jr.gru,
    "gru, after": functools.partial(jr.gru, reset="after", learned_carry=True),
    "peephole_lstm": jr.peephole_lstm,
    "peephole_lstm, full": functools.partial(jr.peephole_lstm, peephole="full"),
    "cifg_lstm": jr.cifg_lstm,
    "mgu": functools.partial(jr.mgu, reset="none", keep="state"),
    "mgu, after": functools.partial(jr.mgu, reset="after"),
    "antisymmetric_rnn": jr.antisymmetric_rnn,
    "antisymmetric_rnn, gated": functools.partial(jr.antisymmetric_rnn, gated=True, learned_carry=True),
    "ugrnn": functools.partial(jr.ugrnn, learned_carry=True),
    "indrnn": functools.partial(jr.indrnn, recurrent_max=0.5),
    "lem": jr.lem,
    "conv_lstm": functools.partial(jr.conv_lstm, **SPATIAL),
    "conv_gru": functools.partial(jr.conv_gru, **SPATIAL),
    "conv_gru, after": functools.partial(jr.conv_gru, reset="after", **SPATIAL),
    "conv_lstm, peepholes": functools.partial(jr.conv_lstm, peephole=True, **SPATIAL),
    "slstm": functools.partial(jr.slstm, heads=2),
    "mlstm": functools.partial(jr.mlstm, forget_gate="exp"),
    "lru": jr.lru,
    "s5": functools.partial(jr.s5, discretization="bilinear"),
    "min_gru": jr.min_gru,
    "min_lstm": jr.min_lstm,
    "rg_lru": functools.partial(jr.rg_lru, blocks=2),
    "linear_rnn": functools.partial(jr.linear_rnn, diagonal="complex"),
    "readout": jr.readout,
    "layer_norm": lambda I, H, **dtypes: jr.layer_norm(I, **dtypes),
    "ctrnn": functools.partial(jr.ctrnn, tau=(20.0, 30.0, 40.0, 50.0), dale=0.8, density=0.5, learned_carry=True),
    "ctrnn, current": functools.partial(jr.ctrnn, form="current", method="exponential", noise=0.1),
    "echo_state": jr.echo_state,
}


ONE_WAY = ("readout", "layer_norm", "lru", "s5", "rg_lru", "echo_state")  # without the option ``bias``

# Inputs that parameters of a dtype cannot take without dropping digits or range.
REFUSED = {"float64": (), "float32": ("float64",)} | {
    narrow: tuple(x for x in DTYPES if x != narrow) for narrow in ("bfloat16", "float16")
}


def rows():
    for place, (name, bias, params, dtype) in enumerate(
        itertools.product(CELLS, (True, False), DTYPES, (None, *DTYPES))
    ):
        if bias or name not in ONE_WAY:
            for turn, x in enumerate(DTYPES):
                its_turn = (place + place // 5 + place // 20 - turn) % 8 == 0
                yield pytest.param(name, bias, params, dtype, x, marks=() if its_turn else pytest.mark.full)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "bias", "params", "dtype", "x"), list(rows()))
def test_the_dtype_of_the_carry_is_kept(name, bias, params, dtype, x):
    options = {} if name in ONE_WAY else {"bias": bias}
    cell = CELLS[name](I, H, param_dtype=params, dtype=dtype, **options)
    shape = (B, *(SPACE,) * (cell.x_ndim - 1), I)

    def step(key, x):
        params = cell.init(key)
        carry = cell.initial_carry(params, (B,))
        return params, carry, cell.step(params, carry, x)

    def run():
        return jax.eval_shape(step, jax.random.key(0), jax.ShapeDtypeStruct(shape, x))

    if dtype is None and x in REFUSED[params]:
        with pytest.raises(TypeError, match=f"x is {x} but the parameters are {params}, and computing would drop dig"):
            run()
        return
    made, carry, (new, y) = run()
    assert {a.dtype.name for a in jax.tree.leaves(made)} == {params}
    wide = "float64" if "float64" in (params, dtype) else "float32"
    assert {jnp.finfo(a.dtype).dtype.name for a in jax.tree.leaves((carry, new))} <= {wide}  # of complex numbers' parts
    assert jax.tree.map(lambda a: a.shape, carry) == jax.tree.map(lambda a: a.shape, new)
    assert y.dtype == (dtype or params)


@pytest.mark.usefixtures("x64")
def test_products_of_wide_parameters_in_a_narrow_dtype():
    """As many digits go into a product as the compute dtype has; the state has those of the carry."""
    cell = jr.elman(I, H, bias=False, activation="identity", dtype="bfloat16", param_dtype="float64")
    params = jax.tree.map(lambda a: draw(a.shape, a.shape) / 3, cell.init(jax.random.key(0)))
    xs = draw((3, B, I))
    h = np.zeros((B, H))
    for x in np.asarray(xs):
        rounded = (np.asarray(a).astype(ml_dtypes.bfloat16).astype(float) for a in (h, params.W_hh, x, params.W_xh))
        read, W_hh, x, W_xh = rounded
        h = read @ W_hh + x @ W_xh
    carry, ys = jr.scan(cell).apply(params, xs)
    assert (carry.dtype, ys.dtype) == (jnp.float64, jnp.bfloat16)
    np.testing.assert_allclose(carry, h, rtol=1e-6, atol=1e-6)  # the sums are float32
