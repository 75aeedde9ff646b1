"""One step of a batch: new carries and traces, outputs, the gradient; of all members together, or each by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._base import PyTree, is_inexact, select
from jaxrnn._checks import check_leads_with_batch, check_scalar_loss
from jaxrnn.online._batch import Batch, Chosen
from jaxrnn.online.influence import parts_of, updated_and_weighed, weighed
from jaxrnn.online.problem import Output, Theta
from jaxrnn.online.rules import Step

Loss = Callable[[PyTree, PyTree], Any]


class Given(NamedTuple):
    """What a step of a batch starts from; arrays lead with the batch, but for the params."""

    batch: Batch
    theta: Theta
    others: list[Any]
    old: Any  # (*B, S): the carries
    x: PyTree
    noise: PyTree
    key: Any  # of the rule
    target: PyTree
    mask: Any  # (*B) or None

    def step(self, h: Any, x: PyTree, key: Any, noise: PyTree) -> Step:
        """That of one sequence."""
        return Step(self.batch.problem, self.theta, h, self.others, x, noise, key)

    def new(self) -> Any:
        """(*B, S): the new carries."""
        return self.batch.over(lambda h, x, noise: self.step(h, x, None, noise).run(), self.noise)(self.old, self.x)

    def outputs(self, put_out: Output, theta: Theta, old: Any, new: Any) -> PyTree:
        def of_one(h, h_new, x, noise):
            return put_out.compute(theta, h, h_new, self.others, x, noise)

        y = self.batch.over(of_one, self.noise)(old, new, self.x)
        check_leads_with_batch(self.batch.problem.who, "the output of step", y, self.batch.batch_shape)
        return y

    def updated(self, chosen: Chosen, trace: PyTree) -> PyTree:
        def of_one(h, x, key, trace, noise):
            return chosen.rule.update(self.step(h, x, key, noise), trace)

        return self.batch.over(of_one, self.noise)(self.old, self.x, self.key, trace)

    def gradient(self, chosen: Chosen, trace: PyTree, by_carry: Any) -> Theta:
        """Σ uᵀ J, over the batch."""
        if chosen.keeps_influence:
            return weighed(chosen.influence(self.batch.problem), self.theta, *self._flat((trace, by_carry)))

        def of_one(h, x, key, trace, u, noise):
            return chosen.rule.gradient(self.step(h, x, key, noise), trace, u)

        sums = self.batch.over(of_one, self.noise)(self.old, self.x, self.key, trace, by_carry)
        return [a.sum(tuple(range(len(self.batch.batch_shape)))) for a in sums]

    def updated_and_weighed(self, chosen: Chosen, trace: PyTree, u: Any, moved: Any) -> tuple[PyTree, Theta]:
        """``(traces, Σ uᵀ J_t)``, the traces of masked members held.

        ``moved``: (S,) booleans, of which carried numbers u may be other than 0.
        """
        if not chosen.keeps_influence:
            updated = self.updated(chosen, trace)
            held = updated if self.mask is None else select(self.mask, updated, trace)
            return held, self.gradient(chosen, updated, u)
        kept = chosen.influence(self.batch.problem)

        def parts(h, x, noise):
            return parts_of(kept, self.step(h, x, None, noise))

        of_blocks = self.batch.over(parts, self.noise)(self.old, self.x)
        of_blocks, flat_trace, flat_u, flat_mask = self._flat((of_blocks, trace, u, self.mask))
        held, total = updated_and_weighed(kept, self.theta, of_blocks, flat_trace, flat_u, flat_mask, moved)
        return jax.tree.map(lambda a: a.reshape(*self.batch.batch_shape, *a.shape[1:]), held), total

    def _flat(self, tree: PyTree) -> PyTree:
        """With one batch axis."""
        n, members = len(self.batch.batch_shape), math.prod(self.batch.batch_shape)
        return jax.tree.map(lambda a: a.reshape(members, *a.shape[n:]), tree)


def all_together(
    chosen: Chosen, loss: Loss, put_out: Output, given: Given, trace: PyTree
) -> tuple[Any, PyTree, PyTree, Theta]:
    """``(carries, traces, outputs, gradient)``; those of masked members are held."""
    new = given.new()

    def lost(theta, old, new):
        y = given.outputs(put_out, theta, old, new)
        if given.mask is not None:
            y = select(given.mask, y, jax.tree.map(jnp.zeros_like, y))
        value = loss(y, given.target)
        check_scalar_loss(given.batch.problem.who, value, "loss(y, target)")
        return value, y

    (direct, by_old, by_new), y = jax.grad(lost, (0, 1, 2), has_aux=True)(given.theta, given.old, new)
    sums = [direct]
    if put_out.reads_old:
        sums.append(given.gradient(chosen, trace, by_old))
    moved = np.ones(by_new.shape[-1], bool) if put_out.reads is None else put_out.reads
    updated, total = given.updated_and_weighed(chosen, trace, by_new, moved)
    new = new if given.mask is None else select(given.mask, new, given.old)
    return new, updated, y, [sum(of[1:], of[0]) for of in zip(*sums, total, strict=True)]


def each_by_itself(
    chosen: Chosen, loss: Loss, put_out: Output, given: Given, trace: PyTree
) -> tuple[Any, PyTree, PyTree, Theta, Any]:
    """The same, and of each member whether it counts: neither masked nor left out for a number that is not finite.

    What is not finite stays in the member's own row, and is replaced before anything is summed over members.
    """
    batch, new, updated = given.batch, given.new(), given.updated(chosen, trace)
    y = given.outputs(put_out, given.theta, given.old, new)
    counts = _finite(batch, (given.x, given.target, new, y, updated))
    if given.mask is not None:
        counts = counts & given.mask
    nothing = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    target = select(counts, given.target, nothing(given.target))

    def lost(y):
        value = loss(y, target)
        check_scalar_loss(batch.problem.who, value, "loss(y, target)")
        return value

    value, pull = jax.vjp(lost, select(counts, y, nothing(y)))
    (by_y,) = pull(jnp.ones_like(value))

    def of_one(h, h_new, x, key, trace, updated, by_y, noise):
        def put(theta, h, h_new):
            return put_out.compute(theta, h, h_new, given.others, x, noise)

        _, pull = jax.vjp(put, given.theta, h, h_new)
        direct, by_old, by_new = pull(by_y)
        at = given.step(h, x, key, noise)
        sums = [a + b for a, b in zip(direct, chosen.rule.gradient(at, updated, by_new), strict=True)]
        if put_out.reads_old:
            sums = [a + b for a, b in zip(sums, chosen.rule.gradient(at, trace, by_old), strict=True)]
        return sums

    own = batch.over(of_one, given.noise)(given.old, new, given.x, given.key, trace, updated, by_y)
    counts = counts & _finite(batch, own)
    axes = tuple(range(len(batch.batch_shape)))
    grads = [a.sum(axes) for a in select(counts, own, nothing(own))]
    return new, updated, select(counts, y, nothing(y)), grads, counts


def _finite(batch: Batch, tree: PyTree) -> Any:
    """(*B): whether all numbers of a member are finite."""
    n = len(batch.batch_shape)
    found = jnp.ones(batch.batch_shape, bool)
    for a in jax.tree.leaves(tree):
        if is_inexact(a):
            found = found & jnp.isfinite(a).all(tuple(range(n, jnp.ndim(a))))
    return found
