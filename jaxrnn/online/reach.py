"""Which numbers of a function's outputs depend on which of its inputs, found from its traced derivative."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from jaxrnn.programs.primitives import CHEAP, has
from jaxrnn.programs.program import Op, Program
from jaxrnn.programs.tracing import flat_program, is_call

LARGEST = 2**27  # entries of a pattern that are found one by one; beyond, all is taken to depend on all


class TooLargeError(Exception):
    """A pattern of more than LARGEST entries."""


class Value(NamedTuple):
    """What is known of a value before it is computed."""

    known: np.ndarray | None  # its numbers, where they depend on no input
    nonzero: np.ndarray | None  # where it may be other than 0, in its shape; None: everywhere
    depends: Any = None  # a sparse matrix of booleans, its numbers × those of the inputs; None: on none of them


UNKNOWN = Value(None, None)


def jacobian_pattern(
    function: Callable[..., Sequence[Any]], moving: Sequence[Any], fixed: Sequence[Any], values: Sequence[Any] = ()
) -> Any:
    """The entries of a Jacobian that may be other than 0: a sparse boolean matrix, outputs × inputs.

    It is read from the program of ``jax.jvp``, so that custom derivative rules and ``stop_gradient`` count as they
    differentiate. What is not known of an operation makes the pattern larger, never smaller.

    Args:
        function: ``(*moving, *fixed) -> [arrays]``, of which the derivative is taken.
        moving: the types of the inputs by which it is taken, real arrays.
        fixed: those of the others.
        values: of ``moving``, then ``fixed``: those that are the same in every call, None where they are not known.

    Raises:
        TooLargeError: a pattern of too many entries.
        TypeError: from JAX, of a function that has no forward mode.
    """
    from scipy import sparse

    n = len(moving)

    def tangents(*arrays):
        primals, directions, others = arrays[:n], arrays[n : 2 * n], arrays[2 * n :]
        return jax.jvp(lambda *primals: list(function(*primals, *others)), primals, directions)[1]

    program, _, _ = flat_program(tangents, *moving, *moving, *fixed, flattens=is_call)
    sizes = [math.prod(a.shape) for a in moving]
    total, first = sum(sizes), 0
    primals = [UNKNOWN if value is None else _known(value) for value in values or [None] * (n + len(fixed))]
    given = primals[:n]
    for size in sizes:
        place = sparse.csr_matrix(
            (np.ones(size, bool), np.arange(first, first + size), np.arange(size + 1)), shape=(size, total)
        )
        given.append(Value(None, None, place))
        first += size
    outputs = _run(program, [*given, *primals[n:]])
    parts = [
        sparse.csr_matrix((program.size(k), total), dtype=bool) if v.depends is None else v.depends
        for k, v in zip(program.outputs, outputs, strict=True)
    ]
    found = sparse.vstack(parts, format="csr") if parts else sparse.csr_matrix((0, total), dtype=bool)
    found.sort_indices()
    return found


def _known(value: Any) -> Value:
    """A constant, as far as its numbers are there."""
    if isinstance(value, jax.core.Tracer) or jax.dtypes.issubdtype(jax.numpy.result_type(value), jax.dtypes.extended):
        return UNKNOWN
    array = np.asarray(value)
    return Value(array, array != 0)


def _run(program: Program, given: Sequence[Value]) -> list[Value]:
    values = dict(zip(program.inputs, given, strict=True))
    values |= {number: _known(value) for number, value in program.consts.items()}
    for op in program.ops:
        of = [values[n] for n in op.inputs]
        kinds = [program.kinds[n] for n in op.inputs]
        made = [program.kinds[n] for n in op.outputs]
        values.update(zip(op.outputs, _of_op(op, of, kinds, made), strict=True))
    return [values[n] for n in program.outputs]


def _of_op(op: Op, of: Sequence[Value], kinds: Sequence[Any], made: Sequence[Any]) -> list[Value]:
    if op.name == "constant":
        return [_known(op.params["value"])]
    if op.name == "cond":
        return _cond(op, of, kinds, made)
    if all(v.depends is None for v in of):
        return _primal(op, of, kinds, made)
    if op.name == "select_n" and of[0].depends is None:
        return [_select(of, kinds, made[0])]
    if (sources := _sources(op, of, kinds, made)) is not None:
        return [_taken(of, kinds, rows) for rows in sources]
    if op.name == "reduce_sum":
        return [_sum(op, of[0], kinds[0], made[0])]
    if _is_elementwise(op, kinds, made):
        return [_elementwise(op, of, kinds, made[0])]
    if op.name == "dot_general" and sum(v.depends is not None for v in of) == 1:
        return [_product(op, of, kinds, made[0])]
    if op.name == "conv_general_dilated" and sum(v.depends is not None for v in of) == 1:
        return [_linear(op, of, kinds, made[0])]
    return _everything(of, made)


def _primal(op: Op, of: Sequence[Value], kinds: Sequence[Any], made: Sequence[Any]) -> list[Value]:
    """Of a value that depends on no tangent: its numbers where all are known, else where it may be other than 0."""
    if all(v.known is not None for v in of) and sum(math.prod(a.shape) for a in made) <= LARGEST:
        if op.name == "broadcast_in_dim":
            return [_known(_broadcast(of[0].known, op.params, made[0].shape))]
        if op.name == "convert_element_type":
            return [_known(of[0].known.astype(made[0].dtype))]  # type: ignore[union-attr]
        with jax.ensure_compile_time_eval():
            return [_known(a) for a in op.run(*(v.known for v in of))]
    zeros = [v.nonzero for v in of]
    if all(z is None for z in zeros) and op.name != "select_n":
        return [UNKNOWN] * len(made)
    where = [np.ones(k.shape, bool) if z is None else z for z, k in zip(zeros, kinds, strict=True)]
    shape = made[0].shape
    if op.name == "select_n" and of[0].known is not None:
        return [Value(None, np.choose(np.broadcast_to(of[0].known, shape).astype(int), where[1:]))]
    if op.name == "select_n":
        return [Value(None, np.logical_or.reduce(where[1:]))]
    if op.name == "mul":
        return [Value(None, np.broadcast_to(where[0] & where[1], shape))]
    if op.name in ("add", "sub", "add_any"):
        return [Value(None, np.broadcast_to(where[0] | where[1], shape))]
    if op.name in ("div", "neg", "convert_element_type", "copy", "tanh", "sin", "real", "imag", "conj", "abs", "sign"):
        return [Value(None, np.broadcast_to(where[0], shape))]
    if op.name in ("stop_gradient", "integer_pow", "square", "sqrt", "optimization_barrier") and len(made) == 1:
        return [Value(None, where[0])]
    if (sources := _sources(op, of, kinds, made)) is not None:
        flat = np.concatenate([*(w.ravel() for w in where), [False]])
        return [Value(None, flat[rows]) for rows in sources]
    return [UNKNOWN] * len(made)


def _sources(op: Op, of: Sequence[Value], kinds: Sequence[Any], made: Sequence[Any]) -> list[np.ndarray] | None:
    """Of an operation that moves numbers about: for each of the outputs' the place of the one that it is.

    Places count through the inputs one after the other; -1 is a 0 from nowhere. None: another operation.
    """
    first = np.cumsum([0, *(math.prod(k.shape) for k in kinds)])
    places = [np.arange(a, b).reshape(k.shape) for a, b, k in zip(first, first[1:], kinds, strict=False)]
    name, params = op.name, op.params
    if name == "concatenate":
        return [np.concatenate(places, params["dimension"])]
    if name == "stack":
        return [np.stack(places, params["axis"])]
    if name == "pad":
        return _pad(places, of, params, made)
    if name in ("dynamic_slice", "gather"):
        if any(v.known is None for v in of[1:]) or of[0].known is not None:
            return None
        with jax.ensure_compile_time_eval():
            return [np.asarray(op.run(places[0].astype(np.int32), *(v.known for v in of[1:]))[0])]
    if name in ("reshape", "squeeze", "expand_dims"):
        order = params["dimensions"] if name == "reshape" else None
        return [np.transpose(places[0], order or range(places[0].ndim)).reshape(made[0].shape)]
    moves: dict[str, Callable[[np.ndarray], Any]] = {
        "transpose": lambda a: np.transpose(a, params["permutation"]),
        "broadcast_in_dim": lambda a: _broadcast(a, params, made[0].shape),
        "slice": lambda a: a[tuple(map(slice, params["start_indices"], params["limit_indices"], _strides(params)))],
        "rev": lambda a: np.flip(a, params["dimensions"]),
        "copy": lambda a: a,
        "stop_gradient": lambda a: a,
    }
    if name in moves:
        return [moves[name](places[0])]
    if name == "split":
        return np.split(places[0], np.cumsum(params["sizes"])[:-1], params["axis"])
    if name == "unstack":
        return [np.take(places[0], i, params["axis"]) for i in range(len(made))]
    if name == "optimization_barrier":
        return places
    return None


def _strides(params: Any) -> Any:
    return params["strides"] or (1,) * len(params["start_indices"])


def _broadcast(a: Any, params: Any, shape: tuple[int, ...]) -> np.ndarray:
    aligned = [1] * len(shape)
    for size, axis in zip(np.shape(a), params["broadcast_dimensions"], strict=True):
        aligned[axis] = size
    return np.broadcast_to(np.reshape(a, aligned), shape)


def _pad(places: Sequence[np.ndarray], of: Sequence[Value], params: Any, made: Sequence[Any]) -> Any:
    if any(min(config) < 0 for config in params["padding_config"]):
        return None
    filled = np.full(made[0].shape, -1)
    if of[1].depends is not None or of[1].known is None or of[1].known != 0:
        filled[...] = places[1]
    cut = (
        slice(low, low + (size - 1) * (inner + 1) + 1 if size else low, inner + 1)
        for (low, _, inner), size in zip(params["padding_config"], places[0].shape, strict=True)
    )
    filled[tuple(cut)] = places[0]
    return [filled]


def _taken(of: Sequence[Value], kinds: Sequence[Any], rows: np.ndarray) -> Value:
    """What the numbers at these places of the inputs, one after the other, depend on."""
    from scipy import sparse

    flat = rows.ravel()
    if len(of) == 1 and not (flat < 0).any():
        return Value(None, None, of[0].depends[flat])
    total = _total(of)
    sizes = [math.prod(kind.shape) for kind in kinds]
    parts = [
        v.depends if v.depends is not None else sparse.csr_matrix((size, total), dtype=bool)
        for v, size in zip(of, sizes, strict=True)
    ]
    whole = sparse.vstack([*parts, sparse.csr_matrix((1, total), dtype=bool)], format="csr")
    return Value(None, None, whole[np.where(flat < 0, sum(sizes), flat)])


def _total(of: Sequence[Value]) -> int:
    return next(v.depends.shape[1] for v in of if v.depends is not None)


def _union(parts: Sequence[Any]) -> Any:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return _checked(whole)


def _checked(depends: Any) -> Any:
    if depends.nnz > LARGEST:
        raise TooLargeError
    return depends


def _sum(op: Op, of: Value, kind: Any, made: Any) -> Value:
    from scipy import sparse

    n, m = math.prod(kind.shape), math.prod(made.shape)
    kept = [1 if axis in op.params["axes"] else size for axis, size in enumerate(kind.shape)]
    out = np.broadcast_to(np.arange(m).reshape(kept), kind.shape).ravel()
    adds = sparse.csr_matrix((np.ones(n, bool), (out, np.arange(n))), shape=(m, n))
    return Value(None, None, _checked(adds @ of.depends))


def _is_elementwise(op: Op, kinds: Sequence[Any], made: Sequence[Any]) -> bool:
    """Number by number, operands of size 1 stretched."""
    if op.name.startswith(("reduce_", "cum", "arg")) or len(made) != 1:
        return False
    if not (has(op.name, CHEAP) or op.name in ("complex", "pvary", "reduce_precision", "sharding_constraint")):
        return False
    shape = made[0].shape
    return all(
        not k.shape or (len(k.shape) == len(shape) and all(a in (1, b) for a, b in zip(k.shape, shape, strict=True)))
        for k in kinds
    )


def _elementwise(op: Op, of: Sequence[Value], kinds: Sequence[Any], made: Any) -> Value:
    """Number by number; what a coefficient takes out depends on nothing."""
    parts = []
    for v, kind in zip(of, kinds, strict=True):
        if v.depends is not None:
            places = np.broadcast_to(np.arange(math.prod(kind.shape)).reshape(kind.shape), made.shape)
            parts.append(v.depends[places.ravel()] if kind.shape != made.shape else v.depends)
    depends = _union(parts)
    if op.name == "mul" and len(parts) == 1:
        (coefficient,) = (v for v in of if v.depends is None)
        depends = _where(depends, coefficient.nonzero, made.shape)
    return Value(None, None, depends)


def _where(depends: Any, nonzero: np.ndarray | None, shape: tuple[int, ...]) -> Any:
    from scipy import sparse

    if nonzero is None or nonzero.all():
        return depends
    return sparse.diags(np.broadcast_to(nonzero, shape).ravel(), dtype=bool).tocsr() @ depends


def _select(of: Sequence[Value], kinds: Sequence[Any], made: Any) -> Value:
    """Of what is chosen, where that is known; else of all that may be."""
    parts = []
    for index, v in enumerate(of[1:]):
        if v.depends is not None:
            chosen = None if of[0].known is None else of[0].known.astype(int) == index
            parts.append(_where(v.depends, chosen, made.shape))
    return Value(None, None, _union(parts))


def product_entries(params: Any, kinds: Sequence[Any], moving: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(out, of, by)`` of a product: that number of the output has that number of the moving operand, times that of
    the other."""
    (contract_a, contract_b), (batch_a, batch_b) = params["dimension_numbers"]
    letters = iter(range(1000))
    a, b = [-1] * len(kinds[0].shape), [-1] * len(kinds[1].shape)
    for pairs in ((batch_a, batch_b), (contract_a, contract_b)):
        for i, j in zip(*pairs, strict=True):
            a[i] = b[j] = next(letters)
    a, b = ([x if x >= 0 else next(letters) for x in axes] for axes in (a, b))
    free_a = [a[i] for i in range(len(a)) if i not in (*contract_a, *batch_a)]
    free_b = [b[j] for j in range(len(b)) if j not in (*contract_b, *batch_b)]
    out = [a[i] for i in batch_a] + free_a + free_b
    size = dict(zip([*a, *b], [*kinds[0].shape, *kinds[1].shape], strict=True))
    every = out + [a[i] for i in contract_a]
    if math.prod(size[x] for x in every) > LARGEST:
        raise TooLargeError
    whole = [size[x] for x in every]

    def places(axes: Sequence[int]) -> np.ndarray:
        own = np.arange(math.prod(size[x] for x in axes)).reshape([size[x] for x in axes])
        order = sorted(range(len(axes)), key=lambda k: every.index(axes[k]))
        shape = [size[x] if x in axes else 1 for x in every]
        return np.broadcast_to(own.transpose(order).reshape(shape), whole).ravel()

    operands = places(a), places(b)
    return places(out), operands[moving], operands[1 - moving]


