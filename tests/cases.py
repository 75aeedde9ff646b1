"""The one list of cells × wrappers × directions that drives the contract tests: a new cell is one new line.

Each case knows its model and a reference: a plain Python loop over ``step`` that takes the sequences of a batch one by
one, skips the steps that are not valid, and never sees a mask, a scan or a compiler.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from tests.user_cells import clockwork, fast_weights, textbook_lstm

T, B, I, H = 6, 3, 3, 4
SPACE = 4  # the size of each dimension of a convolutional cell's field

RUNS = {
    "auto": {},
    "plain": {"plan": "plain"},
    "checkpointed": {"checkpoint": 4},  # 6 steps: a segment of 4 and one of 2
    "checkpointed-plain": {"plan": "plain", "checkpoint": True},
    "nested": {"checkpoint": jr.Budget(5)},  # segments of 3 steps, each of them of segments of 1 or 2
    "everything": {"plan": jr.Plan(hoist=True, contract=True)},
    "packed": {"plan": jr.Plan(pack=True)},  # runs with lengths or a mask alone
    "chunks": {"method": "chunks", "max_iterations": 3},  # jr.parallel
    "chunks-plain": {"method": "chunks", "max_iterations": 1, "plan": "plain"},
    "associative": {"method": "associative"},
    "newton": {"method": "newton"},
    "nothing": {"plan": jr.Plan(fuse=False, hoist=False, contract=False, recompute=False)},
}


class Case(NamedTuple):
    name: str
    make: Callable[..., jr.Layer]  # (**options of jr.scan)
    loop: Callable  # (params, xs, carry, on, resets) -> (carry, ys), one sequence: xs (T, I)
    chunks: str  # "forward", "reverse" or "none": in which order a run may be cut
    x_shape: tuple[int, ...] = (I,)  # of one step of one sequence
    run: str = "auto"  # one of RUNS

    @property
    def layer(self) -> jr.Layer:
        return self.make(**RUNS[self.run])

    @property
    def id(self) -> str:
        return self.name if self.run == "auto" else f"{self.name}-{self.run}"

    def under(self, run: str) -> Case:
        return self._replace(run=run)


def over_time(cell: jr.Cell, **options) -> jr.Layer:
    """The cell run by ``jr.scan``, or where a method is given by ``jr.parallel``, in chunks where it is not for it."""
    if options.get("method") == "associative" and cell.affine is None:
        options["method"] = "chunks"
    if options.get("method") == "newton":
        params = jax.eval_shape(cell.init, jax.random.key(0))
        carry = jax.eval_shape(cell.initial_carry, params)
        if not all(map(has_derivative, jax.tree.leaves(carry))):
            options["method"] = "chunks"
    return (jr.parallel if "method" in options else jr.scan)(cell, **options)


def x_shape(cell: jr.Cell) -> tuple[int, ...]:
    """Of one step of one sequence, of a cell of this list."""
    return (*(SPACE,) * (cell.x_ndim - 1), I)


def of_cell(name: str, cell: jr.Cell, reverse: bool = False) -> Case:
    def loop(params, xs, carry, on, resets):
        steps = range(len(xs))
        ys: list = [None] * len(xs)
        carry = cell.initial_carry(params) if carry is None else carry
        rows = jnp.unstack(xs)
        for t in reversed(steps) if reverse else steps:
            entered = t + 1 if reverse else t
            if entered < len(resets) and resets[entered]:
                carry = cell.initial_carry(params)
            if on[t]:
                carry, ys[t] = cell.step(params, carry, rows[t])
        zero = jnp.zeros_like(jax.eval_shape(lambda p: cell.step(p, cell.initial_carry(p), rows[0])[1], params))
        return carry, jnp.stack([zero if y is None else y for y in ys])

    direction = "reverse" if reverse else "forward"
    make = functools.partial(over_time, cell, reverse=reverse)
    return Case(f"{name}-{direction}", make, loop, direction, x_shape(cell))


def of_stack(name: str, *members: Case) -> Case:
    def loop(params, xs, carry, on, resets):
        ends = []
        for index, member in enumerate(members):
            own = None if carry is None else carry[index]
            end, xs = member.loop(params[index], xs, own, on, resets)
            ends.append(end)
        return tuple(ends), xs

    def make(**options):
        return jr.stack(*(member.make(**options) for member in members))

    orders = {member.chunks for member in members}
    return Case(name, make, loop, orders.pop() if len(orders) == 1 else "none")


def of_branch(name: str, *members: Case, merge: Callable) -> Case:
    def loop(params, xs, carry, on, resets):
        carry = [None] * len(members) if carry is None else carry
        ends, ys = zip(
            *(m.loop(p, xs, c, on, resets) for m, p, c in zip(members, params, carry, strict=True)), strict=True
        )
        return ends, jnp.where(on[:, None], merge(*ys), 0)

    def make(**options):
        return jr.branch(*(member.make(**options) for member in members), merge=merge)

    orders = {member.chunks for member in members}
    return Case(name, make, loop, orders.pop() if len(orders) == 1 else "none")


def of_pair(name: str, forward: jr.Cell, backward: jr.Cell, merge: str, merged: Callable) -> Case:
    ahead, back = of_cell("", forward), of_cell("", backward, reverse=True)

    def loop(params, xs, carry, on, resets):
        carry = jr.BiCarry(None, None) if carry is None else carry
        end_ahead, ys_ahead = ahead.loop(params.forward, xs, carry.forward, on, resets)
        end_back, ys_back = back.loop(params.backward, xs, carry.backward, on, resets)
        return jr.BiCarry(end_ahead, end_back), merged(ys_ahead, ys_back)

    def make(**options):
        return jr.bidirectional(forward, backward, merge=merge, run=functools.partial(over_time, **options))

    return Case(name, make, loop, "none")


# By kind: a Cell -> a Cell, and what it wraps in CELLS.
WRAPPERS = {
    "leaky": (functools.partial(jr.leaky, rate=0.3), jr.elman(I, H)),
    "normalized": (jr.normalized, jr.gru(I, H)),
    "clip_state": (functools.partial(jr.clip_state, max_value=0.5), jr.lstm(I, H)),
    "recurrent_dropout": (functools.partial(jr.recurrent_dropout, rate=0.5, input_rate=0.2), jr.gru(I, H)),
    "zoneout": (functools.partial(jr.zoneout, rate=0.1, c_rate=0.5), jr.lstm(I, H)),
    "cotangent_clip": (functools.partial(jr.cotangent_clip, max_norm=1.0), jr.lstm(I, H)),
    "weight_drop": (functools.partial(jr.weight_drop, rate=0.5), jr.gru(I, H)),
    "weight_noise": (functools.partial(jr.weight_noise, std=0.5), jr.gru(I, H)),
    "weight_norm": (jr.weight_norm, jr.gru(I, H)),
    "spectral_norm": (functools.partial(jr.spectral_norm, scale=0.9, iterations=3, names="W_hh"), jr.elman(I, H)),
    "masked_weights": (functools.partial(jr.masked_weights, density=0.5), jr.lstm(I, H)),
    "noisy_state": (functools.partial(jr.noisy_state, std=0.5), jr.gru(I, H)),
    "dilated": (functools.partial(jr.dilated, dilation=2), jr.lstm(I, H)),
    "every": (functools.partial(jr.every, period=2), jr.gru(I, H)),
}

# Kinds that the contract does not run, and where they are tested.
ELSEWHERE = {
    "cotangent_clip": "its gradient is that of no loss: tests/test_cotangent_clip.py",
    "dropout": "the identity in evaluation: tests/test_running.py",
    "weight_drop": "its cell in evaluation: tests/test_weight_wrappers.py",
    "weight_noise": "its cell in evaluation: tests/test_weight_wrappers.py",
    "noisy_state": "its cell in evaluation: tests/test_state_wrappers.py",
    "embedding": "its inputs are integers: tests/test_equations.py",
}

CELLS = {
    "elman": jr.elman(I, H),
    "elman_relu_readout": jr.elman(I, H, activation="relu", output_size=2, recurrent_init="identity"),
    "lstm": jr.lstm(I, H),
    "lstm_learned_carry": jr.lstm(I, H, learned_carry=True),
    "gru_before": jr.gru(I, H),
    "gru_after": jr.gru(I, H, reset="after", learned_carry=True),
    "peephole_diagonal": jr.peephole_lstm(I, H),
    "peephole_full": jr.peephole_lstm(I, H, peephole="full"),
    "lstm_projected": jr.lstm(I, H, projection_size=2, learned_carry=True),
    "cifg_lstm": jr.cifg_lstm(I, H),
    "mgu": jr.mgu(I, H),
    "ugrnn": jr.ugrnn(I, H),
    "indrnn": jr.indrnn(I, H, recurrent_max=0.5),  # some of the random weights are beyond
    "antisymmetric": jr.antisymmetric_rnn(I, H, epsilon=0.5, gamma=0.2),
    "antisymmetric_gated": jr.antisymmetric_rnn(I, H, gated=True, epsilon=0.5, learned_carry=True),
    "lem": jr.lem(I, H, dt=0.7, learned_carry=True),
    "conv_lstm": jr.conv_lstm(I, 2, spatial_shape=(SPACE,), peephole=True),
    "conv_gru": jr.conv_gru(I, 2, spatial_shape=(SPACE,)),
    "user_clockwork": clockwork(I, H),
    "user_fast_weights": fast_weights(I, H),
    "user_textbook_lstm": textbook_lstm(I, H),
    "chain": jr.chain(jr.elman(I, H), jr.layer_norm(H), jr.gru(H, H), jr.readout(H, 2)),
    "residual": jr.residual(jr.lstm(I, I)),
    "branch": jr.branch(
        jr.elman(I, 2),
        jr.chain(jr.dense(I, 2, activation="tanh"), jr.pointwise(jnp.cos), jr.readout(2, 2, bias=False)),
        merge="concat",
    ),
    **{kind: wrap(cell) for kind, (wrap, cell) in WRAPPERS.items() if kind not in ELSEWHERE},
    "lru": jr.lru(I, H, state_size=2),
    "s5": jr.s5(I, I, state_size=4, discretization="bilinear"),
    "min_gru": jr.min_gru(I, H),
    "min_lstm": jr.min_lstm(I, H),
    "rg_lru": jr.rg_lru(I, H, blocks=2),
    "linear_rnn": jr.linear_rnn(I, H),
    "sru": jr.sru(I, H),
    "sru_2018": jr.sru(I, H, form="2018"),
    "qrnn": jr.qrnn(I, H),
    "qrnn_window": jr.qrnn(I, H, window=3, pooling="ifo"),
    "lstm_ba2016": jr.lstm(I, H, layer_norm="ba2016", heads=2),
    "lstm_per_gate": jr.lstm(I, H, layer_norm="per_gate", projection_size=2, learned_carry=True),
    "gru_ba2016": jr.gru(I, H, layer_norm="ba2016", heads=2),
    "slstm": jr.slstm(I, H, forget_gate="exp"),
    "slstm_heads": jr.slstm(I, H, heads=2),
    "mlstm": jr.mlstm(I, H, forget_gate="exp"),
    "mlstm_heads": jr.mlstm(I, H, heads=2),
    "ctrnn_rate": jr.ctrnn(I, H, tau=(0.5, 1.0, 2.0, 4.0), dt=0.5, noise=0.1, learned_carry=True),
    "ctrnn_current": jr.ctrnn(
        I, H, form="current", method="exponential", dale=0.8, excitatory_input=True, density=0.75, activation="tanh"
    ),
    "echo_state": jr.echo_state(I, H, density=0.6, leak=0.7, trainable=True),
}

CASES = [
    *(of_cell(name, cell, reverse=index % 3 == 2) for index, (name, cell) in enumerate(CELLS.items())),
    of_cell("lstm", CELLS["lstm"], reverse=False),
    of_cell("gru_before", CELLS["gru_before"], reverse=True),
    of_branch(  # what it makes of zeros is not 0
        "branch_of_layers", of_cell("", CELLS["elman"]), of_cell("", jr.dense(I, H)), merge=lambda a, b: jnp.cos(a) + b
    ),
    of_pair(
        "bidirectional_concat",
        CELLS["lstm"],
        CELLS["gru_after"],
        "concat",
        lambda f, b: jnp.concatenate([f, b], -1),
    ),
    of_pair("bidirectional_mean", CELLS["elman"], CELLS["user_clockwork"], "mean", lambda f, b: (f + b) / 2),
    of_stack(
        "stack",
        of_cell("", CELLS["gru_before"]),
        of_pair("", jr.lstm(H, 2), jr.elman(H, 2), "product", lambda f, b: f * b),
        of_cell("", jr.readout(2, 3)),
    ),
]


class Flags(NamedTuple):
    """Which steps are valid and where episodes begin, and how that is told to the library."""

    name: str
    lengths: np.ndarray | None
    mask: np.ndarray | None
    resets: np.ndarray | None
    given_carry: bool

    @property
    def on(self) -> np.ndarray:
        on = np.ones((T, B), bool) if self.mask is None else self.mask
        return on if self.lengths is None else on & (np.arange(T)[:, None] < self.lengths)

    @property
    def options(self) -> dict:
        options = {"lengths": self.lengths, "mask": self.mask, "resets": self.resets}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def all_options(self) -> dict:
        """The same, with flags in the place of those that are not given: one program serves every such call."""
        return NEUTRAL | self.options if self.options else {}


LENGTHS = np.array([6, 3, 0])
GAPS = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
RESETS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]], bool)

NEUTRAL = {"lengths": np.full(B, T), "mask": np.ones((T, B), bool), "resets": np.zeros((T, B), bool)}

FLAGS = [
    Flags("plain", None, None, None, False),
    Flags("lengths", LENGTHS, None, None, True),
    Flags("gaps", None, GAPS, None, True),
    Flags("resets", None, None, RESETS, True),
    Flags("lengths_gaps_resets", LENGTHS, GAPS, RESETS, True),
    Flags("gaps_resets", None, GAPS, RESETS, False),
]


# ---- a case's numbers ---------------------------------------------------------------------------


def draw(shape, seed=0, scale=1.0):
    """Normal numbers from NumPy, in float64 where that is on: a constant to the compiler, which random bits are not."""
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape))


def draw_like(a, seed=0, scale=1.0):
    """Normal numbers in the shape of an array, complex where it is."""
    drawn = draw(a.shape, seed, scale)
    return drawn + 1j * draw(a.shape, (99, *np.atleast_1d(seed)), scale) if jnp.iscomplexobj(a) else drawn


def randomised(tree, seed=0, scale=0.6):
    """The tree with every float and complex leaf drawn anew, biases and learned carries too: zeros hide bugs."""
    leaves, treedef = jax.tree.flatten(tree)
    drawn = [draw_like(a, (seed, n), scale) if has_derivative(a) else a for n, a in enumerate(leaves)]
    return treedef.unflatten(drawn)


def has_derivative(a):
    return jnp.issubdtype(a.dtype, jnp.inexact)


def drawn(cell: jr.Cell):
    """``(params, carry, x)``, random, for one step of a cell."""
    params = randomised(cell.init(jax.random.key(0)), 1)
    return params, randomised(cell.initial_carry(params, (B,)), 2), draw((B, *x_shape(cell)), 3)


def masks(shape, rate, key=5):
    """A mask of dropout as one is drawn: 0 or 1 / (1 - rate)."""
    return np.where(np.random.default_rng(key).random(shape) < rate, 0, 1 / (1 - rate))


def problem(case: Case, flags: Flags | None = None, batch_shape=(B,), seed=0):
    """``(params, xs, carry)``, random, for a case; the carry is None where the flags say so."""
    params = randomised(jax.eval_shape(case.layer.init, jax.random.key(seed)), seed)  # floats alone, all drawn
    xs = draw((T, *batch_shape, *case.x_shape), seed + 1)
    given = flags is None or flags.given_carry
    carry = randomised(case.layer.initial_carry(params, batch_shape), seed + 2) if given else None
    return params, xs, carry


def reference(case: Case, params, xs, carry, flags: Flags):
    """The batch (T, B, …) run through the case's loop, one sequence after the other."""
    resets = np.zeros((T, B), bool) if flags.resets is None else flags.resets
    runs, rows = [], jnp.unstack(xs, axis=1)
    for b in range(xs.shape[1]):
        own = None if carry is None else jax.tree.map(lambda a, b=b: a[b], carry)
        runs.append(case.loop(params, rows[b], own, flags.on[:, b], resets[:, b]))
    ends, ys = zip(*runs, strict=True)
    return jax.tree.map(lambda *a: jnp.stack(a), *ends), jnp.stack(ys, axis=1)


