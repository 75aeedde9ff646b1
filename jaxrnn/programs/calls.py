"""Calls that stand in a program as one operation: one kernel of the CPU, or of a GPU; one form on a single CPU device,
else another.

Both compute what the function that is called computes, and differentiate as it does. What differs is what the compiler
gets.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import func, stablehlo

Function = Callable[..., Sequence[Any]]  # arrays in, arrays out


def as_one_kernel(function: Function, *arrays: Any) -> list[Any]:
    """``function(*arrays)``, which the compiler of a single CPU makes one kernel, loops included.

    XLA runs the operations of a loop's body one by one, and the hand-over costs more than a small operation. It makes
    a loop one kernel by itself where the loop touches few bytes: a call with the attribute that it sets then. A kernel
    can hold elementwise operations, reductions, conditionals, loops and products of a matrix and a vector. It must not
    hold what XLA gives to a library, such as products of two matrices: the compiler stops there.

    Elsewhere than on one CPU device, in exported programs, under ``vmap`` and in derivatives of it, it is the function
    as it stands.
    """
    return _bind(one_kernel_p, function, function, arrays)


def on_one_cpu(function: Function, otherwise: Function, *arrays: Any) -> list[Any]:
    """``function(*arrays)`` in a program for one CPU device; elsewhere, as under ``vmap``, ``otherwise(*arrays)``.

    Both must compute the same, the first in a form that is fast for these shapes on such a device. The transpose, where
    they are linear, has both forms as well; other derivatives are those of the second. ``otherwise`` is traced where it
    is needed, so what it closes over must not be traced.
    """
    return _bind(on_one_cpu_p, function, otherwise, arrays)


def as_gpu_kernel(
    function: Function,
    *arrays: Any,
    kernel: Function | None,
    transposed_kernel: Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]] | None = None,
    interpreted: bool = False,
) -> list[Any]:
    """``function(*arrays)``, in a program for one GPU by a kernel that is given; likewise its transpose.

    Args:
        function: what is computed, on all other devices, under ``vmap`` and in derivatives.
        kernel: the same, by a kernel; None: none.
        transposed_kernel: ``(arrays, cotangents)``, None among the arrays where the function is linear, to the
            cotangents of those, None for the others; None: no kernel.
        interpreted: the kernels run on every device, as they can where an interpreter runs them.
    """
    if interpreted and kernel is not None:  # an interpreter's callbacks are ordered where they stand, not in a call
        return list(_differentiated_as(kernel, function)(*arrays))
    given = {"kernel": kernel, "transposed_kernel": transposed_kernel, "interpreted": interpreted}
    return _bind(gpu_kernel_p, function, function, arrays, **given)


def _differentiated_as(kernel: Function, function: Function) -> Function:
    """The kernel; derivatives are those of the function, which computes the same."""
    run = jax.custom_jvp(lambda *arrays: list(kernel(*arrays)))
    run.defjvp(lambda primals, tangents: jax.jvp(lambda *arrays: list(function(*arrays)), primals, tangents))
    return run


def _bind(
    primitive: Primitive, function: Function, otherwise: Function, arrays: Sequence[Any], **kernels: Any
) -> list[Any]:
    """A call of the function; what it closes over becomes arguments."""
    closed = jax.make_jaxpr(function)(*arrays)
    n, jaxpr = len(closed.consts), closed.jaxpr

    def without_consts_given(*values):
        return otherwise(*values[n:])

    if kernels and (kernel := kernels["kernel"]):
        kernels["kernel"] = lambda *values: kernel(*values[n:])
    if kernels and (transposed_kernel := kernels["transposed_kernel"]):
        kernels["transposed_kernel"] = lambda values, cotangents: [
            *(None for _ in range(n)),
            *transposed_kernel(values[n:], cotangents),
        ]

    without_consts = ClosedJaxpr(jaxpr.replace(invars=[*jaxpr.constvars, *jaxpr.invars], constvars=[]), [])
    return primitive.bind(*closed.consts, *arrays, jaxpr=without_consts, otherwise=without_consts_given, **kernels)


def _run(*arrays, jaxpr, **_):
    return jaxpr_as_fun(jaxpr)(*arrays)


def _run_otherwise(*arrays, otherwise, **_):
    return list(otherwise(*arrays))


def _impl(primitive: Primitive) -> Function:
    def run(*arrays, **params):
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return _run_otherwise(*arrays, **params)
        return jax.jit(lambda *arrays: primitive.bind(*arrays, **params))(*arrays)

    return run


def _jvp(primals, tangents, **params):
    """A loop's own derivative is planned before it comes here; what comes here is the second."""
    run = functools.partial(_run_otherwise, **params)
    return jax.jvp(run, list(primals), [ad.instantiate_zeros(t) for t in tangents])


