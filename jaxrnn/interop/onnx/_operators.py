"""RNN, LSTM and GRU as ONNX defines them: their attributes, their weights, their equations as cells.

The names are the operators': gates i o f c and z r h; X (T, B, I), W (D, G*H, I), R (D, G*H, H), B (D, 2*G*H),
P (D, 3*H), with D directions and G gates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._base import Cell
from jaxrnn.cells.activations import activation_of
from jaxrnn.cells.fused import GateOrder
from jaxrnn.cells.lstm_family import LSTMCarry
from jaxrnn.interop.onnx._reading import fail

# The order of the gates in W, R and B, in our letters: ONNX's c is g, the h of its GRU is n.
GATES: dict[str, GateOrder] = {"RNN": ("h",), "LSTM": ("i", "o", "f", "g"), "GRU": ("z", "r", "n")}
PEEPHOLES: GateOrder = ("i", "o", "f")
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
DEFAULTS = {"RNN": ("Tanh",), "LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh")}


class Kind(NamedTuple):
    """An activation of the operators: our name of it, and its constants' defaults (None: must be given)."""

    ours: str
    defaults: tuple[float | None, ...] = ()


KINDS = {
    "Relu": Kind("relu"),
    "Tanh": Kind("tanh"),
    "Sigmoid": Kind("sigmoid"),
    "Affine": Kind("affine", (None, None)),
    "LeakyRelu": Kind("leaky_relu", (0.01,)),
    "ThresholdedRelu": Kind("thresholded_relu", (1.0,)),
    "ScaledTanh": Kind("scaled_tanh", (None, None)),
    "HardSigmoid": Kind("hard_sigmoid", (0.2, 0.5)),
    "Elu": Kind("elu", (1.0,)),
    "Softsign": Kind("softsign"),
    "Softplus": Kind("softplus"),
}

# What our plain names compute, where it is one of those with constants.
PLAIN = {
    "identity": ("affine", 1.0, 0.0),
    "leaky_relu": ("leaky_relu", 0.01),
    "elu": ("elu", 1.0),
    "hard_sigmoid": ("hard_sigmoid", 1 / 6, 0.5),
}


class Activation(NamedTuple):
    """An activation of KINDS, and as many of alpha and beta as it has, as float32 holds them."""

    name: str
    constants: tuple[float, ...] = ()

    def __call__(self, x: jax.Array) -> jax.Array:
        return activation_of("onnx.run", "activation", self.ours)(x)

    def __str__(self) -> str:
        given = ", ".join(f"{name}={v:g}" for name, v in zip(("alpha", "beta"), self.constants, strict=False))
        return f"{self.name}{given and ' with '}{given}"

    @property
    def ours(self) -> str | tuple[Any, ...]:
        """The option of a cell."""
        name = KINDS[self.name].ours
        return (name, *self.constants) if self.constants else name

    def in_dtype(self, dtype: Any) -> str | tuple[Any, ...]:
        """The option of a cell of some dtype. In float32 a plain name, or a constant with fewer digits, is the same."""
        if dtype != np.float32 or not self.constants:
            return self.ours
        constants = list(self.constants)
        for plain, (same, *usual) in PLAIN.items():
            if same == KINDS[self.name].ours and [float(np.float32(v)) for v in usual] == constants:
                return plain
        return (KINDS[self.name].ours, *(float(str(np.float32(v))) for v in constants))


def is_symmetric(option: Any) -> bool:
    """Whether 1 - σ(a) = σ(-a), by which a gate's share is turned round."""
    if isinstance(option, tuple):
        name, *constants = option
        return name in ("hard_sigmoid", "affine") and constants[1] == 0.5
    return option in ("sigmoid", "hard_sigmoid")


class Operator(NamedTuple):
    """What the attributes of a node say.

    Fields:
        where: how errors call the node.
        kind: "RNN", "LSTM" or "GRU".
        reversed: for each direction, whether it runs from the end.
        activations: for each direction its activations, (f,), (f, g, h) or (f, g).
    """

    where: str
    kind: str
    reversed: tuple[bool, ...]
    activations: tuple[tuple[Activation, ...], ...]
    hidden_size: int | None = None
    clip: float | None = None
    layout: int = 0
    input_forget: bool = False
    linear_before_reset: bool = False


class Weights(NamedTuple):
    """Those of one direction."""

    W: Any  # (G*H, I)
    R: Any  # (G*H, H)
    Wb: Any | None  # (G*H,), None without biases
    Rb: Any | None  # (G*H,)
    P: Any | None = None  # (3*H,), order i, o, f


