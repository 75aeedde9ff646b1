"""A cell as online rules see it: one sequence, its carry a vector of S numbers, its params a list of real arrays."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._base import Cell, PyTree, flatten, is_inexact, is_narrow
from jaxrnn._checks import check_carry_kept, check_pair
from jaxrnn._dtypes import accumulator
from jaxrnn.programs.program import Op, Program, needed_for, reached_from
from jaxrnn.programs.tracing import flat_program, inner_programs, is_call

Theta = list[Any]  # the real arrays of the params: of a complex one its real, then its imaginary part


class Params(NamedTuple):
    """The params of a cell taken apart: real arrays by which one differentiates, and the rest."""

    treedef: Any
    kinds: list[Any]  # of each leaf, its type

    def split(self, params: PyTree) -> tuple[Theta, list[Any]]:
        """``(theta, others)``. Narrow floats are widened, so that sums over time do not stall."""
        theta, others = [], []
        for a in jax.tree.leaves(params):
            if not is_inexact(a):
                others.append(a)
            elif jnp.iscomplexobj(a):
                theta += [jnp.real(a), jnp.imag(a)]
            else:
                theta.append(jnp.asarray(a, jnp.float32) if is_narrow(a) else jnp.asarray(a))
        return theta, others

    def join(self, theta: Sequence[Any], others: Sequence[Any]) -> PyTree:
        """The params, their dtypes as they were."""
        real, rest, leaves = iter(theta), iter(others), []
        for kind in self.kinds:
            if not is_inexact(kind):
                leaves.append(next(rest))
            elif jnp.issubdtype(kind.dtype, jnp.complexfloating):
                leaves.append(jax.lax.complex(next(real), next(real)))
            else:
                leaves.append(next(real).astype(kind.dtype))
        return self.treedef.unflatten(leaves)

    def gradient(self, theta: Sequence[Any]) -> PyTree:
        """Derivatives by the real arrays as ``jax.grad`` gives them: by a complex one ∂L/∂re - i ∂L/∂im."""
        real, leaves = iter(theta), []
        for kind in self.kinds:
            if not is_inexact(kind):
                leaves.append(jnp.zeros(kind.shape, kind.dtype))
            elif jnp.issubdtype(kind.dtype, jnp.complexfloating):
                re, im = next(real), next(real)
                leaves.append(jax.lax.complex(re, -im).astype(kind.dtype))
            else:
                leaves.append(next(real).astype(kind.dtype))
        return self.treedef.unflatten(leaves)


def params_of(params: PyTree) -> Params:
    leaves, treedef = flatten(params)
    return Params(treedef, [jax.typeof(a) if not isinstance(a, jax.ShapeDtypeStruct) else a for a in leaves])


class Carry(NamedTuple):
    """The carry of one sequence as a vector: leaf by leaf, of a complex one the real, then the imaginary parts."""

    treedef: Any
    kinds: list[Any]
    dtype: Any  # of the vector

    @property
    def size(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        return [math.prod(k.shape) * (1 + jnp.issubdtype(k.dtype, jnp.complexfloating)) for k in self.kinds]

    def flat(self, carry: PyTree, batch_shape: tuple[int, ...] = ()) -> Any:
        """(*B, S)"""
        parts = []
        for a, kind in zip(jax.tree.leaves(carry), self.kinds, strict=True):
            a = jnp.reshape(a, (*batch_shape, math.prod(kind.shape)))
            parts += [part.astype(self.dtype) for part in ((a.real, a.imag) if jnp.iscomplexobj(a) else (a,))]
        return jnp.concatenate(parts, -1) if parts else jnp.zeros((*batch_shape, 0), self.dtype)

    def tree(self, h: Any) -> PyTree:
        parts = []
        for part, kind in zip(jnp.split(h, np.cumsum(self.sizes)[:-1]) if self.kinds else [], self.kinds, strict=True):
            if jnp.issubdtype(kind.dtype, jnp.complexfloating):
                part = jax.lax.complex(*jnp.split(part.astype(jnp.finfo(kind.dtype).dtype), 2))
            parts.append(part.reshape(kind.shape).astype(kind.dtype))
        return self.treedef.unflatten(parts)


def carry_of(carry: PyTree) -> Carry:
    """Of a carry of real and complex numbers alone, of one sequence."""
    leaves, treedef = flatten(carry)
    return Carry(treedef, leaves, accumulator(*(jnp.finfo(a.dtype).dtype for a in leaves)) if leaves else jnp.float32)


class Problem(NamedTuple):
    """The step of one sequence, and where it starts."""

    who: str
    cell: Cell
    params: Params
    carry: Carry
    theta: list[Any]  # types: those of the real arrays of the params
    others: list[Any]  # of the rest of them
    x: PyTree  # of the input of one sequence
    noise: PyTree  # of its noise; None: none

    def step(self, theta: Sequence[Any], h: Any, others: Sequence[Any], x: PyTree, noise: PyTree) -> tuple[Any, PyTree]:
        """``(h_t, y_t)`` from h_{t-1}, a vector."""
        after, y = self.tree_step(theta, h, others, x, noise)
        return self.carry.flat(after), y

    def tree_step(
        self, theta: Sequence[Any], h: Any, others: Sequence[Any], x: PyTree, noise: PyTree
    ) -> tuple[PyTree, PyTree]:
        """The same, h_t as the cell returns it."""
        before = self.carry.tree(h)
        extra = () if noise is None else (noise,)
        after, y = check_pair(self.who, self.cell.step(self.params.join(theta, others), before, x, *extra))
        check_carry_kept(self.who, before, after)
        return after, y

    def initial(self, theta: Sequence[Any], others: Sequence[Any]) -> Any:
        """h_0, a vector."""
        return self.carry.flat(self.cell.initial_carry(self.params.join(theta, others), ()))

    @property
    def h(self) -> Any:
        return jax.ShapeDtypeStruct((self.carry.size,), self.carry.dtype)


class Output(NamedTuple):
    """What a step puts out, as a function of its new carry too, as far as its program computes it from that."""

    reads_old: bool  # whether it depends on the old carry otherwise than through the new one
    compute: Callable[..., PyTree]  # (theta, h_{t-1}, h_t, others, x, noise) -> y_t
    reads: Any = None  # (S,) booleans: which numbers of the new carry it may depend on; None: any


class Weights(NamedTuple):
    """A product of a vector and a matrix of params: by the matrix its derivative is an outer product."""

    leaf: int  # of the params
    place: int  # of the matrix among the operands
    axis: int  # of the matrix, along which it is multiplied by the vector
    made: Any  # the type of what the product gives


class CutStep(NamedTuple):
    """A step whose products are cut, and stages of its new carry: what they give, δ more, comes as from outside."""

    operands: list[int]  # of each product of the carry, the place of the operand that depends on it
    params: list[Any]  # of its primitive
    kinds: list[list[Any]]  # of its operands
    made: list[Any]  # the type of what it gives
    weights: list[Weights]  # products of params that stand in such products alone
    stages: list[Stage]
    run: Callable[..., Any]  # (theta, h, δs, δs of weights or None, others, x, noise) -> (h_t, the operands), and
    # (the other operands, the vectors); None: the weights' products are not cut; δs: of products, then of stages

    @property
    def deltas(self) -> list[Any]:
        """The types of the δs."""
        return [*self.made, *(stage.kind for stage in self.stages)]


class Stage(NamedTuple):
    """A leaf of the new carry from which others are computed, as h_t of an LSTM is from c_t."""

    leaf: int
    kind: Any


def cut_step(problem: Problem, *, of_carry: bool = True, of_new: bool = False) -> CutStep:
    """The step with its products cut: those of the weights, and of the carry and something else.

    Of the latter those one operand of which is made of the carry and the input alone, without a product that is cut
    itself. What is left between them is mostly elementwise, so its Jacobian has few entries, and that of the product is
    its other operand. ``of_new``: leaves of the new carry are cut off what is computed from them.
    """
    arguments = (problem.theta, problem.h, problem.others, problem.x, problem.noise)
    leaves, tree = flatten(arguments)

    def whole(*arrays):
        return jax.tree.leaves(problem.tree_step(*tree.unflatten(arrays))[0])

    program, _, _ = flat_program(whole, *leaves, flattens=is_call)
    program = program._replace(ops=needed_for(program.ops, program.outputs))
    program, staged = _in_stages(program) if of_new else (program, {})
    n = len(problem.theta)
    of_theta = reached_from(program.ops, program.inputs[:n])
    moving = reached_from(program.ops, [program.inputs[n], *staged.values()])
    behind: set[int] = set()  # what depends on a product that is cut
    cuts = {}
    for index, op in enumerate(program.ops if of_carry else ()):
        mine = [i for i, k in enumerate(op.inputs) if k in moving]
        if op.name == "dot_general" and len(mine) == 1:
            operand = op.inputs[mine[0]]
            if operand not in of_theta and operand not in behind:
                cuts[index] = mine[0]
                behind.update(op.outputs)
        if behind.intersection(op.inputs):
            behind.update(op.outputs)
    return _cut(problem, program, tree, cuts, _weights_of(program, n), staged)


def _in_stages(program: Program) -> tuple[Program, dict[int, int]]:
    """The program with what is computed from an output reading a value of its own; these values, by the outputs."""
    new, kinds = program.outputs, dict(program.kinds)
    staged = {}
    for number in {k for op in program.ops for k in op.outputs}.intersection(new):
        others = reached_from(program.ops, [number]) - {number}
        is_real = not jnp.issubdtype(kinds[number].dtype, jnp.complexfloating)
        if is_real and new.count(number) == 1 and others.intersection(new):
            staged[number] = max(kinds) + 1
            kinds[staged[number]] = kinds[number]
    ops = [op._replace(inputs=tuple(staged.get(k, k) for k in op.inputs)) for op in program.ops]
    return program._replace(ops=ops, kinds=kinds), staged


def _weights_of(program: Program, n: int) -> dict[int, Weights]:
    """Of the first n inputs those matrices that are multiplied by vectors and do nothing else, by the operation."""
    leaf_of = {number: leaf for leaf, number in enumerate(program.inputs[:n])}
    found, elsewhere = {}, set(program.outputs)
    for index, op in enumerate(program.ops):
        for place, number in enumerate(op.inputs):
            if number not in leaf_of:
                continue
            axis = _multiplied_axis(op, place, [program.kinds[k] for k in op.inputs])
            if axis is None or index in found:
                elsewhere.add(number)
            else:
                found[index] = Weights(leaf_of[number], place, axis, program.kinds[op.outputs[0]])
    return {index: w for index, w in found.items() if program.inputs[w.leaf] not in elsewhere}


def _multiplied_axis(op: Op, place: int, kinds: Sequence[Any]) -> int | None:
    """The axis of a matrix along which it is multiplied by a vector; None: this is another operation."""
    if op.name != "dot_general" or (len(kinds[place].shape), len(kinds[1 - place].shape)) != (2, 1):
        return None
    contracted, batch = op.params["dimension_numbers"]
    return contracted[place][0] if len(contracted[place]) == 1 and not batch[0] else None


def _cut(
    problem: Problem,
    program: Program,
    tree: Any,
    cuts: dict[int, int],
    weights: dict[int, Weights],
    staged: dict[int, int],
) -> CutStep:
    ops = [program.ops[index] for index in cuts]
    kinds = [[program.kinds[k] for k in op.inputs] for op in ops]
    made = [program.kinds[op.outputs[0]] for op in ops]
    in_order = [k for op in program.ops for k in op.outputs if k in staged]
    stages = [Stage(program.outputs.index(k), program.kinds[k]) for k in in_order]

    def run(theta, h, deltas, of_weights, others, x, noise):
        values = program.consts | dict(zip(program.inputs, jax.tree.leaves((theta, h, others, x, noise)), strict=True))
        rest, more, of_stages = iter(deltas), iter(of_weights or ()), iter(deltas[len(made) :])
        operands, coefficients, vectors = [], [], []
        for index, op in enumerate(program.ops):
            given, added = [values[k] for k in op.inputs], []
            if index in cuts:
                mine = cuts[index]
                operands.append(given[mine])
                coefficients.append(given[1 - mine])
                given[mine] = held(given[mine], h)
                added.append(next(rest))
            if of_weights is not None and index in weights:
                place = weights[index].place
                vectors.append(given[1 - place])
                given[place] = held(given[place], h)
                added.append(next(more))
            results = op.run(*given)
            if added:
                results = [sum(added, results[0])]
            values.update(zip(op.outputs, results, strict=True))
            for k in op.outputs:
                if k in staged:
                    values[staged[k]] = jax.lax.stop_gradient(values[k]) + next(of_stages)
        new = problem.carry.treedef.unflatten([values[k] for k in program.outputs])
        return [problem.carry.flat(new), *operands], (coefficients, vectors)

    weights_of = list(weights.values())
    return CutStep(list(cuts.values()), [op.params for op in ops], kinds, made, weights_of, stages, run)


@jax.custom_jvp
def held(a: Any, by: PyTree) -> Any:
    """``a``, a constant to the derivative in which ``by`` moves; to one that is taken of that it moves as it does."""
    return a


@functools.partial(held.defjvp, symbolic_zeros=True)
def _held_jvp(primals: Any, tangents: Any) -> Any:
    return primals[0], jax.custom_derivatives.zero_from_primal(primals[0], symbolic_zeros=True)


def shapes(tree: PyTree) -> PyTree:
    """Arrays as their types."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), tree)


