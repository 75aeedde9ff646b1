"""One definition, every way: each cell, by comparison with the plain loops of cases.py."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import (
    CASES,
    CELLS,
    FLAGS,
    GAPS,
    LENGTHS,
    NEUTRAL,
    RESETS,
    B,
    Flags,
    I,
    T,
    differentiable,
    differentiated,
    draw,
    draw_like,
    everything,
    problem,
    randomised,
    reference,
    weigh,
    weighed,
    x_shape,
)
from tests.evaluating import evaluated
from tests.turns import case_by_flags, in_turn, is_turn, named_in_turn, own_run, with_runs

# Both sides compute in float64 with sums in another order, over six steps: a few hundred roundings of 2e-16.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


NUMBERS = itertools.count()  # of the tests that take cases in turn


def by_case(test):
    return pytest.mark.parametrize("case", list(with_runs(CASES, next(NUMBERS))))(test)


def by_case_in_turn(test):
    return pytest.mark.parametrize("case", list(in_turn(CASES, next(NUMBERS))))(test)


def once():
    """The cases in turn, under the default plan alone."""
    number = next(NUMBERS)
    turns = [is_turn(case.name, index, number) for index, case in enumerate(CASES)]
    return [
        pytest.param(c, id=c.name, marks=() if turn else pytest.mark.full) for c, turn in zip(CASES, turns, strict=True)
    ]


def by_name(test):
    """The cells in turn."""
    return pytest.mark.parametrize("name", named_in_turn(CELLS, next(NUMBERS)))(test)


forward_or_reverse = pytest.mark.parametrize(
    "case", list(in_turn((c for c in CASES if c.chunks != "none"), next(NUMBERS)))
)


def assert_trees_close(got, want, **tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **(tolerance or CLOSE))


def assert_trees_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path), strict=True)


@functools.lru_cache(8)  # the tests of a case come one after the other
def applied(case):
    """The case's layer, compiled."""
    return jax.jit(case.layer.apply)


@functools.lru_cache(8)
def program(case, way=jax.jit):
    """``everything`` of the case, compiled; the weights are 1 where none are given."""

    run = way(everything(case))

    def call(params, xs, carry, options, by_step=None, by_end=1.0):
        return run(params, xs, carry, options, np.ones(len(xs)) if by_step is None else by_step, by_end)

    return call


@functools.lru_cache(16)  # all ways of running are held to the same numbers
def wanted(case, flags):
    """``((loss, outputs), gradients)`` of the case's plain loop under the flags of that name, in NumPy."""
    flags = next(f for f in FLAGS if f.name == flags)
    run = lambda *args: differentiated(lambda *a: reference(case, *a, flags), *args)
    return evaluated(run)(*problem(case, flags))


ALL = FLAGS[4].options


