"""One definition, every way: what DESIGN promises of every cell, by comparison with the plain loops of cases.py."""

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
    RESETS,
    RUNS,
    B,
    Flags,
    I,
    T,
    differentiable,
    draw,
    problem,
    randomised,
    reference,
    weigh,
)

# Both sides compute in float64 with sums in another order, over six steps: a few hundred roundings of 2e-16.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def with_runs(cases):
    """Every case under the default plan, and each under one of the others in turn; all pairs under ``--full``."""
    others = ("plain", "checkpointed", "nothing", "checkpointed", "everything", "nested")
    for index, case in enumerate(cases):
        yield pytest.param(case, id=case.name)
        for run in [run for run in RUNS if run != "auto"]:
            its_turn = index % 2 == 0 and run == others[index // 2 % len(others)]
            yield pytest.param(case.under(run), id=f"{case.name}-{run}", marks=() if its_turn else pytest.mark.full)


by_case = pytest.mark.parametrize("case", list(with_runs(CASES)))
forward_or_reverse = pytest.mark.parametrize("case", list(with_runs(c for c in CASES if c.chunks != "none")))


def case_by_flags(flags):
    """Every case with one of the flags in turn, so that all pairs occur over the list; the rest under ``--full``."""
    return pytest.mark.parametrize(
        ("case", "flags"),
        [
            pytest.param(
                *(*case.values, f),
                id=f"{case.id}-{f.name}",
                marks=case.marks if (i // len(RUNS) - j) % len(flags) == 0 else pytest.mark.full,
            )
            for (i, case), (j, f) in itertools.product(enumerate(with_runs(CASES)), enumerate(flags))
        ],
    )


def assert_trees_close(got, want, **tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **(tolerance or CLOSE))


def assert_trees_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path), strict=True)


def applied(case, **options):
    """The case's layer as one compiled program."""
    return jax.jit(lambda params, xs, carry: case.layer.apply(params, xs, carry, **options))


def gradients(run, params, xs, carry):
    """Gradients of a weighted sum of all outputs and the final carry, by params, xs and the carry's floats."""
    floats, join = differentiable(carry)

    def loss(params, xs, floats):
        return weigh(run(params, xs, join(floats) if floats else carry))

    return jax.grad(loss, argnums=(0, 1, 2))(params, xs, floats)


@case_by_flags(FLAGS)
def test_equals_the_plain_loop(case, flags, x64):
    params, xs, carry = problem(case, flags)
    run = lambda params, xs, carry: case.layer.apply(params, xs, carry, **flags.options)  # noqa: E731
    loop = lambda params, xs, carry: reference(case, params, xs, carry, flags)  # noqa: E731
    compiled = jax.jit(lambda *args: (run(*args), gradients(run, *args)))(params, xs, carry)
    assert_trees_close(compiled, (loop(params, xs, carry), gradients(loop, params, xs, carry)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_runs_agree(case, x64):
    """All ways of running differ by the order of sums alone."""
    params, xs, carry = problem(case, FLAGS[4])

    def everything(case):
        run = lambda params, xs, carry: case.layer.apply(params, xs, carry, **FLAGS[4].options)  # noqa: E731
        return run(params, xs, carry), gradients(run, params, xs, carry)

    others = ("auto", "checkpointed", "everything", "nothing")
    plain, *rest = jax.jit(lambda: [everything(case.under(run)) for run in ("plain", *others)])()
    for got in rest:
        assert_trees_close(got, plain)


@case_by_flags([FLAGS[0], FLAGS[4]])
def test_gradient_equals_finite_differences(case, flags, x64):
    params, xs, carry = problem(case, flags)

    @jax.jit
    def loss(params, xs):
        return weigh(case.layer.apply(params, xs, carry, **flags.options))

    direction = randomised((params, xs), seed=11)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, xs)
    slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    step = 1e-6
    ahead, behind = (
        loss(*jax.tree.map(lambda a, d, s=sign: a + s * step * d, (params, xs), direction)) for sign in (1, -1)
    )
    # Central differences: truncation near step² = 1e-12 times a third derivative, cancellation near 1e-16 / step.
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-7)


@case_by_flags([FLAGS[1], FLAGS[2], FLAGS[4]])
def test_padding_never_leaks(case, flags, x64):
    params, xs, carry = problem(case, flags)
    on = jnp.asarray(flags.on)[..., None]

    @jax.jit
    def everything(xs):
        run = lambda params, xs, carry: case.layer.apply(params, xs, carry, **flags.options)  # noqa: E731
        return run(params, xs, carry), gradients(run, params, xs, carry)

    clean = everything(jnp.where(on, xs, 0.0))
    for poison in (1e30, jnp.inf, jnp.nan):
        assert_trees_equal(everything(jnp.where(on, xs, poison)), clean)
    (_, ys), (_, by_xs, _) = clean
    np.testing.assert_array_equal(jnp.where(on, 0, ys), 0)
    np.testing.assert_array_equal(jnp.where(on, 0, by_xs), 0)


