"""Checkpointed segments: their lengths, their memory, what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn.running.segments import segment_lengths
from tests.cases import draw, randomised, weigh

I, H = 3, 4


@pytest.mark.parametrize(
    "checkpoint, T, lengths",
    [
        (False, 100, ()),
        (True, 1, ()),
        (True, 100, (10,)),
        (True, 1000, (25,)),  # a divisor near 31.6: no remainder to copy
        (True, 97, (10,)),  # a prime number of steps leaves a remainder
        (7, 100, (7,)),
        (100, 100, ()),
        (1, 5, (1,)),
        (jr.Budget(100), 100, ()),
        (jr.Budget(20), 100, (10,)),
        (jr.Budget(15), 100, (20, 4)),
    ],
)
def test_segment_lengths(checkpoint, T, lengths):
    assert segment_lengths("scan", checkpoint, T) == lengths


@pytest.mark.parametrize("T", [2, 12, 97, 1000, 100_000])
def test_a_budget_is_kept_with_as_few_levels_as_it_takes(T):
    def held(lengths):
        levels = (T, *lengths)
        return sum(-(-a // b) for a, b in zip(levels, lengths, strict=False)) + levels[-1]

    depth = 0
    for steps in sorted({T, T // 2, 2 * int(T**0.5) + 4, 4 * int(T ** (1 / 3)) + 8, 70}, reverse=True):
        if steps < 4 * T.bit_length():  # less than the deepest nesting may need
            continue
        lengths = segment_lengths("scan", jr.Budget(steps), T)
        assert held(lengths) <= steps
        assert len(lengths) >= depth, "less memory never takes fewer levels"
        depth = len(lengths)


@pytest.mark.parametrize("T", [1, 2, 5, 12, 13])
@pytest.mark.parametrize("reverse", [False, True])
def test_segments_of_any_length_agree_with_the_whole(T, reverse, x64, traced):
    cell = jr.lstm(I, H, learned_carry=True)
    params, xs = randomised(cell.init(jax.random.key(0))), draw((T, 2, I), 1)
    lengths = jnp.array([T, T // 2])

    def everything(checkpoint):
        layer = jr.scan(cell, reverse=reverse, checkpoint=checkpoint)
        run = lambda params, xs: layer.apply(params, xs, lengths=lengths)
        return run(params, xs), jax.grad(lambda *args: weigh(run(*args)), argnums=(0, 1))(params, xs)

    choices = (True, 1, 3, 4, 50, jr.Budget(8))
    programs = {segment_lengths("scan", checkpoint, T): checkpoint for checkpoint in choices}  # one of each
    want, *rest = traced(lambda: [everything(checkpoint) for checkpoint in (False, *programs.values())])()
    for got in rest:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), got, want)


def temporaries(**options):
    T, B, H = 400, 4, 32
    layer = jr.scan(jr.lstm(I, H), **options)
    params = layer.init(jax.random.key(0))
    gradient = jax.jit(jax.grad(lambda params, xs: layer.apply(params, xs)[0].h.sum()))
    return gradient.lower(params, jnp.ones((T, B, I))).compile().memory_analysis().temp_size_in_bytes


def test_checkpointing_saves_memory():
    """400 steps: 20 carries and a segment of 20 steps are a tenth of the whole; nested, less than √T of it."""
    whole, segments, nested = (temporaries(checkpoint=c) for c in (False, True, jr.Budget(30)))
    assert segments < 0.15 * whole
    assert nested < segments
    assert temporaries(checkpoint=True, plan="plain") < 0.15 * temporaries(plan="plain")


@pytest.mark.parametrize(
    "checkpoint, message",
    [
        (0, "scan: checkpoint must be a positive int, got 0; give at least 1."),
        (-3, "scan: checkpoint must be a positive int, got -3"),
        (2.5, "scan: checkpoint must be a positive int, got 2.5 (float)"),
        (jr.Budget(0), "scan: Budget: steps must be a positive int, got 0"),
        ((3, 4), "scan: checkpoint must be True, a segment length or jr.Budget(steps), got (3, 4)."),
    ],
)
def test_segments_that_are_none(checkpoint, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        jr.scan(jr.lstm(I, H), checkpoint=checkpoint)


def test_a_budget_that_is_too_small_says_what_is_needed():
    layer = jr.scan(jr.lstm(I, H), checkpoint=jr.Budget(4))
    params = layer.init(jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"scan\(lstm\): 1000 steps cannot be run backward.*Give at least steps=(\d+)"
    ) as e:
        layer.apply(params, jnp.ones((1000, I)))
    enough = int(re.search(r"at least steps=(\d+)", str(e.value))[1])
    assert segment_lengths("scan", jr.Budget(enough), 1000)