def inner(a, b):
    return sum(jnp.vdot(*leaves) for leaves in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def shifted(tree, direction, step):
    return jax.tree.map(lambda a, d: a + step * d, tree, direction)


@pytest.mark.optimised
@case_by_flags(FLAGS)
def test_equals_the_plain_loop(case, flags, x64):
    """Values and gradients; the gradients along a random direction also equal finite differences."""
    params, xs, carry = problem(case, flags)
    options = flags.all_options
    outputs, loss, gradients = program(case)(params, xs, carry, options)
    assert_trees_close(((loss, outputs), gradients), wanted(case.under("auto"), flags.name))

    direction, step = randomised((params, xs), seed=11), 1e-6
    ahead, behind = (program(case)(*shifted((params, xs), direction, s), carry, options)[1] for s in (step, -step))
    # Central differences: truncation near step² = 1e-12 times a third derivative, cancellation near 1e-16 / step.
    np.testing.assert_allclose(inner(gradients[:2], direction), (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("flags", FLAGS[1:], ids=lambda flags: flags.name)
@pytest.mark.parametrize("case", [CASES[3], CASES[-3].under("checkpointed")], ids=lambda case: case.id)
def test_a_flag_left_out_is_one_that_says_nothing(case, flags, x64):
    args = problem(case)
    assert_trees_close(program(case)(*args, flags.options), program(case)(*args, flags.all_options))


@pytest.mark.parametrize(
    ("case", "index"), [pytest.param(*row.values, i, id=row.id, marks=row.marks) for i, row in enumerate(once())]
)
def test_runs_agree(case, index, x64, traced):
    """All ways of running differ by the order of sums alone; of three plans one in turn, and the case's own."""
    args = problem(case, FLAGS[4])
    own, plans = own_run(index), ("checkpointed", "everything", "nothing")
    others = dict.fromkeys(("auto", own, plans[(index + 1) % 3] if own == plans[index % 3] else plans[index % 3]))
    plain = program(case.under("plain"), traced)(*args, ALL)
    for other in others:
        assert_trees_close(program(case.under(other), traced)(*args, ALL), plain)


@pytest.mark.optimised
@case_by_flags([FLAGS[4], FLAGS[1], FLAGS[2], FLAGS[5]])
def test_padding_never_leaks(case, flags, x64):
    params, xs, carry = problem(case, flags)
    on = flags.on.reshape(T, B, *(1,) * len(case.x_shape))
    clean, *poisoned = (
        program(case)(params, jnp.where(on, xs, fill), carry, flags.all_options)
        for fill in (0.0, 1e30, jnp.inf, jnp.nan)
    )
    for got in poisoned:
        assert_trees_equal(got, clean)
    (_, ys), _, (_, by_xs, _) = clean
    np.testing.assert_array_equal(jnp.where(on, 0, ys), 0)
    np.testing.assert_array_equal(jnp.where(on, 0, by_xs), 0)


@pytest.mark.optimised
@by_case_in_turn
def test_length_zero_leaves_everything_alone(case, x64):
    params, xs, carry = problem(case)
    options = NEUTRAL | {"lengths": np.zeros(B, int)}
    (end, ys), _, gradients = program(case)(params, jnp.full_like(xs, jnp.nan), carry, options)
    assert_trees_equal(end, carry)
    np.testing.assert_array_equal(ys, 0)
    by_params, by_xs, by_carry = gradients
    assert all((g == 0).all() for g in jax.tree.leaves((by_params, by_xs)))
    # Of the final carry by the initial one it is the identity: random cotangents come back as they went in.
    assert_trees_equal(by_carry, [draw_like(a, (8, n)) for n, a in enumerate(differentiable(carry)[0])])


@pytest.mark.optimised
@by_case_in_turn
def test_no_steps_at_all(case, x64):
    params, xs, carry = problem(case)
    (end, ys), _, (by_params, by_xs, _) = program(case)(params, xs[:0], carry, {})
    assert_trees_equal(end, carry)
    assert ys.shape == (0, *jax.eval_shape(case.layer.apply, params, xs, carry)[1].shape[1:])
    assert all((g == 0).all() for g in jax.tree.leaves(by_params))
    assert by_xs.shape == (0, B, *case.x_shape)
    empty = {"lengths": jnp.zeros(B, int), "mask": jnp.zeros((0, B), bool), "resets": jnp.zeros((0, B), bool)}
    assert_trees_equal(applied(case)(params, xs[:0], carry, **empty)[0], carry)


@by_case_in_turn
def test_one_trace_for_any_lengths(case):
    """Those above T and below zero are clamped."""
    params, xs, carry = problem(case)
    traces = []

    @jax.jit
    def run(lengths):
        traces.append(1)
        return case.layer.apply(params, xs, carry, lengths=lengths)

    outputs = [run(jnp.array(lengths)) for lengths in ([6, 3, 0], [1, 1, 1], [9, 2, 4])]
    assert not np.array_equal(outputs[0][1], outputs[1][1])
    assert_trees_equal(run(jnp.array([T + 5, -3, 2])), run(jnp.array([T, 0, 2])))
    assert len(traces) == 1


@pytest.mark.optimised
@by_case_in_turn
def test_padded_sequences_equal_their_unpadded_runs(case, x64):
    params, xs, carry = problem(case)
    end, ys = program(case)(params, xs, carry, NEUTRAL | {"lengths": np.array([6, 3, 0])})[0]
    own_end, own_ys = applied(case)(params, xs[:3], carry)
    assert_trees_close(ys[:3, 1], own_ys[:, 1])
    assert_trees_close(*(jax.tree.map(lambda a: a[1], carry) for carry in (end, own_end)))


@pytest.mark.optimised
@by_case
def test_resets_make_independent_runs(case, x64):
    params, xs, carry = problem(case)
    half = T // 2
    early = np.arange(T) < half
    begins = np.zeros((T, B), bool)
    begins[half] = True
    (_, ys), _, (_, by_early, _) = program(case)(params, xs, carry, NEUTRAL | {"resets": begins}, 1.0 * early, 0.0)
    _, _, (_, by_late, _) = program(case)(params, xs, carry, NEUTRAL | {"resets": begins}, 1.0 * ~early, 0.0)
    # The given carry belongs to the episode where the run starts; the other one begins afresh.
    if case.chunks != "none":
        fresh = case.layer.initial_carry(params, (B,))
        first, second = (carry, fresh) if case.chunks == "forward" else (fresh, carry)
        apart = applied(case)(params, xs[:half], first)[1], applied(case)(params, xs[half:], second)[1]
        assert_trees_close(ys, jnp.concatenate(apart))
    np.testing.assert_array_equal(by_early[half:], 0)
    np.testing.assert_array_equal(by_late[:half], 0)
    assert jnp.abs(by_early[:half]).max() > 0 < jnp.abs(by_late[half:]).max()


def test_learned_initial_carry_gets_gradient_from_each_reset(x64):
    cell = CELLS["lstm_learned_carry"]
    layer = jr.scan(cell)
    params = randomised(cell.init(jax.random.key(0)))
    xs = draw((T, I), 1)
    carry = randomised(cell.initial_carry(params), seed=5)
    begins = jnp.zeros(T, bool).at[jnp.array([2, 4])].set(True)
    by_resets = jax.grad(lambda p: layer.apply(p, xs, carry, resets=begins)[1].sum())(params).initial
    apart = jax.grad(lambda p: sum(layer.apply(p, xs[s : s + 2])[1].sum() for s in (2, 4)))(params).initial
    assert_trees_close(by_resets, apart)
    assert min(jnp.abs(leaf).min() for leaf in by_resets) > 1e-6


@by_case_in_turn
def test_batch_shapes_agree_with_vmap(case, x64, traced):
    params, xs, carry = problem(case, batch_shape=(2, 3))
    lengths = jnp.array([[6, 3, 0], [1, 4, 5]])
    run = lambda xs, carry, lengths: case.layer.apply(params, xs, carry, lengths=lengths)
    mapped = jax.vmap(jax.vmap(run, in_axes=(1, 0, 0), out_axes=(0, 1)), in_axes=(1, 0, 0), out_axes=(0, 1))
    one = lambda tree: jax.tree.map(lambda a: a[1, 2], tree)

    @traced
    def everything(xs, carry, lengths):
        return run(xs, carry, lengths), mapped(xs, carry, lengths), run(xs[:, 1, 2], one(carry), lengths[1, 2])

    (end, ys), by_vmap, alone = everything(xs, carry, lengths)
    assert_trees_close(by_vmap, (end, ys))
    assert_trees_close(alone, (one(end), ys[:, 1, 2]))


@forward_or_reverse
def test_chunks_equal_the_whole(case, x64):
    """Chunks of several steps, and one step at a time."""
    params, xs, start_carry = problem(case)
    mask, lengths = GAPS, np.array([6, 3, 4])
    whole = applied(case)(params, xs, start_carry, lengths=lengths, mask=mask, resets=RESETS)
    resets = np.concatenate([RESETS, np.zeros((1, B), bool)])
    for cuts in ((2, 4), (1, 2, 3, 4, 5)):
        pieces = list(itertools.pairwise((0, *cuts, T)))
        carry, outputs = start_carry, {}
        for start, stop in pieces if case.chunks == "forward" else reversed(pieces):
            part = slice(start, stop)
            begins = resets[start : stop + 1]  # the row after the chunk: a reversed run resets by it
            options = {"mask": mask[part], "resets": begins, "lengths": lengths, "start": start}
            carry, outputs[start] = applied(case)(params, xs[part], carry, **options)
        assert_trees_close((carry, jnp.concatenate([outputs[start] for start, _ in pieces])), whole)


@by_name
def test_steps_by_hand_equal_the_scan(name, x64, traced):
    cell = CELLS[name]
    params = randomised(cell.init(jax.random.key(0)))
    xs = draw((T, B, *x_shape(cell)), 1)

    @traced
    def both(params, xs):
        by_hand = jax.lax.scan(functools.partial(cell.step, params), cell.initial_carry(params, (B,)), xs)
        return by_hand, jr.scan(cell).apply(params, xs)

    assert_trees_close(*both(params, xs))


@by_case_in_turn
def test_vmap_over_parameters(case, x64, traced):
    many = [problem(case, seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *many)
    both = traced(jax.vmap(program(case), in_axes=(0, 0, 0, None)))(*stacked, ALL)
    for index, args in enumerate(many):
        assert_trees_close(jax.tree.map(lambda a, i=index: a[i], both), program(case)(*args, ALL))


@pytest.mark.parametrize("case", [*once(), *(case.under("checkpointed") for case in CASES[:4])])
def test_program_does_not_grow_with_T(case):
    params, xs, carry = problem(case)
    size = lambda xs: len(str(jax.make_jaxpr(jax.grad(lambda p: weigh(case.layer.apply(p, xs, carry))))(params)))
    long = jnp.concatenate([xs] * 9)  # 54 steps: as many digits as 6 would differ in the text by a little
    assert size(long) <= size(xs) * 1.05


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@by_case_in_turn
def test_dtypes_are_kept(case, dtype):
    """The carry's is that of ``initial_carry`` from first to last, the output's that of the parameters."""
    params, xs, _ = problem(case)
    params, xs = jax.tree.map(lambda a: a.astype(dtype), (params, xs))
    run = lambda params: case.layer.apply(params, xs, lengths=jnp.array(LENGTHS))
    end, ys = jax.eval_shape(run, params)
    kinds = lambda tree: jax.tree.map(lambda a: a.dtype, tree)
    assert kinds(end) == kinds(case.layer.initial_carry(params, (B,)))
    assert ys.dtype == dtype
    by_params = jax.eval_shape(jax.grad(lambda params: run(params)[1].astype(jnp.float32).sum()), params)
    assert kinds(by_params) == kinds(params)


@by_case_in_turn
def test_second_derivatives(case, x64, traced):
    params, xs, carry = problem(case)
    loss = lambda *p: weighed(case.layer.apply(*p, carry, **ALL))
    gradient = jax.grad(loss, argnums=(0, 1))
    direction = randomised((params, xs), seed=3)

    @traced
    def second(p):
        reverse_over_reverse = jax.grad(lambda p: inner(gradient(*p), direction))(p)
        return reverse_over_reverse, jax.jvp(lambda p: gradient(*p), (p,), (direction,))[1]

    reverse_over_reverse, forward_over_reverse = second((params, xs))
    assert_trees_close(reverse_over_reverse, forward_over_reverse, rtol=1e-9, atol=1e-10)
    step = 1e-6
    ahead, behind = (program(case)(*shifted((params, xs), direction, s), carry, ALL)[2][:2] for s in (step, -step))
    differences = jax.tree.map(lambda a, b: (a - b) / (2 * step), ahead, behind)
    assert_trees_close(forward_over_reverse, differences, rtol=1e-5, atol=1e-6)  # as for first differences


@by_case_in_turn
def test_forward_mode_agrees_with_reverse_mode(case, x64, traced):
    params, xs, carry = problem(case)
    run = lambda p: weighed(case.layer.apply(*p, carry, **ALL))
    direction = randomised((params, xs), seed=3)
    slopes = traced(lambda p: (jax.jvp(run, (p,), (direction,))[1], jax.linearize(run, p)[1](direction)))
    by_vjp = inner(program(case)(params, xs, carry, ALL)[2][:2], direction)
    np.testing.assert_allclose(slopes((params, xs)), [by_vjp] * 2, **CLOSE)


@by_name
def test_unroll_changes_nothing(name, x64, traced):
    params = randomised(CELLS[name].init(jax.random.key(0)))
    xs = draw((T, B, *x_shape(CELLS[name])), 1)
    run = lambda unroll: jr.scan(CELLS[name], unroll=unroll).apply(params, xs, mask=jnp.asarray(GAPS))
    plain, *unrolled = traced(lambda: [run(unroll) for unroll in (1, 2, 4)])()
    for got in unrolled:
        assert_trees_close(got, plain)


@case_by_flags(FLAGS, once())
def test_contributions_are_those_of_the_unrolled_network(case, flags, x64, traced):
    """∂L/∂W = Σ_t: the sum is the gradient, and each part that of a network with weights of its own at each step."""
    params, xs, carry = problem(case, flags)
    loss = lambda *outputs: weighed(outputs)
    parts = traced(
        lambda params: jr.gradients.bptt_contributions(case.layer, params, xs, loss, carry, **flags.options)
    )(params)
    gradient = program(case)(params, xs, carry, flags.all_options)[2][0]
    assert all(
        part.shape == (T, *leaf.shape) for part, leaf in zip(*map(jax.tree.leaves, (parts, params)), strict=True)
    )
    assert_trees_close(jax.tree.map(lambda a: a.sum(axis=0), parts), gradient)


@by_name
def test_contributions_step_by_step(name, x64, traced):
    cell, reverse = CELLS[name], bool(list(CELLS).index(name) % 2)
    params = randomised(cell.init(jax.random.key(0)))
    steps = 3  # a first, a last and one between them
    xs, layer = draw((steps, B, *x_shape(cell)), 1), jr.scan(cell, reverse=reverse)

    def unrolled(copies):
        order = range(steps)[:: -1 if reverse else 1]
        carry, ys = cell.initial_carry(copies[order[0]], (B,)), [None] * steps
        for t in order:
            carry, ys[t] = cell.step(copies[t], carry, xs[t])
        return weigh((carry, jnp.stack(ys)))

    @traced
    def both(params):
        by_hand = jax.tree.map(lambda *a: jnp.stack(a), *jax.grad(unrolled)([params] * steps))
        return by_hand, jr.gradients.bptt_contributions(layer, params, xs, lambda *outputs: weigh(outputs))

    by_hand, contributions = both(params)
    assert_trees_close(contributions, by_hand)


def test_flags_given_together_mean_both():
    layer, (params, xs, _) = CASES[2].layer, problem(CASES[2])
    both = layer.apply(params, xs, lengths=LENGTHS, mask=GAPS)
    joined = Flags("", LENGTHS, GAPS, None, False).on
    assert_trees_equal(both, layer.apply(params, xs, mask=jnp.asarray(joined)))
