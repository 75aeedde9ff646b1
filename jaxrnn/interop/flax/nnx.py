"""Flax nnx: weights of its recurrent cells both ways, and any jaxrnn cell or layer as an nnx module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn import dtypes

import jaxrnn as jr
from jaxrnn._arguments import checks_arguments
from jaxrnn._base import Cell, Layer, PyTree, check_model, name_of
from jaxrnn._checks import check_params
from jaxrnn._spec import Spec
from jaxrnn.combine import MERGES, BiParams
from jaxrnn.interop.conversion import as_weights, check_shape, in_dicts, refuse, refuse_class
from jaxrnn.interop.flax._cells import (
    FlaxCell,
    Weights,
    check_weights,
    fixed_carry,
    from_flax,
    merge_name,
    names_of,
    one_level,
    to_flax,
)
from jaxrnn.interop.flax._names import at_path, check_all_taken, feature_axes, leading, nested, params_like, paths_in
from jaxrnn.saving.parameters import as_jax

GATES = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n")}  # in nnx's fused kernels
KINDS = {nnx.SimpleCell: "simple", nnx.LSTMCell: "lstm", nnx.OptimizedLSTMCell: "lstm", nnx.GRUCell: "gru"}


def from_nnx(module: nnx.Module, weights: Mapping[str, Any] | None = None) -> tuple[Cell | Layer, PyTree]:
    """An nnx recurrent module, with the weights that it holds, as jaxrnn's cell or layer and parameters.

    The z of Flax's GRU is the share of the *old* state, so z blocks are negated: 1 - σ(a) = σ(-a). Its nnx form has
    no bias inside the reset product: ``b_hh`` is 0. A SimpleCell's ``residual`` becomes a part of the recurrent
    matrix.

    A ``carry_init`` that gives the same for every key and sequence becomes a learned initial carry, which trains with
    the other parameters; Flax's does not.

    Args:
        module: a SimpleCell, LSTMCell, OptimizedLSTMCell or GRUCell; an ``nnx.RNN`` of one, or an
            ``nnx.Bidirectional`` of two such RNNs; or what :func:`nnx_cell` or :func:`nnx_layer` gave.
        weights: to be taken in place of those that the module holds, which may then be shapes alone
            (``nnx.eval_shape(lambda: nnx.GRUCell(3, 5, rngs=nnx.Rngs(0)))``): its ``nnx.State``, or the dicts that a
            file gave back, with text for the places in lists and a level ``value`` on arrays. Of a larger model's, what
            stands under the module's name.

    Returns:
        ``(cell, params)``; for an RNN ``(layer, params)``. A layer is time-major, whatever ``time_major`` says.

    Raises:
        ValueError: what has no counterpart: other classes, a ``carry_init`` that draws, another
            ``promote_dtype``, a GRU with a ``gate_fn`` for which 1 - gate_fn(a) = gate_fn(-a) does not hold, an RNN
            that returns its outputs in reversed order, one RNN for both directions; weights that are not this
            module's, a module of shapes without them.

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> from flax import nnx
        >>> from jaxrnn.interop.flax import from_nnx
        >>> theirs, x, h = nnx.GRUCell(3, 5, rngs=nnx.Rngs(0)), jnp.ones((2, 3)), jnp.zeros((2, 5))
        >>> cell, params = from_nnx(theirs)
        >>> bool(jnp.allclose(cell.step(params, h, x)[1], theirs(h, x)[1], atol=1e-6))
        True

    Differs: Flax's LSTM carry is (c, h), ours ``LSTMCarry(h, c)``. ``nnx.RNN`` leaves on padding what it computed
    there, ours are 0. Under a narrow ``dtype`` (a SimpleCell's is float32 where none is given) Flax sums and carries
    in it, jaxrnn in at least float32. Initialisers, ``unroll`` and the metadata of Params are not taken over.
    """
    refuse_class("from_nnx", module)
    if weights is not None:
        module = _with(module, weights)
    if isinstance(module, NnxCell):
        return module.cell, module.jaxrnn_params()
    if isinstance(module, NnxLayer):
        return module.layer, module.jaxrnn_params()
    if type(module) is nnx.RNN:
        if module.reverse and not module.keep_order:
            refuse(
                "from_nnx",
                "an RNN with reverse=True and keep_order=False",
                "jaxrnn's outputs stand in input order; set keep_order=True and turn them round where you need it",
            )
        cell, params = _from_run(module)
        return jr.scan(cell, reverse=module.reverse), params
    if type(module) is nnx.Bidirectional:
        if module.forward_rnn is module.backward_rnn:
            refuse("from_nnx", "one RNN for both directions", "parameters are not shared here; give it two")
        (ahead, own_ahead), (back, own_back) = _from_run(module.forward_rnn), _from_run(module.backward_rnn)
        merge = merge_name(module.merge_fn, nnx.Bidirectional.merge_fn)
        return jr.bidirectional(ahead, back, merge=merge), BiParams(own_ahead, own_back)
    return from_flax("from_nnx", _read(module))


def _with(module: nnx.Module, weights: Any) -> nnx.Module:
    """A module with other weights; the one that is given stays as it is."""
    if not isinstance(weights, Mapping):
        raise TypeError(f"from_nnx: expected the weights as a dict or an nnx.State, got {type(weights).__name__}.")
    given = in_dicts("from_nnx", weights)
    graph, state = nnx.split(module)
    held = dict(nnx.to_flat_state(state))
    for path, param in held.items():
        if not isinstance(param, nnx.Param):
            continue
        name = ".".join(map(str, path))
        try:
            a = at_path(given, path)
        except KeyError:
            raise ValueError(
                f"from_nnx: expected {name} in the weights of a {type(module).__name__}, got {', '.join(given)}; give "
                f"what the file holds under this module's name, as weights['encoder']."
            ) from None
        a = as_weights("from_nnx", name, a[...] if isinstance(a, nnx.Variable) else a)
        check_shape("from_nnx", name, a, param.shape, "give a module of the sizes with which the weights were saved")
        held[path] = param.replace(a)
    streams = {"count", "key"}  # of an nnx.Rngs: a run has its own, or none
    known = [tuple(map(str, path)) for path in held]
    check_all_taken("from_nnx", given, [*known, *(path for path in paths_in(given) if path[-1] in streams)])
    return nnx.merge(graph, nnx.from_flat_state(held))


def _from_run(module: nnx.Module) -> tuple[Cell, PyTree]:
    if type(module) is not nnx.RNN:
        refuse("from_nnx", f"a Bidirectional of {type(module).__name__}", "both directions must be nnx.RNN")
    return from_flax("from_nnx", _read(module.cell))


def _read(module: nnx.Module) -> FlaxCell:
    who = "from_nnx"
    if type(module) not in KINDS:
        known = ", ".join(cls.__name__ for cls in KINDS)
        refuse(who, f"a {type(module).__name__}", f"known are {known}, nnx.RNN and nnx.Bidirectional of them")
    if module.promote_dtype is not dtypes.promote_dtype:
        refuse(who, "a promote_dtype of your own", "jaxrnn computes in dtype, or in that of the weights")
    kind = KINDS[type(module)]
    weights = _weights(module, kind)
    if kind == "gru":
        weights["hn"]["bias"] = np.zeros_like(weights["in"]["bias"])
    return FlaxCell(
        kind,
        check_weights(who, kind, weights, module.hidden_features),
        module.activation_fn,
        getattr(module, "gate_fn", None),
        getattr(module, "residual", False),
        module.dtype,
        fixed_carry(who, module.carry_init, module.hidden_features, module.param_dtype),
    )


def _weights(module: nnx.Module, kind: str) -> Weights:
    """A kernel (and bias) for each gate, under linen's names."""
    if isinstance(module, nnx.LSTMCell):
        return {name: _dense(getattr(module, "if_" if name == "if" else name)) for name in names_of(kind)}
    if kind == "simple":
        return {"i": _dense(module.dense_i), "h": _dense(module.dense_h)}
    weights: Weights = {}
    for side, fused in (("i", _dense(module.dense_i)), ("h", _dense(module.dense_h))):
        for part, a in fused.items():
            for gate, own in zip(GATES[kind], np.split(a, len(GATES[kind]), axis=-1), strict=True):
                weights.setdefault(side + gate, {})[part] = own
    return weights


def _dense(linear: nnx.Linear) -> dict[str, np.ndarray]:
    if type(linear) is not nnx.Linear:
        refuse("from_nnx", f"a {type(linear).__name__} in a cell", "its parts must be nnx.Linear")
    parts = {"kernel": linear.kernel, "bias": linear.bias}
    if isinstance(linear.kernel.get_value(), jax.ShapeDtypeStruct):
        raise ValueError(
            "from_nnx: the module holds shapes and no weights; give them as well: from_nnx(module, weights)."
        )
    return {name: as_weights("from_nnx", name, a[...]) for name, a in parts.items() if a is not None}


def to_nnx(model: Cell | Layer, params: PyTree, rngs: nnx.Rngs | None = None) -> nnx.Module:
    """A jaxrnn cell or layer and its parameters as an nnx module with these weights.

    Args:
        model: an ``elman`` without ``output_size``, an ``lstm`` without projection, or a ``gru`` with
            ``reset="after"`` whose ``b_hh`` is 0; or a layer that scans one, or two of them in both directions.
        params: its parameters.
        rngs: for the stream that an ``nnx.RNN`` keeps for its cell's initial carry; None means ``nnx.Rngs(0)``.

    Returns:
        A SimpleCell, OptimizedLSTMCell or GRUCell; for a layer an ``nnx.RNN`` or ``nnx.Bidirectional``, time-major,
        that returns its carry and keeps the outputs in input order. Biases that the cell was made without are zeros.

    Raises:
        ValueError, TypeError: what has no counterpart: other cells and options, a ``b_hh`` other than 0, learned
            initial carries, stacks.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn as jr
        >>> from jaxrnn.interop.flax import to_nnx
        >>> layer = jr.scan(jr.elman(3, 5), reverse=True)
        >>> params = layer.init(jax.random.key(0))
        >>> carry, ys = to_nnx(layer, params)(jnp.ones((7, 2, 3)))
        >>> bool(jnp.allclose(ys, layer.apply(params, jnp.ones((7, 2, 3)))[1], atol=1e-6))
        True

    Differs: see :func:`from_nnx`; for what has no counterpart, :func:`nnx_cell` and :func:`nnx_layer` run it as it is.
    """
    _check_rngs("to_nnx", rngs)
    rngs = nnx.Rngs(0) if rngs is None else rngs
    level = one_level("to_nnx", model, params)
    cells = [_write(to_flax("to_nnx", run), rngs) for run in level.runs]
    if isinstance(model, Cell):
        return cells[0]
    if len(cells) == 1:
        reverse = level.runs[0].reverse
        return nnx.RNN(cells[0], time_major=True, return_carry=True, reverse=reverse, keep_order=reverse, rngs=rngs)
    options = {} if level.merge == "concat" else {"merge_fn": MERGES[level.merge]}  # type: ignore[index]
    runs = (nnx.RNN(cell, rngs=rngs) for cell in cells)
    return nnx.Bidirectional(*runs, time_major=True, return_carry=True, rngs=rngs, **options)


def _write(cell: FlaxCell, rngs: nnx.Rngs) -> nnx.Module:
    who, kind, w = "to_nnx", cell.kind, cell.weights
    if kind not in KINDS.values():
        refuse(who, "an MGU", "nnx has no such cell; linen has one")
    if kind == "gru" and w["hn"]["bias"].any():
        refuse(who, "a b_hh other than 0", "nnx's GRU has no bias inside the reset product; linen's has one")
    made = {"simple": nnx.SimpleCell, "lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}[kind]
    kernel = w[names_of(kind)[0]]["kernel"]
    options = {} if kind == "simple" else {"gate_fn": cell.gate}
    options |= {"activation_fn": cell.activation, "dtype": cell.dtype, "param_dtype": kernel.dtype}
    zeros = jax.nn.initializers.zeros  # nothing is drawn: each Param is set below
    module = made(*kernel.shape, kernel_init=zeros, recurrent_kernel_init=zeros, rngs=rngs, **options)
    for side, linear in (("i", module.dense_i), ("h", module.dense_h)):
        own = [w[side + gate] for gate in GATES.get(kind, ("",))]
        for part in ("kernel", "bias") if linear.use_bias else ("kernel",):
            setattr(linear, part, nnx.Param(as_jax(who, np.concatenate([parts[part] for parts in own], axis=-1))))
    return module


def _check_rngs(who: str, rngs: Any) -> None:
    if rngs is not None and not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"{who}: rngs must be nnx.Rngs, got {type(rngs).__name__}; give nnx.Rngs(0), say.")


def _stream(who: str, rngs: nnx.Rngs, name: str) -> Any:
    """A stream of keys; the one called default where there is none of that name."""
    if not hasattr(rngs, name):
        raise ValueError(f"{who}: rngs has neither a stream {name!r} nor 'default'; give nnx.Rngs(0, {name}=1), say.")
    return getattr(rngs, name)


def _held(names: dict[str, Any]) -> nnx.Dict:
    return nnx.Dict({name: _held(a) if isinstance(a, dict) else nnx.Param(jnp.asarray(a)) for name, a in names.items()})


def _values(held: nnx.Dict) -> dict[str, Any]:
    return {name: _values(a) if isinstance(a, nnx.Dict) else a[...] for name, a in held.items()}


class _Holder(nnx.Module):
    """Keeps a pytree of parameters as Params under the names of its paths."""

    def _hold(self, member: Cell | Layer, params: PyTree, rngs: nnx.Rngs | None, who: str) -> None:
        _check_rngs(who, rngs)
        if params is None:
            if rngs is None:
                raise ValueError(f"{who}: expected params, or rngs to draw them from, got neither.")
            params = member.init(_stream(who, rngs, "params")())
        else:
            check_params(who, params, jax.eval_shape(member.init, jax.random.key(0)))
        self.params = _held(nested(params))
        self.structure = nnx.static(jax.tree.structure(params))

    def jaxrnn_params(self) -> PyTree:
        """The parameters as ``init`` makes them: a NamedTuple of arrays, a tuple of such …"""
        like = jax.tree.unflatten(self.structure, range(self.structure.num_leaves))
        return params_like(type(self).__name__, like, _values(self.params))


class NnxCell(_Holder, nnx.RNNCellBase):
    """A jaxrnn cell as an nnx recurrent cell; :func:`nnx_cell` makes it."""

    @checks_arguments(who="nnx_cell")
    def __init__(self, cell: Cell, params: PyTree = None, *, rngs: nnx.Rngs | None = None):
        feature_axes("nnx_cell", cell)
        self.cell = nnx.static(cell)
        self._hold(cell, params, rngs, "nnx_cell")

    def __call__(self, carry: PyTree, inputs: jax.Array) -> tuple[PyTree, PyTree]:
        return self.cell.step(self.jaxrnn_params(), carry, inputs)

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: nnx.Rngs | None = None) -> PyTree:
        """The cell's initial carry; nothing is drawn from ``rngs``."""
        return self.cell.initial_carry(
            self.jaxrnn_params(), leading("initialize_carry", input_shape, self.num_feature_axes)
        )

    @property
    def num_feature_axes(self) -> int:
        return feature_axes("nnx_cell", self.cell)


