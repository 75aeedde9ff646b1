"""The check of runs in chunks: what is believed, what is not, and what a check that is wrong would let through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn as jr
from jaxrnn.loops.chunked import Chunking, scan_in_chunks
from jaxrnn.loops.steps import Steps
from jaxrnn.loops.sweeping import Chunks, Way
from tests.cases import draw, weigh
from tests.side_by_side import assert_close, reported, run

rng = np.random.default_rng(0)


def of_step(step, size=2):
    """A user's cell whose output is its carry."""
    return jr.Cell(
        lambda key: {"w": jnp.ones(())},
        lambda params, batch_shape=(): jnp.zeros((*batch_shape, size)),
        lambda params, h, x: (step(params["w"] * h, x),) * 2,
    )


# h_t = tanh(g_t h_{t-1}) + b_t, by units: inputs (2, units)
GAINS = of_step(lambda h, x: jnp.tanh(x[..., 0, :] * h) + x[..., 1, :])._replace(x_ndim=2)
# the same without the tanh: a user's own linear cell
LINEAR = of_step(lambda h, x: x[..., 0, :] * h + x[..., 1, :])._replace(x_ndim=2)
PARAMS = {"w": jnp.ones(())}


def inputs(T, gains, kicks=(), noise=0):
    """(T, 2, 2): gains of the units, each a number or (T,), and what is added: noise to the first unit, and kicks."""
    xs = np.zeros((T, 2, 2))
    xs[:, 0] = np.stack(np.broadcast_arrays(*gains, np.zeros(T))[:2], -1)
    xs[:, 1, 0] = noise * np.random.default_rng(1).normal(size=T)
    for t, unit, size in kicks:
        xs[t, 1, unit] += size
    return jnp.asarray(xs, jnp.result_type(float))


def error(found, want):
    """The largest, relative to the largest number."""
    return float(jnp.abs(found - want).max() / jnp.abs(want).max())


def ramp(T, before, after, at):
    return np.where(np.arange(T) < at, before, after)


T = 192
UNSTABLE = {
    "a quiet unit, kicked by less than rounding": ([0.5, 1.5], [(3, 1, -1e-14)], 1),
    "kicked in the middle of a chunk": ([0.5, 1.5], [(90, 1, 1e-20)], 1),
    "kicked once in each direction": ([0.5, 1.6], [(3, 1, -1e-14), (100, 1, 1e-2)], 1),
    "both units at rest, then kicked": ([1.5, 0.5], [(40, 0, 1e-10)], 0),
    "contracts, then expands": ([0.5, ramp(T, 0.3, 1.5, 64)], [(0, 1, 1.0)], 1),
    "expands, then contracts": ([0.5, ramp(T, 1.5, 0.3, 128)], [(5, 1, 1e-8)], 1),
    "remembers": ([0.5, 1.0], [(3, 1, 1e-6), (100, 1, 1e-6)], 1),
    "sums what is small": ([0.5, 1.0], [(t, 1, 1e-7) for t in range(T)], 1),
}


@pytest.mark.parametrize("what", UNSTABLE)
def test_what_does_not_forget_is_the_scan(what):
    """In float32, whose rounding is larger: values of the scan, by the scan."""
    xs = inputs(T, *UNSTABLE[what])
    cell = LINEAR if "remembers" in what or "sums" in what else GAINS
    (_, ys), reports = reported(jr.parallel(cell, method="chunks", chunks=12, plan="plain").apply, PARAMS, xs)
    want = jr.scan(cell).apply(PARAMS, xs)[1]
    np.testing.assert_allclose(ys, want, rtol=1e-6, atol=1e-7)
    assert [report.accepted for report in reports] == [False]


ADJOINTS = {
    "at the last step": np.arange(T) == T - 1,
    "at three steps": np.isin(np.arange(T), [20, 70, 150]),
    "at the first step": np.arange(T) == 0,
    "nowhere": np.zeros(T, bool),
}


