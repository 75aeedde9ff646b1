"""The passes of a plan, each alone: what it does to a small step, by value; what is left when it is left out."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn import planning
from jaxrnn.planning.constants import DEFAULT, using
from jaxrnn.planning.contract import rows_by_weight_p
from jaxrnn.planning.cut_weights import by_pieces
from jaxrnn.planning.planned_scan import PASSES
from jaxrnn.planning.planned_step import Active, PlannedStep
from jaxrnn.programs.program import evaluate, needed_for
from jaxrnn.programs.tracing import trace
from tests.cases import draw, randomised
from tests.programs import equations, gradient, loops
from tests.user_cells import textbook_lstm

B, I, H = 2, 3, 5
SHAPES = {"A": (I, 2 * H), "C": (I, H), "U": (H, 2 * H), "V": (H, H), "b": (2 * H,)}
ALL = jr.Plan(hoist=True, contract=True)


@pytest.fixture(autouse=True)
def any_weight_is_large(monkeypatch):
    monkeypatch.setattr("jaxrnn.planning._rules.puts_weights_on_the_left", lambda *_, **__: True)


def step(p, h, x):
    """A GRU whose products are written one by one: each pass has something to do."""
    a = h @ p["U"] + x @ p["A"] + p["b"]
    r, z = jax.nn.sigmoid(a[..., :H]), jax.nn.sigmoid(a[..., H:])
    n = jnp.tanh((r * h) @ p["V"] + x @ p["C"])
    h = (1 - z) * h + z * n
    return h, h


CELL = jr.Cell(
    lambda key: randomised({name: jnp.ones(shape) for name, shape in SHAPES.items()}),
    lambda params, batch: jnp.zeros((*batch, H), params["V"].dtype),
    step,
)


class Planned:
    """A step of one array in the carry and one input before any pass, and its values at some point."""

    def __init__(self, function, plan=ALL):
        h, x = (draw(shape, seed).astype(jnp.float32) for seed, shape in ((1, (B, H)), (2, (B, I))))
        self.program, _ = trace(function, h, x)
        consts = [*self.program.consts.values()]
        self.arguments = [*consts, h, x]
        self.tangents = [draw(a.shape, (3, i)).astype(a.dtype) for i, a in enumerate(self.arguments)]
        self.step = PlannedStep.of(self.program, 1, plan, Active([*range(len(consts))], [0], [0]))

    def after(self, *names):
        return functools.reduce(lambda step, name: PASSES[name](step), names, self.step)

    def expected(self):
        """The step's outputs and their tangents, as JAX differentiates it."""
        numbers = [*self.program.consts, *self.program.inputs]

        def run(*arguments):
            return evaluate(self.program.ops, dict(zip(numbers, arguments, strict=True)), self.program.outputs)

        outputs, tangents = jax.jvp(run, self.arguments, self.tangents)
        return [*outputs, *tangents]

    def values(self, step):
        """The outputs of one step and, where there is a tangent, theirs, as the programs of the step compute them."""
        outputs = self._run(step.primal, self.arguments)
        n_outputs = len(outputs) - len(step.saved)
        if step.tangent is None:
            return outputs
        *consts, _, x = self.arguments
        return outputs[:n_outputs] + self._run(step.tangent, [*consts, *self.tangents, x, *outputs[n_outputs:]])

    @staticmethod
    def _run(loop, arguments):
        program = loop.program
        numbers = [*loop.consts, *loop.d_consts, *program.inputs]
        known = program.consts | dict(zip(numbers, arguments, strict=True))
        return evaluate(needed_for(program.ops, program.outputs, given=known), known, program.outputs)


@pytest.fixture(scope="module")
def planned():
    params = jax.tree.map(lambda a: a.astype(jnp.float32), CELL.init(None))
    return Planned(functools.partial(step, params))


def count(ops, name):
    return sum(op.name == name for op in ops)


# ---- all of them -------------------------------------------------------------------------------


def test_the_page_lists_the_passes_in_their_order():
    listed = re.findall(
        r"^    (\w+)  +\S", planning.__doc__.split("**An example.**")[0].split("**The passes.**")[1], re.M
    )
    assert listed == [*PASSES]


