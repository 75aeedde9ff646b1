"""jaxrnn's contestants, a user's LSTM as the textbook writes it, and the floor."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import sigmoid

import jaxrnn as jr
from experiments.benchmarks.problems import READOUT, NotOffered, Problem, drawn
from experiments.benchmarks.programs import Model, Stepper, Traced


def library_cell(problem: Problem) -> jr.Cell:
    """The GRU resets after the product, as torch's, flax's, Keras' and equinox's do."""
    if problem.cell == "gru":
        return jr.gru(problem.I, problem.H, reset="after")
    factory = jr.elman if problem.cell == "elman" else jr.lstm
    return factory(problem.I, problem.H)


def gru_reset_before(problem: Problem) -> jr.Cell:
    if problem.cell != "gru":
        raise NotOffered("a GRU")
    return jr.gru(problem.I, problem.H, reset="before")


def textbook_lstm(problem: Problem) -> jr.Cell:
    """As a user writes it down from the equations: eight products, nothing fused."""
    if problem.cell != "lstm":
        raise NotOffered("an LSTM")
    I, H = problem.I, problem.H

    def init(key):
        k_x, k_h = jax.random.split(key)
        W_x = {gate: jax.random.normal(jax.random.fold_in(k_x, n), (I, H)) * H**-0.5 for n, gate in enumerate("ifgo")}
        W_h = {gate: jax.random.normal(jax.random.fold_in(k_h, n), (H, H)) * H**-0.5 for n, gate in enumerate("ifgo")}
        return {"W_x": W_x, "W_h": W_h, "b": {gate: jnp.zeros(H) for gate in "ifgo"}}

    def initial_carry(params, batch_shape=()):
        return jnp.zeros((*batch_shape, H)), jnp.zeros((*batch_shape, H))

    def step(params, carry, x):
        h, c = carry
        W_x, W_h, b = params["W_x"], params["W_h"], params["b"]
        i = sigmoid(x @ W_x["i"] + h @ W_h["i"] + b["i"])
        f = sigmoid(x @ W_x["f"] + h @ W_h["f"] + b["f"])
        g = jnp.tanh(x @ W_x["g"] + h @ W_h["g"] + b["g"])
        o = sigmoid(x @ W_x["o"] + h @ W_h["o"] + b["o"])
        c = f * c + i * g
        h = o * jnp.tanh(c)
        return (h, c), h

    return jr.Cell(init, initial_carry, step, input_size=I, output_size=H)


def layer(cell_of: Callable[[Problem], jr.Cell], problem: Problem, **options: Any) -> jr.Layer:
    """The problem's run of a cell: ``jr.scan``, in both directions where it says so."""
    unknown = options.keys() - inspect.signature(jr.scan).parameters.keys()
    if unknown:
        raise NotOffered(f"jr.scan of jaxrnn {jr.__version__} has no {', '.join(sorted(unknown))}")
    cell = cell_of(problem)
    if problem.variant != "bidirectional":
        return jr.scan(cell, **options)
    return jr.bidirectional(cell, cell, run=lambda cell, **direction: jr.scan(cell, **direction, **options))


def model(cell_of: Callable[[Problem], jr.Cell] = library_cell, **options: Any) -> Callable[[Problem], Model]:
    """``problem -> Model``; the options are those of ``jr.scan``."""

    def model_of(problem: Problem) -> Model:
        run = layer(cell_of, problem, **options)
        params = drawn(jax.eval_shape(run.init, jax.random.key(0)), problem.H)
        return Model(params, lambda params, xs, lengths: run.apply(params, xs, lengths=lengths)[1])

    return model_of


def stepper(
    cell_of: Callable[[Problem], jr.Cell] = library_cell, *, served: bool = False
) -> Callable[[Problem], Stepper]:
    """The cell's own step; or that of ``jr.stream``, where members may pause and begin anew, though none does."""

    def stepper_of(problem: Problem) -> Stepper:
        cell = cell_of(problem)
        if problem.variant == READOUT:
            cell = jr.chain(cell, jr.readout(problem.H, problem.H))
        params = drawn(jax.eval_shape(cell.init, jax.random.key(0)), problem.H)
        carry = cell.initial_carry(params, (problem.B,))
        if not served:
            return Stepper(params, carry, cell.step)
        step = jr.stream(cell).step
        return Stepper(
            params,
            carry,
            lambda params, carry, x, mask, resets: step(params, carry, x, mask=mask, resets=resets),
            (np.ones(problem.B, bool), np.zeros(problem.B, bool)),
        )

    return stepper_of


def floor(problem: Problem, quantity: str) -> Traced:
    """The matrix products of the same FLOPs, each over the whole sequence at once, and nothing else.

    Forward ``[x, h] W``; backward ``d Wᵀ`` and ``[x, h]ᵀ d`` besides.
    """
    A, W, D = floor_operands(problem)
    if quantity == "forward":
        return Traced(lambda A, W: [a @ w for a, w in zip(A, W, strict=True)], (A, W), (0, None))

    def products(A, W, D):
        return [(a @ w, d @ w.T, a.T @ d) for a, w, d in zip(A, W, D, strict=True)]

    return Traced(products, (A, W, D), (0, None, 0))


def floor_operands(problem: Problem) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """``[x, h]`` (B·T, I+H), the weights (I+H, gates·H) and the cotangents (B·T, gates·H), of each direction."""
    rng = np.random.default_rng(0)
    rows, inner, columns = problem.B * problem.T, problem.I + problem.H, problem.gate_columns
    shapes = ((rows, inner), (inner, columns), (rows, columns))
    A, W, D = ([rng.standard_normal(shape, dtype=np.float32) for _ in range(problem.directions)] for shape in shapes)
    return A, W, D