@by_case
def test_length_zero_leaves_everything_alone(case, x64):
    params, xs, carry = problem(case)
    poisoned = jnp.full_like(xs, jnp.nan)
    run = applied(case, lengths=jnp.zeros(B, int))
    end, ys = run(params, poisoned, carry)
    assert_trees_equal(end, carry)
    np.testing.assert_array_equal(ys, 0)
    by_params, by_xs, _ = jax.jit(lambda *args: gradients(run, *args))(params, poisoned, carry)
    assert all((g == 0).all() for g in jax.tree.leaves((by_params, by_xs)))
    floats, join = differentiable(carry)
    through = jax.jit(jax.jacrev(lambda floats: differentiable(run(params, poisoned, join(floats))[0])[0]))(floats)
    for i, j in itertools.product(range(len(floats)), repeat=2):
        block = through[i][j].reshape(floats[i].size, floats[j].size)
        np.testing.assert_array_equal(block, np.eye(floats[i].size) if i == j else 0)


@by_case
def test_no_steps_at_all(case, x64):
    params, xs, carry = problem(case)
    run = applied(case)
    end, ys = run(params, xs[:0], carry)
    assert_trees_equal(end, carry)
    assert ys.shape == (0, *run(params, xs, carry)[1].shape[1:])
    by_params, by_xs, _ = jax.jit(lambda *args: gradients(run, *args))(params, xs[:0], carry)
    assert all((g == 0).all() for g in jax.tree.leaves(by_params))
    assert by_xs.shape == (0, B, I)
    empty = {"lengths": jnp.zeros(B, int), "mask": jnp.zeros((0, B), bool), "resets": jnp.zeros((0, B), bool)}
    assert_trees_equal(applied(case, **empty)(params, xs[:0], carry)[0], carry)


@by_case
def test_lengths_above_T_and_below_zero_are_clamped(case):
    params, xs, carry = problem(case)
    run = jax.jit(lambda lengths: case.layer.apply(params, xs, carry, lengths=lengths))
    assert_trees_equal(run(jnp.array([T + 5, -3, 2])), run(jnp.array([T, 0, 2])))


@by_case
def test_padded_sequences_equal_their_unpadded_runs(case, x64):
    params, xs, carry = problem(case)
    end, ys = applied(case, lengths=jnp.array(LENGTHS))(params, xs, carry)
    for b, length in enumerate(LENGTHS[:2]):
        own = jax.tree.map(lambda a, b=b: a[b], carry)
        own_end, own_ys = applied(case)(params, xs[:length, b], own)
        assert_trees_close(ys[:length, b], own_ys)
        assert_trees_close(jax.tree.map(lambda a, b=b: a[b], end), own_end)


@by_case
def test_resets_make_independent_runs(case, x64):
    params, xs, carry = problem(case)
    begins = jnp.zeros((T, B), bool).at[4].set(True)
    _, ys = applied(case, resets=begins)(params, xs, carry)
    # The given carry belongs to the episode where the run starts; the other one begins afresh.
    if case.chunks != "none":
        first, second = (carry, None) if case.chunks == "forward" else (None, carry)
        apart = applied(case)(params, xs[:4], first)[1], applied(case)(params, xs[4:], second)[1]
        assert_trees_close(ys, jnp.concatenate(apart))

    @jax.jit
    @jax.jacrev
    def sums(xs):
        ys = case.layer.apply(params, xs, carry, resets=begins)[1]
        return ys[:4].sum(), ys[4:].sum()

    by_early, by_late = sums(xs)
    np.testing.assert_array_equal(by_early[4:], 0)
    np.testing.assert_array_equal(by_late[:4], 0)
    assert jnp.abs(by_early[:4]).max() > 0 < jnp.abs(by_late[4:]).max()


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