def nnx_cell(cell: Cell, params: PyTree = None, *, rngs: nnx.Rngs | None = None) -> NnxCell:
    """Any jaxrnn cell, your own included, as an nnx recurrent cell.

    Args:
        cell: a Cell without noise, whose input is one array.
        params: its parameters; None draws them by ``cell.init`` with a key of the stream ``params``.
        rngs: needed where ``params`` is None.

    Returns:
        An ``nnx.RNNCellBase`` for ``nnx.RNN``, ``nnx.Bidirectional`` or your own module, called as
        ``(carry, x) -> (carry, y)``. Each array of the parameters is an ``nnx.Param`` under its name,
        ``module.params["W_xh"]``; ``module.jaxrnn_params()`` and :func:`from_nnx` give them as ``cell`` takes them.

    Raises:
        ValueError: neither ``params`` nor ``rngs``; a cell with noise, which is drawn once for a whole run; an input
            that is no array with features.

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr
        >>> from flax import nnx
        >>> from jaxrnn.interop.flax import nnx_cell
        >>> rnn = nnx.RNN(nnx_cell(jr.elman(3, 5), rngs=nnx.Rngs(0)), return_carry=True)
        >>> carry, ys = rnn(jnp.ones((2, 7, 3)), seq_lengths=jnp.array([7, 4]))
        >>> carry.shape, ys.shape
        ((2, 5), (2, 7, 5))

    Differs: Flax runs it with its own scan, without ``jr.scan``'s plan; outputs on padding are not 0.
    :func:`nnx_layer` runs it as jaxrnn does.
    """
    return NnxCell(cell, params, rngs=rngs)


