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
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxrnn._base import PyTree, flatten
from jaxrnn.running._program import Op, Program, Ref, evaluate, needed_for, reached_from, trace

HEAVY = ("dot_general", "conv_general_dilated")  # what pays for leaving the loop
SUMS = ("add", "add_any")
ELEMENTWISE = (*SUMS, "sub", "mul", "div")  # where JAX stretches axes of size 1
OPAQUE = ("custom_vjp_call", "custom_vjp_call_jaxpr")  # the user's own backward rule: left to autodiff


def scan_deferred(
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], carry: PyTree, xs: PyTree, *, reverse: bool, unroll: int
) -> tuple[PyTree, PyTree]:
    """``jax.lax.scan(body, carry, xs)``, its gradients contracted outside the loop."""
    carry = jax.tree.map(lambda a: jnp.asarray(a, dtype=a.dtype) if _is_float(a) else a, carry)  # no weak types
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

    program, _ = trace(step, *carry_leaves, *map(_one_step, xs_leaves))
    if program.effects or any(op.name in OPAQUE for op in program.ops):
        return jax.lax.scan(body, carry, xs, reverse=reverse, unroll=unroll)
    loop = _Loop(program, len(program.consts), n_carry, reverse, unroll)
    outputs = _differentiable(loop)(*program.consts.values(), *carry_leaves, *xs_leaves)
    return carry_tree.unflatten(outputs[:n_carry]), y_trees[0].unflatten(outputs[n_carry:])


class _Loop(NamedTuple):
    program: Program
    n_consts: int
    n_carry: int
    reverse: bool
    unroll: int

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
        return _scan_program(program, carry, xs, loop, outside=False)

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
        forward = Program(
            needed_for(joint.program.ops, [*joint.outputs, *joint.saved]),
            constants,
            [*joint.carry, *joint.xs],
            [*joint.outputs, *joint.saved],
            effects=False,
        )
        outputs = _scan_program(forward, carry, xs, loop, outside=False)
        n_outputs = len(joint.outputs)
        outputs, saved = outputs[:n_outputs], outputs[n_outputs:]

        given = set(joint.saved)
        tangent = Program(
            needed_for([op for op in joint.program.ops if not given.intersection(op.outputs)], joint.d_outputs),
            constants | dict(zip(joint.d_consts, d_consts, strict=True)),
            [*joint.d_carry, *joint.d_xs, *joint.xs, *joint.saved],
            joint.d_outputs,
            effects=False,
        )
        tangent = _spread_constants(tangent, joint.d_consts)
        tangent_loop = loop._replace(n_carry=len(d_carry))
        d_outputs = iter(_scan_program(tangent, d_carry, [*d_xs, *xs, *saved], tangent_loop, outside=True))
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
    outputs: list[Ref]
    d_consts: list[int]
    d_carry: list[int]
    d_xs: list[int]
    d_outputs: list[Ref]
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
    numbers = iter(program.inputs)
    take = lambda count: [next(numbers) for _ in range(count)]  # noqa: E731
    consts_n, carry_n, xs_n = take(len(consts)), take(len(carry)), take(len(xs))
    d_consts, d_carry, d_xs = take(len(moving.consts)), take(len(moving.carry)), take(len(moving.xs))

    n_floats = sum(map(_is_float, shapes))
    outputs = program.outputs[: len(shapes)]
    beside, d_outputs = program.outputs[len(shapes) : -n_floats], program.outputs[-n_floats:]

    moved = reached_from(program.ops, [*d_consts, *d_carry, *d_xs])
    # The tangent's own copy of each output, where that is one: an inner cond or scan gives both at once.
    copies = iter(beside)
    outputs = [
        copy if _is_float(shape) and (copy := next(copies)) not in moved else ref
        for ref, shape in zip(outputs, shapes, strict=True)
    ]
    varying = reached_from(program.ops, [*carry_n, *xs_n])
    tangent_ops = needed_for([op for op in program.ops if moved.intersection(op.outputs)], d_outputs)
    wanted = [ref for op in tangent_ops for ref in op.needs] + [ref for ref in d_outputs if isinstance(ref, int)]
    saved = dict.fromkeys(ref for ref in wanted if ref not in moved and ref in varying and ref not in xs_n)
    return _Joint(program, consts_n, carry_n, xs_n, outputs, d_consts, d_carry, d_xs, d_outputs, list(saved))


def _spread_constants(tangent: Program, d_consts: Sequence[int]) -> Program:
    """The tangent with each constant's tangent spread to the full shape of the sum or product that it enters.

    The spreading leaves the loop, being constant, and with it its transpose, the sum over the batch: the backward loop
    then adds up in the shape of the batch, each device its own part.
    """
    from_consts = reached_from(tangent.ops, d_consts) - reached_from(tangent.ops, tangent.inputs)
    shapes = {op.outputs[0]: op.kind.shape for op in tangent.ops if op.outputs}
    number = tangent.fresh()
    ops: list[Op] = []
    for op in tangent.ops:
        inputs = list(op.inputs)
        for place, ref in enumerate(op.inputs):
            small = isinstance(ref, int) and ref in from_consts and shapes.get(ref, op.kind.shape) != op.kind.shape
            if op.name in ELEMENTWISE and small and op.outputs[0] not in from_consts:
                ops.append(Op("spread", _spreader(op.kind), (ref,), (number,), op.kind))
                inputs[place], number = number, number + 1
        ops.append(op._replace(inputs=tuple(inputs)))
    return tangent._replace(ops=ops)