def weigh(tree, seed=7):
    """A scalar that weighs every number of a tree with a random weight of its own: the loss of the gradient tests."""
    leaves = [a for a in jax.tree.leaves(tree) if has_derivative(a)]
    return sum(((jnp.sin(a) + a) * draw_like(a, (seed, n)).astype(a.dtype)).sum().real for n, a in enumerate(leaves))


def differentiable(tree):
    """``(numbers, join)``: the float and complex leaves, and what puts them back into the tree."""
    leaves, treedef = jax.tree.flatten(tree)

    def join(numbers):
        rest = iter(numbers)
        return treedef.unflatten([next(rest) if has_derivative(a) else a for a in leaves])

    return list(filter(has_derivative, leaves)), join


def weighed(outputs, by_step=1.0, by_end=1.0):
    """A scalar: every number times a random weight of its own and that of its step, or of the end."""
    carry, ys = outputs
    ends = sum((a * draw_like(a, (8, n))).sum().real for n, a in enumerate(differentiable(carry)[0]))
    steps = (ys * draw(ys.shape, 7)).sum(axis=tuple(range(1, ys.ndim)))
    return by_end * ends + (by_step * steps).sum()


def differentiated(run, params, xs, carry, **weights):
    """``((loss, outputs), gradients)``: the outputs weighed; by params, xs and the carry's floats."""
    floats, join = differentiable(carry)

    def loss(params, xs, floats):
        outputs = run(params, xs, join(floats))
        return weighed(outputs, **weights), outputs

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, xs, floats)


def everything(case: Case):
    """``(…) -> (outputs, loss, gradients)``: outputs of a run by itself, the loss of one that is differentiated.

    Flags and weights are arguments, so that the tests of a case share one program: to compile is what takes time.
    """

    def run_and_differentiate(params, xs, carry, options, by_step, by_end):
        run = lambda *args: case.layer.apply(*args, **options)
        (loss, _), gradients = differentiated(run, params, xs, carry, by_step=by_step, by_end=by_end)
        return run(params, xs, carry), loss, gradients

    return run_and_differentiate
