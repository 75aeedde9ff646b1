"""The training loop: many optimiser steps in one ``lax.scan``, all seeds in one program, a block at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxrnn as jr
from experiments import report
from experiments.config import Train

PyTree = Any
Measures = dict[str, jax.Array]  # scalars by name
Loss = Callable[[PyTree, PyTree], tuple[jax.Array, Measures]]  # (params, batch) -> (loss, what else to record)


class State(NamedTuple):
    """All that training changes, for one seed."""

    params: PyTree
    opt_state: PyTree
    key: jax.Array  # the seed's own: with ``step`` it determines every batch
    step: jax.Array  # how many optimiser steps were taken


class Task(NamedTuple):
    """What is to be learned: pure functions, which see the arrays of ``shared`` as their last argument."""

    init: Callable[[jax.Array], PyTree]  # key -> params
    batch: Callable[[jax.Array, jax.Array, PyTree], PyTree]  # (key, step, shared) -> batch
    loss: Callable[[PyTree, PyTree, PyTree], tuple[jax.Array, Measures]]  # (params, batch, shared) -> (loss, measures)
    evaluate: Callable[[PyTree, PyTree], Measures]  # (params, shared) -> measures on held-out data
    shared: PyTree = ()  # data, the same for all seeds


CLIPPING: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "global_norm": optax.clip_by_global_norm,  # Pascanu et al. 2013
    "value": optax.clip,  # Mikolov 2012
    "adaptive": optax.adaptive_grad_clip,  # Brock et al. 2021: relative to the norm of each unit's weights
}


def optimizer(settings: Train, learning_rate: float | None = None) -> optax.GradientTransformation:
    """The optimiser of ``[train]``, gradients clipped first; ``learning_rate`` in place of the table's."""
    rate: Any = settings.learning_rate if learning_rate is None else learning_rate
    if settings.schedule == "cosine":
        rate = optax.cosine_decay_schedule(rate, settings.steps)
    update = optax.adam(rate) if settings.optimizer == "adam" else optax.sgd(rate)
    return update if settings.clip == "none" else optax.chain(CLIPPING[settings.clip](settings.clip_at), update)


def init(init_params: Callable[[jax.Array], PyTree], optimizer: optax.GradientTransformation, key: jax.Array) -> State:
    """The state before the first step; parameters and batches get keys of their own."""
    k_params, k_batches = jax.random.split(key)
    params = init_params(k_params)
    return State(params, optimizer.init(params), k_batches, jnp.zeros((), jnp.int32))


def train(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    batch_at: Callable[[jax.Array, jax.Array], PyTree],
    state: State,
    steps: int,
) -> tuple[State, Measures]:
    """Take ``steps`` optimiser steps; the measures are (steps,) each, of each step's batch before the update.

    Args:
        loss: ``(params, batch) -> (loss, measures)``.
        optimizer: from optax.
        batch_at: ``(key, step) -> batch``, such as ``epoch_batch``.
        state: from ``init``, or from the call before.
        steps: how many, a Python int.

    Returns:
        The state after them, and "loss", "grad_norm" (the global norm, before clipping) and what the loss adds.
    """

    def one_step(state, _):
        batch = batch_at(state.key, state.step)
        (value, measures), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        measures = {"loss": value, "grad_norm": optax.tree.norm(grads), **measures}
        return State(params, opt_state, state.key, state.step + 1), measures

    return jax.lax.scan(one_step, state, length=steps)


def fit(
    name: str,
    task: Task,
    settings: Train,
    *,
    learning_rate: float | None = None,
    on_block: Callable[[report.Point], None] = lambda point: None,
    enough: Callable[[report.Point], bool] = lambda point: False,
) -> tuple[report.Result, PyTree]:
    """Train one model from every seed at once, a block of steps at a time.

    The seeds are divided among the devices and run one after the other on each (``jr.ensemble``).

    Args:
        name: of the model, for the report.
        task: what is to be learned.
        settings: ``[train]``.
        learning_rate: in place of the table's.
        on_block: called after each block with what was measured.
        enough: whether training may stop before ``settings.steps``.

    Returns:
        What was measured, and the parameters, each leaf (seeds, …).
    """
    clock = report.Clock()
    optimize = optimizer(settings, learning_rate)

    def block(state, shared):
        loss = lambda params, batch: task.loss(params, batch, shared)  # noqa: E731
        batch_at = lambda key, step: task.batch(key, step, shared)  # noqa: E731
        state, measures = train(loss, optimize, batch_at, state, settings.block)
        lost = {"loss": first_lost(measures["loss"]), "gradient": first_lost(measures["grad_norm"])}
        return state, {**jax.tree.map(jnp.mean, measures), **task.evaluate(state.params, shared)}, lost

    keys = jnp.stack([jax.random.key(seed) for seed in settings.seeds])
    states = jr.ensemble(lambda key: init(task.init, optimize, key))(keys)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(states.params)) // len(settings.seeds)
    run, points = jr.ensemble(block), []
    for step in range(settings.block, settings.steps + 1, settings.block):
        states, *measured = run(states, task.shared)
        values, lost = jax.tree.map(np.asarray, measured)
        before = step - settings.block
        points.append(report.Point(step, values, {name: np.where(at, before + at, 0) for name, at in lost.items()}))
        on_block(points[-1])
        if enough(points[-1]):
            break
    return report.Result(name, settings.seeds, parameters, points, clock.seconds()), states.params


def first_lost(values: jax.Array) -> jax.Array:
    """The place, from 1, of the first number of a block that is not finite; 0 where all are."""
    lost = ~jnp.isfinite(values)
    return jnp.where(lost.any(), lost.argmax() + 1, 0)


def epoch_batch(examples: int, batch_size: int, key: jax.Array, step: jax.Array) -> jax.Array:
    """(batch_size,) indices of the examples that a step trains on.

    Every epoch goes through a new permutation of the examples and leaves out the few that fill no batch. It
    is drawn anew at each step of the epoch, so that a batch depends on nothing but ``key`` and ``step``; that
    costs far less than the step itself.
    """
    epoch, place = jnp.divmod(step, examples // batch_size)
    order = jax.random.permutation(jax.random.fold_in(key, epoch), examples)
    return jax.lax.dynamic_slice_in_dim(order, place * batch_size, batch_size)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over the batch of logits (B, C) and integer labels (B,)."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The share of the batch whose largest logit is the label's; logits that are not finite are wrong."""
    # argmax of NaNs is 0: without the second condition a diverged model would be right about the class 0.
    right = (logits.argmax(-1) == labels) & jnp.isfinite(logits).all(-1)
    return right.mean()