class NnxLayer(_Holder):
    """A jaxrnn layer as an nnx module; :func:`nnx_layer` makes it."""

    @checks_arguments(who="nnx_layer")
    def __init__(self, layer: Cell | Layer, params: PyTree = None, *, rngs: nnx.Rngs | None = None):
        check_model("nnx_layer", layer)
        layer = jr.scan(layer) if isinstance(layer, Cell) else layer
        self.layer = nnx.static(layer)
        self._hold(layer, params, rngs, "nnx_layer")
        self.deterministic = False
        self.is_random = may_draw(layer.spec)
        self.rngs = (
            _stream("nnx_layer", rngs, "dropout").fork() if self.is_random and rngs is not None else nnx.data(None)
        )

    def __call__(
        self,
        xs: PyTree,
        carry: PyTree = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        resets: Any = None,
        key: jax.Array | None = None,
        start: Any = 0,
    ) -> tuple[PyTree, PyTree]:
        if key is None and self.is_random and not self.deterministic:
            if self.rngs is None:
                raise ValueError(
                    f"nnx_layer: {name_of(self.layer)} in train mode draws from a stream, but was made without rngs; "
                    f"give nnx_layer rngs, or this call a key, or switch to evaluation with .eval()."
                )
            key = self.rngs()
        params = self.jaxrnn_params()
        if carry is not None:
            carry = _named_as(jax.eval_shape(lambda params: self.layer.initial_carry(params, ()), params), carry)
        return self.layer.apply(params, xs, carry, lengths=lengths, mask=mask, resets=resets, key=key, start=start)


