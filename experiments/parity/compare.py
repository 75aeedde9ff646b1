"""One model of another library beside what jaxrnn reads it as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._base import Cell

T, B, I, H = 7, 4, 3, 5

Weights = list[np.ndarray]


class Outcome(NamedTuple):
    """What a run gave: the outputs, the final carry, and the gradients of a loss that weighs both."""

    ys: Any  # (T, B, F); 0 on padding
    carry: Any  # a tree as jaxrnn's
    by_xs: Any = None
    by_carry: Any = None
    by_weights: Any = None  # one for each of the source's weights


class Source(NamedTuple):
    """A model of another library."""

    library: str
    cell: str
    options: str  # direction, layers and the like, in words
    weights: Weights
    read: Callable[[Weights], tuple[Any, Any]]  # what jaxrnn reads these weights as: (model, params)
    run: Callable[..., Outcome]  # (weights, xs, carry, lengths or None, weigh) -> Outcome
    lengths: bool = True  # whether the library has them


Draw = Callable[..., np.ndarray]
Make = Callable[[Draw], Source]


def in_words(layers: int, directions: int, *options: str) -> str:
    """The options of a source: "2 layers, bidirectional, proj_size=2"."""
    words = [f"{layers} layers"] * (layers > 1) + ["bidirectional"] * (directions > 1) + [o for o in options if o]
    return ", ".join(words)


class Row(NamedTuple):
    source: Source
    dtype: str
    outputs: float
    carry: float
    gradients: float | None  # the largest of those by inputs, initial carry and weights; None where there are none


def draw(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> np.ndarray:
    """Random numbers on a grid of 1/64, so that sums of two of them (two biases, say) are exact in every dtype."""
    return (np.round(rng.normal(size=shape) * 32) / 64).astype(dtype)


def compare(make: Make, dtype: str, seed: int = 0) -> Row:
    """The largest differences, each relative to the largest entry of what the library itself gives.

    The gradient by weights is compared along a random direction for each of the library's arrays, through the
    conversion: ``read`` is affine, so a step v of a weight moves our parameters by ``read(w + v) - read(w)``.
    """
    rng = np.random.default_rng(seed)
    source = make(lambda *shape: draw(rng, shape, dtype))
    model, params = source.read(source.weights)
    lengths = rng.integers(1, T + 1, B) if source.lengths else None
    xs = draw(rng, (T, B, I), dtype)
    start = jax.tree.map(lambda a: draw(rng, a.shape, dtype), model.initial_carry(params, (B,)))
    on = np.ones((T, B), bool) if lengths is None else np.arange(T)[:, None] < lengths

    def apply(params, xs, carry):
        if isinstance(model, Cell):
            return jax.lax.scan(lambda carry, x: model.step(params, carry, x), carry, xs)
        return model.apply(params, xs, carry, **({} if lengths is None else {"lengths": lengths}))

    shapes = jax.eval_shape(apply, params, xs, start)
    w_carry, w_ys = jax.tree.map(lambda a: draw(rng, a.shape, dtype), shapes)
    w_ys = w_ys * on[..., None]

    def weigh(carry, ys):
        """The loss: every entry has a weight of its own, padding none."""
        leaves = zip(jax.tree.leaves((carry, ys)), jax.tree.leaves((w_carry, w_ys)), strict=True)
        return sum((a * w).sum() for a, w in leaves)

    def loss(params, xs, carry):
        end, ys = apply(params, xs, carry)
        return weigh(end, ys), (end, ys)

    (by_params, by_xs, by_carry), (end, ys) = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(params, xs, start)
    theirs = source.run(source.weights, xs, start, lengths, (weigh, w_carry, w_ys))
    outputs = _apart([ys * on[..., None]], [theirs.ys * on[..., None]])
    carry = _apart(jax.tree.leaves(end), jax.tree.leaves(theirs.carry))
    if theirs.by_xs is None:
        return Row(source, dtype, outputs, carry, None)
    gradients = [_apart([by_xs], [theirs.by_xs]), _apart(jax.tree.leaves(by_carry), jax.tree.leaves(theirs.by_carry))]
    for place, (w, g) in enumerate(zip(source.weights, theirs.by_weights, strict=True)):
        v = draw(rng, w.shape, dtype)
        moved = source.read([w + v if place == n else a for n, a in enumerate(source.weights)])[1]
        ours = _dot(by_params, jax.tree.map(jnp.subtract, moved, params))
        size = np.linalg.norm(np.asarray(g, np.float64)) * np.linalg.norm(v.astype(np.float64))
        gradients.append(float(abs(ours - _dot([g], [v])) / size))
    return Row(source, dtype, outputs, carry, max(gradients))


def _apart(ours: list[Any], theirs: list[Any]) -> float:
    """The largest difference, relative to the largest entry."""
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(ours, theirs, strict=True)]
    assert all(a.shape == b.shape for a, b in pairs), [(a.shape, b.shape) for a, b in pairs]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def _dot(a: Any, b: Any) -> float:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(float(np.vdot(np.asarray(x, np.float64), np.asarray(y, np.float64))) for x, y in leaves)


def by_jax(run: Callable[..., tuple[Any, Any]]) -> Callable[..., Outcome]:
    """A library in JAX: ``run(weights, xs, carry, lengths) -> (carry as ours, ys)``, differentiated."""

    def outcome(weights, xs, carry, lengths, loss):
        weigh, *_ = loss

        def of(weights, xs, carry):
            end, ys = run(weights, xs, carry, lengths)
            return weigh(end, ys), (end, ys)

        gradients, (end, ys) = jax.jit(jax.grad(of, (0, 1, 2), has_aux=True))([*map(jnp.asarray, weights)], xs, carry)
        by_weights, by_xs, by_carry = gradients
        return Outcome(ys, end, by_xs, by_carry, by_weights)

    return outcome
