"""A traced program run in NumPy, operation by operation: compiling it takes longer than all that a small model does.

``evaluated(f)(*args)`` is ``f(*args)``. ``test_random_models.py`` holds it against XLA.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from jaxrnn.loops.chunked import as_loops, tell


def evaluated(function: Callable) -> Callable:
    """The function, traced as under ``jax.jit`` and run in NumPy."""

    def run(*args):
        closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = _closed(closed, {})(*map(np.asarray, jax.tree.leaves(args)))
        return jax.tree.unflatten(jax.tree.structure(out), outputs)

    return run


def _closed(closed: Any, made: dict) -> Callable:
    """``(*values) -> [values]`` of a jaxpr; those that occur several times in a program are prepared once."""
    known = made.get(id(closed))
    if known is not None:
        return known[0]
    jaxpr, consts = (closed.jaxpr, closed.consts) if hasattr(closed, "consts") else (closed, ())
    places, start, number = {}, [], itertools.count()

    def place(var):
        if isinstance(var, Literal):
            start.append(np.asarray(var.val, var.aval.dtype))
            return next(number)
        if var not in places:
            places[var] = next(number)
            start.append(None)
        return places[var]

    for var, value in zip(jaxpr.constvars, consts, strict=True):
        start[place(var)] = _array(value)
    inputs = [place(var) for var in jaxpr.invars]
    outputs = [place(var) for var in jaxpr.outvars]
    lines = []
    for eqn in reversed(jaxpr.eqns):
        if any(var in places for var in eqn.outvars):  # what no later line needs is left out
            lines.append((_operation(eqn, made), [place(v) for v in eqn.invars], [place(v) for v in eqn.outvars]))
    lines.reverse()

    def run(*args):
        values = start.copy()
        for where, arg in zip(inputs, args, strict=True):
            values[where] = arg
        for operation, ins, outs in lines:
            results = operation(*[values[i] for i in ins])
            if type(results) is not list:
                values[outs[0]] = results
            else:
                for where, result in zip(outs, results, strict=True):
                    values[where] = result
        return [values[i] for i in outputs]

    made[id(closed)] = run, closed  # which keeps the id from being given again
    return run


def _operation(eqn: Any, made: dict) -> Callable:
    """What makes the line's values, one or a list of them, of its inputs."""
    name, params = eqn.primitive.name, eqn.params
    if name in CALLS:
        return _closed(next(params[key] for key in INNER if key in params), made)
    if name in LOOPS:
        return LOOPS[name](eqn, params, made)
    if any(jax.dtypes.issubdtype(v.aval.dtype, jax.dtypes.extended) for v in eqn.invars):
        return _compiled(eqn.primitive, tuple(params.items()))  # of keys NumPy knows nothing
    if name in PLAIN and not (name in REAL and not np.issubdtype(eqn.invars[0].aval.dtype, np.floating)):
        return PLAIN[name]
    if name in MADE and (operation := MADE[name](eqn, params)) is not None:
        return operation
    return _compiled(eqn.primitive, tuple(params.items()))


@functools.cache
def _compiled(primitive: Any, params: tuple) -> Callable:
    """Every other operation is XLA's."""
    run = jax.jit(lambda *values: primitive.bind(*values, **dict(params)))
    if primitive.multiple_results:
        return lambda *values: list(map(_array, run(*values)))
    return lambda *values: _array(run(*values))


def _array(value):
    """NumPy's, but for a random key."""
    return value if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended) else np.asarray(value)


CALLS = {"jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call"}
CALLS |= {"one_kernel", "on_one_cpu", "gpu_kernel"}  # ours (jaxrnn/programs/calls.py)
INNER = ("jaxpr", "call_jaxpr")  # where a call keeps its program


