"""Haiku: weights of its recurrent cores both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import jaxrnn as jr
from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, PyTree
from jaxrnn.cells.fused import GateOrder, block, gate_order
from jaxrnn.interop.conversion import (
    Run,
    as_weights,
    check_options,
    check_shape,
    checked_spec,
    in_dicts,
    no_learned_carry,
    own_dtype,
    param_dtype,
    refuse,
    reordered,
    requires,
    spec_of,
)
from jaxrnn.interop.registry import Library
from jaxrnn.saving.parameters import as_jax

__all__ = ["from_haiku", "to_haiku"]

LIBRARY = Library("Haiku", "haiku", package="dm-haiku", extra="interop")

GATES: dict[str, GateOrder] = {"lstm": ("i", "g", "f", "o"), "gru": ("z", "r", "n")}  # in Haiku's fused arrays
GATES["conv_lstm"] = GATES["lstm"]

# The name that Haiku gives a core's module, and what stands below it.
CORES = {
    "VanillaRNN": "vanilla_rnn",
    "LSTM": "lstm",
    "GRU": "gru",
    "Conv1DLSTM": "conv1_dlstm",
    "Conv2DLSTM": "conv2_dlstm",
    "Conv3DLSTM": "conv3_dlstm",
}


@checks_arguments
def from_haiku(
    core: Any, params: Mapping[str, Any], *, name: Any = None, spatial_shape: Sequence[int] | None = None
) -> tuple[Cell, PyTree]:
    """The parameters of a Haiku core as a jaxrnn cell and its parameters.

    Haiku's LSTMs have the gate order i g f o and add 1 to the forget gate at every step, which goes into the bias
    here; its GRU has the order z r n; its VanillaRNN has relu and two biases, of which the sum goes into ours.

    Args:
        core: the core's class or its name: VanillaRNN, LSTM, GRU, Conv1DLSTM, Conv2DLSTM, Conv3DLSTM; or, for the
            cores of a DeepRNN, a list of such.
        params: what the transformed function's ``init`` gave; other modules' may stand in it. As it is, or as a file
            gave it back: a dict of dicts, or one level with names joined by "/" (``"lstm/linear/w"``), as of an npz.
        name: the core's module in ``params``, with its path (``"my_net/~/lstm"``); None means as Haiku calls it, in a
            DeepRNN ``lstm``, ``lstm_1`` and so on. A list for a list of cores.
        spatial_shape: the fields' sizes, the convolutional cores' ``input_shape``; the weights do not tell.

    Returns:
        ``(cell, params)``: an ``elman`` with relu, an ``lstm``, a ``gru`` with ``reset="before"``, a ``conv_lstm``; for
        a list a ``jr.chain``, whose carry is a tuple as DeepRNN's state is.

    Raises:
        ValueError, TypeError: another core, a module that is not in ``params``, weights that do not fit, a
            ``spatial_shape`` missing; float64 weights where JAX's 64 bits are off.

    Example:
        >>> import haiku as hk, jax, jax.numpy as jnp, jaxrnn as jr
        >>> from jaxrnn.interop.haiku import from_haiku
        >>> xs, start = jnp.ones((7, 2, 3)), hk.LSTMState(jnp.zeros((2, 5)), jnp.zeros((2, 5)))
        >>> theirs = hk.without_apply_rng(hk.transform(lambda xs: hk.dynamic_unroll(hk.LSTM(5), xs, start)))
        >>> weights = theirs.init(jax.random.key(0), xs)
        >>> cell, params = from_haiku(hk.LSTM, weights)
        >>> bool(jnp.allclose(jr.scan(cell).apply(params, xs)[1], theirs.apply(weights, xs)[0], atol=1e-6))
        True

    Differs: Haiku's cores return (output, state), and an LSTMState(hidden, cell) where ours is LSTMCarry(h, c).
    """
    if isinstance(core, Sequence) and not isinstance(core, str):
        if not core:
            raise ValueError("from_haiku: core is an empty list; name the cores of a DeepRNN.")
        names = _named("from_haiku", name, [_core(one) for one in core])
        pairs = [from_haiku(c, params, name=n, spatial_shape=spatial_shape) for c, n in zip(core, names, strict=True)]
        return jr.chain(*(cell for cell, _ in pairs)), tuple(own for _, own in pairs)
    kind = _core(core)
    (name,) = _named("from_haiku", name, [kind])
    modules = _modules(in_dicts("from_haiku", params))

    def module(below: str, *parts: str) -> list[Any]:
        where = name + below
        own = modules.get(where, {})
        deeper = (f"{part}/{name}" for part in ("w", "w_i", "w_h", "b") for name in modules.get(f"{where}/{part}", ()))
        held = [*own, *deeper]
        if set(held) != set(parts):
            raise ValueError(
                f"from_haiku: expected {' and '.join(parts)} in the module {where!r} of a {kind}, got "
                f"{', '.join(held) or 'no such module'}; the modules given are {', '.join(modules) or 'none'}: name "
                f"the core's by name=."
            )
        return [as_weights("from_haiku", f"params[{where!r}][{part!r}]", own[part]) for part in parts]

    def check(below: str, part: str, a: Any, *shape: int | None) -> None:
        check_shape("from_haiku", f"params[{name + below!r}][{part!r}]", a, shape, f"pass the params of this {kind}")

    def units(below: str, b: np.ndarray) -> int:
        """H, of an LSTM's bias (4H,)."""
        check(below, "b", b, None if b.size % 4 == 0 else 4)
        return len(b) // 4

    weights: PyTree
    options: dict[str, Any] = {}
    if kind == "VanillaRNN":
        W_xh, b = module("/linear", "w", "b")
        double = "b" in modules.get(name + "/linear_1", {})
        W_hh, *second = module("/linear_1", "w", *("b" * double))
        H = len(np.atleast_1d(W_hh))
        check("/linear_1", "w", W_hh, H, H)
        check("/linear", "w", W_xh, None, H)
        for below, a in zip(("/linear", "/linear_1"), (b, *second), strict=False):
            check(below, "b", a, H)
        weights = jr.cells.ElmanParams(W_xh, W_hh, sum(second, start=b))
        options["activation"] = "relu"
    elif kind == "GRU":
        W_xh, W_hh, b = module("", "w_i", "w_h", "b")
        H = len(np.atleast_1d(W_hh))
        for part, a, shape in (("w_h", W_hh, (H, 3 * H)), ("w_i", W_xh, (None, 3 * H)), ("b", b, (3 * H,))):
            check("", part, a, *shape)
        weights = jr.cells.GRUParams(*(_reordered("gru", a) for a in (W_xh, W_hh, b)))
    elif kind == "LSTM":
        w, b = module("/linear", "w", "b")
        H = units("/linear", b)
        rows = None if len(np.atleast_1d(w)) > H else H + 1  # those of x above those of h
        check("/linear", "w", w, rows, 4 * H)
        w, b = (_reordered("lstm", a) for a in (w, b))
        weights = jr.cells.LSTMParams(w[:-H], w[-H:], _forget("lstm", b, 1))
    else:
        if spatial_shape is None:
            raise ValueError(f"from_haiku: {kind} needs spatial_shape, its input_shape; the weights do not tell it.")
        (W_xh, b), (W_hh, b_h) = (module(f"/{part}_to_hidden", "w", "b") for part in ("input", "hidden"))
        H, kernel = units("/input_to_hidden", b), (None,) * int(kind[4])  # Conv1DLSTM
        check("/input_to_hidden", "w", W_xh, *kernel, None, 4 * H)
        check("/hidden_to_hidden", "w", W_hh, *W_xh.shape[:-2], H, 4 * H)
        check("/hidden_to_hidden", "b", b_h, 4 * H)
        W_xh, W_hh, b = (_reordered("conv_lstm", a) for a in (W_xh, W_hh, b + b_h))
        weights = jr.cells.ConvLSTMParams(W_xh, W_hh, _forget("conv_lstm", b, 1))
        options |= {"spatial_shape": tuple(spatial_shape), "kernel_size": W_xh.shape[:-2]}
    made = {"VanillaRNN": "elman", "LSTM": "lstm", "GRU": "gru"}.get(kind, "conv_lstm")
    cell = jr.build(spec_of(made, weights.W_xh.shape[-2], H, param_dtype=param_dtype(weights.W_xh), **options))
    checked_spec("from_haiku", cell, weights)
    return cell, as_jax("from_haiku", weights)


