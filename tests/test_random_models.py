"""Models that nobody thought of, built at random, equal the plain loops of cases.py: values, gradients and chunks."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import jaxrnn as jr
from tests.cases import (
    NEUTRAL,
    RUNS,
    B,
    Flags,
    I,
    T,
    differentiable,
    of_branch,
    of_cell,
    of_pair,
    of_stack,
    problem,
    reference,
    weigh,
)
from tests.evaluating import evaluated
from tests.user_cells import clockwork, fast_weights, textbook_lstm

SIZES = st.sampled_from([2, 2, 1, 3])
FLAGS = st.booleans()
# Sums in another order: float64, and float32 where a cell computes in it, over six steps of a few layers.
CLOSE = {None: {"rtol": 1e-9, "atol": 1e-10}, jnp.float32: {"rtol": 1e-3, "atol": 1e-4}}

GATED = {
    jr.lstm: {"forget_bias": st.sampled_from([None, 1.0]), "projection_size": st.sampled_from([None, 2])},
    jr.gru: {"reset": st.sampled_from(["before", "after"])},
    jr.peephole_lstm: {"peephole": st.sampled_from(["diagonal", "full"])},
    jr.cifg_lstm: {},
    jr.mgu: {"reset": st.sampled_from(["before", "after", "none"]), "keep": st.sampled_from(["candidate", "state"])},
    jr.ugrnn: {"forget_bias": st.sampled_from([0.0, 1.0])},
    jr.indrnn: {"recurrent_max": st.sampled_from([None, 0.5])},
    jr.antisymmetric_rnn: {"gated": FLAGS, "epsilon": st.just(0.5)},
    jr.lem: {"dt": st.just(0.7)},
    jr.ctrnn: {
        "form": st.sampled_from(["rate", "current"]),
        "method": st.sampled_from(["euler", "exponential"]),
        "tau": st.sampled_from([30.0, 100.0]),
    },
}
ACTIVATIONS = st.sampled_from(["tanh", "sigmoid", "softsign", ("hard_sigmoid", 0.2, 0.5)])


LINEAR = [jr.lru, jr.s5, jr.min_gru, jr.min_lstm, jr.rg_lru, jr.linear_rnn, jr.sru, jr.qrnn]
OTHERS = [
    functools.partial(jr.sru, form="2018"),
    functools.partial(jr.qrnn, window=3, pooling="ifo"),
    functools.partial(jr.lstm, layer_norm="ba2016"),
    functools.partial(jr.gru, layer_norm="ba2016"),
    jr.slstm,
    functools.partial(jr.mlstm, forget_gate="exp"),
    functools.partial(jr.echo_state, leak=0.7, density=1.0, trainable=True),
]
USERS = [clockwork, fast_weights, textbook_lstm]
WRAPPERS = [
    functools.partial(jr.leaky, rate=0.3),
    functools.partial(jr.clip_state, max_value=0.4),
    functools.partial(jr.zoneout, rate=0.2),
    functools.partial(jr.recurrent_dropout, rate=0.3),
    functools.partial(jr.recurrent_dropout, rate=0.3, kind="moon2015"),
    functools.partial(jr.masked_weights, density=0.7),
    functools.partial(jr.spectral_norm, scale=0.9, iterations=2),
    jr.weight_norm,
    jr.normalized,
]
CLOCKS = [functools.partial(jr.every, period=2), functools.partial(jr.dilated, dilation=2)]  # around all others


@functools.cache
def made(factory, *args, **options):
    """A cell, the same object each time: what JAX traced of it for one model, it knows for the next."""
    cell = factory(*args, **options)
    if factory is fast_weights:  # a cubic: three on top of each other multiply the last digit of their inputs by 1e10
        cell = jr.chain(cell, jr.pointwise(jnp.tanh))
    return cell._replace(output_size=args[1]) if factory in USERS else cell


@st.composite
def built_in(draw, size, dtype):
    """A recurrent cell with options of its own."""
    options = {"bias": draw(FLAGS), "learned_carry": draw(FLAGS), "dtype": dtype, "activation": draw(ACTIVATIONS)}
    if draw(st.integers(0, 3)) == 0:
        return made(jr.elman, size, draw(SIZES), output_size=draw(st.sampled_from([None, 2])), **options)
    factory = draw(st.sampled_from(list(GATED)))
    own = {name: draw(values) for name, values in GATED[factory].items()}
    if not options["bias"]:
        own.pop("forget_bias", None)
    return made(factory, size, draw(SIZES), **options, **own)


@st.composite
def wrapped(draw, size, dtype):
    """A cell in none, one or two wrappers, those that carry on with what the one before them made."""
    cell = draw(built_in(size, dtype))
    for wrap in draw(st.lists(st.sampled_from(WRAPPERS), max_size=2)):
        cell = made(wrap, cell)
    return made(draw(st.sampled_from(CLOCKS)), cell) if draw(st.integers(0, 4)) == 0 else cell


@st.composite
def cells(draw, size, dtype):
    """Any cell: in wrappers, a user's own, several in a chain, side by side."""
    kind = draw(st.sampled_from(["wrapped", "wrapped", "user", "linear", "other", "chain", "branch", "residual"]))
    if kind == "user":
        return made(draw(st.sampled_from(USERS)), size, draw(SIZES))
    if kind == "linear":
        return made(draw(st.sampled_from(LINEAR)), size, draw(SIZES), dtype=dtype)
    if kind == "other":
        return made(draw(st.sampled_from(OTHERS)), size, draw(SIZES))
    if kind == "chain":
        first = draw(wrapped(size, dtype))
        O = first.output_size
        return made(jr.chain, first, draw(st.sampled_from([jr.layer_norm(O), jr.dense(O, O, activation="tanh")])))
    if kind == "branch":
        return made(jr.branch, draw(wrapped(size, dtype)), draw(wrapped(size, dtype)), merge="concat")
    if kind == "residual":
        return made(jr.residual, jr.gru(size, size, dtype=dtype))
    return draw(wrapped(size, dtype))