def _named_as(like: PyTree, carry: PyTree) -> PyTree:
    """A carry with bare tuples and lists in the place of the tuples and records of ``like``, but for an LSTM's."""
    if not isinstance(like, tuple) or type(carry) not in (tuple, list) or len(carry) != len(like):
        return carry
    if isinstance(like, jr.LSTMCarry):
        raise ValueError(
            "nnx_layer: the carry of an LSTM is given as a bare pair, which may be (h, c), as torch has it, or (c, h), "
            "as Flax has it; pass jr.LSTMCarry(h=…, c=…)."
        )
    parts = [_named_as(own, part) for own, part in zip(like, carry, strict=True)]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def may_draw(spec: Spec | None) -> bool:
    """Whether a cell with noise is somewhere in a model; not known of a user's own, so assumed."""
    if spec is None:
        return True
    made = jr.build(spec)
    return made.noise is not None if isinstance(made, Cell) else any(map(may_draw, spec.children))


def nnx_layer(layer: Cell | Layer, params: PyTree = None, *, rngs: nnx.Rngs | None = None) -> NnxLayer:
    """Any jaxrnn layer, a stack, a bidirectional one or your own, as an nnx module.

    Args:
        layer: a Layer; a Cell is lifted by ``jr.scan``.
        params: its parameters; None draws them by ``layer.init`` with a key of the stream ``params``.
        rngs: needed where ``params`` is None, and for the stream ``dropout`` of a model with noise.

    Returns:
        An ``nnx.Module``, called as ``layer.apply`` is, without its first argument: ``(xs, carry=None, *, lengths=None,
        mask=None, resets=None, key=None, start=0) -> (carry, ys)``, time-major. A carry may have bare tuples or lists
        where ours has records, ``(forward, backward)``, but for an LSTM's: ``jr.LSTMCarry(h=…, c=…)``.

        Each array of the parameters is an ``nnx.Param`` under its name, ``module.params["W_xh"]``, in a stack
        ``module.params["0"]["W_xh"]``; ``module.jaxrnn_params()`` and :func:`from_nnx` give them as ``layer`` takes
        them.

        Noise (dropout, zoneout …): ``key`` where it is given. Where not, as with ``nnx.Dropout``, a new key of the
        stream ``dropout`` at each call in train mode, which a module starts in, and none after ``module.eval()``.
        A model without noise holds no stream; a user's own layer without a spec is taken to have noise.

    Raises:
        ValueError: neither ``params`` nor ``rngs``; when called, a model with noise in train mode that was made without
            ``rngs`` and is given no ``key``, an LSTM's carry as a bare pair, (h, c) or Flax's (c, h).

    Example:
        >>> import jax.numpy as jnp, jaxrnn as jr, optax
        >>> from flax import nnx
        >>> from jaxrnn.interop.flax import nnx_layer
        >>> module = nnx_layer(jr.stack(jr.elman(3, 5), jr.dropout(0.1)), rngs=nnx.Rngs(0))
        >>> optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)
        >>> @nnx.jit
        ... def train(module, optimizer, xs):
        ...     loss, gradient = nnx.value_and_grad(lambda module: (module(xs)[1] ** 2).mean())(module)
        ...     optimizer.update(module, gradient)
        ...     return loss
        >>> losses = [float(train(module, optimizer, jnp.ones((7, 2, 3)))) for _ in range(5)]
        >>> losses[-1] < losses[0]
        True

    Differs from ``nnx.RNN``: time-major, always returns the carry, outputs 0 on padding and in input order.
    """
    return NnxLayer(layer, params, rngs=rngs)
