"""A step of one row: its loops are one kernel of the CPU, and compute what the plain scan computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

import jaxrnn as jr
from jaxrnn.programs.calls import as_one_kernel, on_one_cpu
from tests.cases import draw, randomised
from tests.programs import equations

T, I, H = 7, 3, 16
PLANS = ("auto", "plain")
KERNEL = "xla_cpu_small_call"  # how XLA marks a call that it emits as one kernel


def textbook():
    """A user's GRU, its products written one by one."""

    def init(key):
        shapes = {"A": (I, H), "U": (H, H), "C": (I, H), "V": (H, H), "b": (H,)}
        return {name: jnp.ones(shape) for name, shape in shapes.items()}

    def step(p, h, x):
        z = jax.nn.sigmoid(x @ p["A"] + h @ p["U"] + p["b"])
        h = (1 - z) * h + z * jnp.tanh(x @ p["C"] + (z * h) @ p["V"])
        return h, (h, h > 0)

    return jr.Cell(init, lambda p, batch: jnp.zeros((*batch, H), p["b"].dtype), step)


def matrix_carry():
    """Whose tangent, transposed, is a product of two vectors."""

    def step(p, A, x):
        h = jnp.tanh(x @ p @ A)
        return 0.9 * A + 0.1, h

    return jr.Cell(lambda key: jnp.ones((I, H)), lambda p, batch: jnp.ones((*batch, H, H)), step)


CELLS = {
    "elman": lambda: jr.elman(I, H),
    "lstm": lambda: jr.lstm(I, H),
    "gru": lambda: jr.gru(I, H),
    "gru after": lambda: jr.gru(I, H, reset="after"),
    "peephole": lambda: jr.peephole_lstm(I, H),
    "normalized": lambda: jr.normalized(jr.lstm(I, H)),
    "textbook": textbook,
}


def problem(cell, batch=(1,), dtype=jnp.float32, steps=T):
    params = jax.tree.map(lambda a: a.astype(dtype) / 4, randomised(cell.init(jax.random.key(0))))
    return params, draw((steps, *batch, I), 1).astype(dtype)


def loss(cell, plan="auto", **options):
    """A function of params and inputs in which every float that the run puts out counts."""
    run = {name: options.pop(name) for name in ("reverse", "unroll", "checkpoint") if name in options}
    layer = jr.scan(cell, plan=plan, **run)

    def of(params, xs):
        floats = [
            a for a in jax.tree.leaves(layer.apply(params, xs, **options)) if jnp.issubdtype(a.dtype, jnp.floating)
        ]
        return sum(jnp.sum(jnp.sin(a + 0.3 * i)) for i, a in enumerate(floats))

    return of


def assert_close(got, want, tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), got, want)


def kernels(function, *args):
    return jax.jit(function).lower(*args).as_text().count(KERNEL)


# ---- the numbers -------------------------------------------------------------------------------


@pytest.mark.optimised
@pytest.mark.parametrize("name, B", [(name, B) for B, name in zip((1, 4) * len(CELLS), CELLS, strict=False)])
def test_the_loops_are_kernels_and_compute_what_the_plain_scan_computes(name, B, x64):
    cell = CELLS[name]()
    params, xs = problem(cell, (B,), jnp.float64)
    gradient = jax.value_and_grad(loss(cell), (0, 1))
    assert kernels(gradient, params, xs) == 2
    assert jr.explain(jr.scan(cell), params, xs).scans[0].one_kernel == ["forward", "backward"]
    want = jax.jit(jax.value_and_grad(loss(cell, "plain"), (0, 1)))(params, xs)
    assert_close(jax.jit(gradient)(params, xs), want, 1e-11)