def _modules(params: Any, above: str = "") -> dict[str, dict[str, Any]]:
    """The arrays of each module, by its path."""
    arrays = {name: a for name, a in params.items() if not isinstance(a, dict)}
    modules = {above: arrays} if arrays else {}
    for name, below in params.items():
        if isinstance(below, dict):
            modules |= _modules(below, f"{above}/{name}" if above else name)
    return modules


def _core(core: Any) -> str:
    name = core if isinstance(core, str) else getattr(core, "__name__", repr(core))
    if name not in CORES:
        refuse("from_haiku", f"the core {name}", f"known are {', '.join(CORES)}")
    return name


def _named(who: str, name: Any, cores: Sequence[str]) -> list[str]:
    """The names of the cores' modules: those given, or Haiku's own."""
    if name is None:
        return _unique(cores)
    names = [name] if isinstance(name, str) else name
    if not isinstance(names, list | tuple) or not all(isinstance(one, str) for one in names):
        raise TypeError(f"{who}: name must be a module's name, or a list of names, one for each core, got {name!r}.")
    if len(names) != len(cores):
        raise ValueError(f"{who}: name must hold one name for each of {len(cores)} cores, got {name!r}.")
    return list(names)


def _unique(cores: Sequence[str]) -> list[str]:
    """The names of modules as Haiku counts them: lstm, lstm_1 …"""
    before = [cores[:n].count(core) for n, core in enumerate(cores)]
    return [CORES[core] + (f"_{n}" if n else "") for core, n in zip(cores, before, strict=True)]


def _reordered(kind: str, a: Any) -> Any:
    """A fused array of Haiku's in our order."""
    return reordered(a, GATES[kind], gate_order(kind))