@pytest.mark.parametrize("batch_shape", [(), (2, 3)], ids=str)
@by_case
def test_batch_shapes_agree_with_vmap(case, batch_shape, x64):
    params, xs, carry = problem(case, batch_shape=batch_shape)
    lengths = jax.random.randint(jax.random.key(4), batch_shape, 0, T + 1)
    run = lambda xs, carry, lengths: case.layer.apply(params, xs, carry, lengths=lengths)  # noqa: E731
    mapped = run
    if batch_shape:
        for _ in batch_shape:
            mapped = jax.vmap(mapped, in_axes=(1, 0, 0), out_axes=(0, 1))
        assert_trees_close(jax.jit(run)(xs, carry, lengths), jax.jit(mapped)(xs, carry, lengths))
    else:
        lift = lambda tree, axis=0: jax.tree.map(lambda a: jnp.expand_dims(a, axis), tree)  # noqa: E731
        end, ys = jax.jit(run)(lift(xs, 1), lift(carry), lengths[None])
        assert_trees_close(jax.jit(run)(xs, carry, lengths), (jax.tree.map(lambda a: a[0], end), ys[:, 0]))


@pytest.mark.parametrize("cuts", [(2, 5), (1, 2, 3, 4, 5)], ids=["chunks", "one_by_one"])
@forward_or_reverse
def test_chunks_equal_the_whole(case, cuts, x64):
    params, xs, carry = problem(case)
    mask, resets, lengths = jnp.asarray(GAPS), jnp.asarray(RESETS), jnp.array([6, 3, 4])
    run = jax.jit(case.layer.apply)
    whole = run(params, xs, carry, lengths=lengths, mask=mask, resets=resets)
    pieces = list(itertools.pairwise((0, *cuts, T)))
    outputs = {}
    for start, stop in pieces if case.chunks == "forward" else reversed(pieces):
        part = slice(start, stop)
        one_more = slice(start, stop + 1)  # a reversed run resets by the row after the chunk, a forward one ignores it
        options = {"mask": mask[part], "resets": resets[one_more], "lengths": lengths, "start": start}
        carry, outputs[start] = run(params, xs[part], carry, **options)
    assert_trees_close((carry, jnp.concatenate([outputs[start] for start, _ in pieces])), whole)


@pytest.mark.parametrize("name", CELLS)
def test_steps_by_hand_equal_the_scan(name, x64):
    cell = CELLS[name]
    params = randomised(cell.init(jax.random.key(0)))
    xs = draw((T, B, I), 1)
    carry = cell.initial_carry(params, (B,))
    whole = jax.jit(jr.scan(cell).apply)(params, xs)
    assert_trees_close(jax.lax.scan(lambda c, x: cell.step(params, c, x), carry, xs), whole)


@by_case
def test_vmap_over_parameters(case, x64):
    many = [problem(case, seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *many)
    run = lambda params, xs, carry: case.layer.apply(params, xs, carry, lengths=jnp.array(LENGTHS))  # noqa: E731
    one = lambda *args: (run(*args), gradients(run, *args))  # noqa: E731
    both, alone = jax.jit(jax.vmap(one))(*stacked), jax.jit(one)
    for index, args in enumerate(many):
        assert_trees_close(jax.tree.map(lambda a, i=index: a[i], both), alone(*args))


@by_case
def test_one_trace_for_any_lengths(case):
    params, xs, carry = problem(case)
    traces = []

    @jax.jit
    def run(lengths):
        traces.append(1)
        return case.layer.apply(params, xs, carry, lengths=lengths)[1]

    outputs = [run(jnp.array(lengths)) for lengths in ([6, 3, 0], [1, 1, 1], [9, 2, 4])]
    assert len(traces) == 1
    assert not np.array_equal(outputs[0], outputs[1])


@pytest.mark.parametrize(
    "case", [*CASES, *(case.under("checkpointed") for case in CASES[:4])], ids=lambda case: case.name
)
def test_program_does_not_grow_with_T(case):
    params, xs, carry = problem(case)
    size = lambda xs: len(str(jax.make_jaxpr(jax.grad(lambda p: weigh(case.layer.apply(p, xs, carry))))(params)))  # noqa: E731
    long = jnp.concatenate([xs] * 9)  # 54 steps: as many digits as 6 would differ in the text by a little
    assert size(long) <= size(xs) * 1.05


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@by_case
def test_dtypes_are_kept(case, dtype):
    """The carry's is that of ``initial_carry`` from first to last, the output's that of the parameters."""
    params, xs, _ = problem(case)
    params, xs = jax.tree.map(lambda a: a.astype(dtype), (params, xs))
    end, ys = applied(case, lengths=jnp.array(LENGTHS))(params, xs, None)
    kinds = lambda tree: jax.tree.map(lambda a: a.dtype, tree)  # noqa: E731
    assert kinds(end) == kinds(case.layer.initial_carry(params, (B,)))
    assert ys.dtype == dtype
    by_params = jax.jit(jax.grad(lambda p: case.layer.apply(p, xs)[1].astype(jnp.float32).sum()))(params)
    assert kinds(by_params) == kinds(params)


@by_case
def test_second_derivatives(case, x64):
    params, xs, carry = problem(case)
    options = {"lengths": jnp.array([6, 3, 1])}
    loss = lambda params, xs: weigh(case.layer.apply(params, xs, carry, **options))  # noqa: E731
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    direction = randomised((params, xs), seed=3)
    dot = lambda a, b: sum(jnp.vdot(*ab) for ab in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))  # noqa: E731

    @jax.jit
    def second(p):
        reverse_over_reverse = jax.grad(lambda p: dot(jax.grad(loss, argnums=(0, 1))(*p), direction))(p)
        return reverse_over_reverse, jax.jvp(lambda p: gradient(*p), (p,), (direction,))[1]

    reverse_over_reverse, forward_over_reverse = second((params, xs))
    assert_trees_close(reverse_over_reverse, forward_over_reverse, rtol=1e-9, atol=1e-10)
    step = 1e-6
    shifted = [gradient(*jax.tree.map(lambda a, d, s=s: a + s * step * d, (params, xs), direction)) for s in (1, -1)]
    differences = jax.tree.map(lambda a, b: (a - b) / (2 * step), *shifted)
    assert_trees_close(forward_over_reverse, differences, rtol=1e-5, atol=1e-6)  # as for first differences


