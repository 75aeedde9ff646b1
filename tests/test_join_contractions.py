"""Gradients that meet in a sum as one contraction, with the bias's: which, and that no number changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from tests.cases import draw, randomised
from tests.programs import gradient
from tests.user_cells import textbook_lstm

T, B, I, H = 8, 3, 2, 4
IN_LOOP = jr.Plan(contract=False, one_kernel=False)
OUTSIDE = jr.Plan(contract=True, one_kernel=False)


def problem(cell, inputs=I, batch=(B,)):
    return randomised(cell.init(jax.random.key(0))), draw((T, *batch, inputs), 1)


def assert_as_plain(cell, plan, *args):
    got, want = jax.jit(lambda: [gradient(cell, p)(*args) for p in (plan, "plain")])()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), got, want)


def joined(cell, plan, *args):
    (scan,) = jr.explain(jr.scan(cell, plan=plan), *args).scans
    return scan.contracted_as_one


def of_step(step, **shapes):
    """A cell of one state of H units, ``step(params, h, x) -> h``."""
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}

    def run(p, h, x):
        new = step(p, h, x)
        return new, new

    return jr.Cell(lambda key: params, lambda params, batch: jnp.zeros((*batch, H)), run)


def by_rows(x, W):
    return jax.lax.dot_general(x, W, (((1,), (1,)), ((), ())))


def two_biases(p, h, x):
    return jnp.tanh((x @ p["W"] + p["b"]) + (h @ p["U"] + p["c"]))


def transposed(p, h, x):
    """Both weights stand as (outputs, inputs)."""
    return jnp.tanh(by_rows(x, p["W"]) + by_rows(h, p["U"]) + p["b"])


def one_transposed(p, h, x):
    """What contracts another axis stays by itself."""
    return jnp.tanh(x @ p["W"] + by_rows(h, p["U"]) + p["b"])


def of_each_row(p, h, x):
    """A parameter that is another row for each member of the batch is no bias."""
    return jnp.tanh(x @ p["W"] + h @ p["U"] + p["rows"])


def tied(p, h, x):
    """One matrix, by which two values are multiplied."""
    return jnp.tanh(x @ p["W"] + h @ p["U"] + jnp.sin(h) @ p["U"])


def read_twice(p, h, x):
    """A product that is read beside its sum stays."""
    a = x @ p["W"]
    return jnp.tanh(a + h @ p["U"] + p["b"]) * jnp.sin(a)


def scaled(p, h, x):
    """A bias that is no sum's own, for it is multiplied."""
    return jnp.tanh(x @ p["W"] + h @ p["U"] + p["b"] * x[..., :1])


W, U, b = {"W": (I, H)}, {"U": (H, H)}, {"b": (H,)}
BOTH = "(3, 2) @ (2, 4) + (3, 4) @ (4, 4)"
STEPS = {
    "two biases": (of_step(two_biases, **W, **U, **b, c=(H,)), [f"{BOTH} + bias"]),
    "transposed": (of_step(transposed, W=(H, I), **U, **b), ["(3, 2) @ (4, 2) + (3, 4) @ (4, 4) + bias"]),
    "one transposed": (of_step(one_transposed, **W, **U, **b), ["(3, 2) @ (2, 4) + bias"]),
    "of each row": (of_step(of_each_row, **W, **U, rows=(B, H)), [BOTH]),
    "tied": (of_step(tied, **W, **U), [f"{BOTH} + (3, 4) @ (4, 4)"]),
    "read twice": (of_step(read_twice, **W, **U, **b), ["(3, 4) @ (4, 4) + bias"]),
    "scaled": (of_step(scaled, **W, **U, **b), [BOTH]),
    "textbook": (textbook_lstm(I, H), ["(3, 2) @ (2, 16) + (3, 4) @ (4, 16) + bias"]),
    "lstm": (jr.lstm(I, H), ["(3, 2) @ (2, 16) + (3, 4) @ (4, 16) + bias"]),
    "peephole": (jr.peephole_lstm(I, H), ["(3, 2) @ (2, 16) + (3, 4) @ (4, 16) + bias"]),
    "gru": (jr.gru(I, H), ["(3, 2) @ (2, 12) + bias"]),
    "after": (jr.gru(I, H, reset="after"), ["(3, 2) @ (2, 12) + bias"]),
    "normed": (jr.lstm(I, H, layer_norm="per_gate"), ["(3, 2) @ (2, 16) + (3, 4) @ (4, 16)"]),
}


