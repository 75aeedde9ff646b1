"""Loops as persistent kernels of a GPU: interpreted on a CPU, lowered for CUDA, refused by name; what fits where."""

import functools
import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn.kernels import memory
from jaxrnn.kernels.persistent import missing_for_kernels, run_recurrence
from jaxrnn.kernels.recurrence import ELEMENTWISE, NoKernelError, cut
from jaxrnn.kernels.split import fit, order, split
from jaxrnn.planning import persistent_kernel
from jaxrnn.programs.tracing import flat_program
from tests.documents import ROOT

T, B, I, H = 3, 3, 4, 8
KERNEL, INTERPRETED = jr.Plan(persistent_kernel=True), jr.Plan(persistent_kernel="interpret")
MISSING = missing_for_kernels(interpreted=True)
has_kernels = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def two_rates(input_size, hidden_size):
    """A user's cell: a fast and a slow state, three products with them, a scale for each unit, a scalar, a relu."""

    def init(key):
        shapes = {"W": (input_size, 2 * hidden_size), "U": (hidden_size, 2 * hidden_size)}
        shapes |= {"V": (hidden_size, hidden_size), "u": (hidden_size,), "a": ()}
        return {name: jnp.zeros(shape) for name, shape in shapes.items()}

    def step(params, carry, x):
        fast, slow = carry["fast"], carry["slow"]
        z, n = jnp.split(x @ params["W"] + fast @ params["U"], 2, axis=-1)
        rate = jax.nn.sigmoid(z + slow @ params["V"] + params["u"][None] * slow)
        fast = jax.nn.relu(n) / (1 + n**2) - 0.1 * jnp.where(n < 0, jnp.sin(n), fast)
        slow = rate * slow + (1 - rate) * params["a"] * fast
        return {"fast": fast, "slow": slow}, fast - slow

    def initial_carry(params, batch_shape=()):
        return {name: jnp.zeros((*batch_shape, hidden_size)) for name in ("fast", "slow")}

    return jr.Cell(init, initial_carry, step)


def drawn(tree, seed=0):
    """Random numbers in the place of all leaves: biases and carries are not zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.5, a.dtype), tree)


def problem(cell, shape=(T, B, I), dtype=jnp.float32):
    params = drawn(jax.eval_shape(cell.init, jax.random.key(0)))
    carry = drawn(jax.eval_shape(lambda: cell.initial_carry(params, shape[1:-1])), 1)
    return params, carry, drawn(jax.ShapeDtypeStruct(shape, dtype), 2)


def loss(cell, plan, reverse=False, **options):
    def run(params, carry, xs):
        out = jr.scan(cell, plan=plan, reverse=reverse).apply(params, xs, carry, **options)
        return sum(jnp.sin(a.astype(jnp.float32)).sum() for a in jax.tree.leaves(out)), out

    return run


def assert_close(got, want, **tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), got, want)


# ---- what it computes --------------------------------------------------------------------------

CASES = {
    "elman, 65 rows": (jr.elman(I, H), 65, {}),
    "lstm": (jr.lstm(I, H), B, {}),
    "lstm reversed": (jr.lstm(I, H), B, {"reverse": True, "lengths": [3, 1, 0]}),
    "gru": (jr.gru(I, H), B, {"lengths": [2, 3, 0], "resets": [[0, 0, 0], [1, 0, 1], [0, 1, 0]]}),
    "gru, reset after": (jr.gru(I, H, reset="after"), B, {}),
    "two_rates": (two_rates(I, H), B, {"mask": [[1, 1, 0], [0, 1, 1], [1, 1, 1]]}),
}


@has_kernels
@pytest.mark.parametrize("name", CASES)
def test_interpreted_it_computes_what_the_scan_computes(name):
    """Forward and gradients by parameters, carry and inputs: to 1e-5, as sums of few float32 in another order."""
    cell, batch, options = CASES[name]
    flags = {k: jnp.asarray(v, int if k == "lengths" else bool) for k, v in options.items() if k != "reverse"}
    arguments = problem(cell, (T, batch, I))

    def run(plan):
        return jax.value_and_grad(loss(cell, plan, options.get("reverse", False), **flags), (0, 1, 2), has_aux=True)(
            *arguments
        )

    layer = jr.scan(cell, plan=INTERPRETED, reverse=options.get("reverse", False))
    (said,) = jr.explain(layer, arguments[0], arguments[2], arguments[1], **flags).scans
    assert (said.persistent, said.not_persistent) == (["forward", "backward"], [])
    assert_close(*jax.jit(lambda: [run(INTERPRETED), run("plain")])(), rtol=1e-5, atol=1e-5)


@has_kernels
def test_in_bfloat16_it_computes_what_the_scan_of_its_plan_computes():
    """The backward loop multiplies float32 cotangents by bfloat16 weights: in two parts, which hold 16 bits of each."""
    cell = jr.lstm(16, 16, dtype="bfloat16", param_dtype="bfloat16")
    arguments = problem(cell, (T, B, 16), jnp.bfloat16)

    def run(plan):
        return jax.value_and_grad(loss(cell, plan), 1, has_aux=True)(*arguments)

    assert_close(*jax.jit(lambda: [run(INTERPRETED), run(KERNEL)])(), rtol=1e-5, atol=1e-5)


def compare_two_blocks():
    """Run in a process of its own: two blocks hand their parts of each operand to each other."""
    persistent_kernel.fit = functools.partial(split, blocks=2)
    cell = jr.lstm(I, 16)
    arguments = problem(cell, (2, B, I))

    def run(plan):
        return jax.value_and_grad(loss(cell, plan), (0, 1, 2), has_aux=True)(*arguments)

    (said,) = jr.explain(jr.scan(cell, plan=INTERPRETED), arguments[0], arguments[2]).scans
    assert said.persistent == ["forward by 2 blocks", "backward by 2 blocks"]
    assert_close(*jax.jit(lambda: [run(INTERPRETED), run("plain")])(), rtol=1e-5, atol=1e-5)
    print("compared")


@has_kernels
def test_blocks_of_a_cluster_share_the_units():
    """The interpreter's blocks are threads that wait in callbacks; as few threads as cores can wait for ever."""
    code = "from tests.test_persistent_kernels import compare_two_blocks; compare_two_blocks()"
    threads = dict.fromkeys(("NPROC", "PJRT_NPROC"), "16")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | threads, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "compared\n", done.stderr