def _product(op: Op, of: Sequence[Value], kinds: Sequence[Any], made: Any) -> Value:
    from scipy import sparse

    moving = 0 if of[0].depends is not None else 1
    out, source, by = product_entries(op.params, kinds, moving)
    nonzero = of[1 - moving].nonzero
    if nonzero is not None:
        there = nonzero.ravel()[by]
        out, source = out[there], source[there]
    shape = (math.prod(made.shape), math.prod(kinds[moving].shape))
    reads = sparse.csr_matrix((np.ones(len(out), bool), (out, source)), shape=shape)
    return Value(None, None, _checked(reads @ of[moving].depends))


def _linear(op: Op, of: Sequence[Value], kinds: Sequence[Any], made: Any) -> Value:
    """A convolution: which numbers it reads, from its Jacobian where all coefficients are 1."""
    from scipy import sparse

    moving = 0 if of[0].depends is not None else 1
    n, m = (math.prod(kind.shape) for kind in (kinds[moving], made))
    if n * m > LARGEST:
        raise TooLargeError
    ones = [np.ones(kind.shape, np.float32) for kind in kinds]

    def convolved(a):
        operands = [a if i == moving else b for i, b in enumerate(ones)]
        params = {**op.params, "preferred_element_type": None}
        return jax.lax.conv_general_dilated_p.bind(*operands, **params)

    with jax.ensure_compile_time_eval():
        basis = np.eye(n, dtype=np.float32).reshape(n, *kinds[moving].shape)
        columns = np.asarray(jax.vmap(convolved)(basis)).reshape(n, m)
    return Value(None, None, _checked(sparse.csr_matrix(columns.T != 0) @ of[moving].depends))