def test_each_pass_changes_this_step_and_none_its_values(planned):
    now, want = planned.step, planned.expected()
    apart = (
        "join_gates",
        "join_pieces",
        "join_products",
        "cut_weights",
        "sum_by_product",
        "join_contractions",
        "one_kernel",
        "persistent_kernel",
    )  # below, and in files of their own
    for name, rewrite in PASSES.items():
        if name in apart:
            continue
        before, now = now, rewrite(now)
        assert str(now) != str(before), f"{name} has nothing to do here, so nothing of it is tested"
        got = planned.values(now)
        for a, b in zip(got, want, strict=False):  # before linearize the outputs alone
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)
    assert len(got) == len(want) == 4


@pytest.mark.parametrize("name", [name for name in PASSES if name != "linearize"])
def test_a_pass_left_out_changes_no_number(name, monkeypatch, x64):
    """But for the order of sums: as in test_contract.py."""
    params, xs = CELL.init(None), draw((4, B, I), 1)
    others = {other: rewrite for other, rewrite in PASSES.items() if other != name}
    monkeypatch.setattr("jaxrnn.planning.planned_scan.PASSES", others)  # deleted, it would come back as the last
    got, want = jax.jit(lambda: [gradient(CELL, plan)(params, xs) for plan in (ALL, "plain")])()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), got, want)
    assert name not in jr.explain(jr.scan(CELL, plan=ALL), params, xs).scans[0].programs


def test_explain_holds_the_step_after_each_pass():
    params, xs = CELL.init(None), draw((4, B, I), 1)
    (scan,) = jr.explain(jr.scan(CELL, plan=ALL), params, xs).scans
    assert [*scan.programs] == ["trace", *PASSES]
    first, last = scan.programs["trace"], scan.programs["contract"]
    assert (
        first.tangent is None and len(first.primal.parts().each_step) == len(first.primal.program.ops) - 1
    )  # the bias
    assert str(last).startswith("primal\nconsts: ") and "\nsaved: " in str(last) and "\ntangent\nconsts: " in str(last)
    assert set(last.primal.program.consts.values()) == {None}, "no array, no tracer is kept"
    assert "programs" not in str(scan)


def test_without_a_derivative_the_tangent_stays_away(planned):
    step = planned.step._replace(active=None)
    for rewrite in PASSES.values():
        step = rewrite(step)
    assert step.tangent is None and step.saved == ()
    assert step.notes.keys() == {"fused", "gates", "hoisted", "weights_on_the_left", "joined", "cut", "summed"}
    np.testing.assert_allclose(planned.values(step)[0], planned.expected()[0], rtol=1e-5, atol=1e-6)


# ---- each of them ------------------------------------------------------------------------------


def test_fuse(planned):
    """Of the two products of x one with wider weights; so its bias is added before the split."""
    before, after = planned.step, planned.after("fuse")
    assert [count(step.primal.program.ops, "dot_general") for step in (before, after)] == [4, 3]
    assert after.notes == {"fused": ("2 of (2, 3)",)}
    program = after.primal.program
    assert [program.kinds[op.outputs[0]].shape for op in program.ops if op.name == "concatenate"] == [(I, 3 * H)]
    alone = planned.step._replace(plan=ALL._replace(fuse=False))
    assert PASSES["fuse"](alone) is alone


def test_linearize():
    """All is computed from the carry and the inputs, and only what has a tangent is asked for one."""
    scale = jnp.float32(2)
    of = Planned(lambda h, x: (jnp.sin(scale * h), h * x.sum()))
    step = of.after("linearize")
    assert step.saved == tuple(step.primal.carry)
    assert [len(step.tangent.d_consts), step.tangent.n_carry, len(step.tangent.x)] == [1, 1, 3]  # ∂x, x, h
    without = PASSES["linearize"](of.step._replace(active=Active([], [0], [])))
    assert [len(without.tangent.d_consts), len(without.tangent.x)] == [0, 2]  # x, h
    assert [count(s.tangent.program.ops, "mul") for s in (step, without)] == [6, 4]