def operator_of(where: str, kind: str, attributes: dict[str, Any]) -> Operator:
    """The attributes of a node, read and checked."""
    direction = attributes.get("direction", "forward")
    if direction not in DIRECTIONS:
        fail(where, f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
    layout = attributes.get("layout", 0)
    if layout not in (0, 1):
        fail(where, f"layout must be 0 or 1, got {layout!r}")
    clip = attributes.get("clip")
    if clip is not None and not clip > 0:
        fail(where, f"clip must be positive, got {clip!r}; leave it out for no clipping")
    backward = DIRECTIONS[direction]
    return Operator(
        where,
        kind,
        backward,
        _activations(where, kind, len(backward), attributes),
        attributes.get("hidden_size"),
        clip,
        layout,
        bool(attributes.get("input_forget", 0)),
        bool(attributes.get("linear_before_reset", 0)),
    )


def _activations(
    where: str, kind: str, directions: int, attributes: dict[str, Any]
) -> tuple[tuple[Activation, ...], ...]:
    """For each direction its activations with their constants, which are consumed in order by those that have them."""
    count = len(DEFAULTS[kind])
    names = attributes.get("activations") or DEFAULTS[kind] * directions
    if kind == "RNN" and len(names) == 2 and directions == 1:
        names = names[:1]  # the default that ONNX writes out, ["Tanh", "Tanh"], is that of two directions
    if len(names) != count * directions:
        fail(where, f"activations must name {count * directions} functions, got {list(names)}")
    known = {name.lower(): name for name in KINDS}
    for name in names:
        if name.lower() not in known:
            fail(where, f"the activation {name!r} is not one of {', '.join(KINDS)}")
    names = [known[name.lower()] for name in names]

    def constants(option, position):
        given = list(attributes.get(option) or ())
        takers = [name for name in names if len(KINDS[name].defaults) > position]
        if len(given) > len(takers) > 0:
            fail(where, f"{option} has {len(given)} values for the {len(takers)} of its activations that take one")
        values = iter(given)
        for name in names:
            if len(KINDS[name].defaults) <= position:
                yield None
                continue
            default = KINDS[name].defaults[position]
            value = next(values, None if default is None else float(np.float32(default)))  # as an attribute stores it
            if value is None:
                fail(where, f"{name} has no default {option.removeprefix('activation_')}; give it in {option}")
            yield value

    alphas, betas = constants("activation_alpha", 0), constants("activation_beta", 1)
    constants_of = [tuple(v for v in own if v is not None) for own in zip(alphas, betas, strict=True)]
    every = [Activation(name, own) for name, own in zip(names, constants_of, strict=True)]
    return tuple(tuple(every[d * count : (d + 1) * count]) for d in range(directions))


def weights_of(op: Operator, W: Any, R: Any, B: Any = None, P: Any = None) -> list[Weights]:
    """The weights of each direction, their shapes checked."""
    D, G = len(op.reversed), len(GATES[op.kind])
    for name, array in (("W", W), ("R", R)):
        if array is None:
            fail(op.where, f"the input {name} is missing")
        if array.ndim != 3:
            fail(op.where, f"{name} must have 3 axes, got the shape {array.shape}")
    H = R.shape[-1]
    if op.hidden_size not in (None, H):
        fail(op.where, f"hidden_size is {op.hidden_size}, but R has the shape {R.shape}, which is for {H}")
    for name, array, want in (
        ("W", W, (D, G * H, W.shape[-1])),
        ("R", R, (D, G * H, H)),
        ("B", B, (D, 2 * G * H)),
        ("P", P, (D, 3 * H)),
    ):
        if array is None:
            continue
        if array.shape != want:
            fail(op.where, f"{name} must have the shape {want}, got {array.shape}")
        if array.dtype != W.dtype or array.dtype not in (np.float32, np.float64):
            fail(op.where, f"{name} is {array.dtype.name}; the weights must all be float32 or all float64")

    def of(d):
        Wb, Rb = (None, None) if B is None else (B[d, : G * H], B[d, G * H :])
        return Weights(W[d], R[d], Wb, Rb, None if P is None else P[d])

    return [of(d) for d in range(D)]


def cell_of(op: Operator, activations: tuple[Activation, ...], weights: Weights) -> Cell:
    """The operator's equations, in one direction, as a cell whose params are Weights."""
    H = weights.R.shape[-1]
    steps: dict[str, Callable[..., Any]] = {"RNN": _rnn, "LSTM": _lstm, "GRU": _gru}
    step = steps[op.kind](op, *activations)

    def initial_carry(params, batch_shape=()):
        h = jnp.zeros((*batch_shape, H), params.W.dtype)
        return LSTMCarry(h, h) if op.kind == "LSTM" else h

    return Cell(lambda key: weights, initial_carry, step, input_size=weights.W.shape[-1], output_size=H)


def _clipped(op: Operator) -> Callable[[jax.Array], jax.Array]:
    limit = op.clip
    return (lambda a: a) if limit is None else (lambda a: jnp.clip(a, -limit, limit))


def _rnn(op, f):
    clip = _clipped(op)

    def step(params, h, x):
        W, R, Wb, Rb, _ = params
        a = x @ W.T + h @ R.T
        h = f(clip(a if Wb is None else a + (Wb + Rb)))
        return h, h

    return step


def _lstm(op, f, g, h_act):
    clip = _clipped(op)

    def step(params, carry, x):
        W, R, Wb, Rb, P = params
        h, C = carry
        a = x @ W.T + h @ R.T
        i, o, ft, c = jnp.split(a if Wb is None else a + (Wb + Rb), 4, axis=-1)
        Pi, Po, Pf = (0, 0, 0) if P is None else jnp.split(P, 3)
        i = f(clip(i + Pi * C))
        ft = 1 - i if op.input_forget else f(clip(ft + Pf * C))
        c = g(clip(c))
        C = ft * C + i * c
        o = f(clip(o + Po * C))
        h = o * h_act(C)
        return LSTMCarry(h, C), h

    return step


def _gru(op, f, g):
    clip = _clipped(op)

    def step(params, h, x):
        W, R, Wb, Rb, _ = params
        H = R.shape[-1]
        Wb, Rb = (jnp.zeros(3 * H, R.dtype),) * 2 if Wb is None else (Wb, Rb)
        a_z, a_r, a_h = jnp.split(x @ W.T + Wb, 3, axis=-1)
        u_z, u_r = jnp.split(h @ R[: 2 * H].T + Rb[: 2 * H], 2, axis=-1)
        z, r = f(clip(a_z + u_z)), f(clip(a_r + u_r))
        R_h, Rb_h = R[2 * H :].T, Rb[2 * H :]
        u_h = r * (h @ R_h + Rb_h) if op.linear_before_reset else (r * h) @ R_h + Rb_h
        h = (1 - z) * g(clip(a_h + u_h)) + z * h
        return h, h

    return step
