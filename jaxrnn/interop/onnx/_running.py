"""``run``: the graph as it stands, its recurrent operators through ``jr.scan``."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn as jr
from jaxrnn._arguments import checks_arguments
from jaxrnn._checks import nearest
from jaxrnn.cells.lstm_family import LSTMCarry
from jaxrnn.interop.onnx._operators import GATES, Operator, cell_of, operator_of, weights_of
from jaxrnn.interop.onnx._reading import LIBRARY, attributes_of, fail, initializers_of, name_of, read
from jaxrnn.saving.parameters import as_jax


@checks_arguments(who="onnx.run")
def run(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What an ONNX model of recurrent operators computes.

    RNN, LSTM and GRU, of the operator sets 7 to 22 and later ones that leave them as they are, run as cells with the
    operator's own equations under ``jr.scan``: every direction, activation and its constants, ``clip``, both layouts,
    peepholes, ``input_forget``, ``linear_before_reset``, lengths and initial states. Around them stand the operators
    that exporters put there: Add, Cast, Concat, Constant, ConstantOfShape, DequantizeLinear, Div, Expand, Flatten,
    Gather, Gemm, Identity, Less, MatMul, Mul, Range, ReduceMean, ReduceProd, ReduceSum, Relu, Reshape, Shape, Sigmoid,
    Slice, Squeeze, Sub, Tanh, Tile, Transpose, Unsqueeze, Where.

    Args:
        model: a path, the model's bytes, or an ``onnx.ModelProto``.
        inputs: an array for each input of the graph that has no stored value, by name; ``sequence_lens`` are int32.

    Returns:
        The graph's outputs by name. It can be differentiated by the inputs and jitted, the lengths then traced:
        ``jax.jit(functools.partial(run, model))(inputs)``.

    Raises:
        ValueError: a model that cannot be read or breaks ONNX's rules, another operator, shapes that do not fit, with
            the node's name. TypeError: float64 arrays while JAX's 64 bits are off. ImportError: onnx is not installed.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> from jaxrnn.interop import onnx
        >>> layer = jr.scan(jr.gru(3, 4))
        >>> model = onnx.export(layer, layer.init(jax.random.key(0)), lengths=False, carry=False)
        >>> onnx.run(model, {"X": jnp.ones((5, 2, 3))})["Y"].shape
        (5, 2, 4)

    Differs from onnxruntime, whose final states of sequences of length 0 are zeros in place of the initial ones, which
    takes 0 as a missing alpha of ThresholdedRelu (ONNX's default is 1), Affine and ScaledTanh (which have none), and
    which refuses ``layout=1`` and float64; ``load`` gives the library's own cells in place of the operator's.
    """
    who = "onnx.run"
    proto = read(who, model)
    values: dict[str, Any] = {"": None}
    stored = initializers_of(who, proto)
    values |= {name: _arriving(who, a) for name, a in stored.items()}
    values |= _inputs(who, proto, stored, inputs)
    for node in proto.graph.node:
        where = name_of(who, node)
        given = [values[name] for name in node.input]
        if node.op_type in GATES and node.domain in ("", "ai.onnx"):
            op = operator_of(where, node.op_type, attributes_of(node))
            made = recurrent(op, *given)
        else:
            made = (evaluate(where, node, given),)
        values |= {name: _arriving(where, a) for name, a in zip(node.output, made, strict=False) if name}
    return {output.name: values[output.name] for output in proto.graph.output}


def _arriving(who: str, a: Any) -> Any:
    """Floats as JAX arrays. Integers stay NumPy's where they are, so that shapes are known while tracing."""
    return as_jax(who, a) if isinstance(a, np.ndarray) and np.issubdtype(a.dtype, np.floating) else a