@pytest.mark.optimised
@pytest.mark.parametrize("batch", [(), (1, 1), (3,)])
def test_masks_resets_and_reversed_runs(batch, x64):
    cell = jr.lstm(I, H)
    params, xs = problem(cell, batch, jnp.float64)
    mask = jnp.broadcast_to((jnp.arange(T) % 3 != 1).reshape(T, *(1 for _ in batch)), (T, *batch))
    resets = jnp.broadcast_to((jnp.arange(T) == 4).reshape(T, *(1 for _ in batch)), (T, *batch))
    xs = jnp.where(mask[..., None], xs, jnp.nan)
    options = {"mask": mask, "resets": resets, "reverse": True}
    gradient = jax.value_and_grad(loss(cell, **options), (0, 1))
    assert kernels(gradient, params, xs) == 2
    want = jax.jit(jax.value_and_grad(loss(cell, "plain", **options), (0, 1)))(params, xs)
    assert_close(jax.jit(gradient)(params, xs), want, 1e-11)


@pytest.mark.parametrize("options", [{"unroll": 3}, {"checkpoint": 3}, {}], ids=str)
def test_float32_unrolled_in_segments_and_as_weights_that_are_constants(options):
    """Of 20,000 weights that the compiled program holds as constants: a kernel must not be given these one by one."""
    cell = jr.lstm(I, 64)
    params, xs = problem(cell)
    values = jax.jit(lambda xs: loss(cell, **options)(params, xs))(xs)
    np.testing.assert_allclose(values, jax.jit(loss(cell, "plain"))(params, xs), rtol=2e-6)


@pytest.mark.parametrize("of", ["jvp", "grad of grad", "vmap", "grad of vmap", "vmap of grad", "hessian"])
def test_derivatives_and_vmap_of_it(of, traced, x64):
    cell = jr.gru(I, H, reset="after")
    params, xs = problem(cell, (), jnp.float64, steps=4)
    many = jnp.stack([xs, xs[::-1], 0.5 * xs])
    first = lambda plan: lambda x: loss(cell, plan)(params, xs.at[0].set(x))
    functions = {
        "jvp": lambda plan: jax.jvp(lambda xs: loss(cell, plan)(params, xs), (xs,), (jnp.cos(xs),)),
        "grad of grad": lambda plan: jax.grad(lambda x: jnp.sum(jnp.sin(jax.grad(first(plan))(x))))(xs[0]),
        "vmap": lambda plan: jax.vmap(loss(cell, plan), (None, 0))(params, many),
        "grad of vmap": lambda plan: jax.grad(lambda p: jnp.sum(jax.vmap(loss(cell, plan), (None, 0))(p, many)))(
            params
        ),
        "vmap of grad": lambda plan: jax.vmap(jax.grad(loss(cell, plan)), (None, 0))(params, many),
        "hessian": lambda plan: jax.hessian(first(plan))(xs[0]),
    }
    got, want = (traced(lambda plan=plan: functions[of](plan))() for plan in ("auto", "plain"))
    assert_close(got, want, 1e-10)


@pytest.mark.parametrize("name, sums", [("gru", [1, 2]), ("gru after", [1, 3])])
def test_a_kernel_puts_out_the_cotangent_of_each_sum_once(name, sums):
    """With the gate behind the product, that of h and that of x meet in two of three sums; the third has two."""
    cell = CELLS[name]()
    params, xs = problem(cell)
    traced = jax.make_jaxpr(jax.grad(loss(cell)))(params, xs).jaxpr
    *_, backward = equations(traced, "scan")
    stacked = [v.aval.shape for v in backward.params["jaxpr"].jaxpr.outvars[backward.params["num_carry"] :]]
    assert sorted(stacked) == [(1, n * H) for n in sums]
    products = [eqn.outvars[0].aval.shape for eqn in equations(traced, "dot_general")]
    assert (I, 3 * H) in products, "one product for all pieces"


# ---- rows and blocks ---------------------------------------------------------------------------


