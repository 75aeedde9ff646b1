"""``jax.export`` with T and B open: every case exports, forward and gradient, and runs at any T from 1 and any B."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxrnn as jr
from jaxrnn.programs.program import TYPICAL
from tests.cases import CASES, B, H, I, T, draw, of_cell, problem

SHAPES = [(5, 2), (1, 1), (4, 3)]  # (T, B)
KINDS = ("forward", "gradient")


def function(layer, kind):
    """Of params, xs, a carry and flags: the run, or its gradients by the first two."""

    def forward(params, xs, carry, options):
        return layer.apply(params, xs, carry, **options)

    def loss(*args):
        leaves = jax.tree.leaves(forward(*args))
        return sum(jnp.sin(a).sum() for a in leaves if jnp.issubdtype(a.dtype, jnp.floating))

    return jax.jit(forward if kind == "forward" else jax.grad(loss, (0, 1)))


def arguments(case, t, b):
    """Random ones, of float32, with every flag."""
    params, _, carry = problem(case, batch_shape=(b,))
    rng = np.random.default_rng(t)
    options = {"lengths": rng.integers(0, t + 2, b, np.int32), "mask": rng.random((t, b)) < 0.7}
    options |= {"resets": rng.random((t, b)) < 0.3, "start": 0}
    return params, draw((t, b, *case.x_shape), 1), carry, options


def with_open_axes(args, names="T, B"):
    """Shapes in place of ``arguments(case, T, B)``; ``names`` may have a number where an axis stays closed."""
    t, b = export.symbolic_shape(names)
    params, xs, carry, options = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), args)

    def opened(a, lead):
        return jax.ShapeDtypeStruct((*lead, *a.shape[len(lead) :]), a.dtype)

    flags = {name: opened(options[name], (t, b)) for name in ("mask", "resets")}
    options = {**options, **flags, "lengths": opened(options["lengths"], (b,))}
    return params, opened(xs, (t, b)), jax.tree.map(lambda a: opened(a, (b,)), carry), options


def rows():
    """Every case in one kind, every fifth of these run; all under ``--full``."""
    for index, case in enumerate(CASES):
        for place, kind in enumerate(KINDS):
            its_turn = (index + place) % 2 == 0
            shapes = SHAPES[: 1 if index else 2] if index % 5 == 0 else []
            if its_turn:
                yield pytest.param(case, kind, shapes, id=f"{case.id}-{kind}")
            yield pytest.param(case, kind, SHAPES, id=f"{case.id}-{kind}-run", marks=pytest.mark.full)


def check(case, kind, shapes, names="T, B"):
    run = function(case.layer, kind)
    exported = export.export(run)(*with_open_axes(arguments(case, T, B), names))
    assert any(not isinstance(axis, int) for kind in exported.in_avals for axis in kind.shape)
    for t, b in shapes:
        args = arguments(case, t, b)
        for got, want in zip(*(jax.tree.leaves(f(*args)) for f in (exported.call, run)), strict=True):
            # float32; the plans are those of two batches, so sums are in another order.
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("case", "kind", "shapes"), list(rows()))
def test_every_case_exports_once_and_runs_at_any_size(case, kind, shapes):
    check(case, kind, shapes)


GRU = of_cell("gru", jr.gru(I, H))


@pytest.mark.parametrize(("names", "run"), [("T, 3", "everything"), ("6, B", "checkpointed")])
def test_one_axis_open(names, run):
    """Where T has a number, a run may be divided by it."""
    check(GRU.under(run), "gradient", [(6, 3)], names)


def test_what_stands_around_a_run_exports():
    t, b = export.symbolic_shape("T, B")
    cell = jr.chain(jr.zoneout(jr.elman(I, H), rate=0.2), jr.dropout(0.5))
    params = cell.init(jax.random.key(0))

    def everything(xs, lengths, mask, bits):
        carry, ys = jr.scan(cell).apply(params, xs, lengths=lengths, key=jax.random.wrap_key_data(bits))
        pooled = jr.mean_pool(ys, lengths=lengths, mask=mask), jr.max_pool(ys, mask=mask)
        return carry, jr.last(ys, lengths), jr.masked_mean(ys[..., 0], lengths=lengths), pooled

    shapes = [((t, b, I), "float32"), ((b,), "int32"), ((t, b), "bool"), ((2,), "uint32")]
    exported = export.export(jax.jit(everything))(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    args = draw((4, 2, I)), np.array([4, 2], np.int32), np.ones((4, 2), bool), np.array([0, 1], np.uint32)
    for got, want in zip(*(jax.tree.leaves(f(*args)) for f in (exported.call, jax.jit(everything))), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)  # float32


@pytest.mark.parametrize(
    ("layer", "who"),
    [
        (jr.scan(jr.gru(I, H), checkpoint=True), r"scan\(gru\): checkpoint=True"),
        (jr.scan(jr.gru(I, H), checkpoint=2), r"scan\(gru\): checkpoint=2"),
        (jr.scan(jr.gru(I, H), checkpoint=jr.Budget(4)), r"scan\(gru\): checkpoint=Budget\(steps=4\)"),
        (jr.scan(jr.gru(I, H), unroll=2), r"scan\(gru\): unroll=2"),
        (jr.tbptt(jr.gru(I, H), window=2), "tbptt: window=2"),
    ],
)
def test_what_divides_an_open_number_of_steps_is_refused(layer, who):
    args = with_open_axes(arguments(GRU, T, B))
    with pytest.raises(
        ValueError, match=f"{who} divides a run by its number of steps, .* export it for one T, or a layer"
    ):
        export.export(function(layer, "forward"))(*args)


@pytest.mark.usefixtures("many_rows")
@pytest.mark.parametrize("hidden_size", [4 * TYPICAL, 4 * TYPICAL - 1])
def test_the_plan_takes_an_open_batch_for_a_typical_one(hidden_size, monkeypatch):
    """H × H weights and H outputs for each of 32 sequences: so few steps are contracted from 4 for each output on."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    layer = jr.scan(jr.elman(I, hidden_size, bias=False))
    _, b = export.symbolic_shape("T, B")
    params = jax.eval_shape(layer.init, jax.random.key(0))

    def contracted(batch):
        xs = jax.ShapeDtypeStruct((T, batch, I), jnp.float32)
        found = []

        def explained(params, xs):
            found.append(jr.explain(layer, params, xs))
            return layer.apply(params, xs)[1].sum()

        jax.eval_shape(explained, params, xs)
        return found[0].scans[0].contracted

    assert len(contracted(b)) == len(contracted(TYPICAL)) == 3 * (hidden_size >= 4 * TYPICAL)