@pytest.mark.parametrize("where", ADJOINTS)
@pytest.mark.parametrize("gain", [0.4, "contracts late"])
def test_losses_at_few_steps(where, gain):
    """Of a carry that forgets; and of one whose adjoint decays to nothing in the last steps, and grows before them."""
    gain = ramp(T, 1.3, 0.2, T - 48) if gain == "contracts late" else gain
    xs = inputs(T, [0.5, gain], (), 0.1)
    loss = lambda layer: lambda xs: (layer.apply(PARAMS, xs)[1] * jnp.asarray(ADJOINTS[where])[:, None]).sum()
    layers = jr.parallel(GAINS, method="chunks", chunks=12, plan="plain"), jr.scan(GAINS)
    found, want = (jax.grad(loss(layer))(xs) for layer in layers)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5 * max(1e-30, float(jnp.abs(want).max())))
    assert (where == "nowhere") == (not want.any())


def test_an_adjoint_that_decays_is_seen_to_forget(x64):
    """Of a loss at the last step alone, where the run is cut into chunks without remainder, and with one."""
    for steps in (120, 122):
        xs = inputs(steps, [0.3, 0.4], (), 1)
        gradient = lambda layer, xs=xs: jax.grad(lambda xs: layer.apply(PARAMS, xs)[1][-1].sum())(xs)
        found, reports = reported(gradient, jr.parallel(GAINS, method="chunks", chunks=3, plan="plain"))
        np.testing.assert_allclose(found, gradient(jr.scan(GAINS)), rtol=1e-9, atol=1e-15)
        assert [report.accepted for report in reports] == [True, True]


def test_rows_of_any_scale(x64):
    """Each row is as close as it would be alone; of 1e-8, 1 and 1e8."""
    xs = inputs(120, [0.5, 0.3], [(t, 1, np.cos(t)) for t in range(120)], 1)
    xs = jnp.stack([xs * jnp.array([[[1.0], [scale]]]) for scale in (1e-8, 1.0, 1e8)], 1)
    (_, ys), reports = reported(jr.parallel(LINEAR, method="chunks", chunks=3, plan="plain").apply, PARAMS, xs)
    want = jr.scan(LINEAR).apply(PARAMS, xs)[1]
    assert [error(ys[:, i], want[:, i]) < 1e-13 for i in range(3)] == [True] * 3
    assert reports[0].accepted


# ---- checks that are wrong -----------------------------------------------------------------------


def leaking():
    """A unit that keeps 0.9 of a chunk's start and fills slowly: what moves by the tolerance is wrong by ten of it."""
    T, K, tol = 320, 32, 1e-2
    xs = inputs(T, [0.9 ** (K / T), 0.5], [(t, 0, 0.01) for t in range(T)])
    layer = jr.parallel(LINEAR, method="chunks", chunks=K, max_iterations=K, tol=tol, plan="plain")
    (_, ys), (report,) = reported(layer.apply, PARAMS, xs)
    want = jr.scan(LINEAR).apply(PARAMS, xs)[1]
    return error(ys, want) / tol, report


def test_a_small_step_is_not_a_small_error():
    """The real check goes on until the chunks are exact."""
    off, report = leaking()
    assert off < 0.1 and report.accepted and report.sweeps > 20


def test_each_chunk_is_judged_where_the_next_is_all_masked():
    """As above, with every second chunk masked: what it hands on is what it was handed, and halves nothing."""
    steps, K, tol = 10, 64, 1e-2
    xs = inputs(steps * K, [0.9 ** (1 / steps), 0.5], [(t, 0, 0.01) for t in range(steps * K)])
    layer = jr.parallel(LINEAR, method="chunks", chunks=K, max_iterations=K, tol=tol, plan="plain")
    mask = np.arange(steps * K) // steps % 2 == 0
    (_, ys), (report,) = reported(layer.apply, PARAMS, xs, mask=mask)
    assert error(ys, jr.scan(LINEAR).apply(PARAMS, xs, mask=mask)[1]) < 0.1 * tol
    assert report.accepted and report.sweeps > 25


def test_the_last_chunk_may_grow_what_it_is_handed(x64):
    """But what it makes of the last movement is within the tolerance as well."""
    steps, K, tol = 10, 8, 2e-3
    gains = ramp(steps * K, 0.4 ** (1 / steps), 100 ** (1 / steps), steps * (K - 1))
    xs = inputs(steps * K, [0.5, gains], [(t, 1, 1e-3) for t in range(steps * K)], 1)
    layer = jr.parallel(LINEAR, method="chunks", chunks=K, max_iterations=K, tol=tol, plan="plain")
    (_, ys), (report,) = reported(layer.apply, PARAMS, xs)
    assert error(ys, jr.scan(LINEAR).apply(PARAMS, xs)[1]) < tol and report.accepted


