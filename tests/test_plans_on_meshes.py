"""A batch over a mesh runs by the rules for several devices; inside ``jax.shard_map`` over all axes by those for one,
without kernels."""

import functools

import jax
import numpy as np
import pytest
from jax import P
from jax.sharding import AxisType

import jaxrnn as jr
from jaxrnn.planning.constants import DEFAULT, using
from tests.cases import draw, randomised

pytestmark = pytest.mark.multidevice

KERNEL = "xla_cpu_small_call"
T, I, H = 5, 3, 4
CELLS = {"gru": lambda: jr.gru(I, H), "lstm": lambda: jr.lstm(I, H), "after": lambda: jr.gru(I, H, reset="after")}


def problem(cell, B):
    return randomised(cell.init(jax.random.key(0))), draw((T, B, I), 1), draw((T, B, H), 2)


def loss(cell, plan="auto"):
    layer = jr.scan(cell, plan=plan)
    return lambda params, xs, weights: (layer.apply(params, xs)[1] * weights).sum()


def alike(got, want):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11), jax.device_get(got), want)


def test_each_form_is_the_plain_scan_where_nothing_is_done_in_it():
    """A GRU cuts its weights once where a device puts out little at a step: one of two, here, but not one alone."""
    cell = CELLS["gru"]()
    params, xs, _ = problem(cell, 2)
    mesh = jr.devices.batch_mesh(2)
    split = jax.device_put(xs, jax.NamedSharding(mesh, P(None, "batch")))

    def lowered(plan, xs):
        return jax.jit(jr.scan(cell, plan=plan).apply).lower(params, xs).as_text()

    with using(DEFAULT._replace(spare=30, kernel_of_rows_up_to=0)):
        assert lowered("auto", xs) == lowered("plain", xs)
        assert lowered("auto", split) != lowered("plain", split)
    with using(DEFAULT._replace(spare=23, kernel_of_rows_up_to=0)):
        assert lowered("auto", split) == lowered("plain", split)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_a_batch_that_shard_map_divides(name, check_vma, x64):
    """Gradients, and their derivative in a direction, are those of one device."""
    cell = CELLS[name]()
    given = problem(cell, 4)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    summed = functools.partial(jax.lax.psum, axis_name="batch")

    def gradient(plan, *given):
        return jax.grad(loss(cell, plan), argnums=(0, 1))(*given)

    def in_a_direction(plan, *given):
        return jax.jvp(functools.partial(gradient, plan), given, given)[1]

    for of in (gradient, in_a_direction):

        def of_device(*given, of=of):
            of_params, of_xs = of("auto", *given)
            # With the check, the transpose of what all devices share has summed them.
            return (of_params if check_vma else jax.tree.map(summed, of_params)), of_xs

        split = P(None, "batch")
        run = jax.jit(
            jax.shard_map(
                of_device, mesh=mesh, in_specs=(P(), split, split), out_specs=(P(), split), check_vma=check_vma
            )
        )
        alike(run(*given), jax.jit(functools.partial(of, "plain"))(*given))
        assert KERNEL not in run.lower(*given).as_text()


def test_rules_are_those_for_one_device(monkeypatch):
    """As in a process that has no other: a GRU's pieces are joined, and its sums not taken apart."""
    monkeypatch.setattr("jaxrnn.planning._rules.makes_one_kernel", lambda *_: False)
    cell = jr.gru(I, H)
    given = problem(cell, 2)
    mesh = jr.devices.batch_mesh(2)
    notes = []

    def alone(*given):
        notes.append(str(jr.explain(jr.scan(cell), *given[:2]).scans[0].programs["contract"].tangent))
        return given[1]

    jax.eval_shape(jax.shard_map(alone, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False), *given)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 1)
        alone(*given)
    inside, single = notes
    assert "add_pieces" in inside and inside.count("add_pieces") == single.count("add_pieces")