def _transpose(primitive: Primitive) -> Function:
    """The transposed function, called in the same way."""

    def transpose(cotangents, *arrays, jaxpr, otherwise, transposed_kernel=None, interpreted=False, **_):
        linear = [ad.is_undefined_primal(a) for a in arrays]
        kinds = [jax.ShapeDtypeStruct(a.aval.shape, a.aval.dtype) for a in arrays if ad.is_undefined_primal(a)]
        known = [a for a in arrays if not ad.is_undefined_primal(a)]

        def transposed(function):
            def run(*values):
                given, cotangents = values[: len(known)], values[len(known) :]

                def of_linear(*tangents):
                    rest = {True: iter(tangents), False: iter(given)}
                    return list(function(*(next(rest[is_linear]) for is_linear in linear)))

                return jax.linear_transpose(of_linear, *kinds)(list(cotangents))

            return run

        cotangents = [ad.instantiate_zeros(ct) for ct in cotangents]
        backward = transposed(jaxpr_as_fun(jaxpr))

        def run_kernel(*values):
            given = iter(values[: len(known)])
            of_all = [None if is_linear else next(given) for is_linear in linear]
            made = transposed_kernel(of_all, values[len(known) :])
            return [a for a, is_linear in zip(made, linear, strict=True) if is_linear]

        if primitive is gpu_kernel_p:
            kernel = run_kernel if transposed_kernel else None
            made = iter(as_gpu_kernel(backward, *known, *cotangents, kernel=kernel, interpreted=interpreted))
        else:
            made = iter(_bind(primitive, backward, transposed(otherwise), [*known, *cotangents]))
        return [next(made) if is_linear else None for is_linear in linear]

    return transpose


def _batch(arrays, axes, *, jaxpr, otherwise, **_):
    made = jax.vmap(otherwise, axes)(*arrays)
    return made, [0] * len(made)


def _lower_for_cpu(ctx, *arrays, **params):
    return (_lower if _is_for_one_device(ctx) else _lower_otherwise)(ctx, *arrays, **params)


def _lower_for_gpu(ctx, *arrays, **params):
    has_kernel = params["kernel"] is not None and _is_for_one_device(ctx)
    return (_lower_kernel if has_kernel else _lower_otherwise)(ctx, *arrays, **params)


def _lower_to_one_kernel(ctx, *arrays, jaxpr, otherwise):
    """A call that is not inlined, with the attribute of XLA's own ``SmallWhileLoopHoistingPass``."""
    if not _is_for_one_device(ctx):
        return _lower_otherwise(ctx, *arrays, jaxpr=jaxpr, otherwise=otherwise)
    # The arguments are one tuple, as in XLA's own calls. A kernel knows the buffers that its operations read and write:
    # the process ends at an argument that none reads, or that is a large constant. A tuple's elements it looks up.
    module = ctx.module_context
    arguments = ir.TupleType.get_tuple([a.type for a in arrays])
    results = [ir.RankedTensorType.get(a.shape, mlir.dtype_to_ir_type(a.dtype)) for a in jaxpr.out_avals]
    function: Any = func.FuncOp("one_kernel", ([arguments], results), ip=module.ip)
    function.attributes["sym_visibility"] = ir.StringAttr.get("private")
    name = module.symbol_table.insert(function)
    with ir.InsertionPoint(function.add_entry_block()):
        elements = [stablehlo.get_tuple_element(function.arguments[0], i) for i in range(len(arrays))]
        func.ReturnOp(_lower(ctx, *elements, jaxpr=jaxpr, otherwise=otherwise))
    call = func.CallOp(results, ir.FlatSymbolRefAttr.get(name.value), [stablehlo.tuple(arrays)])
    attributes = {"inlineable": "false", "xla_cpu_small_call": "true"}
    call.attributes["mhlo.frontend_attributes"] = ir.DictAttr.get(
        {name: ir.StringAttr.get(value) for name, value in attributes.items()}
    )
    return call.results


def _is_for_one_device(ctx: Any) -> bool:
    """Whether the program that is lowered runs on one device: in a kernel no device can talk to another.

    One that is exported may be called later in a program for several.
    """
    module = ctx.module_context
    exported = getattr(module.lowering_parameters, "for_export", True)
    return getattr(module.axis_context, "num_devices", None) == 1 and not exported


def has_whole_arrays(ctx: Any) -> bool:
    """Whether each device has all of every array that it is said to have, so that no compiler divides it further."""
    axes = ctx.module_context.axis_context
    manual, mesh = getattr(axes, "manual_axes", None), getattr(axes, "mesh", None)
    return _is_for_one_device(ctx) or (mesh is not None and manual == frozenset(mesh.axis_names))


_lower = mlir.lower_fun(_run, multiple_results=True)
_lower_otherwise = mlir.lower_fun(_run_otherwise, multiple_results=True)
_lower_kernel = mlir.lower_fun(lambda *arrays, kernel, **_: list(kernel(*arrays)), multiple_results=True)

one_kernel_p = Primitive("one_kernel")
on_one_cpu_p = Primitive("on_one_cpu")
gpu_kernel_p = Primitive("gpu_kernel")
for _primitive in (one_kernel_p, on_one_cpu_p, gpu_kernel_p):
    _primitive.multiple_results = True
    _primitive.def_impl(_impl(_primitive))
    _primitive.def_abstract_eval(lambda *arrays, jaxpr, **_: jaxpr.out_avals)
    mlir.register_lowering(_primitive, _lower_otherwise)
    ad.primitive_jvps[_primitive] = _jvp
    ad.primitive_transposes[_primitive] = _transpose(_primitive)
    batching.primitive_batchers[_primitive] = _batch
mlir.register_lowering(one_kernel_p, _lower_to_one_kernel, platform="cpu")
mlir.register_lowering(on_one_cpu_p, _lower_for_cpu, platform="cpu")
mlir.register_lowering(gpu_kernel_p, _lower_for_gpu, platform="cuda")
