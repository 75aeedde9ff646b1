"""The training loop: optimiser steps as pure functions, many of them in one ``lax.scan``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrnn._arguments import check_argument, checks_arguments
from jaxrnn._base import PyTree, is_inexact
from jaxrnn._checks import LONGEST, check_array, check_choice, check_key, check_scalar_loss, check_sizes
from jaxrnn._deprecated import moved_names
from jaxrnn._dtypes import accumulator
from jaxrnn._narrowing import check_held

Measures = dict[str, jax.Array]  # scalars by name
MOST_ACCUMULATED = 2**16  # float32 sums of so many numbers are wrong by up to 0.4 %; experiments' configs have it too
NOISE = 0x6E6F6973  # any number that counts no batch: sets the noise apart from the batches, whose key is the same


class TrainState(NamedTuple):
    """All that training changes."""

    params: PyTree
    opt_state: PyTree
    key: jax.Array  # never changes: with ``step`` it determines every batch and all noise
    step: jax.Array  # how many steps were done
    skipped: jax.Array  # how many of them changed nothing, for a number that was not finite


class Loop(NamedTuple):
    """What ``training.loop`` makes: pure functions, to be jitted, vmapped and sharded by whoever calls them."""

    init: Callable[[jax.Array], TrainState]
    step: Callable[[TrainState, PyTree], tuple[TrainState, Measures]]
    run: Callable[[TrainState, Callable[[jax.Array, jax.Array], PyTree], int], tuple[TrainState, Measures]]
    evaluate: Callable[[PyTree, PyTree], Measures]


@checks_arguments(who="training.loop")
def loop(
    init: Callable[[jax.Array], PyTree],
    loss: Callable[[PyTree, PyTree, jax.Array | None], jax.Array | tuple[jax.Array, Measures]],
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    nonfinite: str = "keep",
) -> Loop:
    """Optimiser steps on batches, one at a time or many in one program.

        g_t = 1/K Σ_k ∂loss(θ_t, batch_k)/∂θ        K = accumulate
        θ_{t+1} = θ_t + update(g_t)

    Args:
        init: key -> params.
        loss: ``(params, batch, key)`` -> a number, the mean over the batch, or (number, measures) with a dict of what
            else to record. ``key`` is another one at each step; None in ``evaluate``, where nothing is to be dropped.
        optimizer: from optax; schedules and clipping are part of it.
        accumulate: K, how many batches make one step, at most 65,536. The gradients are added up in float32, or wider
            if the parameters are, and each batch counts the same.
        nonfinite: what a step does whose loss or gradient is not finite: "keep" updates all the same (the measures show
            it), "skip" leaves parameters and optimiser as they were and counts it in ``TrainState.skipped``. A gradient
            whose norm is beyond the range of its dtype counts as not finite.

    Returns:
        A Loop:

        - ``init(key)`` -> the state before the first step. Parameters and batches get keys of their own.
        - ``step(state, batch)`` -> (state, measures): one optimiser step. Measures are "loss" and "grad_norm" (the
          global norm, before clipping) and what the loss adds, of the parameters before the update. With
          ``accumulate`` K, every array of the batch leads with K.
        - ``run(state, batch_at, steps)`` -> (state, measures), each (steps,): ``steps`` of them in one scan. Batch n of
          the training is ``batch_at(key, n)``, n = 0, 1, …; a step takes ``accumulate`` of them. So the order of the
          data is a function of the state alone.
        - ``evaluate(params, batch)`` -> "loss" and the loss's measures, without a key.

    Raises:
        ValueError, TypeError: unknown options; a loss that is no float scalar, or a pair of it and something that is
            no dict; a measure called "loss" or "grad_norm".

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxrnn as jr
        >>> from jaxrnn import training
        >>> model = jr.stack(jr.gru(3, 8), jr.dropout(0.1), jr.readout(8, 3))
        >>> def loss(params, xs, key):  # predict the next input
        ...     return optax.l2_loss(model.apply(params, xs[:-1], key=key)[1], xs[1:]).mean()
        >>> learn = training.loop(model.init, loss, optax.adam(1e-2))
        >>> phases = lambda key, n: jax.random.uniform(jax.random.fold_in(key, n), (8, 3))
        >>> waves = lambda key, n: jnp.sin(jnp.arange(20.0)[:, None, None] + phases(key, n))
        >>> state, measures = jax.jit(learn.run, static_argnums=(1, 2))(learn.init(jax.random.key(0)), waves, 100)
        >>> measures["loss"].shape, int(state.step), bool(measures["loss"][-1] < measures["loss"][0] / 4)
        ((100,), 100, True)
    """
    if accumulate > MOST_ACCUMULATED:
        raise ValueError(
            f"training.loop: accumulate must be at most {MOST_ACCUMULATED:,} batches, which all are computed for one "
            f"step, got {accumulate:,}; take larger batches, or more steps."
        )
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"training.loop: optimizer must be an optax.GradientTransformation, such as optax.adam(1e-3), got "
            f"{optimizer!r} ({type(optimizer).__name__})."
        )
    check_choice("training.loop", "nonfinite", nonfinite, ("keep", "skip"))

    def start(key: jax.Array) -> TrainState:
        check_key("training.loop", key)
        k_params, k_batches = jax.random.split(key)
        params = init(k_params)
        step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return TrainState(params, optimizer.init(params), k_batches, step, skipped)

    def gradient(params: PyTree, batch: PyTree, key: jax.Array) -> tuple[PyTree, Measures]:
        for path, a in jax.tree_util.tree_leaves_with_path(params):
            if not is_inexact(a):
                raise TypeError(
                    f"training.loop: params{jax.tree_util.keystr(path)} is {jnp.result_type(a)}, which has no gradient"
                    f"; make init give floats alone, and close the loss over the rest."
                )
        (value, measures), grads = jax.value_and_grad(lambda p: _measured(loss(p, batch, key)), has_aux=True)(params)
        return grads, {"loss": value, **measures}

    def mean_gradient(params: PyTree, batches: PyTree, key: jax.Array) -> tuple[PyTree, Measures]:
        """Over batches that lead with K."""
        for path, a in jax.tree_util.tree_leaves_with_path(batches):
            if jnp.shape(a)[:1] != (accumulate,):
                raise ValueError(
                    f"training.loop: with accumulate={accumulate} every array of the batch leads with {accumulate}, "
                    f"got batch{jax.tree_util.keystr(path)} of shape {jnp.shape(a)}; stack that many batches."
                )

        def add(total, batch_and_place):
            batch, place = batch_and_place
            one = gradient(params, batch, jax.random.fold_in(key, place))
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, one), None

        first = jax.tree.map(lambda a: a[0], batches)
        shapes = jax.eval_shape(gradient, params, first, key)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, accumulator(a.dtype)), shapes)
        total, _ = jax.lax.scan(add, zeros, (batches, jnp.arange(accumulate, dtype=jnp.int32)))
        grads, measures = jax.tree.map(lambda a: a / accumulate, total)
        return jax.tree.map(lambda a, like: a.astype(like.dtype), grads, shapes[0]), measures

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, Measures]:
        _check_state(state)
        check_held("training.loop", "batch", batch)
        key = jax.random.fold_in(jax.random.fold_in(state.key, NOISE), state.step)
        grads, measures = (gradient if accumulate == 1 else mean_gradient)(state.params, batch, key)
        measures = {"loss": measures.pop("loss"), "grad_norm": optax.tree.norm(grads), **measures}
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params, skipped = optax.apply_updates(state.params, updates), state.skipped
        if nonfinite == "skip":
            good = jnp.isfinite(measures["loss"]) & jnp.isfinite(measures["grad_norm"])
            new, old = (params, opt_state), (state.params, state.opt_state)
            params, opt_state = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
            skipped = skipped + (~good).astype(skipped.dtype)
        return TrainState(params, opt_state, state.key, state.step + 1, skipped), measures

    def run(
        state: TrainState, batch_at: Callable[[jax.Array, jax.Array], PyTree], steps: int
    ) -> tuple[TrainState, Measures]:
        _check_state(state)
        check_argument("training.loop", "batch_at", batch_at, "Callable", {})
        if steps != 0 or isinstance(steps, bool):  # none are none
            check_sizes("training.loop", steps=steps)
        if steps * accumulate > LONGEST:
            raise ValueError(
                f"training.loop: steps={steps:,} of accumulate={accumulate:,} batches are more than {LONGEST:,}, and "
                f"batches are counted in int32; run fewer steps, or accumulate fewer and larger batches."
            )

        def one(state, _):
            if accumulate == 1:
                batch = batch_at(state.key, state.step)
            else:
                places = jnp.arange(accumulate, dtype=jnp.int32)
                batch = jax.lax.map(lambda k: batch_at(state.key, state.step * accumulate + k), places)
            return step(state, batch)

        return jax.lax.scan(one, state, length=steps)

    def evaluate(params: PyTree, batch: PyTree) -> Measures:
        check_held("training.loop", "params", params)
        check_held("training.loop", "batch", batch)
        value, measures = _measured(loss(params, batch, None))
        return {"loss": value, **measures}

    return Loop(start, step, run, evaluate)


def _check_state(state: Any) -> None:
    if not isinstance(state, TrainState):
        raise TypeError(
            f"training.loop: state must be a TrainState, got {type(state).__name__}; start from loop.init(key), or "
            f"from the state that a step or a run returned."
        )


def _measured(returned: Any) -> tuple[jax.Array, Measures]:
    """What a loss has returned, a number or (number, measures), as the pair."""
    value, measures = returned if isinstance(returned, tuple | list) and len(returned) == 2 else (returned, {})
    check_scalar_loss("training.loop", value, "loss(params, batch, key)")
    if not isinstance(measures, Mapping):
        raise TypeError(
            f"training.loop: expected the loss to return a number, or a number and a dict of measures, got "
            f"{type(measures).__name__} beside the number; give {{'name': value}}."
        )
    if taken := {"loss", "grad_norm"} & set(measures):
        raise ValueError(
            f"training.loop: the loop measures {' and '.join(map(repr, sorted(taken)))} itself; give what the loss "
            f"adds another name."
        )
    for name, measure in measures.items():
        for leaf in jax.tree.leaves(measure):
            if isinstance(leaf, str | bytes) or (not jnp.isscalar(leaf) and not hasattr(leaf, "dtype")):
                raise TypeError(
                    f"training.loop: the measure {name!r} must be a number or an array, got {leaf!r:.80}; leave it out."
                )
    return value, jax.tree.map(jnp.asarray, dict(measures))


class Best(NamedTuple):
    """The parameters with the best measure so far; of an ensemble each member's own."""

    value: Any  # () or (N,)
    step: Any  # 0 before the first
    params: PyTree


