"""What ``jr.parallel`` and ``jr.convergence`` refuse, and what the message says."""

import jax
import jax.numpy as jnp
import pytest

import jaxrnn as jr
from tests.errors import GRU, KEY, apply, assert_fails, xs
from tests.user_cells import clockwork

CLOCK = clockwork(3, 5)

WRONG = {
    "no such method": (
        lambda: jr.parallel(GRU, method="chunk"),
        ValueError,
        ["parallel: method must be one of 'auto', 'chunks', ", "got 'chunk'", "did you mean 'chunks'"],
    ),
    "no chunks": (lambda: jr.parallel(GRU, chunks=0), ValueError, ["parallel: chunks must be", "got 0"]),
    "fewer than no chunks": (lambda: jr.parallel(GRU, chunks=-2), ValueError, ["parallel: chunks must be", "got -2"]),
    "half a chunk": (lambda: jr.parallel(GRU, chunks=1.5), TypeError, ["parallel: chunks must be", "got 1.5"]),
    "no sweeps": (
        lambda: jr.parallel(GRU, max_iterations=0),
        ValueError,
        ["parallel: max_iterations must be", "got 0"],
    ),
    "more chunks than steps": (
        lambda: apply(jr.parallel(GRU, method="chunks", chunks=8)),
        ValueError,
        ["parallel(gru): chunks=8 is more than the 7 steps of the run; give at most 7"],
    ),
    "no tolerance": (lambda: jr.parallel(GRU, tol=0.0), ValueError, ["parallel: tol", "above 0", "got 0.0"]),
    "a negative tolerance": (
        lambda: jr.parallel(GRU, tol=-1e-3),
        ValueError,
        ["parallel: tol", "above 0", "got -0.001"],
    ),
    "a tolerance that is no number": (
        lambda: jr.parallel(GRU, tol=float("nan")),
        ValueError,
        ["parallel: tol", "got nan"],
    ),
    "a tolerance in words": (lambda: jr.parallel(GRU, tol="small"), TypeError, ["parallel: tol", "got 'small'"]),
    "a traced tolerance": (lambda: jr.parallel(GRU, tol=jnp.ones(())), TypeError, ["parallel: tol", "Python number"]),
    "a cell that is not linear": (
        lambda: jr.parallel(GRU, method="associative"),
        TypeError,
        ["parallel: method='associative' is for cells that are linear", "gru has none; use method='chunks'"],
    ),
    "a user's cell that is not linear": (
        lambda: jr.parallel(CLOCK, method="associative"),
        TypeError,
        ["parallel: method='associative'", "user cell has none"],
    ),
    "integers for Newton": (
        lambda: apply(jr.parallel(CLOCK, method="newton")),
        TypeError,
        [
            "parallel(user cell): method='newton' needs a carry of floats, and carry['clock'] is int32; use",
            "method='chunks'",
        ],
    ),
    "a layer": (
        lambda: jr.parallel(jr.scan(GRU)),
        TypeError,
        ["parallel: expected a Cell, got", "it already runs over time, use it as it is"],
    ),
    "no cell": (lambda: jr.parallel(3), TypeError, ["parallel: expected a Cell, got", "int"]),
    "a plan in words": (lambda: jr.parallel(GRU, plan="fast"), ValueError, ["parallel: plan", "'fast'"]),
    "a checkpoint in words": (
        lambda: jr.parallel(GRU, checkpoint="x"),
        (TypeError, ValueError),
        ["parallel: checkpoint", "'x'"],
    ),
    "a carry of another cell": (
        lambda: apply(jr.parallel(GRU, method="chunks"), carry=jnp.ones((2, 4))),
        ValueError,
        ["parallel(gru): carry"],
    ),
    "convergence of a cell": (
        lambda: jr.convergence(GRU, GRU.init(KEY), xs()),
        TypeError,
        ["convergence: expected a Layer, got Cell; lift it with jr.parallel."],
    ),
    "convergence of no layer": (
        lambda: jr.convergence(3, {}, xs()),
        TypeError,
        ["convergence: expected a Layer, got int"],
    ),
    "convergence, no repeats": (
        lambda: jr.convergence(jr.parallel(GRU), GRU.init(KEY), xs(), repeats=0),
        ValueError,
        ["convergence: repeats must be", "got 0"],
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(what):
    assert_fails(*WRONG[what])


def test_convergence_while_tracing():
    run = lambda x: jr.convergence(jr.parallel(GRU), GRU.init(KEY), x).sweeps
    with pytest.raises(
        TypeError, match=r"convergence: was called while tracing, where nothing runs; call it outside jit"
    ):
        jax.jit(run)(xs())


def test_one_step_is_the_scan_whatever_is_asked_for():
    """T = 1 has nothing to cut; chunks=1 neither."""
    layer = jr.parallel(GRU, method="chunks", chunks=1)
    params = layer.init(KEY)
    explained = jr.explain(layer, params, xs()).scans[0]
    assert (explained.in_parallel, explained.not_in_parallel) == (None, "one chunk")
