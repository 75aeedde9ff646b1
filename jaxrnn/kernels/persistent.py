"""The kernel of a recurrence, written with Pallas: weights stay in shared memory for all T steps.

A block has 64 rows of the batch. It copies the weights to shared memory once and keeps the carry in registers. At each
step it puts what is multiplied next into shared memory, the tensor cores multiply it (``wgmma``), and the elementwise
work of the step is done on the products where they are, in registers. Rows of a batch do not meet, so their blocks do
not wait for each other. Where one block cannot hold the weights, a cluster of blocks shares the units of the same rows,
and hands over its parts of each operand (``split``).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.kernels.memory import ROWS
from jaxrnn.kernels.recurrence import Operand, Product, Recurrence, TransposedRecurrence, operand, product
from jaxrnn.kernels.split import order
from jaxrnn.programs.program import Op, evaluate

WIDEST = 256  # columns of one tensor core instruction
# What stands in the place of operations that the compiler does not know, or fails at.
INSTEAD: dict[str, Callable[..., Any]] = {
    "add_any": jnp.add,
    "copy": lambda a: a,
    "stop_gradient": lambda a: a,
    "not": lambda a: a == 0 if a.dtype == jnp.bool_ else ~a,
}


def missing_for_kernels(*, interpreted: bool) -> str | None:
    """What this JAX, or its GPU, lacks; None where nothing is in the way. A CPU is not: it lowers for GPUs."""
    if jax.__version_info__ < (0, 12):
        needed = f"a kernel needs JAX 0.12 or later, and this is {jax.__version__}"
        return f"{needed}, whose interpreter of kernels returns zeros"
    device = jax.local_devices()[0]
    capability = getattr(device, "compute_capability", None)
    if device.platform == "gpu" and not interpreted and not str(capability).startswith("9."):
        return f"a kernel needs a GPU of compute capability 9, and this has {capability}"
    return None


def _pallas() -> tuple[Any, Any]:
    """Pallas, and what it has for GPUs; imported where a kernel is made, for that takes half a second."""
    from jax.experimental import pallas
    from jax.experimental.pallas import mosaic_gpu

    return pallas, mosaic_gpu


def run_recurrence(
    recurrence: Recurrence,
    consts: Sequence[Any],
    carry: Sequence[Any],
    xs: Sequence[Any],
    *,
    steps: int,
    reverse: bool,
    interpret: bool = False,
) -> list[Any]:
    """The recurrence run over T steps by the kernel.

    Args:
        recurrence: a step, cut.
        consts: the values of the program's constants.
        carry: where to start, (B, F) each.
        xs: (T, B, F) each, in the order of the program's inputs.
        steps: T.
        reverse: from the last step to the first.
        interpret: run by Pallas' interpreter of GPU kernels, on a CPU.

    Returns:
        The final carry, then the outputs, (T, B, F) each.
    """
    program, B = recurrence.program, recurrence.batch()
    given = dict(zip(program.consts, consts, strict=True))
    known = given | dict(zip(recurrence.fixed, evaluate(recurrence.once, given, recurrence.fixed), strict=True))
    over_time = dict(zip(recurrence.x, xs, strict=True))
    if recurrence.all_steps:
        made = [n for n in recurrence.entering if n not in over_time]

        def one_step(x):
            return evaluate(recurrence.all_steps, known | dict(zip(recurrence.x, x, strict=True)), made)

        over_time |= dict(zip(made, jax.vmap(one_step)(list(xs)), strict=True))

    padding = -B % ROWS
    n_carry, outputs = recurrence.n_carry, program.outputs
    arrays = [
        *(_weight(recurrence, known[w.weight], w) for w in recurrence.weights),
        *(_entering(recurrence, n, jnp.reshape(known[n], (-1,)), 0, 0) for n in recurrence.vectors),
        *(_entering(recurrence, n, known[n], 0, padding) for n in recurrence.rows),
        *(_entering(recurrence, n, a, 0, padding) for n, a in zip(recurrence.carry, carry, strict=True)),
        *(_entering(recurrence, n, over_time[n], 1, padding) for n in recurrence.entering),
    ]
    left = _kernel(recurrence, steps, B + padding, reverse, interpret)(*arrays)
    end = [_leaving(recurrence, n, a[:B]) for n, a in zip(outputs[:n_carry], left, strict=False)]
    ys = [_leaving(recurrence, n, a[:, :B]) for n, a in zip(outputs[n_carry:], left[n_carry:], strict=False)]
    return [*end, *ys]


def run_transposed(
    transposed: TransposedRecurrence,
    consts: Sequence[Any],
    entering: Sequence[Any],
    d_end: Sequence[Any],
    d_ys: Sequence[Any],
    **options: Any,
) -> tuple[list[Any], list[Any], list[Any]]:
    """The cotangents of constants, of the carry at the start and of what enters, by the kernel of the backward loop.

    Args:
        transposed: the step of that loop, cut.
        consts, entering: as the forward loop has them; what is among those linear is not looked at.
        d_end, d_ys: the cotangents of the final carry and of the outputs.
        options: as for ``run_recurrence``; ``reverse`` is that of the backward loop.

    Returns:
        Three lists, None in the place of what the step is not linear in.
    """
    linear_consts, linear_x = transposed.linear_consts, transposed.linear_x
    fixed = [a for a, kind in zip(consts, linear_consts, strict=True) if kind is None]
    known = [a for a, is_linear in zip(entering, linear_x, strict=True) if not is_linear]
    made = iter(run_recurrence(transposed.recurrence, fixed, d_end, [*d_ys, *known], **options))
    d_carry = [next(made) for _ in d_end]
    d_x = [next(made) if is_linear else None for is_linear in linear_x]
    d_consts: list[Any] = [None if kind is None else jnp.zeros(kind.shape, kind.dtype) for kind in linear_consts]
    for place, d in zip(transposed.uses, made, strict=True):
        d_consts[place] += _added_up(d, d_consts[place].shape)
    return d_consts, d_carry, d_x


def _added_up(d: Any, shape: tuple[int, ...]) -> Any:
    """(T, B, F) summed to the shape of what was spread over it."""
    if shape == d.shape[1:]:
        return jnp.sum(d, 0)
    columns = jnp.sum(d, (0, 1))
    return jnp.reshape(columns if math.prod(shape) == columns.size else jnp.sum(columns), shape)


def _weight(recurrence: Recurrence, W: Any, of: Product) -> Any:
    """(blocks, N, K), K contracted: tensor cores read numbers of 32 bits in no other order."""
    W = W if of.axis == 1 else W.T
    op = next(op for op in recurrence.each_step if op.name == "dot_general" and product(op) == of)
    W = W[_order(recurrence, op.outputs[0])][:, _order(recurrence, op.inputs[0])]
    return W.reshape(recurrence.blocks, *recurrence.weight_shape(of))


def _order(recurrence: Recurrence, n: int) -> Any:
    """The columns of a value, one block's after the other's."""
    widths = recurrence.pieces.get(n, ())
    return order(widths, recurrence.blocks) if len(widths) > 1 else slice(None)


def _entering(recurrence: Recurrence, n: int, a: Any, axis: int, padding: int) -> Any:
    """Rows for whole blocks, copies of the last: numbers that the step was made for. Flags enter as numbers."""
    a = (a.astype(jnp.float32) if a.dtype == jnp.bool_ else a)[..., _order(recurrence, n)]
    widths = [(0, padding if i == axis else 0) for i in range(a.ndim)]
    return jnp.pad(a, widths, mode="edge") if padding else a


def _leaving(recurrence: Recurrence, n: int, a: Any) -> Any:
    """An output as the program has it."""
    columns = _order(recurrence, n)
    a = a if isinstance(columns, slice) else a[..., np.argsort(columns)]
    return a != 0 if recurrence.program.kinds[n].dtype == jnp.bool_ else a


def _kernel(recurrence: Recurrence, T: int, rows: int, reverse: bool, interpret: bool) -> Callable[..., list[Any]]:
    _, plgpu = _pallas()
    program, kinds, blocks = recurrence.program, recurrence.program.kinds, recurrence.blocks

    def output(n, *leading):
        dtype = jnp.dtype("float32") if kinds[n].dtype == jnp.bool_ else kinds[n].dtype
        return jax.ShapeDtypeStruct((*leading, rows, kinds[n].shape[1] * blocks), dtype)

    end = [output(n) for n in program.outputs[: recurrence.n_carry]]
    ys = [output(n, T) for n in program.outputs[recurrence.n_carry :]]
    weights = [plgpu.SMEM(recurrence.weight_shape(w), kinds[w.weight].dtype) for w in recurrence.weights]
    operands, parts_of_a_block, exchanged = [], [], []
    for n, dtype, parts in recurrence.operands:
        own = kinds[n].shape[1]
        operands.append([plgpu.SMEM((ROWS, own * blocks), dtype)] * parts)
        if blocks > 1:
            parts_of_a_block.append([plgpu.SMEM((ROWS, own), dtype)] * parts)
            exchanged += [jax.ShapeDtypeStruct((2, rows, own * blocks), dtype)] * parts
    barriers = [plgpu.Barrier(num_arrivals=len(weights))]
    if blocks > 1:
        barriers += [plgpu.Barrier(), plgpu.ClusterBarrier(collective_axes=("units",))]
    return plgpu.kernel(
        functools.partial(_body, recurrence, T, reverse),
        out_type=[*end, *ys, *exchanged],
        scratch_types=[*weights, *operands, *parts_of_a_block, *barriers],
        grid=(rows // ROWS,),
        grid_names=("rows",),
        cluster=(blocks,) if blocks > 1 else (),
        cluster_names=("units",) if blocks > 1 else (),
        interpret=plgpu.InterpretGPUParams() if interpret else None,
        kernel_name="recurrence",
    )


def _body(recurrence: Recurrence, T: int, reverse: bool, *refs: Any) -> None:
    """What one block does."""
    pl, plgpu = _pallas()
    program, kinds, blocks = recurrence.program, recurrence.program.kinds, recurrence.blocks
    n_carry, n_operands = recurrence.n_carry, len(recurrence.operands)
    taken = iter(refs)

    def take(count):
        return [next(taken) for _ in range(count)]

    weights = take(len(recurrence.weights))
    vectors, constant_rows = take(len(recurrence.vectors)), take(len(recurrence.rows))
    carry, entering = take(n_carry), take(len(recurrence.entering))
    end, ys = take(n_carry), take(len(program.outputs) - n_carry)
    exchanged = [take(of.parts) for of in recurrence.operands] if blocks > 1 else [[]] * n_operands
    in_shared = dict(zip(recurrence.weights, take(len(weights)), strict=True))
    whole = take(n_operands)
    own = take(n_operands) if blocks > 1 else whole
    operands = dict(zip(recurrence.operands, zip(whole, own, exchanged, strict=True), strict=True))
    rows = pl.ds(jax.lax.axis_index("rows") * ROWS, ROWS)
    block = jax.lax.axis_index("units") if blocks > 1 else 0
    filled, *between_blocks = taken

    def columns(n):
        width = kinds[n].shape[-1] if kinds[n].ndim else 1
        return pl.ds(block * width, width) if blocks > 1 and n in recurrence.pieces else slice(None)

    def read(numbers, refs, *index):
        return {n: _read(kinds[n], ref, *index, columns(n)) for n, ref in zip(numbers, refs, strict=True)}

    def write(numbers, refs, values, *index):
        for n, ref, value in zip(numbers, refs, values, strict=True):
            _write(value, ref, *index, columns(n))

    for source, W in zip(weights, in_shared.values(), strict=True):
        plgpu.copy_gmem_to_smem(source.at[block], W, filled)
    plgpu.barrier_wait(filled)
    fixed = read(recurrence.vectors, vectors) | read(recurrence.rows, constant_rows, rows)

    def step(i, held):
        t = T - 1 - i if reverse else i
        values = fixed | dict(zip(recurrence.carry, held, strict=True)) | read(recurrence.entering, entering, t, rows)
        stored: set[Operand] = set()

        def multiply(op):
            x, out = operand(program, op), kinds[op.outputs[0]]
            whole, own, exchanged = operands[x]
            if x not in stored:
                _store_in_parts(values[x.value], own)
                plgpu.commit_smem()
                if blocks > 1:
                    _hand_over(
                        own, whole, [ref.at[i % 2, rows] for ref in exchanged], columns(x.value), *between_blocks
                    )
                stored.add(x)
            multiply = functools.partial(_multiply, whole, in_shared[product(op)])
            return pl.run_scoped(multiply, plgpu.ACC((ROWS, out.shape[1]), jnp.float32)).astype(out.dtype)

        for op in recurrence.each_step:
            made = [multiply(op)] if op.name == "dot_general" else _elementwise(recurrence, op, values)
            values.update(zip(op.outputs, made, strict=True))
        new = [_whole(recurrence, n, values) for n in program.outputs]
        write(program.outputs[n_carry:], ys, new[n_carry:], t, rows)
        return tuple(new[:n_carry])

    start = tuple(read(recurrence.carry, carry, rows).values())
    held = jax.lax.fori_loop(0, T, step, start)
    write(program.outputs[:n_carry], end, held, rows)


def _hand_over(own: Any, whole: Any, exchanged: Any, columns: Any, arrived: Any, all_blocks: Any) -> None:
    """The parts of all blocks of an operand, from their shared memory into that of each, by way of global memory.

    Two buffers take turns: who is at step t + 2 has met all others at step t + 1, where they had read those of step t.
    """
    _, plgpu = _pallas()
    for part, shared in zip(own, exchanged, strict=True):
        plgpu.copy_smem_to_gmem(part, shared.at[:, columns])
    plgpu.wait_smem_to_gmem(0)
    plgpu.barrier_arrive(all_blocks)
    plgpu.barrier_wait(all_blocks)
    for shared, part in zip(exchanged, whole, strict=True):
        plgpu.copy_gmem_to_smem(shared, part, arrived)
        plgpu.barrier_wait(arrived)


def _store_in_parts(value: Any, parts: Sequence[Any]) -> None:
    """A value as the sum of numbers of fewer bits: two bfloat16 hold 16 bits of a float32's 24."""
    for part in parts:
        rounded = value.astype(part.dtype)
        part[...] = rounded
        value = value - rounded.astype(value.dtype)


