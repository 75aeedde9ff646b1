"""``lax.scan`` whose gradients leave the loop: the plan behind ``jr.scan``.

Autodiff of a scan adds into the gradient of every weight at every step: a product, a weight-sized sum and, on a mesh, a
collective inside the loop. None of that depends on the recurrence. Here the step's derivative is split: what needs
the carry's tangent stays in the loop, the rest runs for all steps at once, before the tangent loop and, transposed,
after the backward one:

    forward    (carry, x_t) -> (carry, y_t), saved_t                          scan
    outside    ∂(everything but the carry), saved -> s_t                      one product over all t
    tangent    (∂carry, s_t, saved_t) -> (∂carry, ∂y_t)                       scan, linear

For a_t = W_hh h_{t-1} + W_xh x_t + b the tangent is ∂a_t = W_hh ∂h_{t-1} + s_t with s_t = ∂W_hh h_{t-1} + ∂W_xh x_t +
W_xh ∂x_t + ∂b, so that the backward loop yields d_t = ∂L/∂a_t and ∂L/∂W_hh = Σ_t h_{t-1}ᵀ d_t is one product.

The rule is a ``jax.custom_jvp`` made of scans, so forward mode, reverse mode, their compositions and ``vmap`` all work.

Who does what: ``program.py`` traces the step as a flat list of operations; ``fuse.py`` multiplies once where
products share an operand; ``save.py`` says what the forward scan saves; ``hoist.py`` what leaves the tangent
loop; ``transpose.py`` and ``contract.py`` give the products inside and outside their fastest form. The rules by
which ``Plan`` chooses stand in ``plan.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxrnn._base import PyTree, flatten
from jaxrnn.planning.contract import contracted_once
from jaxrnn.planning.explanation import ScanExplanation
from jaxrnn.planning.fuse import fuse_products
from jaxrnn.planning.hoist import leave_the_loop, narrow_values, split_first, spread_constants
from jaxrnn.planning.plan import Plan
from jaxrnn.planning.save import smallest_to_save
from jaxrnn.planning.transpose import ready_to_transpose, weights_on_the_left
from jaxrnn.programs.program import Program, evaluate, needed_for, reached_from
from jaxrnn.programs.tracing import trace


def scan_deferred(
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    carry: PyTree,
    xs: PyTree,
    *,
    reverse: bool,
    unroll: int,
    plan: Plan,
    said: ScanExplanation,
) -> tuple[PyTree, PyTree]:
    """``jax.lax.scan(body, carry, xs)``, its gradients contracted outside the loop."""
    carry = jax.tree.map(_strong, carry)
    carry_leaves, carry_tree = flatten(carry)
    xs_leaves, xs_tree = flatten(xs)
    if xs_leaves[0].shape[0] == 0:
        return jax.lax.scan(body, carry, xs, reverse=reverse, unroll=unroll)
    n_carry = len(carry_leaves)
    y_trees = []

    def step(*leaves):
        new, y = body(carry_tree.unflatten(leaves[:n_carry]), xs_tree.unflatten(leaves[n_carry:]))
        y_leaves, y_tree = flatten(y)
        y_trees.append(y_tree)
        return [*jax.tree.leaves(new), *y_leaves]

    program, reason = trace(step, *carry_leaves, *map(_one_step, xs_leaves))
    if program is None:
        said.plain_because = reason
        return jax.lax.scan(body, carry, xs, reverse=reverse, unroll=unroll)
    if plan.fuse:
        program, said.fused = fuse_products(program)
    loop = _Loop(program, len(program.consts), n_carry, reverse, unroll, plan, said)
    outputs = _differentiable(loop)(*program.consts.values(), *carry_leaves, *xs_leaves)
    return carry_tree.unflatten(outputs[:n_carry]), y_trees[0].unflatten(outputs[n_carry:])


def map_over_time(
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    carry: PyTree,
    xs: PyTree,
    *,
    reverse: bool,
    unroll: int,
    plan: Plan,
    said: ScanExplanation,
) -> tuple[PyTree, PyTree]:
    """The same for a body that carries nothing: all steps at once.

    Step by step where that would fill memory with what is large within a step alone, and where constants are narrower
    than float32, whose gradients would be summed over all steps in their own dtype.
    """
    if jax.tree.leaves(xs)[0].shape[0]:
        leaves, treedef = flatten(xs)
        program, _ = trace(
            lambda *leaves: jax.tree.leaves(body(carry, treedef.unflatten(leaves))[1]), *map(_one_step, leaves)
        )
        if program is None or narrow_values(program, list(program.consts)) or _swells(program):
            return scan_deferred(body, carry, xs, reverse=reverse, unroll=unroll, plan=plan, said=said)
    return carry, jax.vmap(lambda x: body(carry, x)[1])(xs)


def _swells(program: Program) -> bool:
    """Whether a step makes arrays much larger than those that enter and leave it."""
    enter_and_leave = sum(map(program.size, [*program.inputs, *program.outputs]))
    made = reached_from(program.ops, program.inputs)
    return max(map(program.size, made), default=0) > 4 * enter_and_leave


class _Loop(NamedTuple):
    program: Program
    n_consts: int
    n_carry: int
    reverse: bool
    unroll: int
    plan: Plan
    said: ScanExplanation

    def split(self, args: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """consts, carry and xs out of one flat list."""
        a, b = self.n_consts, self.n_consts + self.n_carry
        return list(args[:a]), list(args[a:b]), list(args[b:])

    def step(self, consts: Sequence[Any], carry: Sequence[Any], x: Sequence[Any]) -> list[Any]:
        known = dict(zip(self.program.consts, consts, strict=True))
        known.update(zip(self.program.inputs, [*carry, *x], strict=True))
        return evaluate(self.program.ops, known, self.program.outputs)


def _differentiable(loop: _Loop) -> Callable[..., list[Any]]:
    @jax.custom_jvp
    def run(*args):
        consts, carry, xs = loop.split(args)
        program = loop.program._replace(consts=dict(zip(loop.program.consts, consts, strict=True)))
        return _scan_forward(program, carry, xs, loop)

    def rule(primals, tangents):
        consts, carry, xs = loop.split(primals)
        d_consts, d_carry, d_xs = loop.split(tangents)
        moving = _Moving(
            consts=[i for i, d in enumerate(d_consts) if _moves(d)],
            carry=[i for i, a in enumerate(carry) if _is_float(a)],
            xs=[i for i, d in enumerate(d_xs) if _moves(d)],
        )
        d_carry = [jnp.zeros_like(carry[i]) if not _moves(d_carry[i]) else d_carry[i] for i in moving.carry]
        d_consts, d_xs = [d_consts[i] for i in moving.consts], [d_xs[i] for i in moving.xs]
        joint = _trace_with_tangents(loop, moving, consts, carry, xs)

        constants = joint.program.consts | dict(zip(joint.consts, consts, strict=True))
        forward = joint.program._replace(
            ops=needed_for(joint.program.ops, [*joint.outputs, *joint.saved]),
            consts=constants,
            inputs=[*joint.carry, *joint.xs],
            outputs=[*joint.outputs, *joint.saved],
        )
        outputs = _scan_forward(forward, carry, xs, loop)
        n_outputs = len(joint.outputs)
        outputs, saved = outputs[:n_outputs], outputs[n_outputs:]

        tangent = joint.program._replace(
            ops=needed_for(joint.program.ops, joint.d_outputs, given=joint.saved),
            consts=constants | dict(zip(joint.d_consts, d_consts, strict=True)),
            inputs=[*joint.d_carry, *joint.d_xs, *joint.xs, *joint.saved],
            outputs=joint.d_outputs,
        )
        d_outputs = iter(_scan_tangent(tangent, joint.d_consts, d_carry, [*d_xs, *xs, *saved], loop))
        return outputs, [next(d_outputs) if _is_float(a) else _no_tangent(a) for a in outputs]

    run.defjvp(rule, symbolic_zeros=True)
    return run


class _Moving(NamedTuple):
    """Which arguments have tangents, by place."""

    consts: list[int]
    carry: list[int]
    xs: list[int]


class _Joint(NamedTuple):
    """The step together with its tangent, as one program; all fields hold numbers of its values."""

    program: Program
    consts: list[int]
    carry: list[int]
    xs: list[int]
    outputs: list[int]
    d_consts: list[int]
    d_carry: list[int]
    d_xs: list[int]
    d_outputs: list[int]
    saved: list[int]  # what the tangent needs of the step


def _trace_with_tangents(loop: _Loop, moving: _Moving, consts: list, carry: list, xs: list) -> _Joint:
    x = [_one_step(a) for a in xs]
    primals = [*consts, *carry, *x]
    where = [*moving.consts]
    where += [loop.n_consts + i for i in moving.carry]
    where += [loop.n_consts + loop.n_carry + i for i in moving.xs]

    def step_and_tangent(primals, tangents):
        def floats(*moved):
            args = list(primals)
            for i, value in zip(where, moved, strict=True):
                args[i] = value
            return [a for a in loop.step(*loop.split(args)) if _is_float(a)]

        return loop.step(*loop.split(primals)), *jax.jvp(floats, [primals[i] for i in where], tangents)

    program, (shapes, _, _) = trace(step_and_tangent, primals, [primals[i] for i in where])
    assert program is not None, "the tangent of a divisible step is divisible"
    numbers = iter(program.inputs)
    take = lambda count: [next(numbers) for _ in range(count)]  # noqa: E731
    consts_n, carry_n, xs_n = take(len(consts)), take(len(carry)), take(len(xs))
    d_consts, d_carry, d_xs = take(len(moving.consts)), take(len(moving.carry)), take(len(moving.xs))

    n_floats = sum(map(_is_float, shapes))
    outputs = program.outputs[: len(shapes)]
    first_tangent = len(program.outputs) - n_floats
    beside, d_outputs = program.outputs[len(shapes) : first_tangent], program.outputs[first_tangent:]

    moved = reached_from(program.ops, [*d_consts, *d_carry, *d_xs])
    # The tangent's own copy of each output, where that is one: an inner cond or scan gives both at once.
    copies = iter(beside)
    outputs = [
        copy if _is_float(shape) and (copy := next(copies)) not in moved else ref
        for ref, shape in zip(outputs, shapes, strict=True)
    ]
    tangent_ops = needed_for([op for op in program.ops if moved.intersection(op.outputs)], d_outputs)
    wanted = [ref for op in tangent_ops for ref in op.inputs if ref not in moved]
    wanted += [ref for ref in d_outputs if ref not in moved]
    varying = reached_from(program.ops, [*carry_n, *xs_n])
    wanted = [ref for ref in dict.fromkeys(wanted) if ref in varying and ref not in xs_n]
    saved = smallest_to_save(program, carry_n, xs_n, wanted) if loop.plan.recompute else wanted
    loop.said.saved = [str(program.kinds[n].shape) for n in saved]
    return _Joint(program, consts_n, carry_n, xs_n, outputs, d_consts, d_carry, d_xs, d_outputs, saved)


def _scan_forward(program: Program, carry: Sequence[Any], xs: Sequence[Any], loop: _Loop) -> list[Any]:
    program, leaving, hoisted, _ = leave_the_loop(program, len(carry), loop.plan.hoists)
    loop.said.hoisted = hoisted
    program, loop.said.turned = weights_on_the_left(program, program.kinds.keys() - leaving, loop.plan.turns)
    return _scan_program(program, carry, xs, loop, leaving=leaving)


def _scan_tangent(
    tangent: Program, d_consts: Sequence[int], d_carry: Sequence[Any], xs: Sequence[Any], loop: _Loop
) -> list[Any]:
    """The linear scan: what does not depend on the carry's tangent is done for all steps at once, before the loop.

    Both parts are checkpointed: what is cheap is computed again in the backward pass, beside its use.
    """
    tangent = split_first(spread_constants(tangent, d_consts), len(d_carry))
    carried = reached_from(tangent.ops, tangent.inputs[: len(d_carry)])
    weights = tangent.fixed() - reached_from(tangent.ops, d_consts)
    tangent = ready_to_transpose(tangent, carried, weights)
    in_narrow = narrow_values(tangent, d_consts)
    tangent, leaving, loop.said.contracted, loop.said.added_in_loop = leave_the_loop(
        tangent, len(d_carry), loop.plan.contracts, narrow=in_narrow
    )
    tangent = contracted_once(tangent, leaving)
    remat = loop.plan.recompute
    return _scan_program(tangent, d_carry, xs, loop, leaving=leaving, in_loop=in_narrow, remat=remat)


def _scan_program(
    program: Program,
    carry: Sequence[Any],
    xs: Sequence[Any],
    loop: _Loop,
    *,
    leaving: Collection[int] = (),
    in_loop: frozenset[int] = frozenset(),
    remat: bool = False,
) -> list[Any]:
    """Scan a program whose inputs are the carry and one step's x; outputs: the new carry, then what is stacked.

    The values ``leaving`` the loop are computed for all steps at once. Values in ``in_loop`` are computed at every step
    though they depend on constants alone.
    """
    n_carry = len(carry)
    fixed = _fixed_values(program, in_loop)
    stacked_outputs = [n for n in program.outputs[n_carry:] if n not in leaving]
    carry_numbers, x_numbers = program.inputs[:n_carry], program.inputs[n_carry:]
    varying_ops = [op for op in program.ops if not fixed.keys() & set(op.outputs)]
    loop_outputs = [*program.outputs[:n_carry], *stacked_outputs]
    inside = needed_for(varying_ops, loop_outputs, given=leaving)
    used = {n for op in inside for n in op.inputs}.union(loop_outputs)
    checkpoint = functools.partial(jax.checkpoint, prevent_cse=False) if remat else lambda f: f

    frontier = sorted(used.union(program.outputs).intersection(leaving))
    outside = needed_for(varying_ops, frontier)

    @checkpoint
    def before_the_loop(fixed, xs):
        def one_step(x):
            return evaluate(outside, fixed | dict(zip(x_numbers, x, strict=True)), frontier)

        return jax.vmap(one_step)(xs)

    ready = before_the_loop(fixed, list(xs)) if frontier else []
    used_xs = [(number, a) for number, a in zip(x_numbers, xs, strict=True) if number in used]
    enter = [(number, a) for number, a in zip(frontier, ready, strict=True) if number in used]
    stacked_numbers = [number for number, _ in [*enter, *used_xs]]
    fixed_inside = {number: a for number, a in fixed.items() if number in used}

    @checkpoint
    def step(fixed, carry, stacked):
        known = fixed | dict(zip(carry_numbers, carry, strict=True)) | dict(zip(stacked_numbers, stacked, strict=True))
        values = evaluate(inside, known, loop_outputs)
        return values[:n_carry], values[n_carry:]

    end, ys = jax.lax.scan(
        functools.partial(step, fixed_inside),
        list(carry),
        [a for _, a in [*enter, *used_xs]],
        length=xs[0].shape[0],
        reverse=loop.reverse,
        unroll=loop.unroll,
    )
    stacked = dict(zip(frontier, ready, strict=True)) | dict(zip(stacked_outputs, ys, strict=True))
    return [*end, *(stacked[n] for n in program.outputs[n_carry:])]


def _fixed_values(program: Program, in_loop: frozenset[int]) -> dict[int, Any]:
    """Every value that depends on the constants alone, computed once."""
    varying = reached_from(program.ops, {*program.inputs, *in_loop})
    from_consts = reached_from(program.ops, program.consts)
    numbers = [n for op in program.ops for n in op.outputs if n in from_consts and n not in varying]
    ops = needed_for([op for op in program.ops if not varying.intersection(op.outputs)], numbers)
    return program.consts | dict(zip(numbers, evaluate(ops, program.consts, numbers), strict=True))


def _one_step(a: Any) -> Any:
    return jax.eval_shape(lambda a: a[0], a)


def _strong(a: Any) -> Any:
    """An array without a weak type, as a scan's carry must be."""
    return jnp.asarray(a, dtype=jnp.result_type(a)) if _is_float(jnp.asarray(a)) else jnp.asarray(a)


def _is_float(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jnp.inexact)


def _moves(tangent: Any) -> bool:
    return not isinstance(tangent, SymbolicZero) and tangent.dtype != jax.dtypes.float0


def _no_tangent(a: Any) -> Any:
    return SymbolicZero(jax.typeof(a).to_tangent_aval())
