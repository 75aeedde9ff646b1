"""The norm of what each step adds to a parameter's gradient, without that gradient.

A product x W contributes xᵀ d at each step, where d is the cotangent of the product. To measure that, zeros are added
to the product. They are linear in a scalar z, and their transpose gives z the norm ‖xᵀ d‖, not xᵀ d itself. They are
a primitive of their own, ``norm_of_product``, which a plan may hoist (``planning/hoist.py`` says when): the norms of
all steps are then computed after the backward loop. With a batch of B rows ‖xᵀ d‖² = Σ (x xᵀ) * (d dᵀ), which costs
less than xᵀ d where B is small.

A vector is measured where it enters the step. A parameter that is used in another way (inside a ``cond``, in an einsum
with a batch of weights, twice in the same places) is measured by ``with_cotangent_norm``: its rule makes the gradient
at every step and keeps the norm alone. The run is then a plain scan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxrnn._base import PyTree, flatten
from jaxrnn._dtypes import accumulator, aligned
from jaxrnn.instruments.marks import USES, NormProbe
from jaxrnn.programs.primitives import CAST, VIEW, has
from jaxrnn.programs.program import Op, Program
from jaxrnn.programs.tracing import flat_program, is_call


def call_with_norm_probes(function: Callable[..., PyTree], params: PyTree, *args: PyTree) -> PyTree:
    """``function(params, *args)``, in which the leaves of params that are a :class:`NormProbe` are measured.

    Each comes with the zeros of this one step, (USES,); the gradient by them is the norm of what the call contributes.
    """
    leaves, treedef = flatten(params, lambda a: isinstance(a, NormProbe))
    marked = [a for a in leaves if isinstance(a, NormProbe)]
    if not marked:
        return function(params, *args)
    others, args_tree = flatten(args)
    trees = []

    def flat(*values):
        arrays = iter(values[: len(marked)])
        own = [
            next(arrays).astype(a.dtype or jnp.result_type(a.array)) if isinstance(a, NormProbe) else a for a in leaves
        ]
        out, out_tree = flatten(function(treedef.unflatten(own), *args_tree.unflatten(values[len(marked) :])))
        trees.append(out_tree)
        return [jnp.asarray(a) for a in out]

    arrays = [jnp.asarray(a.array) for a in marked]
    program, _, _ = flat_program(flat, *arrays, *others, flattens=is_call)
    values = {**program.consts, **dict(zip(program.inputs, [*arrays, *others], strict=True))}
    added: dict[int, list[tuple[int, jax.Array]]] = {}  # by the place of an operation: which operand, and z
    for number, leaf in zip(program.inputs, marked, strict=False):
        a, zeros = leaf.array, leaf.zeros
        if a.ndim <= 1:
            one = jnp.ones((1, 1), a.dtype)
            values[number] += norm_of_product(one, zeros[0], a.size, a.dtype).reshape(a.shape)
        elif (products := _products_with(program, number)) is None:
            values[number] = with_cotangent_norm(a, zeros[0])
        else:
            for use, (place, operand) in enumerate(products):
                added.setdefault(place, []).append((operand, zeros[use]))
    for place, op in enumerate(program.ops):
        inputs = [values[number] for number in op.inputs]
        made = list(op.run(*inputs))
        for operand, z in added.get(place, []):
            made[0] += _zeros_like_product(op, operand, inputs, made[0], z)
        values.update(zip(op.outputs, made, strict=True))
    return trees[-1].unflatten([values[number] for number in program.outputs])


def _products_with(program: Program, number: int) -> list[tuple[int, int]] | None:
    """The products (place, operand) that use a matrix, a part of its own in each; None where used otherwise."""
    kind = program.kinds[number]
    parts = {number: np.arange(program.size(number)).reshape(kind.shape)}  # of values made of it: which entries
    products, seen = [], 0
    for place, op in enumerate(program.ops):
        hits = [position for position, n in enumerate(op.inputs) if n in parts]
        if not hits:
            continue
        part = parts[op.inputs[hits[0]]]
        if len(hits) == 1 and has(op.name, CAST):
            parts[op.outputs[0]] = part
        elif len(hits) == 1 and has(op.name, VIEW):
            with jax.ensure_compile_time_eval():
                parts.update((n, np.asarray(a)) for n, a in zip(op.outputs, op.run(part), strict=True))
        elif len(hits) == 1 and _is_product_of_rows(program, op, hits[0]):
            products.append((place, hits[0]))
            seen += part.size
        else:
            return None
    used = [parts[program.ops[place].inputs[operand]].reshape(-1) for place, operand in products]
    apart = not used or len(np.unique(np.concatenate(used))) == seen
    return products if apart and len(products) <= USES and not parts.keys() & set(program.outputs) else None


def _is_product_of_rows(program: Program, op: Op, operand: int) -> bool:
    """x by a matrix, that being the given operand, with one axis summed over."""
    if op.name != "dot_general":
        return False
    contracting, batch = op.params["dimension_numbers"]
    return program.kinds[op.inputs[operand]].ndim == 2 and len(contracting[operand]) == 1 and not any(batch)


def _zeros_like_product(op: Op, operand: int, inputs: list[jax.Array], out: jax.Array, z: jax.Array) -> jax.Array:
    x = inputs[1 - operand]
    (axis,) = op.params["dimension_numbers"][0][1 - operand]
    rows = jnp.moveaxis(x, axis, -1)
    lead, units = rows.shape[:-1], inputs[operand].size // rows.shape[-1]
    zeros = norm_of_product(jax.lax.collapse(rows, 0, rows.ndim - 1), z, units, out.dtype).reshape(*lead, units)
    return zeros if operand == 1 else jnp.moveaxis(zeros, -1, 0)


def norm_of_product(x: jax.Array, z: jax.Array, units: int, dtype: Any) -> jax.Array:
    """Zeros (R, units), "z times" a product of x (R, K): of a cotangent d (R, units), z receives ‖xᵀ d‖."""
    return norm_of_product_p.bind(x, z, units=units, dtype=jnp.dtype(dtype))


def norm(a: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """The Euclidean norm; the largest entry is divided out first, so that no square overflows or vanishes."""
    scale = _scale(a, axis)
    return jnp.squeeze(scale, axis) * _sqrt(jnp.sum(jnp.square(a / scale), axis=axis))


def _sqrt(a: jax.Array) -> jax.Array:
    """The square root, whose derivative at 0 is 0; of what rounding left a little below 0, too."""
    positive = a > 0
    return jnp.where(positive | jnp.isnan(a), jnp.sqrt(jnp.where(positive, a, jnp.where(jnp.isnan(a), a, 1.0))), 0.0)


def _scale(a: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    largest = jnp.max(jnp.abs(a), axis=axis, keepdims=True, initial=0.0)
    return jnp.where((largest > 0) & jnp.isfinite(largest), largest, jnp.ones_like(largest))


def _norms_of_xT_d(x: jax.Array, d: jax.Array) -> jax.Array:
    """(T,): ‖xᵀ d‖ of each x (T, R, K) and d (T, R, O), the cheaper way."""
    dtype = accumulator(x.dtype, d.dtype)
    x, d = x.astype(dtype), d.astype(dtype)
    (_, R, K), O = x.shape, d.shape[-1]
    if R == 1:
        return norm(x, (1, 2)) * norm(d, (1, 2))
    return _by_rows(x, d) if by_rows(R, K, O) else _by_products(x, d)


def by_rows(R: int, K: int, O: int) -> bool:
    """Whether the products of R rows with each other cost less than xᵀ d, (K, O); all steps at once they do."""
    return R * (K + O) <= K * O


def _by_products(x: jax.Array, d: jax.Array) -> jax.Array:
    """‖xᵀ d‖ from xᵀ d, a few steps at a time: one by one takes up to 1.7 times as long on a CPU, all fill memory."""
    # The barrier lets the compiler lay xᵀ out anew, which makes batched products up to 1.5 times as fast.
    return jax.lax.map(lambda pair: norm(jax.lax.optimization_barrier(pair[0].T) @ pair[1]), (x, d), batch_size=16)


def _by_rows(x: jax.Array, d: jax.Array) -> jax.Array:
    """‖xᵀ d‖ = √(Σ (x xᵀ) * (d dᵀ)), or from xᵀ d where rounding or the range of floats makes that sum unsafe."""

    def gram(a):
        # In full precision: the sum below is checked against the rounding of its dtype.
        return jax.lax.dot_general(a, a, (((2,), (2,)), ((0,), (0,))), precision=jax.lax.Precision.HIGHEST)

    def trace(a):
        return jnp.trace(a, axis1=1, axis2=2)

    s_x, s_d = _scale(x, (1, 2))[:, 0, 0], _scale(d, (1, 2))
    x_xT, d_dT = gram(x), gram(d / s_d)  # d vanishes and explodes, x seldom: it is spared the scaling
    squares = jnp.sum(x_xT * d_dT, (1, 2))
    # Where rows cancel, as opposite losses of like sequences do, only rounding would be left of the sum.
    info = jnp.finfo(x.dtype)
    cancel = squares < info.eps**0.5 * trace(x_xT) * trace(d_dT)
    far = (s_x < info.tiny**0.25) | (s_x > info.max**0.25)
    unsafe = jnp.any(cancel | far | ~jnp.isfinite(squares))
    return jax.lax.cond(unsafe, _by_products, lambda x, d: s_d[:, 0, 0] * _sqrt(squares), x, d)


def _abstract(x, z, *, units, dtype):
    def typed(x, z):  # for its type alone: it varies and is sharded as x and z do
        return x[..., :1].astype(dtype) * z[..., None, None].astype(dtype) * aligned(jnp.ones((units,), dtype), x)

    return jax.make_jaxpr(typed)(x, z).out_avals[0]


def _zeros(x, z, *, units, dtype):
    return jnp.zeros((*x.shape[:-1], units), dtype)


def _jvp(primals, tangents, *, units, dtype):
    x, z = primals
    out = norm_of_product_p.bind(x, z, units=units, dtype=dtype)
    if type(tangents[1]) is ad.Zero:
        return out, ad.Zero(jax.typeof(out).to_tangent_aval())
    return out, norm_of_product_p.bind(x, tangents[1], units=units, dtype=dtype)


def _transpose(d, x, z, *, units, dtype):
    if type(d) is ad.Zero:
        return None, None
    norms = _norms_of_xT_d(*(jax.lax.collapse(a, 0, a.ndim - 2) for a in (x, d)))
    return None, norms.reshape(x.shape[:-2]).astype(z.aval.dtype)


def _batch(args, axes, *, units, dtype):
    size = next(a.shape[axis] for a, axis in zip(args, axes, strict=True) if axis is not None)
    x, z = (
        jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(args, axes, strict=True)
    )
    return norm_of_product_p.bind(x, z, units=units, dtype=dtype), 0


norm_of_product_p = Primitive("norm_of_product")
norm_of_product_p.def_impl(_zeros)
norm_of_product_p.def_abstract_eval(_abstract)
mlir.register_lowering(norm_of_product_p, mlir.lower_fun(_zeros, multiple_results=False))
ad.primitive_jvps[norm_of_product_p] = _jvp
ad.primitive_transposes[norm_of_product_p] = _transpose
batching.primitive_batchers[norm_of_product_p] = _batch


@jax.custom_vjp
def with_cotangent_norm(a: jax.Array, zero: jax.Array) -> jax.Array:
    """``a``; the norm of the gradient that comes back for it is the gradient by ``zero``."""
    return a


with_cotangent_norm.defvjp(
    lambda a, zero: (a, zero), lambda zero, cotangent: (cotangent, norm(cotangent).astype(zero.dtype))
)
