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

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxrnn._base import PyTree, flatten
from jaxrnn._base import is_narrow as _is_narrow
from jaxrnn.running._program import Op, Program, divisible, evaluate, needed_for, reached_from, trace

PRODUCTS = ("dot_general", "conv_general_dilated")  # what pays for leaving the loop
SUMS = ("add", "add_any")
ELEMENTWISE = (*SUMS, "sub", "mul", "div")  # where JAX stretches axes of size 1
# What may leave the loop: linear operations that batch and transpose as they are. Conditionals, inner loops and
# checkpoints stay where the user put them.
LEAVING = (
    *(*PRODUCTS, *ELEMENTWISE, "neg", "convert_element_type", "reshape", "broadcast_in_dim", "squeeze", "transpose"),
    *("concatenate", "slice", "split", "pad", "rev", "reduce_sum", "expand_dims", "copy", "spread"),
)


def scan_deferred(
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], carry: PyTree, xs: PyTree, *, reverse: bool, unroll: int
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

    program, _ = trace(step, *carry_leaves, *map(_one_step, xs_leaves))
    if program is None:
        return jax.lax.scan(body, carry, xs, reverse=reverse, unroll=unroll)
    loop = _Loop(program, len(program.consts), n_carry, reverse, unroll)
    outputs = _differentiable(loop)(*program.consts.values(), *carry_leaves, *xs_leaves)
    return carry_tree.unflatten(outputs[:n_carry]), y_trees[0].unflatten(outputs[n_carry:])


def map_over_time(
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], carry: PyTree, xs: PyTree, *, reverse: bool, unroll: int
) -> tuple[PyTree, PyTree]:
    """The same for a body that carries nothing: all steps at once."""
    if jax.tree.leaves(xs)[0].shape[0]:
        closed = jax.make_jaxpr(body)(carry, jax.tree.map(_one_step, xs))
        if not divisible(closed):
            return jax.lax.scan(body, carry, xs, reverse=reverse, unroll=unroll)
    return carry, jax.vmap(lambda x: body(carry, x)[1])(xs)


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
        )
        tangent = _spread_constants(tangent, joint.d_consts)
        in_narrow = _narrow_values(tangent, joint.d_consts)
        tangent_loop = loop._replace(n_carry=len(d_carry))
        d_outputs = iter(
            _scan_program(tangent, d_carry, [*d_xs, *xs, *saved], tangent_loop, outside=True, in_loop=in_narrow)
        )
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
    wanted = [*(ref for op in tangent_ops for ref in op.inputs), *d_outputs]
    saved = dict.fromkeys(ref for ref in wanted if ref not in moved and ref in varying and ref not in xs_n)
    return _Joint(program, consts_n, carry_n, xs_n, outputs, d_consts, d_carry, d_xs, d_outputs, list(saved))


def _spread_constants(tangent: Program, d_consts: Sequence[int]) -> Program:
    """The tangent with each constant's tangent spread to the full shape of the sum or product that it enters.

    The spreading leaves the loop, being constant, and with it its transpose, the sum over the batch: the backward loop
    then adds up in the shape of the batch, each device its own part.
    """
    from_consts = reached_from(tangent.ops, d_consts) - reached_from(tangent.ops, tangent.inputs)
    kinds = {op.outputs[0]: op.kind for op in tangent.ops if op.kind is not None}
    number = tangent.fresh()
    ops: list[Op] = []
    for op in tangent.ops:
        inputs = list(op.inputs)
        if op.name in ELEMENTWISE and op.outputs[0] not in from_consts:
            for place, ref in enumerate(op.inputs):
                small = ref in from_consts and ref in kinds and kinds[ref].shape != op.kind.shape
                if small:
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
    program: Program,
    carry: Sequence[Any],
    xs: Sequence[Any],
    loop: _Loop,
    *,
    outside: bool,
    in_loop: frozenset[int] = frozenset(),
) -> list[Any]:
    """Scan a program whose inputs are the carry and one step's x; outputs: the new carry, then what is stacked.

    With ``outside`` the products that do not depend on the carry are done for all steps at once. Values in ``in_loop``
    are computed at every step though they depend on constants alone.
    """
    n_carry = len(carry)
    program, leaving = _leave_the_loop(program, n_carry) if outside else (program, set())
    fixed = _fixed_values(program, in_loop)
    carry_numbers, x_numbers = program.inputs[:n_carry], program.inputs[n_carry:]
    varying_ops = [op for op in program.ops if not fixed.keys() & set(op.outputs)]
    inside = needed_for([op for op in varying_ops if not leaving.intersection(op.outputs)], program.outputs)
    used = {n for op in inside for n in op.inputs} | set(program.outputs)

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