@by_case
def test_forward_mode_agrees_with_reverse_mode(case, x64):
    params, xs, carry = problem(case)
    run = lambda p: weigh(case.layer.apply(*p, carry, mask=jnp.asarray(GAPS)))  # noqa: E731
    direction = randomised((params, xs), seed=3)

    @jax.jit
    def slopes(p):
        gradient = jax.tree.leaves(jax.grad(run)(p))
        by_vjp = sum(jnp.vdot(g, d) for g, d in zip(gradient, jax.tree.leaves(direction), strict=True))
        return jax.jvp(run, (p,), (direction,))[1], jax.linearize(run, p)[1](direction), by_vjp

    by_jvp, by_linearize, by_vjp = slopes((params, xs))
    np.testing.assert_allclose([by_jvp, by_linearize], by_vjp, **CLOSE)


@pytest.mark.parametrize("unroll", [2, 4])
@pytest.mark.parametrize("name", CELLS)
def test_unroll_changes_nothing(name, unroll, x64):
    params = randomised(CELLS[name].init(jax.random.key(0)))
    xs = draw((T, B, I), 1)
    plain, unrolled = (
        jax.jit(jr.scan(CELLS[name], unroll=u).apply)(params, xs, mask=jnp.asarray(GAPS)) for u in (1, unroll)
    )
    assert_trees_close(unrolled, plain)


@case_by_flags(FLAGS)
def test_contributions_are_those_of_the_unrolled_network(case, flags, x64):
    """∂L/∂W = Σ_t: the sum is the gradient, and each part that of a network with weights of its own at each step."""
    params, xs, carry = problem(case, flags)
    loss = lambda *outputs: weigh(outputs)  # noqa: E731
    parts = jax.jit(lambda params: jr.bptt_contributions(case.layer, params, xs, loss, carry, **flags.options))(params)
    gradient = jax.jit(jax.grad(lambda params: loss(*case.layer.apply(params, xs, carry, **flags.options))))(params)
    assert all(
        part.shape == (T, *leaf.shape) for part, leaf in zip(*map(jax.tree.leaves, (parts, params)), strict=True)
    )
    assert_trees_close(jax.tree.map(lambda a: a.sum(axis=0), parts), gradient)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", CELLS)
def test_contributions_step_by_step(name, reverse, x64):
    cell = CELLS[name]
    params = randomised(cell.init(jax.random.key(0)))
    xs = draw((T, B, I), 1)

    def unrolled(copies):
        order = range(T - 1, -1, -1) if reverse else range(T)
        carry, ys = cell.initial_carry(copies[order[0]], (B,)), [None] * T
        for t in order:
            carry, ys[t] = cell.step(copies[t], carry, xs[t])
        return weigh((carry, jnp.stack(ys)))

    by_hand = jax.tree.map(lambda *a: jnp.stack(a), *jax.grad(unrolled)([params] * T))
    layer = jr.scan(cell, reverse=reverse)
    assert_trees_close(jr.bptt_contributions(layer, params, xs, lambda *outputs: weigh(outputs)), by_hand)


def test_flags_given_together_mean_both():
    layer, (params, xs, _) = CASES[2].layer, problem(CASES[2])
    both = layer.apply(params, xs, lengths=LENGTHS, mask=GAPS)
    joined = Flags("", LENGTHS, GAPS, None, False).on
    assert_trees_equal(both, layer.apply(params, xs, mask=jnp.asarray(joined)))
