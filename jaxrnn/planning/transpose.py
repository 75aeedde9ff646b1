"""The form of the products that stay in the loop."""

from __future__ import annotations

from collections.abc import Callable, Container

import jax
import jax.numpy as jnp

from jaxrnn.programs.primitives import SUM, has
from jaxrnn.programs.program import Op, Program, Rewriting


def weights_on_the_left(
    program: Program, moving: Container[int], pays: Callable[[int], bool]
) -> tuple[Program, list[str]]:
    """The program with sums of products ``x @ W`` of large weights as ``(Σ Wᵀ xᵀ)ᵀ``; for the record, which sums."""
    fixed, laid = program.fixed(), Rewriting(program)
    turned: dict[int, int] = {}  # of each value that also stands transposed: the number of its transpose
    sums = []
    for op in program.ops:
        kinds = [program.kinds[n] for n in (*op.inputs, *op.outputs)]
        if has(op.name, SUM) and all(n in turned for n in op.inputs):
            out = kinds[-1].update(shape=kinds[-1].shape[::-1])
            (total,) = laid.add("add", lambda a, b: [jnp.add(a, b)], [turned[n] for n in op.inputs], [out])
            laid.ops.append(Op("transpose", lambda a: [a.T], (total,), op.outputs))
            turned[op.outputs[0]] = total
            sums.append(str(kinds[-1].shape))
            continue
        laid.ops.append(op)
        if op.name == "dot_general" and op.inputs[0] in moving and op.inputs[1] in fixed:
            (contracting, batch), (x, W) = op.params["dimension_numbers"], op.inputs
            matrices = [kind.ndim for kind in kinds] == [2, 2, 2] and contracting[0] == (1,) and not any(batch)
            if (
                matrices
                and op.params["precision"] is None
                and pays(program.size(W))
                and not any(any(kind.sharding.spec) for kind in kinds)
            ):
                if contracting[1] == (0,):
                    (W,) = laid.add("transpose", lambda W: [W.T], (W,), [kinds[1].update(shape=kinds[1].shape[::-1])])
                params = {**op.params, "dimension_numbers": (((1,), (1,)), batch)}
                run = lambda W, x, params=params: [jax.lax.dot_general_p.bind(W, x, **params)]  # noqa: E731
                out = kinds[2].update(shape=kinds[2].shape[::-1])
                (turned[op.outputs[0]],) = laid.add("dot_general", run, (W, x), [out])
    return laid.done(), sums


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
