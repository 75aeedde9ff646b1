"""Plans of steps that sum over features: sums as products, what stays in the backward loop, parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn.planning.constants import DEFAULT, using
from tests.cases import draw, randomised
from tests.programs import loops
from tests.user_cells import textbook_lstm

_rules = jr.planning._rules

T, B, I, H = 16, 2, 3, 4
NORMED = jr.lstm(I, H, layer_norm="ba2016")
OF_ONE = T * B * 4 * H  # the numbers of the cotangents of W_hh h over all steps; those of W_xh x are as many


@pytest.fixture(autouse=True)
def one_device_of_many_rows(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(_rules, "makes_one_kernel", lambda weights, rows: False)


def explained(cell, plan="auto", steps=T):
    shapes = jax.eval_shape(cell.init, jax.random.key(0)), jax.ShapeDtypeStruct((steps, B, I), jnp.float32)
    (scan,) = jr.explain(jr.scan(cell, plan=plan), *shapes).scans
    return scan


# ---- sums as products --------------------------------------------------------------------------


@pytest.mark.parametrize("backend, units, shapes", [("cpu", 9, [36] * 4), ("cpu", 8, []), ("gpu", 9, [])])
def test_sums_of_more_than_32_features_are_products(monkeypatch, backend, units, shapes):
    """Of the means and variances of both products; those of 9 units are summed as they stand."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    scan = explained(jr.lstm(I, units, layer_norm="ba2016"))
    assert scan.summed == [str((B, size)) for size in shapes]
    step = scan.programs["sum_by_product"]
    ops = [op.name for loop in (step.primal, step.tangent) for op in loop.program.ops]
    assert (ops.count("reduce_sum") < ops.count("dot_general")) is bool(shapes)


@pytest.mark.usefixtures("x64")
def test_sums_as_products_change_no_number():
    """Of a step whose rows are matrices: a sum over the last axis and one over the middle, which stays."""

    def step(W, h, x):
        a = (h[..., None] * W).swapaxes(-1, -2) + x[..., None, :1]  # (B, 40, H)
        h = jnp.tanh(a.swapaxes(-1, -2).sum(-1) / 40 + a.sum(-2) * h)
        return h, h

    cell = jr.Cell(lambda key: jnp.ones((H, 40)), lambda p, batch: jnp.zeros((*batch, H)), step, input_size=I)
    W, xs = draw((H, 40), 3), draw((3, B, I), 1)

    def run(plan, W, xs):
        return jax.value_and_grad(lambda *args: (jr.scan(cell, plan=plan).apply(*args)[1] ** 2).sum(), (0, 1))(W, xs)

    got, want = jax.jit(lambda: [run(plan, W, xs) for plan in ("auto", "plain")])()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), got, want)
    (scan,) = jr.explain(jr.scan(cell), W, xs).scans
    assert scan.summed == [str((B, H, 40))]


# ---- what stays in the backward loop -----------------------------------------------------------


@pytest.mark.parametrize("cell", [NORMED, jr.gru(I, H, layer_norm="ba2016", reset="after")], ids=["lstm", "gru"])
@pytest.mark.parametrize("backend, alone", [("cpu", True), ("gpu", False)])
def test_products_leave_the_backward_loop_without_what_follows(monkeypatch, cell, backend, alone):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    program = explained(cell, jr.Plan(contract=True, hoist=False)).programs["hoist"]
    names = {op.name for op in program.tangent.parts().all_steps}
    assert (names <= {"dot_general", "add_any", "sum", "split"}) is alone
    assert ("reduce_sum" in names) is not alone


def test_what_makes_one_of_many_leaves_with_them():
    """A product of 4 H units whose maximum alone is read: as much as is read enters the loop."""

    def step(p, h, x):
        h = jnp.tanh(h * jnp.square(x @ p).reshape(*x.shape[:-1], H, 4).sum(-1))
        return h, h

    cell = jr.Cell(lambda key: jnp.ones((I, 4 * H)), lambda p, batch: jnp.zeros((*batch, H)), step, input_size=I)
    tangent = explained(cell, jr.Plan(contract=True)).programs["hoist"].tangent
    entering = tangent.parts().ready
    assert [tangent.program.kinds[n].shape for n in entering] == [(B, H)]


# ---- contraction in parts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell, sizes",
    [
        (NORMED, [4 * H, 4 * H]),
        (jr.lstm(I, H, layer_norm="per_gate"), [4 * H]),
        (jr.gru(I, H, layer_norm="ba2016", reset="after"), [3 * H, 3 * H]),
        (jr.lstm(I, H), [4 * H]),
        (textbook_lstm(I, H), [4 * H]),
        (jr.gru(I, H), [3 * H]),  # of x W_xh; its pieces meet h W_hh and (r h) W_hh
        (jr.elman(I, H, output_size=2), [2, H]),
    ],
    ids=["lstm_ba2016", "lstm_per_gate", "gru_ba2016", "lstm", "textbook", "gru", "readout"],
)
def test_products_that_meet_in_a_sum_are_counted_once(monkeypatch, cell, sizes):
    seen = []
    monkeypatch.setattr(_rules, "steps_of_a_contraction", lambda plan, cotangents, **_: seen.append(cotangents) or 0)
    explained(cell)
    assert sorted(size for _, size in seen[-1]) == [B * size for size in sizes]