@pytest.mark.parametrize("name, made", [("lstm", 1), ("gru after", 1), ("gru", 2), ("textbook", 2)])
def test_products_that_do_not_wait_for_one_another_are_one_loop_over_the_rows(name, made):
    """With the gate r times h a GRU multiplies after it has multiplied."""
    params, xs = problem(CELLS[name](), (4,))
    traced = jax.make_jaxpr(jr.scan(CELLS[name]()).apply)(params, xs).jaxpr
    assert [eqn.params["length"] for eqn in equations(traced, "scan")] == [T] + [4] * made


def test_sums_of_rows_with_what_is_no_row(x64):
    """A product that is used beside its sum, columns, and terms that have more than one row or are no products."""

    def step(p, h, x):
        a, b = x @ p["A"], h @ p["U"]
        c = (p["V"] @ h.T).T + p["b"]
        h = jnp.tanh(a + b + p["b"]) * jnp.sin(b + h) + jnp.tanh(c + jnp.arange(3.0)[:, None])
        return h, (h, h > 0)

    cell = textbook()._replace(step=step)
    params, xs = problem(cell, (3,), jnp.float64)
    gradient = lambda plan: jax.value_and_grad(loss(cell, plan), (0, 1))
    assert kernels(gradient("auto"), params, xs) == 2
    assert_close(jax.jit(gradient("auto"))(params, xs), jax.jit(gradient("plain"))(params, xs), 1e-11)


@pytest.mark.parametrize("steps, reverse", [(7, False), (7, True), (8, False)])
def test_products_of_one_row_are_done_block_by_block(monkeypatch, x64, steps, reverse):
    """Without a gradient: of 7 steps the second block of 4 begins within the first; none has all steps at once."""
    monkeypatch.setattr("jaxrnn.planning._rules.steps_of_a_block", lambda outputs: 4)
    monkeypatch.setattr("jaxrnn.planning._rules.hoists_of_one_row", lambda weights: True)
    cell = jr.lstm(I, H)
    params, xs = problem(cell, dtype=jnp.float64, steps=steps)
    run, want = (lambda *of, plan=plan: jr.scan(cell, plan=plan, reverse=reverse).apply(*of) for plan in PLANS)
    text = jax.jit(run).lower(params, xs).as_text()
    assert KERNEL in text and f"tensor<4x1x{4 * H}xf64>" in text and f"tensor<{steps}x1x{4 * H}xf64>" not in text
    assert_close(jax.jit(run)(params, xs), jax.jit(want)(params, xs), 1e-12)
    lowered = jax.jit(jax.grad(loss(cell))).lower(params, xs).as_text()
    assert f"tensor<{steps}x1x{4 * H}xf64>" in lowered, "a gradient has them all at once"


def test_what_a_run_in_blocks_holds(monkeypatch):
    """Blocks write into the outputs of the run, and read a product as it was made: less is held than the outputs."""
    monkeypatch.setattr("jaxrnn.planning._rules.steps_of_a_block", lambda outputs: 4)
    monkeypatch.setattr("jaxrnn.planning._rules.hoists_of_one_row", lambda weights: True)
    cell = jr.elman(I, H)
    params, xs = problem(cell, steps=103)
    compiled = jax.jit(lambda *of: jr.scan(cell).apply(*of)[1]).lower(params, xs).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < xs.shape[0] * H * 4 / 4
    assert f"f32[4,{H}]" in compiled.as_text() and f"f32[4,1,{H}]" not in compiled.as_text()


# ---- under vmap --------------------------------------------------------------------------------


def test_under_vmap_there_are_more_rows_and_their_rules():
    """No kernel, and the products with the inputs stay in the loop."""
    cell = jr.lstm(64, H)
    params = cell.init(jax.random.key(0))
    xs = jnp.ones((5, T, 64))
    run = lambda params, xs: jr.scan(cell).apply(params, xs)[1]
    alone, many = (jax.jit(f).lower(params, a).as_text() for f, a in ((run, xs[0]), (jax.vmap(run, (None, 0)), xs)))
    assert (alone.count(KERNEL), many.count(KERNEL)) == (1, 0)
    product = lambda text: [line for line in text.splitlines() if "dot_general" in line]
    assert any(f"tensor<{T}x64x" in line for line in product(alone)), "done for all steps at once"
    assert not any(f"x{T}x64x" in line or f"<{T}x" in line for line in product(many))


