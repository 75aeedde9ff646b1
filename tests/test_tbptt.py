"""Truncated BPTT: the values of the whole run; the gradients of a Python loop over blocks with detached carries."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxrnn as jr
from tests.cases import CASES, CELLS, H, I, differentiable, draw, of_cell, of_stack, randomised, weigh
from tests.evaluating import evaluated
from tests.programs import collectives_in_loops
from tests.user_cells import clockwork

T, B = 7, 2
# Both sides compute in float64 with sums in another order, over seven steps: a few hundred roundings of 2e-16.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}

LENGTHS = np.array([6, 7])
MASK = np.array([[1, 0], [1, 1], [0, 1], [1, 1], [1, 0], [1, 1], [1, 1]], bool)
RESETS = np.array([[0, 0], [0, 0], [1, 1], [0, 0], [0, 0], [1, 0], [0, 0]], bool)
OPTIONS = {"lengths": LENGTHS, "mask": MASK, "resets": RESETS}

BY_NAME = {case.name: case for case in CASES if case.chunks == "forward"}
FORWARD_STACK = of_stack("forward_stack", *(of_cell("", cell) for cell in (jr.elman(I, H), jr.gru(H, 3))))

# (case, how it runs, window, stride, are there flags): blocks that fit and a ragged last one, overlaps shorter and
# longer than a stride, windows as long as the sequence and longer, strides longer than it.
RUNS = [
    ("lstm-forward", "plain", 2, 2, False),
    ("lstm_learned_carry-forward", "auto", 3, 3, True),
    ("gru_before-forward", "checkpointed", 3, 2, True),
    ("elman-forward", "plain", 4, 1, False),
    ("peephole_diagonal-forward", "plain", 6, 3, True),
    ("user_fast_weights-forward", "auto", 5, 2, True),
    ("forward_stack", "auto", 3, 2, True),
    ("elman-forward", "auto", 7, 4, True),
    ("elman-forward", "plain", 9, 9, False),
]


def truncated(case, params, xs, carry, options, window, stride):
    """One sequence (T, I), block by block, the carry that enters a window detached: plain Python over ``step``."""
    on = options.get("mask", np.ones(T, bool)) & (np.arange(T) < options.get("lengths", T))
    resets = options.get("resets", np.zeros(T, bool))
    if window >= T:
        return case.loop(params, xs, carry, on, resets)
    ys, end, entered, before = [], None, carry, 0
    for first in range(0, T, stride):
        enter, stop = max(0, first - (window - stride)), first + stride
        if enter > before:
            entered, _ = case.loop(params, xs[before:enter], entered, on[before:enter], resets[before:enter])
            entered, before = jax.tree.map(jax.lax.stop_gradient, entered), enter
        end, y = case.loop(params, xs[enter:stop], entered, on[enter:stop], resets[enter:stop])
        ys.append(y[first - enter :])
    return end, jnp.concatenate(ys)


def everything(run, params, xs, carry):
    """``((the loss, what was run), its gradients by params, xs and the carry's floats)`` as one program."""
    floats, join = differentiable(carry)

    def loss(params, xs, floats):
        made = run(params, xs, join(floats))
        return weigh(made), made

    return evaluated(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(params, xs, floats)


def assert_close(got, want, **tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(functools.partial(np.testing.assert_allclose, **(tolerance or CLOSE)), got, want)


def problem(layer, batch_shape=(B,), given_carry=True):
    params = randomised(layer.init(jax.random.key(0)))
    carry = randomised(layer.initial_carry(params, batch_shape), 2) if given_carry else None
    return params, draw((T, *batch_shape, I), 1), carry


@pytest.mark.parametrize("name, run, window, stride, flags", RUNS, ids=lambda value: str(value))
def test_equals_the_plain_loop_over_blocks(name, run, window, stride, flags, x64):
    case = (FORWARD_STACK if name == "forward_stack" else BY_NAME[name]).under(run)
    args = problem(case.layer, (), given_carry="learned" not in name)
    options = {name: value[..., 0] for name, value in OPTIONS.items()} if flags else {}
    layer = jr.tbptt(case.layer, window=window, stride=stride)
    got = everything(functools.partial(layer.apply, **options), *args)
    loop = functools.partial(truncated, case, options=options, window=window, stride=stride)
    assert_close(got, everything(loop, *args))


@pytest.mark.parametrize("stride", [2, 7], ids=["truncated", "whole"])
def test_values_are_those_of_the_whole_run(stride, x64):
    layer, plain = jr.tbptt(CELLS["lstm"], window=stride), jr.scan(CELLS["lstm"])
    got, whole = (everything(functools.partial(one.apply, **OPTIONS), *problem(layer)) for one in (layer, plain))
    assert_close(got[0], whole[0])
    apart = max(jnp.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (got[1], whole[1])), strict=True))
    assert apart > 1e-3 if stride < T else apart < 1e-11  # by their gradients


@pytest.mark.parametrize("window, stride", [(2, 2), (5, 2)])
def test_nothing_reaches_back_beyond_the_window(window, stride):
    """∂ys[t]/∂xs[s], all of them: not 0 from the window's first step on, exactly 0 before and after."""
    layer = jr.tbptt(CELLS["elman"], window=window, stride=stride)
    params = randomised(layer.init(jax.random.key(0)))
    slopes = jax.jit(jax.jacrev(lambda xs: layer.apply(params, xs)[1].sum(axis=-1)))(draw((T, I), 1))
    felt = np.abs(slopes).max(axis=-1) > 0
    t, s = np.arange(T)[:, None], np.arange(T)[None]
    np.testing.assert_array_equal(felt, (s <= t) & (s >= t // stride * stride - (window - stride)))


def test_only_windows_that_reach_time_0_see_the_initial_carry():
    cell = CELLS["lstm_learned_carry"]
    layer = jr.tbptt(cell, window=4, stride=2)  # blocks start at 0, 2, 4, 6 and reach back to 0, 0, 2, 4
    params, xs, carry = problem(layer)
    slopes = jax.jit(jax.jacrev(lambda carry: layer.apply(params, xs, carry)[1].sum(axis=(1, 2))))(carry)
    np.testing.assert_array_equal(np.abs(slopes.h).max(axis=(1, 2)) > 0, np.arange(T) < 4)
    final = jax.jit(jax.jacrev(lambda carry: layer.apply(params, xs[:4], carry)[0].c.sum()))(carry)
    assert np.abs(final.c).max() > 0


def test_short_sequences(x64):
    """T = 0 and T below the stride are full BPTT."""
    layer, plain = jr.tbptt(CELLS["gru_after"], window=5, stride=5), jr.scan(CELLS["gru_after"])
    params, xs, carry = problem(layer)
    for steps in (0, 3):
        assert_close(*(everything(one.apply, params, xs[:steps], carry) for one in (layer, plain)))


def test_noise_is_that_of_absolute_time(x64):
    """With a key, ``start`` and dropout inside: blocks draw what the whole run draws, as a loop by hand does."""
    cell = jr.chain(jr.dropout(0.4), jr.elman(I, H))
    layer = jr.tbptt(cell, window=3, stride=2)
    params, xs, carry = problem(layer, ())
    key, start = jax.random.key(5), 3
    noise = cell.noise(params, key, start + jnp.arange(T), jax.ShapeDtypeStruct((I,), xs.dtype))

    def steps(params, xs, carry, first, last):
        ys = []
        for t in range(first, last):
            carry, y = cell.step(params, carry, xs[t], jax.tree.map(lambda a, t=t: a[t], noise))
            ys.append(y)
        return carry, ys

    def by_hand(params, xs, carry):
        ys = []
        for first in range(0, T, 2):
            enter = max(0, first - 1)
            entered = jax.lax.stop_gradient(steps(params, xs, carry, 0, enter)[0]) if enter else carry
            end, y = steps(params, xs, entered, enter, min(first + 2, T))
            ys += y[first - enter :]
        return end, jnp.stack(ys)

    run = functools.partial(layer.apply, key=key, start=start)
    assert_close(everything(run, params, xs, carry), everything(by_hand, params, xs, carry))


def test_vmap_and_checkpoint_change_nothing(x64):
    cell = CELLS["elman"]
    layer, kept = (jr.tbptt(jr.scan(cell, plan="plain"), window=3, stride=2, checkpoint=c) for c in (False, True))
    params, xs, carry = problem(layer)
    want = everything(functools.partial(layer.apply, **OPTIONS), params, xs, carry)

    def one(params, xs, carry, lengths, mask, resets):
        return kept.apply(params, xs, carry, lengths=lengths, mask=mask, resets=resets)

    def each(params, xs, carry):
        mapped = jax.vmap(one, in_axes=(None, 1, 0, 0, 1, 1), out_axes=(0, 1))
        return mapped(params, xs, carry, LENGTHS, MASK, RESETS)

    assert_close(everything(each, params, xs, carry), want)


def test_checkpoint_keeps_one_block_alone():
    """Temporaries of the gradient: of 200 steps in blocks of 5, not much more than one block's is left."""
    cell = jr.elman(I, 16)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((200, 8, I))
    sizes = []
    for checkpoint in (False, True):
        layer = jr.tbptt(cell, window=5, checkpoint=checkpoint)
        gradient = jax.jit(jax.grad(lambda params, layer=layer: layer.apply(params, xs)[1].sum()))
        sizes.append(gradient.lower(params).compile().memory_analysis().temp_size_in_bytes)
    assert sizes[1] < sizes[0] / 2


def test_the_program_does_not_grow_with_T():
    layer = jr.tbptt(CELLS["lstm"], window=3, stride=2)
    params, _, _ = problem(layer)
    size = lambda steps: len(
        str(jax.make_jaxpr(jax.grad(lambda xs: layer.apply(params, xs)[1].sum()))(draw((steps, B, I))))
    )
    assert size(901) <= size(21) * 1.05  # a little text for the digits of larger shapes


def test_it_is_a_layer_like_any_other(x64):
    """In a stack beside a reversed layer, and rebuilt from its spec."""
    model, plain = (
        jr.stack(first, jr.scan(jr.elman(H, 2), reverse=True))
        for first in (jr.tbptt(jr.elman(I, H), window=2), jr.elman(I, H))
    )
    rebuilt = jr.build(model.spec.to_dict())
    assert rebuilt.spec == model.spec and dict(rebuilt.spec.children[0].options) == {"window": 2}
    args = problem(model, ())
    got, whole = everything(rebuilt.apply, *args), everything(plain.apply, *args)
    assert_close(got[0], whole[0])
    assert jnp.abs(got[1][1] - whole[1][1]).max() > 1e-3


def test_contributions_add_up_to_the_truncated_gradient(x64):
    layer = jr.tbptt(CELLS["elman"], window=3, stride=2)
    params, xs, _ = problem(layer, ())
    loss = lambda carry, ys: weigh(ys)
    parts = jax.jit(lambda params: jr.gradients.bptt_contributions(layer, params, xs, loss))(params)
    gradient = jax.jit(jax.grad(lambda params: loss(*layer.apply(params, xs))))(params)
    assert_close(jax.tree.map(lambda part: part.sum(axis=0), parts), gradient)


@pytest.mark.multidevice
def test_inside_shard_map_no_collective_stands_in_a_loop():
    layer = jr.tbptt(CELLS["elman"], window=3, stride=2)
    params, xs, _ = problem(layer)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def loss(params, xs):
        return jax.lax.psum(jnp.sin(layer.apply(params, xs)[1]).sum(), "data")

    sharded = jax.shard_map(loss, mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=P())
    compiled = jax.jit(jax.grad(sharded, argnums=(0, 1))).lower(params, xs).compile()
    want = jax.jit(jax.grad(lambda *args: jnp.sin(layer.apply(*args)[1]).sum(), argnums=(0, 1)))(params, xs)
    assert_close(compiled(params, xs), want, rtol=2e-5, atol=2e-5)  # float32 sums in another order over 7 steps
    assert collectives_in_loops(compiled.as_text()) == []


USER = clockwork(I, H)


def run_user(layer):
    return jr.tbptt(layer, window=2).apply(layer.init(jax.random.key(0)), jnp.ones((T, B, I)))


ERRORS = {
    "window 0": (lambda: jr.tbptt(jr.lstm(I, H), window=0), ValueError, ["tbptt: window", "positive int, got 0"]),
    "stride -1": (lambda: jr.tbptt(jr.lstm(I, H), window=3, stride=-1), ValueError, ["stride", "got -1"]),
    "window 2.0": (lambda: jr.tbptt(jr.lstm(I, H), window=2.0), TypeError, ["window", "positive int, got 2.0"]),
    "window below stride": (
        lambda: jr.tbptt(jr.lstm(I, H), window=2, stride=3),
        ValueError,
        ["window=2 is shorter than stride=3", "give window >= stride"],
    ),
    "checkpoint": (
        lambda: jr.tbptt(jr.lstm(I, H), window=2, checkpoint="yes"),
        TypeError,
        ["checkpoint must be True or False", "'yes'"],
    ),
    "no layer": (lambda: jr.tbptt(jnp.tanh, window=2), TypeError, ["tbptt: expected a Cell or a Layer"]),
    "reversed": (
        lambda: jr.tbptt(jr.scan(jr.lstm(I, H), reverse=True), window=2),
        ValueError,
        ["runs forward, but scan(lstm) is reversed", "jr.stack(jr.tbptt"],
    ),
    "bidirectional inside": (
        lambda: jr.tbptt(jr.stack(jr.gru(I, H), jr.bidirectional(jr.lstm(H, H), jr.gru(H, H))), window=2),
        ValueError,
        ["bidirectional in stack runs in both directions", "jr.stack(jr.tbptt"],
    ),
    "user's, reversed": (
        lambda: run_user(jr.scan(USER, reverse=True, plan="plain")),
        ValueError,
        ["a user layer holds a reversed scan", "jr.stack(jr.tbptt"],
    ),
    "user's, bidirectional inside": (
        lambda: run_user(jr.stack(jr.bidirectional(USER, USER), jr.readout(2 * H, 2))),
        ValueError,
        ["a user layer holds a reversed scan"],
    ),
    "mask": (
        lambda: jr.tbptt(jr.lstm(I, H), window=2).apply(
            jr.lstm(I, H).init(jax.random.key(0)), jnp.ones((T, B, I)), mask=jnp.ones((T - 1, B), bool)
        ),
        ValueError,
        ["tbptt: mask must have shape (7, 2)", "got (6, 2)"],
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, error, words = ERRORS[name]
    with pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, words))):
        jax.eval_shape(call) if name in ("mask", "user's, reversed", "user's, bidirectional inside") else call()


def test_a_users_forward_layer_is_taken():
    layer = jr.stack(USER, jr.readout(H, 2))
    params = layer.init(jax.random.key(0))
    xs = draw((T, B, I), 1)
    got, want = (jax.jit(one.apply)(params, xs)[1] for one in (jr.tbptt(layer, window=3, stride=2), layer))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)  # float32, other blocks of the readout's products