@checks_arguments
def init_best(params: PyTree, *, lower: bool = True) -> Best:
    """Before anything was measured; ``lower`` says whether small values are good.

    For a block that keeps the best parameters in its own state; between blocks ``training.patience(keep=…)`` does it.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import training
        >>> training.init_best({"w": jnp.zeros(2)}).value.item()
        inf
    """
    return Best(jnp.asarray(jnp.inf if lower else -jnp.inf, jnp.float32), jnp.zeros((), jnp.int32), params)


@checks_arguments
def update_best(best: Best, value: jax.Array, step: jax.Array, params: PyTree, *, lower: bool = True) -> Best:
    """The new parameters where their measure is strictly better, else those before; what is not finite is never better.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import training
        >>> best = training.init_best({"w": jnp.zeros(2)})
        >>> for step, loss in enumerate([3.0, 1.0, 2.0], start=1):
        ...     best = training.update_best(best, jnp.asarray(loss), jnp.asarray(step), {"w": jnp.full(2, loss)})
        >>> float(best.value), int(best.step), best.params["w"].tolist()
        (1.0, 2, [1.0, 1.0])
    """
    value, step = jnp.asarray(value), jnp.asarray(step)
    if value.shape != best.value.shape or not jnp.issubdtype(step.dtype, jnp.integer):
        raise ValueError(
            f"update_best: value must be of shape {best.value.shape} and step an integer, got {value.shape} and "
            f"{step.dtype}; use jax.vmap over several members."
        )
    came, expected = (str(jax.tree.structure(tree)) for tree in (params, best.params))
    if came != expected:
        raise ValueError(f"update_best: params must be a tree like that of init_best, {expected}, got {came}.")
    value = value.astype(best.value.dtype)  # first: an equal one of more digits would else be a better one
    won = jnp.isfinite(value) & (value < best.value if lower else value > best.value)
    new = Best(value, step.astype(best.step.dtype), params)
    return jax.tree.map(lambda a, b: jnp.where(won, a, b), new, best)


def first_nonfinite(values: Any) -> jax.Array:
    """The place, from 1, of the first of the values (n,) that is not finite; 0 where all are.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import training
        >>> int(training.first_nonfinite(jnp.array([0.5, jnp.inf, jnp.nan])))
        2
    """
    check_array("training.first_nonfinite", "values", values)
    values = np.asarray(values) if isinstance(values, list) else values
    if jnp.ndim(values) != 1:
        raise ValueError(
            f"training.first_nonfinite: values must be (n,), one a step, got shape {jnp.shape(values)}; use jax.vmap "
            f"over several members."
        )
    # NumPy's floats are judged as they are: JAX would make some of 64 bits infinite.
    bad = jnp.asarray(~(np.isfinite(values) if isinstance(values, np.ndarray) else jnp.isfinite(values)))
    return jnp.where(bad.any(), bad.argmax() + 1, 0) if len(bad) else jnp.zeros((), jnp.int32)


__getattr__ = moved_names(
    "jaxrnn.training.steps",
    {"no_best": "jaxrnn.training.steps.init_best", "better": "jaxrnn.training.steps.update_best"},
)