def _forget(kind: str, b: Any, plus: int) -> Any:
    """A bias of ours with so much added in the forget gate's block."""
    order, b = gate_order(kind), np.array(b)
    b[block(order, "f", len(b) // len(order))] += np.asarray(plus, b.dtype)
    return b


@checks_arguments
def to_haiku(cell: Cell, params: PyTree, *, name: Any = None, double_bias: bool = True) -> dict[str, dict[str, Any]]:
    """A jaxrnn cell's parameters as those of the Haiku core that computes the same.

    Args:
        cell: an ``elman`` with relu, an ``lstm``, a ``gru`` with ``reset="before"``, a ``conv_lstm`` without
            peepholes; or a ``jr.chain`` of such, for a DeepRNN of their cores.
        params: its parameters.
        name: the core's module, with its path; None means as Haiku calls it. A list for a chain.
        double_bias: VanillaRNN's option of that name; the second bias is 0.

    Returns:
        The parameters for the core, to be given to ``apply`` (of a larger network among its others). Haiku has a bias
        everywhere: one that the cell was made without is 0, an LSTM's forget gate's -1.

    Raises:
        ValueError, TypeError: what has no counterpart: layers, other cells and options, a learned initial carry, a
            compute dtype other than the weights'.

    Example:
        >>> import haiku as hk, jax, jax.numpy as jnp, jaxrnn as jr
        >>> from jaxrnn.interop.haiku import to_haiku
        >>> cell = jr.gru(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> theirs = hk.without_apply_rng(hk.transform(lambda x, h: hk.GRU(5)(x, h)))
        >>> y, h = theirs.apply(to_haiku(cell, params), jnp.ones(3), jnp.zeros(5))
        >>> bool(jnp.allclose(y, cell.step(params, jnp.zeros(5), jnp.ones(3))[1], atol=1e-6))
        True

    Differs: see :func:`from_haiku`.
    """
    who = "to_haiku"
    if not isinstance(cell, Cell):
        refuse(who, f"a {type(cell).__name__}", "Haiku's cores are cells; convert the cells that it is made of")
    spec = checked_spec(who, cell, params)
    runs = (
        [Run(*pair) for pair in zip(spec.children, params, strict=True)]
        if spec.kind == "chain"
        else [Run(spec, params)]
    )
    cores = [_core_of(who, run) for run in runs]
    names = _named(who, name, cores)
    out: dict[str, dict[str, Any]] = {}
    for run, core, own in zip(runs, cores, names, strict=True):
        out |= {own + below: parts for below, parts in _written(run, core, double_bias).items()}
    return as_jax(who, out)


def _core_of(who: str, run: Run) -> str:
    """The core for a cell."""
    wanted: dict[str, dict[str, Any]] = {
        "elman": {"activation": "relu", "output_size": None},
        "gru": {"activation": "tanh", "gate_activation": "sigmoid", "reset": "before"},
        "lstm": {"activation": "tanh", "gate_activation": "sigmoid", "projection_size": None},
        "conv_lstm": {"activation": "tanh", "gate_activation": "sigmoid", "peephole": False},
    }
    kind = run.cell.kind
    if kind not in wanted:
        refuse(who, kind, f"Haiku's cores are {', '.join(CORES)}")
    cores = {"elman": "VanillaRNN", "gru": "GRU", "lstm": "LSTM"}
    core = cores.get(kind) or f"Conv{len(run.option('spatial_shape'))}DLSTM"
    requires(who, run, f"hk.{core}", **wanted[kind])
    no_learned_carry(who, run, "Haiku")
    check_options(who, run, "bias", "learned_carry", "spatial_shape", "kernel_size", *wanted[kind])
    own_dtype(who, run, np.asarray(run.params.W_xh).dtype, "Haiku")
    return core


def _written(run: Run, core: str, double_bias: bool) -> dict[str, dict[str, Any]]:
    """The parameters of a core, by what stands below its name."""
    W_xh, W_hh = np.asarray(run.params.W_xh), np.asarray(run.params.W_hh)
    b = np.zeros(W_xh.shape[-1:], W_xh.dtype) if run.params.b is None else np.asarray(run.params.b)
    if core == "VanillaRNN":
        second = {"b": np.zeros_like(b)} if double_bias else {}
        return {"/linear": {"w": W_xh, "b": b}, "/linear_1": {"w": W_hh, **second}}
    if core == "GRU":
        W_xh, W_hh, b = (reordered(a, gate_order("gru"), GATES["gru"]) for a in (W_xh, W_hh, b))
        return {"": {"w_i": W_xh, "w_h": W_hh, "b": b}}
    kind, b = run.cell.kind, _forget(run.cell.kind, b, -1)
    W_xh, W_hh, b = (reordered(a, gate_order(kind), GATES[kind]) for a in (W_xh, W_hh, b))
    if core == "LSTM":
        return {"/linear": {"w": np.concatenate([W_xh, W_hh]), "b": b}}
    return {"/input_to_hidden": {"w": W_xh, "b": b}, "/hidden_to_hidden": {"w": W_hh, "b": np.zeros_like(b)}}