# by how much starts moved, the last two runs differed at the start, and at the end; of four chunks
RULE = {
    "all halve": ([0, 0.9, 0.9, 0.9], [4, 4, 4, 4], [0.9, 0.9, 0.9, 0.9], True),
    "one does not": ([0, 0.9, 0.9, 0.9], [4, 4, 1, 4], [0.9, 0.9, 0.9, 0.9], False),
    "one is off": ([0, 1.5, 0.9, 0.9], [4, 4, 4, 4], [1.5, 0.9, 0.9, 0.9], False),
    "the last does not": ([0, 0.9, 0.9, 0.9], [4, 4, 4, 1], [0.9, 0.9, 0.9, 0.9], False),
    "the last does not, and its start alone is at rest": ([0, 0.9, 0.9, 0], [4, 4, 4, 1], [0.9, 0.9, 0, 8], False),
    "the last does not, all starts are at rest": ([0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 8], True),
    "an integer, or what is not finite, moved": ([0, 0.9, 0.9, 0.9], [4, np.inf, 4, 4], [0.9, 0.9, 0.9, 0.9], False),
    "it moved, and all is at rest": ([0, 0, 0, 0], [0, np.inf, 0, 0], [0, 0, 0, 0], True),
    "nothing had moved before": ([0, 0.9, 0.9, 0.9], [4, 4, 0, 4], [0.9, 0.9, 0, 0.9], False),
}


def believed(moved, d, out, held=None, reverse=False):
    numbers = [jnp.asarray(a[::-1] if reverse else a, jnp.float32) for a in (moved, d, out)]
    steps = Steps(lambda h: [h], [], 1, 0, [], [], len(moved), reverse)
    chunks = Chunks(steps, [jnp.zeros(())], [jnp.zeros(())], held, Way(chunks=len(moved), sweeps=4))
    return bool(chunks._accepts(*numbers))


@pytest.mark.parametrize("what", RULE)
def test_the_rule(what):
    *numbers, want = RULE[what]
    assert believed(*numbers) == believed(*numbers, reverse=True) == want


def test_nothing_is_asked_of_a_chunk_that_is_held():
    numbers = RULE["one does not"][:3]
    assert [believed(*numbers, held=jnp.arange(4) == i) for i in range(4)] == [False, False, True, False]


def test_the_last_chunk_is_that_before_a_tail_that_is_held():
    numbers = [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 8, 0]
    for reverse in (False, True):
        held = jnp.arange(4) == (0 if reverse else 3)
        assert believed(*numbers, held=held, reverse=reverse) and not believed(*numbers, reverse=reverse)


@pytest.mark.full
def test_stretches_that_grow_what_is_less_than_rounding():
    """Quiet units, kicked by 1e-14 to 1, in chunks some of which hold or grow; some are masked. In float32."""
    K, steps = 64, 24
    T, rng = K * steps, np.random.default_rng(5)
    layers = jr.parallel(GAINS, method="chunks", chunks=K, max_iterations=8, plan="plain"), jr.scan(GAINS, plan="plain")
    runs = [jax.jit(lambda xs, mask, layer=layer: layer.apply(PARAMS, xs, mask=mask)[1]) for layer in layers]
    for case in range(100):
        gains = np.full((T, 2), rng.choice([0.0, 0.1, 0.4]))
        for begin in rng.integers(0, T, 4):
            gains[begin : begin + rng.integers(1, 80), rng.integers(0, 2)] = rng.choice([0.9, 1.0, 1.1, 1.3, 2.0])
        kicks = [(t, rng.integers(0, 2), 10.0 ** rng.integers(-14, 1)) for t in rng.integers(0, T, 6)]
        mask = np.ones(T, bool)
        for begin in steps * rng.integers(0, K, 4 * (case % 3 == 0)):
            mask[begin : begin + steps * rng.integers(1, 4)] = False
        xs = inputs(T, gains.T, kicks, case % 2)
        found, want = (run(xs, mask) for run in runs)
        assert error(found, want) < 1e-5, case


