"""Outputs that become inputs, beside a scan of as many given steps; the layer-normed LSTM beside the plain one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from experiments.benchmarks.programs import Placed, Program, Traced, compiled
from experiments.benchmarks.suites import Entry, Group, Row, Settings

OURS, GIVEN = "jaxrnn", "scan of given steps"
WHAT = ("generate greedy", "generate temperature", "beam search", "layer norm")  # the quantities of its rows

Loop = Callable[..., Any]  # (params, tokens (steps, B), key) -> what was computed


def closed_loop(settings: Settings) -> Iterator[Group]:
    """``jr.generate`` and ``jr.beam_search`` of a small language model; training with layer normalisation."""
    if "lstm" not in settings.cells:
        return
    loops = settings.loops
    pairs: list[tuple[str, int, Loop, int | None]] = []
    V, E, H, T = loops.symbols, loops.features, loops.units, loops.steps
    cell = jr.chain(jr.embedding(V, E), jr.lstm(E, H), jr.readout(H, V))
    for sample in ("greedy", "temperature"):
        pairs += [(f"generate {sample}", B, generated(cell, sample), None) for B in loops.batches]
    pairs += [("beam search", B, searched(cell, loops.width), loops.width) for B in loops.searched]
    for what, B, ours, width in pairs if "forward" in settings.quantities else ():
        args, both = of_language(cell, V, T, B), {OURS: ours, GIVEN: given(cell, width)}
        entries = [entry(what, (B, T, E, H), name, loop, args) for name, loop in both.items()]
        yield Group(f"{what} {(B, T, E, H)}".replace(", ", ","), entries, settings.budget)
    for shape in loops.layer_normed if "train" in settings.quantities else ():
        yield from layer_normed(shape, settings)


def generated(cell: jr.Cell, sample: str) -> Loop:
    def run(params, tokens, key):
        keys = {"key": key} if sample != "greedy" else {}
        return jr.generate(cell, params, None, tokens[0], steps=len(tokens), sample=sample, **keys).tokens

    return run


def searched(cell: jr.Cell, width: int) -> Loop:
    def run(params, tokens, key):
        return jr.beam_search(cell, params, None, tokens[0], width=width, steps=len(tokens)).log_probs

    return run


def given(cell: jr.Cell, width: int | None) -> Loop:
    """As many steps of the cell, whose inputs are known; with a width of that many rows, which are sorted."""

    def run(params, tokens, key):
        def step(carry, token):
            carry, logits = cell.step(params, carry, token)
            if width is None:
                return carry, logits
            return carry, jax.lax.top_k(logits.reshape(tokens.shape[1], -1), width)

        rows = tokens if width is None else jnp.repeat(tokens, width, axis=1)
        return jax.lax.scan(step, cell.initial_carry(params, rows.shape[1:]), rows)[1]

    return run


def of_language(cell: jr.Cell, V: int, T: int, B: int) -> tuple[Any, ...]:
    """Params, tokens and a key."""
    params = jax.tree.map(np.asarray, cell.init(jax.random.key(0)))
    tokens = np.random.default_rng(1).integers(0, V, (T, B), dtype=np.int32)
    return params, tokens, jax.random.key(2)


def layer_normed(shape: tuple[int, int, int, int], settings: Settings) -> Iterator[Group]:
    B, T, I, units = shape
    for kind in ("ba2016", "per_gate"):
        cells = {OURS: jr.lstm(I, units, layer_norm=kind), "lstm": jr.lstm(I, units)}
        rng = np.random.default_rng(0)
        xs, cotangent = (rng.normal(size=(T, B, n)).astype("f") for n in (I, units))
        entries = []
        for name, cell in cells.items():
            params = jax.tree.map(np.asarray, cell.init(jax.random.key(0)))
            entries.append(entry("layer norm", shape, name, training(cell), (params, xs, cotangent), kind))
        yield Group(f"lstm {kind} {shape}".replace(", ", ","), entries, settings.budget)


def training(cell: jr.Cell) -> Loop:
    def loss(params, xs, cotangent):
        return jnp.sum(jr.scan(cell).apply(params, xs)[1] * cotangent)

    return jax.value_and_grad(loss, argnums=(0, 1))


def entry(
    what: str, shape: tuple[int, int, int, int], name: str, loop: Loop, args: tuple[Any, ...], variant: str = ""
) -> Entry:
    def build(placed: Placed) -> Program:
        return compiled(Traced(loop, args, (None,) * len(args)), 1, placed)

    return Entry(Row("closed_loop", what, "lstm", shape, variant, 1, name), build, check_finite)


def check_finite(result: Any) -> None:
    for leaf in jax.tree.leaves(result):
        if not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(f"a result of shape {leaf.shape} is not finite")