def _everything(of: Sequence[Value], made: Sequence[Any]) -> list[Value]:
    """Of an operation of which nothing is known: all that any of its inputs depends on."""
    from scipy import sparse

    row = sparse.csr_matrix((1, _total(of)), dtype=bool)
    for v in of:
        if v.depends is not None:
            row = row + sparse.csr_matrix(np.ones((1, v.depends.shape[0]), bool)) @ v.depends
    sizes = [math.prod(kind.shape) for kind in made]
    if row.nnz * sum(sizes) > LARGEST:
        raise TooLargeError
    return [Value(None, None, sparse.csr_matrix(np.ones((size, 1), bool)) @ row) for size in sizes]


def _cond(op: Op, of: Sequence[Value], kinds: Sequence[Any], made: Sequence[Any]) -> list[Value]:
    """Of the branches, each by its own program."""
    branches = []
    for closed in op.params["branches"]:
        program, _, _ = flat_program(jaxpr_as_fun(closed), *closed.in_avals, flattens=is_call)
        branches.append(_run(program, of[1:]))
    if of[0].known is not None:
        return branches[int(np.clip(int(of[0].known), 0, len(branches) - 1))]
    outputs = []
    for several in zip(*branches, strict=True):
        parts = [v.depends for v in several if v.depends is not None]
        outputs.append(Value(None, None, _union(parts)) if parts else UNKNOWN)
    return outputs