def _scan(eqn, params, made):
    body, length = _closed(params["jaxpr"], made), params["length"]
    if "ft_in" in params:  # JAX 0.12
        groups = params["ft_in"].update(range(len(eqn.invars))).unpack()
        consts, carried, _ = (len(list(group)) for group in groups)
    else:
        consts, carried = params["num_consts"], params["num_carry"]
    first = consts + carried
    steps = range(length)[::-1] if params["reverse"] else range(length)
    stacked = [var.aval for var in eqn.outvars[carried:]]

    def run(*args):
        fixed, carry, xs = args[:consts], args[consts:first], args[first:]
        ys = [np.zeros(aval.shape, aval.dtype) for aval in stacked]
        for t in steps:
            made = body(*fixed, *carry, *[x[t] for x in xs])
            carry = made[:carried]
            for y, row in zip(ys, made[carried:], strict=True):
                y[t] = row
        return [*carry, *ys]

    return run


def _while(_, params, made):
    test, body = _closed(params["cond_jaxpr"], made), _closed(params["body_jaxpr"], made)
    a, b = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]

    def run(*args):
        carry = list(args[b:])
        while test(*args[:a], *carry)[0]:
            carry = body(*args[a:b], *carry)
        return carry

    return run


def _cond(_, params, made):
    branches = [_closed(branch, made) for branch in params["branches"]]
    return lambda index, *args: branches[int(np.clip(int(index), 0, len(branches) - 1))](*args)


def _counted(eqn, params, made):
    """Ours (jaxrnn/loops/counted.py)."""
    body, consts = _closed(params["jaxpr"], made), params["n_consts"]
    first = consts + params["n_carry"]
    stacked = [var.aval for var in eqn.outvars[params["n_carry"] :]]

    def run(count, *args):
        fixed, carry, xs = args[:consts], args[consts:first], args[first:]
        ys = [np.zeros(aval.shape, aval.dtype) for aval in stacked]
        for t in range(int(count))[:: -1 if params["reverse"] else 1]:
            made = body(*fixed, *carry, *[x[t] for x in xs])
            carry = made[: params["n_carry"]]
            for y, row in zip(ys, made[params["n_carry"] :], strict=True):
                y[t] = row
        return [*carry, *ys]

    return run


def _chunked(eqn, params, made):
    """Ours (jaxrnn/loops/chunked.py): as the loops that it becomes."""
    impl = functools.partial(as_loops, **params)
    run = _closed(jax.make_jaxpr(impl)(*(var.aval for var in eqn.invars)), made)

    def told(*args):
        *found, report = run(*args)
        tell(report, params["way"], params["length"])
        return [*found, report]

    return told


LOOPS = {"scan": _scan, "while": _while, "cond": _cond, "counted_scan": _counted, "chunked_scan": _chunked}


def _logistic(x):
    return (1 / (1 + np.exp(-x))).astype(x.dtype)