def _fixed_values(program: Program, in_loop: frozenset[int]) -> dict[int, Any]:
    """Every value that depends on the constants alone, computed once."""
    varying = reached_from(program.ops, {*program.inputs, *in_loop})
    from_consts = reached_from(program.ops, program.consts)
    numbers = [n for op in program.ops for n in op.outputs if n in from_consts and n not in varying]
    ops = needed_for([op for op in program.ops if not varying.intersection(op.outputs)], numbers)
    return program.consts | dict(zip(numbers, evaluate(ops, program.consts, numbers), strict=True))


def _narrow_values(tangent: Program, d_consts: Sequence[int]) -> frozenset[int]:
    """The tangents of constants in floats of less than 32 bits.

    What is constant to the tangent loop is added up over the steps by the backward one, and in bfloat16 a sum of ones
    stops at 256. Cast inside the loop, the sum is kept in the dtype that they were cast from.
    """
    of_consts = reached_from(tangent.ops, d_consts)
    return frozenset(n for op in tangent.ops for n in op.outputs if n in of_consts and _is_narrow(op.kind))


def _leave_the_loop(program: Program, n_carry: int) -> tuple[Program, set[int]]:
    """The program with its sums regrouped, and the values in it that are computed for all steps at once.

    A value leaves the loop where it does not depend on the carry and holds a product; the other terms of the sum that
    it enters leave with it, so that one array per sum enters the loop.
    """
    carried = reached_from(program.ops, program.inputs[:n_carry])
    varying = reached_from(program.ops, program.inputs)
    kinds = {op.outputs[0]: op.kind for op in program.ops if op.outputs}
    kinds |= {number: jax.typeof(a) for number, a in program.consts.items()}
    able = set(program.inputs[n_carry:])  # may leave
    heavy: set[int] = set()  # and holds a product
    for op in program.ops:
        needs = [ref for ref in op.inputs if ref in varying]
        if needs and op.name in LEAVING and able.issuperset(needs) and not _outgrows(op, needs, kinds):
            able.update(op.outputs)
            if heavy.intersection(needs) or (op.name in PRODUCTS and _pays(op, set(op.inputs) - varying, kinds)):
                heavy.update(op.outputs)
    if not heavy:
        return program, set()

    makers = {n: op for op in program.ops for n in op.outputs}
    uses = Counter(ref for op in program.ops for ref in op.inputs)
    uses.update(program.outputs)

    def is_inner_sum(ref: int) -> bool:
        """A sum that serves only the sum above it."""
        maker = makers.get(ref)
        return maker is not None and maker.name in SUMS and ref in carried and uses[ref] == 1

    number = program.fresh()
    regrouped: list[Op] = []
    for op in program.ops:
        if op.name in SUMS and op.outputs[0] in carried and not _is_narrow(op.kind):
            terms, todo = [], list(op.inputs)
            while todo:
                ref = todo.pop()
                if is_inner_sum(ref):
                    todo.extend(makers[ref].inputs)
                else:
                    terms.append(ref)
            free = [ref for ref in terms if ref in able or (ref in kinds and ref not in varying)]
            if len(free) > 1 and heavy.intersection(free):
                bound = [ref for ref in terms if ref not in free]
                regrouped.append(Op("sum", _add, tuple(free), (number,), op.kind))
                regrouped.append(op._replace(run=_add, inputs=(*bound, number)))
                heavy.add(number)
                number += 1
                continue
        regrouped.append(op)
    return program._replace(ops=regrouped), heavy


def _outgrows(op: Op, needs: Sequence[int], kinds: dict[int, Any]) -> bool:
    """Whether the operation makes an array larger than what it is made of; stacked over time it would fill memory.

    A product with a weight may: its output is of the size of the sums that the loop keeps anyway.
    """
    if op.name in PRODUCTS and len(needs) == 1:
        return False
    size = sum(math.prod(kinds[ref].shape) for ref in needs if ref in kinds)
    return math.prod(op.kind.shape) > size > 0


def _pays(op: Op, weights: set[int], kinds: dict[int, Any]) -> bool:
    """Whether a product's weight gradient is better contracted once than added up in the loop.

    With several devices always: a batch sharded over them would be summed over devices at every step. On a single CPU
    adding a weight costs its size, keeping the cotangents for later the size of the product's output. Measured on two
    AVX-512 cores (gradient of a training step, contracted / added; H² weights, batch B): H/B = 16 to 32: 0.4-0.95;
    H/B = 4: 0.7-1.4; H/B below 1: 1.0-1.5. So from 8 on.
    """
    if jax.device_count() > 1 or jax.default_backend() != "cpu":
        return True
    size = sum(math.prod(kinds[ref].shape) for ref in weights if ref in kinds)
    return size >= 8 * math.prod(op.kind.shape)


def _add(*terms: Any) -> list[Any]:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return [total]


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