@pytest.mark.parametrize("plan", [KERNEL, pytest.param(INTERPRETED, marks=has_kernels)], ids=["cpu", "interpret"])
def test_it_differentiates_and_batches_as_the_scan_does(plan):
    cell = jr.elman(I, H)
    params, carry, xs = problem(cell)
    other = drawn(xs, 3)

    def run(plan):
        def of(xs):
            return loss(cell, plan)(params, carry, xs)[0]

        forward = jax.jvp(of, (xs,), (other,))
        second = jax.grad(lambda xs: jnp.vdot(jax.grad(of)(xs), other))(xs)
        return forward, second, jax.vmap(jax.grad(of))(jnp.stack([xs, other]))

    assert_close(run(plan), run("plain"), rtol=1e-5, atol=1e-5)


# ---- what is lowered ---------------------------------------------------------------------------


def lowered_for_cuda(function, *arguments):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@has_kernels
@pytest.mark.parametrize("size, dtype, blocks", [(64, "bfloat16", 1), (40, "float32", 1), (128, "bfloat16", 2)])
def test_it_lowers_for_cuda_without_a_loop(size, dtype, blocks):
    cell = jr.lstm(16, size, dtype=dtype)
    arguments = problem(cell, (T, 16, 16), dtype)
    gradient = lambda plan: jax.grad(lambda *a: loss(cell, plan)(*a)[0])
    (said,) = jr.explain(jr.scan(cell, plan=KERNEL), arguments[0], arguments[2]).scans
    assert said.persistent[0] == ("forward" if blocks == 1 else f"forward by {blocks} blocks")
    kernels = lowered_for_cuda(gradient(KERNEL), *arguments)
    assert (kernels.count("@mosaic_gpu"), kernels.count("stablehlo.while")) == (2, 0), said
    assert "@mosaic_gpu" not in lowered_for_cuda(gradient("auto"), *arguments), "asked for by nobody"