@pytest.mark.parametrize("recompute, saved", [(True, ["dot_general"]), (False, ["cos", "exp"])])
def test_save(recompute, saved):
    """The derivative of exp(sin(a)) is exp(sin(a)) cos(a): both factors, or a, from which they are cheap."""
    W = jnp.eye(H, dtype=jnp.float32)
    of = Planned(lambda h, x: (jnp.exp(jnp.sin(h @ W)), x), ALL._replace(recompute=recompute))
    step = of.after("linearize", "save")
    makers = {n: op.name for op in step.primal.program.ops for n in op.outputs}
    h, *others = step.saved
    assert [h] == step.primal.carry, "for the gradient of W"
    assert sorted(makers[n] for n in others) == saved
    assert step.notes["saved"] == (str((B, H)),) * len(step.saved)
    for a, b in zip(of.values(step), of.expected(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_spread(planned):
    """The bias, which alone is smaller than the sum that it enters, gets the batch's shape, once."""
    before = planned.after("linearize", "save")
    after = PASSES["spread"](before)
    (op,) = [op for op in after.tangent.program.ops if op not in before.tangent.program.ops][:1]
    assert op.name == "broadcast_in_dim" and after.tangent.program.kinds[op.outputs[0]].shape == (B, 2 * H)
    assert [count(step.tangent.parts().once, "broadcast_in_dim") for step in (before, after)] == [1, 2]


def widths_of_products(step):
    kinds, ops = step.tangent.program.kinds, step.tangent.parts().each_step
    return sorted(kinds[op.outputs[0]].shape[-1] for op in ops if op.name == "dot_general")


def test_split_sums(planned):
    """The wide product of x that ``fuse`` made is three with ∂x, three with ∂W, each in a sum of its own."""
    before = planned.after("fuse", "linearize", "save", "spread")
    after = PASSES["split_sums"](before)
    assert [*map(widths_of_products, (before, after))] == [[5, 5, 10, 10, 15, 15], [5, 5, 5, 5, 10, 10, 10, 10]]


@pytest.mark.parametrize("steps, widths", [(1, [5, 5, 10, 10, 15, 15]), (2, [5, 5, 5, 5, 10, 10, 10, 10])])
def test_weights_are_split_where_they_are_fewer_than_what_comes_of_them(planned, steps, widths):
    """45 weights, and 30 outputs a step."""
    before = planned.after("fuse", "linearize", "save", "spread")._replace(steps=steps)
    assert widths_of_products(PASSES["split_sums"](before)) == widths


def test_sums_are_not_split_on_one_cpu_device(planned, monkeypatch):
    before = planned.after("fuse", "linearize", "save", "spread")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert PASSES["split_sums"](before) is before


def test_transpose_weights(planned):
    """Those that multiply what depends on ∂h, U and V: their products contract the second axis."""
    step = planned.after("linearize", "save", "transpose_weights")
    axes = [op.params["dimension_numbers"][0][1] for op in step.tangent.program.ops if op.name == "dot_general"]
    assert axes.count((1,)) == 2 and axes.count((0,)) == 6
    assert count(step.tangent.parts().once, "transpose") == 2


@pytest.mark.parametrize("plan, inside", [(ALL, [2, 2]), (jr.Plan(hoist=False, contract=False), [4, 8])])
def test_hoist(planned, plan, inside):
    """The products with x leave the forward loop, all but those with U and V the tangent's."""
    step = PASSES["hoist"](planned.after("linearize", "save")._replace(plan=plan))
    loops = [step.primal.parts(), step.tangent.parts()]
    assert [count(parts.each_step, "dot_general") for parts in loops] == inside
    assert [count(parts.all_steps, "dot_general") for parts in loops] == [4 - inside[0], 8 - inside[1]]
    assert [bool(loop.outside) for loop in (step.primal, step.tangent)] == [plan.hoist, plan.contract]
    of_x = ["(2, 3) @ (3, 10)", "(2, 3) @ (3, 5)"]
    assert sorted(step.notes["hoisted"]) == (of_x if plan.hoist else [])
    of_weights = sorted(["(2, 5) @ (5, 10)", "(2, 5) @ (5, 5)", *of_x, *of_x])
    assert sorted(step.notes["contracted"]) == (of_weights if plan.contract else [])
    assert sorted(step.notes["added_in_loop"]) == ([] if plan.contract else of_weights)


def test_a_kernel_adds_what_it_can(planned):
    """The product with x alone leaves, not the sum with the bias, nor the pieces of it."""
    names = []
    for plan in (ALL, ALL._replace(one_kernel=True)):
        step = PASSES["hoist"](planned.after("fuse", "linearize", "save")._replace(plan=plan))
        names.append([op.name for op in step.primal.parts().all_steps])
    assert names[1] == ["dot_general"] and set(names[0]) > {"dot_general"}, names


def test_hoisting_leaves_one_sum_to_enter_the_loop(planned):
    """Of h U + x A + b the last two, added up before."""
    step = planned.after("hoist")
    parts = step.primal.parts()
    shapes = [step.primal.program.kinds[n].shape for n in parts.ready]
    assert sorted(shapes) == [(B, H), (B, 2 * H)]
    assert [op.name for op in parts.all_steps] == ["dot_general", "sum", "dot_general"]


def test_weights_on_the_left(planned, monkeypatch):
    step = planned.after("weights_on_the_left")
    parts, kinds = step.primal.parts(), step.primal.program.kinds
    products = [kinds[op.outputs[0]].shape for op in parts.each_step if op.name == "dot_general"]
    assert products == [(2 * H, B), (2 * H, B), (H, B), (H, B)]
    assert [op.name for op in parts.once].count("transpose") == 4
    assert step.notes == {"weights_on_the_left": ("(2, 10)", "(2, 5)")}
    monkeypatch.setattr("jaxrnn.planning._rules.puts_weights_on_the_left", lambda *_, **__: False)
    assert planned.after("weights_on_the_left").primal == planned.step.primal


@pytest.mark.parametrize("rows, devices, joins", [(12, 1, False), (13, 1, True), (25, 2, False), (26, 2, True)])
def test_join_products(monkeypatch, rows, devices, joins):
    """Of the first sum: 8 × 10 weights and 8 numbers a row are put together, 10 a row saved. The second saves less."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    arrays = draw((rows, H), 1), draw((rows, I), 2)
    params = {name: draw(shape, (3, i)) for i, (name, shape) in enumerate(SHAPES.items())}
    program, _ = trace(functools.partial(step, params), *arrays)
    with using(DEFAULT._replace(spare=8 * 10 + (8 - 10) * 13)):
        after = PASSES["join_products"](PlannedStep.of(program, 1, jr.Plan()))
    assert after.notes == {"joined": (f"({rows}, 5) @ (5, 10) + ({rows}, 3) @ (3, 10)",) * joins}
    each_step = after.primal.parts().each_step
    assert (count(each_step, "dot_general"), count(each_step, "concatenate")) == ((3, 1) if joins else (4, 0))
    known = dict(zip([*program.consts, *program.inputs], [*program.consts.values(), *arrays], strict=True))
    got, want = (evaluate(ops, known, program.outputs) for ops in (after.primal.program.ops, program.ops))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, want)


@pytest.mark.parametrize("rows, devices, joined", [(1, 1, True), (2, 2, False), (3, 2, False), (4, 2, True)])
def test_one_row_of_several_is_not_joined(monkeypatch, rows, devices, joined):
    """A single row in all is, as may be many under vmap; where there is a gradient every row is."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    params = {name: draw(shape, (3, i)) for i, (name, shape) in enumerate(SHAPES.items())}
    program, _ = trace(functools.partial(step, params), draw((rows, H), 1), draw((rows, I), 2))
    actives = (None, Active([], [0], [0]))
    made = [PASSES["join_products"](PlannedStep.of(program, 1, jr.Plan(), active)) for active in actives]
    assert [bool(after.notes["joined"]) for after in made] == [joined, True]


@pytest.mark.parametrize("rows, joined", [(256, [True, True]), (257, [True, False])])
def test_many_rows_are_joined_without_a_gradient_alone(monkeypatch, rows, joined):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr("jaxrnn.planning._rules.puts_weights_on_the_left", lambda *_, **__: False)
    cell = jr.lstm(2, 64)
    params, xs = jax.eval_shape(cell.init, jax.random.key(0)), jax.ShapeDtypeStruct((10, rows, 2), jnp.float32)
    forward, training = loops(jr.scan(cell).apply, params, xs)[0], loops(gradient(cell, "auto"), params, xs)[0]
    assert [len(equations(loop, "dot_general")) == 1 for loop in (forward, training)] == joined


@pytest.mark.parametrize("cell", [jr.lstm(I, H), textbook_lstm(I, H)], ids=["lstm", "textbook"])
def test_joined_products_change_no_number(cell, monkeypatch, x64):
    """Of float64, but for the order of sums: outputs, last carry and gradients, with pauses and resets."""
    monkeypatch.setattr("jaxrnn.planning._rules.puts_weights_on_the_left", lambda *_, **__: False)
    params, xs = randomised(cell.init(jax.random.key(0))), draw((4, 3 * B, I), 1)
    flags = {"mask": draw((4, 3 * B), 2) > -1, "resets": draw((4, 3 * B), 3) > 1}

    def everything(plan):
        return jr.scan(cell, plan=plan).apply(params, xs, **flags), gradient(cell, plan)(params, xs)

    with using(DEFAULT._replace(kernel_of_rows_up_to=0)):
        got, want = jax.jit(lambda: [everything(plan) for plan in ("auto", "plain")])()
        (joined,) = jr.explain(jr.scan(cell), params, xs, **flags).scans[0].joined
    assert set(joined.split(" + ")) == {"(6, 5) @ (5, 20)", "(6, 3) @ (3, 20)"}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12), got, want)