@pytest.mark.parametrize(
    "plan, cotangents, steps, size",
    [
        ({}, [(2**16, 2**14)] * 2, 128, 16),  # LSTM of 128 units, 32 rows
        ({}, [(2**16, 2**14)] * 2, 127, None),  # nothing from 4 on divides it
        ({}, [(2**16, 2**14)] * 2, None, 0),  # of an open number of steps
        ({}, [(2**13, 2**12)] * 2, 256, None),  # together 2²¹
        ({}, [(2**13, 2**12)] * 2, 260, 26),  # more
        ({}, [(2**15, 2**14), (2**9, 2**8)], 132, 22),
        ({}, [(2**13, 2**12)] * 2, 509, None),  # what nothing divides may have up to twice as many
        ({}, [(2**13, 2**12)] * 2, 521, 0),
        ({}, [(2**17, 2**14)] * 2, 256, 16),
        ({}, [(2**12, 2**11)], 15, 0),  # an Elman network of 64 units, 32 rows: too little to be worth it
        ({}, [(2**12, 2**11)], 16, None),
        ({}, [(2**12, 2**10)], 15, None),
        ({}, [(2**17, 2**14)] * 2, 251, None),  # for their many weights, whatever is stacked
        ({}, [(2**8, 2**7)], 2**15, None),  # 32 steps of it are not worth a loop
        ({}, [(2**8, 2**7)], 2**16, 0),
        ({}, [(2**16, 2**17)] * 2, 16, 0),
        ({}, [(2**14 + 1, 2**14), (2**14, 2**14)], 128, 16),
        ({}, [(2**14, 2**14)] * 2, 128, 0),  # as many weights as what would be kept
        ({"contract": True}, [(2**16, 2**14)] * 2, 128, None),
        ({"contract": False}, [(2**16, 2**14)], 8, 0),
        ({}, [], 128, None),
    ],
)
def test_for_how_many_steps_at_once(plan, cotangents, steps, size):
    assert _rules.steps_of_a_contraction(jr.Plan(**plan), cotangents, steps=steps) == size


@pytest.mark.parametrize("measured, least", [(0.5, 2**13), (1, 2**14), (4, 2**14), (8, 2**14), (32, 2**16)])
def test_what_was_measured_moves_where_contraction_begins(measured, least):
    """To no fewer weights than there are cotangents, unless contraction in one piece paid with fewer."""
    with using(DEFAULT._replace(contract_from=measured)):
        sizes = [_rules.steps_of_a_contraction(jr.Plan(), [(n, 2**14)], steps=160) for n in (least, least + 1)]
    assert sizes == [0, 32]


def test_no_more_cotangents_than_the_carry_has_numbers_are_contracted_at_once():
    """As in an Elman network."""
    sizes = {
        carried: _rules.steps_of_a_contraction(jr.Plan(), [(2**17, 2**14)], steps=256, carried=carried)
        for carried in (2**14, 2**14 - 1)
    }
    assert sizes == {2**14: None, 2**14 - 1: 32}


def test_several_devices_contract_once(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert _rules.steps_of_a_contraction(jr.Plan(), [(2**16, 2**14)] * 2, steps=128) is None


def test_explain_says_that_it_is_done_in_parts():
    with using(DEFAULT._replace(stack_up_to=OF_ONE)):
        scan = explained(NORMED)
        assert (scan.contracted, len(scan.contracted_in_parts), scan.added_in_loop) == ([], 3, [])
        assert "contracted within the backward loop: (2, 4) @ (4, 16), 4 steps at once, " in str(scan)
        assert explained(jr.lstm(I, H)).contracted_in_parts == []
    with using(DEFAULT._replace(stack_up_to=4 * OF_ONE)):
        whole = explained(NORMED)
    assert (len(whole.contracted), whole.contracted_in_parts) == (3, [])


@pytest.mark.parametrize("order", [1, pytest.param(2, marks=pytest.mark.full)])
def test_contraction_in_parts_changes_no_number(order, x64):
    """Values, gradients, their own derivative: reversed, with padding, against the scan of the step as it stands."""
    params, xs = randomised(NORMED.init(jax.random.key(0))), draw((T, B, I), 1)
    carry, lengths = randomised(NORMED.initial_carry(params, (B,)), 2), jnp.array([T, 3])
    directions = randomised((params, xs, carry), 3)

    def loss(layer, params, xs, carry):
        end, ys = layer.apply(params, xs, carry, lengths=lengths)
        return sum(jnp.sum(jnp.sin(a)) for a in (ys, *end))

    @functools.partial(jax.jit, static_argnames="plan")
    def both(plan, *arguments):
        gradient = jax.value_and_grad(functools.partial(loss, jr.scan(NORMED, plan=plan, reverse=True)), (0, 1, 2))
        return gradient(*arguments) if order == 1 else jax.jvp(gradient, arguments, directions)

    with using(DEFAULT._replace(stack_up_to=OF_ONE)):
        got = both("auto", params, xs, carry)
        backward = loops(jax.grad(functools.partial(loss, jr.scan(NORMED, reverse=True))), params, xs, carry)[1:]
    assert len(backward) == 2, "a loop within a loop"
    want = both("plain", params, xs, carry)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), got, want)
