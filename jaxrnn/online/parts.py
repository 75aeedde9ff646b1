"""A step as a list of operations: what is put out, what belongs to which member of a chain, what are weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._base import flatten, is_inexact
from jaxrnn.online.problem import Output, Problem
from jaxrnn.programs.program import Op, Program, evaluate, needed_for, reached_from
from jaxrnn.programs.tracing import flat_program, is_call


class TracedStep(NamedTuple):
    """(θ, h_{t-1}, x_t) -> (h_t, y_t) as a program; values by their numbers."""

    program: Program
    theta: list[int]
    old: list[int]  # the leaves of h_{t-1}
    others: list[int]
    rest: list[int]  # x and the noise
    new: list[int]  # the leaves of h_t
    ys: list[int]
    output: Any  # the structure of y

    @property
    def ops(self) -> list[Op]:
        return self.program.ops

    def moving(self) -> set[int]:
        """What changes from step to step while the params are held."""
        return reached_from(self.ops, [*self.old, *self.rest])

    def weights(self) -> set[int]:
        """What is made of the params alone."""
        return reached_from(self.ops, self.theta) - self.moving()

    def values(self, theta: Any, carry: Any, others: Any, x: Any, noise: Any) -> dict[int, Any]:
        """What is known before the first operation."""
        arrays = [*theta, *jax.tree.leaves(carry), *others, *jax.tree.leaves((x, noise))]
        return {**self.program.consts, **dict(zip(self.program.inputs, arrays, strict=True))}


def traced_step(problem: Problem) -> TracedStep:
    """Traced anew at every call: a step may close over what is being traced."""
    carry = problem.carry.treedef.unflatten(problem.carry.kinds)
    leaves, tree = flatten((problem.theta, carry, problem.others, (problem.x, problem.noise)))
    structure = []

    def run(*arrays):
        theta, carry, others, (x, noise) = tree.unflatten(arrays)
        extra = () if noise is None else (noise,)
        new, y = problem.cell.step(problem.params.join(theta, others), carry, x, *extra)
        ys, treedef = flatten(y)
        structure.append(treedef)
        return [*jax.tree.leaves(new), *ys]

    program, _, _ = flat_program(run, *leaves, flattens=is_call)
    n, sizes = len(problem.carry.kinds), [len(problem.theta), len(problem.carry.kinds), len(problem.others)]
    theta, old, others, rest = (list(map(int, part)) for part in np.split(program.inputs, np.cumsum(sizes)))
    return TracedStep(program, theta, old, others, rest, program.outputs[:n], program.outputs[n:], structure[-1])


def output_of(problem: Problem) -> Output:
    """y_t = o(θ, h_{t-1}, h_t, x_t), from the traced step: a value that is a leaf of the new carry is read from h_t."""
    step = traced_step(problem)
    new = set(step.new)
    ops = needed_for(step.ops, step.ys, given=new)
    reads_old = bool(reached_from(ops, set(step.old) - new) & set(step.ys) - new)

    def compute(theta, h, h_new, others, x, noise):
        known = step.values(theta, problem.carry.tree(h), others, x, noise)
        known.update(zip(step.new, jax.tree.leaves(problem.carry.tree(h_new)), strict=True))
        return step.output.unflatten(evaluate(ops, known, step.ys))

    leaves = [bool(reached_from(ops, [k]) & set(step.ys)) for k in step.new]
    return Output(reads_old, compute, np.repeat(leaves, problem.carry.sizes))


class Member(NamedTuple):
    """A part of the params with the part of the carry that is its own."""

    theta: list[int]  # numbers of values, as in ``TracedStep``
    old: list[int]
    new: list[int]


def members_of(problem: Problem, step: TracedStep) -> list[Member]:
    """The members of a chain that carry something, in their order; of another cell one, which is all of it.

    A chain is told by what it is: params and carry are tuples of as many entries, as ``jr.chain`` keeps them, and what
    a later entry holds reaches no earlier one.
    """
    places, first = [], 0
    for kind in problem.params.kinds:
        count = is_inexact(kind) * (2 if jnp.issubdtype(kind.dtype, jnp.complexfloating) else 1)
        places.append(np.arange(first, first + count))
        first += count
    params = problem.params.treedef.unflatten(places)
    carry = problem.carry.treedef.unflatten(range(len(problem.carry.kinds)))
    members = []
    for own, kept in _entries(params, carry):
        theta = [step.theta[i] for of_leaf in jax.tree.leaves(own) for i in of_leaf]
        leaves = jax.tree.leaves(kept)
        if leaves:
            members.append(Member(theta, [step.old[i] for i in leaves], [step.new[i] for i in leaves]))
    for place, member in enumerate(members):
        ahead = {k for before in members[:place] for k in before.new}
        if reached_from(step.ops, [*member.theta, *member.old]) & ahead:
            return [Member(step.theta, step.old, step.new)]
    return members


def _entries(params: Any, carry: Any) -> list[tuple[Any, Any]]:
    if type(params) is tuple and type(carry) is tuple and len(params) == len(carry):
        return [pair for entry in zip(params, carry, strict=True) for pair in _entries(*entry)]
    return [(params, carry)]