@pytest.mark.parametrize(
    "rows, H, spare, cuts",
    [(6, 5, 75 - 1, 2), (6, 5, 75, 0), (2, 5, 60 - 1, 2), (2, 5, 60, 0), (2, 31, 1, 2), (2, 32, 1, 0)],
    ids=["many pieces", "few pieces", "many outputs", "few outputs", "not an eighth", "an eighth of the pieces"],
)
def test_cut_weights(monkeypatch, rows, H, spare, cuts):
    """A GRU multiplies by two pieces of W_hh, 3 H² numbers, and has 3 H outputs a row. Forward alone its loop is that
    of ``lax.scan``, unless one or the other are few."""
    monkeypatch.setattr("jaxrnn.planning._rules.devices", lambda: 1)
    cell = jr.gru(I, H)
    params, xs = randomised(cell.init(jax.random.key(0))), draw((4, rows, I), 1)
    with using(DEFAULT._replace(spare=spare, kernel_of_rows_up_to=0)):
        (loop,) = loops(lambda *args: jr.scan(cell).apply(*args), params, xs)
        got = jr.scan(cell).apply(params, xs)[1]
        assert jr.explain(jr.scan(cell), params, xs).scans[0].cut == [str((H, 2 * H)), str((H, H))], "with a derivative"
    pieces = [eqn for eqn in equations(loop, "slice") if eqn.invars[0].aval.shape == (H, 3 * H)]
    assert len(pieces) == cuts
    np.testing.assert_allclose(got, jr.scan(cell, plan="plain").apply(params, xs)[1], rtol=1e-5, atol=1e-6)