# Operations without parameters that matter to their values.
PLAIN = {
    **{"add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative},
    **{"max": np.maximum, "min": np.minimum, "abs": np.abs, "sign": np.sign, "sqrt": np.sqrt, "square": np.square},
    **{"tanh": np.tanh, "exp": np.exp, "log": np.log, "sin": np.sin, "cos": np.cos, "logistic": _logistic},
    **{"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater},
    **{"ge": np.greater_equal, "rem": np.fmod, "and": np.bitwise_and, "or": np.bitwise_or, "not": np.bitwise_not},
    **dict.fromkeys(("copy", "copy_p", "stop_gradient", "pvary"), lambda x: x),
    "optimization_barrier": lambda *xs: list(xs),
    "moved": lambda x, to, back: x.reshape(back.size, *x.shape[back.ndim :])[to],  # ours (jaxrnn/running/packing.py)
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
}
REAL = {"div", "sqrt", "tanh", "exp", "log", "sin", "cos", "logistic"}


def _dot(eqn, params):
    """One ``@`` of operands laid out as (batch, rows, contracted) and (batch, contracted, columns)."""
    (contract_a, contract_b), (batch_a, batch_b) = params["dimension_numbers"]
    a, b = (var.aval for var in eqn.invars)
    free_a = [d for d in range(a.ndim) if d not in (*contract_a, *batch_a)]
    free_b = [d for d in range(b.ndim) if d not in (*contract_b, *batch_b)]
    size = lambda aval, dims: int(np.prod([aval.shape[d] for d in dims]))
    shape_a = *(a.shape[d] for d in batch_a), size(a, free_a), size(a, contract_a)
    shape_b = *(b.shape[d] for d in batch_b), size(b, contract_b), size(b, free_b)
    order_a, order_b = (*batch_a, *free_a, *contract_a), (*batch_b, *contract_b, *free_b)
    (out,) = (var.aval for var in eqn.outvars)

    def run(x, y):
        z = x.transpose(order_a).reshape(shape_a) @ y.transpose(order_b).reshape(shape_b)
        return z.reshape(out.shape).astype(out.dtype, copy=False)

    return run


def _broadcast(eqn, params):
    if len(eqn.invars) > 1:
        return None
    shape, dims = params["shape"], params["broadcast_dimensions"]
    aligned = [1] * len(shape)
    for size, d in zip(eqn.invars[0].aval.shape, dims, strict=True):
        aligned[d] = size
    return lambda x: np.broadcast_to(np.reshape(x, aligned), shape)


def _slice(_, params):
    steps = params["strides"] or (1,) * len(params["start_indices"])
    cut = tuple(map(slice, params["start_indices"], params["limit_indices"], steps))
    return lambda x: x[cut]


def _within(x, sizes, starts):
    starts = [min(max(int(s), 0), whole - size) for s, whole, size in zip(starts, x.shape, sizes, strict=True)]
    return tuple(slice(s, s + size) for s, size in zip(starts, sizes, strict=True))


def _update(x, new, *starts):
    x = np.array(x)
    x[_within(x, np.shape(new), starts)] = new
    return x


def _split(_, params):
    ends = np.cumsum(params["sizes"])[:-1]
    return lambda x: list(np.split(x, ends, params["axis"]))


def _pad(_, params):
    if any(low < 0 or high < 0 or inner for low, high, inner in params["padding_config"]):
        return None
    widths = [(low, high) for low, high, _ in params["padding_config"]]
    return lambda x, value: np.pad(x, widths, constant_values=value)


def _iota(_, params):
    shape, dimension = params["shape"], params["dimension"]
    along = np.arange(shape[dimension], dtype=params["dtype"]).reshape([-1] + [1] * (len(shape) - dimension - 1))
    return lambda: np.broadcast_to(along, shape)


def _typed(function):
    """Of ``(x, params)``, in the dtype that the program says."""
    return lambda eqn, params: lambda x: function(x, params).astype(eqn.outvars[0].aval.dtype, copy=False)


def _converted(eqn, _):
    """To another dtype; of complex numbers the real part becomes a real one."""
    dtype = eqn.outvars[0].aval.dtype
    if np.issubdtype(dtype, np.floating):
        return lambda x: np.real(x).astype(dtype, copy=False)
    return lambda x: np.asarray(x).astype(dtype, copy=False)


MADE = {
    "dot_general": _dot,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "split": _split,
    "iota": _iota,
    "pad": _pad,
    "dynamic_slice": lambda _, params: lambda x, *starts: x[_within(x, params["slice_sizes"], starts)],
    "dynamic_update_slice": lambda *_: _update,
    "concatenate": lambda _, params: lambda *xs: np.concatenate(xs, params["dimension"]),
    "select_n": lambda eqn, _: (
        (lambda which, off, on: np.where(which, on, off)) if eqn.invars[0].aval.dtype == bool else None
    ),
    "convert_element_type": _converted,
    "integer_pow": _typed(lambda x, params: np.power(x, params["y"])),
    "reshape": lambda _, params: (
        (lambda x: np.reshape(x, params["new_sizes"])) if params["dimensions"] is None else None
    ),
    "squeeze": _typed(lambda x, params: np.squeeze(x, params["dimensions"])),
    "expand_dims": _typed(lambda x, params: np.expand_dims(x, params["dimensions"])),
    "transpose": _typed(lambda x, params: np.transpose(x, params["permutation"])),
    "rev": _typed(lambda x, params: np.flip(x, params["dimensions"])),
    "reduce_sum": _typed(lambda x, params: np.sum(x, params["axes"])),
    "reduce_max": _typed(lambda x, params: np.max(x, params["axes"])),
    "reduce_min": _typed(lambda x, params: np.min(x, params["axes"])),
    "reduce_or": _typed(lambda x, params: np.any(x, params["axes"])),
    "reduce_and": _typed(lambda x, params: np.all(x, params["axes"])),
}