def every_operation(a, b):
    """All elementwise operations that a kernel may hold, of numbers between -1 and 1."""
    p = jnp.abs(a) + 0.5
    flags = [a < b, a <= b, a > b, a >= b, a == b, a != b, ~(a > 0), (a > 0) & (b > 0), (a > 0) | (b > 0)]
    flags += [(a > 0) ^ (b > 0)]
    numbers = [jnp.exp2(a), jnp.log(p), jnp.log2(p), jax.lax.rsqrt(p), jnp.sqrt(p), jnp.sin(a), jnp.cos(a), -a, a - b]
    numbers += [jnp.sign(a), jnp.round(a), jnp.maximum(a, b), jnp.minimum(a, b), jax.lax.clamp(-0.5, a, 0.5)]
    numbers += [a**3, jnp.square(a), jnp.tanh(a), jax.nn.sigmoid(a), jnp.exp(a), a / p, a * b]
    numbers += [jax.lax.stop_gradient(a), jax.lax.copy_p.bind(a), a.astype(jnp.bfloat16).astype(jnp.float32)]
    numbers += [jax.interpreters.ad.add_jaxvals_p.bind(a, b), jax.lax.one_minus_square_p.bind(a)]
    return sum(numbers) + sum(jnp.where(flag, a, b) for flag in flags)


@has_kernels
def test_every_elementwise_operation_lowers_and_is_computed():
    def step(consts, carry, xs):
        h = jnp.tanh(every_operation(carry[0] @ consts[0], xs[0]))
        return [h, h]

    (W,), (h,), (x,) = [[drawn(jax.ShapeDtypeStruct((H, H), jnp.float32), seed)] for seed in range(3)]
    program, _, _ = flat_program(step, [W], [h], [x])
    program = program._replace(consts={program.inputs[0]: None}, inputs=program.inputs[1:])
    recurrence = fit(cut(program, 1))
    assert {op.name for op in recurrence.each_step} >= ELEMENTWISE
    run = functools.partial(run_recurrence, recurrence, steps=1, reverse=False)
    assert "@mosaic_gpu" in lowered_for_cuda(run, [W], [h], [x[None]])
    assert_close(run([W], [h], [x[None]], interpret=True)[0], step([W], [h], [x])[0], rtol=1e-5, atol=1e-5)


# ---- what is refused ---------------------------------------------------------------------------


def of_step(step):
    return jr.Cell(
        lambda key: jnp.ones((H, H)), lambda p, batch: jnp.zeros((*batch, H)), lambda p, h, x: (step(p, h),) * 2
    )


REFUSED = {
    "one row": (jr.lstm(I, H), (T, I), "a carry of shape (8,); a kernel has rows by features, (B, H)"),
    "odd width": (
        jr.elman(I, 5),
        (T, B, I),
        "a value of shape (3, 5); features must be a multiple of 8",
    ),
    "layer norm": (
        jr.normalized(jr.lstm(I, H)),
        (T, B, I),
        "forward, because of reduce_sum of (3, 8); a kernel has rows",
    ),
    "layer norm of products": (jr.lstm(I, H, layer_norm="per_gate"), (T, B, I), "because of reshape of (3, 32); a"),
    "heads": (jr.lstm(I, H, heads=2), (T, B, I), "forward, because of"),
    "shared memory": (
        jr.lstm(I, 120),
        (T, B, I),
        "weights (120, 480), with operands 261120 bytes, where the shared memory of a block has 232448, and no cluster",
    ),
    "registers": (
        jr.lstm(I, 1024, dtype="bfloat16"),
        (T, B, I),
        "a product with 4096 columns, whose sums the registers",
    ),
    "unknown": (
        of_step(lambda W, h: jnp.expm1(h @ W)),
        (T, B, H),
        "expm1, which the compiler of kernels does not know",
    ),
    "no weights": (of_step(lambda W, h: jnp.tanh(h)), (T, B, H), "a step that multiplies its carry by no weights"),
    "a matrix": (of_step(lambda W, h: (h @ h.T) @ h @ W), (T, B, H), "transpose of (3, 8)"),
    "precision": (
        of_step(lambda W, h: jnp.matmul(h, W, precision="highest")),
        (T, B, H),
        "(3, 8), (8, 8) in precision (Precision.HIGHEST, Precision.HIGHEST); tensor cores have one",
    ),
}


@has_kernels
@pytest.mark.parametrize("name", REFUSED)
def test_explain_says_what_no_kernel_can_hold_and_the_scan_runs(name):
    cell, shape, reason = REFUSED[name]
    layer = jr.scan(cell, plan=INTERPRETED)
    params = jax.eval_shape(cell.init, jax.random.key(0))
    (said,) = jr.explain(layer, params, jax.ShapeDtypeStruct(shape, jnp.float32)).scans
    assert "forward" not in said.persistent
    assert said.not_persistent[0].startswith("forward, because of ") and reason in said.not_persistent[0]
    assert "loops that are no kernel of a GPU: forward, because of" in str(said)


