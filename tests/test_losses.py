"""What a loss may return to ``training.loop``: a number, or a number and a dict of measures."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn import training

BATCHES = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


def squares(w, batch, key):
    return ((w - batch) ** 2).sum() / 2  # gradient w - batch


def ways(learn, accumulate):
    """Every function of the loop: its results."""
    state = learn.init(jax.random.key(0))
    of_step = BATCHES[0] if accumulate == 1 else BATCHES[:accumulate]
    yield learn.step(state, of_step)
    yield learn.run(state, lambda key, n: jnp.asarray(BATCHES)[n], 6 // accumulate)
    yield learn.evaluate(state.params, BATCHES[1])


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    "loss",
    [
        squares,
        lambda *given: (squares(*given), {}),
        lambda *given: [squares(*given), {"half": squares(*given) / 2}],
    ],
    ids=["number", "pair", "list"],
)
def test_a_number_is_a_loss(loss, accumulate):
    learn = training.loop(lambda key: jnp.ones(3), loss, optax.sgd(0.5), accumulate=accumulate)
    (one, of_one), (many, of_many), held_out = ways(learn, accumulate)
    w, losses, norms = np.ones(3, np.float32), [], []
    for batches in BATCHES.reshape(-1, accumulate, 3):
        losses.append(np.mean([squares(w, batch, None) for batch in batches]))
        norms.append(np.linalg.norm(w - batches.mean(0)))
        w = w - 0.5 * (w - batches.mean(0))
        if len(losses) == 1:
            np.testing.assert_allclose(one.params, w, rtol=1e-6)  # float32
    np.testing.assert_allclose(many.params, w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_many["loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(of_many["grad_norm"], norms, rtol=1e-5)
    np.testing.assert_allclose(of_one["loss"], losses[0], rtol=1e-6)
    np.testing.assert_allclose(held_out["loss"], squares(np.ones(3), BATCHES[1], None), rtol=1e-6)
    more = {"half"} if "half" in of_one else set()
    assert [set(found) for found in (of_one, of_many, held_out)] == [
        {"loss", "grad_norm"} | more,
        {"loss", "grad_norm"} | more,
        {"loss"} | more,
    ]


def test_measures_are_numbers_of_python_too():
    """Summed over batches as all others are."""
    learn = training.loop(
        lambda key: jnp.ones(3), lambda *given: (squares(*given), {"n": 2, "on": True}), optax.sgd(0.5), accumulate=2
    )
    _, measures = learn.step(learn.init(jax.random.key(0)), jnp.asarray(BATCHES)[:2])
    assert (float(measures["n"]), float(measures["on"])) == (2.0, 1.0)


def test_parameters_without_a_gradient_are_told():
    learn = training.loop(lambda key: {"n": jnp.ones((), jnp.int32)}, lambda *given: jnp.ones(()), optax.sgd(0.5))
    with pytest.raises(
        TypeError, match=r"training.loop: params\['n'\] is int32, which has no gradient; make init give"
    ):
        learn.step(learn.init(jax.random.key(0)), BATCHES[0])


@pytest.mark.parametrize("name", ["step", "run", "evaluate"])
@pytest.mark.parametrize(
    "returned, error, message",
    [
        (lambda value: value * jnp.ones(2), TypeError, r"loss\(params, batch, key\) must give one .* of shape \(2,\)"),
        (lambda value: 1.0, TypeError, "must give one floating-point number, got 1.0; compute it with jax.numpy"),
        (lambda value: (value, {"name": "x"}), TypeError, "the measure 'name' must be a number or an array, got 'x'"),
        (lambda value: (value, {}, {}), TypeError, "one floating-point number, got tuple of 3"),
        (lambda value: {"loss": value}, TypeError, r"one floating-point number, got \{'loss': array \(\)\}"),
        (lambda value: (value, value), TypeError, "a number and a dict of measures, got .* beside the number; give {"),
        (lambda value: (value, None), TypeError, "a number and a dict of measures, got NoneType beside the number"),
        (lambda value: (value, {"loss": value}), ValueError, "the loop measures 'loss' itself; give what the"),
    ],
)
def test_what_is_no_loss_is_told(name, returned, error, message):
    learn = training.loop(lambda key: jnp.ones(3), lambda *given: returned(squares(*given)), optax.sgd(0.5))
    state = jax.eval_shape(learn.init, jax.random.key(0))
    calls = {
        "step": lambda state: learn.step(state, BATCHES[0]),
        "run": lambda state: learn.run(state, lambda key, n: jnp.asarray(BATCHES)[n], 2),
        "evaluate": lambda state: learn.evaluate(state.params, BATCHES[0]),
    }
    with pytest.raises(error, match=f"training.loop: .*{message}"):
        jax.eval_shape(calls[name], state)