def _inputs(who: str, proto: Any, stored: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What was passed, checked against what the graph declares."""
    helper = LIBRARY.load("onnx.helper")
    declared = {entry.name: entry.type.tensor_type for entry in proto.graph.input}
    for name in inputs:
        if name not in declared:
            fail(who, f"the model has no input {name!r}; it has {', '.join(declared)}{nearest(name, declared, '')}")
    values = {}
    for name, tensor in declared.items():
        if name not in inputs:
            if name not in stored:
                fail(who, f"the model's input {name!r} is missing; pass inputs={{{name!r}: …}}")
            continue
        a = inputs[name] if isinstance(inputs[name], jax.Array) else np.asarray(inputs[name])
        want = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if a.dtype != want:
            fail(who, f"the input {name!r} is {a.dtype.name} but the model declares {want.name}; cast it")
        if tensor.HasField("shape"):
            dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
            fits = all(isinstance(d, str) or d == size for d, size in zip(dims, a.shape, strict=False))
            if len(dims) != a.ndim or not fits:
                fail(who, f"the input {name!r} has the shape {a.shape} but the model declares {tuple(dims)}")
        values[name] = _arriving(f"{who}: the input {name!r}", a)
    return values


# ---- the recurrent operators --------------------------------------------------------------------


def recurrent(
    op: Operator, X: Any, W: Any, R: Any, B: Any = None, lens: Any = None, h0: Any = None, c0: Any = None, P: Any = None
) -> tuple[Any, ...]:
    """(Y, Y_h) of an RNN or a GRU, (Y, Y_h, Y_c) of an LSTM."""
    weights = weights_of(op, W, R, B, P)
    _check(op, X, W, lens, h0, c0)
    if op.layout:
        X, h0, c0 = (None if a is None else jnp.swapaxes(a, 0, 1) for a in (X, h0, c0))
    ys, ends = [], []
    for d, (backward, own) in enumerate(zip(op.reversed, weights, strict=True)):
        layer = jr.scan(cell_of(op, op.activations[d], own), reverse=backward)
        carry = layer.initial_carry(own, X.shape[1:2])
        h, c = (None if a is None else jnp.asarray(a[d]) for a in (h0, c0))
        if op.kind == "LSTM":
            carry = LSTMCarry(carry.h if h is None else h, carry.c if c is None else c)
        elif h is not None:
            carry = h
        end, y = layer.apply(own, X, carry, lengths=lens)
        ys.append(y)
        ends.append(end)
    axis = 1 if op.layout else 0
    ends = [end if op.kind == "LSTM" else (end,) for end in ends]
    states = [jnp.stack(state, axis) for state in zip(*ends, strict=True)]
    Y = jnp.stack(ys, axis=1)  # (T, D, B, H)
    return (jnp.transpose(Y, (2, 0, 1, 3)) if op.layout else Y, *states)


def _check(op: Operator, X: Any, W: Any, lens: Any, h0: Any, c0: Any) -> None:
    """The inputs of one run have the shapes and dtypes that the operator defines."""
    if op.kind != "LSTM" and c0 is not None:
        fail(op.where, "it has no input initial_c; only an LSTM has")
    if X is None or X.ndim != 3 or X.shape[-1] != W.shape[-1]:
        came = "nothing" if X is None else f"the shape {X.shape}"
        fail(op.where, f"X must have 3 axes, the last of {W.shape[-1]} features as W has, got {came}")
    B, H, D = X.shape[0 if op.layout else 1], W.shape[1] // len(GATES[op.kind]), len(op.reversed)
    state = (B, D, H) if op.layout else (D, B, H)
    for name, array, want in (("sequence_lens", lens, (B,)), ("initial_h", h0, state), ("initial_c", c0, state)):
        if array is not None and array.shape != want:
            fail(op.where, f"{name} must have the shape {want}, got {array.shape}")
    for name, array in (("X", X), ("initial_h", h0), ("initial_c", c0)):
        if array is not None and array.dtype != W.dtype:
            fail(op.where, f"{name} is {array.dtype.name} but W is {W.dtype.name}; an operator has one dtype")
    if lens is not None and not isinstance(lens, jax.core.Tracer):
        T, given = X.shape[1 if op.layout else 0], np.asarray(lens)
        if given.size and (given.min() < 0 or given.max() > T):
            fail(op.where, f"sequence_lens must lie between 0 and the {T} steps of X, got {given.tolist()}")


# ---- the operators around them ------------------------------------------------------------------


def evaluate(where: str, node: Any, given: Sequence[Any]) -> Any:
    """The output of one of the operators that exporters put around the recurrent ones."""
    if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
        domain = f" of the domain {node.domain!r}" if node.domain not in ("", "ai.onnx") else ""
        fail(where, f"the operator{domain} is not one that runs here; there are {', '.join((*GATES, *OPERATORS))}")
    try:
        # NumPy where every input is NumPy's: what depends on shapes and constants alone stays known while tracing.
        xp = np if all(a is None or isinstance(a, np.ndarray) for a in given) else jnp
        made = OPERATORS[node.op_type](xp, attributes_of(node), *given)
        return np.asarray(made) if isinstance(made, np.generic) else made
    except (TypeError, ValueError, IndexError) as error:
        shapes = ", ".join("none" if a is None else str(tuple(a.shape)) for a in given)
        raise ValueError(f"{where}: it does not fit its inputs of the shapes {shapes}: {error}") from error


def ints(a: Any) -> list[int]:
    return [int(v) for v in np.ravel(np.asarray(a))]


def _axes(attributes: Mapping[str, Any], given: Any) -> tuple[int, ...] | None:
    """Axes, which are an attribute in the older versions of an operator and an input in the newer ones."""
    axes = ints(given) if given is not None else attributes.get("axes")
    return None if axes is None else tuple(axes)


def _constant(xp, attributes):
    for name, dtype in (
        *(("value_float", np.float32), ("value_floats", np.float32)),
        *(("value_int", np.int64), ("value_ints", np.int64)),
    ):
        if name in attributes:
            return np.asarray(attributes[name], dtype)
    if "value" not in attributes:
        raise ValueError("only numbers can be constants")
    return np.asarray(attributes["value"])


def _constant_of_shape(xp, attributes, shape):
    return np.full(ints(shape), np.ravel(attributes.get("value", np.zeros(1, np.float32)))[0])


def dtype_of(element_type: int) -> np.dtype:
    """NumPy's dtype for an element type of ONNX."""
    return LIBRARY.load("onnx.helper").tensor_dtype_to_np_dtype(element_type)


def _cast(xp, attributes, x):
    dtype = dtype_of(attributes["to"])
    if xp is jnp and dtype == np.float64 and jnp.result_type(float) != np.float64:
        raise TypeError("float64 needs jax.config.update('jax_enable_x64', True)")
    if xp is jnp and dtype == np.int64 and x.dtype == np.int32:
        return x  # lengths while they are traced; JAX has no int64 unless its 64 bits are on
    return x.astype(dtype)


def _dequantized(xp, attributes, x, scale, zero=None):
    if attributes.get("block_size", 0):
        raise ValueError("scales of blocks are not read; give one for each row or one for all")
    shape = [1] * x.ndim
    if scale.ndim:
        shape[attributes.get("axis", 1)] = -1
    of_zero = 0 if zero is None else zero.astype("int32").reshape(shape)
    return (x.astype("int32") - of_zero).astype(scale.dtype) * scale.reshape(shape)


def _reshape(xp, attributes, x, shape):
    shape = ints(shape)
    if not attributes.get("allowzero", 0):
        shape = [x.shape[k] if size == 0 else size for k, size in enumerate(shape)]
    return xp.reshape(x, shape)


def _slice(xp, attributes, x, starts=None, ends=None, axes=None, steps=None):
    starts, ends = (ints(a) if a is not None else attributes[n] for n, a in (("starts", starts), ("ends", ends)))
    axes = _axes(attributes, axes) or tuple(range(len(starts)))
    cut = [slice(None)] * x.ndim
    for axis, start, end, step in zip(
        axes, starts, ends, [1] * len(starts) if steps is None else ints(steps), strict=True
    ):
        cut[axis] = slice(start, end, step)
    return x[tuple(cut)]


def _shape(xp, attributes, x):
    return np.asarray(x.shape[attributes.get("start", 0) : attributes.get("end")], np.int64)


def _squeeze(xp, attributes, x, axes=None):
    return xp.squeeze(x, axis=_axes(attributes, axes))


def _reduce(name: str) -> Callable[..., Any]:
    def reduce(xp, attributes, x, axes=None):
        axis = _axes(attributes, axes)
        if not axis and attributes.get("noop_with_empty_axes", 0):
            return x
        return getattr(xp, name)(x, axis=axis or None, keepdims=bool(attributes.get("keepdims", 1)))

    return reduce


def _binary(compute: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda xp, attributes, a, b: compute(a, b)


def _div(a, b):
    return a / b if np.issubdtype(a.dtype, np.floating) else a // b  # sizes, which are not negative


def _flatten(xp, attributes, x):
    axis = attributes.get("axis", 1) % (x.ndim + 1)
    return xp.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def _gemm(xp, attributes, a, b, c=None):
    a, b = (x.T if attributes.get(name, 0) else x for name, x in (("transA", a), ("transB", b)))
    y = a.dtype.type(attributes.get("alpha", 1)) * xp.matmul(a, b)
    return y if c is None else y + c.dtype.type(attributes.get("beta", 1)) * c


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": _binary(operator.add),
    "Cast": _cast,
    "Concat": lambda xp, attributes, *given: xp.concatenate(given, axis=attributes["axis"]),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DequantizeLinear": _dequantized,
    "Div": _binary(_div),
    # Expand broadcasts both ways: a 1 in the shape keeps the size that is there.
    "Expand": lambda xp, attributes, x, shape: xp.broadcast_to(x, np.broadcast_shapes(x.shape, ints(shape))),
    "Flatten": _flatten,
    "Gather": lambda xp, attributes, x, indices: xp.take(x, indices, axis=attributes.get("axis", 0)),
    "Gemm": _gemm,
    "Identity": lambda xp, attributes, x: x,
    "Less": _binary(operator.lt),
    "MatMul": lambda xp, attributes, a, b: xp.matmul(a, b),
    "Mul": _binary(operator.mul),
    "Range": lambda xp, attributes, start, limit, delta: np.arange(start, limit, delta),
    "ReduceMean": _reduce("mean"),
    "ReduceProd": _reduce("prod"),
    "ReduceSum": _reduce("sum"),
    "Relu": lambda xp, attributes, x: xp.maximum(x, 0),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": lambda xp, attributes, x: 1 / (1 + xp.exp(-x)),
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _binary(operator.sub),
    "Tanh": lambda xp, attributes, x: xp.tanh(x),
    "Tile": lambda xp, attributes, x, repeats: xp.tile(x, ints(repeats)),
    "Transpose": lambda xp, attributes, x: xp.transpose(x, attributes.get("perm")),
    "Unsqueeze": lambda xp, attributes, x, axes=None: xp.expand_dims(x, _axes(attributes, axes)),
    "Where": lambda xp, attributes, condition, a, b: xp.where(condition, a, b),
}
