"""A step over time, cut for a kernel: what it does at each step, what is done outside, and what it cannot hold.

The step is a program ``(carry, x) -> (carry, y)`` of 2-D arrays, rows of a batch by features. A kernel does the
products of what depends on the carry with weights, and elementwise work. What depends on constants alone is done once,
and what of x no kernel can do (products, or flags spread over features) for all steps at once, both before the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn.kernels.memory import REGISTERS, ROWS, SHARED_MEMORY, accumulator_registers, shared_memory_needed
from jaxrnn.programs.program import Op, Program, evaluate, needed_for, reached_from
from jaxrnn.programs.tracing import flat_program, is_call

FLOATS = ("float32", "bfloat16", "float16")
ENTER = (*FLOATS, "bool", "int32")  # what may enter and leave a kernel

# What Pallas' Mosaic compiler lowers for registers of a GPU. Not atan2, erf and rem: it has a rule for each that fails.
ELEMENTWISE = frozenset(
    (
        *("abs", "add", "add_any", "clamp", "cos", "div", "exp", "exp2", "integer_pow", "log", "log2", "logistic"),
        *("max", "min", "mul", "neg", "one_minus_square", "round", "rsqrt", "sign", "sin", "sqrt", "square", "sub"),
        *("tanh", "and", "or", "xor", "not", "eq", "ne", "lt", "le", "gt", "ge", "select_n"),
        *("convert_element_type", "copy", "stop_gradient"),
    )
)
ALONG_FEATURES = frozenset(("slice", "split", "concatenate", "pad"))


class NoKernelError(ValueError):
    """The step is none that a kernel can hold; the message is the reason, as ``explain`` says it."""


class Product(NamedTuple):
    """``x @ W``: the weight by its number, and which of its axes is contracted."""

    weight: int
    axis: int


class Operand(NamedTuple):
    """What products multiply by weights, in shared memory."""

    value: int
    dtype: Any  # of the weights
    parts: int  # 2: a float32, by bfloat16 weights, is the sum of two bfloat16


class Recurrence(NamedTuple):
    """A step, cut."""

    program: Program  # constants are values that are given; inputs are the carry, then x
    n_carry: int
    once: list[Op]  # from the constants
    fixed: list[int]  # what comes of them, or stands among them, and is read outside ``once``
    all_steps: list[Op]  # from constants and x, outside the kernel
    each_step: list[Op]  # in the kernel
    weights: list[Product]  # what stays in shared memory, in the order of first use
    vectors: list[int]  # constants of one value a feature, or of one for all
    rows: list[int]  # constants of one value a row and feature
    filled: dict[int, Any]  # constants that are one number everywhere, with it
    entering: list[int]  # what the kernel reads at each step
    operands: list[Operand]
    blocks: int = 1  # that share the units; where there are several, widths in ``program`` are one block's
    pieces: Mapping[int, list[int]] = MappingProxyType({})  # of each value that is split, the widths of all its pieces

    @property
    def carry(self) -> list[int]:
        return self.program.inputs[: self.n_carry]

    @property
    def x(self) -> list[int]:
        return self.program.inputs[self.n_carry :]

    def batch(self) -> int:
        size: int = self.program.kinds[self.carry[0]].shape[0]
        return size

    def shared_memory(self) -> int:
        """The bytes of shared memory that a block takes."""
        kinds, arrays = self.program.kinds, []
        for w in self.weights:
            arrays.append((self.weight_shape(w), kinds[w.weight].dtype))
        for n, dtype, parts in self.operands:
            own = kinds[n].shape[1]
            arrays += [((ROWS, own * self.blocks), dtype)] * parts
            arrays += [((ROWS, own), dtype)] * (parts if self.blocks > 1 else 0)
        return shared_memory_needed(arrays)

    def weight_shape(self, product: Product) -> tuple[int, int]:
        """(N, K) of a block's weights, K contracted."""
        shape = self.program.kinds[product.weight].shape
        return shape[1 - product.axis] // self.blocks, shape[product.axis]