@has_kernels
def test_on_a_mesh_the_scan_runs():
    cell = jr.elman(I, H)
    params, _, xs = problem(cell)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("batch",))):
        (said,) = jr.explain(jr.scan(cell, plan=KERNEL), params, xs).scans
    assert said.not_persistent == ["both, because the run is on a mesh"]


def test_an_older_jax_is_named(monkeypatch):
    """Its interpreter returns zeros: the scan runs on it, and interpreted kernels are refused."""
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 1))
    missing = (
        f"a kernel needs JAX 0.12 or later, and this is {jax.__version__}, whose interpreter of kernels returns zeros"
    )
    cell = jr.lstm(I, H)
    with pytest.raises(
        ValueError, match=re.escape(f"scan: Plan.persistent_kernel='interpret' cannot be had: {missing};")
    ):
        jr.scan(cell, plan=INTERPRETED)
    params, _, xs = problem(cell)
    (said,) = jr.explain(jr.scan(cell, plan=KERNEL), params, xs).scans
    assert said.not_persistent == [f"both, because {missing}"]


@has_kernels
def test_another_gpu_is_named(monkeypatch):
    an_a100 = type("Device", (), {"platform": "gpu", "compute_capability": "8.0"})()
    monkeypatch.setattr(jax, "local_devices", lambda: [an_a100])
    assert missing_for_kernels(interpreted=True) is None
    assert missing_for_kernels(interpreted=False) == "a kernel needs a GPU of compute capability 9, and this has 8.0"


def test_it_is_asked_for_by_name_alone():
    assert jr.Plan().persistent_kernel is False
    with pytest.raises(
        TypeError, match=r"scan: Plan\.persistent_kernel must be True, False or 'interpret', got None\."
    ):
        jr.scan(jr.lstm(I, H), plan=jr.Plan(persistent_kernel=None))
    layer = jr.scan(jr.lstm(I, H), plan=KERNEL)
    assert jr.build(layer.spec.to_dict()).spec == layer.spec


def test_a_block_has_a_share_of_each_piece():
    """Two gates of 16 and 32 columns over two blocks, then a slice that leaves no block multiples of 8."""
    assert order([16, 32], 2).tolist() == [*range(8), *range(16, 32), *range(8, 16), *range(32, 48)]
    W, h = jnp.ones((48, 48)), jnp.ones((B, 48))

    def pieces_of(cut_at):
        def step(consts, carry, xs):
            a = carry[0] @ consts[0]
            return [jnp.concatenate([jnp.tanh(a[:, cut_at:]), a[:, :cut_at]], axis=1)]

        program, _, _ = flat_program(step, [W], [h], [])
        program = program._replace(consts={program.inputs[0]: None}, inputs=program.inputs[1:])
        recurrence = split(cut(program, 1), 2)
        return recurrence.pieces[recurrence.carry[0]]

    assert pieces_of(16) == [32, 16]
    with pytest.raises(NoKernelError, match="40 columns over 2 blocks; each block has multiples of 8"):
        pieces_of(8)


# ---- what fits where ---------------------------------------------------------------------------


def test_shares_by_hand():
    """An LSTM in bfloat16: 64 × 256 weights and 64 rows of h in a block; 768 × 3,072 over 24, 128 columns each."""
    assert memory.share(64, 4, "bfloat16") == (64 * 256 * 2, 1, 64 * 256 * 2 + 64 * 64 * 2, 64 * 256 * 4, "none")
    weights, blocks, needed, sums, waits = memory.share(768, 4, "bfloat16")
    assert (weights, blocks, waits) == (768 * 3072 * 2, 24, "grid")
    assert (needed, sums) == (768 * 128 * 2 + 64 * 128 * 2, 64 * 128 * 4)
    assert needed <= 227 * 1024 < 768 * 192 * 2, "with 16 blocks, 192 columns each, the weights alone would not fit"
    assert memory.share(2048, 4, "float32") is None  # 64 MiB; 132 blocks have 29
    assert memory.shared_memory_needed([((3, 5), "float32"), ((1024,), "bfloat16")]) == 1024 + 2048
    assert memory.accumulator_registers(256) == math.prod((64, 256)) // 128


def test_the_table_of_the_page_is_what_is_computed():
    page = (ROOT / "docs" / "persistent_kernels.md").read_text(encoding="utf-8")
    assert memory.table() in page, "write jaxrnn.kernels.memory.table() into docs/persistent_kernels.md"
