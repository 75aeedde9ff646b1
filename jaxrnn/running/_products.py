"""The form of the products that stay in the loop."""

from __future__ import annotations

from collections.abc import Container

import jax
import jax.numpy as jnp

from jaxrnn.running._program import Op, Program, Rewriting

LARGE = 2**20  # weights from which on they stand on the left


def weights_on_the_left(program: Program, moving: Container[int]) -> Program:
    """The program with sums of products ``x @ W`` of large weights computed as ``(Σ Wᵀ xᵀ)ᵀ``, on a CPU.

    Its matrix product packs the right operand anew at every call, here the weight at every step.
    """
    if jax.default_backend() != "cpu":
        return program
    fixed, laid = program.fixed(), Rewriting(program)
    columns: dict[int, int] = {}  # of the values that also stand transposed: the number of the transpose
    for op in program.ops:
        laid.ops.append(op)
        if op.name == "dot_general" and op.inputs[0] in moving and op.inputs[1] in fixed:
            kinds = [program.kinds[n] for n in (*op.inputs, *op.outputs)]
            (contracting, batch), out = op.params["dimension_numbers"], kinds[2]
            if [kind.ndim for kind in kinds] != [2, 2, 2] or any(batch) or tuple(contracting[0]) != (1,):
                continue
            if kinds[1].size < LARGE or any(kinds[1].sharding.spec) or any(out.sharding.spec):
                continue
            x, W = op.inputs
            if contracting[1] == (0,):
                (W,) = laid.add("transpose", lambda W: [W.T], (W,), [kinds[1].update(shape=kinds[1].shape[::-1])])
            params = {**op.params, "dimension_numbers": (((1,), (1,)), batch)}
            run = lambda W, x, params=params: [jax.lax.dot_general_p.bind(W, x, **params)]  # noqa: E731
            (columns[op.outputs[0]],) = laid.add("dot_general", run, (W, x), [out.update(shape=out.shape[::-1])])
        elif op.name in ("add", "add_any") and all(n in columns for n in op.inputs):
            out = program.kinds[op.outputs[0]]
            terms = [columns[n] for n in op.inputs]
            (total,) = laid.add("add", lambda a, b: [jnp.add(a, b)], terms, [out.update(shape=out.shape[::-1])])
            columns[op.outputs[0]] = total
            laid.ops[-2] = Op("transpose", lambda a: [a.T], (total,), op.outputs)
            laid.ops[-2:] = laid.ops[:-3:-1]
    return laid.done()


def ready_to_transpose(program: Program, moving: Container[int], weights: Container[int]) -> Program:
    """The program with its weights turned round where that makes the transpose of their product with a ``moving`` value
    faster.

    The transpose of ``∂h @ W`` contracts the second axis of W, which takes a matrix product up to 1.6 times as long as
    contracting the first (two AVX-512 cores). With Wᵀ, made once outside the loop, it contracts the first.
    """
    turned = Rewriting(program)
    for op in program.ops:
        if op.name == "dot_general" and not any(op.params["dimension_numbers"][1]):
            for side in (0, 1):
                if op.inputs[side] in weights and op.inputs[1 - side] in moving:
                    op = _turned(turned, op, side)
        turned.ops.append(op)
    return turned.done()


def _turned(turned: Rewriting, op: Op, side: int) -> Op:
    W, (contracting, batch) = op.inputs[side], op.params["dimension_numbers"]
    kind = turned.kinds[W]
    if kind.ndim != 2 or tuple(contracting[side]) != (1 - side,) or any(kind.sharding.spec):
        return op
    inputs, axes = list(op.inputs), list(contracting)
    turn = lambda W: [jax.lax.optimization_barrier(W.T)]  # noqa: E731  # or the compiler would turn it back
    (inputs[side],) = turned.add("transpose", turn, (W,), [kind.update(shape=kind.shape[::-1])])
    axes[side] = (side,)
    params = {**op.params, "dimension_numbers": (tuple(axes), batch)}
    run = lambda a, b: [jax.lax.dot_general_p.bind(a, b, **params)]  # noqa: E731
    return op._replace(inputs=tuple(inputs), params=params, run=run)