def cut(program: Program, n_carry: int) -> Recurrence:
    """The step, cut for a kernel.

    Raises:
        NoKernelError: a kernel cannot hold it; why.
    """
    program = _flat(program)
    carry, x = program.inputs[:n_carry], program.inputs[n_carry:]
    needed = needed_for(program.ops, program.outputs)
    varying = reached_from(needed, program.inputs)
    carried = reached_from(needed, carry)
    _check_carry(program, carry)
    batch = program.kinds[carry[0]].shape[0]

    literal = {op.outputs[0]: op.params["value"] for op in needed if op.name == "constant"}
    filled = {n: value for n, value in literal.items() if jnp.ndim(value) == 0}
    able = {n for n in x if _is_matrix(program, n, batch)}  # of what does not depend on the carry: may be in the kernel
    inside, products = [], []
    for op in needed:
        of_fill = len(op.inputs) == 1 and op.inputs[0] in filled
        if varying.isdisjoint(op.outputs):
            if op.name in ("broadcast_in_dim", "convert_element_type") and of_fill:
                filled[op.outputs[0]] = program.kinds[op.outputs[0]].dtype.type(filled[op.inputs[0]])
            continue
        if carried.isdisjoint(op.outputs):
            fits = _why_not(program, op, varying, batch) is None and op.name != "dot_general"
            if fits and able.issuperset(n for n in op.inputs if n in varying):
                able.update(op.outputs)
                inside.append(op)
            continue
        if reason := _why_not(program, op, varying, batch):
            raise NoKernelError(reason)
        inside.append(op)
        if op.name == "dot_general":
            products.append(op)
    if not products:
        raise NoKernelError("a step that multiplies its carry by no weights, so that nothing would stay in the kernel")

    outputs = program.outputs
    each_step = needed_for(inside, [n for n in outputs if n in carried])
    made = {n for op in each_step for n in op.outputs}
    read = dict.fromkeys([*(n for op in each_step for n in op.inputs), *outputs])
    entering = [n for n in read if n in varying and n not in made and n not in carry]
    for n in entering:
        if not _is_matrix(program, n, batch):
            raise NoKernelError(f"an output of shape {program.kinds[n].shape}; a kernel has rows by features")
    for n in outputs:
        if n not in varying:
            raise NoKernelError("an output that is the same at every step")
    of_products = {op.inputs[1] for op in products}
    constants = [n for n in read if n not in varying and n not in filled]
    elementwise = {n for op in each_step if op.name != "dot_general" for n in op.inputs}
    of_x = [op for op in needed if not varying.isdisjoint(op.outputs) and carried.isdisjoint(op.outputs)]
    all_steps = needed_for(of_x, [n for n in entering if n not in x])
    fixed = list(dict.fromkeys([*constants, *(n for op in all_steps for n in op.inputs if n not in varying)]))
    recurrence = Recurrence(
        program=program,
        n_carry=n_carry,
        once=needed_for([op for op in needed if varying.isdisjoint(op.outputs)], fixed),
        fixed=fixed,
        all_steps=all_steps,
        each_step=each_step,
        weights=list(dict.fromkeys(map(product, products))),
        vectors=[n for n in constants if n in elementwise and _is_vector(program, n)],
        rows=[n for n in constants if n in elementwise and not _is_vector(program, n)],
        filled=filled,
        entering=entering,
        operands=list(dict.fromkeys(operand(program, op) for op in products)),
    )
    assert of_products.issuperset(n for n in constants if n not in elementwise)
    _check_widths(recurrence)
    return recurrence


class TransposedRecurrence(NamedTuple):
    """The transpose of a step that is linear in its carry, and in some of its constants and of what enters."""

    recurrence: Recurrence  # (∂L/∂carry, [∂L/∂y, what else enters]) -> (∂L/∂carry, [∂L/∂x, ∂L/∂constants])
    linear_x: list[bool]  # of each value that enters the step given, whether it is linear in it
    linear_consts: list[Any]  # of each constant, its shape and dtype where the step is linear in it, else None
    uses: list[int]  # of each ∂L/∂constant, the place of the constant: one for each use