def check_backward(problem: Problem) -> None:
    """A gradient goes back through the step, as every rule takes it: no open loop and no callback is in the way."""
    arguments = (problem.theta, problem.h, problem.others, problem.x, problem.noise)
    jax.eval_shape(problem.step, *arguments)  # where this fails the cell itself says why

    def pulled(theta, h, *rest):
        made, pull = jax.vjp(lambda theta, h: problem.step(theta, h, *rest), theta, h)
        return pull(made)

    try:
        jax.eval_shape(pulled, *arguments)
    except (TypeError, ValueError, NotImplementedError) as error:
        said = str(error).split(". ")[0]
        raise TypeError(
            f"{problem.who}: every rule goes back through the cell's step, and JAX cannot: {said}; "
            f"make a loop jax.lax.scan, or give the function that is in the way a jax.custom_jvp."
        ) from error


def check_forward_mode(problem: Problem) -> None:
    """The new carry has tangents: no custom_vjp function makes it, whose rule is for the way back alone."""
    arguments = (problem.theta, problem.h, problem.others, problem.x, problem.noise)
    leaves, tree = flatten((problem.theta, problem.h))
    rest, tree_of_rest = flatten(arguments[2:])

    def pushed(*arrays):
        n = len(leaves)
        others = tree_of_rest.unflatten(arrays[2 * n :])

        def step(*moving):
            theta, h = tree.unflatten(moving)
            return problem.step(theta, h, *others)[0]

        return [jax.jvp(step, arrays[:n], arrays[n : 2 * n])[1]]

    try:
        program, _, _ = flat_program(pushed, *leaves, *leaves, *rest, flattens=is_call)
        ops = needed_for(program.ops, program.outputs)
        names = {op.name for op in ops}
        todo = [inner for op in ops for inner in inner_programs(op.params)]
        while todo:
            for eqn in todo.pop().eqns:
                names.add(eqn.primitive.name)
                todo += inner_programs(eqn.params)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        names = {"custom_lin"}
    if "custom_lin" in names:  # what JAX makes of such a function's tangent, and cannot compile
        raise TypeError(
            f"{problem.who}: this rule takes tangents through the step, and the cell's step has no forward mode: a "
            f"custom_vjp function stands in it, as jr.cotangent_clip puts one there; give the cell without it, a "
            f"jax.custom_jvp in its place, or rule='tbptt'."
        )
