"""Bad inputs to the gradient lab: who, what was expected, what came, and the fix."""

import functools

import jax
import jax.numpy as jnp
import pytest

import jaxrnn as jr
from tests.cases import H, I, T
from tests.errors import KEY, assert_fails, user_cell
from tests.user_cells import clockwork

B = 2
LSTM, CLOCK = jr.lstm(I, H), clockwork(I, H)
LAYER = jr.scan(LSTM)
XS = jnp.ones((T, B, I))


def last(carry, ys):
    return ys[-1].sum()


def on(function, cell, *rest, xs=XS, **options):
    """A function of the lab on a cell's own parameters."""
    call = lambda: function(cell, cell.init(KEY), xs, *rest, **options)
    call.args = function, cell, rest, options
    return call


flow = functools.partial(on, jr.gradients.gradient_flow)
values = functools.partial(on, jr.gradients.log_singular_values)
lyapunov = functools.partial(on, jr.gradients.lyapunov_spectrum)
penalty = functools.partial(on, jr.gradients.jacobian_penalty)


def hidden_in_a_scan(params, h, x):
    """y comes out of the same inner loop as the carry: what it owes to the carry cannot be seen."""
    return jax.lax.scan(lambda h, _: (h * params["a"], h), h, length=2)


def two_in_a_cond(params, carry, x):
    (h, c) = jax.lax.cond(params["a"] > 0, lambda h, c: (jnp.tanh(c * h), c * 2), lambda h, c: (h, c), *carry)
    return (h, c), h


def hidden_in_a_cond(params, h, x):
    return jax.lax.cond(params["a"] > 0, lambda h: (h * 2, h * 3), lambda h: (h, h), h)


