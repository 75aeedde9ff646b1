"""``jr.check_cell``: a cell that breaks one rule is told which; the library's own break none."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import randomised
from tests.user_cells import clockwork

T, B, H = 3, 2, 3
KEY = jax.random.key(0)
XS = jnp.asarray(np.random.default_rng(0).normal(size=(T, B, H)), jnp.float32)


def leaky(params, h, x):
    h = 0.9 * h + jnp.tanh(x + params)
    return h, h


def zeros(params, batch_shape=()):
    return jnp.zeros((*batch_shape, H))


def cell(step=leaky, initial_carry=zeros, **fields):
    return jr.Cell(lambda key: jnp.full(H, 0.1), initial_carry, step, **fields)


def noisy(params, h, x, noise=None):
    h, _ = leaky(params, h, x)
    return (h, h) if noise is None else (h + noise, h + noise)


def by_time(params, key, times, x):
    return jr.draw_each_step(lambda k: jax.random.normal(k, x.shape), key, times)


SOUND = {
    "noisy": cell(noisy, noise=by_time),
    "in a chain": jr.chain(jr.dropout(0.5), jr.zoneout(jr.elman(H, 2), rate=0.2), jr.branch(jr.readout(2, 2))),
    "user's": clockwork(H, 2),
    "narrow": jr.readout(H, 2, dtype="bfloat16"),
}


@pytest.mark.parametrize(
    "name", [*list(SOUND)[:2], *(pytest.param(n, marks=pytest.mark.full) for n in list(SOUND)[2:])]
)
def test_cells_that_keep_the_rules(name):
    own = SOUND[name]
    assert jr.check_cell(own, randomised(own.init(KEY)), XS) is None


def test_a_cell_that_reads_tokens_keeps_them():
    own = jr.embedding(5, 2)
    assert jr.check_cell(own, own.init(KEY), jnp.array([3, 1, 4])) is None


# ---- one rule broken by each --------------------------------------------------------------------


def calls_counted():
    calls = []

    def step(params, h, x):
        calls.append(None)
        h, y = leaky(params, h, x)
        return h, y * len(calls)

    return cell(step)


def numpy_noise():
    rng = np.random.default_rng(0)
    return cell(lambda params, h, x: leaky(params, h, x + rng.normal()))


def state_kept_outside():
    seen = []

    def step(params, h, x):
        seen.append(h)
        return leaky(params, h, x)

    return cell(step)


class Gates(NamedTuple):
    h: jax.Array


def traced_otherwise(params, h, x):
    h = 0.9 * h + x * (2 if isinstance(x, jax.core.Tracer) else 1)
    return h, h


BROKEN = {
    "a counter in the closure": (calls_counted, ["purity: step, called again with the same arguments, gives"]),
    "random numbers of NumPy": (numpy_noise, ["purity: step, called again", "what is random into noise"]),
    "random parameters": (
        lambda: cell()._replace(init=lambda key: jnp.asarray(np.random.default_rng().normal(size=H))),
        ["purity: init, called again"],
    ),
    "a tracer kept": (state_kept_outside, ["purity: step keeps a value of the trace", "return it as y, or carry it"]),
    "a carry of another dtype": (
        lambda: cell(lambda p, h, x: (leaky(p, h, x)[0].astype("float16"), h)),
        ["kept: step turned carry from float32 into float16", "cast it back"],
    ),
    "a carry of another shape": (
        lambda: cell(lambda p, h, x: (h[..., None], h)),
        ["kept: the carry that step returned"],
    ),
    "no pair": (lambda: cell(lambda p, h, x: h), ["kept: step must return the pair (carry, y)"]),
    "one batch axis, in the carry": (
        lambda: cell(initial_carry=lambda p, batch_shape=(): jnp.zeros((batch_shape[0], H))),
        [
            "batch shapes: with the batch shape (2, 2)",
            "batch shapes: with the batch shape () initial_carry raised IndexError",
        ],
    ),
    "one batch axis, in the step": (
        lambda: cell(lambda p, h, x: leaky(p, h, x - x.mean(axis=1, keepdims=True))),
        ["batch shapes: with the batch shape () step raised", "axis=-1"],
    ),
    "sequences mixed": (
        lambda: cell(lambda p, h, x: leaky(p, h, x - x.mean(axis=0))),
        ["batch shapes: a sequence gives something else with the batch shape ()", "with the batch shape (2, 2)"],
    ),
    "an output without the batch": (
        lambda: cell(lambda p, h, x: (leaky(p, h, x)[0], jnp.zeros(7))),
        ["batch shapes: with the batch shape (2,) the output of step has shape (7,)"],
    ),
    "another step under trace": (
        lambda: cell(traced_otherwise),
        ["loop: jr.scan gives something else than a Python loop"],
    ),
    "noise without times": (
        lambda: cell(noisy, noise=lambda p, key, times, x: jax.random.normal(key, (len(times), *x.shape))),
        ["chunks: the noise of the steps from 1 on is another", "times=[1, 2]", "jr.draw_each_step(draw, key, times)"],
    ),
    "noise of no length": (
        lambda: cell(noisy, noise=lambda p, key, times, x: jnp.zeros((5, *x.shape))),
        ["scan: the cell's noise has a leaf of shape (5, 2, 3)"],
    ),
    "no evaluation": (
        lambda: cell(lambda p, h, x, noise: noisy(p, h, x, noise), noise=by_time),
        ["1 rule", "step raised TypeError", "missing 1 required positional argument: 'noise'", "noise=None)"],
    ),
    "a norm at zero": (
        lambda: cell(lambda p, h, x: leaky(0, h, x / (1 + jnp.linalg.norm(p * x, axis=-1, keepdims=True)))),
        ["padding: gradients are not finite where steps are masked", "derivative at 0 is not finite"],
    ),
    "gates without names": (
        lambda: cell(gates=lambda p, h, x: {"h": h}),
        ["gates: they must be a NamedTuple"],
    ),
    "a size that is not": (
        lambda: cell(output_size=5),
        ["sizes: output_size is 5, but the output of step has", "(3,)"],
    ),
    "an if on values": (
        lambda: cell(lambda p, h, x: leaky(p, h, x) if (x > 0).all() else (h, h)),
        ["1 rule", "runs: step raised TracerBoolConversionError", "no Python if on them, no NumPy"],
    ),
    "an init that fails": (
        lambda: cell()._replace(init=lambda key: 1 / 0),
        ["params: init raised ZeroDivisionError: division by zero"],
    ),
    "params of another shape": (
        lambda: cell()._replace(init=lambda key: jnp.ones(H + 1)),
        ["1 rule", "params: params should have shape (4,), got (3,)"],
    ),
    "gates of another step": (
        lambda: cell(gates=lambda p, h, x: Gates(jnp.tanh(h + x))),
        ["gates: their h is not the h that step carries on"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_a_cell_breaks_is_said(name):
    make, words = BROKEN[name]
    broken = make()
    message = r"(?s)check_cell: user cell breaks .*" + ".*".join(map(re.escape, words))
    with pytest.raises(ValueError, match=message):
        jr.check_cell(broken, jnp.full(H, 0.1), XS)


def test_all_that_is_broken_is_listed():
    mixed = cell(lambda p, h, x: leaky(0, h, jnp.sqrt(abs(p * x)) - x.mean(axis=0)))
    with pytest.raises(ValueError) as info:
        jr.check_cell(mixed, jnp.full(H, 0.1), XS)
    lines = str(info.value).splitlines()
    assert [re.match(r"\d\. ([\w ]+):", line)[1] for line in lines[1:]] == ["batch shapes", "batch shapes", "padding"]


MISTAKES = {
    "a Layer": (
        lambda: jr.check_cell(jr.scan(cell()), (), XS),
        TypeError,
        r"check_cell: expected a Cell, got user layer",
    ),
    "one step": (
        lambda: jr.check_cell(cell(), (), XS[:1]),
        ValueError,
        r"check_cell: xs has 1 steps .*at least 2 steps",
    ),
    "no sequence": (
        lambda: jr.check_cell(cell(), (), XS[:, :0]),
        ValueError,
        r"check_cell: xs has 3 steps and the .*\(0,\)",
    ),
    "NaN": (
        lambda: jr.check_cell(cell(), (), XS.at[0, 0, 0].set(jnp.nan)),
        ValueError,
        "check_cell: xs is not finite, and of NaN nothing can be told",
    ),
    "no function": (
        lambda: jr.draw_each_step(3, KEY, jnp.arange(2)),
        TypeError,
        "draw_each_step: draw must be a function",
    ),
    "times": (
        lambda: jr.draw_each_step(jnp.sin, KEY, 3),
        TypeError,
        r"draw_each_step: times must be integers of shape \(T,\)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told(mistake):
    call, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        call()