def test_columns_of_a_product_are_a_product_with_columns():
    """Those of which one piece is used, of weights: neither what is used otherwise too, nor a product of inputs."""

    def run(W, h, x):
        a, b, c = h @ W, x @ W, x @ W
        return a[:, 1:3], b[:, :2], b, jnp.tanh(c)[:, 2:], (h @ x.T)[:, :1], (x @ W)[1:, 2:]

    W, h, x = draw((I, 4), 1), draw((B, I), 2), draw((B, I), 3)
    program, _ = trace(functools.partial(run, W), h, x)
    changed = by_pieces(program)
    multiplied = [changed.kinds[op.inputs[1]].shape for op in changed.ops if op.name == "dot_general"]
    assert sorted(multiplied) == [(I, B), (I, 2), (I, 4), (I, 4), (I, 4)]
    known = changed.consts | dict(zip(changed.inputs, (h, x), strict=True))
    for got, want in zip(evaluate(changed.ops, known, changed.outputs), run(W, h, x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    assert by_pieces(changed) is changed


@pytest.mark.parametrize("rows, copies", [(3, 0), (4, 1)])
def test_weights_are_laid_out_anew_for_what_is_larger(rows, copies):
    x, W = draw((rows, 4), 1), draw((4, 8), 2)
    product = lambda x: rows_by_weight_p.bind(x, W, axis=0, dtype=x.dtype)
    d = jnp.asarray(draw((rows, 8), 3), jnp.float32)
    run = lambda d: jax.linear_transpose(product, jax.ShapeDtypeStruct(x.shape, d.dtype))(d)[0]
    assert len(equations(jax.make_jaxpr(run)(d).jaxpr, "optimization_barrier")) == copies
    np.testing.assert_allclose(run(d), np.asarray(d) @ W.T, rtol=1e-5, atol=1e-6)


def test_contract(planned):
    """What is hoisted of the tangent, and nothing else."""
    step = planned.after("linearize", "save", "hoist", "contract")
    parts = step.tangent.parts()
    assert [count(ops, "rows_by_weight") for ops in (parts.all_steps, parts.each_step)] == [6, 0]
    assert [count(ops, "dot_general") for ops in (parts.all_steps, parts.each_step)] == [0, 2]
    untouched = [planned.after("linearize", "save", *more).tangent for more in ((), ("contract",))]
    assert str(untouched[0]) == str(untouched[1])