def _multiply(parts: Sequence[Any], W: Any, accumulator: Any) -> Any:
    """``x @ Wᵀ`` by the tensor cores, in at most 256 columns at once; x is the sum of the parts."""
    pl, plgpu = _pallas()
    N = W.shape[0]
    for first in range(0, N, WIDEST):
        columns = pl.ds(first, min(WIDEST, N - first))
        columns_of = accumulator if N <= WIDEST else accumulator.at[:, columns]
        of_part = W if N <= WIDEST else W.at[columns]
        for x in parts:
            plgpu.wgmma(columns_of, x, of_part.transpose((1, 0)))
    return accumulator[...]


def _elementwise(recurrence: Recurrence, op: Op, values: dict[int, Any]) -> list[Any]:
    """What the operation makes of a block's rows."""
    kinds, params = recurrence.program.kinds, op.params
    if op.name == "slice":
        return [_columns(values[op.inputs[0]], params["start_indices"][1], params["limit_indices"][1])]
    if op.name == "split":
        made, first = [], 0
        for size in params["sizes"]:
            made.append(_columns(values[op.inputs[0]], first, first + size))
            first += size
        return made
    if op.name == "concatenate":
        return [jax.lax.concatenate([_whole(recurrence, n, values) for n in op.inputs], 1)]
    if op.name == "pad":
        (low, high, _), dtype = params["padding_config"][1], kinds[op.outputs[0]].dtype
        zeros = [jnp.full((ROWS, size), recurrence.filled[op.inputs[1]], dtype) for size in (low, high)]
        joined = [a for a in (zeros[0], values[op.inputs[0]], zeros[1]) if a.shape[1]]
        return [jax.lax.concatenate(joined, 1) if len(joined) > 1 else joined[0]]
    operands = [_whole(recurrence, n, values, kinds[op.outputs[0]].shape[1]) for n in op.inputs]
    instead = INSTEAD.get(op.name)
    return [instead(*operands)] if instead else list(op.run(*operands))