def cut_transposed(program: Program, n_carry: int, linear: set[int]) -> TransposedRecurrence:
    """The step of the backward loop, cut for a kernel. Gradients of constants it puts out step by step and row by row.

    Args:
        program: a step that is linear in its carry, and in what else is among the given values.

    Raises:
        NoKernelError: a kernel cannot hold it; why.
    """
    carry, x, consts = program.inputs[:n_carry], program.inputs[n_carry:], list(program.consts)
    program, uses = _with_a_row_for_each(program, [n for n in consts if n in linear])
    tangents = [*carry, *(n for n in x if n in linear), *uses]
    fixed, known = ([n for n in numbers if n not in linear] for numbers in (consts, x))

    def step(values, d_outputs, known_values):
        given = dict(zip([*fixed, *known], [*values, *known_values], strict=True))

        def of_tangents(*values):
            return evaluate(program.ops, given | dict(zip(tangents, values, strict=True)), program.outputs)

        return jax.linear_transpose(of_tangents, *shapes(tangents))(d_outputs)

    def shapes(numbers):
        return [_shape(program.kinds[n]) for n in numbers]

    arguments = map(shapes, (fixed, program.outputs, known))
    backward, _, _ = flat_program(step, *arguments, flattens=_flattens)
    assert not backward.consts, "all that the step needs was given"
    n = len(fixed)
    backward = backward._replace(consts=dict.fromkeys(backward.inputs[:n]), inputs=backward.inputs[n:])
    return TransposedRecurrence(
        recurrence=cut(backward, n_carry),
        linear_x=[n in linear for n in x],
        linear_consts=[_shape(program.kinds[n]) if n in linear else None for n in consts],
        uses=[consts.index(n) for n in uses.values()],
    )


def _with_a_row_for_each(program: Program, consts: Sequence[int]) -> tuple[Program, dict[int, int]]:
    """The program where each use of the constants reads a value of its own, spread over rows and features.

    So that what the loop puts out is (B, F) at each step: it is added up after the loop. Beside the program, of each
    new value the constant.
    """
    uses: dict[int, int] = {}
    kinds, ops = dict(program.kinds), []
    for op in program.ops:
        inputs = list(op.inputs)
        for place, n in enumerate(inputs):
            if n in consts:
                number = inputs[place] = 1 + max(kinds)
                kinds[number] = kinds[n].update(shape=kinds[op.outputs[0]].shape)
                uses[number] = n
        ops.append(op._replace(inputs=tuple(inputs)))
    return program._replace(ops=ops, kinds=kinds), uses


def _flat(program: Program) -> Program:
    """The program with the calls in it flattened that are elementwise work with a derivative of its own."""
    if not any(op.name in ("custom_jvp_call", "checkpoint", "remat", "remat2") for op in program.ops):
        return program
    consts, n = list(program.consts), len(program.consts)

    def run(*values):
        return evaluate(program.ops, dict(zip([*consts, *program.inputs], values, strict=True)), program.outputs)

    kinds = [_shape(program.kinds[n]) for n in (*consts, *program.inputs)]
    flat, _, _ = flat_program(run, *kinds, flattens=_flattens)
    return flat._replace(consts=dict.fromkeys(flat.inputs[:n]), inputs=flat.inputs[n:])


def _flattens(eqn: Any) -> bool:
    return is_call(eqn) or eqn.primitive.name == "custom_jvp_call"


def _shape(kind: Any) -> Any:
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype)


def _check_carry(program: Program, carry: Sequence[int]) -> None:
    if not carry:
        raise NoKernelError("a step without a carry")
    for n in carry:
        kind = program.kinds[n]
        if kind.ndim != 2:
            raise NoKernelError(f"a carry of shape {kind.shape}; a kernel has rows by features, (B, H)")
        if not isinstance(kind.shape[0], int):
            raise NoKernelError("a batch whose size is open")


def _is_matrix(program: Program, n: int, batch: int) -> bool:
    kind = program.kinds[n]
    return kind.ndim == 2 and kind.shape[0] == batch and kind.dtype.name in ENTER