@pytest.mark.parametrize("name", STEPS)
def test_what_meets_in_the_loop_is_one_product(name, x64):
    cell, expected = STEPS[name]
    args = problem(cell)
    assert joined(cell, IN_LOOP, *args) == expected
    assert_as_plain(cell, IN_LOOP, *args)


@pytest.mark.parametrize("name", STEPS)
def test_where_all_steps_are_contracted_at_once(name, x64):
    """Two features beside four outputs are too many."""
    cell, _ = STEPS[name]
    args = problem(cell)
    outputs = {"textbook": 16, "lstm": 16, "peephole": 16}.get(name)  # eight for each feature
    assert joined(cell, OUTSIDE, *args) == ([f"(3, 2) @ (2, {outputs}) + bias"] if outputs else [])
    assert_as_plain(cell, OUTSIDE, *args)


@pytest.mark.parametrize(
    "cell",
    [jr.lstm(1, H), jr.gru(1, H), jr.gru(1, H, reset="after"), jr.peephole_lstm(1, H)],
    ids=["lstm", "gru", "after", "peephole"],
)
@pytest.mark.parametrize("batch", [(B,), (1,), ()], ids=["batch", "row", "none"])
def test_a_narrow_input_shares_its_contraction_with_the_bias(cell, batch, x64):
    args = problem(cell, 1, batch)
    (found,) = joined(cell, OUTSIDE, *args)
    outputs = args[0].W_xh.shape[-1]
    assert found == f"{(*batch, 1)} @ {(1, outputs)} + bias"
    assert_as_plain(cell, OUTSIDE, *args)


def test_in_parts_two_products_are_one(monkeypatch, x64):
    monkeypatch.setattr("jaxrnn.planning._rules.steps_of_a_contraction", lambda *_, **__: 2)
    for cell, expected in ((jr.lstm(I, H), [STEPS["lstm"][1][0]]), (jr.gru(I, H, reset="after"), [])):
        args = problem(cell)
        assert joined(cell, jr.Plan(one_kernel=False), *args) == expected
        assert_as_plain(cell, jr.Plan(one_kernel=False), *args)


def test_in_a_kernel_what_the_loop_adds_up_stays(x64):
    cell = jr.lstm(I, H)
    args, plan = problem(cell), jr.Plan(contract=False, one_kernel=True)
    assert joined(cell, plan, *args) == []
    assert_as_plain(cell, plan, *args)


def test_not_where_the_plan_fuses_nothing():
    cell = jr.lstm(I, H)
    assert joined(cell, IN_LOOP._replace(fuse=False), *problem(cell)) == []


def test_not_in_narrow_floats():
    """The gradient of a narrow bias is summed in float32; a product would round it at each step."""
    cell = jr.lstm(I, H, dtype=jnp.bfloat16)
    params, xs = problem(cell)
    assert joined(cell, IN_LOOP, params, xs.astype(jnp.bfloat16)) == []


@pytest.mark.parametrize("units", [H, 40])
def test_the_gradient_of_a_single_feature(units, x64):
    """Written twice where there are few outputs; either way it is that of one."""
    cell = jr.Cell(
        lambda key: {"W": jnp.ones((1, units)), "U": jnp.ones((units, units))},
        lambda params, batch: jnp.zeros((*batch, units)),
        lambda p, h, x: (jnp.tanh(x @ p["W"] + h @ p["U"]),) * 2,
    )
    args = problem(cell, 1)
    assert joined(cell, OUTSIDE, *args) == []
    assert_as_plain(cell, OUTSIDE, *args)