def test_the_form_for_one_cpu_and_the_other():
    """The other under vmap, in derivatives, and for other platforms; the transpose has both."""
    f = lambda x: on_one_cpu(lambda x: [3 * x], lambda x: [5 * x], x)[0]
    one, x = jnp.float32(1), jnp.arange(3, dtype=jnp.float32)
    assert [float(f(one)), float(jax.grad(f)(one)), float(jax.jvp(f, (one,), (one,))[1])] == [3, 5, 5]
    assert "3.0" in jax.jit(f).lower(one).as_text()
    exported = [export.export(jax.jit(f), platforms=[p])(one).mlir_module() for p in ("cpu", "cuda")]
    assert ["3.0" in text for text in exported] == [False, False]
    assert jax.vmap(f)(x).tolist() == [0, 5, 10]
    assert jax.grad(lambda x: jax.vmap(f)(x).sum())(x).tolist() == [5, 5, 5]
    linear = lambda d: jax.linear_transpose(f, one)(d)[0]
    assert [float(linear(one)), *jax.vmap(linear)(x).tolist()] == [3, 0, 5, 10]


# ---- where it is not done ----------------------------------------------------------------------


def large_literal(p, h, x):
    h = jnp.tanh(x @ p["A"] + h @ p["U"]) + jax.jit(lambda: jnp.asarray(LARGE))()[:H]
    return h, h


def sorts(p, h, x):
    h = jnp.sort(jnp.tanh(x @ p["A"] + h @ p["U"]), axis=-1)
    return h, h


def sums_much(p, h, x):
    h = jnp.tanh(x @ p["A"] + h @ p["U"]) + jnp.outer(jnp.ones(2000), h).sum()
    return h, h


LARGE = np.linspace(0, 1, 5_000, dtype=np.float32)


@pytest.mark.parametrize("step, made", [(large_literal, 2), (sorts, 0), (sums_much, 0)])
def test_what_a_kernel_cannot_hold_is_a_loop(step, made):
    """A kernel of these is refused by the compiler; a large constant in it would end the process, so it is given."""
    cell = textbook()._replace(step=step)
    params, xs = problem(cell)
    gradient = jax.grad(lambda p, xs: jnp.sum(jr.scan(cell).apply(p, xs)[1]))
    assert kernels(gradient, params, xs) == made
    want = jax.jit(jax.grad(lambda p, xs: jnp.sum(jr.scan(cell, plan="plain").apply(p, xs)[1])))(params, xs)
    assert_close(jax.jit(gradient)(params, xs), want, 1e-5)


@pytest.mark.parametrize(
    "why, cell, batch, dtype",
    [
        ("many rows", jr.elman(I, 4), (17,), jnp.float32),
        ("rows and weights that pay in a library", jr.lstm(I, 64), (4,), jnp.float32),
        ("weights that gain from two cores", jr.lstm(I, 512), (1,), jnp.float32),
        ("a library's products", jr.lstm(I, H), (1,), jnp.bfloat16),
        ("a carry that multiplies", matrix_carry(), (), jnp.float32),
    ],
)
def test_other_steps_are_loops(why, cell, batch, dtype):
    params, xs = problem(cell, batch, dtype)
    assert jr.explain(jr.scan(cell), params, xs).scans[0].one_kernel == [], why
    assert kernels(lambda *of: jr.scan(cell).apply(*of), params, xs) == 0


