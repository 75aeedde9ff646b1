"""Learning online as one writes it from the papers, in plain JAX: what ``jr.online`` is measured beside.

For a cell whose step puts out h_t, its carry one leaf (H,) or several (H,) each, and whose arrays of params have units
along their last axis. It is written for that, knows which parameter feeds which unit, and takes a batch by ``vmap``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import jaxrnn as jr

PyTree = Any
Rule = tuple[Callable[..., PyTree], Callable[..., tuple[PyTree, PyTree, PyTree]]]  # init() -> trace, of one sequence;
# step(params, carry, trace, x) -> (carry, trace, gradient): the last from ∂L/∂h, L of a sequence, and h


def textbook(cell: jr.Cell, rule: str, loss: Callable[..., Any], params: PyTree, x: Any) -> Rule:
    """The rule "rtrl" or "snap1" for this cell: dense, or by unit where D_t is diagonal or taken to be so."""
    carry = jax.tree.leaves(cell.initial_carry(params))
    D = jax.jacfwd(lambda h: cell.step(params, h, x)[0])(cell.initial_carry(params))
    is_diagonal = len(carry) == 1 and not jnp.any(D - jnp.diag(jnp.diagonal(D)))
    return by_unit(cell, loss, params, x, is_diagonal) if rule == "snap1" or is_diagonal else dense(cell, loss, params)


def dense(cell: jr.Cell, loss: Callable[..., Any], params: PyTree) -> Rule:
    """Williams & Zipser 1989: J_t = D_t J_{t-1} + I_t, (H, P), of a carry of one leaf."""
    flat, unravel = ravel_pytree(params)
    H = cell.initial_carry(params).size

    def init():
        return jnp.zeros((H, flat.size))

    def step(params, h, J, x, target):
        run = lambda params, h: cell.step(params, h, x)[0]
        D = jax.jacfwd(run, 1)(params, h)
        I = jax.vmap(lambda of_unit: ravel_pytree(of_unit)[0])(jax.jacrev(run)(params, h))
        h, J = run(params, h), D @ J + I
        return h, J, unravel(jax.grad(loss)(h, target) @ J)

    return init, step


def by_unit(cell: jr.Cell, loss: Callable[..., Any], params: PyTree, x: Any, is_diagonal: bool) -> Rule:
    """Menick et al. 2021, SnAp-1: J_t = M ⊙ (D_t J_{t-1} + I_t), of each parameter the rows of its own unit.

    Of D_t that takes the entries between leaves of the same unit; I_t is a cotangent of ones for each leaf. Of a
    diagonal recurrence J_t is exact (Zucchet et al. 2023), and D_t a tangent of ones.
    """
    treedef: Any = jax.tree.structure(cell.initial_carry(params))

    def run(params, leaves, x):
        return jax.tree.leaves(cell.step(params, treedef.unflatten(leaves), x)[0])

    def direct(params, leaves, x):
        new, pull = jax.vjp(lambda params: run(params, leaves, x), params)
        ones = [[jnp.ones_like(a) if i == k else jnp.zeros_like(a) for i, a in enumerate(new)] for k in range(len(new))]
        return new, [pull(one)[0] for one in ones]

    start = jax.tree.leaves(cell.initial_carry(params))
    random = [jax.random.normal(jax.random.key(k), a.shape) for k, a in enumerate([x, *start])]
    M = jax.tree.map(lambda a: np.asarray(a != 0), direct(params, random[1:], random[0])[1])

    def entries(params, leaves, x):
        if is_diagonal:
            return [jax.jvp(lambda h: run(params, [h], x), leaves, [jnp.ones_like(a) for a in leaves])[1]]
        D = jax.jacfwd(lambda leaves: run(params, leaves, x))(leaves)
        return [[jnp.diagonal(of) for of in row] for row in D]

    def init():
        return [jax.tree.map(jnp.zeros_like, params) for _ in start]

    def step(params, carry, J, x, target):
        leaves = jax.tree.leaves(carry)
        D, (new, I) = entries(params, leaves, x), direct(params, leaves, x)

        def updated(M, row, I):
            def of_array(m, i, *old):
                new = sum(map(scaled, row, old)) + i
                return new if m.all() else jnp.where(m, new, 0)

            return jax.tree.map(of_array, M, I, *J)

        J = [updated(*of) for of in zip(M, D, I, strict=True)]
        by_h = jax.grad(loss)(new[0], target)
        return treedef.unflatten(new), J, jax.tree.map(lambda J: scaled(by_h, J), J[0])

    return init, step


def scaled(by_unit: Any, array: Any) -> Any:
    """The array times a number for each unit, along its last axis."""
    return jnp.tile(by_unit, array.shape[-1] // by_unit.size) * array