@functools.cache
def traced_once(cell):
    """The cell for the loop, which calls it T x B times: JAX keeps what it traced of a jitted function."""
    return cell._replace(step=jax.jit(cell.step), initial_carry=jax.jit(cell.initial_carry, static_argnums=1))


def case_of(make, *members):
    """A case of cells, its loop's traced once; the library gets them as they are."""
    return make(*members)._replace(loop=make(*map(traced_once, members)).loop)


@st.composite
def layers(draw, size, dtype):
    """A case of one layer, and how many features it puts out."""
    kind = draw(st.sampled_from(["forward", "forward", "reverse", "pair", "branch"]))
    if kind in ("forward", "reverse"):
        cell = draw(cells(size, dtype))
        return case_of(lambda cell: of_cell(kind, cell, reverse=kind == "reverse"), cell), cell.output_size
    one, two = draw(cells(size, dtype)), draw(cells(size, dtype))
    if kind == "pair":
        join = lambda f, b: jnp.concatenate([f, b], axis=-1)
        case = case_of(lambda one, two: of_pair("pair", one, two, "concat", join), one, two)
    else:  # its merge makes of zeros what is not 0
        merge = lambda a, b: jnp.concatenate([jnp.cos(a), b], axis=-1)
        both = lambda one, two: of_branch("branch", of_cell("", one), of_cell("", two, reverse=True), merge=merge)
        case = case_of(both, one, two)
    return case, one.output_size + two.output_size


@st.composite
def models(draw):
    """A case of one to three layers, and the dtype that its cells compute in."""
    dtype = draw(st.sampled_from([None, None, jnp.float32]))
    members, size = [], I
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        case, size = draw(layers(size, dtype))
        members.append(case)
    case = members[0] if len(members) == 1 else of_stack("stack", *members)
    return case.under(draw(st.sampled_from(list(RUNS)))), dtype


@st.composite
def all_flags(draw):
    """Which steps are valid and where episodes begin, at random; each of them may be left out."""
    numbers = st.integers(0, 2 ** (T * B) - 1)
    bits = lambda: (draw(numbers) >> np.arange(T * B) & 1).astype(bool).reshape(T, B)
    lengths = np.array([draw(st.integers(0, T)) for _ in range(B)]) if draw(FLAGS) else None
    return Flags("", lengths, bits() if draw(FLAGS) else None, bits() if draw(FLAGS) else None, draw(FLAGS))


def check(model, flags, cut, number):
    """Values of every model; gradients of every third, which take five times as long.

    Both programs are run in NumPy, in a tenth of the time that XLA takes to compile them; every twentieth by XLA too.
    """
    case, dtype = model
    turn = zlib.crc32(repr((case.name, case.run, flags, cut, number)).encode())  # a draw would be 0 too often
    params, xs, carry = problem(case, flags, seed=number)
    floats, join = differentiable(carry)
    equal = lambda got, want: jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE[dtype]), got, want)
    ours = lambda params, xs, floats: case.layer.apply(params, xs, join(floats), **flags.options)
    loop = lambda params, xs, floats: reference(case, params, xs, join(floats), flags)

    def differentiated(run):
        def loss(*args):
            outputs = run(*args)
            return weigh(outputs), outputs

        return lambda *args: jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*args)

    if turn % 3 == 0:
        ours, loop = differentiated(ours), differentiated(loop)
    got, want = evaluated(ours)(params, xs, floats), evaluated(loop)(params, xs, floats)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    equal(got, want)
    if turn % 20 == 0:
        equal(jax.jit(ours)(params, xs, floats), want)

    if case.chunks != "none" and 0 < cut < T:
        outputs = got[0][1] if turn % 3 == 0 else got
        options = NEUTRAL | flags.options
        resets = np.concatenate([options["resets"], np.zeros((1, B), bool)])
        parts = [slice(0, cut), slice(cut, T)]
        ys = {}
        for part in parts if case.chunks == "forward" else parts[::-1]:
            of_part = {"mask": options["mask"][part], "resets": resets[part.start : part.stop + 1]}
            of_part |= {"lengths": options["lengths"], "start": part.start}
            run = evaluated(lambda *args, of_part=of_part: case.layer.apply(*args, **of_part))
            carry, ys[part.start] = run(params, xs[part], carry)
        equal((carry, np.concatenate([ys[0], ys[cut]])), outputs)


@pytest.mark.parametrize("shard", range(4))
def test_random_models_equal_the_plain_loop(shard, x64, request):
    """16 models in four parts, so that several processes share them; 2,000 under ``--full``."""
    config = request.config
    examples = (config.getoption("--models") or (2000 if config.getoption("--full") else 16)) // 4
    run = given(models(), all_flags(), st.integers(0, 2 * T), st.integers(0, 2**32 - 1))(check)
    settings(
        max_examples=examples, deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck)
    )(seed(4 * examples + shard)(run))()  # a run of another length has other models


def test_fast_weights_on_top_of_each_other_are_well_conditioned(x64):
    """Unbounded, three layers of them miss the tolerance by rounding alone, in each of these draws."""
    first, second = made(fast_weights, I, 2), made(fast_weights, 2, 2)
    layer = functools.partial(case_of, functools.partial(of_cell, ""))
    model = of_stack("stack", layer(first), layer(second), layer(second))
    for number in (2, 6, 9, 14):
        check((model, None), Flags("", None, None, None, True), 2, number)