CASES = {
    "loss not scalar": (
        flow(LSTM, lambda carry, ys: ys[-1]),
        TypeError,
        ["gradient_flow: loss(carry, ys) must give one floating-point number", "float32 of shape (2, 4)", ".mean()"],
    ),
    "loss of integers": (
        flow(LSTM, lambda carry, ys: (ys > 0).sum()),
        TypeError,
        ["gradient_flow: loss(carry, ys) must give one floating-point number, got int32"],
    ),
    "loss not scalar, penalty": (
        penalty(LSTM, lambda carry, ys: ys),
        TypeError,
        ["jacobian_penalty: loss(carry, ys) must give one floating-point number"],
    ),
    "flow of nothing": (flow(LSTM, last, xs=XS[:0]), ValueError, ["gradient_flow: xs has T = 0 steps", "at least 1"]),
    "flow of no layer": (
        lambda: jr.gradients.gradient_flow(3, None, XS, last),
        TypeError,
        ["expected a Cell or a Layer, got int"],
    ),
    "flow through truncation": (
        flow(jr.tbptt(LSTM, window=2), last),
        ValueError,
        ["tbptt: gradient flow is measured on whole runs", "give gradient_flow the layer itself"],
    ),
    "features": (flow(LSTM, last, xs=XS[..., :2]), ValueError, ["gradient_flow: expected x of shape (T, *B, 3)"]),
    "hidden in a scan": (
        flow(user_cell(hidden_in_a_scan), lambda carry, ys: ys.sum()),
        ValueError,
        ["scan(user cell): the step computes its new carry inside 'scan', together with other results", "alone"],
    ),
    "hidden in a cond": (
        flow(user_cell(hidden_in_a_cond), lambda carry, ys: ys.sum()),
        ValueError,
        ["the step computes its new carry inside 'cond', together with other results"],
    ),
    "two states in a cond": (
        flow(
            user_cell(two_in_a_cond, lambda params, batch_shape=(): (jnp.zeros(batch_shape), jnp.zeros(batch_shape))),
            lambda carry, ys: ys.sum(),
        ),
        ValueError,
        ["the step computes several arrays of its new carry inside one 'cond'", "each of them after it"],
    ),
    "complex": (
        flow(
            user_cell(lambda p, h, x: (h, h))._replace(init=lambda key: {"a": jnp.ones((), complex)}),
            lambda carry, ys: ys.real.sum(),
        ),
        TypeError,
        ["gradient_flow: params['a'] is complex64, and parameters must be real; give real and imaginary parts"],
    ),
    "leaky, traced": (
        lambda: jax.jit(lambda rate: jr.leaky(LSTM, rate=rate).step(LSTM.init(KEY), None, None))(0.5),
        TypeError,
        ["leaky: rate must be a Python number, got", "among its params"],
    ),
    "jacobian of a wrong carry": (
        lambda: jr.gradients.step_jacobian(LSTM, LSTM.init(KEY), jnp.zeros((B, H)), XS[0]),
        ValueError,
        ["step_jacobian: carry should be LSTMCarry(h=array (2, 4), c=array (2, 4)), got array (2, 4)"],
    ),
    "norms by lag": (
        lambda: jr.gradients.norm_by_lag(jnp.ones(())),
        ValueError,
        ["norm_by_lag: expected norms (T, *B)"],
    ),
    "norms by lag, lengths": (
        lambda: jr.gradients.norm_by_lag(jnp.ones((T, B)), lengths=jnp.ones(3, int)),
        ValueError,
        ["norm_by_lag: lengths must have the batch shape (2,)", "got (3,)"],
    ),
    "lag too long": (
        values(LSTM, lag=T + 1),
        ValueError,
        ["log_singular_values: lag=7 is longer than the sequence, T = 6; give at most lag=6"],
    ),
    "lag 0": (values(LSTM, lag=0), ValueError, ["log_singular_values: lag must be a positive int, got 0"]),
    **{
        f"integer parts, {who}": (
            call(CLOCK),
            TypeError,
            [f"{who}: carry['clock'] is int32, and there is no derivative by what is not a float"],
        )
        for who, call in {
            "log_singular_values": values,
            "lyapunov_spectrum": lyapunov,
            "jacobian_penalty": lambda cell: penalty(cell, last),
            "step_jacobian": lambda cell: (
                lambda: jr.gradients.step_jacobian(cell, cell.init(KEY), cell.initial_carry(cell.init(KEY)), XS[0, 0])
            ),
        }.items()
    },
    **{
        f"a layer, {who}": (
            call(LAYER),
            TypeError,
            [f"{who}: expected a Cell, got scan(lstm), a Layer; give the Cell that it runs"],
        )
        for who, call in {"log_singular_values": values, "lyapunov_spectrum": lyapunov}.items()
    },
    "nothing carried": (lyapunov(jr.readout(I, 2)), ValueError, ["lyapunov_spectrum: the cell carries nothing"]),
    "k above the carry": (
        lyapunov(LSTM, k=9),
        ValueError,
        ["lyapunov_spectrum: k=9 is more than the 8 numbers of the carry; give at most that"],
    ),
    "k 0": (lyapunov(LSTM, k=0), ValueError, ["lyapunov_spectrum: k must be a positive int, got 0"]),
    "burn_in of all": (
        lyapunov(LSTM, burn_in=T),
        ValueError,
        ["lyapunov_spectrum: burn_in=6 leaves none of the T = 6 steps; give at most 5"],
    ),
    "burn_in below 0": (lyapunov(LSTM, burn_in=-1), ValueError, ["burn_in must be an int, 0 or above, got -1"]),
    "exponents of nothing": (lyapunov(LSTM, xs=XS[:0]), ValueError, ["lyapunov_spectrum: xs has T = 0 steps"]),
    "words under jit": (
        on(jr.gradients.diagnose, LSTM),
        TypeError,
        ["diagnose: its words need values, so it cannot be jitted"],
    ),
    "not square": (
        lambda: jr.gradients.spectral_radius(LSTM.init(KEY).W_hh),
        ValueError,
        ["spectral_radius: expected matrix to be square, (…, N, N), got (4, 16)", "take one block"],
    ),
    "leaky, rate": (lambda: jr.leaky(LSTM, rate=0.0), ValueError, ["leaky: rate must be above 0, got 0.0"]),
    "leaky, keep": (lambda: jr.leaky(LSTM, rate=1.5), ValueError, ["leaky: keep must lie between 0 and 1, got -0.5"]),
    "leaky, layer": (
        lambda: jr.leaky(LAYER, rate=0.5),
        TypeError,
        ["leaky: expected a Cell, got scan(lstm), a Layer", "jr.scan"],
    ),
    "normalized, epsilon": (lambda: jr.normalized(LSTM, epsilon=0), ValueError, ["epsilon must be positive, got 0"]),
    "normalized, chain": (
        lambda: jr.normalized(jr.chain(LSTM, jr.gru(H, H))).init(KEY),
        TypeError,
        ["normalized: the carry of chain must be one array", "NamedTuple with such an h", "of a chain wrap each cell"],
    ),
    "clip, none": (lambda: jr.cotangent_clip(LSTM), ValueError, ["cotangent_clip: give either max_norm or max_value"]),
    "clip, both": (
        lambda: jr.cotangent_clip(LSTM, max_norm=1, max_value=1),
        ValueError,
        ["cotangent_clip: give either max_norm or max_value"],
    ),
    "clip, limit": (
        lambda: jr.cotangent_clip(LSTM, max_norm=0),
        ValueError,
        ["cotangent_clip: max_norm must be positive, got 0"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_error(case):
    assert_fails(*CASES[case])


def at_zero(params, batch_shape=()):
    return jnp.zeros((*batch_shape, H))


def exploding(gain):
    cell = jr.elman(I, H, activation="identity", recurrent_init="identity")
    params = cell.init(KEY)
    return cell, params._replace(W_hh=gain * params.W_hh)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: jr.gradients.gradient_flow(*exploding(1.0), XS.at[3].set(jnp.nan), last),
            "gradient_flow: ys is not finite at 3 of 6 steps, first at 3, last at 5; look at",
        ),
        (
            lambda: jr.gradients.gradient_flow(*exploding(1.0), XS, lambda carry, ys: jnp.log(-(ys[-1, 0, 0] ** 2))),
            "gradient_flow: the loss is not finite; the outputs are finite, so look at the loss",
        ),
        (
            lambda: jr.gradients.gradient_flow(*exploding(1e20), jnp.zeros((T, B, I)), last),
            "gradient_flow: the gradient by carry.norm is not finite at 4 of 6 steps, first at 0, last at 3",
        ),
        (
            lambda: jr.gradients.lyapunov_spectrum(*exploding(1e20), XS),
            "lyapunov_spectrum: the state is not finite at 4 of 6 steps, first at 2, last at 5; look at",
        ),
        (
            lambda: jr.gradients.log_singular_values(*exploding(1e20), XS, lag=4),
            "log_singular_values: the state is not finite at 4 of 6 steps, first at 2, last at 5; look at",
        ),
        (
            lambda: jr.gradients.diagnose(user_cell(lambda p, h, x: (jnp.sqrt(h), h), at_zero), {"a": 1.0}, XS),
            "diagnose: the derivative by the state is not finite at step 1, or before; look at what the step does",
        ),
    ],
    ids=["ys", "loss", "gradient", "lyapunov", "products", "diagnosis"],
)
def test_what_is_not_finite_is_named_with_its_first_step(call, message):
    with pytest.raises(FloatingPointError) as info:
        call()
    assert str(info.value).startswith(message)


def test_under_jit_what_is_not_finite_comes_back():
    cell, params = exploding(1e20)
    flow = jax.jit(lambda xs: jr.gradients.gradient_flow(cell, params, xs, last))(jnp.zeros((T, B, I)))
    assert (~jnp.isfinite(flow.states.mean)).tolist() == [True] * 4 + [False] * 2


@pytest.mark.multidevice
@pytest.mark.parametrize("call", [flow(LSTM, last), lyapunov(LSTM, k=1), values(LSTM), penalty(LSTM, last)])
def test_explicit_meshes_are_refused(call):
    mesh = jax.make_mesh((2,), ("b",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        xs = jax.device_put(XS, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "b")))
        function, cell, rest, options = call.args
        with pytest.raises(ValueError, match=r"Explicit mesh axes are not supported; run it on a mesh with Auto axes"):
            function(cell, cell.init(KEY), xs, *rest, **options)


@pytest.mark.parametrize("call", [flow(LSTM, last), lyapunov(LSTM, k=1), values(LSTM, lag=2), penalty(LSTM, last)])
def test_strict_dtype_promotion(call):
    with jax.numpy_dtype_promotion("strict"):
        assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(jax.jit(call)()))