def test_keys_that_are_carried_and_put_out():
    """A kernel knows numbers alone."""

    def step(p, carry, x):
        h, key = carry
        h = jnp.tanh(x @ p["A"] + h @ p["U"])
        return (h, key), (h, key)

    cell = textbook()._replace(step=step, initial_carry=lambda p, batch: (jnp.zeros((*batch, H)), jax.random.key(3)))
    params, xs = problem(cell, ())
    run = lambda params, xs: jr.scan(cell).apply(params, xs)
    assert kernels(run, params, xs) == 0 and kernels(jr.stream(cell).step, params, run(params, xs)[0], xs[0]) == 0
    assert run(params, xs)[1][1].shape == (T,)


def test_a_product_that_is_one_long_sum_is_none_for_a_kernel():
    """XLA gives it to a library, as a reduction."""
    for inputs, made in ((1000, 1), (2000, 0)):
        cell = jr.chain(jr.dense(inputs, 1), jr.elman(1, 4))
        params, x = problem(cell)[0], draw((1, inputs), 1).astype(jnp.float32)
        carry = cell.initial_carry(params, (1,))
        assert kernels(jr.stream(cell).step, params, carry, x) == made
        got, want = (jax.jit(f)(params, carry, x)[1] for f in (jr.stream(cell).step, cell.step))
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_plans_releases_and_flags(monkeypatch):
    cell = jr.lstm(I, H)
    params, xs = problem(cell)

    def made(plan="auto"):
        return jr.explain(jr.scan(cell, plan=plan), params, xs).scans[0].one_kernel

    assert made() == ["forward", "backward"] and made(jr.Plan(one_kernel=False)) == []
    assert "loops that are one kernel: forward, backward" in str(jr.explain(jr.scan(cell), params, xs))
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")
        assert made() == [] and made(jr.Plan(one_kernel=True)) == ["forward", "backward"]
    with monkeypatch.context() as patch:
        patch.setattr("jaxlib.__version__", "0.11.1")
        assert made() == []
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        assert made() == []


def test_on_a_mesh_and_elsewhere_than_on_a_cpu_it_is_the_loop_as_it_stands(x64):
    """Weights split over devices have to be added up across them, which no kernel can."""
    cell = jr.lstm(I, H)
    params, xs = problem(cell, dtype=jnp.float64)
    run = jax.jit(jax.grad(loss(cell)))
    mesh = jax.make_mesh((2,), ("units",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.tree.map(
        lambda a: (
            jax.device_put(a, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("units")))
            if a.shape[0] % 2 == 0
            else a
        ),
        params,
    )
    assert KERNEL not in run.lower(split, xs).as_text()
    assert_close(jax.device_get(run(split, xs)), jax.device_get(run(params, xs)), 1e-12)
    assert KERNEL not in export.export(run, platforms=["cuda"])(params, xs).mlir_module()


def test_exported_programs(x64):
    cell = textbook()
    params, xs = problem(cell, dtype=jnp.float64)
    want = jax.jit(loss(cell, "plain"))(params, xs)
    for shape in (xs.shape, (*export.symbolic_shape("T"), 1, I)):
        exported = export.export(jax.jit(loss(cell)))(params, jax.ShapeDtypeStruct(shape, xs.dtype))
        np.testing.assert_allclose(exported.call(params, xs), want, rtol=1e-12)
    many = jnp.concatenate([xs, 2 * xs], 1)  # a batch that is split over devices only where the program is called
    exported = export.export(jax.jit(jr.scan(cell).apply))(params, many)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(many, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "batch")))
    got, want = jax.jit(exported.call)(params, split)[0], jr.scan(cell, plan="plain").apply(params, many)[0]
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_without_jit(x64):
    cell = jr.lstm(I, H)
    params, xs = problem(cell, dtype=jnp.float64)
    want = jax.jit(jax.grad(loss(cell, "plain")))(params, xs)
    assert_close(jax.grad(loss(cell))(params, xs), want, 1e-11)
    with jax.disable_jit():
        assert_close(
            jax.grad(loss(cell))(params, xs[:2]), jax.jit(jax.grad(loss(cell, "plain")))(params, xs[:2]), 1e-11
        )


