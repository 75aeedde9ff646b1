"""What the tests of runs in parallel over time share: a run beside ``jr.scan``'s, and how it went."""

import jax
import numpy as np

import jaxrnn as jr
from jaxrnn.loops.chunked import reporting
from tests.cases import differentiated, draw, randomised, x_shape
from tests.evaluating import evaluated

# float64, a carry to 32 epsilon of its largest number, and gradients that are sums over some hundred steps.
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def problem(cell, T, batch_shape=(2,), scale=0.25, seed=0):
    """``(params, xs, carry)``, random, of a cell that forgets fast."""
    params = randomised(cell.init(jax.random.key(0)), seed, scale)
    return (
        params,
        draw((T, *batch_shape, *x_shape(cell)), seed + 1),
        randomised(cell.initial_carry(params, batch_shape), seed + 2),
    )


def run(layer, params, xs, carry=None, **options):
    """``((loss, outputs), gradients)`` by params, xs and carry; in NumPy, which reports what its runs in chunks did."""
    way = evaluated if "key" not in options else lambda function: function  # NumPy has no keys
    return way(lambda *args: differentiated(lambda *a: layer.apply(*a, **options), *args))(params, xs, carry)


def reported(call, *args, **options):
    """``(what it returns, the reports of its runs in chunks)``."""
    with reporting() as reports:
        found = call(*args, **options)
    return found, reports


def assert_close(got, want, **tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **(CLOSE | tolerance))


def assert_equals_the_scan(cell, params, xs, carry=None, *, of_layer=None, sweeps=None, tolerance=None, **options):
    """Values and gradients by params, xs and carry; every run was believed, and took so many sweeps."""
    of_layer = {"method": "chunks"} | (of_layer or {})
    reverse = of_layer.get("reverse", False)
    found, reports = reported(run, jr.parallel(cell, **of_layer), params, xs, carry, **options)
    want = run(jr.scan(cell, reverse=reverse, plan="plain"), params, xs, carry, **options)
    assert_close(found, want, **(tolerance or {}))
    assert len(reports) == 2 and all(report.accepted for report in reports), reports  # forward and backward
    if sweeps is not None:
        assert [report.sweeps for report in reports][: len(sweeps)] == sweeps, reports
    return reports


def inner(a, b):
    return sum(jax.numpy.vdot(*leaves) for leaves in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
