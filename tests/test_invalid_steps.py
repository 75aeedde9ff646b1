"""Outputs are 0 where a step is not valid, whatever a combinator adds, merges or puts out there; and nothing leaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn._spec import FACTORIES
from tests.cases import GAPS, LENGTHS, B, H, I, T, draw, randomised, weigh

START = 2  # the run is a chunk: lengths count from two steps before it
OPTIONS = {"lengths": LENGTHS + START, "mask": GAPS, "start": START}
ON = GAPS & (np.arange(T)[:, None] < LENGTHS)


def shift(size):
    """A user's cell that puts out its parameters where its input is 0."""
    return jr.Cell(lambda key: jnp.ones(size), lambda p, batch_shape=(): (), lambda p, carry, x: (carry, x + p))


def both_ways(merge, output_size=H, **options):
    return jr.bidirectional(jr.elman(I, output_size), jr.elman(I, output_size), merge=merge, **options)


# By combinator, models that would put out something else: biases are random, merges not 0 of zeros.
MODELS = {
    "stack": {
        "of merges": jr.stack(jr.readout(I, I), both_ways(lambda f, b: f + b + 1)),
        "of cells": jr.stack(jr.elman(I, H), jr.layer_norm(H), shift(H)),
    },
    "chain": {"reversed": jr.scan(jr.chain(jr.elman(I, H), jr.readout(H, 2), shift(2)), reverse=True)},
    "bidirectional": {
        "merged by a function": both_ways(lambda f, b: f + b + 1),
        "merged into a tree": both_ways(lambda f, b: {"cos": jnp.cos(f), "rest": (b - 3, f > -9)}),
        "merged into NaN": both_ways(jnp.divide, run=lambda cell, **o: jr.scan(cell, plan="plain", **o)),
    },
    "residual": {
        "of a layer": jr.residual(jr.scan(jr.chain(jr.elman(I, H), jr.readout(H, I)))),
        "of a merge": jr.residual(both_ways(jnp.logaddexp, output_size=I)),
    },
}
ROWS = {f"{kind} {name}": model for kind, models in MODELS.items() for name, model in models.items()}


def test_every_combinator_has_a_row():
    assert MODELS.keys() == {kind for kind, made_by in FACTORIES.items() if made_by.__module__ == "jaxrnn.combine"}


@pytest.mark.parametrize("name", ROWS)
def test_outputs_are_zero_where_a_step_is_not_valid(name):
    model = ROWS[name]
    params = randomised(model.init(jax.random.key(0)))

    @jax.jit
    def run(params, xs, options):
        def loss(params, xs):
            _, ys = model.apply(params, xs, **options)
            return weigh(ys), ys

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, xs)

    xs = jnp.where(ON[..., None], draw((T, B, I)), 0)
    (loss, ys), (by_params, by_xs) = run(params, xs, OPTIONS)
    for y in jax.tree.leaves(ys):
        assert not np.asarray(y)[~ON].any()
        assert np.asarray(y)[ON].any()
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((loss, by_params)))
    assert not np.asarray(by_xs)[~ON].any() and np.asarray(by_xs)[ON].all()
    spoilt = run(params, jnp.where(ON[..., None], xs, jnp.nan), OPTIONS)
    jax.tree.map(np.testing.assert_array_equal, spoilt, ((loss, ys), (by_params, by_xs)))


def test_tokens_out_of_range_do_no_harm_as_padding():
    model = jr.stack(jr.embedding(5, I), jr.elman(I, H))
    params = model.init(jax.random.key(0))

    @jax.jit
    def run(params, tokens):
        return jax.value_and_grad(lambda p: weigh(model.apply(p, tokens, **OPTIONS)[1]))(params)

    tokens = jnp.where(ON, np.arange(T * B).reshape(T, B) % 5, 0)
    jax.tree.map(np.testing.assert_array_equal, run(params, jnp.where(ON, tokens, -1)), run(params, tokens))
    assert ON[0, 0] and np.isnan(run(params, tokens.at[0, 0].set(5))[0])  # a step that counts


def test_a_merge_that_drops_the_batch_is_refused():
    model = both_ways(lambda f, b: (f + b).mean(1))
    with pytest.raises(ValueError, match=r"bidirectional: what merge returned has shape .* must lead with .*\(6, 3\)"):
        jax.eval_shape(lambda: model.apply(model.init(jax.random.key(0)), jnp.ones((T, B, I)), lengths=LENGTHS))