def _columns(a: Any, first: int, last: int) -> Any:
    return jax.lax.slice(a, (0, first), (a.shape[0], last))


def _whole(recurrence: Recurrence, n: int, values: dict[int, Any], width: int | None = None) -> Any:
    """A value as (64, F): of a constant, its copies."""
    kind = recurrence.program.kinds[n]
    shape = (ROWS, kind.shape[-1] if kind.shape and kind.shape[-1] != 1 else width or 1)
    if n in recurrence.filled:
        return jnp.full(shape, recurrence.filled[n], kind.dtype)
    value = values[n]
    if value.ndim == 2:
        return value
    if value.shape[0] == 1:
        return jnp.broadcast_to(value[0], shape)
    return jax.lax.broadcast_in_dim(value, shape, (1,))


def _read(kind: Any, ref: Any, *index: Any) -> Any:
    _, plgpu = _pallas()
    value = plgpu.load(ref.at[index], optimized=_whole_lines(ref, kind.shape[-1] if kind.ndim else 1))
    return value != 0 if kind.dtype == jnp.bool_ else value


def _write(value: Any, ref: Any, *index: Any) -> None:
    _, plgpu = _pallas()
    value = value.astype(jnp.float32) if value.dtype == jnp.bool_ else value
    plgpu.store(ref.at[index], value, optimized=_whole_lines(ref, value.shape[-1]))


def _whole_lines(ref: Any, columns: int) -> bool:
    """Whether threads read whole cache lines: of others the compiler has no optimised access, and says so."""
    itemsize: int = ref.dtype.itemsize
    return itemsize == 4 and columns * itemsize % 128 == 0