@pytest.mark.parametrize(
    "wrong",
    [
        lambda self, moved, d, out: jnp.bool_(True),
        lambda self, moved, d, out: self._agreed(moved) <= 1,
    ],
    ids=["always", "by what moved alone"],
)
def test_a_wrong_check_is_seen(wrong, monkeypatch):
    """What the test above measures is what a check that believes too much gets wrong."""
    monkeypatch.setattr(Chunks, "_accepts", wrong)
    off, report = leaking()
    assert off > 2 and report.accepted


def test_a_guess_that_is_right_by_chance_is_moved_aside(monkeypatch):
    """Without that, the quiet unit is believed to stay at 0."""
    xs = inputs(T, *UNSTABLE["a quiet unit, kicked by less than rounding"])
    monkeypatch.setattr(Chunks, "_aside", lambda self, number, guess, size: guess)
    (_, ys), (report,) = reported(jr.parallel(GAINS, method="chunks", chunks=12, plan="plain").apply, PARAMS, xs)
    assert report.accepted and error(ys, jr.scan(GAINS).apply(PARAMS, xs)[1]) > 0.2


# ---- chaotic and marginal cells ------------------------------------------------------------------


def elman_with(W):
    cell = jr.elman(1, len(W))
    params = cell.init(jax.random.key(0))._replace(W_hh=jnp.asarray(W))
    return cell, jax.tree.map(lambda a: a.astype(float), params)


@pytest.mark.parametrize("sweeps", [4, 10])
def test_a_chaotic_cell_falls_back(sweeps, x64):
    """Not asked to probe, where there are as many sweeps as chunks, it ends as well."""
    H, T = 24, 200
    cell, params = elman_with(4 / np.sqrt(H) * rng.normal(size=(H, H)))
    xs = draw((T, 1), 1)
    found = jr.gradients.lyapunov_spectrum(cell, params, xs, k=1)
    assert found.exponents[0] > 0.1
    layer = jr.parallel(cell, method="chunks", chunks=10, max_iterations=sweeps, plan="plain")
    (_, ys), (report,) = reported(layer.apply, params, xs)
    want = jr.scan(cell, plan="plain").apply(params, xs)[1]
    np.testing.assert_allclose(ys[:40], want[:40], rtol=0, atol=1e-6)  # rounding alone parts chaotic runs
    follows = jax.vmap(lambda h, x: cell.step(params, h, x)[1])(ys[:-1], xs[1:])
    np.testing.assert_allclose(ys[1:], follows, rtol=0, atol=1e-13)
    assert report.accepted == (sweeps == 10)  # after as many sweeps as chunks all are exact
    if report.accepted:
        return
    told = jr.convergence(layer, params, xs, repeats=None)
    assert told.fell_back == 10 and "step by step" in str(told)


def test_a_marginal_cell_falls_back():
    """A rotation remembers for ever."""
    Q = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    cell = of_step(lambda h, x: h @ jnp.asarray(Q, h.dtype) + x, 8)
    xs = draw((160, 8), 1)
    layers = jr.parallel(cell, method="chunks", chunks=8, plan="plain"), jr.scan(cell)
    (found, reports), want = reported(run, layers[0], PARAMS, xs), run(layers[1], PARAMS, xs)
    assert_close(found, want, rtol=1e-4, atol=1e-4)  # float32
    assert [report.accepted for report in reports] == [False, False]


# ---- the primitive -------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
def test_any_scan_in_chunks(reverse, x64):
    """Trees, integers, an output that depends on the carry before the step; with the remainder of T."""

    def body(carry, x):
        h, n = carry
        return (jnp.tanh(0.3 * h + x["a"]), (n * 5 + x["n"]) % 7), {"before": h, "n": n}

    xs = {"a": draw((62, 2), 1), "n": jnp.arange(62, dtype=jnp.int32) % 3}
    carry = (draw((2,), 2), jnp.int32(3))
    way = Way(chunks=4, sweeps=4)

    def loss(run, xs, h):
        end, ys = run(body, (h, carry[1]), xs, reverse=reverse)
        return weigh((end, ys)), (end, ys)

    chunked = lambda *args, **options: scan_in_chunks(*args, chunking=Chunking(way), **options)
    both = [
        jax.value_and_grad(lambda a, h, f=f: loss(f, xs | {"a": a}, h), argnums=(0, 1), has_aux=True)(xs["a"], carry[0])
        for f in (chunked, jax.lax.scan)
    ]
    assert_close(*both)
