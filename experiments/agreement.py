"""How wrong the rules of learning online are on a GRU: ``python -m experiments.agreement``.

On fresh params, and on those that training has found. Two minutes on a CPU; ``--write docs/learning_online.md`` puts
table and figures there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxrnn as jr
from experiments import markdown
from experiments.environment import environment, sentence
from experiments.exits import said
from experiments.markdown import MarkerError
from experiments.online_drift import teacher

PART = "agreement"
PACKAGES = ("jax", "jaxlib", "optax")
RULES: dict[str, Any] = {
    "snap1": "snap1",
    "eprop": "eprop",
    "window of 8": {"rule": "tbptt", "window": 8},
    "kf_rtrl": "kf_rtrl",
    "kf_rtrl:4": "kf_rtrl:4",
    "uoro": "uoro",
}


class Sizes(NamedTuple):
    inputs: int = 2
    units: int = 16
    steps: int = 40  # of a sequence
    batch: int = 8
    pieces: int = 100  # batches of the teacher's stream; the last one is not learned from
    updates: int = 1000
    draws: int = 32  # of the rules that draw


SIZES = Sizes()


def agreements(sizes: Sizes) -> dict[str, jr.gradients.Agreement]:
    """On a sequence to learn from that no update has seen: before training, and after it."""
    T, B, N = sizes.steps, sizes.batch, sizes.pieces
    k_stream, k_params, k_rules = jax.random.split(jax.random.key(0), 3)
    stream = teacher.draw(
        k_stream, N * B * T, inputs=sizes.inputs, units=8, slowest=20.0, drift=0.0, noise=0.1
    )  # the teacher of online_drift, which stays as it is
    xs, targets = (a.reshape(N, B, T, -1).swapaxes(1, 2) for a in (stream.xs, stream.targets))
    cell = jr.chain(jr.gru(sizes.inputs, sizes.units, reset="after"), jr.readout(sizes.units, 1))
    layer, optimizer = jr.scan(cell), optax.adam(3e-3)

    def update(held, n):
        params, opt_state = held
        loss = lambda params: ((layer.apply(params, xs[n])[1] - targets[n]) ** 2).mean()
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    fresh = cell.init(k_params)
    order = jnp.arange(sizes.updates) % (N - 1)
    trained = jax.jit(lambda held: jax.lax.scan(update, held, order)[0][0])((fresh, optimizer.init(fresh)))
    beside = lambda params: jr.gradients.agreement(
        cell, params, xs[-1], targets[-1], RULES, key=k_rules, draws=sizes.draws
    )
    return {"fresh": beside(fresh), f"after {sizes.updates:,} updates": beside(trained)}


def table(found: dict[str, jr.gradients.Agreement], sizes: Sizes) -> str:
    """The whole gradient under each rule, in Markdown."""
    rows: list[tuple[str, ...]] = [("rule", "params", "cosine", "norm", "bias", "deviation of a draw")]
    for r, rule in enumerate(RULES):
        for when, of in found.items():
            drawn = rule.startswith(("uoro", "kf_rtrl"))
            shown = [f"{values[r]:.3f}" for values in of.whole[:3]]
            rows.append((rule, when, *shown, f"{of.whole.deviation[r]:.3f}" if drawn else "–"))
    note = (
        f"The gradient g of a GRU of {sizes.units} units with a readout over {sizes.steps} steps of {sizes.batch} "
        f"sequences, beside BPTT's g*: cosine of both, |g| / |g*|, |mean g - g*| / |g*|, and what single draws deviate "
        f"from their mean, over {sizes.draws} draws where a rule draws. Trained by Adam at 3e-3 on the teacher of "
        f"online drift, held still; the sequences of the table are not among those learned from."
    )
    return f"{markdown.table(rows, left=2)}\n\n{note}\n\n{sentence(environment(PACKAGES), PACKAGES)}"


def main(argv: Sequence[str] | None = None, sizes: Sizes = SIZES) -> int:
    """Print the table, or write it into a page, the figure beside it. Exit status: 0, 1 (a file or its markers)."""
    parser = argparse.ArgumentParser(prog="python -m experiments.agreement", description="Online rules beside BPTT.")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="between <!-- agreement:begin --> and :end there")
    arguments = parser.parse_args(argv)
    try:
        if arguments.write is not None:
            markdown.between_markers(arguments.write, PART)  # what is wrong with it is said before anything is computed
        found = agreements(sizes)
        if arguments.write is None:
            print(table(found, sizes))
        else:
            folder = arguments.write.with_suffix("")
            folder.mkdir(exist_ok=True)
            for of, name in zip(found.values(), ("fresh", "trained"), strict=True):
                title = f"Online rules beside back-propagation through time: {name} GRU"
                jr.plotting.agreement(of, title=title).savefig(folder / f"agreement_{name}.png", dpi=150)
            markdown.write_between_markers(arguments.write, PART, table(found, sizes))
    except (MarkerError, OSError) as error:
        return said(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