def _spreader(kind: Any) -> Callable[[Any], list[Any]]:
    sharding = kind.sharding if any(kind.sharding.spec) else None

    def spread(a):
        return [jax.lax.broadcast_in_dim(a, kind.shape, range(a.ndim), out_sharding=sharding)]

    return spread


def _scan_program(
    program: Program, carry: Sequence[Any], xs: Sequence[Any], loop: _Loop, *, outside: bool
) -> list[Any]:
    """Scan a program whose inputs are the carry and one step's x; outputs: the new carry, then what is stacked.

    With ``outside`` the products that do not depend on the carry are done for all steps at once.
    """
    n_carry = len(carry)
    program, leaving = _leave_the_loop(program, n_carry) if outside else (program, set())
    fixed = _fixed_values(program)
    carry_numbers, x_numbers = program.inputs[:n_carry], program.inputs[n_carry:]
    varying_ops = [op for op in program.ops if not fixed.keys() & set(op.outputs)]
    inside = needed_for([op for op in varying_ops if not leaving.intersection(op.outputs)], program.outputs)
    used = {n for op in inside for n in op.needs} | {ref for ref in program.outputs if isinstance(ref, int)}

    frontier = sorted(leaving & used)
    outside_ops = needed_for(varying_ops, frontier)

    def before_the_loop(x):
        return evaluate(outside_ops, fixed | dict(zip(x_numbers, x, strict=True)), frontier)

    ready = jax.vmap(before_the_loop)(list(xs)) if frontier else []
    used_xs = [(number, a) for number, a in zip(x_numbers, xs, strict=True) if number in used]
    stacked_numbers = [*frontier, *(number for number, _ in used_xs)]

    def body(carry, stacked):
        known = fixed | dict(zip(carry_numbers, carry, strict=True)) | dict(zip(stacked_numbers, stacked, strict=True))
        values = evaluate(inside, known, program.outputs)
        return values[:n_carry], values[n_carry:]

    end, ys = jax.lax.scan(
        body,
        list(carry),
        [*ready, *(a for _, a in used_xs)],
        length=xs[0].shape[0],
        reverse=loop.reverse,
        unroll=loop.unroll,
    )
    return [*end, *ys]


def _fixed_values(program: Program) -> dict[int, Any]:
    """Every value that depends on the constants alone, computed once."""
    varying = reached_from(program.ops, program.inputs)
    from_consts = reached_from(program.ops, program.consts)
    numbers = [n for op in program.ops for n in op.outputs if n in from_consts and n not in varying]
    ops = needed_for([op for op in program.ops if not varying.intersection(op.outputs)], numbers)
    return program.consts | dict(zip(numbers, evaluate(ops, program.consts, numbers), strict=True))


def _leave_the_loop(program: Program, n_carry: int) -> tuple[Program, set[int]]:
    """The program with its sums regrouped, and the values in it that are computed for all steps at once.

    A value leaves the loop where it does not depend on the carry and holds a product; the other terms of the sum that
    it enters leave with it, so that one array per sum enters the loop.
    """
    carried = reached_from(program.ops, program.inputs[:n_carry])
    varying = reached_from(program.ops, program.inputs)
    heavy: set[int] = set()
    for op in program.ops:
        if not carried.intersection(op.outputs) and varying.intersection(op.outputs):
            heavy_op = op.name in HEAVY or heavy.intersection(op.needs)
            heavy.update(op.outputs if heavy_op else ())
    if not heavy:
        return program, set()

    ops = list(program.ops)
    makers = {n: op for op in ops for n in op.outputs}
    uses: dict[int, int] = {}
    for ref in [ref for op in ops for ref in op.inputs] + program.outputs:
        if isinstance(ref, int):
            uses[ref] = uses.get(ref, 0) + 1

    def terms(op: Op) -> list[Ref]:
        """What a sum adds up, through the sums that serve only it."""
        found: list[Ref] = []
        for ref in op.inputs:
            maker = makers.get(ref) if isinstance(ref, int) else None
            if maker is not None and maker.name in SUMS and ref in carried and uses[ref] == 1:
                found += terms(maker)
            else:
                found.append(ref)
        return found

    number = program.fresh()
    regrouped: list[Op] = []
    for op in ops:
        if op.name in SUMS and op.outputs[0] in carried:
            free = [ref for ref in terms(op) if isinstance(ref, int) and ref not in carried]
            if len(free) > 1 and heavy.intersection(free):
                bound = [ref for ref in terms(op) if not (isinstance(ref, int) and ref not in carried)]
                regrouped.append(Op("sum", _add, tuple(free), (number,)))
                regrouped.append(Op("sum", _add, (*bound, number), op.outputs))
                heavy.add(number)
                number += 1
                continue
        regrouped.append(op)
    return program._replace(ops=regrouped), heavy


def _add(*terms: Any) -> list[Any]:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return [total]


def _one_step(a: Any) -> Any:
    return jax.eval_shape(lambda a: a[0], a)


def _is_float(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jnp.inexact)


def _moves(tangent: Any) -> bool:
    return not isinstance(tangent, SymbolicZero) and tangent.dtype != jax.dtypes.float0


def _no_tangent(a: Any) -> Any:
    return SymbolicZero(jax.typeof(a).to_tangent_aval())