# ---- what a kernel can hold --------------------------------------------------------------------


def test_arguments_that_nothing_reads():
    f = lambda a, b, c: [lax.fori_loop(0, 3, lambda _, a: jnp.sin(a), a), 0 * c]
    got = jax.jit(lambda *args: as_one_kernel(f, *args))(jnp.ones(3), jnp.ones(4), jnp.arange(5))
    np.testing.assert_allclose(got[0], np.sin(np.sin(np.sin(np.ones(3)))), rtol=1e-6)
    assert got[1].tolist() == [0] * 5


def test_every_operation_that_a_step_in_a_kernel_may_have():
    """Of the table of primitives all that are cheap; XLA's kernel beside its loop."""
    x = jnp.linspace(0.1, 0.9, 6, dtype=jnp.float32)[None]
    of_one = (
        "neg sign abs square sqrt rsqrt cbrt exp exp2 expm1 log log1p logistic sin cos tan asin acos atan sinh cosh "
    )
    of_one += "tanh asinh acosh atanh erf erfc erf_inv floor ceil is_finite round stop_gradient transpose_ rev cumsum "
    of_one += "argmax argmin"
    special = {
        "acosh": lambda x: lax.acosh(1 + x),
        "transpose_": lambda x: x.T,
        "rev": lambda x: lax.rev(x, (1,)),
        "stop_gradient": lax.stop_gradient,
        "cumsum": lambda x: lax.cumsum(x, 1),
        "argmax": lambda x: lax.argmax(x, 1, jnp.int32),
        "argmin": lambda x: lax.argmin(x, 1, jnp.int32),
    }
    functions = [special.get(name) or getattr(lax, name) for name in of_one.split()]
    functions += [
        lambda x, f=f: f(x, x + 0.25)
        for f in (lax.add, lax.sub, lax.mul, lax.div, lax.rem, lax.max, lax.min, lax.pow, lax.atan2)
    ]
    functions += [lambda x, f=f: f(x, 0.5 * jnp.ones_like(x)) for f in (lax.eq, lax.ne, lax.lt, lax.le, lax.gt, lax.ge)]
    functions += [lambda x, f=f: f(x > 0.4, x < 0.6) for f in (lax.bitwise_and, lax.bitwise_or, lax.bitwise_xor)]
    functions += [
        lambda x: ~(x > 0.4),
        lambda x: jnp.where(x > 0.5, x, -1.0),
        lambda x: jnp.clip(x, 0.2, 0.6),
        lambda x: x**3,
        lambda x: jnp.asarray(10 * x, jnp.int32),
        lambda x: x[:, 1:4],
        lambda x: jnp.split(x, 3, 1)[1],
        lambda x: jnp.concatenate([x, 2 * x], 1),
        lambda x: jnp.stack([x, 2 * x], 1),
        lambda x: lax.pad(x, jnp.float32(0), ((0, 0, 0), (1, 2, 1))),
        lambda x: x.reshape(2, 3),
        lambda x: jnp.broadcast_to(x, (4, 6)),
        lambda x: x + lax.iota(jnp.float32, 6),
        *(lambda x, f=f: f(x, axis=1) for f in (jnp.sum, jnp.max, jnp.min, jnp.prod)),
        *(lambda x, f=f: f(x > 0.5, axis=1) for f in (jnp.all, jnp.any)),
        lambda x: x @ jnp.ones((6, 4)),
        lambda x: x[0] @ jnp.ones((6, 4)),
        lambda x: lax.dot_general(jnp.ones((4, 6)), x, (((1,), (1,)), ((), ()))),
    ]

    def loop(x):
        return jax.tree.leaves(
            lax.scan(lambda c, _: (0.9 * c, [f(x * c) for f in functions]), jnp.float32(1), length=3)
        )

    assert_close(jax.jit(lambda x: as_one_kernel(loop, x))(x), jax.jit(loop)(x), 2e-6)