def _is_vector(program: Program, n: int) -> bool:
    shape = program.kinds[n].shape
    return len(shape) < 2 or shape[0] == 1


def _why_not(program: Program, op: Op, varying: set[int], batch: int) -> str | None:
    """What keeps an operation out of a kernel; None where it may be in it."""
    kinds = [program.kinds[n] for n in op.inputs]
    printed = f"{op.name} of {', '.join(str(kind.shape) for kind in kinds)}"
    values = [n for n in (*op.inputs, *op.outputs) if n in varying]
    if any(not _is_matrix(program, n, batch) for n in values):
        return f"{printed}; a kernel has rows by features, (B, F), in {', '.join(ENTER)}"
    if op.name == "dot_general":
        contracting, leading = op.params["dimension_numbers"]
        W = op.inputs[1]
        is_product = W not in varying and kinds[1].ndim == 2 and tuple(contracting[0]) == (1,) and not any(leading)
        if not is_product or len(contracting[1]) != 1:
            return f"{printed}; a kernel multiplies rows by weights, (B, K) @ (K, N)"
        dtypes = (kinds[0].dtype.name, kinds[1].dtype.name)
        if dtypes not in [*((name, name) for name in FLOATS), ("float32", "bfloat16")]:
            return (
                f"{printed} in {' and '.join(dtypes)}; a kernel multiplies floats of one dtype, or float32 by bfloat16"
            )
        if op.params["precision"] not in (None, (jax.lax.Precision.DEFAULT,) * 2):
            return f"{printed} in precision {op.params['precision']}; tensor cores have one"
        return None
    if op.name in ALONG_FEATURES:
        return None if _along_features(op) else f"{printed}, which is not along the features alone"
    return None if op.name in ELEMENTWISE else f"{op.name}, which the compiler of kernels does not know"


def _along_features(op: Op) -> bool:
    """Whether the operation cuts or joins whole columns."""
    p = op.params
    if op.name == "slice":
        return p["strides"] is None and p["start_indices"][0] == 0
    if op.name == "pad":
        rows, (low, high, between) = p["padding_config"]
        return tuple(rows) == (0, 0, 0) and low >= 0 and high >= 0 and between == 0
    return bool(p["axis" if op.name == "split" else "dimension"] == 1)


def operand(program: Program, op: Op) -> Operand:
    """What a product multiplies by its weight."""
    x, dtype = op.inputs[0], program.kinds[op.inputs[1]].dtype
    return Operand(x, dtype, 1 if program.kinds[x].dtype == dtype else 2)


def product(op: Op) -> Product:
    """The weight of a product."""
    return Product(op.inputs[1], op.params["dimension_numbers"][0][1][0])


def _check_widths(recurrence: Recurrence) -> None:
    """Widths that the layouts of tensor cores divide."""
    program = recurrence.program
    for n in (*recurrence.carry, *recurrence.entering, *(n for op in recurrence.each_step for n in op.outputs)):
        if (shape := program.kinds[n].shape)[1] % 8:
            raise NoKernelError(f"a value of shape {shape}; features must be a multiple of 8")
    for n, dtype, _ in recurrence.operands:
        shape = program.kinds[n].shape
        if shape[1] * dtype.itemsize % 32:
            raise NoKernelError(f"a product of {shape} in {dtype}; its rows must be multiples of 32 bytes")


def check_memory(recurrence: Recurrence) -> None:
    """Whether one block's registers hold the sums, and its shared memory the weights.

    Raises:
        NoKernelError: they do not.
    """
    program = recurrence.program
    for op in recurrence.each_step:
        columns = program.kinds[op.outputs[0]].shape[1]
        if op.name == "dot_general" and accumulator_registers(columns) > REGISTERS:
            raise NoKernelError(f"a product with {columns} columns, whose sums the registers of a block cannot hold")
    if (needed := recurrence.shared_memory()) > SHARED_MEMORY:
        shapes = " and ".join(str(recurrence.weight_shape(w)[::-1]) for w in recurrence.weights)
        raise NoKernelError(
            f"weights {shapes}, with operands {needed} bytes, where the shared memory of a block has {SHARED_MEMORY}"
        )
