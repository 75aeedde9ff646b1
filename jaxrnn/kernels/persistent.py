"""The kernel of a recurrence, written with Pallas: weights stay in shared memory for all T steps.

A block has 64 rows of the batch. It copies the weights to shared memory once and keeps the carry in registers. At each
step it puts what is multiplied next into shared memory, the tensor cores multiply it (``wgmma``), and the elementwise
work of the step is done on the products where they are, in registers. Blocks never wait for each other: rows of a batch
do not meet, and a step whose weights one block cannot hold is refused by ``recurrence``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.kernels.memory import ROWS
from jaxrnn.kernels.recurrence import Operand, Product, Recurrence, TransposedRecurrence, operand, product
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
    arrays = [
        *(_weight(known[w.weight], w) for w in recurrence.weights),
        *(jnp.reshape(_padded(known[n], 0, 0), (-1,)) for n in recurrence.vectors),
        *(_padded(known[n], 0, padding) for n in recurrence.rows),
        *(_padded(a, 0, padding) for a in carry),
        *(_padded(over_time[n], 1, padding) for n in recurrence.entering),
    ]
    outputs = _kernel(recurrence, steps, B + padding, reverse, interpret)(*arrays)
    n = recurrence.n_carry
    kinds = [program.kinds[n] for n in program.outputs]
    end = [_entered_as(a[:B], kind.dtype) for a, kind in zip(outputs[:n], kinds[:n], strict=True)]
    ys = [_entered_as(a[:, :B], kind.dtype) for a, kind in zip(outputs[n:], kinds[n:], strict=True)]
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


def _weight(W: Any, product: Product) -> Any:
    """(N, K), K contracted: tensor cores read numbers of 32 bits in no other order."""
    return W if product.axis == 1 else W.T


def _padded(a: Any, axis: int, padding: int) -> Any:
    """Rows for whole blocks, copies of the last: numbers that the step was made for. Flags enter as numbers."""
    a = a.astype(jnp.float32) if a.dtype == jnp.bool_ else a
    widths = [(0, padding if i == axis else 0) for i in range(a.ndim)]
    return jnp.pad(a, widths, mode="edge") if padding else a


def _entered_as(a: Any, dtype: Any) -> Any:
    return a != 0 if dtype == jnp.bool_ else a


def _kernel(recurrence: Recurrence, T: int, rows: int, reverse: bool, interpret: bool) -> Callable[..., list[Any]]:
    _, plgpu = _pallas()
    program = recurrence.program
    kinds = program.kinds

    def dtype(n):
        return jnp.dtype("float32") if kinds[n].dtype == jnp.bool_ else kinds[n].dtype

    end = [jax.ShapeDtypeStruct((rows, kinds[n].shape[1]), dtype(n)) for n in program.outputs[: recurrence.n_carry]]
    ys = [jax.ShapeDtypeStruct((T, rows, kinds[n].shape[1]), dtype(n)) for n in program.outputs[recurrence.n_carry :]]
    weights = [
        plgpu.SMEM(kinds[w.weight].shape[:: 1 if w.axis == 1 else -1], kinds[w.weight].dtype)
        for w in recurrence.weights
    ]
    operands = [[plgpu.SMEM((ROWS, kinds[n].shape[1]), dtype)] * parts for n, dtype, parts in recurrence.operands]
    return plgpu.kernel(
        functools.partial(_body, recurrence, T, reverse),
        out_type=[*end, *ys],
        scratch_types=[*weights, *operands, plgpu.Barrier(num_arrivals=len(weights))],
        grid=(rows // ROWS,),
        grid_names=("rows",),
        interpret=plgpu.InterpretGPUParams() if interpret else None,
        kernel_name="recurrence",
    )


def _body(recurrence: Recurrence, T: int, reverse: bool, *refs: Any) -> None:
    """What one block does."""
    pl, plgpu = _pallas()
    program = recurrence.program
    taken = iter(refs)

    def take(count):
        return [next(taken) for _ in range(count)]

    weights = take(len(recurrence.weights))
    vectors, constant_rows = take(len(recurrence.vectors)), take(len(recurrence.rows))
    carry, entering = take(recurrence.n_carry), take(len(recurrence.entering))
    end, ys = take(recurrence.n_carry), take(len(program.outputs) - recurrence.n_carry)
    in_shared = dict(zip(recurrence.weights, take(len(weights)), strict=True))
    operands = dict(zip(recurrence.operands, take(len(recurrence.operands)), strict=True))
    (barrier,) = take(1)
    rows = pl.ds(jax.lax.axis_index("rows") * ROWS, ROWS)

    for source, W in zip(weights, in_shared.values(), strict=True):
        plgpu.copy_gmem_to_smem(source, W, barrier)
    plgpu.barrier_wait(barrier)
    fixed = {n: _read(program, n, ref, ...) for n, ref in zip(recurrence.vectors, vectors, strict=True)}
    fixed |= {n: _read(program, n, ref, rows) for n, ref in zip(recurrence.rows, constant_rows, strict=True)}

    def step(i, held):
        t = T - 1 - i if reverse else i
        values = dict(fixed) | dict(zip(recurrence.carry, held, strict=True))
        values |= {n: _read(program, n, ref, t, rows) for n, ref in zip(recurrence.entering, entering, strict=True)}
        stored: set[Operand] = set()

        def multiply(op):
            x, out = operand(program, op), program.kinds[op.outputs[0]]
            if x not in stored:
                _store_in_parts(values[x.value], operands[x])
                plgpu.commit_smem()
                stored.add(x)
            multiply = functools.partial(_multiply, operands[x], in_shared[product(op)])
            return pl.run_scoped(multiply, plgpu.ACC((ROWS, out.shape[1]), jnp.float32)).astype(out.dtype)

        for op in recurrence.each_step:
            made = [multiply(op)] if op.name == "dot_general" else _elementwise(recurrence, op, values)
            values.update(zip(op.outputs, made, strict=True))
        new = [_whole(recurrence, n, values) for n in program.outputs]
        for n, ref, value in zip(program.outputs[recurrence.n_carry :], ys, new[recurrence.n_carry :], strict=True):
            _write(program, n, value, ref, t, rows)
        return tuple(new[: recurrence.n_carry])

    start = tuple(_read(program, n, ref, rows) for n, ref in zip(recurrence.carry, carry, strict=True))
    held = jax.lax.fori_loop(0, T, step, start)
    for n, ref, value in zip(recurrence.carry, end, held, strict=True):
        _write(program, n, value, ref, rows)


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


def _read(program: Any, n: int, ref: Any, *index: Any) -> Any:
    _, plgpu = _pallas()
    value = plgpu.load(ref.at[index], optimized=_whole_lines(ref))
    return value != 0 if program.kinds[n].dtype == jnp.bool_ else value


def _write(program: Any, n: int, value: Any, ref: Any, *index: Any) -> None:
    _, plgpu = _pallas()
    value = value.astype(jnp.float32) if program.kinds[n].dtype == jnp.bool_ else value
    plgpu.store(ref.at[index], value, optimized=_whole_lines(ref))


def _whole_lines(ref: Any) -> bool:
    """Whether threads read whole cache lines: of others the compiler has no optimised access, and says so."""
    itemsize: int = ref.dtype.itemsize
    return itemsize == 4 and ref.shape[-1] * itemsize % 128 == 0
